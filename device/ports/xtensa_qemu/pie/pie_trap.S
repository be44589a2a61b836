// SPDX-License-Identifier: Apache-2.0
// From the user and kernel vectors with EXCCAUSE 0: registers into the core's block, pie_trap_execute(), back.
// On entry EXCSAVE1 = a0 of the program, PS.EXCM = 1: interrupts are masked and loops do not loop.

#include "pie_trap.h"
#include "../special_registers.inc"
#include "../vectors.h"

// a1 ... a15 of the program from the block in a12.
    .macro restore_a1_to_a15
    l32i a1, a12, 4
    l32i a2, a12, 8
    l32i a3, a12, 12
    l32i a4, a12, 16
    l32i a5, a12, 20
    l32i a6, a12, 24
    l32i a7, a12, 28
    l32i a8, a12, 32
    l32i a9, a12, 36
    l32i a10, a12, 40
    l32i a11, a12, 44
    l32i a13, a12, 52
    l32i a14, a12, 56
    l32i a15, a12, 60
    l32i a12, a12, 48
    .endm

    .section .text.pie_trap, "ax"
    .align 4
    .literal_position
    .global _illegal_entry
_illegal_entry:
    wsr.excsave2 a1
    rsr.prid a0
    extui a0, a0, 0, 1
    movi a1, pie_trap_blocks
    addx4 a1, a0, a1
    l32i a1, a1, 0
    s32i a2, a1, 8
    s32i a3, a1, 12
    s32i a4, a1, 16
    s32i a5, a1, 20
    s32i a6, a1, 24
    s32i a7, a1, 28
    s32i a8, a1, 32
    s32i a9, a1, 36
    s32i a10, a1, 40
    s32i a11, a1, 44
    s32i a12, a1, 48
    s32i a13, a1, 52
    s32i a14, a1, 56
    s32i a15, a1, 60
    rsr.excsave1 a2
    rsr.excsave2 a3
    rsr.sar a4
    rsr.epc1 a5
    s32i a2, a1, 0
    s32i a3, a1, 4
    s32i a4, a1, PIE_TRAP_SAR
    s32i a5, a1, PIE_TRAP_PC

    mov a12, a1 // kept by the call
    mov a2, a1
    addmi a1, a1, PIE_TRAP_STACK_TOP
    call0 pie_trap_execute
    beqz a2, 2f

    // What the core does behind the last instruction of a loop while PS.EXCM is 0 (Xtensa ISA Reference Manual, 4.3.2.4).
    rsr_raw 3, SR_LEND
    bne a2, a3, 1f
    rsr_raw 3, SR_LCOUNT
    beqz a3, 1f
    addi a3, a3, -1
    wsr_raw 3, SR_LCOUNT
    rsr_raw 2, SR_LBEG
    isync
1:  wsr.epc1 a2
    l32i a3, a12, PIE_TRAP_SAR
    wsr.sar a3
    l32i a0, a12, 0
    restore_a1_to_a15
    rfe

// No vector instruction: as if we had not been here. a0 and EXCSAVE1 as _fault_entry expects them.
2:  l32i a3, a12, PIE_TRAP_SAR
    wsr.sar a3
    l32i a0, a12, 0
    wsr.excsave1 a0
    restore_a1_to_a15
    movi a0, VECTOR_USER
    j _fault_entry
