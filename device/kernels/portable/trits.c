// SPDX-License-Identifier: Apache-2.0
// Trits of the model file to pairs of channels, and the dot product with them.
//
// A pair holds two trits in one signed word, low + high * 65536, so one 32-bit multiplication and addition serve two
// channels. A lane's sum stays within 16 bits for 128 unsigned bytes: 128 * 255 = 32640 < 32768.
#include "arithmetic.h"
#include "tvit/kernels.h"

#define LANE_TERMS 128u

uint32_t tvit_tile_bytes(uint32_t codec, uint32_t channels, uint32_t k) {
    uint32_t trits = channels * k;
    uint32_t bytes = codec == TVIT_CODEC_2BIT ? (trits + 3) / 4 : (trits + 4) / 5;
    return (bytes + 3) & ~3u;
}

uint32_t tvit_matrix_bytes(uint32_t codec, uint32_t n, uint32_t k) {
    uint32_t rest = n % TVIT_TILE_CHANNELS;
    uint32_t bytes = n / TVIT_TILE_CHANNELS * tvit_tile_bytes(codec, TVIT_TILE_CHANNELS, k);
    return rest ? bytes + tvit_tile_bytes(codec, rest, k) : bytes;
}

// The stream of a tile, read trit by trit.
typedef struct {
    const uint8_t *next;
    uint32_t code; // trits of the current byte that are not yet read
    uint32_t left; // how many
} trit_reader;

static int32_t next_base3(trit_reader *reader) {
    if (reader->left == 0) {
        reader->code = *reader->next++;
        reader->left = 5;
    }
    uint32_t rest = reader->code * 171u >> 9; // code / 3 for code < 256
    int32_t trit = (int32_t)(reader->code - 3 * rest) - 1;
    reader->code = rest;
    reader->left--;
    return trit;
}

static int32_t next_2bit(trit_reader *reader) {
    if (reader->left == 0) {
        reader->code = *reader->next++;
        reader->left = 4;
    }
    int32_t trit = (int32_t)(reader->code & 1) - (int32_t)(reader->code & 2);
    reader->code >>= 2;
    reader->left--;
    return trit;
}

typedef int32_t (*next_trit)(trit_reader *reader);

// One channel into the low (lane 0) or high half of its pairs; the low one comes first. Returns the sum of the trits.
static inline int32_t decode_channel(trit_reader *reader, next_trit next, int32_t *pair, uint32_t k, uint32_t lane) {
    int32_t sum = 0;
    for (uint32_t i = 0; i < k; i++, pair += 4) {
        int32_t trit = next(reader);
        sum += trit;
        *pair = lane ? *pair + trit * 65536 : trit;
    }
    return sum;
}

static inline void decode(trit_reader *reader, next_trit next, uint32_t count, uint32_t k, int32_t (*pairs)[4],
                          int32_t sums[8]) {
    for (uint32_t c = 0; c < 8; c++) {
        int32_t *pair = pairs[0] + c / 2;
        if (c < count) {
            sums[c] = decode_channel(reader, next, pair, k, c & 1);
            continue;
        }
        sums[c] = 0;
        if (c & 1) continue;
        for (uint32_t i = 0; i < k; i++)
            pair[4 * i] = 0;
    }
}

// One channel of the codec gaps: its instructions add to pairs that are 0 or hold the low lane. Returns their sum.
static int32_t add_instructions(uint32_t header, const uint8_t *codes, int32_t *pair, int32_t unit) {
    uint32_t first_gap = TVIT_GAPS_FIRST_GAP(header), second_gap = TVIT_GAPS_SECOND_GAP(header), code = 0;
    int32_t sum = 0;
    pair += 4 * TVIT_GAPS_POSITION(header);
    for (uint32_t left = TVIT_GAPS_INSTRUCTIONS(header), low = 1; left; left--, low ^= 1) {
        code = low ? *codes++ : code >> 4;
        int32_t sign = 1 - (int32_t)(code >> 2 & 2);
        sum += sign;
        *pair += sign * unit;
        pair += 4 * first_gap; // behind the last instruction the gaps are 0
        first_gap = second_gap;
        second_gap = code & 7;
    }
    return sum;
}

static void decode_gaps(const tvit_ternary_matrix *matrix, uint32_t first, uint32_t count, int32_t (*pairs)[4],
                        int32_t sums[8]) {
    uint32_t tile = first / TVIT_TILE_CHANNELS, before = first % TVIT_TILE_CHANNELS;
    uint32_t left = matrix->n - tile * TVIT_TILE_CHANNELS, k = matrix->k;
    const uint8_t *start = matrix->trits + ((const uint32_t *)matrix->trits)[tile];
    const uint32_t *headers = (const uint32_t *)start;
    const uint8_t *codes = (const uint8_t *)(headers + (left < TVIT_TILE_CHANNELS ? left : TVIT_TILE_CHANNELS));
    for (uint32_t i = 0; i < k; i++)
        pairs[i][0] = pairs[i][1] = pairs[i][2] = pairs[i][3] = 0;
    for (uint32_t c = 0; c < before; c++)
        codes += (TVIT_GAPS_INSTRUCTIONS(headers[c]) + 1) / 2;
    for (uint32_t c = 0; c < 8; c++) {
        sums[c] = 0;
        if (c >= count) continue;
        uint32_t header = headers[before + c];
        sums[c] = add_instructions(header, codes, pairs[0] + c / 2, c & 1 ? 65536 : 1);
        codes += (TVIT_GAPS_INSTRUCTIONS(header) + 1) / 2;
    }
}

static void decode_tiles(const tvit_ternary_matrix *matrix, uint32_t first, uint32_t count, int32_t (*pairs)[4],
                         int32_t sums[8]) {
    uint32_t k = matrix->k, tile = first / TVIT_TILE_CHANNELS;
    uint32_t skip = first % TVIT_TILE_CHANNELS * k; // trits of the tile before the first channel
    uint32_t per_byte = matrix->codec == TVIT_CODEC_2BIT ? 4 : 5;
    const uint8_t *start = matrix->trits + tile * tvit_tile_bytes(matrix->codec, TVIT_TILE_CHANNELS, k);
    trit_reader reader = {start + skip / per_byte, 0, 0};
    if (matrix->codec == TVIT_CODEC_2BIT) {
        for (skip %= 4; skip; skip--)
            next_2bit(&reader);
        decode(&reader, next_2bit, count, k, pairs, sums);
    } else {
        for (skip %= 5; skip; skip--)
            next_base3(&reader);
        decode(&reader, next_base3, count, k, pairs, sums);
    }
}

void tvit_trits_decode_portable(const tvit_ternary_matrix *matrix, uint32_t first, uint32_t count, int32_t (*pairs)[4],
                                int32_t sums[8]) {
    if (matrix->codec == TVIT_CODEC_GAPS)
        decode_gaps(matrix, first, count, pairs, sums);
    else
        decode_tiles(matrix, first, count, pairs, sums);
}

// lanes[j] = sum of pairs[i][j] * (x[i] ^ flip), for at most LANE_TERMS terms.
TVIT_INNER_LOOP void dot_lanes(int32_t lanes[4], const int32_t *w, const uint8_t *x, uint32_t count, uint32_t flip) {
    int32_t a = 0, b = 0, c = 0, d = 0;
    const uint8_t *end = x + (count & ~3u);
    for (; x != end; x += 4, w += 16) {
        int32_t v = (int32_t)(x[0] ^ flip);
        a += w[0] * v, b += w[1] * v, c += w[2] * v, d += w[3] * v;
        v = (int32_t)(x[1] ^ flip);
        a += w[4] * v, b += w[5] * v, c += w[6] * v, d += w[7] * v;
        v = (int32_t)(x[2] ^ flip);
        a += w[8] * v, b += w[9] * v, c += w[10] * v, d += w[11] * v;
        v = (int32_t)(x[3] ^ flip);
        a += w[12] * v, b += w[13] * v, c += w[14] * v, d += w[15] * v;
    }
    for (end += count & 3u; x != end; x++, w += 4) {
        int32_t v = (int32_t)(*x ^ flip);
        a += w[0] * v, b += w[1] * v, c += w[2] * v, d += w[3] * v;
    }
    lanes[0] = a, lanes[1] = b, lanes[2] = c, lanes[3] = d;
}

void tvit_ternary_dot_portable(int32_t sums[8], const int32_t (*pairs)[4], const uint8_t *x, uint32_t count,
                               uint32_t flip) {
    while (count) {
        uint32_t terms = count < LANE_TERMS ? count : LANE_TERMS;
        int32_t lanes[4];
        dot_lanes(lanes, pairs[0], x, terms, flip);
        for (uint32_t j = 0; j < 4; j++) { // low + high * 65536: the low half is the signed 16-bit remainder
            sums[2 * j] += (int16_t)lanes[j];
            sums[2 * j + 1] += (lanes[j] + 0x8000) >> 16;
        }
        count -= terms;
        pairs += terms;
        x += terms;
    }
}
