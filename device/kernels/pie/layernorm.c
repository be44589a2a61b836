// SPDX-License-Identifier: Apache-2.0
// LayerNorm (CONTRACT.md, section 5) of sixteen tokens at a time: sums over the channels and the channels themselves in
// lanes (layernorm_lanes.h), what is one number a token in 32-bit arithmetic (layernorm_scale.h). Tokens whose factors
// do not fit the lanes, and operators with a shift below 8 or fewer than 3 channels, take a plain loop.
#include <stddef.h>

#include "layernorm_lanes.h"
#include "layernorm_scale.h"
#include "pie_kernels.h"
#include "workspace.h"

_Static_assert(TVIT_MAX_CORES == 2, "one block at most is left over");

enum { LANES = TVIT_BLOCK_TOKENS, MOST_SQUARES = 512 }; // 512 * 32767^2 < 2^39

#define AT(type, member, offset) (offsetof(type, member) == (offset))
_Static_assert(AT(tvit_layernorm_sums, s2_low, SUMS_S2_LOW) && AT(tvit_layernorm_sums, s2_high, SUMS_S2_HIGH) &&
                   AT(tvit_layernorm_sums, qacc, SUMS_QACC) &&
                   AT(tvit_layernorm_factors_of_lanes, not_e0, LANES_NOT_E0) &&
                   AT(tvit_layernorm_factors_of_lanes, offset, LANES_OFFSET) &&
                   AT(tvit_layernorm_factors_of_lanes, minus_beta, LANES_MINUS_BETA) &&
                   AT(tvit_layernorm_factors_of_lanes, low_bits, LANES_LOW_BITS) &&
                   AT(tvit_layernorm_scaling, constants.epsilon, SCALING_EPSILON) &&
                   AT(tvit_layernorm_scaling, constants.n, SCALING_N) &&
                   AT(tvit_layernorm_scaling, constants.reciprocal, SCALING_RECIPROCAL) &&
                   AT(tvit_layernorm_scaling, constants.reciprocal_shift, SCALING_RECIPROCAL_SHIFT) &&
                   AT(tvit_layernorm_scaling, constants.c_low, SCALING_C_LOW) &&
                   AT(tvit_layernorm_scaling, constants.c_cap, SCALING_C_CAP) &&
                   AT(tvit_layernorm_scaling, constants.c_top, SCALING_C_TOP) &&
                   AT(tvit_layernorm_scaling, constants.c_zeros, SCALING_C_ZEROS) &&
                   AT(tvit_layernorm_scaling, raise, SCALING_RAISE) &&
                   AT(tvit_layernorm_scaling, three, SCALING_THREE) &&
                   AT(tvit_layernorm_scaling, low_bits, SCALING_LOW_BITS) &&
                   AT(tvit_layernorm_scaling, most_offset, SCALING_MOST_OFFSET) &&
                   AT(tvit_layernorm_scaling, roots, SCALING_ROOTS) && AT(tvit_layernorm_scaling, plain, SCALING_PLAIN),
               "the assembly sources use these offsets");
#undef AT

typedef struct {
    const tvit_layernorm_args *args;
    tvit_layernorm_scaling scaling;
    tvit_layernorm_factors_of_lanes *factors;
    tvit_layernorm_record *records;               // by code
    const tvit_layernorm_record **channel_record; // of each channel
} operation;

static uint32_t code_of(const tvit_layernorm_args *args, uint32_t channel) {
    return args->gamma_beta[channel / 2] >> (channel % 2 * 4) & 15;
}

static void sum_block(tvit_layernorm_sums *sums, const int16_t *x, uint32_t n) {
    tvit_layernorm_sums_lanes(x, n < MOST_SQUARES ? n : MOST_SQUARES, sums);
    for (uint32_t done = MOST_SQUARES; done < n; done += MOST_SQUARES) {
        tvit_layernorm_sums more __attribute__((aligned(16)));
        tvit_layernorm_sums_lanes(x + (size_t)done * LANES, n - done < MOST_SQUARES ? n - done : MOST_SQUARES, &more);
        for (uint32_t lane = 0; lane < LANES; lane++) {
            sums->s1[lane] += more.s1[lane];
            sums->s2_low[lane] += more.s2_low[lane];
            sums->s2_high[lane] += more.s2_high[lane] + (sums->s2_low[lane] < more.s2_low[lane]);
        }
    }
}

// Channels of a block, of `rows` tokens.
typedef struct {
    const int16_t *x; // of channel 0
    int8_t *out;
    uint32_t rows, first, end;
} share;

static void normalize_token(const operation *op, const tvit_layernorm_sums *sums, const share *s, uint32_t lane) {
    const tvit_layernorm_args *args = op->args;
    const tvit_layernorm_factors f =
        tvit_layernorm_scale(&op->scaling.constants, sums->s1[lane], sums->s2_low[lane], sums->s2_high[lane]);
    const int32_t ah = (int32_t)(f.a >> 15), al = (int32_t)(f.a & 0x7fff), e0 = (int32_t)f.remainder;
    for (uint32_t i = s->first; i < s->end; i++) {
        const uint32_t code = code_of(args, i);
        const int32_t x = s->x[i * LANES + lane], gamma = (int32_t)code / 3 - 1, beta = (int32_t)code % 3 - 1;
        const uint32_t high = (uint32_t)(x * ah) + (uint32_t)f.offset; // may wrap, u does not
        const int32_t u = (int32_t)(high + (uint32_t)((x * al + e0) >> 15));
        const int32_t y = (gamma * u + beta * args->beta_unit + (1 << (args->shift - 1))) >> args->shift;
        s->out[i * LANES + lane] = (int8_t)(y > 127 ? 127 : y < -127 ? -127 : y);
    }
}

static void normalize(operation *op, const share *s) {
    const tvit_layernorm_args *args = op->args;
    tvit_layernorm_sums sums __attribute__((aligned(16)));
    uint32_t plain = ~0u;
    sum_block(&sums, s->x, args->n);
    if (args->shift >= 8 && s->end - s->first >= 3) {
        const tvit_layernorm_channels channels = {.x = s->x + s->first * LANES,
                                                  .records = op->channel_record + s->first,
                                                  .out = s->out + s->first * LANES,
                                                  .channels = s->end - s->first,
                                                  .shift = args->shift - 8,
                                                  .scalars = {-32768, -1},
                                                  .minimum = -127};
        op->scaling.plain = 0;
        tvit_layernorm_scale_lanes(&op->scaling, &sums, op->factors, s->rows);
        tvit_layernorm_records_lanes(op->factors, op->records);
        tvit_layernorm_channels_lanes(&channels);
        plain = op->scaling.plain;
    }
    for (uint32_t lane = 0; plain && lane < s->rows; lane++)
        if (plain >> (s->rows - lane) & 1) normalize_token(op, &sums, s, lane);
}

// The records of gamma = 0: y does not depend on x.
static void prepare_constant_channels(const operation *op) {
    for (uint32_t beta = 0; beta < 3; beta++) {
        int32_t w = op->factors->minus_beta[beta];
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
    const uint32_t blocks = (args->rows + LANES - 1) / LANES, parts = team->parts;
    const uint32_t magnitude = args->beta_unit < 0 ? 0u - (uint32_t)args->beta_unit : (uint32_t)args->beta_unit;
    const int32_t most = (1 << 30) - (1 << 15) - 1 - (int32_t)magnitude - (1 << (args->shift - 1));
    const size_t buffer = tvit_layernorm_buffer_size_pie(args);
    uint8_t *memory = tvit_pie_workspaces[team->part].stream;
    tvit_layernorm_factors_of_lanes factors __attribute__((aligned(16)));
    operation op = {
        .args = args,
        .scaling = tvit_layernorm_prepare_scaling(args->n, args->c, args->epsilon, most),
        .factors = &factors,
        .records = (tvit_layernorm_record *)memory,
        .channel_record = buffer ? (void *)((uint8_t *)scratch + team->part * (buffer / TVIT_MAX_CORES))
                                 : (void *)(memory + TVIT_LAYERNORM_RECORDS_BYTES),
    };
    for (uint32_t lane = 0; lane < LANES; lane++) // those of padding stay
        factors.a[lane] = factors.not_e0[lane] = 0, factors.offset[lane] = 0;
    factors.low_bits = 0x7fff;
    for (int32_t beta = -1; beta < 2; beta++)
        factors.minus_beta[beta + 1] = -(beta * args->beta_unit + (1 << (args->shift - 1)));
    for (uint32_t i = 0; i < args->n; i += 2) {
        const uint32_t codes = args->gamma_beta[i / 2];
        op.channel_record[i] = &op.records[codes & 15];
        if (i + 1 < args->n) op.channel_record[i + 1] = &op.records[codes >> 4];
    }
    prepare_constant_channels(&op);
    // Each part has as many blocks; where one is left over, each has its channels.
    const uint32_t each = blocks / parts;
    for (uint32_t i = 0; i < each + (blocks % parts != 0); i++) {
        const uint32_t block = i < each ? each * team->part + i : blocks - 1, left = args->rows - block * LANES;
        const size_t at = (size_t)block * args->n * LANES;
        share s = {args->input + at, args->output + at, left < LANES ? left : LANES, 0, args->n};
        if (i == each) {
            s.first = args->n * team->part / parts;
            s.end = args->n * (team->part + 1) / parts;
        }
        normalize(&op, &s);
    }
}
