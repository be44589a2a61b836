/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QK^T for sixteen queries (attention_work.h): lanes are queries.
 *
 * The queries [padded_dim][16] stream through q0 and q1, fused into the MACs; the 16 dimensions of a key in q2 or q3 are
 * their scalars. Of each key: padded_dim MACs, a load for 16 of them, one slot to clear QACC, 18 to take the int16 scores
 * out of the 20-bit lanes, two stores with the maximum fused. The queries' first two rows lie again behind the last, so
 * that the last two MACs of a key load what the first two of the next one multiply. For 64 dimensions: 89 slots, and for
 * every other key a cycle for the loop, which is longer than the loop buffer.
 *
 * Rows come in the order in which the values' loop wants them (attention_values.S): where the tokens are odd, one of no
 * key; the keys of the last block, last to first; the other blocks.
 */
#include "assembler.h"
#include "attention_work.h"

    .text
    .begin no-transform

.macro mac16 scalars
    .set i, 0
    .rept 8
        ee.vsmulas.s8.qacc.ld.incp q0, a4, q0, \scalars, i
        ee.vsmulas.s8.qacc.ld.incp q1, a4, q1, \scalars, i + 1
        .set i, i + 2
    .endr
.endm

/* The same with a load of the next 16 dimensions. */
.macro mac16_load scalars, next
    .set i, 0
    .rept 8
        ee.vsmulas.s8.qacc.ld.incp q0, a4, q0, \scalars, i
        .if i == 12
        ee.vld.128.ip \next, a3, 16
        .endif
        ee.vsmulas.s8.qacc.ld.incp q1, a4, q1, \scalars, i + 1
        .set i, i + 2
    .endr
.endm

/* Scores out of QACC into their rows: 20 slots, narrow 4. */
.macro finish_key narrow
    .if \narrow
    add a3, a3, a11
    ee.srcmb.s16.qacc q2, a7, 0
    mov a4, a12
    ee.vmax.s16.st.incp q2, a5, q4, q4, q2
    .else
    lanes_to_i16 q3, q2, a7, "add a3, a3, a11", "mov a4, a12"
    ee.vmax.s16.st.incp q3, a5, q4, q4, q3
    ee.vmax.s16.st.incp q2, a6, q5, q5, q2
    .endif
.endm

.macro key64 narrow
    ee.vld.128.ip q2, a3, 16
    ee.zero.qacc
    mac16_load q2, q3
    mac16_load q3, q2
    mac16_load q2, q3
    mac16 q3
    finish_key \narrow
.endm

/* a2 work */
.macro scores name, narrow
    kernel_function \name
    kernel_enter
    l32i a3, a2, WORK_LAST_KEY
    l32i a4, a2, WORK_QUERIES
    l32i a5, a2, WORK_SCORES
    l32i a7, a2, WORK_SCORE_SHIFT
    .if \narrow
    addi a7, a7, 20
    .else
    l32i a6, a2, WORK_SCORES + 4
    .endif
    movi a8, 8
    movi a9, 0
    addmi a11, a2, 256
    addi a11, a11, WORK_LOWEST - 256
    ee.vld.128.ip q4, a11, 0
    ee.vld.128.ip q5, a11, 0
    addmi a10, a2, 256
    addi a10, a10, WORK_BYTES_80 - 256
    ee.vld.128.ip q6, a10, 16
    ee.vld.128.ip q7, a10, 16 /* a10: WORK_QACC */
    ee.vld.128.ip q0, a4, 16
    ee.vld.128.ip q1, a4, 16
    mov a12, a4 /* the third row */
    l32i a15, a2, WORK_NO_ROW
    beqz a15, .Leven\@
    ee.vst.128.ip q4, a5, 16
    .if !\narrow
    ee.vst.128.ip q5, a6, 16
    .endif
.Leven\@:
    l32i a11, a2, WORK_PADDED_DIM
    slli a11, a11, 1
    neg a11, a11 /* from a key's end to the one before */
    l32i a15, a2, WORK_TAIL_KEYS
    l32i a14, a2, WORK_KEY_RUNS
    movi a13, -128
    sub a13, a13, a11
    bnez a13, .Lany_dim\@

    .end no-transform
    movi a13, .Lkey64\@
    wsr.lbeg a13
    movi a13, .Lkey64_end\@
    wsr.lend a13
    .begin no-transform
    addi a15, a15, -1
    srli a12, a15, 1
    wsr.lcount a12
    mov a12, a4
    l32i a13, a2, WORK_KEY_STEP
    isync
    bbci a15, 0, .Lodd_keys64\@
    j .Lkey64\@
.Lodd_keys64\@:
    j .Lsecond_key64\@
    .balign 4
.Lkey64\@:
    key64 \narrow
.Lsecond_key64\@:
    key64 \narrow
.Lkey64_end\@:
    beqz a14, .Lend\@
    addi a14, a14, -1
    l32i a15, a2, WORK_RUN_KEYS
    srli a15, a15, 1
    addi a15, a15, -1
    wsr.lcount a15
    add a3, a3, a13
    isync
    beqz a11, .Lkey64\@
    movi a11, 0
    l32i a3, a2, WORK_KEYS
    j .Lkey64\@

    /* Any dimension: 18 slots for 16 dimensions, 27 around them. */
.Lany_dim\@:
    l32i a13, a2, WORK_PADDED_DIM
    srli a13, a13, 4
.Lkey\@:
    ee.zero.qacc
    loop a13, .Ldims\@
    ee.vld.128.ip q2, a3, 16
    nop
    mac16 q2
.Ldims\@:
    finish_key \narrow
    addi a15, a15, -1
    bnez a15, .Lkey\@
    beqz a14, .Lend\@
    addi a14, a14, -1
    l32i a15, a2, WORK_RUN_KEYS
    l32i a9, a2, WORK_KEY_STEP
    add a3, a3, a9
    movi a9, 0
    beqz a11, .Lkey\@
    movi a11, 0
    l32i a3, a2, WORK_KEYS
    j .Lkey\@

.Lend\@:
    addmi a4, a2, 256
    addi a4, a4, WORK_LOW - 256
    ee.vld.128.ip q0, a4, 0
    addi a3, a2, WORK_EXP + WORK_HIGHEST
    ee.vst.128.ip q4, a3, WORK_EXP_HALF
    ee.vst.128.ip q5, a3, 0
    ee.vcmp.lt.s16 q4, q4, q0
    ee.vcmp.lt.s16 q5, q5, q0
    ee.orq q4, q4, q5
    ee.movi.32.a q4, a2, 0
    ee.movi.32.a q4, a3, 1
    ee.movi.32.a q4, a4, 2
    ee.movi.32.a q4, a5, 3
    or a2, a2, a3
    or a4, a4, a5
    or a2, a2, a4
    kernel_return
.endm

    scores tvit_attention_scores_pie, 0
    scores tvit_attention_narrow_scores_pie, 1

    .end no-transform
