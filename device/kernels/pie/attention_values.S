/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probabilities times the values for sixteen queries (attention_work.h): lanes are queries.
 *
 * Probabilities [rows][16] stream through q0 and q1, fused into the MACs; the 16 keys of a dimension of the values, as the
 * projection leaves them, are their scalars in q2 and q3. Two blocks of keys are 34 slots. The last block is entered where
 * its keys begin, so that keys behind the last token cost nothing; its rows are in descending order of the keys
 * (attention_scores.S). The first two rows lie again behind the last ones.
 */
#include "assembler.h"
#include "attention_work.h"

    .text
    .begin no-transform

/* Sixteen keys in \now; loads the next block's. */
.macro mac16_load now, next
    .set i, 0
    .rept 8
        ee.vsmulas.s8.qacc.ld.incp q0, a7, q0, \now, i
        .if i == 12
        ee.vld.128.xp \next, a4, a5
        .endif
        ee.vsmulas.s8.qacc.ld.incp q1, a7, q1, \now, i + 1
        .set i, i + 2
    .endr
.endm

/* Keys 15 to 0, each instruction 4 bytes. */
.macro mac16_descending now
    .set i, 15
    .rept 8
        ee.vsmulas.s8.qacc.ld.incp q0, a7, q0, \now, i
        ee.vsmulas.s8.qacc.ld.incp q1, a7, q1, \now, i - 1
        .set i, i - 2
    .endr
.endm

    /* a2 work */
    kernel_function tvit_attention_values_pie
    kernel_enter
    .end no-transform
    movi a15, .Ltail
    .begin no-transform
    l32i a3, a2, WORK_TAIL_KEYS
    addi a3, a3, 1
    srli a3, a3, 1
    slli a3, a3, 3
    sub a15, a15, a3
    addi a15, a15, 64
    l32i a3, a2, WORK_VALUES
    l32i a5, a2, WORK_VALUE_STEP
    l32i a6, a2, WORK_SCORES
    l32i a11, a2, WORK_SUMS
    l32i a14, a2, WORK_FULL_BLOCKS
    srli a12, a14, 1
    movi a8, 8
    movi a9, 0
    movi a13, 4
    addmi a10, a2, 256
    addi a10, a10, WORK_BYTES_80 - 256
    l32i a2, a2, WORK_HEAD_DIM
    ee.vld.128.ip q6, a10, 16
    ee.vld.128.ip q7, a10, 16
    ee.vld.128.ip q0, a6, 16
    ee.vld.128.ip q1, a6, 16
    mov a7, a6 /* the third row */
    mov a4, a3
.Ldimension:
    ee.zero.qacc
    bbci a14, 0, .Leven
    ee.vld.128.xp q3, a4, a5
    mac16_load q3, q2
    j .Lpairs
.Leven:
    ee.vld.128.xp q2, a4, a5
.Lpairs:
    loopnez a12, .Lblocks
    mac16_load q2, q3
    mac16_load q3, q2
.Lblocks:
    jx a15
    .balign 4
.Ltail:
    mac16_descending q2
    lanes_to_i16 q3, q2, a13, "addi a3, a3, 16", "mov a4, a3"
    addi a2, a2, -1
    mov a7, a6
    ee.vst.128.ip q3, a11, 16
    ee.vst.128.ip q2, a11, 16
    bnez a2, .Ldimension
    kernel_return

    /*
     * o = ((c >> 4) * w + rounding) >> out_shift, of sixteen queries in 12 slots. The shift leaves eight bits below the
     * point, so that saturating to 16 bits saturates the upper byte to 8 bits: -128 becomes -127 afterwards.
     */
    /* a2 work */
    kernel_function tvit_attention_outputs_pie
    kernel_enter
    addmi a4, a2, 512
    addi a4, a4, WORK_W - 512
    ee.vld.128.ip q2, a4, 16
    ee.vld.128.ip q3, a4, WORK_ROUNDING - WORK_W - 16
    ee.vld.128.ip q4, a4, 16
    ee.vld.128.ip q5, a4, 16 /* a4: WORK_MINUS_127 */
    l32i a3, a2, WORK_SUMS
    l32i a5, a2, WORK_OUTPUT
    l32i a6, a2, WORK_OUT_SHIFT
    l32i a7, a2, WORK_HEAD_DIM
    addi a5, a5, -16
    ee.vld.128.ip q0, a3, 16
    ee.vld.128.ip q1, a3, 16
    addi a7, a7, -1
    ee.zero.qacc
    ee.vmulas.s16.qacc q4, q5
    ee.vmulas.s16.qacc.ld.ip q0, a3, 16, q0, q2
    addi a5, a5, 16
    ee.srcmb.s16.qacc q6, a6, 0
    ee.zero.qacc
    ee.vmulas.s16.qacc q4, q5
    ee.vmulas.s16.qacc.ld.ip q1, a3, 16, q1, q3
    nop
    ee.srcmb.s16.qacc q7, a6, 0
    ee.vunzip.8 q6, q7
    loopnez a7, .Loutputs
    ee.vld.128.ip q6, a4, 0
    ee.zero.qacc
    ee.vmulas.s16.qacc q4, q5
    ee.vmulas.s16.qacc.ld.ip q0, a3, 16, q0, q2
    ee.vmax.s8 q7, q7, q6
    ee.srcmb.s16.qacc q6, a6, 0
    ee.zero.qacc
    ee.vmulas.s16.qacc q4, q5
    ee.vmulas.s16.qacc.ld.ip q1, a3, 16, q1, q3
    ee.vst.128.ip q7, a5, 16
    ee.srcmb.s16.qacc q7, a6, 0
    ee.vunzip.8 q6, q7
.Loutputs:
    ee.vld.128.ip q6, a4, 0
    nop
    ee.vmax.s8 q7, q7, q6
    ee.vst.128.ip q7, a5, 16
    kernel_return

    .end no-transform
