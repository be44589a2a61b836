// SPDX-License-Identifier: Apache-2.0
// Vector instructions in the places where a trap could lose the way. Each routine copies n vectors from a2 to a3 (n = a4),
// adds the int8 dot product of all of them with themselves to ACCX, and returns 100 * a5 + the rounds it counted itself.
// pie_codes.h has the encodings, from the opcode table of the model: this assembler knows none.

#include "pie_codes.h"

// LOOP and LOOPNEZ (format RI8): LEND is imm8 + 4 bytes away.
    .macro zero_overhead_loop kind, count, end
9:  .byte 0x76, \kind << 4 | \count, \end - 9b - 4
    .endm

#define LOOP 8
#define LOOPNEZ 9

    .macro routine name
    .section .text.\name, "ax"
    .align 4
    .global \name
\name:
    movi a6, 0
    .endm

    .macro result
    movi a7, 100
    mull a5, a5, a7
    add a2, a5, a6
    ret
    .endm

    .begin no-transform

// The loop's last instruction is a vector instruction of three bytes.
    routine loop_ends_in_three_bytes
    zero_overhead_loop LOOP, 4, 1f
    addi a6, a6, 1
    VLD_Q0_A2
    VMULAS_ACCX_Q0_Q0
    VST_Q0_A3
1:  result

// ... of four bytes; here it loads the next vector, so there is one more load than rounds.
    routine loop_ends_in_four_bytes
    VLD_Q0_A2
    zero_overhead_loop LOOP, 4, 1f
    addi a6, a6, 1
    VST_Q0_A3
    VMULAS_ACCX_LD_Q0_A2_Q0_Q0
1:  addi a2, a2, -16
    result

// Nothing but vector instructions in the loop, and one at LEND, executed once.
    routine loop_of_vectors_only
    mov a6, a4
    zero_overhead_loop LOOPNEZ, 4, 1f
    VLD_Q0_A2
    VMULAS_ACCX_Q0_Q0
    VST_Q0_A3
1:  VZERO_Q0
    result

// A branch to a vector instruction, one over it, and one that is not taken in front of it.
    routine branches_around_vectors
    j 2f
1:  VST_Q0_A3
    addi a6, a6, 1
    addi a4, a4, -1
    beqz a4, 3f
2:  VLD_Q0_A2
    VMULAS_ACCX_Q0_Q0
    bnez a4, 1b
    VZERO_Q0 // never reached
3:  result

// A routine that is called from a loop and returns behind a vector instruction.
    routine loop_of_calls
    mov a8, a0
    zero_overhead_loop LOOP, 4, 1f
    call0 copy_one
    addi a6, a6, 1
1:  mov a0, a8
    result
    .align 4
copy_one:
    VLD_Q0_A2
    VMULAS_ACCX_Q0_Q0
    VST_Q0_A3
    ret

// A zero-overhead loop of one round inside a loop of branches.
    routine nested_loops
    mov a8, a4
1:  movi a7, 1
    zero_overhead_loop LOOP, 7, 2f
    VLD_Q0_A2
    VMULAS_ACCX_Q0_Q0
    VST_Q0_A3
2:  addi a6, a6, 1
    addi a8, a8, -1
    bnez a8, 1b
    result

    .end no-transform

// uint32_t run_case(const uint8_t *code, uint32_t registers[17]): a4 .. a9 and SAR from registers, the code, and back.
    .section .text.run_case, "ax"
    .align 4
    .global run_case
run_case:
    addi a1, a1, -32
    s32i a0, a1, 0
    s32i a13, a1, 4
    s32i a14, a1, 8
    s32i a15, a1, 12
    mov a14, a2
    mov a15, a3
    l32i a13, a15, 64
    wsr.sar a13
    l32i a4, a15, 16
    l32i a5, a15, 20
    l32i a6, a15, 24
    l32i a7, a15, 28
    l32i a8, a15, 32
    l32i a9, a15, 36
    isync
    callx0 a14
    s32i a4, a15, 16
    s32i a5, a15, 20
    s32i a6, a15, 24
    s32i a7, a15, 28
    s32i a8, a15, 32
    s32i a9, a15, 36
    rsr.sar a13
    s32i a13, a15, 64
    l32i a0, a1, 0
    l32i a13, a1, 4
    l32i a14, a1, 8
    l32i a15, a1, 12
    addi a1, a1, 32
    ret

// A round of the inner loop of an int8 matrix product: sixteen MAC with loads, one load of activations. a2: both, a4: rounds.
    .section .text.matrix_loop, "ax"
    .align 4
    .global matrix_loop
matrix_loop:
    mov a5, a2
1:  MATRIX_ROUND
    mov a2, a5
    addi a4, a4, -1
    bnez a4, 1b
    ret

// An instruction that is nobody's.
    .section .text.undefined_instruction, "ax"
    .align 4
    .global undefined_instruction, undefined_instruction_itself
undefined_instruction:
    movi a9, 99
undefined_instruction_itself:
    ill
    ret

// A vector load from nowhere.
    .section .text.load_from_nowhere, "ax"
    .align 4
    .global load_from_nowhere, load_from_nowhere_itself
load_from_nowhere:
    movi a2, 1
    slli a2, a2, 28
load_from_nowhere_itself:
    VLD_Q0_A2
    ret
