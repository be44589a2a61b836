// SPDX-License-Identifier: Apache-2.0
// The factors of LayerNorm's channels in memory (layernorm_lanes.h says what they are).
#ifndef TVIT_PIE_LAYERNORM_RECORDS_H
#define TVIT_PIE_LAYERNORM_RECORDS_H

#include <stdint.h>

// Of eight tokens, in the order in which tvit_layernorm_channels_lanes loads them.
typedef struct {
    int16_t w1[8], al[8], e0[8], ah[8], w0[8];
} tvit_layernorm_half;

typedef struct {
    tvit_layernorm_half half[2];
} tvit_layernorm_record;

// Nine records, by (gamma + 1) * 3 + beta + 1, in the workspace; behind them, where they fit, a pointer a channel.
enum { TVIT_LAYERNORM_RECORDS_BYTES = 9 * sizeof(tvit_layernorm_record) };

#endif
