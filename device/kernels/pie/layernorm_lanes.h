/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between layernorm.c and layernorm_lanes.S: the sixteen tokens of a block, as two halves of eight int16 lanes.
 *
 * With A = ah * 2^15 + al and -B = offset * 2^15 + e0, the contract's u = (x * A - B) >> 15 is
 *
 *     ((x * al + e0) >> 15) + x * ah + offset
 *
 * and y = (u + beta * beta_unit + 2^(shift-1)) >> shift for gamma = 1. For gamma = -1 it is -u that counts, the same
 * with -al, -ah, -offset and 2^15 - 1 - e0; for gamma = 0 all four are 0. So every channel takes the same instructions,
 * and its gamma and beta only say which of nine records of factors they read. What is added last is one number a lane,
 * offset + beta * beta_unit + 2^(shift-1) = -(w1 * 2^15 + w0).
 */
#ifndef TVIT_PIE_LAYERNORM_LANES_H
#define TVIT_PIE_LAYERNORM_LANES_H

/* Offsets for the assembly sources; layernorm.c checks them. */
#define SUMS_S1 0
#define SUMS_S2_LOW 64
#define SUMS_S2_HIGH 128
#define SUMS_QACC 192

#define LANES_A 0
#define LANES_NOT_E0 64
#define LANES_OFFSET 128
#define LANES_MINUS_BETA 192
#define LANES_LOW_BITS 204

#define SCALING_EPSILON 0
#define SCALING_N 8
#define SCALING_RECIPROCAL 12
#define SCALING_RECIPROCAL_SHIFT 16
#define SCALING_C_LOW 20
#define SCALING_C_CAP 24
#define SCALING_C_TOP 28
#define SCALING_C_ZEROS 32
#define SCALING_RAISE 40
#define SCALING_THREE 44
#define SCALING_LOW_BITS 48
#define SCALING_MOST_OFFSET 52
#define SCALING_ROOTS 56
#define SCALING_PLAIN 60

#ifndef __ASSEMBLER__

#include "layernorm_records.h"
#include "layernorm_scale.h"

// The sums of a block's tokens: s1, s2 in two words.
typedef struct {
    int32_t s1[16];
    uint32_t s2_low[16], s2_high[16];
    uint32_t qacc[12]; // QACC in memory, to work in
} tvit_layernorm_sums;

// The factors of a block's tokens, and what they have in common.
typedef struct {
    uint32_t a[16];
    uint32_t not_e0[16]; // 2^15 - 1 - e0 in the lower 15 bits
    int32_t offset[16];
    int32_t minus_beta[3]; // -(beta * beta_unit + 2^(shift-1)) for beta = -1, 0, 1
    uint32_t low_bits;     // 0x7fff
} tvit_layernorm_factors_of_lanes;

// What the tokens' factors are made with.
typedef struct {
    tvit_layernorm_constants constants;
    uint32_t raise;       // n << 15
    uint32_t three;       // 3 << 30
    uint32_t low_bits;    // 0x7fff
    int32_t most_offset;  // in magnitude, for the lanes
    const uint8_t *roots; // tvit_layernorm_roots
    uint32_t plain;       // out, beginning with 0: bit i for the i-th last token, if its offset is too large
} tvit_layernorm_scaling;

static inline tvit_layernorm_scaling tvit_layernorm_prepare_scaling(uint32_t n, uint64_t c, uint64_t epsilon,
                                                                    int32_t most_offset) {
    tvit_layernorm_scaling scaling = {.constants = tvit_layernorm_prepare(n, c, epsilon),
                                      .raise = n << 15,
                                      .three = 3u << 30,
                                      .low_bits = 0x7fff,
                                      .most_offset = most_offset,
                                      .roots = tvit_layernorm_roots};
    return scaling;
}

typedef struct {
    const int16_t *x;                            // [channels][16]
    const tvit_layernorm_record *const *records; // of each channel
    int8_t *out;                                 // [channels][16]
    uint32_t channels;                           // 3 or more
    uint32_t shift;                              // 0 ... 16: the operator's less 8
    int16_t scalars[2];                          // -2^15, -1
    int8_t minimum;                              // -127
} tvit_layernorm_channels;

// The sums over 1 to 512 channels (more squares may not fit the 40 bits of a lane). 16-byte aligned.
void tvit_layernorm_sums_lanes(const int16_t *x, uint32_t channels, tvit_layernorm_sums *sums);

// The factors of the first tokens of a block; those whose offset is too large have 0 instead.
void tvit_layernorm_scale_lanes(tvit_layernorm_scaling *scaling, const tvit_layernorm_sums *sums,
                                tvit_layernorm_factors_of_lanes *factors, uint32_t tokens);

// The records of gamma = -1 (0 to 2) and gamma = 1 (6 to 8). |offset| + |minus_beta| < 2^30 - 2^15.
void tvit_layernorm_records_lanes(const tvit_layernorm_factors_of_lanes *factors, tvit_layernorm_record *records);

// y of all channels of a block.
void tvit_layernorm_channels_lanes(const tvit_layernorm_channels *args);

#endif
#endif
