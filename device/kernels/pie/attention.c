// SPDX-License-Identifier: Apache-2.0
// Attention (CONTRACT.md, section 6) on token blocks, sixteen queries of one head at a time, a lane a query:
//
//     keys     [head_dim][16] of a block to [16][head_dim], in place
//     scores   QK^T, 16 MACs a slot          (attention_scores.S)
//     softmax  and its constants             (softmax.S)
//     values   PV, then the outputs          (attention_values.S)
//
// The parts of a team divide the blocks of all heads. A block's queries are copied before its outputs are written, and
// nobody else reads them, so the output may lie over them.
#include "attention_work.h"
#include "pie_kernels.h"

#include <stddef.h>
#include <string.h>

#define AT(offset, member)                                                                                             \
    _Static_assert(offsetof(tvit_attention_work, member) == (offset), "attention_work.h: " #member)
AT(WORK_EXP + WORK_EXP_HALF, exp[1]);
AT(WORK_HIGHEST, exp[0].highest);
AT(WORK_DIVISION + WORK_DIVISION_HALF, division[1]);
AT(WORK_FRACTION_MASK, fraction_mask);
AT(WORK_BYTES_80, bytes_80);
AT(WORK_BYTES_01, bytes_01);
AT(WORK_QACC, qacc);
AT(WORK_W, w);
AT(WORK_Z, z);
AT(WORK_ROUNDING, rounding);
AT(WORK_MINUS_127, minus_127);
AT(WORK_LOWEST, lowest);
AT(WORK_LOW, low);
AT(WORK_PADDING, padding);
AT(WORK_BOUND, bound);
AT(WORK_DIVISION, division);
AT(WORK_SCORES, scores);
AT(WORK_ROWS, rows);
AT(WORK_NO_ROW, no_row);
AT(WORK_QUERIES, queries);
AT(WORK_PADDED_DIM, padded_dim);
AT(WORK_KEYS, keys);
AT(WORK_KEY_STEP, key_step);
AT(WORK_LAST_KEY, last_key);
AT(WORK_FULL_BLOCKS, full_blocks);
AT(WORK_TAIL_KEYS, tail_keys);
AT(WORK_SCORE_SHIFT, score_shift);
AT(WORK_POWERS, powers);
AT(WORK_TARGET, target);
AT(WORK_OUT_MULTIPLIER, out_multiplier);
AT(WORK_VALUES, values);
AT(WORK_LAST_VALUES, last_values);
AT(WORK_VALUE_STEP, value_step);
AT(WORK_HEAD_DIM, head_dim);
AT(WORK_SUMS, sums);
AT(WORK_OUTPUT, output);
AT(WORK_OUT_SHIFT, out_shift);
AT(WORK_KEY_RUNS, key_runs);
AT(WORK_RUN_KEYS, run_keys);
AT(WORK_FILLED * 16, qacc);
_Static_assert(sizeof(tvit_attention_work) == WORK_BYTES, "attention_work.h");
_Static_assert(WORK_EXP_HALF == sizeof(tvit_lanes[7]), "attention_work.h");

// The smallest exp_multiplier of which the exponential of the largest distance is 0: 32767 * 15361 >> 15 >= 15 * 1024.
#define SMALLEST_MULTIPLIER 15361

typedef struct {
    const tvit_attention_args *args;
    tvit_attention_work *work;
    int8_t *padded_keys; // of one head, where head_dim is no multiple of 16; NULL otherwise
    uint32_t blocks;
} attention;

// QACC with one value in its lanes of 20 bits.
static void fill_qacc(uint32_t *words, int32_t value) {
    const uint32_t b = (uint32_t)value & 0xfffff;
    for (uint32_t half = 0; half < 2; half++) {
        words[4 * half] = b | b << 20;
        words[4 * half + 1] = b >> 12 | b << 8 | b << 28;
        words[4 * half + 2] = b >> 4 | b << 16;
        words[4 * half + 3] = b >> 16 | b << 4 | b << 24;
        words[8 + half] = b >> 8 | b << 12;
    }
}

static void start(attention *a, const tvit_attention_args *args, uint8_t *scratch, const tvit_team *team) {
    const uint32_t padded_dim = (args->head_dim + 15) & ~15u, rows = (args->tokens + 1) & ~1u;
    const uint32_t blocks = (args->tokens + 15) / 16, spare = TVIT_ATTENTION_SPARE_ROWS;
    uint16_t(*powers)[2] = (uint16_t(*)[2])scratch;
    scratch += TVIT_ATTENTION_POWERS_BYTES;
    a->args = args;
    a->blocks = blocks;
    a->padded_keys = NULL;
    if (padded_dim != args->head_dim) {
        a->padded_keys = (int8_t *)scratch;
        scratch += blocks * 16 * padded_dim;
    }
    scratch += team->part * tvit_attention_part_bytes_pie(args->tokens, args->head_dim);
    tvit_attention_work *w = a->work = (tvit_attention_work *)scratch;
    w->scores[0] = (int16_t(*)[8])(scratch + sizeof *w) + spare;
    w->scores[1] = w->scores[0] + rows + spare;
    w->queries = (int8_t *)(w->scores[1] + rows + spare);
    w->sums = w->scores[1][0];
    const int32_t m = args->exp_multiplier, half = (int32_t)args->out_shift - 1, factor = half < 14 ? half : 14;
    // Where the highest score is at least `low`, a score of -32768 instead of -32767 changes no exponential.
    const int32_t zero_from = (15 * 1024 * 32768 + m - 1) / m, low = m < SMALLEST_MULTIPLIER ? 0 : zero_from - 32767;
    const int16_t values[WORK_FILLED] = {
        3803,
        -11334,
        16384,
        -661,
        1,
        0,
        (int16_t)-m, // exp[0]
        3803,
        -11334,
        16384,
        -661,
        1,
        0,
        (int16_t)-m, // exp[1]
        1 << factor,
        1 << (half - factor), // rounding
        (int16_t)0x8181,
        -32767,
        (int16_t)low,
        0x7fe0,
        (int16_t)0x8080,
        0x0101,
    };
    tvit_attention_fill_pie(values, w, WORK_FILLED);
    w->out_shift = args->out_shift - 8;
    w->out_multiplier = args->out_multiplier;
    // |s|^2 <= squares of the query * 127^2 * head_dim < 2^38 puts scores into 20 bits, in any order of the sum.
    const uint32_t bound = (uint32_t)((((uint64_t)1 << 38) - 1) / (127 * 127)) / args->head_dim;
    fill_qacc(w->bound, -(int32_t)(bound < 1u << 19 ? bound + 1 : 1u << 19));
    w->rows = rows;
    w->head_dim = args->head_dim;
    w->padded_dim = padded_dim;
    w->full_blocks = blocks - 1;
    w->tail_keys = args->tokens - 16 * (blocks - 1);
    w->no_row = args->tokens & 1;
    w->score_shift = args->score_shift;
    w->powers = (const uint16_t(*)[2])powers;
    w->target = (4128 - (args->tokens + 1) / 2) << 19;
    w->key_step = a->padded_keys ? 0 : 16 * (args->k_columns - args->head_dim);
    w->key_runs = w->key_step || blocks == 1 ? blocks - 1 : 1;
    w->run_keys = w->key_step ? 16 : 16 * (blocks - 1);
    w->lanes = 0;
    w->value_step = 16 * args->v_columns;
    if (team->part + 1 == team->parts) tvit_softmax_powers_pie(powers);
}

static int8_t *block_of(int8_t *tensor, uint32_t columns, uint32_t block, uint32_t column) {
    return tensor + (size_t)(block * columns + column) * 16;
}

// The keys of one block of a head as rows.
static void turn_keys(const attention *a, uint32_t head, uint32_t block) {
    const tvit_attention_args *args = a->args;
    int8_t *keys = block_of(args->k, args->k_columns, block, head * args->head_dim), *memory = a->work->queries;
    const uint32_t bytes = args->head_dim * 16, padded_bytes = a->work->padded_dim * 16;
    if (a->padded_keys) {
        tvit_attention_copy_pie(keys, memory, args->head_dim);
        memset(memory + bytes, 0, padded_bytes - bytes);
        tvit_attention_transpose_pie(memory, a->padded_keys + block * padded_bytes, a->work->padded_dim);
    } else {
        tvit_attention_transpose_pie(keys, memory, args->head_dim);
        tvit_attention_copy_pie(memory, keys, args->head_dim);
    }
}

// The scores of one row, of any size.
static void wide_row(tvit_attention_work *w, const int8_t *key, uint32_t row) {
    for (uint32_t i = 0; i < (w->lanes <= 8 ? 8 : 16); i++) {
        const int8_t *query = w->queries + (w->lanes <= 8 ? 2 * i + 1 : i);
        int32_t s = 0;
        for (uint32_t d = 0; d < w->padded_dim; d++)
            s += query[16 * d] * key[d];
        s >>= w->score_shift;
        s = s > 32767 ? 32767 : s < -32767 ? -32767 : s;
        w->scores[i / 8][row][i % 8] = (int16_t)s;
        int16_t *highest = &w->exp[i / 8].highest[i % 8];
        if (s > *highest) *highest = (int16_t)s;
    }
}

// The same as tvit_attention_scores_pie for scores of any size.
static void wide_scores(tvit_attention_work *w) {
    uint32_t row = w->no_row;
    for (uint32_t half = 0; half < 2; half++) {
        memcpy(w->exp[half].highest, w->lowest, sizeof w->lowest);
        memcpy(w->scores[half][0], w->lowest, sizeof w->lowest);
    }
    for (uint32_t i = 0; i < w->tail_keys; i++)
        wide_row(w, w->last_key - i * w->padded_dim, row++);
    const int8_t *key = w->keys;
    for (uint32_t i = 0; i < 16 * w->full_blocks; i++, key += w->padded_dim + (i % 16 ? 0 : w->key_step))
        wide_row(w, key, row++);
}

// Scores that are too low for the exponential to be 0: -32768 becomes -32767, distances end at 32767.
static void clamp_scores(tvit_attention_work *w) {
    for (uint32_t half = 0; half < (w->lanes <= 8 ? 1 : 2); half++) {
        tvit_lanes lowest __attribute__((aligned(16)));
        for (uint32_t i = 0; i < 8; i++) {
            const int32_t highest = w->exp[half].highest[i];
            lowest[i] = (int16_t)((highest < 0 ? 0 : highest) - 32767);
        }
        tvit_softmax_clamp_pie(w->scores[half], w->rows, lowest);
    }
}

// Outputs with fewer than eight bits below the point.
static void shallow_outputs(const tvit_attention_work *w) {
    const uint32_t shift = w->out_shift + 8;
    const int32_t half = 1 << (shift - 1);
    const uint32_t lanes = w->lanes <= 8 ? 8 : 16;
    for (uint32_t d = 0; d < w->head_dim; d++)
        for (uint32_t i = 0; i < lanes; i++) {
            const int32_t o = (w->sums[lanes * d + i] * w->w[i / 8][i % 8] + half) >> shift;
            w->output[16 * d + i] = (int8_t)(o > 127 ? 127 : o < -127 ? -127 : o);
        }
}

// Of a block; a block of at most eight queries goes a shorter way.
typedef struct {
    uint32_t (*load_queries)(const tvit_attention_work *work, const int8_t *block);
    uint32_t (*scores)(tvit_attention_work *work);
    void (*softmax)(tvit_attention_work *work);
    void (*values)(tvit_attention_work *work);
    void (*outputs)(const tvit_attention_work *work);
} steps;

static const steps wide_steps = {tvit_attention_load_queries_pie, tvit_attention_scores_pie, tvit_softmax_pie,
                                 tvit_attention_values_pie, tvit_attention_outputs_pie},
                   narrow_steps = {tvit_attention_load_narrow_queries_pie, tvit_attention_narrow_scores_pie,
                                   tvit_softmax_narrow_pie, tvit_attention_narrow_values_pie,
                                   tvit_attention_narrow_outputs_pie};

// How many queries the next block has.
static void set_lanes(tvit_attention_work *w, uint32_t lanes) {
    if (lanes == w->lanes) return;
    w->lanes = lanes;
    const uint32_t step = lanes <= 8 ? 2 : 1;
    memset(w->padding, 0, sizeof w->padding);
    for (uint32_t i = lanes; i < 16 / step; i++)
        w->padding[step * i + step - 1] = 0xff;
}

static void attend(const attention *a, uint32_t head, uint32_t block) {
    const tvit_attention_args *args = a->args;
    tvit_attention_work *w = a->work;
    const uint32_t column = head * args->head_dim;
    const int8_t *q = block_of((int8_t *)args->q, args->q_columns, block, column);
    const uint32_t block_bytes = 16 * w->padded_dim + w->key_step;
    w->keys = a->padded_keys ? a->padded_keys : block_of(args->k, args->k_columns, 0, column);
    w->last_key = w->keys + w->full_blocks * block_bytes + (w->tail_keys - 1) * w->padded_dim;
    w->values = block_of((int8_t *)args->v, args->v_columns, 0, column);
    w->last_values = w->values + w->full_blocks * w->value_step;
    w->output = block_of(args->output, args->output_columns, block, column);
    set_lanes(w, block == w->full_blocks ? w->tail_keys : 16);
    const steps *run = w->lanes <= 8 ? &narrow_steps : &wide_steps;
    uint32_t low = 0;
    if (run->load_queries(w, q))
        wide_scores(w);
    else
        low = run->scores(w);
    if (low || args->exp_multiplier < SMALLEST_MULTIPLIER) clamp_scores(w);
    run->softmax(w);
    run->values(w);
    if (args->out_shift >= 8)
        run->outputs(w);
    else
        shallow_outputs(w);
}

static void wait_for_all(const tvit_team *team) {
    if (team->parts > 1) team->barrier(team);
}

void tvit_attention_pie(const tvit_attention_args *args, void *scratch, const tvit_team *team) {
    attention a;
    start(&a, args, scratch, team);
    if (a.padded_keys) {
        for (uint32_t head = 0; head < args->heads; head++) {
            if (head) wait_for_all(team); // for the keys of the head before
            for (uint32_t block = team->part; block < a.blocks; block += team->parts)
                turn_keys(&a, head, block);
            wait_for_all(team);
            for (uint32_t block = team->part; block < a.blocks; block += team->parts)
                attend(&a, head, block);
        }
        return;
    }
    const uint32_t all = args->heads * a.blocks;
    for (uint32_t i = team->part; i < all; i += team->parts)
        turn_keys(&a, i / a.blocks, i % a.blocks);
    wait_for_all(team);
    for (uint32_t i = team->part; i < all; i += team->parts)
        attend(&a, i / a.blocks, i % a.blocks);
}
