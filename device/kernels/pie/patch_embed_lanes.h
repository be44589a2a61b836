/* SPDX-License-Identifier: Apache-2.0 */
/* Between patch_embed.c and patch_embed_lanes.S: rows of sixteen tokens become vectors of sixteen lanes. */
#ifndef TVIT_PIE_PATCH_EMBED_LANES_H
#define TVIT_PIE_PATCH_EMBED_LANES_H

#include <stdint.h>

// Transposes bytes of sixteen rows: out[i][lane] = rows[lane][offset + i] ^ flip, for i < 16 * groups. All addresses
// are multiples of 16.
typedef struct {
    const uint8_t *rows[16];
    uint32_t offset;
    uint32_t groups; // 1 or more
    uint8_t *out;    // [16 * groups][16]
    uint8_t flip, unused[3];
    uint8_t one_row[16] __attribute__((aligned(16))); // memory to work in
} tvit_transpose_args;

void tvit_transpose_lanes(tvit_transpose_args *args);

// out[i] = values[i] * *multiplier, for i < 16 * vectors; values i8, multiplier 1 ... 255. 16-byte aligned.
void tvit_scale_lanes(const int8_t *values, const int16_t *multiplier, uint32_t vectors, int16_t *out);

#endif
