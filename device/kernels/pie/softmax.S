/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Softmax of the scores of sixteen queries (CONTRACT.md, sections 6 and 7; attention_work.h). Lanes are queries, so that
 * neither the sums nor the maximum cross lanes.
 *
 * Exponential, eight queries and two rows (keys) at a time, d = highest - a:
 *
 *     F = (d * factor >> 10) & 0x7fe0                           (t & 1023) << 5 without t
 *     i = (d0 * factor >> 25) | (d1 * factor >> 20 & 0x7fe0)    n0 | n1 << 5, n = t >> 10
 *     h = cubic in F; e = h * 2^(15-n) >> 15
 *
 * EE.VPRELU.S16 multiplies lanes that are not positive and shifts by a register, so with -d and -factor it is a product
 * with a shift of its own, and SAR stays 15. No instruction shifts lanes by lanes: 2^(15-n) is looked up for both rows
 * at once, by EE.LDXQ.32 in a table of pairs. The seven constants that do not stay in registers, the next scores, and
 * the results of the pair before are loaded and stored by the arithmetic: 35 slots for 16 exponentials.
 *
 * The divider is busy for 13 cycles, but only who wants its result waits: the constants of the first half are computed
 * between the vectors of the second.
 */
#include "assembler.h"
#include "attention_work.h"

    .text
    .begin no-transform

/*
 * Two rows. a4 constants, a5 next scores, a6 results of the pair before, a7 table, a9 = 25, a10 = 20, a11 = 10,
 * q2 highest, q4 = -661, q5 = 0x7fe0, q6 and q3 scores, q7 -factor, SAR = 15; sums in QACC. With `divide` also one r and
 * delta, see divide_start.
 */
.macro exponentials divide
    ee.vsubs.s16.st.incp q0, a6, q0, q6, q2
    .if \divide
    l32i a14, a13, 0
    .endif
    ee.vsubs.s16.st.incp q1, a6, q1, q3, q2
    ee.vprelu.s16 q6, q0, q7, a9
    .if \divide
    quou a14, a8, a14
    .endif
    ee.vprelu.s16 q2, q1, q7, a10
    ee.vprelu.s16 q0, q0, q7, a11
    ee.andq q2, q2, q5
    ee.vprelu.s16 q1, q1, q7, a11
    ee.orq q6, q6, q2
    ee.andq q0, q0, q5
    ee.andq q1, q1, q5
    ee.vmul.s16.ld.incp q7, a4, q2, q0, q4
    ee.vmul.s16.ld.incp q4, a4, q3, q1, q4
    ee.vadds.s16 q2, q2, q7
    ee.vadds.s16.ld.incp q7, a4, q3, q3, q7
    ee.vmul.s16 q2, q2, q0
    ee.vmul.s16 q3, q3, q1
    .if \divide
    minu a14, a14, a3
    quou a15, a12, a14
    s32i a14, a13, 32
    addi a13, a13, 4
    .endif
    ee.vadds.s16 q2, q2, q4
    ee.vadds.s16.ld.incp q4, a4, q3, q3, q4
    ee.vmul.s16 q2, q2, q0
    ee.vmul.s16 q3, q3, q1
    ee.vadds.s16 q2, q2, q7
    ee.ldxq.32 q0, q6, a7, 0, 0
    ee.ldxq.32 q1, q6, a7, 0, 4
    ee.ldxq.32 q0, q6, a7, 1, 1
    ee.ldxq.32 q1, q6, a7, 1, 5
    ee.ldxq.32 q0, q6, a7, 2, 2
    ee.ldxq.32 q1, q6, a7, 2, 6
    ee.ldxq.32 q0, q6, a7, 3, 3
    ee.ldxq.32 q1, q6, a7, 3, 7
    ee.vadds.s16.ld.incp q7, a4, q3, q3, q7
    ee.vunzip.16 q0, q1
    ee.vmul.u16.ld.incp q6, a5, q0, q2, q0
    ee.vmul.u16.ld.incp q3, a5, q1, q3, q1
    .if \divide
    s32i a15, a13, 60
    .endif
    ee.vmulas.s16.qacc.ld.ip q2, a4, 16, q0, q7
    ee.vmulas.s16.qacc.ld.ip q7, a4, -96, q1, q7
.endm

/* Before the rows of a half. */
.macro exponentials_start half
    ssai 15
    mov a4, a2
    .if \half
    addi a4, a4, WORK_EXP_HALF
    .endif
    addi a12, a4, 48
    ee.vld.128.ip q4, a12, 32 /* -661 */
    ee.vld.128.ip q2, a12, 16 /* highest */
    ee.vld.128.ip q7, a12, 0  /* -factor */
    l32i a5, a2, WORK_SCORES + 4 * \half
    addi a6, a5, -32
    ee.vld.128.ip q6, a5, 16
    ee.vld.128.ip q3, a5, 16
    l32i a7, a2, WORK_POWERS
    movi a9, 25
    movi a10, 20
    movi a11, 10
    addmi a12, a2, 256
    addi a12, a12, WORK_FRACTION_MASK - 256
    ee.vld.128.ip q5, a12, 0
    ee.zero.qacc
.endm

/* Four sums of 40 bits, five words of QACC in a3 ... a7, to \at and behind. */
.macro store_sums at
    ssai 8
    s32i a3, a13, \at
    src a3, a5, a4
    ssai 16
    s32i a3, a13, \at + 4
    src a3, a6, a5
    ssai 24
    s32i a3, a13, \at + 8
    src a3, a7, a6
    s32i a3, a13, \at + 12
.endm

/* Behind the rows of a half: the last pair, the sums to a13. */
.macro exponentials_end half
    ee.vst.128.ip q0, a6, 16
    ee.vst.128.ip q1, a6, 16
    addmi a12, a2, 256
    addi a12, a12, WORK_QACC - 256
    ee.st.qacc_l.l.128.ip a12, 16
    ee.st.qacc_h.l.128.ip a12, 16
    ee.st.qacc_l.h.32.ip a12, 4
    ee.st.qacc_h.h.32.ip a12, -36
    addmi a13, a2, 512
    addi a13, a13, WORK_DIVISION - 512
    .if \half
    addi a13, a13, WORK_DIVISION_HALF
    .endif
    l32i a3, a12, 0
    l32i a4, a12, 4
    l32i a5, a12, 8
    l32i a6, a12, 12
    l32i a7, a12, 32
    store_sums 0
    l32i a3, a12, 16
    l32i a4, a12, 20
    l32i a5, a12, 24
    l32i a6, a12, 28
    l32i a7, a12, 36
    store_sums 16
    l32i a3, a2, WORK_NO_ROW
    beqz a3, .Lall_keys\@
    l32i a12, a2, WORK_SCORES + 4 * \half
    .set i, 0
    .rept 8
    l16ui a3, a12, 2 * i
    l32i a4, a13, 4 * i
    sub a4, a4, a3
    s32i a4, a13, 4 * i
    .set i, i + 1
    .endr
.Lall_keys\@:
.endm

/*
 * For r = min((target << 19) / sum, 4079) and delta = 2^18 / r: a13 the sum, r 32 bytes and delta 64 bytes behind it,
 * a8 target << 19, a3 = 4079, a12 = 2^18.
 */
.macro divide_start
    l32i a8, a2, WORK_TARGET
    movi a3, 255
    slli a3, a3, 4
    addi a3, a3, 4079 - 255 * 16
    movi a12, 1
    slli a12, a12, 18
.endm

/* \count of them, 27 cycles each. The sum that is loaded ahead at the end is the first r. */
.macro divide count
    l32i a14, a13, 0
    nop
    quou a14, a8, a14
    loopgtz \count, .Ldivided\@
    minu a14, a14, a3
    quou a15, a12, a14
    s32i a14, a13, 32
    l32i a14, a13, 4
    addi a13, a13, 4
    quou a14, a8, a14
    s32i a15, a13, 60
.Ldivided\@:
.endm

/* The exponentials of the first half and their sums. */
.macro first_half
    exponentials_start 0
    l32i a8, a2, WORK_ROWS
    srli a8, a8, 1
    loop a8, .Lfirst_half\@
    exponentials 0
.Lfirst_half\@:
    exponentials_end 0
.endm

/* From a4: eight words of r and eight of delta to 16 bits each; then a4 moves on by 48 + \step. */
.macro r_and_delta r, delta, step
    ee.vld.128.ip \r, a4, 16
    ee.vld.128.ip q0, a4, 16
    ee.vld.128.ip \delta, a4, 16
    ee.vld.128.ip q1, a4, \step
    ee.vunzip.16 \r, q0
    ee.vunzip.16 \delta, q1
.endm

/* w = min((out_multiplier + z / 2) / z, 32767) of a8 queries: a4 w - 2, a5 z. Ahead of the last z lies another word. */
.macro weights
    l32i a6, a2, WORK_OUT_MULTIPLIER
    movi a7, 1
    slli a7, a7, 15
    addi a7, a7, -1
    l16ui a3, a5, 0
    nop
    srli a9, a3, 1
    add a9, a9, a6
    loop a8, .Lweights\@
    quou a10, a9, a3
    addi a5, a5, 2
    l16ui a3, a5, 0
    addi a4, a4, 2
    srli a9, a3, 1
    add a9, a9, a6
    minu a10, a10, a7
    s16i a10, a4, 0
.Lweights\@:
.endm

    /* a2 work */
    kernel_function tvit_softmax_pie
    kernel_enter
    first_half

    exponentials_start 1
    divide_start
    l32i a14, a2, WORK_ROWS
    srli a14, a14, 1
    movi a15, 8
    minu a15, a15, a14
    loop a15, .Ldividing
    exponentials 1
.Ldividing:
    l32i a14, a2, WORK_ROWS
    srli a14, a14, 1
    addi a14, a14, -8
    movi a15, 0
    max a15, a15, a14
    loopgtz a15, .Lsecond_half
    exponentials 0
.Lsecond_half:
    neg a4, a14
    bltz a4, .Ldivided
    divide a4
.Ldivided:
    exponentials_end 1
    divide_start
    movi a4, 8
    divide a4

    /*
     * p = (e + delta) * r >> 19 of both halves, packed to bytes over the exponentials of the first: 6 slots for 16. The
     * row before is stored and added up meanwhile. A row of no key has e = -delta, so that its p is 0.
     */
    addmi a4, a2, 512
    addi a4, a4, WORK_DIVISION + 32 - 512
    r_and_delta q4, q2, 48
    r_and_delta q5, q3, 16
    l32i a5, a2, WORK_SCORES
    l32i a6, a2, WORK_SCORES + 4
    ee.zero.q q7
    l32i a4, a2, WORK_NO_ROW
    beqz a4, .Lno_row
    ee.vsubs.s16 q0, q7, q2
    ee.vsubs.s16 q1, q7, q3
    ee.vst.128.ip q0, a5, 0
    ee.vst.128.ip q1, a6, 0
.Lno_row:
    ssai 19
    addmi a4, a2, 256
    addi a4, a4, WORK_BYTES_01 - 256
    ee.vld.128.ip q6, a4, 0
    ee.zero.qacc
    addi a7, a5, -16
    l32i a8, a2, WORK_ROWS
    ee.vld.128.ip q0, a5, 16
    nop
    ee.vadds.s16 q0, q0, q2
    loop a8, .Lprobabilities
    ee.vmulas.s8.qacc.ld.ip q1, a6, 16, q7, q6
    ee.vmul.s16.st.incp q7, a7, q7, q0, q4
    ee.vadds.s16.ld.incp q0, a5, q1, q1, q3
    ee.vmul.s16 q1, q1, q5
    ee.vadds.s16 q0, q0, q2
    ee.vunzip.8 q7, q1
.Lprobabilities:
    ee.vmulas.s8.qacc q7, q6
    l32i a5, a2, WORK_SCORES
    ee.vst.128.ip q7, a7, 16
    /* The first rows again, for the loads that are ahead at the end (attention_values.S). */
    ee.vld.128.ip q0, a5, 16
    ee.vld.128.ip q1, a5, 16
    ee.vst.128.ip q0, a7, 16
    ee.vst.128.ip q1, a7, 16

    /* z, and the weights */
    addmi a10, a2, 256
    addi a10, a10, WORK_BYTES_80 - 256
    ee.vld.128.ip q6, a10, 16
    ee.vld.128.ip q7, a10, 16
    movi a8, 8
    movi a9, 0
    lanes_to_i16 q0, q1, a9, nop, nop
    addmi a4, a2, 512
    addi a4, a4, WORK_W - 512
    addi a5, a4, WORK_Z - WORK_W
    ee.vst.128.ip q0, a5, 16
    ee.vst.128.ip q1, a5, -16
    addi a4, a4, -2
    movi a8, 16
    weights
    kernel_return

    /*
     * Eight queries: p lies in the odd lanes of a row of 16, what is behind the point of p in the even ones, where it
     * does no harm. 3 slots.
     */
    /* a2 work */
    kernel_function tvit_softmax_narrow_pie
    kernel_enter
    first_half
    divide_start
    movi a4, 8
    divide a4
    addmi a4, a2, 512
    addi a4, a4, WORK_DIVISION + 32 - 512
    r_and_delta q4, q2, 16
    l32i a5, a2, WORK_SCORES
    ee.zero.q q7
    l32i a4, a2, WORK_NO_ROW
    beqz a4, .Lno_narrow_row
    ee.vsubs.s16 q0, q7, q2
    ee.vst.128.ip q0, a5, 0
.Lno_narrow_row:
    ssai 11
    addmi a4, a2, 256
    addi a4, a4, WORK_BYTES_01 - 256
    ee.vld.128.ip q6, a4, 0
    ee.zero.qacc
    addi a7, a5, -16
    l32i a8, a2, WORK_ROWS
    ee.vld.128.ip q0, a5, 16
    ee.vld.128.ip q1, a5, 16
    ee.vadds.s16 q0, q0, q2
    loop a8, .Lnarrow_probabilities
    ee.vmulas.s8.qacc q7, q6
    ee.vmul.s16.st.incp q7, a7, q7, q0, q4
    ee.vadds.s16.ld.incp q1, a5, q0, q1, q2
.Lnarrow_probabilities:
    l32i a5, a2, WORK_SCORES
    ee.vmulas.s8.qacc q7, q6
    ee.vst.128.ip q7, a7, 16
    ee.vld.128.ip q0, a5, 16
    ee.vld.128.ip q1, a5, 16
    ee.vst.128.ip q0, a7, 16
    ee.vst.128.ip q1, a7, 16
    movi a8, 20
    ee.srcmb.s16.qacc q0, a8, 0
    addmi a4, a2, 512
    addi a4, a4, WORK_W - 512
    addi a5, a4, WORK_Z - WORK_W
    ee.vst.128.ip q0, a5, 0
    addi a4, a4, -2
    movi a8, 8
    weights
    kernel_return

    /* a2 scores, a3 rows, a4 lowest */
    kernel_function tvit_softmax_clamp_pie
    kernel_enter
    ee.vld.128.ip q1, a4, 0
    mov a4, a2
    loop a3, .Lclamped
    ee.vld.128.ip q0, a2, 16
    nop
    ee.vmax.s16 q0, q0, q1
    ee.vst.128.ip q0, a4, 16
.Lclamped:
    kernel_return

    /* a2 powers. The first half of a row varies with its columns, the second is 0 in the low halves of its words. */
    kernel_function tvit_softmax_powers_pie
    kernel_enter
    movi a3, 1
    slli a3, a3, 15
    .set i, 0
    .rept 16
    ee.movi.32.q q0, a3, i & 3
    srli a3, a3, 1
    .if (i & 3) == 3
    ee.vst.128.ip q0, a2, 16
    .endif
    .set i, i + 1
    .endr
    addi a2, a2, -64
    ee.vld.128.ip q0, a2, 16
    ee.vld.128.ip q1, a2, 16
    ee.vld.128.ip q2, a2, 16
    ee.vld.128.ip q3, a2, -48
    ee.zero.q q4
    addmi a2, a2, 32 * 128
    addi a2, a2, -128 /* the last row */
    movi a3, 16
    ssai 1
    loop a3, .Lzero_rows
    ee.vst.128.ip q0, a2, 16
    ee.vst.128.ip q1, a2, 16
    ee.vst.128.ip q2, a2, 16
    ee.vst.128.ip q3, a2, 16
    ee.vst.128.ip q4, a2, 16
    ee.vst.128.ip q4, a2, 16
    ee.vst.128.ip q4, a2, 16
    ee.vst.128.ip q4, a2, -240
.Lzero_rows:
    movi a4, 1
    slli a4, a4, 16
    .set i, 0
    .rept 4
    ee.movi.32.q q4, a4, i
    .set i, i + 1
    .endr
    loop a3, .Lpower_rows
    ee.orq q5, q0, q4
    ee.vst.128.ip q5, a2, 16
    ee.orq q5, q1, q4
    ee.vst.128.ip q5, a2, 16
    ee.orq q5, q2, q4
    ee.vst.128.ip q5, a2, 16
    ee.orq q5, q3, q4
    ee.vst.128.ip q5, a2, 16
    ee.vst.128.ip q4, a2, 16
    ee.vst.128.ip q4, a2, 16
    ee.vst.128.ip q4, a2, 16
    ee.vst.128.ip q4, a2, -240
    ee.vsl.32 q4, q4
.Lpower_rows:
    kernel_return

    .end no-transform
