// SPDX-License-Identifier: Apache-2.0
// Attention (CONTRACT.md, section 6), four queries at a time, so that a key or value read serves four of them. Keys and
// values are read as unsigned bytes, k + 128, and the surplus of 128 is taken off the sums.
#include "arithmetic.h"
#include "tvit/kernels.h"

#define QUERIES 4u

// Scratch: scores and probabilities [tokens][4], queries [head_dim][4], and for per-token scales outputs [4][width].
typedef struct {
    int16_t (*scores)[QUERIES], (*queries)[QUERIES], *wide;
} attention_scratch;

static size_t aligned(size_t bytes) {
    return (bytes + 15) & ~(size_t)15;
}

// Queries first ... first + 3 of one head, one dimension a row. Behind the last token its query is repeated.
static void gather_queries(const tvit_attention_args *args, uint32_t first, uint32_t head, int16_t (*queries)[QUERIES],
                           int32_t start[QUERIES]) {
    for (uint32_t i = 0; i < QUERIES; i++) {
        uint32_t token = first + i < args->tokens ? first + i : args->tokens - 1;
        const int8_t *q = args->q + (size_t)token * args->q_columns + (size_t)head * args->head_dim;
        int32_t sum = 0;
        for (uint32_t d = 0; d < args->head_dim; d++) {
            queries[d][i] = q[d];
            sum += q[d];
        }
        start[i] = -128 * sum;
    }
}

// s[i] += q[i] * (k + 128) over the dimensions of one head; k + 128 is k ^ flip as an unsigned byte.
TVIT_INNER_LOOP void dot_key(int32_t s[QUERIES], const int16_t *q, const uint8_t *k, uint32_t count, uint32_t flip) {
    int32_t s0 = s[0], s1 = s[1], s2 = s[2], s3 = s[3];
    const uint8_t *end = k + (count & ~3u);
    for (; k != end; k += 4, q += 4 * QUERIES) {
        int32_t v = (int32_t)(k[0] ^ flip);
        s0 += q[0] * v, s1 += q[1] * v, s2 += q[2] * v, s3 += q[3] * v;
        v = (int32_t)(k[1] ^ flip);
        s0 += q[4] * v, s1 += q[5] * v, s2 += q[6] * v, s3 += q[7] * v;
        v = (int32_t)(k[2] ^ flip);
        s0 += q[8] * v, s1 += q[9] * v, s2 += q[10] * v, s3 += q[11] * v;
        v = (int32_t)(k[3] ^ flip);
        s0 += q[12] * v, s1 += q[13] * v, s2 += q[14] * v, s3 += q[15] * v;
    }
    for (end += count & 3u; k != end; k++, q += QUERIES) {
        int32_t v = (int32_t)(*k ^ flip);
        s0 += q[0] * v, s1 += q[1] * v, s2 += q[2] * v, s3 += q[3] * v;
    }
    s[0] = s0, s[1] = s1, s[2] = s2, s[3] = s3;
}

static void score_keys(const tvit_attention_args *args, uint32_t head, const attention_scratch *scratch,
                       const int32_t start[QUERIES], int32_t highest[QUERIES]) {
    const uint8_t *key = (const uint8_t *)args->k + (size_t)head * args->head_dim;
    for (uint32_t i = 0; i < QUERIES; i++)
        highest[i] = -32767;
    for (uint32_t j = 0; j < args->tokens; j++, key += args->k_columns) {
        int32_t s[QUERIES] = {start[0], start[1], start[2], start[3]};
        dot_key(s, scratch->queries[0], key, args->head_dim, 0x80);
        for (uint32_t i = 0; i < QUERIES; i++) {
            int32_t a = tvit_clamp(s[i] >> args->score_shift, 32767);
            if (a > highest[i]) highest[i] = a;
            scratch->scores[j][i] = (int16_t)a;
        }
    }
}

// c[d][i] = sum over the keys of p[i] * (v[d] + 128), for one or two dimensions d; v + 128 is v ^ flip.
static inline void weigh(int32_t (*c)[QUERIES], const int16_t *p, const uint8_t *v, size_t width, uint32_t tokens,
                         uint32_t flip, int two) {
    int32_t c0 = 0, c1 = 0, c2 = 0, c3 = 0, d0 = 0, d1 = 0, d2 = 0, d3 = 0;
    for (const int16_t *end = p + tokens * QUERIES; p != end; p += QUERIES, v += width) {
        int32_t v0 = (int32_t)(v[0] ^ flip), v1 = two ? (int32_t)(v[1] ^ flip) : 0;
        c0 += p[0] * v0, d0 += p[0] * v1;
        c1 += p[1] * v0, d1 += p[1] * v1;
        c2 += p[2] * v0, d2 += p[2] * v1;
        c3 += p[3] * v0, d3 += p[3] * v1;
    }
    c[0][0] = c0, c[0][1] = c1, c[0][2] = c2, c[0][3] = c3;
    if (two) c[1][0] = d0, c[1][1] = d1, c[1][2] = d2, c[1][3] = d3;
}

TVIT_INNER_LOOP void weigh_two(int32_t c[2][QUERIES], const int16_t *p, const uint8_t *v, size_t width, uint32_t tokens,
                               uint32_t flip) {
    weigh(c, p, v, width, tokens, flip, 1);
}

TVIT_INNER_LOOP void weigh_one(int32_t c[1][QUERIES], const int16_t *p, const uint8_t *v, size_t width, uint32_t tokens,
                               uint32_t flip) {
    weigh(c, p, v, width, tokens, flip, 0);
}

// The outputs of one dimension, d counted from the first of all heads.
static void store_outputs(const tvit_attention_args *args, const attention_scratch *scratch, uint32_t first, size_t d,
                          const int32_t c[QUERIES], const int32_t z[QUERIES], const int32_t w[QUERIES]) {
    size_t step = args->per_token ? (size_t)args->heads * args->head_dim : args->output_columns;
    int8_t *out = args->output + (size_t)first * args->output_columns;
    uint32_t count = args->tokens - first < QUERIES ? args->tokens - first : QUERIES;
    int32_t limit = args->per_token ? 32767 : 127, half = 1 << (args->out_shift - 1);
    for (uint32_t i = 0; i < count; i++, d += step) {
        int32_t sum = c[i] - 128 * z[i];
        int32_t o = tvit_clamp(((sum >> 4) * w[i] + half) >> args->out_shift, limit);
        if (args->per_token)
            scratch->wide[d] = (int16_t)o;
        else
            out[d] = (int8_t)o;
    }
}

static void attend(const tvit_attention_args *args, uint32_t first, uint32_t head, const attention_scratch *scratch) {
    size_t at = (size_t)head * args->head_dim;
    int32_t start[QUERIES], highest[QUERIES], z[QUERIES], w[QUERIES];
    gather_queries(args, first, head, scratch->queries, start);
    score_keys(args, head, scratch, start, highest);
    for (uint32_t i = 0; i < QUERIES; i++) {
        z[i] = tvit_softmax_portable(scratch->scores[0] + i, QUERIES, args->tokens, highest[i], args->exp_multiplier);
        uint32_t quotient = (args->out_multiplier + (uint32_t)z[i] / 2) / (uint32_t)z[i];
        w[i] = quotient < 32767 ? (int32_t)quotient : 32767;
    }
    for (uint32_t d = 0; d < args->head_dim; d += 2) {
        const uint8_t *values = (const uint8_t *)args->v + at + d;
        int32_t c[2][QUERIES];
        if (d + 1 == args->head_dim) {
            weigh_one(c, scratch->scores[0], values, args->v_columns, args->tokens, 0x80);
        } else {
            weigh_two(c, scratch->scores[0], values, args->v_columns, args->tokens, 0x80);
            store_outputs(args, scratch, first, at + d + 1, c[1], z, w);
        }
        store_outputs(args, scratch, first, at + d, c[0], z, w);
    }
}

void tvit_attention_portable(const tvit_attention_args *args, void *scratch) {
    size_t width = (size_t)args->heads * args->head_dim;
    uint8_t *at = scratch;
    attention_scratch parts;
    parts.scores = (int16_t(*)[QUERIES])at;
    at += aligned(args->tokens * sizeof *parts.scores);
    parts.queries = (int16_t(*)[QUERIES])at;
    at += aligned(args->head_dim * sizeof *parts.queries);
    parts.wide = (int16_t *)at;
    for (uint32_t first = 0; first < args->tokens; first += QUERIES) {
        for (uint32_t head = 0; head < args->heads; head++)
            attend(args, first, head, &parts);
        if (!args->per_token) continue;
        for (uint32_t i = 0; i < QUERIES && first + i < args->tokens; i++)
            args->output_multipliers[first + i] = tvit_token_quantize_portable(
                args->output + (size_t)(first + i) * args->output_columns, parts.wide + i * width, (uint32_t)width);
    }
}

size_t tvit_attention_buffer_size_portable(const tvit_attention_args *args) {
    size_t width = (size_t)args->heads * args->head_dim;
    size_t wide = args->per_token ? QUERIES * width * sizeof(int16_t) : 0;
    return aligned(args->tokens * sizeof(int16_t[QUERIES])) + aligned(args->head_dim * sizeof(int16_t[QUERIES])) + wide;
}
