/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two-bit trits to int8, multiplied by the gain: 64 trits from 16 bytes in 20 slots.
 *
 * A field that is moved to the top of its byte and masked is +64, 0 or -64 as a signed byte; EE.VMUL.S8 with SAR = 6 makes
 * it +gain, 0 or -gain. Four shifted copies hold the four fields; two rounds of zips bring them back in order.
 *
 * struct decode_args of harness.h in a2. decode_2bit_rows: one gain for each row (rows of weights of one channel);
 * decode_2bit_tile: sixteen gains, one for each lane (rows of sixteen channels).
 */
#include "assembler.h"

    .text
    .begin no-transform

.macro decode_kernel name, rows
    kernel_function \name
    kernel_enter
    l32i a3, a2, 0  /* codes, a multiple of 16 */
    l32i a4, a2, 4  /* out */
    l32i a5, a2, 8  /* gains */
    l32i a6, a2, 12 /* rows */
    l32i a7, a2, 16 /* 64 trits a chunk, chunks of a row */
    addi a8, a2, 20
    ee.vldbc.8 q5, a8 /* 0xc0 */
    ee.vld.128.ip q6, a3, 16
.Lrow\@:
    .if \rows
    ee.vldbc.8.ip q4, a5, 1
    .else
    ee.vld.128.ip q4, a5, 16
    .endif
    loop a7, .Lend\@
    ssai 2
    ee.vsl.32 q2, q6
    ee.vsl.32 q1, q2
    ee.vsl.32 q0, q1
    ee.andq q3, q6, q5
    ssai 6
    ee.andq q2, q2, q5
    ee.andq q1, q1, q5
    ee.andq q0, q0, q5
    ee.vzip.8 q2, q3
    ee.vzip.8 q0, q1
    ee.vzip.16 q0, q2
    ee.vzip.16 q1, q3
    ee.vmul.s8 q0, q0, q4
    ee.vmul.s8 q2, q2, q4
    ee.vmul.s8.st.incp q0, a4, q1, q1, q4
    ee.vmul.s8.st.incp q2, a4, q3, q3, q4
    ee.vld.128.ip q6, a3, 16
    ee.vst.128.ip q1, a4, 16
    ee.vst.128.ip q3, a4, 16
.Lend\@:
    addi a6, a6, -1
    bnez a6, .Lrow\@
    kernel_return
.endm

    decode_kernel decode_2bit_rows, 1
    decode_kernel decode_2bit_tile, 0

    .end no-transform
