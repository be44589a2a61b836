/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ternary GEMM with lanes on tokens and int8 weights: what runs rows that are too long to become instructions.
 *
 * 34 slots for 32 inputs: EE.VSMULAS.S8.QACC.LD.INCP multiplies a token vector by one weight, a lane of another
 * register, and loads the vector that is needed two slots later into the register it has just read; two loads fetch the
 * next 32 weights. The first 1 ... 32 inputs come first, by a jump into 32 unrolled instructions; a row of weights
 * is therefore aligned to its end: 32 * ceil(inputs / 32) bytes, of which the first are not used.
 *
 * tvit_lanes_args in a2. Registers: a3 input, a5 output, a6 record, a9 weights, a10 where to jump, a11 rows left;
 * q0, q1 inputs, q4, q6, q7 weights.
 */
#include "epilogues.h"
#include "lanes.h"

    .text

.macro mac16 weights, next
    .set i, 0
    .rept 8
        ee.vsmulas.s8.qacc.ld.incp q0, a3, q0, \weights, i
        .ifnb \next
        .if i == 4
        ee.vld.128.ip \next, a9, 16
        .endif
        .endif
        ee.vsmulas.s8.qacc.ld.incp q1, a3, q1, \weights, i + 1
        .set i, i + 2
    .endr
.endm

/* No epilogue: the sums stay in QACC. */
.macro finish_none last
.endm

.macro lanes_kernel name, finish
    kernel_function \name
    kernel_enter
    .begin no-transform
    l32i a5, a2, LANES_OUTPUT
    l32i a6, a2, LANES_RECORDS
    l32i a8, a2, LANES_OUTPUT_STEP
    l32i a9, a2, LANES_WEIGHTS
    l32i a11, a2, LANES_ROWS
    l32i a13, a2, LANES_SCRATCH
    addi a4, a2, LANES_CONSTANTS
    ee.vldbc.16.ip q2, a4, 2
    ee.vldbc.16.ip q3, a4, 2
    movi a14, 8
    movi a15, 0
    .end no-transform
    movi a10, .Lfirst\@ + 32 * 4
    .begin no-transform
    l32i a4, a2, LANES_FIRST
    slli a4, a4, 2
    sub a10, a10, a4
.Lrow\@:
    l32i a4, a2, LANES_CONTINUE
    l32i a3, a2, LANES_INPUT
    ee.vld.128.ip q6, a9, 16
    ee.vld.128.ip q7, a9, 16
    l8ui a12, a6, 26 /* shift */
    bnez a4, .Lstarted\@
    ee.ld.qacc_l.l.128.ip a6, 0
    ee.ld.qacc_h.l.128.ip a6, 16
    ee.ld.qacc_l.h.32.ip a6, 0
    ee.ld.qacc_h.h.32.ip a6, -16
.Lstarted\@:
    l32i a4, a2, LANES_FIRST
    bbsi a4, 0, .Lodd\@
    ee.vld.128.ip q0, a3, 16
    ee.vld.128.ip q1, a3, 16
    l32i a4, a2, LANES_LOOPS
    ee.vld.128.ip q4, a9, 16
    jx a10
.Lodd\@:
    ee.vld.128.ip q1, a3, 16
    ee.vld.128.ip q0, a3, 16
    l32i a4, a2, LANES_LOOPS
    ee.vld.128.ip q4, a9, 16
    jx a10
    .balign 4
.Lfirst\@:
    mac16 q6
    mac16 q7
    loopnez a4, .Lsummed\@
    mac16 q4, q6
    mac16 q6, q4
.Lsummed\@:
    addi a11, a11, -1
    \finish 1
    addi a9, a9, -16 /* one vector was loaded ahead */
    addi a6, a6, 32
    bnez a11, .Lrow\@
    .end no-transform
    kernel_return
    .size \name, . - \name
.endm

    lanes_kernel tvit_lanes_i8_pie, finish_i8
    lanes_kernel tvit_lanes_table_pie, finish_table
    lanes_kernel tvit_lanes_i16_add_pie, finish_i16_add
    lanes_kernel tvit_lanes_i16_set_pie, finish_i16_set
    lanes_kernel tvit_lanes_none_pie, finish_none

/*
 * tvit_trits_decode_pie(table, bytes, count, trits, step): `step` trits of each byte, from a table of eight bytes for
 * each. Whole entries are stored, the next one over what is too much. 8 slots a byte.
 */
    kernel_function tvit_trits_decode_pie
    kernel_enter
    .begin no-transform
    l8ui a7, a3, 0
    loop a4, .Ldecoded
    addx8 a8, a7, a2
    l32i a9, a8, 0
    l8ui a10, a8, 4
    l8ui a7, a3, 1
    addi a3, a3, 1
    s32i a9, a5, 0
    s8i a10, a5, 4
    add a5, a5, a6
.Ldecoded:
    .end no-transform
    kernel_return

/* tvit_gain_pie(values, vectors, gain): int8 vectors times the byte at gain, in place. Three slots a vector. */
    kernel_function tvit_gain_pie
    kernel_enter
    .begin no-transform
    ssai 0
    ee.vldbc.8 q7, a4
    mov a5, a2
    loop a3, .Lscaled
    ee.vld.128.ip q0, a2, 16
    nop
    ee.vmul.s8 q1, q0, q7
    nop
    ee.vst.128.ip q1, a5, 16
.Lscaled:
    .end no-transform
    kernel_return
