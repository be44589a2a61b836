// SPDX-License-Identifier: Apache-2.0
// Each portable kernel against the naive one, over drawn shapes and values. Every buffer is a heap block of exactly the
// documented size, so that the address sanitizer sees a byte too many.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels/portable/arithmetic.h"
#include "check.h"
#include "draw.h"
#include "reference.h"

#define ROUNDS 60

static void *room(size_t bytes) {
    void *block = NULL; // aligned_alloc wants a multiple of the alignment; the sanitizer then misses the last bytes
    if (posix_memalign(&block, 16, bytes ? bytes : 1)) abort();
    memset(block, 0x5a, bytes);
    return block;
}

static int8_t *draw_i8(size_t count) {
    int8_t *values = room(count);
    for (size_t i = 0; i < count; i++)
        values[i] = (int8_t)draw_between(-127, 127);
    return values;
}

static int16_t *draw_i16(size_t count, int32_t limit) {
    int16_t *values = room(count * 2);
    for (size_t i = 0; i < count; i++)
        values[i] = (int16_t)draw_between(-limit, limit);
    return values;
}

// --- ternary matrices --------------------------------------------------------------------------------------------

typedef struct {
    tvit_ternary_matrix matrix;
    int8_t *trits;
} drawn_matrix;

// Trits, and channels that use the lane's whole range: gain * xmax * nnz + |bias| just below 2^19.
static drawn_matrix draw_matrix(uint32_t n, uint32_t k, int32_t xmax) {
    drawn_matrix m = {.matrix = {.n = n, .k = k, .codec = draw() % 3}};
    uint32_t *channels = room(4 * n);
    int extreme = draw() % 4 == 0; // all trits +1 or -1
    int32_t sparse = draw() % 4 == 0 ? 30 : 1;
    m.trits = room((size_t)n * k);
    for (uint32_t o = 0; o < n; o++) {
        int32_t nnz = 0, sign = draw() % 2 ? 1 : -1;
        for (uint32_t i = 0; i < k; i++) {
            int32_t trit = extreme ? sign : draw_between(-sparse, sparse);
            trit = trit > 1 || trit < -1 ? 0 : trit; // sparse rows of gaps have bridges
            m.trits[o * k + i] = (int8_t)trit;
            nnz += trit != 0;
        }
        int32_t most = nnz ? ((1 << 19) - 1) / (xmax * nnz) : 127;
        int32_t gain = draw_between(1, most < 127 ? most : 127), room_left = (1 << 19) - 1 - gain * xmax * nnz;
        int32_t bias = draw_between(-room_left, room_left), shift = draw_between(0, 14);
        channels[o] = (uint32_t)bias << 12 | (uint32_t)gain << 5 | (uint32_t)shift;
    }
    uint8_t *encoded = room(reference_matrix_room(n, k));
    uint32_t size = reference_encode(m.matrix.codec, n, k, m.trits, encoded);
    uint8_t *bytes = room(size);
    memcpy(bytes, encoded, size);
    free(encoded);
    m.matrix.trits = bytes;
    m.matrix.channels = channels;
    return m;
}

static void drop_matrix(drawn_matrix *m) {
    free(m->trits);
    free((void *)m->matrix.trits);
    free((void *)m->matrix.channels);
}

static void test_decoded_pairs_hold_the_trits_of_two_channels(void) {
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t n = (uint32_t)draw_between(1, 40), k = (uint32_t)draw_between(1, 70);
        drawn_matrix m = draw_matrix(n, k, 1);
        int32_t(*pairs)[4] = room(16 * k), sums[8];
        for (uint32_t first = 0; first < n; first += 8) {
            uint32_t count = n - first < 8 ? n - first : 8;
            tvit_trits_decode_portable(&m.matrix, first, count, pairs, sums);
            for (uint32_t c = 0; c < 8; c++) {
                int32_t expected = 0;
                for (uint32_t i = 0; i < k; i++) {
                    int32_t trit = c < count ? m.trits[(first + c) * k + i] : 0, pair = pairs[i][c / 2];
                    expected += trit;
                    CHECK((c & 1 ? (pair + 0x8000) >> 16 : (int16_t)pair) == trit, "channel %u, k %u", first + c, i);
                }
                CHECK(sums[c] == expected, "sum of channel %u", first + c);
            }
        }
        free(pairs);
        drop_matrix(&m);
    }
}

static void test_lanes_hold_the_largest_sums(void) {
    uint8_t x[300];
    int32_t pairs[300][4];
    for (uint32_t count = 1; count <= 300; count++) {
        for (uint32_t i = 0; i < count; i++) {
            x[i] = 255;
            for (uint32_t j = 0; j < 4; j++)
                pairs[i][j] = (j & 1 ? 1 : -1) + (j & 2 ? 1 : -1) * 65536;
        }
        int32_t sums[8] = {0}, most = 255 * (int32_t)count;
        tvit_ternary_dot_portable(sums, (const int32_t(*)[4])pairs, x, count, 0);
        for (uint32_t c = 0; c < 8; c++) {
            int32_t sign = c & 1 ? (c / 2 & 2 ? 1 : -1) : (c / 2 & 1 ? 1 : -1);
            CHECK(sums[c] == sign * most, "count %u, channel %u: %d", count, c, sums[c]);
        }
    }
}

static void test_linear_equals_the_contract(void) {
    for (int round = 0; round < 3 * ROUNDS; round++) {
        uint32_t n = (uint32_t)draw_between(1, 40), k = (uint32_t)draw_between(1, round % 8 ? 90 : 900);
        uint32_t rows = (uint32_t)draw_between(1, 6);
        drawn_matrix m = draw_matrix(n, k, 127);
        tvit_linear_args args = {.weights = m.matrix, .rows = rows, .kind = draw() % 5, .limit = draw_between(1, 127)};
        int wide = args.kind >= TVIT_LINEAR_I16_SET;
        uint32_t column = (uint32_t)draw_between(0, 5), element = wide ? 2 : 1; // of a wider tensor
        args.output_columns = n + column + (uint32_t)draw_between(0, 5);
        size_t values = (size_t)rows * args.output_columns, bytes = values * element;
        int8_t *input = draw_i8((size_t)rows * k), *table = draw_i8(256);
        int16_t *wide_table = draw_i16(256, 32767);
        uint16_t *in = room(2 * rows), *out[2] = {room(2 * rows), room(2 * rows)};
        if (round % 8 == 1) memset(input, draw() % 2 ? 127 : -127, (size_t)rows * k);
        for (uint32_t i = 0; i < rows; i++)
            in[i] = (uint16_t)draw_between(1, 32767);
        uint8_t *results[2] = {wide ? (void *)draw_i16(values, 32767) : room(bytes), room(bytes)};
        memcpy(results[1], results[0], bytes);
        args.input = input;
        args.input_multipliers = draw() % 2 ? in : NULL;
        args.table = args.kind == TVIT_LINEAR_TABLE ? (void *)table : (void *)wide_table;

        args.output = results[0] + column * element, args.output_multipliers = out[0];
        void *scratch = room(tvit_linear_buffer_size_portable(&args));
        tvit_linear_portable(&args, scratch);
        args.output = results[1] + column * element, args.output_multipliers = out[1];
        reference_linear(&args, m.trits);
        CHECK(memcmp(results[0], results[1], bytes) == 0, "n %u k %u rows %u kind %d", n, k, rows, (int)args.kind);
        CHECK(memcmp(out[0], out[1], 2 * rows) == 0, "multipliers");
        free(scratch), free(results[0]), free(results[1]), free(out[0]), free(out[1]), free(in);
        free(input), free(table), free(wide_table), drop_matrix(&m);
    }
}

static void test_patch_embedding_equals_the_contract(void) {
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t patch = (uint32_t)draw_between(1, round % 8 ? 6 : 14), channels = (uint32_t)draw_between(1, 4);
        uint32_t lines = (uint32_t)draw_between(1, 4), columns = (uint32_t)draw_between(1, 4);
        uint32_t n = (uint32_t)draw_between(1, 24), prefix = (uint32_t)draw_between(0, 2), k = patch * patch * channels;
        size_t pixels = (size_t)lines * columns * k, values = (size_t)(prefix + lines * columns) * n;
        drawn_matrix m = draw_matrix(n, k, 128);
        uint8_t *image = room(pixels);
        for (size_t i = 0; i < pixels; i++)
            image[i] = (uint8_t)(round % 8 == 1 ? 0 : draw());
        int8_t *position = draw_i8((size_t)lines * columns * n);
        int16_t *prefix_values = draw_i16((size_t)prefix * n, 32767),
                *results[2] = {room(2 * values), room(2 * values)};
        tvit_patch_embed_args args = {
            .weights = m.matrix,
            .image = image,
            .image_height = lines * patch,
            .image_width = columns * patch,
            .image_channels = channels,
            .patch_size = patch,
            .position = position,
            .position_multiplier = draw_between(1, 255),
            .prefix = prefix_values,
            .prefix_tokens = prefix,
            .output = results[0],
        };
        void *scratch = room(tvit_patch_embed_buffer_size_portable(&args));
        tvit_patch_embed_portable(&args, scratch);
        args.output = results[1];
        reference_patch_embed(&args, m.trits);
        CHECK(memcmp(results[0], results[1], 2 * values) == 0, "patch %u channels %u n %u", patch, channels, n);
        free(scratch), free(results[0]), free(results[1]), free(prefix_values), free(position), free(image);
        drop_matrix(&m);
    }
}

// --- LayerNorm ---------------------------------------------------------------------------------------------------

static void test_square_root_is_the_largest_integer_below(void) {
    for (uint32_t d = 1; d < 1u << 28; d += 1 + d / 50) {
        uint64_t square = (uint64_t)d * d;
        CHECK(tvit_isqrt(square) == d, "%u squared", d);
        CHECK(tvit_isqrt(square - 1) == d - 1, "%u squared minus 1", d);
        CHECK(tvit_isqrt(square + 2 * (uint64_t)d) == d, "the last before %u squared", d + 1);
    }
    CHECK(tvit_isqrt(0) == 0, "0");
}

static void test_quotients_are_exact(void) {
    for (int round = 0; round < 20000; round++) {
        uint64_t c = ((uint64_t)draw() << 32 | draw()) >> draw_between(12, 63);
        uint32_t d = draw() >> draw_between(4, 31);
        if (d == 0) d = 1;
        uint64_t expected = c / d < (1u << 30) - 1 ? c / d : (1u << 30) - 1;
        CHECK(tvit_quotient_30(c, d) == expected, "%llu / %u", (unsigned long long)c, d);
        CHECK(tvit_quotient_30((uint64_t)(d >> 6) << 30, d >> 6 ? d >> 6 : 1) == (d >> 6 ? (1u << 30) - 1 : 0), "2^30");
        uint64_t v = ((uint64_t)draw() << 32 | draw()) >> draw_between(0, 63);
        uint32_t n = (uint32_t)draw_between(1, 65536);
        CHECK(tvit_divide_by_16_bits(v, n) == v / n, "%llu / %u", (unsigned long long)v, n);
    }
}

static void test_layernorm_equals_the_contract(void) {
    static const uint32_t widths[] = {1, 2, 3, 5, 16, 33, 192, 384, 4096};
    for (int round = 0; round < 4 * ROUNDS; round++) {
        uint32_t n = widths[draw() % 9], rows = (uint32_t)draw_between(1, 3);
        int32_t limit = draw() % 3 ? 32767 : draw_between(0, 40);
        int16_t *input = draw_i16((size_t)rows * n, limit);
        int pattern = round % 8; // 0: no variance at all, 1: the largest
        for (size_t i = 0; i < (size_t)rows * n && pattern < 2; i++)
            input[i] = (int16_t)(pattern == 0 ? limit : i & 1 ? 32767 : -32767);
        uint8_t *gamma_beta = room((n + 1) / 2);
        for (uint32_t i = 0; i < (n + 1) / 2; i++)
            gamma_beta[i] = (uint8_t)(draw_between(0, 8) | (2 * i + 1 < n ? draw_between(0, 8) << 4 : 0));
        uint32_t shift = (uint32_t)draw_between(1, 24);
        // The largest C that the bound permits, or a smaller one.
        uint64_t most = (uint64_t)(((1u << 30) - (1u << shift)) / 2) * n / (uint32_t)ceil(sqrt(n)) << 15;
        uint64_t c = (most >> draw_between(0, 40)) + 1;
        int32_t beta = (int32_t)((1u << 30) - (1u << shift)) / 2 - 2;
        tvit_layernorm_args args = {
            .input = input,
            .gamma_beta = gamma_beta,
            .rows = rows,
            .n = n,
            .c = c < most ? c : most,
            .epsilon = (((uint64_t)draw() << 22) >> draw_between(0, 53)) + 1,
            .beta_unit = draw_between(-beta, beta) >> draw_between(0, 29),
            .shift = shift,
            .per_token = draw() % 2,
        };
        int8_t *results[2] = {room((size_t)rows * n), room((size_t)rows * n)};
        uint16_t *out[2] = {room(2 * rows), room(2 * rows)};
        void *scratch = room(tvit_layernorm_buffer_size_portable(&args));
        args.output = results[0], args.output_multipliers = args.per_token ? out[0] : NULL;
        tvit_layernorm_portable(&args, scratch);
        args.output = results[1], args.output_multipliers = args.per_token ? out[1] : NULL;
        reference_layernorm(&args);
        CHECK(memcmp(results[0], results[1], (size_t)rows * n) == 0, "round %d n %u shift %u", round, n, shift);
        CHECK(memcmp(out[0], out[1], 2 * rows) == 0, "multipliers, round %d", round);
        free(scratch), free(results[0]), free(results[1]), free(out[0]), free(out[1]), free(input), free(gamma_beta);
    }
}

// A mean that is a whole number, below zero, and a u at the edge of the next: B must not be rounded further down.
static void test_layernorm_rounds_a_negative_mean_once(void) {
    int16_t input[2] = {-5, -7};
    uint8_t gamma_beta = 0x77; // gamma 1, beta 0
    int8_t output[2];
    tvit_layernorm_args args = {
        .input = input,
        .gamma_beta = &gamma_beta,
        .rows = 1,
        .n = 2,
        .c = 65534, // d = 2, A = 32767, x * A - B = 32767 and -32767
        .epsilon = 1,
        .shift = 1,
        .output = output,
    };
    tvit_layernorm_portable(&args, NULL);
    CHECK(output[0] == 0 && output[1] == 0, "%d %d", output[0], output[1]);
}

// --- attention ---------------------------------------------------------------------------------------------------

static void test_attention_equals_the_contract(void) {
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t tokens = (uint32_t)draw_between(1, round % 16 ? 24 : 2048), heads = (uint32_t)draw_between(1, 3);
        uint32_t head_dim = (uint32_t)draw_between(1, round % 16 ? 20 : 3);
        if (round % 16 == 0) heads = 1;
        // Columns of wider tensors; in every second round the output takes the place of the queries.
        uint32_t width = heads * head_dim, column[4], columns[4];
        size_t sizes[4];
        for (int i = 0; i < 4; i++) {
            column[i] = (uint32_t)draw_between(0, 3);
            columns[i] = width + column[i] + (uint32_t)draw_between(0, 3);
            if (i == 3 && round % 2) column[3] = column[0], columns[3] = columns[0];
            sizes[i] = (size_t)tokens * columns[i];
        }
        int8_t *q = draw_i8(sizes[0]), *k = draw_i8(sizes[1]), *v = draw_i8(sizes[2]);
        if (round % 5 == 1) memset(q, 127, sizes[0]), memset(k, draw() % 2 ? 127 : -127, sizes[1]);
        if (round % 5 == 2) memset(v, -127, sizes[2]);
        tvit_attention_args args = {
            .q = q + column[0],
            .k = k + column[1],
            .v = v + column[2],
            .q_columns = columns[0],
            .k_columns = columns[1],
            .v_columns = columns[2],
            .output_columns = columns[3],
            .tokens = tokens,
            .heads = heads,
            .head_dim = head_dim,
            .score_shift = (uint32_t)draw_between(0, 15),
            .exp_multiplier = draw_between(1, 32767),
            .out_multiplier = (draw() >> draw_between(4, 31)) + 1,
            .out_shift = (uint32_t)draw_between(1, 24),
            .per_token = draw() % 2,
        };
        if (args.out_multiplier >= 1u << 28) args.out_multiplier = (1u << 28) - 1;
        int8_t *results[2] = {room(sizes[3]), room(sizes[3])};
        uint16_t *out[2] = {room(2 * tokens), room(2 * tokens)};
        if (round % 2) memcpy(results[0], q, sizes[0]), memcpy(results[1], q, sizes[0]);
        void *scratch = room(tvit_attention_buffer_size_portable(&args));
        args.output = results[1] + column[3], args.output_multipliers = args.per_token ? out[1] : NULL;
        reference_attention(&args);
        args.output = results[0] + column[3], args.output_multipliers = args.per_token ? out[0] : NULL;
        if (round % 2) args.q = args.output;
        tvit_attention_portable(&args, scratch);
        CHECK(memcmp(results[0], results[1], sizes[3]) == 0, "round %d: %u tokens, %u heads of %u", round, tokens,
              heads, head_dim);
        CHECK(memcmp(out[0], out[1], 2 * tokens) == 0, "multipliers, round %d", round);
        free(scratch), free(results[0]), free(results[1]), free(out[0]), free(out[1]), free(q), free(k), free(v);
    }
}

static void test_exp2_is_within_two_and_never_rises(void) {
    int32_t before = 1 << 14;
    for (int32_t t = 0; t <= 32767; t++) {
        int32_t e = tvit_exp2_q14_portable(t);
        CHECK(fabs(e - ldexp(exp2(-t / 1024.0), 14)) < 2, "t %d: %d", t, e);
        CHECK(e <= before && e >= 0, "t %d: %d after %d", t, e, before);
        before = e;
    }
}

static void test_softmax_equals_the_contract_and_stays_in_its_lanes(void) {
    for (int round = 0; round < 8 * ROUNDS; round++) {
        uint32_t tokens = (uint32_t)draw_between(1, 2048), stride = (uint32_t)draw_between(1, 4);
        int32_t spread = draw() >> draw_between(17, 31), highest = -32767, exp_multiplier = draw_between(1, 32767);
        int16_t *a = draw_i16((size_t)tokens * stride, spread > 32767 ? 32767 : spread);
        int64_t *expected = room(tokens * sizeof *expected), sum = 0;
        for (uint32_t j = 0; j < tokens; j++) {
            expected[j] = a[j * stride];
            if (a[j * stride] > highest) highest = a[j * stride];
        }
        int32_t z = tvit_softmax_portable(a, stride, tokens, highest, exp_multiplier);
        CHECK(z == reference_softmax(expected, tokens, exp_multiplier), "the sum, %u tokens", tokens);
        for (uint32_t j = 0; j < tokens; j++) {
            CHECK(a[j * stride] == expected[j], "probability %d, expected %d", a[j * stride], (int)expected[j]);
            CHECK(a[j * stride] >= 0 && a[j * stride] <= 127, "probability %d", a[j * stride]);
            sum += a[j * stride];
        }
        CHECK(z == sum && z >= 1 && z <= 4128, "sum %d of %u tokens", z, tokens);
        free(a), free(expected);
    }
}

// --- the rest ----------------------------------------------------------------------------------------------------

static void test_mean_pooling_equals_the_contract(void) {
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t rows = round % 16 ? (uint32_t)draw_between(1, 50) : 65535, n = (uint32_t)draw_between(1, 9);
        int16_t *input = draw_i16((size_t)rows * n, 32767), *results[2] = {room(2 * n), room(2 * n)};
        if (round % 4 == 0)
            for (size_t i = 0; i < (size_t)rows * n; i++)
                input[i] = round % 8 ? 32767 : -32767;
        tvit_mean_pool_args args = {.input = input, .rows = rows, .n = n, .output = results[0]};
        tvit_mean_pool_portable(&args, NULL);
        args.output = results[1];
        reference_mean_pool(&args);
        CHECK(memcmp(results[0], results[1], 2 * n) == 0, "%u rows of %u", rows, n);
        free(input), free(results[0]), free(results[1]);
    }
}

static void test_token_quantization_equals_the_contract(void) {
    for (int round = 0; round < 4 * ROUNDS; round++) {
        uint32_t n = (uint32_t)draw_between(1, 100);
        int16_t *input = draw_i16(n, draw_between(0, 32767));
        int8_t *results[2] = {room(n), room(n)};
        uint16_t m = tvit_token_quantize_portable(results[0], input, n);
        CHECK(m == reference_token_quantize(results[1], input, n), "multiplier %u", m);
        CHECK(memcmp(results[0], results[1], n) == 0, "n %u", n);
        for (uint32_t i = 0; i < n; i++)
            CHECK(results[0][i] != -128, "-128 at %u", i);
        free(input), free(results[0]), free(results[1]);
    }
}

int main(void) {
    RUN(test_decoded_pairs_hold_the_trits_of_two_channels);
    RUN(test_lanes_hold_the_largest_sums);
    RUN(test_linear_equals_the_contract);
    RUN(test_patch_embedding_equals_the_contract);
    RUN(test_square_root_is_the_largest_integer_below);
    RUN(test_quotients_are_exact);
    RUN(test_layernorm_equals_the_contract);
    RUN(test_layernorm_rounds_a_negative_mean_once);
    RUN(test_attention_equals_the_contract);
    RUN(test_exp2_is_within_two_and_never_rises);
    RUN(test_softmax_equals_the_contract_and_stays_in_its_lanes);
    RUN(test_mean_pooling_equals_the_contract);
    RUN(test_token_quantization_equals_the_contract);
    return check_result();
}
