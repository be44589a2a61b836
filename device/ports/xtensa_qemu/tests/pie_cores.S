// SPDX-License-Identifier: Apache-2.0
// How the second core of kc705-nommu starts: all of them leave reset at 0x40000400, where the loader of QEMU has put a
// jump to the program; a core other than 0 stays stalled until the MX interrupt distributor lets it go.

#include "ports/xtensa_qemu/vectors.h"

#define RESET_VECTOR 0x40000400
#define MPSCORE 0x200 // external register of the distributor: a bit for each core that is stalled

// void start_second_core(void): it runs second_core() on a stack of its own.
    .section .text.start_second_core, "ax"
    .align 4
    .literal_position
    .global start_second_core
start_second_core:
    movi a2, RESET_VECTOR - 4
    movi a3, second_core_entry
    s32i a3, a2, 0
    movi a3, 0xa0ffff21 // l32r a2, RESET_VECTOR - 4; jx a2
    s32i a3, a2, 4
    movi a3, 0x00000002
    s32i a3, a2, 8
    memw
    movi a2, MPSCORE
    movi a3, 0
    .byte 0x30, 0x72, 0x40 // wer a3, a2
    ret

second_core_entry:
    movi a2, 0
    wsr.intenable a2
    rsync
    movi a2, _vectors
    wsr.vecbase a2
    movi a2, PS_UM
    wsr.ps a2
    rsync
    movi a1, second_core_stack_top
    movi a2, second_core
    movi a0, 0
    jx a2

    .section .bss.second_core_stack, "aw", @nobits
    .align 16
    .space 4096
second_core_stack_top:
