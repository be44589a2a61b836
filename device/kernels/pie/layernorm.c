// SPDX-License-Identifier: Apache-2.0
// LayerNorm (CONTRACT.md, section 5) of sixteen tokens at a time: sums over the channels and the channels themselves in
// lanes (layernorm_lanes.h), what is one number a token in 32-bit arithmetic (layernorm_scale.h). Tokens whose factors do
// not fit the lanes, and operators with a shift below 8 or fewer than 3 channels, take a plain loop.
#include <stddef.h>

#include "layernorm_lanes.h"
#include "layernorm_scale.h"
#include "pie_kernels.h"
#include "workspace.h"

enum { LANES = TVIT_BLOCK_TOKENS, MOST_SQUARES = 512 }; // 512 * 32767^2 < 2^39

typedef struct {
    const tvit_layernorm_args *args;
    tvit_layernorm_constants constants;
    int32_t most_offset;                          // in magnitude, for the lanes
    tvit_layernorm_record *records;               // by code
    const tvit_layernorm_record **channel_record; // of each channel
} operation;

static uint32_t code_of(const tvit_layernorm_args *args, uint32_t channel) {
    return args->gamma_beta[channel / 2] >> (channel % 2 * 4) & 15;
}

// Lanes 0 to 3 or 4 to 7 of QACC, of 40 bits: the lower 32 and the upper 8.
static void unpack_four(uint32_t low[4], uint32_t top[4], const tvit_qacc_image *image, uint32_t half) {
    const uint32_t *w = image->low[half];
    uint32_t last = image->high[half];
    low[0] = w[0];
    top[0] = w[1] & 0xff;
    low[1] = w[1] >> 8 | w[2] << 24;
    top[1] = w[2] >> 8 & 0xff;
    low[2] = w[2] >> 16 | w[3] << 16;
    top[2] = w[3] >> 16 & 0xff;
    low[3] = w[3] >> 24 | last << 8;
    top[3] = last >> 24;
}

// The sums of a block's tokens: s1, and s2 in two words.
typedef struct {
    int32_t s1[LANES];
    uint32_t s2_low[LANES], s2_high[LANES];
} block_sums;

static void add_up(block_sums *sums, const int16_t *x, uint32_t n) {
    *sums = (block_sums){{0}, {0}, {0}};
    for (uint32_t done = 0; done < n; done += MOST_SQUARES) {
        uint32_t count = n - done < MOST_SQUARES ? n - done : MOST_SQUARES;
        for (uint32_t half = 0; half < 2; half++) {
            tvit_qacc_image images[2] __attribute__((aligned(16)));
            tvit_layernorm_sums_lanes(x + (size_t)done * LANES + half * 8, count, images);
            for (uint32_t four = 0; four < 2; four++) {
                uint32_t s1[4], s2[4], top[4], lane = half * 8 + four * 4;
                unpack_four(s1, top, &images[0], four);
                for (uint32_t i = 0; i < 4; i++)
                    sums->s1[lane + i] += (int32_t)s1[i];
                unpack_four(s2, top, &images[1], four);
                for (uint32_t i = 0; i < 4; i++) {
                    uint32_t old = sums->s2_low[lane + i];
                    sums->s2_low[lane + i] = old + s2[i];
                    sums->s2_high[lane + i] += top[i] + (old + s2[i] < old);
                }
            }
        }
    }
}

static void normalize_token(const tvit_layernorm_args *args, const int16_t *x, int8_t *out,
                            const tvit_layernorm_factors *f) {
    int32_t ah = (int32_t)(f->a >> 15), al = (int32_t)(f->a & 0x7fff), e0 = (int32_t)f->remainder;
    for (uint32_t i = 0; i < args->n; i++, x += LANES, out += LANES) {
        uint32_t code = code_of(args, i);
        uint32_t high = (uint32_t)(*x * ah) + (uint32_t)f->offset; // may wrap, u does not
        int32_t u = (int32_t)(high + (uint32_t)((*x * al + e0) >> 15));
        int32_t gamma = (int32_t)code / 3 - 1, beta = (int32_t)code % 3 - 1;
        int32_t y = (gamma * u + beta * args->beta_unit + (1 << (args->shift - 1))) >> args->shift;
        *out = (int8_t)(y > 127 ? 127 : y < -127 ? -127 : y);
    }
}

static void normalize_block(const operation *op, const int16_t *x, int8_t *out, uint32_t rows) {
    const tvit_layernorm_args *args = op->args;
    tvit_layernorm_factors_of_lanes lanes __attribute__((aligned(16)));
    tvit_layernorm_factors factors[LANES];
    block_sums sums;
    uint32_t plain = 0; // a bit for each token that the lanes cannot do
    add_up(&sums, x, args->n);
    for (uint32_t i = 0; i < 3; i++)
        lanes.minus_beta[i] = -(((int32_t)i - 1) * args->beta_unit + (1 << (args->shift - 1)));
    lanes.low_bits = 0x7fff;
    for (uint32_t lane = 0; lane < LANES; lane++) {
        tvit_layernorm_factors f = {0, 0, 0};
        if (lane < rows)
            f = tvit_layernorm_scale(&op->constants, sums.s1[lane],
                                     (uint64_t)sums.s2_high[lane] << 32 | sums.s2_low[lane]);
        factors[lane] = f;
        if (f.offset > op->most_offset || f.offset < -op->most_offset) {
            plain |= 1u << lane;
            f = (tvit_layernorm_factors){0, 0, 0};
        }
        lanes.al[lane] = (int16_t)(f.a & 0x7fff);
        lanes.ah[lane] = (int16_t)(f.a >> 15);
        lanes.e0[lane] = (int16_t)f.remainder;
        lanes.offset[lane] = f.offset;
    }
    if (args->shift < 8 || args->n < 3)
        plain = 0xffff;
    else {
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
        if (plain >> lane & 1) normalize_token(args, x + lane, out + lane, &factors[lane]);
}

// The records of gamma = 0: y does not depend on x.
static void prepare_constant_channels(const operation *op) {
    const tvit_layernorm_args *args = op->args;
    for (uint32_t beta = 0; beta < 3; beta++) {
        int32_t w = -(((int32_t)beta - 1) * args->beta_unit + (1 << (args->shift - 1)));
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
    for (uint32_t i = 0; i < args->n; i++)
        op.channel_record[i] = &op.records[code_of(args, i)];
    prepare_constant_channels(&op);
    for (uint32_t block = first; block < end; block++) {
        size_t at = (size_t)block * args->n * LANES;
        uint32_t left = args->rows - block * LANES;
        normalize_block(&op, args->input + at, args->output + at, left < LANES ? left : LANES);
    }
}
