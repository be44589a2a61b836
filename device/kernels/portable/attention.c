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
        const int8_t *q = args->q + ((size_t)token * args->heads + head) * args->head_dim;
        int32_t sum = 0;
        for (uint32_t d = 0; d < args->head_dim; d++) {
            queries[d][i] = q[d];
            sum += q[d];
        }
        start[i] = -128 * sum;
    }
}

static void score_keys(const tvit_attention_args *args, uint32_t head, const attention_scratch *scratch,
                       const int32_t start[QUERIES], int32_t highest[QUERIES]) {
    size_t width = (size_t)args->heads * args->head_dim;
    const uint8_t *keys = (const uint8_t *)args->k + (size_t)head * args->head_dim;
    for (uint32_t i = 0; i < QUERIES; i++)
        highest[i] = -32767;
    for (uint32_t j = 0; j < args->tokens; j++, keys += width) {
        int32_t s[QUERIES] = {start[0], start[1], start[2], start[3]};
        const int16_t *q = scratch->queries[0];
        for (const uint8_t *k = keys; k != keys + args->head_dim; k++, q += QUERIES) {
            int32_t v = *k ^ 0x80;
            s[0] += q[0] * v, s[1] += q[1] * v, s[2] += q[2] * v, s[3] += q[3] * v;
        }
        for (uint32_t i = 0; i < QUERIES; i++) {
            int32_t a = tvit_clamp(s[i] >> args->score_shift, 32767);
            if (a > highest[i]) highest[i] = a;
            scratch->scores[j][i] = (int16_t)a;
        }
    }
}

// c[i] = sum over the keys of p[i] * (v + 128), for one dimension.
static void weigh_values(const tvit_attention_args *args, const uint8_t *values, int16_t (*p)[QUERIES],
                         int32_t c[QUERIES]) {
    size_t width = (size_t)args->heads * args->head_dim;
    int32_t c0 = 0, c1 = 0, c2 = 0, c3 = 0;
    for (int16_t(*end)[QUERIES] = p + args->tokens; p != end; p++, values += width) {
        int32_t v = *values ^ 0x80;
        const int16_t *row = *p;
        c0 += row[0] * v, c1 += row[1] * v, c2 += row[2] * v, c3 += row[3] * v;
    }
    c[0] = c0, c[1] = c1, c[2] = c2, c[3] = c3;
}

static void attend(const tvit_attention_args *args, uint32_t first, uint32_t head, const attention_scratch *scratch) {
    size_t width = (size_t)args->heads * args->head_dim, at = (size_t)head * args->head_dim;
    uint32_t count = args->tokens - first < QUERIES ? args->tokens - first : QUERIES;
    int32_t start[QUERIES], highest[QUERIES], z[QUERIES], w[QUERIES];
    gather_queries(args, first, head, scratch->queries, start);
    score_keys(args, head, scratch, start, highest);
    for (uint32_t i = 0; i < QUERIES; i++) {
        z[i] = tvit_softmax_portable(scratch->scores[0] + i, QUERIES, args->tokens, highest[i], args->exp_multiplier);
        uint32_t quotient = (args->out_multiplier + (uint32_t)z[i] / 2) / (uint32_t)z[i];
        w[i] = quotient < 32767 ? (int32_t)quotient : 32767;
    }
    int32_t limit = args->per_token ? 32767 : 127, half = 1 << (args->out_shift - 1);
    const uint8_t *values = (const uint8_t *)args->v + at;
    for (uint32_t d = 0; d < args->head_dim; d++, values++) {
        int32_t c[QUERIES];
        weigh_values(args, values, scratch->scores, c);
        for (uint32_t i = 0; i < count; i++) {
            int32_t sum = c[i] - 128 * z[i];
            int32_t o = tvit_clamp(((sum >> 4) * w[i] + half) >> args->out_shift, limit);
            if (args->per_token)
                scratch->wide[i * width + at + d] = (int16_t)o;
            else
                args->output[(first + i) * width + at + d] = (int8_t)o;
        }
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
            args->output_multipliers[first + i] = tvit_token_quantize_portable(args->output + (first + i) * width,
                                                                               parts.wide + i * width, (uint32_t)width);
    }
}

size_t tvit_attention_buffer_size_portable(const tvit_attention_args *args) {
    size_t width = (size_t)args->heads * args->head_dim;
    size_t wide = args->per_token ? QUERIES * width * sizeof(int16_t) : 0;
    return aligned(args->tokens * sizeof(int16_t[QUERIES])) + aligned(args->head_dim * sizeof(int16_t[QUERIES])) + wide;
}
