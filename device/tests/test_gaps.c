// SPDX-License-Identifier: Apache-2.0
// The codec gaps: what the loader accepts, against a plain reading of FORMAT.md, and the portable decoder. Matrices lie
// in a heap block that ends where DATA ends, so that the address sanitizer sees a byte too many.
#include <stdlib.h>
#include <string.h>

#include "../runtime/internal.h"
#include "check.h"
#include "draw.h"
#include "reference.h"

typedef struct {
    uint8_t *data; // channel records, then the matrix
    uint32_t bytes, trits_at, n, k;
    int8_t *trits;
} gaps_matrix;

static gaps_matrix make(uint32_t n, uint32_t k, const int8_t *trits) {
    gaps_matrix m = {.n = n, .k = k, .trits_at = (4 * n + 15) & ~15u};
    uint8_t *encoded = malloc(reference_matrix_room(n, k));
    uint32_t size = reference_encode(TVIT_CODEC_GAPS, n, k, trits, encoded);
    void *data = NULL;
    m.bytes = m.trits_at + size;
    if (posix_memalign(&data, 16, m.bytes)) abort();
    m.data = data;
    memset(m.data, 0, m.bytes);
    for (uint32_t i = 0; i < n; i++)
        ((uint32_t *)data)[i] = 1 << 5;
    memcpy(m.data + m.trits_at, encoded, size);
    m.trits = malloc((size_t)n * k);
    memcpy(m.trits, trits, (size_t)n * k);
    free(encoded);
    return m;
}

static gaps_matrix draw_matrix(void) {
    uint32_t n = (uint32_t)draw_between(1, 40), k = (uint32_t)draw_between(1, draw() % 8 ? 60 : 700);
    int32_t sparse = draw() % 3 ? 1 : draw_between(1, 60);
    int8_t *trits = malloc((size_t)n * k);
    for (uint32_t i = 0; i < n * k; i++) {
        int32_t drawn = draw_between(-sparse, sparse);
        trits[i] = (int8_t)(drawn > 1 || drawn < -1 ? 0 : drawn);
    }
    gaps_matrix m = make(n, k, trits);
    free(trits);
    return m;
}

static void drop(gaps_matrix *m) {
    free(m->data);
    free(m->trits);
}

static tvit_status check(const gaps_matrix *m, uint32_t bytes) {
    tvit_operator op = {.kind = TVIT_OP_LINEAR};
    tvit_model model = {.operators = &op, .operator_count = 1, .data = m->data, .data_bytes = bytes};
    op.param.linear = (tvit_linear_params){.k = m->k, .n = m->n, .codec = TVIT_CODEC_GAPS, .trits_at = m->trits_at};
    return tvit_check_matrix(&model, 0, NULL, 127, NULL);
}

// Values of a nibble, a field, a word.
static uint32_t word(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint32_t nibble(const uint8_t *codes, uint32_t i) {
    return codes[i / 2] >> (i & 1 ? 4 : 0) & 15;
}

// One row as FORMAT.md describes it: its trits and the most products held at once. 0 where it is malformed.
static int read_row(uint32_t header, const uint8_t *codes, uint32_t k, int *trits, uint32_t *most) {
    static uint32_t position[4096];
    uint32_t count = header & 4095;
    position[0] = header >> 12 & 31;
    position[1] = position[0] + (header >> 17 & 31);
    position[2] = position[1] + (header >> 22 & 31);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t gap = nibble(codes, i) & 7;
        if (i + 3 < count)
            position[i + 3] = position[i + 2] + gap;
        else if (gap)
            return 0;
    }
    if (count % 2 && nibble(codes, count)) return 0;
    memset(trits, 0, k * sizeof *trits);
    *most = 0;
    for (uint32_t i = 0, held = 0; i < count; i++) {
        if (position[i] >= k) return 0;
        held -= (uint32_t)abs(trits[position[i]]);
        trits[position[i]] += nibble(codes, i) & 8 ? -1 : 1;
        held += (uint32_t)abs(trits[position[i]]);
        if (held > *most) *most = held;
    }
    for (uint32_t i = 0; i < k; i++)
        if (abs(trits[i]) > 1) return 0;
    return 1;
}

// The whole matrix; trits[n][k] where it is well-formed.
static tvit_status read_matrix(const gaps_matrix *m, int *trits) {
    const uint8_t *data = m->data + m->trits_at;
    uint32_t bytes = m->bytes - m->trits_at, tiles = (m->n + 15) / 16, at = 4 * tiles;
    int overflow = 0;
    for (uint32_t tile = 0; tile < tiles; tile++) {
        uint32_t count = m->n - 16 * tile < 16 ? m->n - 16 * tile : 16, headers = at;
        if (at + 4 * count > bytes || word(data + 4 * tile) != at) return TVIT_BAD_PARAMETER;
        at += 4 * count;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t header = word(data + headers + 4 * i), size = ((header & 4095) + 1) / 2, most = 0;
            if ((header & 4095) < 3 || header >> 27 || at + size > bytes) return TVIT_BAD_PARAMETER;
            if (!read_row(header, data + at, m->k, trits + (16 * tile + i) * m->k, &most)) return TVIT_BAD_PARAMETER;
            uint32_t record = word(m->data + 4 * (16 * tile + i));
            int32_t bias = TVIT_CHANNEL_BIAS(record);
            uint64_t gain = record >> 5 & 127;
            overflow |= gain == 0 || gain * 127 * most + (uint32_t)abs(bias) >= 1 << 19;
            at += size;
        }
        for (; at % 4; at++)
            if (at >= bytes || data[at]) return TVIT_BAD_PARAMETER;
    }
    if (at + 32 > bytes) return TVIT_BAD_PARAMETER;
    for (uint32_t i = 0; i < 32; i++)
        if (data[at + i]) return TVIT_BAD_PARAMETER;
    return overflow ? TVIT_BAD_CHANNEL : TVIT_OK;
}

// The portable decoder against trits[n][k].
static void check_decoder(const gaps_matrix *m, const int *trits) {
    tvit_ternary_matrix matrix = {m->data + m->trits_at, NULL, m->k, m->n, TVIT_CODEC_GAPS};
    int32_t(*pairs)[4] = malloc(sizeof *pairs * m->k), sums[8];
    for (uint32_t first = 0; first < m->n; first += 8) {
        tvit_trits_decode_portable(&matrix, first, m->n - first < 8 ? m->n - first : 8, pairs, sums);
        for (uint32_t c = 0; c < 8 && first + c < m->n; c++) {
            int32_t sum = 0;
            for (uint32_t i = 0; i < m->k; i++) {
                int32_t pair = pairs[i][c / 2], trit = trits[(first + c) * m->k + i];
                CHECK((c & 1 ? (pair + 0x8000) >> 16 : (int16_t)pair) == trit, "channel %u, input %u", first + c, i);
                sum += trit;
            }
            CHECK(sums[c] == sum, "the sum of channel %u", first + c);
        }
    }
    free(pairs);
}

static void test_what_is_encoded_is_accepted_and_decoded(void) {
    for (int round = 0; round < 400; round++) {
        gaps_matrix m = draw_matrix();
        int *trits = malloc(sizeof *trits * m.n * m.k), wrong = 0;
        CHECK(read_matrix(&m, trits) == TVIT_OK && check(&m, m.bytes) == TVIT_OK, "%u x %u", m.n, m.k);
        for (uint32_t i = 0; i < m.n * m.k; i++)
            wrong += trits[i] != m.trits[i];
        CHECK(wrong == 0, "%d trits", wrong);
        check_decoder(&m, trits);
        free(trits);
        drop(&m);
    }
}

static void test_a_truncated_matrix_is_refused_at_every_length(void) {
    gaps_matrix whole = draw_matrix();
    for (uint32_t bytes = whole.trits_at; bytes < whole.bytes; bytes++) {
        void *data = NULL;
        if (posix_memalign(&data, 16, bytes)) abort();
        memcpy(data, whole.data, bytes);
        gaps_matrix m = whole;
        m.data = data;
        CHECK(check(&m, bytes) == TVIT_BAD_PARAMETER, "%u of %u bytes", bytes, whole.bytes);
        free(data);
    }
    drop(&whole);
}

static void test_damaged_matrices_are_judged_as_a_plain_reading_does(void) {
    uint32_t seen[TVIT_STOPPED + 1] = {0};
    for (int round = 0; round < 15000; round++) {
        gaps_matrix m = draw_matrix();
        int *trits = malloc(sizeof *trits * m.n * m.k);
        for (int flips = draw_between(0, 2); flips; flips--) {
            uint32_t at = m.trits_at + draw() % (m.bytes - m.trits_at);
            m.data[at] = (uint8_t)(draw() % 2 ? m.data[at] ^ 1u << draw() % 8 : draw());
        }
        uint32_t channel = draw() % m.n, gain = (uint32_t)draw_between(0, 127);
        uint32_t record = (uint32_t)draw_between(0, (1 << 19) - 1) << 12 | gain << 5;
        memcpy(m.data + 4 * channel, &record, 4);
        tvit_status expected = read_matrix(&m, trits), got = check(&m, m.bytes);
        CHECK(got == expected, "round %d: %d, expected %d", round, (int)got, (int)expected);
        if (got == TVIT_OK) check_decoder(&m, trits);
        seen[got]++;
        free(trits);
        drop(&m);
    }
    CHECK(seen[TVIT_OK] > 1000 && seen[TVIT_BAD_PARAMETER] > 1000 && seen[TVIT_BAD_CHANNEL] > 500, "%u, %u and %u",
          seen[TVIT_OK], seen[TVIT_BAD_PARAMETER], seen[TVIT_BAD_CHANNEL]);
}

// A row of 4095 non-zero trits has as many instructions as a header can tell.
static void test_the_longest_row_is_decoded(void) {
    int8_t trits[4095];
    int values[4095];
    for (uint32_t i = 0; i < 4095; i++)
        values[i] = trits[i] = draw() % 2 ? 1 : -1;
    gaps_matrix m = make(1, 4095, trits);
    CHECK(check(&m, m.bytes) == TVIT_OK, "4095 inputs");
    check_decoder(&m, values);
    m.k = 4096;
    CHECK(check(&m, m.bytes) == TVIT_BAD_PARAMETER, "4096 inputs");
    drop(&m);
}

// Bridges in front of the last trit hold one product more than the trits before them: no more than the whole row. A
// pair behind it holds one more than the row, unless it first takes back what is there.
static void test_the_proof_counts_the_most_products_held_at_once(void) {
    int8_t trits[60] = {0};
    trits[0] = trits[1] = trits[2] = 1;
    trits[59] = 1; // behind bridges at 9, 16 ...
    gaps_matrix m = make(1, 60, trits);
    uint32_t bias = (1u << 19) - 1 - 4 * 127, record = bias << 12 | 1 << 5, codes_at = m.trits_at + 8;
    memcpy(m.data, &record, 4);
    CHECK(check(&m, m.bytes) == TVIT_OK, "four products, and one below the limit");
    record = (bias + 1) << 12 | 1 << 5;
    memcpy(m.data, &record, 4);
    CHECK(check(&m, m.bytes) == TVIT_BAD_CHANNEL, "at the limit");
    drop(&m);

    memset(trits, 0, sizeof trits);
    trits[5] = 1; // and a pair: - and + by the encoder; + and - holds two
    m = make(1, 60, trits);
    record = ((1u << 19) - 1 - 127) << 12 | 1 << 5;
    memcpy(m.data, &record, 4);
    CHECK(check(&m, m.bytes) == TVIT_OK, "one product");
    CHECK(m.data[codes_at] == 0x80 && m.data[codes_at + 1] == 0, "codes %x %x", m.data[codes_at], m.data[codes_at + 1]);
    m.data[codes_at] = 0, m.data[codes_at + 1] = 8;
    CHECK(check(&m, m.bytes) == TVIT_BAD_CHANNEL, "two products at once");
    drop(&m);
}

int main(void) {
    RUN(test_what_is_encoded_is_accepted_and_decoded);
    RUN(test_a_truncated_matrix_is_refused_at_every_length);
    RUN(test_damaged_matrices_are_judged_as_a_plain_reading_does);
    RUN(test_the_longest_row_is_decoded);
    RUN(test_the_proof_counts_the_most_products_held_at_once);
    return check_result();
}
