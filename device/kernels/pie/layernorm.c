// SPDX-License-Identifier: Apache-2.0
// LayerNorm (CONTRACT.md, section 5) of sixteen tokens at a time: sums over the channels and the channels themselves in
// lanes (layernorm_lanes.h), what is one number a token in 32-bit arithmetic (layernorm_scale.h). Tokens whose factors
// do not fit the lanes, and operators with a shift below 8 or fewer than 3 channels, take a plain loop.
#include <stddef.h>

#include "layernorm_lanes.h"
#include "layernorm_scale.h"
#include "pie_kernels.h"
#include "workspace.h"

enum { LANES = TVIT_BLOCK_TOKENS, MOST_SQUARES = 512 }; // 512 * 32767^2 < 2^39

typedef struct {
    const tvit_layernorm_args *args;
    tvit_layernorm_constants constants;
    int32_t minus_beta[3];                        // -(beta * beta_unit + 2^(shift-1)) for beta = -1, 0, 1
    int32_t most_offset;                          // in magnitude, for the lanes
    tvit_layernorm_record *records;               // by code
    const tvit_layernorm_record **channel_record; // of each channel
} operation;

static uint32_t code_of(const tvit_layernorm_args *args, uint32_t channel) {
    return args->gamma_beta[channel / 2] >> (channel % 2 * 4) & 15;
}

// The sums of a block's tokens: s1, and s2 in two words.
typedef struct {
    int32_t s1[LANES];
    uint32_t s2_low[LANES], s2_high[LANES];
} block_sums;

// Lanes first ... first + 3 of the sums, which are 20 bytes, 40 bits a lane: w[0] ... w[3] and the last word.
static inline void unpack_four(block_sums *sums, uint32_t first, const uint32_t *w, uint32_t last) {
    int32_t *s1 = sums->s1 + first;
    s1[0] = (int32_t)w[0];
    s1[1] = (int32_t)(w[1] >> 8 | w[2] << 24);
    s1[2] = (int32_t)(w[2] >> 16 | w[3] << 16);
    s1[3] = (int32_t)(w[3] >> 24 | last << 8);
}

static inline void unpack_four_squares(block_sums *sums, uint32_t first, const uint32_t *w, uint32_t last) {
    uint32_t *low = sums->s2_low + first, *high = sums->s2_high + first;
    low[0] = w[0];
    high[0] = w[1] & 0xff;
    low[1] = w[1] >> 8 | w[2] << 24;
    high[1] = w[2] >> 8 & 0xff;
    low[2] = w[2] >> 16 | w[3] << 16;
    high[2] = w[3] >> 16 & 0xff;
    low[3] = w[3] >> 24 | last << 8;
    high[3] = last >> 24;
}

// The sums of 1 ... 512 channels.
static void sum_channels(block_sums *sums, const int16_t *x, uint32_t channels) {
    for (uint32_t half = 0; half < 2; half++) {
        tvit_qacc_image images[2] __attribute__((aligned(16)));
        tvit_layernorm_sums_lanes(x + half * 8, channels, images);
        for (uint32_t four = 0; four < 2; four++) {
            unpack_four(sums, half * 8 + four * 4, images[0].low[four], images[0].high[four]);
            unpack_four_squares(sums, half * 8 + four * 4, images[1].low[four], images[1].high[four]);
        }
    }
}

static void sum_block(block_sums *sums, const int16_t *x, uint32_t n) {
    sum_channels(sums, x, n < MOST_SQUARES ? n : MOST_SQUARES);
    for (uint32_t done = MOST_SQUARES; done < n; done += MOST_SQUARES) {
        block_sums more;
        sum_channels(&more, x + (size_t)done * LANES, n - done < MOST_SQUARES ? n - done : MOST_SQUARES);
        for (uint32_t lane = 0; lane < LANES; lane++) {
            sums->s1[lane] += more.s1[lane];
            sums->s2_low[lane] += more.s2_low[lane];
            sums->s2_high[lane] += more.s2_high[lane] + (sums->s2_low[lane] < more.s2_low[lane]);
        }
    }
}

static inline tvit_layernorm_factors scale_token(const operation *op, const block_sums *sums, uint32_t lane) {
    return tvit_layernorm_scale(&op->constants, sums->s1[lane], sums->s2_low[lane], sums->s2_high[lane]);
}

static void normalize_token(const operation *op, const block_sums *sums, uint32_t lane, const int16_t *x, int8_t *out) {
    const tvit_layernorm_args *args = op->args;
    const tvit_layernorm_factors f = scale_token(op, sums, lane);
    const int32_t ah = (int32_t)(f.a >> 15), al = (int32_t)(f.a & 0x7fff), e0 = (int32_t)f.remainder;
    for (uint32_t i = 0; i < args->n; i++, x += LANES, out += LANES) {
        uint32_t code = code_of(args, i);
        uint32_t high = (uint32_t)(*x * ah) + (uint32_t)f.offset; // may wrap, u does not
        int32_t u = (int32_t)(high + (uint32_t)((*x * al + e0) >> 15));
        int32_t gamma = (int32_t)code / 3 - 1, beta = (int32_t)code % 3 - 1;
        int32_t y = (gamma * u + beta * args->beta_unit + (1 << (args->shift - 1))) >> args->shift;
        *out = (int8_t)(y > 127 ? 127 : y < -127 ? -127 : y);
    }
}

// Tokens without room in the lanes: a bit each.
static uint32_t scale_block(const operation *op, const block_sums *sums, uint32_t rows,
                            tvit_layernorm_factors_of_lanes *lanes) {
    uint32_t plain = 0;
    const int32_t most = op->most_offset;
    for (uint32_t lane = 0; lane < rows; lane++) {
        tvit_layernorm_factors f = scale_token(op, sums, lane);
        if (f.offset > most || f.offset < -most) {
            plain |= 1u << lane;
            f.offset = 0;
        }
        lanes->a[lane] = f.a;
        lanes->e0[lane] = (int16_t)f.remainder;
        lanes->offset[lane] = f.offset;
    }
    for (uint32_t lane = rows; lane < LANES; lane++) // padding
        lanes->a[lane] = (uint32_t)(lanes->offset[lane] = lanes->e0[lane] = 0);
    return plain;
}

static void normalize_block(const operation *op, const int16_t *x, int8_t *out, uint32_t rows) {
    const tvit_layernorm_args *args = op->args;
    block_sums sums;
    uint32_t plain = 0xffff;
    sum_block(&sums, x, args->n);
    if (args->shift >= 8 && args->n >= 3) {
        tvit_layernorm_factors_of_lanes lanes __attribute__((aligned(16)));
        plain = scale_block(op, &sums, rows, &lanes);
        for (uint32_t i = 0; i < 3; i++)
            lanes.minus_beta[i] = op->minus_beta[i];
        lanes.low_bits = 0x7fff;
        tvit_layernorm_records_lanes(&lanes, op->records);
        tvit_layernorm_channels channels = {.x = x,
                                            .records = op->channel_record,
                                            .out = out,
                                            .channels = args->n,
                                            .shift = args->shift - 8,
                                            .scalars = {-32768, -1},
                                            .minimum = -127};
        tvit_layernorm_channels_lanes(&channels);
    }
    for (uint32_t lane = 0; plain && lane < rows; lane++)
        if (plain >> lane & 1) normalize_token(op, &sums, lane, x + lane, out + lane);
}

// The records of gamma = 0: y does not depend on x.
static void prepare_constant_channels(const operation *op) {
    for (uint32_t beta = 0; beta < 3; beta++) {
        int32_t w = op->minus_beta[beta];
        for (uint32_t half = 0; half < 2; half++)
            for (uint32_t i = 0; i < 8; i++) {
                tvit_layernorm_half *record = &op->records[3 + beta].half[half];
                record->w1[i] = (int16_t)(w >> 15);
                record->w0[i] = (int16_t)(w & 0x7fff);
                record->al[i] = record->ah[i] = record->e0[i] = 0;
            }
    }
}

void tvit_layernorm_pie(const tvit_layernorm_args *args, void *scratch, const tvit_team *team) {
    uint32_t blocks = (args->rows + LANES - 1) / LANES;
    uint32_t first = blocks * team->part / team->parts, end = blocks * (team->part + 1) / team->parts;
    uint32_t magnitude = args->beta_unit < 0 ? 0u - (uint32_t)args->beta_unit : (uint32_t)args->beta_unit;
    uint8_t *memory = tvit_pie_workspaces[team->part].stream;
    size_t buffer = tvit_layernorm_buffer_size_pie(args);
    operation op = {.args = args,
                    .constants = tvit_layernorm_prepare(args->n, args->c, args->epsilon),
                    .most_offset = (1 << 30) - (1 << 15) - 1 - (int32_t)magnitude - (1 << (args->shift - 1)),
                    .records = (tvit_layernorm_record *)memory,
                    .channel_record = buffer ? (void *)((uint8_t *)scratch + team->part * (buffer / TVIT_MAX_CORES))
                                             : (void *)(memory + TVIT_LAYERNORM_RECORDS_BYTES)};
    for (int32_t beta = -1; beta < 2; beta++)
        op.minus_beta[beta + 1] = -(beta * args->beta_unit + (1 << (args->shift - 1)));
    for (uint32_t i = 0; i < args->n; i += 2) {
        uint32_t codes = args->gamma_beta[i / 2];
        op.channel_record[i] = &op.records[codes & 15];
        if (i + 1 < args->n) op.channel_record[i + 1] = &op.records[codes >> 4];
    }
    prepare_constant_channels(&op);
    for (uint32_t block = first; block < end; block++) {
        size_t at = (size_t)block * args->n * LANES;
        uint32_t left = args->rows - block * LANES;
        normalize_block(&op, args->input + at, args->output + at, left < LANES ? left : LANES);
    }
}
