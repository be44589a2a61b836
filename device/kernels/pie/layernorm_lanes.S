/* SPDX-License-Identifier: Apache-2.0 */
/* LayerNorm on sixteen tokens, see layernorm_lanes.h. Lanes are tokens: a sum over channels is a sum of vectors. */
#include "assembler.h"
#include "layernorm_lanes.h"

    .text
    .begin no-transform

/*
 * QACC = sum of a3 products of the vectors at a2, 32 bytes apart, with f0 and f1 in turn: one slot each. A vector is
 * loaded two slots before it is used, into the register that was just read. f0 = q0, f1 = q1: squares. Then QACC to
 * memory: lane i at byte 5 i of the 20 bytes of its half, of which 4 lie apart.
 */
.macro accumulate f0, f1
    mov a8, a2
    addi a9, a3, -2
    ee.zero.qacc
    srli a9, a9, 1
    ee.vld.128.ip q0, a8, 32
    bltui a3, 2, .Llast\@
    ee.vld.128.ip q1, a8, 32
    loopgtz a9, .Lpairs\@
    ee.vmulas.s16.qacc.ld.ip q0, a8, 32, q0, \f0
    ee.vmulas.s16.qacc.ld.ip q1, a8, 32, q1, \f1
.Lpairs\@:
    bbci a3, 0, .Leven\@
    ee.vmulas.s16.qacc.ld.ip q0, a8, 32, q0, \f0
.Leven\@:
    ee.vmulas.s16.qacc q1, \f1
.Llast\@:
    ee.vmulas.s16.qacc q0, \f0
    mov a8, a5
    ee.st.qacc_l.l.128.ip a8, 16
    ee.st.qacc_h.l.128.ip a8, 16
    ee.st.qacc_l.h.32.ip a8, 4
    ee.st.qacc_h.h.32.ip a8, 0
.endm

/* The lower 32 bits of four lanes to a4 + \to, from the memory of QACC at a5; leaves words 1 to 3 and the last in a9 to a12. */
.macro unpack_four half, to
    l32i a8, a5, 16 * \half
    l32i a9, a5, 16 * \half + 4
    l32i a10, a5, 16 * \half + 8
    l32i a11, a5, 16 * \half + 12
    l32i a12, a5, 32 + 4 * \half
    s32i a8, a4, \to
    ssai 8
    src a13, a10, a9
    s32i a13, a4, \to + 4
    ssai 16
    src a13, a11, a10
    s32i a13, a4, \to + 8
    ssai 24
    src a13, a12, a11
    s32i a13, a4, \to + 12
.endm

.macro unpack_four_squares half
    unpack_four \half, SUMS_S2_LOW + 16 * \half
    extui a9, a9, 0, 8
    extui a10, a10, 8, 8
    extui a11, a11, 16, 8
    extui a12, a12, 24, 8
    s32i a9, a4, SUMS_S2_HIGH + 16 * \half
    s32i a10, a4, SUMS_S2_HIGH + 16 * \half + 4
    s32i a11, a4, SUMS_S2_HIGH + 16 * \half + 8
    s32i a12, a4, SUMS_S2_HIGH + 16 * \half + 12
.endm

    /* a2 x, a3 channels, a4 sums */
    kernel_function tvit_layernorm_sums_lanes
    kernel_enter
    movi a6, 1
    s16i a6, a4, 0
    addmi a5, a4, 256
    movi a6, 2 /* halves */
    addi a5, a5, SUMS_QACC - 256
    ee.vldbc.16 q7, a4
.Lhalf:
    accumulate q7, q7
    unpack_four 0, SUMS_S1
    unpack_four 1, SUMS_S1 + 16
    accumulate q0, q1
    unpack_four_squares 0
    unpack_four_squares 1
    addi a2, a2, 16
    addi a4, a4, 32
    addi a6, a6, -1
    bnez a6, .Lhalf
    kernel_return

/*
 * Three records (beta = -1, 0, 1) of one half and one sign. a4 a, a5 not_e0, a9 offset, a10 minus_beta, a11 low_bits, a6
 * the first record's half. w = w1 * 2^15 + w0 = minus_beta -/+ offset.
 */
.macro three_records combine, negate
    ee.vldbc.32 q7, a11
    ee.vld.128.ip q1, a4, 16
    ee.vld.128.ip q2, a4, -16
    ee.vsr.32 q0, q1
    ee.vsr.32 q3, q2
    ee.andq q1, q1, q7
    ee.andq q2, q2, q7
    ee.vunzip.16 q0, q3 /* ah */
    ee.vunzip.16 q1, q2 /* al */
    ee.vld.128.ip q2, a5, 16
    ee.vld.128.ip q3, a5, -16
    ee.vldbc.16 q4, a11
    ee.vunzip.16 q2, q3
    ee.andq q2, q2, q4 /* e0 */
    .if \negate
    ee.zero.q q3
    ee.vsubs.s16 q1, q3, q1
    ee.vsubs.s16 q0, q3, q0
    .else
    ee.xorq q2, q2, q4
    .endif
    .rept 3
    ee.vld.128.ip q5, a9, 16
    ee.vldbc.32.ip q7, a10, 4
    ee.vld.128.ip q6, a9, -16
    \combine q5, q7, q5
    \combine q6, q7, q6
    ee.vsr.32 q3, q5
    ee.vldbc.32 q7, a11
    ee.vsr.32 q4, q6
    ee.andq q5, q5, q7
    ee.vunzip.16 q3, q4
    ee.andq q6, q6, q7
    ee.vst.128.ip q3, a6, 16
    ee.vunzip.16 q5, q6
    ee.vst.128.ip q1, a6, 16
    ee.vst.128.ip q2, a6, 16
    ee.vst.128.ip q0, a6, 16
    ee.vst.128.ip q5, a6, 96
    .endr
    addi a10, a10, -12
.endm

    /* a2 factors, a3 records */
    kernel_function tvit_layernorm_records_lanes
    kernel_enter
    ssai 15
    mov a4, a2 /* LANES_A */
    addi a5, a2, LANES_NOT_E0
    addi a9, a5, LANES_OFFSET - LANES_NOT_E0
    addi a10, a9, LANES_MINUS_BETA - LANES_OFFSET
    addi a11, a10, LANES_LOW_BITS - LANES_MINUS_BETA
    mov a6, a3
    three_records ee.vadds.s32, 1
    addi a4, a4, 32
    addi a5, a5, 32
    addi a9, a9, 32
    addmi a6, a6, -512 /* 80 - 3 * 160 */
    addi a6, a6, 112
    three_records ee.vadds.s32, 1
    addi a4, a4, -32
    addi a5, a5, -32
    addi a9, a9, -32
    addmi a6, a6, 512 /* 3 * 160 - 80 */
    addi a6, a6, -112
    three_records ee.vsubs.s32, 0
    addi a4, a4, 32
    addi a5, a5, 32
    addi a9, a9, 32
    addmi a6, a6, -512
    addi a6, a6, 112
    three_records ee.vsubs.s32, 0
    kernel_return

/*
 * A half of a channel takes nine slots: QACC = e0 + x * al, >> 15, + x * ah - 2^15 * w1 - w0, >> shift - 8. The last SRCMB
 * saturates to 16 bits, whose upper byte is y, limited to -128 ... 127. Every multiplication loads the factor or the x
 * that is due two or more slots later: q2 holds al, then ah; q3 w1, then w0. An SRCMB waits behind a multiplication or
 * addition, so each has other work in front of it.
 *
 * A channel of sixteen tokens takes 19 slots, with one for the results of the channel before: their upper bytes are
 * brought together (VUNZIP), limited from below, while those of the one before that are stored. The record of this channel is at
 * \record, the pointer to the next one's at a4 + \next goes to \next_record.
 */
.macro channel record, next_record, next, is_last
    ee.ldqa.s16.128.ip \record, 16
    ee.vmulas.s16.qacc.ld.ip q2, \record, 16, q0, q2
    ee.vunzip.8 q1, q4
    ee.srcmb.s16.qacc q1, a8, 0
    ee.vsmulas.s16.qacc.ld.incp q3, \record, q3, q6, 0
    ee.vmulas.s16.qacc.ld.ip q0, a3, 16, q0, q2
    ee.vsmulas.s16.qacc.ld.incp q3, \record, q3, q6, 1
    ee.vmax.s8.st.incp q5, a5, q5, q4, q7
    ee.vld.128.ip q2, \record, 16
    ee.srcmb.s16.qacc q1, a7, 0
    ee.ldqa.s16.128.ip \record, 16
    ee.vmulas.s16.qacc.ld.ip q2, \record, 16, q0, q2
    .if \is_last
    nop
    ee.srcmb.s16.qacc q4, a8, 0
    ee.vsmulas.s16.qacc.ld.incp q3, \record, q3, q6, 0
    ee.vmulas.s16.qacc q0, q2
    ee.vsmulas.s16.qacc q3, q6, 1
    ee.vst.128.ip q5, a5, 16
    ee.srcmb.s16.qacc q4, a7, 0
    ee.vunzip.8 q1, q4
    ee.vmax.s8 q4, q4, q7
    ee.vst.128.ip q4, a5, 0
    .else
    l32i \next_record, a4, \next
    ee.srcmb.s16.qacc q4, a8, 0
    ee.vsmulas.s16.qacc.ld.incp q3, \record, q3, q6, 0
    ee.vmulas.s16.qacc.ld.ip q0, a3, 16, q0, q2
    ee.vsmulas.s16.qacc.ld.incp q3, \next_record, q3, q6, 1
    ee.vld.128.ip q2, \next_record, 16
    ee.srcmb.s16.qacc q4, a7, 0
    .endif
.endm

    /* a2 tvit_layernorm_channels */
    kernel_function tvit_layernorm_channels_lanes
    kernel_enter
    l32i a3, a2, 0  /* x */
    l32i a4, a2, 4  /* records */
    l32i a5, a2, 8  /* out */
    l32i a9, a2, 12 /* channels */
    l32i a7, a2, 16 /* shift */
    l32i a6, a4, 0
    addi a10, a2, 20
    ee.vldbc.32 q6, a10 /* -2^15, -1 */
    addi a10, a2, 24
    ee.vldbc.8 q7, a10 /* -127 */
    ee.vld.128.ip q0, a3, 16
    ee.vld.128.ip q3, a6, 16
    ee.vld.128.ip q2, a6, 16
    movi a8, 15
    addi a9, a9, -3
    srli a11, a9, 1
    /* The first two store nothing yet; what they write is overwritten. */
    channel a6, a10, 4, 0
    channel a10, a6, 8, 0
    addi a4, a4, 8
    addi a5, a5, -32
    loopgtz a11, .Lpairs
    channel a6, a10, 4, 0
    channel a10, a6, 8, 0
    addi a4, a4, 8
.Lpairs:
    bbci a9, 0, .Llast
    channel a6, a10, 4, 0
    mov a6, a10
.Llast:
    channel a6, a10, 0, 1
    kernel_return
    .end no-transform
