/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the steps of attention on sixteen queries share (attention.c): constants, vectors with a lane a query, and
 * where the memory of the step lies. Vectors come in pairs: queries 0 to 7, then 8 to 15.
 *
 * Steps for eight queries ("narrow") have a query in each odd lane of 20 bits: EE.SRCMB.S16.QACC, which sees two lanes
 * as one of 40 bits, hands out 16 bits of an odd lane in one slot.
 */
#ifndef TVIT_ATTENTION_WORK_H
#define TVIT_ATTENTION_WORK_H

/* Offsets for the assembly sources; attention.c asserts them. */
#define WORK_EXP 0             /* [2][7][8] constants of the exponential in the order of their use */
#define WORK_EXP_HALF 112      /* bytes of one half's */
#define WORK_HIGHEST 80        /* in a half's: the highest score of each query */
#define WORK_ROUNDING 224      /* [2][8]: two factors of 2^(out_shift-1) */
#define WORK_MINUS_127 256     /* bytes */
#define WORK_LOWEST 272        /* -32767 */
#define WORK_LOW 288           /* below it a highest score needs care */
#define WORK_FRACTION_MASK 304 /* 0x7fe0 */
#define WORK_BYTES_80 320      /* 0x80 in each byte */
#define WORK_BYTES_01 336      /* 1 in each byte */
#define WORK_FILLED 22         /* vectors up to here, each of one 16-bit value */
#define WORK_QACC 352          /* 48 bytes for QACC */
#define WORK_W 400             /* [2][8] */
#define WORK_Z 432             /* [2][8] */
#define WORK_PADDING 464       /* bytes: 0xff in the lanes behind the last token */
#define WORK_BOUND 480         /* 48 bytes, QACC: minus the bound of a query's squares */
#define WORK_DIVISION 528      /* [2][3][8] uint32: sums of exponentials, r, delta */
#define WORK_DIVISION_HALF 96  /* bytes of one half's */
#define WORK_SCORES 720        /* pointers to the scores of each half, [rows][8] */
#define WORK_ROWS 728          /* tokens rounded up to even */
#define WORK_NO_ROW 732        /* 1 where the first row belongs to no key */
#define WORK_QUERIES 736       /* pointer, [padded_dim + 2][16] */
#define WORK_PADDED_DIM 740
#define WORK_KEYS 744        /* pointer to the keys: blocks of [16][padded_dim] */
#define WORK_KEY_STEP 748    /* bytes from the end of a run of keys to the next run */
#define WORK_LAST_KEY 752    /* pointer to the last key */
#define WORK_FULL_BLOCKS 756 /* blocks of 16 keys before the last */
#define WORK_TAIL_KEYS 760   /* keys of the last block, 1 ... 16 */
#define WORK_SCORE_SHIFT 764
#define WORK_POWERS 768 /* pointer to [32][32] pairs of powers of two */
#define WORK_TARGET 772 /* target << 19 */
#define WORK_OUT_MULTIPLIER 776
#define WORK_VALUES 780      /* pointer to [head_dim][16] of the first block */
#define WORK_LAST_VALUES 784 /* of the last block */
#define WORK_VALUE_STEP 788  /* bytes from block to block */
#define WORK_HEAD_DIM 792
#define WORK_SUMS 796      /* pointer to [head_dim][16] int16 */
#define WORK_OUTPUT 800    /* pointer to [head_dim][16] int8 */
#define WORK_OUT_SHIFT 804 /* less 8 */
#define WORK_KEY_RUNS 808  /* runs of keys that lie one after the other, before those of the last block */
#define WORK_RUN_KEYS 812  /* keys of each */
#define WORK_BYTES 832

#ifndef __ASSEMBLER__

#include <stdint.h>

typedef int16_t tvit_lanes[8];

typedef struct {
    struct {
        tvit_lanes c3, c2, c1, c4, one, highest, minus_factor; // 3803, -11334, 16384, -661, 1
    } exp[2];
    tvit_lanes rounding[2], minus_127, lowest, low, fraction_mask, bytes_80, bytes_01;
    uint32_t qacc[12];
    tvit_lanes w[2], z[2];
    uint8_t padding[16];
    uint32_t bound[12], division[2][3][8];
    int16_t (*scores[2])[8];
    uint32_t rows, no_row;
    int8_t *queries;
    uint32_t padded_dim;
    const int8_t *keys;
    uint32_t key_step;
    const int8_t *last_key;
    uint32_t full_blocks, tail_keys, score_shift;
    const uint16_t (*powers)[2];
    uint32_t target, out_multiplier;
    const int8_t *values, *last_values;
    uint32_t value_step, head_dim;
    int16_t *sums;
    int8_t *output;
    uint32_t out_shift, key_runs, run_keys, lanes;
} __attribute__((aligned(16))) tvit_attention_work;

// 2^(15-n) for two rows of scores at once, shared by the parts; a part's work, scores, queries and sums.
#define TVIT_ATTENTION_POWERS_BYTES 4096u
uint32_t tvit_attention_part_bytes_pie(uint32_t tokens, uint32_t head_dim); // buffer_sizes.c

// Rows that a table is read or written beyond its ends, by loads and stores that are ahead or behind.
#define TVIT_ATTENTION_SPARE_ROWS 2u

// A block of keys [dims][16], dims a multiple of 16, to [16][dims].
void tvit_attention_transpose_pie(const int8_t *block, int8_t *keys, uint32_t dims);

// `vectors` vectors, each of one of the values.
void tvit_attention_fill_pie(const int16_t *values, void *to, uint32_t vectors);

// `vectors` of 16 bytes.
void tvit_attention_copy_pie(const int8_t *from, int8_t *to, uint32_t vectors);

// Queries [head_dim][16] from `block` to work->queries, 0 in the rows up to padded_dim, then rows 0 and 1 again. Not 0
// if the sum of squares of any query is too large for scores in 20 bits.
uint32_t tvit_attention_load_queries_pie(const tvit_attention_work *work, const int8_t *block);
uint32_t tvit_attention_load_narrow_queries_pie(const tvit_attention_work *work, const int8_t *block);

// Scores >> score_shift of all keys, in the order of the rows, saturated to -32768 ... 32767, and the highest. Not 0 if
// one of the highest is below work->low.
uint32_t tvit_attention_scores_pie(tvit_attention_work *work);
uint32_t tvit_attention_narrow_scores_pie(tvit_attention_work *work);

// The table at work->powers: 2^(15-n) for n = 0 ... 15 and 0 above, of i % 32 and of i / 32.
void tvit_softmax_powers_pie(uint16_t (*powers)[2]);

// scores = max(scores, lowest)
void tvit_softmax_clamp_pie(int16_t (*scores)[8], uint32_t rows, const int16_t *lowest);

// Scores to e and its sums, r and delta; e + delta to p, [rows][16] bytes in place of the first half; z and w.
void tvit_softmax_pie(tvit_attention_work *work);
void tvit_softmax_narrow_pie(tvit_attention_work *work);

// p times values: int16 sums c >> 4, then the outputs.
void tvit_attention_values_pie(tvit_attention_work *work);
void tvit_attention_narrow_values_pie(tvit_attention_work *work);
void tvit_attention_outputs_pie(const tvit_attention_work *work);
void tvit_attention_narrow_outputs_pie(const tvit_attention_work *work);

#else

/* clang-format off */
/*
 * Sixteen 20-bit lanes of QACC, shifted right by \shift and saturated to 16 bits, to \low (lanes 0 to 7) and \high. No
 * instruction hands out 16 bits of a 20-bit lane. So: y = lane >> shift; h = y >> 8, saturated; back to y from memory;
 * l = y - 256 h - 128, saturated; the result is the bytes l ^ 0x80 and h. Where y does not fit both parts saturate: 32767
 * or -32768. \first and \second are instructions for the slots in front of SRCMB, which would wait right after a MAC.
 * 18 slots; a8 = 8, a9 = 0, a10 = WORK_QACC, q6 = 0x80, q7 = 1 in each byte.
 */
.macro lanes_to_i16 low, high, shift, first, second
    \first
    ee.srcmb.s8.qacc \high, \shift, 0
    ee.st.qacc_l.l.128.ip a10, 16
    ee.st.qacc_h.l.128.ip a10, 16
    ee.st.qacc_l.h.32.ip a10, 4
    ee.st.qacc_h.h.32.ip a10, -36
    ee.srcmb.s8.qacc \high, a8, 0
    ee.ld.qacc_l.l.128.ip a10, 16
    ee.ld.qacc_h.l.128.ip a10, 16
    ee.ld.qacc_l.h.32.ip a10, 4
    ee.ld.qacc_h.h.32.ip a10, -36
    ee.vsmulas.s8.qacc \high, q6, 0
    ee.vsmulas.s8.qacc \high, q6, 0
    ee.vsmulas.s8.qacc q6, q7, 0
    \second
    ee.srcmb.s8.qacc \low, a9, 0
    ee.xorq \low, \low, q6
    ee.vzip.8 \low, \high
.endm
/* clang-format on */

#endif

#endif
