/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Epilogues of linear operators (CONTRACT.md, section 2), as macros: from 20-bit lanes of QACC, one channel of sixteen
 * tokens, to an output in memory. For stream.S and lanes.S.
 *
 *   a5 output, moves on by what the stores add and a8
 *   a12 shift
 *   a13 48 bytes for QACC (int16), or the table of words
 *   a14 = 8 and a15 = 0 for int16; a7 is used by int16
 *   q2, q3 constants in all bytes or halfwords: -limit and limit; -128 and -32767 (int16)
 *   a3, a4, q0, q1, q5, q7 are used; with `last` 0 as stream.S says
 */
#ifndef TVIT_PIE_EPILOGUES_H
#define TVIT_PIE_EPILOGUES_H

#include "assembler.h"

/* clang-format off */
    .set finish_i8_bytes, 17
    .set finish_i8_127_bytes, 16
    .set finish_table_bytes, 93
    .set finish_i16_add_bytes, 81
    .set finish_i16_set_bytes, 67
    .set finish_i8_scalars, 0 /* whether a13 ... a15 are used */
    .set finish_i8_127_scalars, 0
    .set finish_table_scalars, 1
    .set finish_i16_add_scalars, 1
    .set finish_i16_set_scalars, 1

/*
 * A finish ends a block; with `last` 0 it also loads the first input of the next one, fused into an instruction of the
 * epilogue where one can load. SRCMB would wait right behind a MAC, so the first slot is none. A loop body of more than
 * 256 bytes is fetched again each time, and one cycle is lost if its first instruction crosses a fetch word: that is
 * why some instructions are narrow.
 */

/* 11 slots with the start. */
.macro finish_i8 last
    .if !\last
    add.n a4, a4, a11
    .endif
    ee.srcmb.s8.qacc q5, a12, 0
    .if \last
    ee.vmin.s8 q5, q5, q3
    .else
    ee.vmin.s8.ld.incp q0, a4, q5, q5, q3
    .endif
    ee.vmax.s8 q5, q5, q2
    .if !\last
    add.n a3, a4, a9
    .endif
    ee.vst.128.xp q5, a5, a8
.endm

/* SRCMB saturates to -128 ... 127, so a limit of 127 needs one side only: 10 slots with the start. */
.macro finish_i8_127 last
    .if !\last
    add a4, a4, a11
    .endif
    ee.srcmb.s8.qacc q5, a12, 0
    .if \last
    ee.vmax.s8 q5, q5, q2
    .else
    ee.vmax.s8.ld.incp q0, a4, q5, q5, q2
    add a3, a4, a9
    .endif
    ee.vst.128.xp q5, a5, a8
.endm

/*
 * Outputs through a table of 256 words (a byte each, the clamp folded in): there is no look-up of bytes, but
 * EE.LDXQ.32 loads a word by the index in a lane, here y as an unsigned byte. 34 slots with the start.
 */
.macro finish_table last
    ee.zero.q q7
    ee.srcmb.s8.qacc q5, a12, 0
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
    add a4, a4, a11
    ee.vunzip.16 q1, q5
    ee.vunzip.8 q0, q1
    ee.vst.128.xp q0, a5, a8
    .if !\last
    ee.vld.128.ip q0, a4, 16
    add.n a3, a4, a9
    .endif
.endm

/*
 * y of 20 bits to 16: SRCMB leaves y in the lanes, but hands out only eight bits of it. So h = y >> 8, saturated; back
 * to y from memory; l = y - 256 h - 128, saturated; y = 256 h + (l + 128). Where y does not fit 16 bits both parts
 * saturate and give 32767 or -32768. q2 is 0x80 in every byte, that is -128; q3 is -32767 in every halfword, so its
 * bytes are 1, -128, 1, -128: the scalars. Leaves h in q5 and l + 128 in \low; the zip makes int16 of them.
 */
.macro split_high
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
.endm

/* Adds to the residual stream: 31 slots with the start. */
.macro finish_i16_add last
    mov.n a7, a5
    split_high
    ee.vsmulas.s8.qacc.ld.incp q7, a7, q5, q3, 1
    ee.vsmulas.s8.qacc.ld.incp q1, a7, q5, q3, 1
    ee.vsmulas.s8.qacc q2, q3, 0
    add a4, a4, a11
    ee.srcmb.s8.qacc q0, a15, 0
    ee.xorq q0, q0, q2
    ee.vzip.8 q0, q5
    ee.vmax.s16 q0, q0, q3
    ee.vmax.s16 q5, q5, q3
    ee.vadds.s16 q7, q7, q0
    .if \last
    ee.vadds.s16 q5, q1, q5
    .else
    ee.vadds.s16.ld.incp q0, a4, q5, q1, q5
    .endif
    ee.vmax.s16 q7, q7, q3
    ee.vmax.s16.st.incp q7, a5, q5, q5, q3
    .if !\last
    add a3, a4, a9
    .endif
    ee.vst.128.xp q5, a5, a8
.endm

.macro finish_i16_set last
    add.n a4, a4, a11
    split_high
    ee.vsmulas.s8.qacc q5, q3, 1
    ee.vsmulas.s8.qacc q5, q3, 1
    ee.vsmulas.s8.qacc q2, q3, 0
    nop
    ee.srcmb.s8.qacc q7, a15, 0
    ee.xorq q7, q7, q2
    ee.vzip.8 q7, q5
    .if \last
    ee.vmax.s16 q7, q7, q3
    .else
    ee.vmax.s16.ld.incp q0, a4, q7, q7, q3
    .endif
    ee.vmax.s16.st.incp q7, a5, q5, q5, q3
    .if !\last
    add a3, a4, a9
    .endif
    ee.vst.128.xp q5, a5, a8
.endm
/* clang-format on */

#endif
