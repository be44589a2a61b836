// SPDX-License-Identifier: Apache-2.0
// Reset, exception vectors and the way into the fault report, for Xtensa cores with the XEA2 exceptions and VECBASE
// (Xtensa ISA Reference Manual, 4.4 and 5.4). Call0 ABI: PS.WOE stays 0, so the window vectors are never taken.

#include "special_registers.inc"
#include "vectors.h"

// Each vector saves a0 in EXCSAVE1, names itself in a0 and goes to the common handler. None needs a literal.
    .macro vector offset, target
    .org \offset
    wsr.excsave1 a0
    movi a0, \offset
    j \target
    .endm

// Exceptions with a cause: an illegal instruction (0) and a misaligned access go to _illegal_entry, for builds that
// emulate some.
    .macro exception offset
    .org \offset
    wsr.excsave1 a0
    rsr.exccause a0
    bnez a0, 1f
    j _illegal_entry
1:  j _exception_entry
    .endm

    .section .vectors, "ax"
    .align 1024
    .global _vectors
_vectors:
    vector VECTOR_WINDOW, _fault_entry
    vector VECTOR_LEVEL2, _fault_entry
    vector VECTOR_LEVEL3, _fault_entry
    vector VECTOR_LEVEL4, _fault_entry
    vector VECTOR_LEVEL5, _fault_entry
    vector VECTOR_DEBUG, _fault_entry
    vector VECTOR_NMI, _fault_entry
    exception VECTOR_KERNEL
    exception VECTOR_USER
    vector VECTOR_DOUBLE, _fault_entry
    .org 0x400

// Start-up.
    .section .text.start, "ax"
    .align 4
    .literal_position
    .global _start
// a2: boot parameters of the loader, or 0.
_start:
    movi a3, 0
    wsr.intenable a3
    rsync
    movi a3, _vectors
    wsr.vecbase a3
    movi a3, PS_UM // exceptions go to the user vector, EXCM off
    wsr.ps a3
    rsync
    rsr.prid a3 // the second core has a start of its own (cores.S)
    extui a3, a3, 0, 8
1:  bnez a3, 1b

    movi a3, __bss_start
    movi a4, __bss_end
    movi a5, 0
    bgeu a3, a4, 3f
2:  s32i a5, a3, 0
    addi a3, a3, 4
    bltu a3, a4, 2b
3:  movi a1, __stack_top
    movi a0, 0
    movi a3, port_main
    callx0 a3
5:  j 5b // port_main does not return

// a0 = EXCCAUSE, EXCSAVE1 = a0 of the program. The one interrupt in use ends port_idle()'s sleep, and does nothing else.
    .section .text.fault, "ax"
    .align 4
    .literal_position
_exception_entry:
    addi a0, a0, -CAUSE_ALIGNMENT // a store across words, which the ESP32-S3 has in hardware
    bnez a0, 2f
    j _illegal_entry
2:  addi a0, a0, CAUSE_ALIGNMENT
    bnei a0, CAUSE_LEVEL1_INTERRUPT, 1f
    movi a0, 0
    wsr.intenable a0
    rsync
    rsr.excsave1 a0
    rfe
    .weak _illegal_entry
_illegal_entry:
1:  movi a0, VECTOR_USER

// Stores the registers in this core's frame of fault_frames, then reports on a stack of its own. A fault while reporting
// stops the core. Where both cores have one at the same time, one reports and the other one stops (Peterson, "Myths about
// the mutual exclusion problem", 1981).
    .global _fault_entry
_fault_entry:
    wsr.excsave2 a1
    wsr.excsave3 a0
    rsr.prid a0
    extui a0, a0, 0, 1
    movi a1, fault_frames
    beqz a0, 5f
    addi a1, a1, FAULT_FRAME_BYTES
5:  rsr.excsave3 a0
    s32i a0, a1, FAULT_VECTOR
    rsr.excsave1 a0
    s32i a0, a1, FAULT_A0
    rsr.excsave2 a0
    s32i a0, a1, FAULT_A0 + 4
    s32i a2, a1, FAULT_A0 + 8
    s32i a3, a1, FAULT_A0 + 12
    s32i a4, a1, FAULT_A0 + 16
    s32i a5, a1, FAULT_A0 + 20
    s32i a6, a1, FAULT_A0 + 24
    s32i a7, a1, FAULT_A0 + 28
    s32i a8, a1, FAULT_A0 + 32
    s32i a9, a1, FAULT_A0 + 36
    s32i a10, a1, FAULT_A0 + 40
    s32i a11, a1, FAULT_A0 + 44
    s32i a12, a1, FAULT_A0 + 48
    s32i a13, a1, FAULT_A0 + 52
    s32i a14, a1, FAULT_A0 + 56
    s32i a15, a1, FAULT_A0 + 60
    rsr.epc1 a0
    s32i a0, a1, FAULT_EPC
    rsr.exccause a0
    s32i a0, a1, FAULT_CAUSE
    rsr.excvaddr a0
    s32i a0, a1, FAULT_ADDRESS
    rsr.depc a0
    s32i a0, a1, FAULT_DEPC
    rsr.ps a0
    s32i a0, a1, FAULT_PS
    rsr_raw 0, SR_EPC6
    s32i a0, a1, FAULT_EPC6
    rsr_raw 0, SR_EPC7
    s32i a0, a1, FAULT_EPC7
    l32i a0, a1, FAULT_BUSY
6:  bnez a0, 6b
    rsr.prid a2
    extui a2, a2, 0, 1
    movi a4, fault_last
    movi a5, fault_frames
    bnez a2, 7f
    addi a5, a5, FAULT_FRAME_BYTES // the other core's
7:  movi a0, 1
    s32i a0, a1, FAULT_BUSY
    s32i a2, a4, 0
    memw
8:  memw
    l32i a3, a5, FAULT_BUSY
    beqz a3, 9f
    l32i a3, a4, 0
    beq a3, a2, 8b
9:  movi a0, PS_UM | 15 // interrupts off, EXCM off: an exception in the report comes back here and stops
    wsr.ps a0
    rsync
    mov a2, a1
    rsr.prid a1
    extui a1, a1, 0, 1
    movi a3, __second_fault_stack_top
    movi a4, __fault_stack_top
    moveqz a3, a4, a1
    mov a1, a3
    movi a3, port_fault
    movi a0, 0
    callx0 a3
10: j 10b

    .section .bss.fault_last, "aw", @nobits
    .align 4
fault_last:
    .space 4
