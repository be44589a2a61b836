/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Instruction streams from the codecs base3 and 2bit, whose bytes hold five and four trits: the generators of stream.S
 * for them. Two steps.
 *
 * Trits to codes, one byte an instruction: gap from the instruction before (4 bits; the first one's from position -1),
 * sign in bit 4. A table (stream.c) has the codes of every byte: 11.5 slots a byte, whatever its trits. A gap above 12,
 * that is a run of zeros over more than a byte, is bridged by a pair of instructions that add and subtract the same
 * vector. (The codec gaps has three bits for a gap, the instruction four.)
 *
 * Codes to instructions: instruction i has the sign of trit i and the gap between trits i + 2 and i + 3, because a load
 * is two slots ahead of its use: 16 instructions in 14 slots.
 *
 * No sum gets larger than the row's trits allow: a pair stands in front of a trit that is not yet added; pairs behind
 * the last trit are dropped; what fills a row of fewer than three instructions takes its last trit away and adds it
 * again; a row without trits gets gain 0.
 */
#include "assembler.h"
#include "stream.h"

/* Entries of the table: four codes in the first word; the fifth, their number, the trits behind the last. */
    .set entry_rest, 4
    .set count_at, 8
    .set behind_at, 16
    .set pair_second, 0x10 /* minus, the same position as the plus before */

/*
 * The byte a7 to codes at a13; a11 trits, at most 7, lie between the last instruction and the byte. `ahead`: where the
 * next byte lies from a5 on, nothing for the last. A byte without a trit has 8 in its entry: bit 3 of the first gap tells
 * it, but so do gaps above 7, which are all right.
 */
.macro byte_to_codes slow, store, next, ahead
    addx8 a8, a7, a10
    l32i a3, a8, 0
    l32i a9, a8, entry_rest
    .ifnb \ahead
    l8ui a7, a5, \ahead
    .endif
    add a3, a3, a11
    .ifnb \ahead
    bbsi a3, 3, \slow
    .endif
\store:
    s32i a3, a13, 0
    s8i a9, a13, 4
    extui a8, a9, count_at, 3
    extui a11, a9, behind_at, 8
    add a13, a13, a8
\next:
.endm

/* The slow path: on with the codes if there are any, else on with more trits before the next. */
.macro no_codes digits, slow, store, next, bridge
\slow:
    extui a8, a9, count_at, 3
    bnez a8, \store
    addi a11, a11, \digits
    bltui a11, 8, \next
    j \bridge
.endm

.macro bridge_to name, next
\name:
    s8i a11, a13, 0
    movi a8, pair_second
    s8i a8, a13, 1
    addi a13, a13, 2
    movi a11, 0
    j \next
.endm

/*
 * Called by callx0 with tvit_stream_args in a2, the record in a6, the constants in a15, all of which it keeps, as a1.
 * Leaves the end of the instructions in a12 and their header in the record. `digits` trits a byte.
 */
.macro stream_generator name, digits, empty
    .global \name
    .type \name, @function
    .balign 4
\name:
    .begin no-transform
    l32i a5, a2, STREAM_CODES
    l32i a14, a2, STREAM_PHASE
    l32i a3, a2, STREAM_K
    l8ui a7, a5, 0
    /* a7: the first byte without the trits of the row before; a12: bytes before the last; a4: the trits of the last byte
       up to the row's end; a11: the last byte without what is behind. Remainders take 13 cycles, so they start early. */
    .if \digits == 5
    add a8, a15, a14
    l8ui a9, a8, STREAM_POWERS
    l8ui a10, a8, STREAM_HALVES
    add a3, a3, a14
    remu a9, a7, a9
    .end no-transform
    movi a4, 52429 /* / 2^18 is 1 / 5, below 2^16 */
    .begin no-transform
    addi a3, a3, -1
    mull a4, a3, a4
    add a7, a7, a10
    extui a12, a4, 18, 14
    addx4 a8, a12, a12
    sub a4, a3, a8
    addi a4, a4, 1
    add a13, a5, a12
    l8ui a11, a13, 0
    add a8, a15, a4
    l8ui a3, a8, STREAM_POWERS
    l8ui a8, a8, STREAM_HALVES
    sub a7, a7, a9
    beqz a12, .Lsingle\@
.Lfirst\@:
    remu a11, a11, a3
    .else
    slli a9, a14, 1
    ssl a9
    movi a8, -1
    sll a8, a8
    and a7, a7, a8
    add a3, a3, a14
    addi a3, a3, -1
    srli a12, a3, 2
    extui a4, a3, 0, 2
    addi a4, a4, 1
    add a13, a5, a12
    l8ui a11, a13, 0
    slli a9, a4, 1
    beqz a12, .Lsingle\@
.Lfirst\@:
    ssl a9
    movi a8, 1
    sll a8, a8
    addi a8, a8, -1
    and a11, a11, a8
    .endif
    /* where the next row starts */
    addi a9, a4, -\digits
    addi a3, a13, 1
    movnez a3, a13, a9
    s32i a3, a2, STREAM_CODES
    movi a3, 0
    moveqz a4, a3, a9
    s32i a4, a2, STREAM_PHASE
    l32i a10, a2, STREAM_TABLE
    l32i a13, a2, STREAM_BYTES
    movi a9, \empty
    .if \digits == 5
    sub a8, a9, a8
    add a4, a11, a8
    .else
    mov a4, a11
    .endif
    neg a11, a14
    bne a7, a9, .Lbytes\@
    /* no trit in the first byte */
    beqz a12, .Lend\@
    addi a11, a11, \digits
    l8ui a7, a5, 1
    addi a5, a5, 1
    addi a12, a12, -1
    j .Lbytes\@
.Lsingle\@:
    mov a11, a7
    j .Lfirst\@
    bridge_to .Lbridge0\@, .Lnext0\@
    bridge_to .Lbridge1\@, .Lnext1\@
    bridge_to .Lbridge2\@, .Lnext2\@
    no_codes \digits, .Lslow0\@, .Lstore0\@, .Lnext0\@, .Lbridge0\@
    no_codes \digits, .Lslow1\@, .Lstore1\@, .Lnext1\@, .Lbridge1\@
    no_codes \digits, .Lslow2\@, .Lstore2\@, .Lnext2\@, .Lbridge2\@
.Lbytes\@:
    bbci a12, 0, .Leven\@
    byte_to_codes .Lslow0\@, .Lstore0\@, .Lnext0\@, 1
    addi a5, a5, 1
.Leven\@:
    srli a12, a12, 1
    loopnez a12, .Llast\@
    byte_to_codes .Lslow1\@, .Lstore1\@, .Lnext1\@, 1
    byte_to_codes .Lslow2\@, .Lstore2\@, .Lnext2\@, 2
    addi a5, a5, 2
.Llast\@:
    movi a8, \empty
    mov a7, a4
    beq a7, a8, .Lend\@
    byte_to_codes , .Lstore3\@, .Lnext3\@,
.Lend\@:
    .end no-transform
    .if \digits != 5
    j codes_to_instructions
    .endif
.endm

    .text
    stream_generator tvit_stream_from_2bit, 4, 0
    stream_generator tvit_stream_from_base3, 5, 121

codes_to_instructions:
    .begin no-transform
    l32i a14, a2, STREAM_BYTES
.Ldrop:
    sub a7, a13, a14 /* instructions */
    beqz a7, .Lfew
    addi a8, a13, -1
    l8ui a8, a8, 0
    addi a13, a13, -2
    beqi a8, pair_second, .Ldrop
    addi a13, a13, 2
    bgeui a7, 3, .Lenough
.Lfew:
    bnez a7, .Lone_or_two
    s8i a7, a6, 24 /* gain */
    s8i a7, a6, 25
    .end no-transform
    movi a8, 0x10001001
    .begin no-transform
    s32i a8, a13, 0
    addi a13, a13, 4
    addi a7, a7, 4
    j .Lenough
.Lone_or_two:
    extui a8, a8, 4, 1
    slli a8, a8, 4
    s8i a8, a13, 1
    movi a9, 0x10
    xor a8, a8, a9
    s8i a8, a13, 0
    addi a13, a13, 2
    addi a7, a7, 2
.Lenough:
    movi a8, 0
    s32i a8, a13, 0
    l8ui a8, a14, 0
    l8ui a9, a14, 1
    l8ui a10, a14, 2
    extui a8, a8, 0, 4
    addi a8, a8, -1
    slli a8, a8, 12
    or a8, a8, a7
    extui a9, a9, 0, 4
    slli a9, a9, 17
    or a8, a8, a9
    extui a10, a10, 0, 4
    slli a10, a10, 22
    or a8, a8, a10
    s32i a8, a6, 20
    l32i a13, a2, STREAM_BUFFER
    addi a3, a14, 3
    ee.ld.128.usar.ip q0, a3, 0 /* codes 0 ... 15; shifts by three from here on */
    addi a14, a14, 16
    ee.vld.128.ip q4, a14, 16
    addx4 a12, a7, a13
    addi a4, a7, 15
    srli a4, a4, 4
    addi a3, a15, 80
    ee.vld.128.ip q5, a3, 16 /* 0x20, 0x60 */
    ee.vld.128.ip q7, a3, 16 /* 0x0f */
    ee.vld.128.ip q6, a3, 16 /* 0x10 */
    nop
    ee.andq q3, q0, q6
    loop a4, .Linstructions
    ee.src.q.qup q2, q0, q4
    ee.andq q2, q2, q7
    ee.vadds.s8.ld.incp q4, a15, q2, q2, q3
    ee.vadds.s8.ld.incp q1, a15, q2, q2, q5
    ee.vzip.8 q4, q2
    ee.vzip.16 q4, q1
    ee.vst.128.ip q4, a13, 16
    ee.vst.128.ip q1, a13, 16
    ee.vld.128.ip q1, a15, -32
    ee.vld.128.ip q4, a14, 16
    ee.andq q3, q0, q6
    ee.vzip.16 q2, q1
    ee.vst.128.ip q2, a13, 16
    ee.vst.128.ip q1, a13, 16
.Linstructions:
    movi a3, 0x80 /* ret */
    s32i a3, a12, 0
    .end no-transform
    ret
