/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table method: for forty tokens and eight groups of four inputs, a table holds the 81 signed sums of each group, int16,
 * one row of 80 bytes each. A channel then needs one row of each group.
 *
 * table_addresses makes the addresses of the rows from one byte a group: 32 groups in 30 slots.
 * table_sums adds the rows: one slot to load an address, five EE.VADDS.S16.LD.INCP, each adding the vector that was loaded
 * two slots before. The sums of the inputs before are loaded instead of zeroing, and stored again.
 *
 * struct table_args of harness.h in a2.
 */
#include "assembler.h"

    .text
    .begin no-transform

    kernel_function table_addresses
    kernel_enter
    l32i a3, a2, 0  /* codes, 8 a channel */
    l32i a4, a2, 4  /* addresses out */
    l32i a5, a2, 8  /* addresses of row 0 of each group */
    l32i a6, a2, 12 /* channels / 4 */
    addi a7, a2, 24
    ssai 0
    ee.vldbc.16 q7, a7 /* 80 */
    ee.vld.128.ip q5, a5, 16
    ee.vld.128.ip q6, a5, 16
    loop a6, .Laddresses
    .rept 2
    ee.vld.128.ip q0, a3, 16
    ee.zero.q q1
    ee.zero.q q2
    ee.vzip.8 q0, q1
    ee.vmul.u16 q0, q0, q7
    ee.vmul.u16 q1, q1, q7
    ee.zero.q q3
    ee.vzip.16 q0, q2
    ee.vzip.16 q1, q3
    ee.vadds.s32 q0, q0, q5
    ee.vadds.s32 q2, q2, q6
    ee.vadds.s32.st.incp q0, a4, q1, q1, q5
    ee.vadds.s32.st.incp q2, a4, q3, q3, q6
    ee.vst.128.ip q1, a4, 16
    ee.vst.128.ip q3, a4, 16
    .endr
.Laddresses:
    kernel_return

/* One slot: accumulator \acc gets what was loaded two slots before. */
.macro step acc, buffer, row
    ee.vadds.s16.ld.incp \buffer, \row, \acc, \acc, \buffer
.endm

    kernel_function table_sums
    kernel_enter
    l32i a3, a2, 4  /* addresses */
    l32i a4, a2, 16 /* sums in and out, 80 bytes a channel */
    l32i a5, a2, 20 /* channels */
    l32i a6, a3, 0
.Lsums:
    addi a5, a5, -1
    ee.vld.128.ip q5, a6, 16
    ee.vld.128.ip q6, a6, 16
    ee.vld.128.ip q0, a4, 16
    ee.vld.128.ip q1, a4, 16
    ee.vld.128.ip q2, a4, 16
    ee.vld.128.ip q3, a4, 16
    ee.vld.128.ip q4, a4, -64
    .set group, 1
    .rept 3
    l32i a7, a3, 4 * group
    step q0, q5, a6
    step q1, q6, a6
    step q2, q5, a6
    step q3, q6, a7
    step q4, q5, a7
    l32i a6, a3, 4 * group + 4
    step q0, q6, a7
    step q1, q5, a7
    step q2, q6, a7
    step q3, q5, a6
    step q4, q6, a6
    .set group, group + 2
    .endr
    l32i a7, a3, 28
    step q0, q5, a6
    step q1, q6, a6
    step q2, q5, a6
    step q3, q6, a7
    step q4, q5, a7
    addi a3, a3, 32
    step q0, q6, a7
    step q1, q5, a7
    step q2, q6, a7
    l32i a6, a3, 0
    ee.vadds.s16.st.incp q0, a4, q3, q3, q5
    ee.vadds.s16.st.incp q1, a4, q4, q4, q6
    ee.vst.128.ip q2, a4, 16
    ee.vst.128.ip q3, a4, 16
    ee.vst.128.ip q4, a4, 16
    bnez a5, .Lsums
    kernel_return

    .end no-transform
