/* SPDX-License-Identifier: Apache-2.0 */
/* Entry of the bare program (call0): zero-overhead loops and PIE on, stack, main(), board reset, which ends the simulation. */
#include "assembler.h"
    .section .text.start, "ax"
    .literal_position
    .global _start
    .align 4
_start:
    movi a2, 0x2f /* user vector mode, interrupts off, and EXCM off: a loop does not go back while it is set */
    wsr.ps a2
    movi a2, 0xff
    wsr.cpenable a2
    rsync
    movi a1, _stack_top
    call0 main
    movi a2, 0x9d020010
    movi a3, 0xdead
    s32i a3, a2, 0
1:  j 1b
