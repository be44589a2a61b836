/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One scalar times sixteen lanes: the inner loop of both multiply layouts.
 *
 *   lanes on tokens:   the stream is a token block [K][16], the scalars are the int8 weights of one channel after the
 *                      other, an output is one channel of sixteen tokens;
 *   lanes on channels: the stream is a weight tile [K][16], the scalars are the activations of one token after the
 *                      other, an output is sixteen channels of one token.
 *
 * Schedule of an output: 4 slots load the biases into QACC, 2 the first rows; then 17 slots for 16 k: sixteen
 * EE.VSMULAS.S8.QACC.LD.INCP, each loading the row it will need two slots later into the register it has just read, and one
 * load of the next sixteen scalars; then SRCMB (the slot before it is not a MAC), two for the clamp, the store.
 *
 * struct lanes_args of harness.h in a2. K is a multiple of 32.
 */
#include "assembler.h"

    .text
    .begin no-transform

.macro mac16 scalars, next
    .set i, 0
    .rept 8
        ee.vsmulas.s8.qacc.ld.incp q0, a11, q0, \scalars, i
        .if i == 4
        ee.vld.128.ip \next, a4, 16
        .endif
        ee.vsmulas.s8.qacc.ld.incp q1, a11, q1, \scalars, i + 1
        .set i, i + 2
    .endr
.endm

.macro load_arguments
    l32i a3, a2, 0  /* stream */
    l32i a4, a2, 4  /* scalars */
    l32i a5, a2, 8  /* out */
    l32i a6, a2, 12 /* records */
    l32i a7, a2, 16 /* outputs */
    l32i a8, a2, 20 /* K / 32 */
    l32i a9, a2, 24 /* bytes from output to output */
    addi a10, a2, 28
    ee.vldbc.8 q6, a10 /* limit */
    addi a10, a2, 29
    ee.vldbc.8 q7, a10 /* -limit */
    ee.vld.128.ip q3, a4, 16
.endm

.macro start_output record
    l32i a12, a6, 40 /* shift */
    ee.ld.qacc_l.l.128.ip a6, 16
    ee.ld.qacc_h.l.128.ip a6, 16
    mov a11, a3
    ee.ld.qacc_l.h.32.ip a6, 4
    ee.ld.qacc_h.h.32.ip a6, \record
    ee.vld.128.ip q0, a11, 16
    ee.vld.128.ip q1, a11, 16
.endm

.macro finish_output
    addi a7, a7, -1
    ee.srcmb.s8.qacc q5, a12, 0
    ee.vmin.s8 q5, q5, q6
    ee.vmax.s8 q5, q5, q7
    ee.vst.128.xp q5, a5, a9
.endm

/* record: 28 to go on to the next record for each output, -36 to keep the one. */
.macro lanes_kernel name, record
    kernel_function \name
    kernel_enter
    load_arguments
.Lnext\@:
    start_output \record
    loop a8, .Lend\@
    mac16 q3, q4
    mac16 q4, q3
.Lend\@:
    finish_output
    bnez a7, .Lnext\@
    kernel_return
.endm

/* The same for one K, unrolled, without the loop around it: what a specialised kernel gains. */
.macro lanes_kernel_unrolled name, record, halves
    kernel_function \name
    kernel_enter
    load_arguments
.Lnext\@:
    start_output \record
    .rept \halves
    mac16 q3, q4
    mac16 q4, q3
    .endr
    finish_output
    bnez a7, .Lnext\@
    kernel_return
.endm

    lanes_kernel gemm_token_lanes, 28
    lanes_kernel gemm_channel_lanes, -36
    lanes_kernel_unrolled gemm_token_lanes_192, 28, 6
    lanes_kernel_unrolled gemm_channel_lanes_192, -36, 6

    .end no-transform
