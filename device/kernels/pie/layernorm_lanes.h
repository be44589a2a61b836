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

#include <stdint.h>

// QACC in memory: eight lanes of 40 bits. Lane i is at byte 5 i of the 20 bytes of its half.
typedef struct {
    uint32_t low[2][4]; // bytes 0 to 15 of lanes 0 to 3, of lanes 4 to 7
    uint32_t high[2];   // bytes 16 to 19
    uint32_t unused[2];
} tvit_qacc_image;

// In the order in which tvit_layernorm_channels_lanes loads them.
typedef struct {
    int16_t w1[8], al[8], e0[8], ah[8], w0[8];
} tvit_layernorm_half;

typedef struct {
    tvit_layernorm_half half[2];
} tvit_layernorm_record;

// Nine records, by (gamma + 1) * 3 + beta + 1, in the workspace; behind them, where they fit, a pointer a channel.
enum { TVIT_LAYERNORM_RECORDS_BYTES = 9 * sizeof(tvit_layernorm_record) };

// The factors of a block's tokens.
typedef struct {
    uint32_t a[16];
    int16_t e0[16];
    int32_t offset[16];
    int32_t minus_beta[3]; // -(beta * beta_unit + 2^(shift-1)) for beta = -1, 0, 1
    uint32_t low_bits;     // 0x7fff
} tvit_layernorm_factors_of_lanes;

typedef struct {
    const int16_t *x;                            // [channels][16]
    const tvit_layernorm_record *const *records; // of each channel
    int8_t *out;                                 // [channels][16]
    uint32_t channels;                           // 3 or more
    uint32_t shift;                              // 0 ... 16: the operator's less 8
    int16_t scalars[2];                          // -2^15, -1
    int8_t minimum;                              // -127
} tvit_layernorm_channels;

// The sums of x and of x*x over 1 to 512 channels (more squares may not fit 40 bits) of half a block; x + 8 is the
// upper half.
void tvit_layernorm_sums_lanes(const int16_t *x, uint32_t channels, tvit_qacc_image sums[2]);

// The records of gamma = -1 (0 to 2) and gamma = 1 (6 to 8). |offset| + |minus_beta| < 2^30 - 2^15.
void tvit_layernorm_records_lanes(const tvit_layernorm_factors_of_lanes *lanes, tvit_layernorm_record *records);

// y of all channels of a block.
void tvit_layernorm_channels_lanes(const tvit_layernorm_channels *args);

#endif
