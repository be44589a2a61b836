/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Instruction streams (stream.S) in segments whose loop fits the 256-byte loop buffer: for a core that cannot fetch four
 * bytes a cycle from memory. Between the segments of a channel the sums of all blocks wait in memory as they are in
 * QACC, 48 bytes a block.
 *
 * struct segment_args of harness.h in a2.
 */
#include "stream_macros.h"

    .text

.macro start_segment
    mov a3, a4
    ee.ld.qacc_l.l.128.ip a14, 16
    ee.vld.128.xp q0, a3, a9
    ee.ld.qacc_h.l.128.ip a14, 16
    ee.vld.128.xp q1, a3, a10
    ee.ld.qacc_l.h.32.ip a14, 4
    ee.ld.qacc_h.h.32.ip a14, 12
.endm

.macro finish_segment
    add a4, a4, a11
    ee.st.qacc_l.l.128.ip a13, 16
    ee.st.qacc_h.l.128.ip a13, 16
    ee.st.qacc_l.h.32.ip a13, 4
    ee.st.qacc_h.h.32.ip a13, 12
.endm

/* 36 bytes each, the finish 15 of them, in the order of segment_kind_t. */
    .global segment_heads
    .begin no-transform
segment_heads:
    finish_segment
    start_block
    finish_segment
    start_segment
    finish_i8
    start_segment
    finish_i8
    start_block

    .end no-transform

    kernel_function gemm_stream_segments_i8
    kernel_enter
    s32i a0, a1, 0
    movi a15, stream_constants
    s32i a15, a2, 48
    .begin no-transform
    l32i a14, a2, 4 /* codes */
    l32i a6, a2, 12 /* records */
.Lsegment:
    l32i a8, a6, 20 /* header */
    l32i a13, a2, 16 /* four buffers, 320 bytes each; the first generated instruction, a multiple of 16 */
    extui a3, a8, 28, 2 /* kind */
    addx4 a3, a3, a3
    slli a3, a3, 6
    add a13, a13, a3
    mov a5, a13
    prepare_generator
    extui a7, a8, 0, 6 /* instructions */
    generate
    s32i a7, a2, 4
    wsr.lend a12
    addi a5, a5, -36
    wsr.lbeg a5
    addi a7, a5, 15
    l32i a3, a2, 20 /* blocks */
    addi a3, a3, -1
    wsr.lcount a3
    l32i a4, a2, 0 /* input */
    extui a9, a8, 6, 5
    slli a9, a9, 4
    extui a10, a8, 11, 5
    slli a10, a10, 4
    extui a3, a8, 16, 12
    slli a3, a3, 4
    add a4, a4, a3
    addi a3, a6, 24
    ee.vldbc.8.ip q4, a3, 1 /* gain */
    ee.vldbc.8.ip q6, a3, 1 /* -gain */
    l8ui a12, a3, 0         /* shift */
    addi a3, a2, 40
    ee.vldbc.16.ip q2, a3, 2 /* -limit */
    ee.vldbc.16.ip q3, a3, 2 /* limit */
    l32i a5, a2, 8   /* out of block 0 */
    l32i a11, a2, 24 /* bytes from block to block of the input */
    l32i a13, a2, 36 /* sums of all blocks */
    mov a14, a13
    extui a15, a8, 29, 1
    l32i a8, a2, 28  /* bytes from block to block of the output */
    isync
    callx0 a7
    bnez a15, .Llast
    finish_segment
    j .Lsegment_done
.Llast:
    finish_i8
    l32i a3, a2, 8
    addi a3, a3, 16
    s32i a3, a2, 8
.Lsegment_done:
    l32i a15, a2, 48 /* constants */
    addi a6, a6, 32
    l32i a14, a2, 4
    l32i a3, a2, 32 /* segments left */
    addi a3, a3, -1
    s32i a3, a2, 32
    bnez a3, .Lsegment
    .end no-transform
    l32i a0, a1, 0
    kernel_return
