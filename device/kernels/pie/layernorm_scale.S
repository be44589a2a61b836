/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tvit_layernorm_scale() of layernorm_scale.h for the tokens of a block, one after the other, with the same names: 115
 * instructions and about 16 cycles of waiting a token. What is rare is behind the loop. Products are usable two slots
 * later, a quotient 13, so other work lies in between where there is any.
 */
#include "assembler.h"
#include "layernorm_lanes.h"

    .text
    .begin no-transform

    /* a2 tvit_layernorm_scaling, a3 tvit_layernorm_sums, a4 tvit_layernorm_factors_of_lanes, a5 tokens */
    kernel_function tvit_layernorm_scale_lanes
    kernel_enter
    mov a7, a5
    l32i a5, a2, SCALING_N
    l32i a6, a2, SCALING_RECIPROCAL
    j .Ltoken
.Lcarry:
    addi a8, a8, 1
    j .Lcarried
.Ltoken:
    /* V = N * S2 - S1 * S1 + epsilon, in a8 and a11 */
    l32i a8, a3, SUMS_S2_LOW
    l32i a9, a3, SUMS_S1
    l32i a10, a3, SUMS_S2_HIGH
    mull a11, a5, a8
    muluh a8, a5, a8
    mull a10, a5, a10
    abs a12, a9
    mull a13, a12, a12
    muluh a12, a12, a12
    l32i a14, a2, SCALING_EPSILON
    l32i a15, a2, SCALING_EPSILON + 4
    add a8, a8, a10
    add a11, a11, a14
    sub a8, a8, a12
    add a8, a8, a15
    bltu a11, a14, .Lcarry
.Lcarried:
    bgeu a11, a13, .Lno_borrow
    addi a8, a8, -1
.Lno_borrow:
    sub a11, a11, a13
    beqz a8, .Lsmall
    /* m, the upper 32 bits of V * 2^(2 half), in a12; half in a10 */
    nsau a10, a8
    srli a10, a10, 1
    add a12, a10, a10
    ssl a12
    src a12, a8, a11
.Lnormalized:
    /* r in a13 */
    l32i a8, a2, SCALING_ROOTS
    extui a13, a12, 24, 8
    add a13, a13, a8
    l8ui a13, a13, 0
    l32i a14, a2, SCALING_THREE
    addmi a13, a13, 256
    mull a15, a13, a13
    slli a13, a13, 23
    slli a15, a15, 14
    muluh a15, a15, a12
    addi a8, a10, -2
    sub a15, a14, a15
    muluh a13, a13, a15
    ssr a8
    add a13, a13, a13
    muluh a15, a13, a13
    l32i a8, a2, SCALING_C_TOP
    muluh a15, a15, a12
    nop
    sub a15, a14, a15
    muluh a13, a13, a15
    l32i a15, a2, SCALING_C_ZEROS
    /* d in a12, the estimate of a in a13 */
    muluh a12, a12, a13
    sub a15, a15, a10
    srl a12, a12
    mull a14, a12, a12
    muluh a13, a8, a13
    sub a11, a11, a14
    add a14, a12, a12
    bltz a11, .Ltoo_large
    sub a14, a14, a11
    srai a8, a15, 5
    bltz a14, .Ltoo_small
.Lroot:
    bnez a8, .Lfar
    ssr a15
    l32i a14, a2, SCALING_C_LOW
    srl a13, a13
.Lestimated:
    mull a15, a13, a12
    l32i a8, a2, SCALING_C_CAP
    sub a8, a8, a12
    sub a14, a14, a15
    bgez a8, .Lcapped
    bltz a14, .Lnegative
    quou a14, a14, a12
.Ldivided:
    /* raised = s1 + 2^15 n in a9, mean in a10 */
    l32i a10, a2, SCALING_RAISE
    l32i a15, a2, SCALING_RECIPROCAL_SHIFT
    add a9, a9, a10
    add a10, a9, a9
    muluh a10, a10, a6
    ssr a15
    srl a10, a10
    mull a15, a10, a5
    nop
    sub a9, a9, a15
    /* a in a13, rest in a9; part * rest in a11, a_rest * rest / n in a12 */
    add a13, a13, a14
.Lquotient:
    add a11, a13, a13
    muluh a11, a11, a6
    s32i a13, a4, LANES_A
    srl a11, a11
    mull a12, a11, a5
    mull a11, a11, a9
    sub a12, a13, a12
    mull a12, a12, a9
    muluh a14, a10, a13
    add a12, a12, a12
    muluh a12, a12, a6
    mull a10, a10, a13
    srl a12, a12
    l32i a8, a2, SCALING_LOW_BITS
    add a11, a11, a12
    /* -B = 2^15 a - (mean * a + fraction), rounded down to a multiple of 2^15 by adding 2^15 - 1 to the subtrahend */
    add a11, a11, a8
    add a11, a10, a11
    ssai 15
    bgeu a11, a10, .Lno_carry
    addi a14, a14, 1
.Lno_carry:
    l32i a8, a2, SCALING_MOST_OFFSET
    src a14, a14, a11
    sub a14, a13, a14
    abs a15, a14
    sub a8, a8, a15
    s32i a11, a4, LANES_NOT_E0
    bltz a8, .Lplain
.Lstored:
    s32i a14, a4, LANES_OFFSET
    addi a3, a3, 4
    addi a4, a4, 4
    addi a7, a7, -1
    bnez a7, .Ltoken
    kernel_return

.Lsmall: /* V is below 2^32 */
    nsau a10, a11
    srli a10, a10, 1
    add a12, a10, a10
    ssl a12
    sll a12, a11
    addi a10, a10, 16
    j .Lnormalized

.Ltoo_large:
    addi a12, a12, -1
    addx2 a11, a12, a11
    addi a11, a11, 1
    bltz a11, .Ltoo_large
    add a14, a12, a12
    srai a8, a15, 5
    bltu a14, a11, .Lstill_too_small
    j .Lroot
.Ltoo_small:
    add a14, a12, a12
.Lstill_too_small:
    sub a11, a11, a14
    addi a11, a11, -1
    addi a12, a12, 1
    add a14, a12, a12
    bltu a14, a11, .Lstill_too_small
    j .Lroot

.Lfar: /* the estimate is shifted by 32 or more to the right, or by one to the left */
    l32i a14, a2, SCALING_C_LOW
    add a13, a13, a13
    bltz a15, .Lestimated
    movi a13, 0
    j .Lestimated

.Lcapped: /* 2^30 - 1 */
    movi a13, -1
    srli a13, a13, 2
    movi a14, 0
    j .Ldivided

.Lnegative:
    sub a14, a12, a14
    addi a14, a14, -1
    quou a14, a14, a12
    neg a14, a14
    j .Ldivided

.Lplain: /* a bit for the token: 1 << tokens left */
    l32i a15, a2, SCALING_PLAIN
    movi a8, 1
    ssl a7
    sll a8, a8
    or a15, a15, a8
    s32i a15, a2, SCALING_PLAIN
    movi a14, 0
    j .Lstored
    .end no-transform
