/* SPDX-License-Identifier: Apache-2.0 */
/* Ternary GEMM as instruction streams, see stream_macros.h. struct stream_args of harness.h in a2. */
#include "stream_macros.h"

    .text
    .global stream_constants
    .balign 16
stream_constants:
    .fill 16, 1, 0x3e
    .rept 4
    .byte 0x03, 0xf0, 0x0b, 0xf0
    .endr
    .fill 16, 1, 0x0f
    .fill 16, 1, 0x08
    .rept 8
    .byte 0x20, 0x60
    .endr

    .begin no-transform

/* Copied in front of the generated instructions: ends the previous block and starts the next. */
    .global stream_head_i8, stream_head_i16_add, stream_head_i8_table, stream_heads_end
stream_head_i8:
    finish_i8
    start_block
stream_head_i16_add:
    finish_i16_add
    start_block
stream_head_i8_table:
    finish_i8_table
    start_block
stream_heads_end:
    .end no-transform

/* The record at a6 from the channel's word and header: 45 slots. Uses a3, a4, a7, a8. */
.macro make_record
    l32i a3, a2, 52 /* channels */
    l32i a4, a3, 0
    addi a3, a3, 4
    s32i a3, a2, 52
    srli a7, a4, 12 /* bias: one value in eight lanes of 20 bits */
    slli a3, a7, 20
    or a3, a3, a7
    s32i a3, a6, 0
    srli a3, a7, 12
    slli a8, a7, 8
    or a3, a3, a8
    slli a8, a7, 28
    or a3, a3, a8
    s32i a3, a6, 4
    srli a3, a7, 4
    slli a8, a7, 16
    or a3, a3, a8
    s32i a3, a6, 8
    extui a3, a7, 16, 4
    slli a8, a7, 4
    or a3, a3, a8
    slli a8, a7, 24
    or a3, a3, a8
    s32i a3, a6, 12
    srli a3, a7, 8
    slli a8, a7, 12
    or a3, a3, a8
    s32i a3, a6, 16
    extui a3, a4, 5, 7
    s8i a3, a6, 24 /* gain */
    neg a3, a3
    s8i a3, a6, 25
    extui a3, a4, 0, 5
    s8i a3, a6, 26 /* shift */
    l32i a3, a2, 56 /* headers */
    l32i a7, a3, 0
    addi a3, a3, 4
    s32i a3, a2, 56
    s32i a7, a6, 20
.endm

/* finish: finish_i8, finish_i16_add or finish_i8_table */
.macro stream_kernel name, finish
    kernel_function \name
    kernel_enter
    s32i a0, a1, 0
    movi a15, stream_constants
    .begin no-transform
    l32i a14, a2, 4 /* codes */
    l32i a6, a2, 12 /* record, 32 bytes */
.Lchannel\@:
    make_record
    /* generate */
    l32i a13, a2, 16 /* buffer: the first generated instruction, a multiple of 16 */
    prepare_generator
    extui a7, a7, 0, 12 /* instructions */
    generate
    s32i a7, a2, 4
    wsr.lend a12
    l32i a13, a2, 16
    addi a13, a13, -start_bytes - \finish\()_bytes
    wsr.lbeg a13
    addi a14, a13, \finish\()_bytes
    /* run */
    l32i a3, a2, 20 /* blocks */
    addi a3, a3, -1
    wsr.lcount a3
    l32i a4, a2, 0 /* input */
    l32i a7, a6, 20
    extui a3, a7, 12, 5
    slli a3, a3, 4
    add a4, a4, a3
    extui a9, a7, 17, 5
    slli a9, a9, 4
    extui a10, a7, 22, 5
    slli a10, a10, 4
    addi a3, a6, 24
    ee.vldbc.8.ip q4, a3, 1 /* gain */
    ee.vldbc.8.ip q6, a3, 1 /* -gain */
    l8ui a12, a3, 0         /* shift */
    l32i a5, a2, 8   /* out of block 0 */
    l32i a11, a2, 24 /* bytes from block to block of the input */
    l32i a8, a2, 28  /* of the output */
    l32i a13, a2, 36 /* QACC scratch, or table */
    addi a3, a2, 40
    ee.vldbc.16.ip q2, a3, 2 /* -limit; 0x8080; 0x8080 */
    ee.vldbc.16.ip q3, a3, 2 /* limit; -32767; unused */
    s32i a15, a2, 48
    mov a7, a14
    movi a14, 8
    movi a15, 0
    isync
    callx0 a7
    \finish
    l32i a15, a2, 48
    l32i a14, a2, 4
    l32i a3, a2, 8
    l32i a4, a2, 44 /* bytes from channel to channel of the output */
    add a3, a3, a4
    s32i a3, a2, 8
    l32i a3, a2, 32 /* channels left */
    addi a3, a3, -1
    s32i a3, a2, 32
    bnez a3, .Lchannel\@
    .end no-transform
    l32i a0, a1, 0
    kernel_return
.endm

    stream_kernel gemm_stream_i8, finish_i8
    stream_kernel gemm_stream_i16_add, finish_i16_add
    stream_kernel gemm_stream_i8_table, finish_i8_table
