// SPDX-License-Identifier: Apache-2.0
// Drawn ternary matrices in the codecs of the model file (FORMAT.md, "Trits"), encoded in the simplest way.
#include "twins.h"

enum { TILE = 16 };

// Positions and signs of the instructions of a row in codec `gaps`; a longer gap is bridged by a pair that cancels.
static uint32_t instructions(const int8_t *row, uint32_t k, uint16_t *positions, uint8_t *signs) {
    uint32_t count = 0, at = 0;
    for (uint32_t i = 0; i < k; i++) {
        if (!row[i]) continue;
        for (uint32_t longest; i - at > (longest = count >= 3 ? 7u : 31u);) {
            at += longest;
            for (uint8_t sign = 0; sign < 2; sign++) {
                positions[count] = (uint16_t)at;
                signs[count++] = sign;
            }
        }
        at = i;
        positions[count] = (uint16_t)at;
        signs[count++] = row[i] < 0;
    }
    while (count < TVIT_GAPS_MIN_INSTRUCTIONS)
        for (uint8_t sign = 0; sign < 2; sign++) {
            positions[count] = (uint16_t)at;
            signs[count++] = sign;
        }
    return count;
}

// Writes the row's codes, returns its header.
static uint32_t encode_row(const int8_t *row, uint32_t k, uint8_t **out) {
    static uint16_t positions[2 * TVIT_GAPS_MAX_K + 8];
    static uint8_t signs[2 * TVIT_GAPS_MAX_K + 8];
    const uint32_t count = instructions(row, k, positions, signs);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t gap = i + 3 < count ? (uint32_t)positions[i + 3] - positions[i + 2] : 0;
        const uint8_t code = (uint8_t)(gap | (uint32_t)signs[i] << 3);
        if (i % 2)
            *(*out)++ |= (uint8_t)(code << 4);
        else
            **out = code;
    }
    if (count % 2) (*out)++;
    return count | (uint32_t)positions[0] << 12 | (uint32_t)(positions[1] - positions[0]) << 17 |
           (uint32_t)(positions[2] - positions[1]) << 22;
}

static const uint8_t *encode_gaps(uint32_t n, uint32_t k, const int8_t *trits) {
    const uint32_t tiles = (n + TILE - 1) / TILE;
    uint8_t *start = twins_take(4 * tiles + n * (4 + k + 16) + 4 * tiles + TVIT_GAPS_PADDING), *at = start + 4 * tiles;
    for (uint32_t tile = 0; tile < tiles; tile++) {
        const uint32_t first = tile * TILE, channels = n - first < TILE ? n - first : TILE;
        ((uint32_t *)start)[tile] = (uint32_t)(at - start);
        uint32_t *headers = (uint32_t *)at;
        at += 4 * channels;
        for (uint32_t c = 0; c < channels; c++)
            headers[c] = encode_row(trits + (size_t)(first + c) * k, k, &at);
        for (; (uintptr_t)at % 4; at++)
            *at = 0;
    }
    memset(at, 0, TVIT_GAPS_PADDING);
    return start;
}

static const uint8_t *encode_packed(uint32_t codec, uint32_t n, uint32_t k, const int8_t *trits) {
    const uint32_t per_byte = codec == TVIT_CODEC_2BIT ? 4 : 5;
    uint8_t *start = twins_take(tvit_matrix_bytes(codec, n, k)), *at = start;
    memset(start, 0, tvit_matrix_bytes(codec, n, k));
    for (uint32_t first = 0; first < n; first += TILE) {
        const uint32_t channels = n - first < TILE ? n - first : TILE, total = channels * k;
        for (uint32_t i = 0; i < total; i += per_byte) {
            uint32_t code = 0;
            for (uint32_t j = per_byte; j-- > 0;) {
                const int trit = i + j < total ? trits[(size_t)first * k + i + j] : 0;
                code = codec == TVIT_CODEC_2BIT ? code << 2 | (trit & 3) : code * 3 + (uint32_t)(trit + 1);
            }
            at[i / per_byte] = (uint8_t)code;
        }
        at += tvit_tile_bytes(codec, channels, k);
    }
    return start;
}

tvit_ternary_matrix twins_draw_matrix(uint32_t n, uint32_t k, int32_t xmax) {
    static const uint8_t of_256[] = {0, 3, 30, 128, 147, 177, 255};
    const uint32_t density = of_256[twins_draw() % sizeof of_256]; // of non-zero trits
    const int32_t sign = twins_one_in(4) ? (twins_draw() % 2 ? 1 : -1) : 0;
    tvit_ternary_matrix matrix = {.n = n, .k = k, .codec = twins_draw() % 3};
    if (k > TVIT_GAPS_MAX_K) matrix.codec = twins_draw() % 2;
    int8_t *trits = twins_take((size_t)n * k);
    uint32_t *channels = twins_take(4 * n);
    for (uint32_t o = 0; o < n; o++) {
        int32_t terms = 1; // a bridged gap adds a vector and subtracts it again
        for (uint32_t i = 0; i < k; i++) {
            const uint32_t value = twins_draw();
            const int32_t trit = (value & 255) < density || density == 255 ? (sign               ? sign
                                                                              : (value >> 8) % 2 ? 1
                                                                                                 : -1)
                                                                           : 0;
            trits[(size_t)o * k + i] = (int8_t)trit;
            terms += trit != 0;
        }
        const int32_t most = ((1 << 19) - 1) / (xmax * terms);
        const int32_t gain = twins_signed(1, most < 127 ? most : 127), room = (1 << 19) - 1 - gain * xmax * terms;
        const int32_t bias = twins_one_in(4) ? (twins_draw() % 2 ? room : -room) : twins_signed(-room, room);
        channels[o] = (uint32_t)bias << 12 | (uint32_t)gain << 5 | twins_between(0, twins_one_in(8) ? 31 : 14);
    }
    matrix.trits =
        matrix.codec == TVIT_CODEC_GAPS ? encode_gaps(n, k, trits) : encode_packed(matrix.codec, n, k, trits);
    matrix.channels = channels;
    twins_note("n", n);
    twins_note("k", k);
    twins_note("codec", matrix.codec);
    twins_note("density/256", density);
    return matrix;
}
