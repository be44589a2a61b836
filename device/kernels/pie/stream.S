/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ternary GEMM with lanes on tokens and weights as instructions: the row of a channel becomes a straight line of
 *
 *     EE.VMULAS.S8.QACC.LD.IP  qn, a3, gap, qn, sign        n alternates between 0 and 1
 *
 * one for each trit that is not zero: it adds plus or minus gain times the token vector in qn, and loads into qn the
 * vector of the trit after the next; gap leads to the one after that. Zero trits cost nothing. A row is generated once
 * and runs for every token block, as a zero-overhead loop whose end is set for each row:
 *
 *     LBEG  end of the previous block: epilogue, store, first load of this block
 *           start of this block: bias into QACC, second load
 *           one instruction a trit
 *     LEND  ret
 *
 * It is entered at the start of a block, and the end of the last block is executed here, so an iteration has no slot
 * of its own for the loop. Codes: FORMAT.md, "Gaps".
 *
 * The instruction word is ..f0 03/0b cc 3e, cc = 0x20 | n << 6 | sign << 4 | gap: everything that varies is in one
 * byte, so generating is interleaving the codes with constants: 32 instructions in 29 slots.
 *
 * Registers while a stream runs:
 *   a3 next input vector      a4 first input vector of the block, + 16     a5 output          a6 record
 *   a8 output step            a9 first gap in bytes - 16    a10 second gap in bytes    a11 input step - 16
 *   a12 shift                 a13 QACC scratch or table     a7, a14 = 8, a15 = 0 of the int16 epilogue
 *   q0, q1 inputs             q2, q3 constants of the epilogue             q4 gain, q6 -gain
 */
#include "epilogues.h"
#include "stream.h"
#include "workspace.h"

/* ---- blocks ---------------------------------------------------------------------------------------------------- */

    .set start_bytes, 5 * 3

.macro start_block
    ee.ld.qacc_l.l.128.ip a6, 0
    ee.ld.qacc_h.l.128.ip a6, 16
    ee.vld.128.xp q1, a3, a10
    ee.ld.qacc_l.h.32.ip a6, 0
    ee.ld.qacc_h.h.32.ip a6, -16
.endm

    .data
    .balign 16
    .begin no-transform
/* A finish and the start, of the size that the kernels rely on. */
.macro head name, finish
    .global \name
\name:
    \finish 0
    start_block
    .if . - \name - start_bytes - \finish\()_bytes
    .error "the size of the finish is not as stated"
    .endif
.endm
    head tvit_stream_head_i8, finish_i8
    head tvit_stream_head_i8_127, finish_i8_127
    head tvit_stream_head_table, finish_table
    head tvit_stream_head_i16_add, finish_i16_add
    head tvit_stream_head_i16_set, finish_i16_set
    .global tvit_stream_heads_end
tvit_stream_heads_end:
    .end no-transform

    .balign 16
constants:
    .fill 16, 1, 0x3e
    .rept 8
    .byte 0x03, 0xf0, 0x0b, 0xf0
    .endr
    .fill 16, 1, 0x0f
    .fill 16, 1, 0x08
    .rept 8
    .byte 0x20, 0x60
    .endr
    .fill 16, 1, 0x0f
    .fill 16, 1, 0x10
    .byte 1, 3, 9, 27, 81, 243, 0, 0 /* STREAM_POWERS: of three */
    .byte 0, 1, 4, 13, 40, 121 /* STREAM_HALVES: as many trits 0 in base 3 */

/* ---- rows ------------------------------------------------------------------------------------------------------ */

    .text

/*
 * a7 instructions from the codes at a14 to a13: leaves their end in a12 and the next codes in a7. a15 stays on the
 * constants, SAR is 4. Uses a3, a4, all q.
 *
 * A code is c = sign << 3 | gap; c + (c & 8) moves the sign to bit 4, and the constant in q5 completes the byte. Three
 * of the four loads of constants that the zips destroy are fused into these additions.
 */
.macro generate
    addi a3, a15, 48
    addi a4, a7, 31
    srli a4, a4, 5
    ee.vld.128.ip q7, a3, 16 /* 0x0f */
    ee.vld.128.ip q6, a3, 16 /* 0x08 */
    ee.vld.128.ip q5, a3, 16 /* 0x20, 0x60 */
    addx4 a12, a7, a13
    addi a7, a7, 1
    srli a7, a7, 1
    add a7, a7, a14
    ee.ld.128.usar.ip q0, a14, 16
    loop a4, .Lcodes\@
    ee.ld.128.usar.ip q1, a14, 16
    nop
    ee.src.q.qup q2, q0, q1
    ee.vsr.32 q3, q2
    ee.andq q2, q2, q7
    ee.andq q3, q3, q7
    ee.vzip.8 q2, q3
    ee.andq q4, q2, q6
    ee.vadds.s8.ld.incp q4, a15, q2, q2, q4
    ee.vadds.s8.ld.incp q1, a15, q2, q2, q5
    ee.vzip.8 q4, q2
    ee.vzip.16 q4, q1
    ee.vst.128.ip q4, a13, 16
    ee.vst.128.ip q1, a13, 16
    ee.vld.128.ip q1, a15, -32
    ee.andq q4, q3, q6
    ee.vzip.16 q2, q1
    ee.vst.128.ip q2, a13, 16
    ee.vst.128.ip q1, a13, 16
    ee.vadds.s8.ld.incp q4, a15, q3, q3, q4
    ee.vadds.s8.ld.incp q1, a15, q3, q3, q5
    ee.vzip.8 q4, q3
    ee.vld.128.ip q2, a15, -32
    ee.vzip.16 q4, q1
    ee.vst.128.ip q4, a13, 16
    ee.vst.128.ip q1, a13, 16
    ee.vzip.16 q3, q2
    ee.vst.128.ip q3, a13, 16
    ee.vst.128.ip q2, a13, 16
.Lcodes\@:
    movi a3, 0x80 /* ret */
    s32i a3, a12, 0
.endm

/*
 * tvit_stream_args in a2. The generated code is data that becomes instructions: MEMW lets the stores reach memory, ISYNC
 * empties the fetch buffers of what was there before and makes LBEG, LEND and LCOUNT count.
 */
.macro stream_kernel name, finish
    kernel_function \name
    kernel_enter
    s32i a0, a1, 0
    movi a15, constants
    .begin no-transform
    ssai 4
    l32i a6, a2, STREAM_RECORDS
.Lrow\@:
    l32i a3, a2, STREAM_GENERATOR
    l32i a7, a6, 20 /* header */
    l32i a13, a2, STREAM_BUFFER
    l32i a14, a2, STREAM_CODES
    bnez a3, .Ltrits\@
    extui a7, a7, 0, 12
    generate
    s32i a7, a2, STREAM_CODES
.Lgenerated\@:
    l32i a13, a2, STREAM_BUFFER
#if TVIT_EXECUTABLE_OFFSET
    .end no-transform
    movi a3, TVIT_EXECUTABLE_OFFSET
    .begin no-transform
    add a12, a12, a3
    add a13, a13, a3
#endif
    wsr.lend a12
    addi a3, a13, -start_bytes - \finish\()_bytes
    wsr.lbeg a3
    l32i a3, a2, STREAM_MORE_BLOCKS
    l32i a8, a6, 20
    l32i a4, a2, STREAM_INPUT
    wsr.lcount a3
    addi a14, a6, 24
    ee.vldbc.8.ip q4, a14, 1
    ee.vldbc.8.ip q6, a14, 1
    l8ui a12, a14, 0
    extui a3, a8, 12, 5
    slli a3, a3, 4
    add a4, a4, a3
    ee.vld.128.ip q0, a4, 16
    extui a9, a8, 17, 5
    slli a9, a9, 4
    addi a9, a9, -16
    extui a10, a8, 22, 5
    slli a10, a10, 4
    add a3, a4, a9
    l32i a5, a2, STREAM_OUTPUT
    l32i a11, a2, STREAM_INPUT_STEP
    l32i a8, a2, STREAM_OUTPUT_STEP
    addi a7, a13, -start_bytes
    addi a14, a2, STREAM_CONSTANTS
    ee.vldbc.16.ip q2, a14, 2
    ee.vldbc.16.ip q3, a14, 2
    .if \finish\()_scalars
    l32i a13, a2, STREAM_SCRATCH
    movi a14, 8
    movi a15, 0
    .endif
    memw
    isync
    callx0 a7
    \finish 1
    .if \finish\()_scalars
    .end no-transform
    movi a15, constants
    .begin no-transform
    .endif
    addi a6, a6, 32
    l32i a3, a2, STREAM_OUTPUT
    l32i a4, a2, STREAM_CHANNEL_STEP
    l32i a5, a2, STREAM_ROWS
    add a3, a3, a4
    s32i a3, a2, STREAM_OUTPUT
    addi a5, a5, -1
    s32i a5, a2, STREAM_ROWS
    bnez a5, .Lrow\@
    .end no-transform
    l32i a0, a1, 0
    kernel_return
.Ltrits\@:
    callx0 a3
    j .Lgenerated\@
    .size \name, . - \name
.endm

    stream_kernel tvit_stream_i8_pie, finish_i8
    stream_kernel tvit_stream_i8_127_pie, finish_i8_127
    stream_kernel tvit_stream_table_pie, finish_table
    stream_kernel tvit_stream_i16_add_pie, finish_i16_add
    stream_kernel tvit_stream_i16_set_pie, finish_i16_set

/* ---- records --------------------------------------------------------------------------------------------------- */

/*
 * tvit_pie_records(records, channels, headers, count). The bias in eight lanes of 20 bits is a pattern of period 20:
 * word i holds its bits from 32 i on, that is from 0, 12, 4, 16 and 8 on. 31 slots a record.
 */
    kernel_function tvit_pie_records
    kernel_enter
    .begin no-transform
    movi a11, 0
    mov a10, a4
    bnez a4, .Lheaders
    mov a10, a3 /* anything readable */
.Lheaders:
    loop a5, .Lrecords
    l32i a6, a3, 0
    l32i a7, a10, 0
    addi a3, a3, 4
    srli a8, a6, 12
    slli a9, a8, 20
    or a8, a8, a9
    s32i a8, a2, 0
    s32i a7, a2, 20
    extui a7, a7, 0, 12
    maxu a11, a11, a7
    srli a9, a8, 12
    ssai 12
    src a9, a9, a8
    s32i a9, a2, 4
    ssai 4
    src a7, a9, a8
    s32i a7, a2, 8
    ssai 16
    src a7, a9, a8
    s32i a7, a2, 12
    ssai 8
    src a7, a9, a8
    s32i a7, a2, 16
    extui a7, a6, 5, 7
    s8i a7, a2, 24
    neg a7, a7
    s8i a7, a2, 25
    extui a7, a6, 0, 5
    s8i a7, a2, 26
    addi a10, a10, 4
    addi a2, a2, 32
.Lrecords:
    mov a2, a11
    .end no-transform
    kernel_return
