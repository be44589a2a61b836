// SPDX-License-Identifier: Apache-2.0
// How the second core of kc705-nommu starts: it leaves reset at 0x40000400 as soon as the MX interrupt distributor no
// longer stalls it. Where QEMU's loader has put the way to the program there, core 0 needs it again at a reset of the
// board, so the second core puts back what it found.

#include "hardware.h"
#include "vectors.h"

    .section .text.cores, "ax"
    .align 4
    .literal_position
// void cores_release_second(void): it runs cores_second() on a stack of its own.
    .global cores_release_second
cores_release_second:
    movi a2, MX_RESET_VECTOR - 4
    movi a3, reset_vector_words
    l32i a4, a2, 0
    l32i a5, a2, 4
    l32i a6, a2, 8
    s32i a4, a3, 0
    s32i a5, a3, 4
    s32i a6, a3, 8
    movi a4, second_core_entry
    movi a5, 0xa0ffff21 // l32r a2, MX_RESET_VECTOR - 4; jx a2
    movi a6, 0x00000002
    s32i a4, a2, 0
    s32i a5, a2, 4
    s32i a6, a2, 8
    memw
    movi a2, MX_RUN_STALL
    movi a3, 0
    j write_external_register

second_core_entry:
    movi a2, 0
    wsr.intenable a2
    rsync
    movi a2, _vectors
    wsr.vecbase a2
    movi a2, PS_UM
    wsr.ps a2
    rsync
    movi a2, MX_RESET_VECTOR - 4
    movi a3, reset_vector_words
    l32i a4, a3, 0
    l32i a5, a3, 4
    l32i a6, a3, 8
    s32i a4, a2, 0
    s32i a5, a2, 4
    s32i a6, a2, 8
    movi a1, __second_stack_top
    movi a2, cores_second
    movi a0, 0
    jx a2

    .section .bss.reset_vector_words, "aw", @nobits
    .align 4
reset_vector_words:
    .space 12
