/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lanes on tokens, weights as instructions: the row of a channel becomes a straight line of
 *
 *     EE.VMULAS.S8.QACC.LD.IP  qn, a3, gap, qn, sign        n alternates between 0 and 1
 *
 * one for each trit that is not zero: it adds plus or minus gain times the token vector in qn, and loads into qn the
 * vector of the trit after the next; gap leads to the one after that. Zero trits cost nothing. A row is generated once
 * and runs for every token block, as a zero-overhead loop whose end is set for each row.
 *
 * Codes: one nibble an instruction, low nibble first: bits 0 to 2 the gap in rows (0 to 7), bit 3 the sign (1 minus).
 * The sign belongs to the trit that is multiplied, the gap to the one that is loaded, so the packer has shifted them
 * against each other. A longer gap is bridged by a pair of instructions that add and subtract the same vector. A
 * record's header: instructions (12 bits), first row (5), gap from the first trit to the second (5), from the second to
 * the third (5).
 *
 * The instruction word is ..f0 03/0b cc 3e, cc = 0x20 | n << 6 | sign << 4 | gap: everything that varies is in
 * one byte, so generating is interleaving the codes with constants: 32 instructions in 33 slots.
 */
#ifndef TVIT_STREAM_MACROS_H
#define TVIT_STREAM_MACROS_H

#include "assembler.h"

/* clang-format off */
    .set start_bytes, 7 * 3
    .set finish_i8_bytes, 5 * 3
    .set finish_i16_add_bytes, 27 * 3
    .set finish_i8_table_bytes, 10 * 3 + 16 * 4

/* Ends a block with int8 outputs. The first slot is not a MAC: SRCMB right after one would wait. */
.macro finish_i8
    add a4, a4, a11
    ee.srcmb.s8.qacc q5, a12, 0
    ee.vmin.s8 q5, q5, q3
    ee.vmax.s8 q5, q5, q2
    ee.vst.128.xp q5, a5, a8
.endm

/*
 * Ends a block that is added to the int16 residual stream. SRCMB leaves y in the lanes, but hands out only eight bits of it.
 * So: h = y >> 8, saturated; back to y from memory; l = y - 256 h - 128, saturated; y = 256 h + (l + 128). Where y does
 * not fit 16 bits both parts saturate and give 32767 or -32768. q2 is 0x80 in every byte, that is -128; q3 is -32767 in
 * every halfword, so its bytes are 1, -128, 1, -128: the scalars.
 */
.macro finish_i16_add
    add a4, a4, a11
    ee.srcmb.s8.qacc q5, a12, 0
    ee.st.qacc_l.l.128.ip a13, 16
    ee.st.qacc_h.l.128.ip a13, 16
    ee.st.qacc_l.h.32.ip a13, 4
    ee.st.qacc_h.h.32.ip a13, -36
    ee.srcmb.s8.qacc q5, a14, 0
    ee.ld.qacc_l.l.128.ip a13, 16
    ee.ld.qacc_h.l.128.ip a13, 16
    ee.ld.qacc_l.h.32.ip a13, 4
    ee.ld.qacc_h.h.32.ip a13, -36
    ee.vsmulas.s8.qacc q5, q3, 1
    ee.vsmulas.s8.qacc q5, q3, 1
    ee.vsmulas.s8.qacc q2, q3, 0
    ee.vld.128.ip q7, a5, 16
    ee.srcmb.s8.qacc q0, a15, 0
    ee.vld.128.ip q1, a5, -16
    ee.xorq q0, q0, q2
    ee.vzip.8 q0, q5
    ee.vmax.s16 q0, q0, q3
    ee.vmax.s16 q5, q5, q3
    ee.vadds.s16 q7, q7, q0
    ee.vadds.s16 q1, q1, q5
    ee.vmax.s16 q7, q7, q3
    ee.vmax.s16 q1, q1, q3
    ee.vst.128.ip q7, a5, 16
    ee.vst.128.xp q1, a5, a8
.endm

/*
 * Ends a block whose outputs go through a table of 256 words (a byte each, the clamp folded in): there is no look-up of
 * bytes, but EE.LDXQ.32 loads a word by the index in a lane.
 */
.macro finish_i8_table
    add a4, a4, a11
    ee.srcmb.s8.qacc q5, a12, 0
    ee.zero.q q7
    ee.xorq q5, q5, q2
    ee.vzip.8 q5, q7
    .set i, 0
    .rept 4
    ee.ldxq.32 q0, q5, a13, i, i
    ee.ldxq.32 q1, q5, a13, i, i + 4
    .set i, i + 1
    .endr
    ee.ldxq.32 q5, q7, a13, 0, 4
    ee.vunzip.16 q0, q1
    ee.ldxq.32 q1, q7, a13, 0, 0
    .set i, 1
    .rept 3
    ee.ldxq.32 q5, q7, a13, i, i + 4
    ee.ldxq.32 q1, q7, a13, i, i
    .set i, i + 1
    .endr
    nop
    ee.vunzip.16 q1, q5
    ee.vunzip.8 q0, q1
    ee.vst.128.xp q0, a5, a8
.endm

.macro start_block
    mov a3, a4
    ee.ld.qacc_l.l.128.ip a6, 0
    ee.vld.128.xp q0, a3, a9
    ee.ld.qacc_h.l.128.ip a6, 16
    ee.vld.128.xp q1, a3, a10
    ee.ld.qacc_l.h.32.ip a6, 0
    ee.ld.qacc_h.h.32.ip a6, -16
.endm

/* Sixteen codes in \codes to sixteen instructions at a13. */
.macro emit16 codes
    ee.andq q4, \codes, q6
    ee.vadds.s8 \codes, \codes, q4
    ee.vld.128.ip q4, a15, 16
    ee.orq \codes, \codes, q5
    ee.vld.128.ip q1, a15, 0
    ee.vzip.8 q4, \codes
    ee.vzip.16 q4, q1
    ee.vst.128.ip q4, a13, 16
    ee.vst.128.ip q1, a13, 16
    ee.vld.128.ip q1, a15, -16
    nop
    ee.vzip.16 \codes, q1
    ee.vst.128.ip \codes, a13, 16
    ee.vst.128.ip q1, a13, 16
.endm

/* The constants of the generator, in registers; a15 stays on those it reloads. Uses a3. */
.macro prepare_generator
    ssai 4
    addi a3, a15, 32
    ee.vld.128.ip q7, a3, 16
    ee.vld.128.ip q6, a3, 16
    ee.vld.128.ip q5, a3, 16
.endm

/* a7 instructions from the codes at a14 to a13: leaves the end in a12 and the next codes in a7. Uses a3, a4. */
.macro generate
    addi a4, a7, 31
    srli a4, a4, 5
    addx4 a12, a7, a13
    addi a7, a7, 1
    srli a7, a7, 1
    add a7, a7, a14
    ee.ld.128.usar.ip q0, a14, 16
    loop a4, .Lgenerated\@
    ee.ld.128.usar.ip q1, a14, 16
    nop
    ee.src.q.qup q2, q0, q1
    ee.vsr.32 q3, q2
    ee.andq q2, q2, q7
    ee.andq q3, q3, q7
    ee.vzip.8 q2, q3
    emit16 q2
    emit16 q3
.Lgenerated\@:
    movi a3, 0x80 /* ret */
    s32i a3, a12, 0
.endm
/* clang-format on */

#endif
