/* SPDX-License-Identifier: Apache-2.0 */
/* Transposes and products for the patch embedding, see patch_embed_lanes.h. */
#include "assembler.h"
#include "transpose.h"

    .text
    .begin no-transform

/*
 * Eight rows of 16 bytes to sixteen columns of 8. Nine registers are needed, for the rows and what flips them; the
 * eighth row waits in memory.
 */
.macro transpose_half rows
    .set i, 0
    .irp address, a8, a9, a10, a11, a12, a13, a14, a15
    l32i \address, a2, \rows + 4 * i
    .set i, i + 1
    .endr
    .irp address, a8, a9, a10, a11, a12, a13, a14, a15
    add \address, \address, a3
    .endr
    ee.vldbc.8 q7, a6
    ee.vld.128.ip q0, a15, 0
    ee.vld.128.ip q1, a9, 0
    ee.xorq q0, q0, q7
    ee.vld.128.ip q2, a10, 0
    ee.vst.128.ip q0, a7, 0
    ee.vld.128.ip q3, a11, 0
    ee.xorq q1, q1, q7
    ee.vld.128.ip q0, a8, 0
    ee.xorq q2, q2, q7
    ee.vld.128.ip q4, a12, 0
    ee.xorq q3, q3, q7
    ee.vld.128.ip q5, a13, 0
    ee.xorq q0, q0, q7
    ee.vld.128.ip q6, a14, 0
    ee.xorq q4, q4, q7
    ee.xorq q5, q5, q7
    ee.xorq q6, q6, q7
    ee.vld.128.ip q7, a7, 0
    zip_rows_to_columns
    .irp columns, q0, q4, q2, q6, q1, q5, q3, q7
    ee.vst.l.64.ip \columns, a5, 16
    ee.vst.h.64.ip \columns, a5, 16
    .endr
.endm

    /* a2 tvit_transpose_args: 127 slots for 256 bytes */
    kernel_function tvit_transpose_lanes
    kernel_enter
    l32i a3, a2, 64 /* offset */
    l32i a4, a2, 68 /* groups */
    l32i a5, a2, 72 /* out */
    addi a6, a2, 76 /* flip */
    addi a7, a2, 80 /* one_row */
.Lgroup:
    transpose_half 0
    addmi a5, a5, -256
    addi a5, a5, 8
    transpose_half 32
    addi a5, a5, -8
    addi a3, a3, 16
    addi a4, a4, -1
    bnez a4, .Lgroup
    kernel_return

    /* a2 values, a3 multiplier, a4 vectors, a5 out. A byte in the upper half of 16 bits is its value times 256, so the product
       is shifted back by 8. */
    kernel_function tvit_scale_lanes
    kernel_enter
    ssai 8
    ee.vldbc.16 q7, a3
    ee.vld.128.ip q1, a2, 16
    addi a4, a4, -1
    ee.zero.q q0
    loopgtz a4, .Lvectors
    ee.vzip.8 q0, q1
    ee.vmul.s16 q2, q0, q7
    ee.vmul.s16.ld.incp q1, a2, q3, q1, q7
    ee.vst.128.ip q2, a5, 16
    ee.zero.q q0
    ee.vst.128.ip q3, a5, 16
.Lvectors:
    ee.vzip.8 q0, q1
    ee.vmul.s16 q2, q0, q7
    ee.vmul.s16 q3, q1, q7
    ee.vst.128.ip q2, a5, 16
    ee.vst.128.ip q3, a5, 16
    kernel_return
    .end no-transform
