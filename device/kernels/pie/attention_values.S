/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probabilities times the values for sixteen queries (attention_work.h): lanes are queries.
 *
 * Probabilities [rows][16] stream through q0 and q1, fused into the MACs; the 16 keys of a dimension of the values, as the
 * projection leaves them, are their scalars in q2 or q3. The last block comes first, because a jump to the first of its
 * keys is also the jump back from dimension to dimension, so keys behind the last token cost nothing; its rows are in
 * descending order of the keys. The first two rows lie again behind the last ones, for the loads that are ahead.
 * Of each dimension: a slot for each row, one for each block, 27 around them.
 */
#include "assembler.h"
#include "attention_work.h"

    .text
    .begin no-transform

/* Sixteen keys in \now. */
.macro mac16 now
    .set i, 0
    .rept 8
        ee.vsmulas.s8.qacc.ld.incp q0, a7, q0, \now, i
        ee.vsmulas.s8.qacc.ld.incp q1, a7, q1, \now, i + 1
        .set i, i + 2
    .endr
.endm

/* The same with a load of the next block's. */
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

/* Keys 15 to 0 in q2, each instruction of 4 bytes but the load of the first block into q3. */
.macro mac_tail load
    .set i, 15
    .rept 8
        .if i == 1 && \load
        ee.vld.128.ip q3, a3, 16
        .endif
        ee.vsmulas.s8.qacc.ld.incp q0, a7, q0, q2, i
        ee.vsmulas.s8.qacc.ld.incp q1, a7, q1, q2, i - 1
        .set i, i - 2
    .endr
.endm

/* Sums out of QACC; everything back to where a dimension begins: 24 slots and two cycles for the jump, narrow 8. */
.macro finish_dimension narrow
    .if \narrow
    add a4, a3, a5
    ee.srcmb.s16.qacc q2, a13, 0
    mov a7, a6
    ee.vst.128.ip q2, a11, 16
    .else
    lanes_to_i16 q3, q2, a13, "add a4, a3, a5", "mov a7, a6"
    ee.vst.128.ip q3, a11, 16
    ee.vst.128.ip q2, a11, 16
    .endif
    beq a11, a2, .Ldone\@
    ee.zero.qacc
    ee.vld.128.ip q2, a14, 16
    jx a15
.Ldone\@:
    kernel_return
.endm

/* a2 work */
.macro values name, narrow
    kernel_function \name
    kernel_enter
    l32i a3, a2, WORK_VALUES /* block 0 of the next dimension */
    l32i a5, a2, WORK_VALUE_STEP
    l32i a6, a2, WORK_SCORES
    l32i a11, a2, WORK_SUMS
    l32i a14, a2, WORK_LAST_VALUES
    l32i a12, a2, WORK_FULL_BLOCKS
    movi a8, 8
    movi a9, 0
    .if \narrow
    movi a13, 24
    .else
    movi a13, 4
    .endif
    addmi a10, a2, 256
    addi a10, a10, WORK_BYTES_80 - 256
    ee.vld.128.ip q6, a10, 16
    ee.vld.128.ip q7, a10, 16
    ee.vld.128.ip q0, a6, 16
    ee.vld.128.ip q1, a6, 16
    mov a7, a6 /* the third row */
    add a4, a3, a5
    .end no-transform
    movi a15, .Ltail_only\@
    beqz a12, .Lentry\@
    movi a15, .Ltail_odd\@
    bbsi a12, 0, .Lentry\@
    movi a15, .Ltail_even\@
    addi a12, a12, -1 /* one pair is not in the loop */
.Lentry\@:
    .begin no-transform
    srli a12, a12, 1
    l32i a10, a2, WORK_TAIL_KEYS
    addi a10, a10, 1
    srli a10, a10, 1
    slli a10, a10, 3
    sub a15, a15, a10
    addi a15, a15, 64
    addmi a10, a2, 256
    addi a10, a10, WORK_QACC - 256
    l32i a2, a2, WORK_HEAD_DIM
    slli a2, a2, 5 - \narrow
    add a2, a2, a11 /* the end of the sums */
    ee.zero.qacc
    ee.vld.128.ip q2, a14, 16
    jx a15

    .balign 4
.Ltail_only\@:
    mac_tail 0
    finish_dimension \narrow

    .balign 4
.Ltail_even\@:
    mac_tail 1
    loopnez a12, .Leven_pairs\@
    mac16_load q3, q2
    mac16_load q2, q3
.Leven_pairs\@:
    mac16_load q3, q2
    mac16 q2
    finish_dimension \narrow

    .balign 4
.Ltail_odd\@:
    mac_tail 1
    loopnez a12, .Lodd_pairs\@
    mac16_load q3, q2
    mac16_load q2, q3
.Lodd_pairs\@:
    mac16 q3
    finish_dimension \narrow
.endm

    values tvit_attention_values_pie, 0
    values tvit_attention_narrow_values_pie, 1

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
    movi a8, 0 /* an iteration stores the outputs of the one before; the first something that the second replaces */
    ee.vld.128.ip q0, a3, 16
    ee.vld.128.ip q1, a3, 16
    loop a7, .Loutputs
    ee.zero.qacc
    ee.vmulas.s16.qacc.ld.ip q6, a4, 0, q4, q5
    ee.vmulas.s16.qacc.ld.ip q0, a3, 16, q0, q2
    ee.vmax.s8 q7, q7, q6
    ee.vst.128.xp q7, a5, a8
    ee.srcmb.s16.qacc q6, a6, 0
    ee.zero.qacc
    ee.vmulas.s16.qacc q4, q5
    ee.vmulas.s16.qacc.ld.ip q1, a3, 16, q1, q3
    movi a8, 16
    ee.srcmb.s16.qacc q7, a6, 0
    ee.vunzip.8 q6, q7
.Loutputs:
    ee.vld.128.ip q6, a4, 0
    nop
    ee.vmax.s8 q7, q7, q6
    ee.vst.128.ip q7, a5, 16
    kernel_return

    /* a2 work: the same for eight queries, 7 slots. */
    kernel_function tvit_attention_narrow_outputs_pie
    kernel_enter
    addmi a4, a2, 512
    addi a4, a4, WORK_W - 512
    ee.vld.128.ip q2, a4, WORK_ROUNDING - WORK_W
    ee.vld.128.ip q4, a4, 16
    ee.vld.128.ip q5, a4, 16
    ee.vld.128.ip q3, a4, 0 /* WORK_MINUS_127 */
    l32i a3, a2, WORK_SUMS
    l32i a5, a2, WORK_OUTPUT
    l32i a6, a2, WORK_OUT_SHIFT
    l32i a7, a2, WORK_HEAD_DIM
    ee.vld.128.ip q0, a3, 16
    ee.zero.qacc
    loop a7, .Lnarrow_outputs
    ee.vmulas.s16.qacc q4, q5
    ee.vmulas.s16.qacc.ld.ip q0, a3, 16, q0, q2
    nop
    ee.srcmb.s16.qacc q7, a6, 0
    ee.zero.qacc
    ee.vunzip.8 q7, q6
    ee.vmax.s8 q6, q6, q3
    ee.vst.128.ip q6, a5, 16
.Lnarrow_outputs:
    kernel_return

    .end no-transform
