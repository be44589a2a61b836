/* SPDX-License-Identifier: Apache-2.0 */
/* The sum of one channel's tokens, for mean pooling. */
#include "assembler.h"

    .text
    .begin no-transform

    /* int32_t tvit_sum_lanes(const int16_t *x, uint32_t block_bytes, uint32_t blocks, const int16_t weights[2][16]): all
       lanes of `blocks` vectors of 16 tokens, those of the first and of the last one times their weights, which are 0 or 1.
       2 or more blocks; four slots each. */
    kernel_function tvit_sum_lanes
    kernel_enter
    addi a3, a3, -16
    addi a4, a4, -2
    movi a6, 0
    ee.vld.128.ip q2, a5, 16
    ee.vld.128.ip q3, a5, 16
    ee.vld.128.ip q5, a5, 16
    ee.vld.128.ip q6, a5, 0
    ee.zero.q q4
    ee.zero.q q7
    ee.vcmp.eq.s16 q7, q7, q4 /* -1 */
    ee.vsubs.s16 q4, q4, q7
    ee.zero.accx
    ee.vld.128.ip q0, a2, 16
    ee.vld.128.xp q1, a2, a3
    ee.vmulas.s16.accx q0, q2
    ee.vmulas.s16.accx q1, q3
    loopgtz a4, .Lblocks
    ee.vld.128.ip q0, a2, 16
    ee.vld.128.xp q1, a2, a3
    ee.vmulas.s16.accx q0, q4
    ee.vmulas.s16.accx q1, q4
.Lblocks:
    ee.vld.128.ip q0, a2, 16
    ee.vld.128.ip q1, a2, 0
    ee.vmulas.s16.accx q0, q5
    ee.vmulas.s16.accx q1, q6
    nop
    ee.srs.accx a2, a6, 0
    kernel_return
    .end no-transform
