// SPDX-License-Identifier: Apache-2.0
// Planning and running whole models.
#include <stdlib.h>
#include <string.h>

#include "../runtime/internal.h"
#include "check.h"
#include "draw.h"
#include "reference.h"
#include "small_model.h"

#define ALL 0xffffffffu

typedef struct {
    small_model file;
    tvit_model model;
    tvit_context context;
    uint8_t *arena;
} running;

static void begin(running *r, const small_model *file) {
    r->file = *file;
    void *arena = NULL;
    tvit_error error;
    if (tvit_load(&r->model, r->file.file, r->file.bytes, &error)) abort();
    if (posix_memalign(&arena, 16, r->model.plan->arena_bytes)) abort();
    memset(arena, 0x33, r->model.plan->arena_bytes);
    r->arena = arena;
    if (tvit_init(&r->context, &r->model, arena, r->model.plan->arena_bytes)) abort();
}

static void start(running *r, int per_token, uint32_t codec) {
    small_model file = small_model_make(per_token, codec);
    begin(r, &file);
}

// The same model, planned so that every tensor has bytes of its own.
static void start_unshared(running *r, const running *original) {
    small_model file = small_model_copy(&original->file);
    uint32_t at = 0;
    for (uint32_t t = 0; t < TENSORS; t++) {
        file.offsets[t] = at;
        at += (uint32_t)(tvit_tensor_bytes(&file.tensors[t]) + 15) & ~15u;
    }
    file.plan->scratch_offset = at;
    file.plan->arena_bytes = at + file.plan->scratch_bytes;
    small_model_seal(&file);
    begin(r, &file);
}

static void stop(running *r) {
    free(r->arena);
    small_model_free(&r->file);
}

static void draw_image(running *r) {
    uint8_t *image = tvit_tensor_data(&r->context, IMAGE);
    for (uint32_t i = 0; i < 8; i++)
        image[i] = (uint8_t)draw();
}

// The trits of a matrix, by the kernel that test_kernels.c compares with the encoder.
static int8_t *decode(const tvit_ternary_matrix *m) {
    int8_t *trits = malloc((size_t)m->n * m->k);
    int32_t(*pairs)[4] = malloc(16 * m->k), sums[8];
    for (uint32_t o = 0; o < m->n; o++) {
        uint32_t count = m->n - o / 8 * 8 < 8 ? m->n - o / 8 * 8 : 8;
        tvit_trits_decode_portable(m, o / 8 * 8, count, pairs, sums);
        for (uint32_t i = 0; i < m->k; i++) {
            int32_t pair = pairs[i][o % 8 / 2];
            trits[o * m->k + i] = (int8_t)(o & 1 ? (pair + 0x8000) >> 16 : (int16_t)pair);
        }
    }
    free(pairs);
    return trits;
}

static void run_reference(running *r, uint32_t index) {
    tvit_operator_args args;
    int8_t *trits;
    tvit_bind_operator(&r->model, index, r->arena, &args);
    switch (r->model.operators[index].kind) {
    case TVIT_OP_PATCH_EMBED:
        trits = decode(&args.patch_embed.weights);
        reference_patch_embed(&args.patch_embed, trits);
        free(trits);
        break;
    case TVIT_OP_LINEAR:
        trits = decode(&args.linear.weights);
        reference_linear(&args.linear, trits);
        free(trits);
        break;
    case TVIT_OP_LAYERNORM:
        reference_layernorm(&args.layernorm);
        break;
    case TVIT_OP_ATTENTION:
        reference_attention(&args.attention);
        break;
    default:
        reference_mean_pool(&args.mean_pool);
        break;
    }
}

static int compare_operator(void *user, const tvit_context *context, uint32_t index) {
    running *expected = user;
    uint32_t t = context->model->operators[index].output;
    const tvit_tensor *tensor = &context->model->tensors[t];
    run_reference(expected, index);
    size_t values = (size_t)tensor->rows * tensor->columns * (tensor->dtype == TVIT_I16 ? 2 : 1);
    CHECK(memcmp(tvit_tensor_data(context, t), tvit_tensor_data(&expected->context, t), values) == 0, "operator %u",
          index);
    const uint16_t *m = tvit_tensor_multipliers(context, t);
    CHECK((m != NULL) == (tensor->flags != 0), "multipliers of tensor %u", t);
    if (m)
        CHECK(memcmp(m, tvit_tensor_multipliers(&expected->context, t), 2 * tensor->rows) == 0,
              "multipliers, operator %u", index);
    return 0;
}

static void test_every_operator_of_a_model_equals_the_contract(void) {
    for (int round = 0; round < 40; round++) {
        running r, expected;
        start(&r, round & 1, round >> 1 & 1);
        start_unshared(&expected, &r);
        draw_image(&r);
        memcpy(tvit_tensor_data(&expected.context, IMAGE), tvit_tensor_data(&r.context, IMAGE), 8);
        CHECK(tvit_run(&r.context, ALL, compare_operator, &expected) == TVIT_OK, "run");
        stop(&r);
        stop(&expected);
    }
}

static void test_first_row_selects_the_rows_of_the_input(void) {
    running r;
    start(&r, 1, TVIT_CODEC_BASE3);
    tvit_operator *ops = r.file.operators;
    ops[NORM].param.layernorm.first_row = ops[HEAD].param.linear.first_row = ops[POOL].param.mean_pool.first_row = 2;
    ops[NORM].input[0] = STREAM;
    ops[HEAD].input[0] = X;
    tvit_operator_args args;
    const int16_t *stream = tvit_tensor_data(&r.context, STREAM);
    tvit_bind_operator(&r.model, NORM, r.arena, &args);
    CHECK(args.layernorm.input == stream + 2 * SMALL_DIM, "LayerNorm");
    tvit_bind_operator(&r.model, POOL, r.arena, &args);
    CHECK(args.mean_pool.input == stream + 2 * SMALL_DIM, "mean pooling");
    tvit_bind_operator(&r.model, HEAD, r.arena, &args);
    CHECK(args.linear.input == (int8_t *)tvit_tensor_data(&r.context, X) + 2 * SMALL_DIM, "linear");
    CHECK(args.linear.input_multipliers == tvit_tensor_multipliers(&r.context, X) + 2, "its multipliers");
    stop(&r);
}

static void test_a_second_run_gives_the_same_logits(void) {
    running r;
    start(&r, 0, TVIT_CODEC_BASE3);
    int16_t first[SMALL_CLASSES];
    for (int round = 0; round < 2; round++) {
        memset(tvit_tensor_data(&r.context, IMAGE), 77, 8); // the run overwrites the image
        CHECK(tvit_run(&r.context, ALL, NULL, NULL) == TVIT_OK, "run");
        const int16_t *logits = tvit_tensor_data(&r.context, LOGITS);
        if (round == 0) memcpy(first, logits, sizeof first);
        CHECK(memcmp(first, logits, sizeof first) == 0, "round %d", round);
    }
    stop(&r);
}

static int stop_at(void *user, const tvit_context *context, uint32_t index) {
    (void)context;
    uint32_t *seen = user;
    seen[1] = index;
    return index == seen[0];
}

static void test_a_run_stops_where_it_is_told(void) {
    running r;
    start(&r, 0, TVIT_CODEC_2BIT);
    uint32_t seen[2] = {Q, ALL};
    draw_image(&r);
    CHECK(tvit_run(&r.context, ALL, stop_at, seen) == TVIT_STOPPED && seen[1] == Q, "the observer: %u", seen[1]);
    seen[0] = ALL;
    CHECK(tvit_run(&r.context, NORM1, stop_at, seen) == TVIT_OK && seen[1] == NORM1, "the last operator: %u", seen[1]);
    CHECK(tvit_run(&r.context, 0, stop_at, seen) == TVIT_OK && seen[1] == 0, "the first operator: %u", seen[1]);
    CHECK(tvit_run(&r.context, OPERATORS, stop_at, seen) == TVIT_BAD_ARGUMENT, "an operator that does not exist");
    stop(&r);
}

static void test_an_unfit_arena_is_refused(void) {
    running r;
    start(&r, 0, TVIT_CODEC_BASE3);
    size_t bytes = r.model.plan->arena_bytes;
    CHECK(tvit_init(&r.context, &r.model, r.arena, bytes - 1) == TVIT_ARENA_TOO_SMALL, "one byte short");
    CHECK(tvit_init(&r.context, &r.model, r.arena + 8, bytes) == TVIT_MISALIGNED, "misaligned");
    CHECK(tvit_init(&r.context, &r.model, NULL, bytes) == TVIT_BAD_ARGUMENT, "no arena");
    CHECK(tvit_init(&r.context, NULL, r.arena, bytes) == TVIT_BAD_ARGUMENT, "no model");
    CHECK(tvit_tensor_data(&r.context, TENSORS) == NULL, "a tensor that does not exist");
    CHECK(tvit_tensor_multipliers(&r.context, TENSORS) == NULL, "its multipliers");
    CHECK(tvit_operator_scratch_bytes(&r.model, OPERATORS) == 0, "an operator that does not exist");
    stop(&r);
}

static void test_the_plan_reuses_the_memory_of_the_image_and_of_dead_activations(void) {
    running r;
    start(&r, 0, TVIT_CODEC_BASE3);
    const uint32_t *at = r.model.tensor_offsets;
    uint32_t total = r.model.plan->scratch_bytes;
    int reused = 0;
    for (uint32_t t = 0; t < TENSORS; t++) {
        total += (uint32_t)(tvit_tensor_bytes(&r.model.tensors[t]) + 15) & ~15u;
        reused |= t != IMAGE && at[t] == at[IMAGE];
    }
    CHECK(reused, "nothing lies where the image was");
    CHECK(r.model.plan->arena_bytes < total, "%u of %u", r.model.plan->arena_bytes, total);
    uint32_t most = 0;
    for (uint32_t i = 0; i < OPERATORS; i++) {
        uint32_t bytes = (uint32_t)tvit_operator_scratch_bytes(&r.model, i);
        if (bytes > most) most = bytes;
    }
    CHECK(r.model.plan->scratch_bytes == ((most + 15) & ~15u), "scratch %u, kernels %u", r.model.plan->scratch_bytes,
          most);
    stop(&r);
}

static void test_every_status_has_a_text_of_its_own(void) {
    for (int i = 0; i <= TVIT_STOPPED; i++)
        for (int j = 0; j < i; j++)
            CHECK(strcmp(tvit_status_text((tvit_status)i), tvit_status_text((tvit_status)j)), "%d and %d", i, j);
    CHECK(strcmp(tvit_status_text((tvit_status)(TVIT_STOPPED + 1)), "unknown status") == 0, "behind the last");
    CHECK(strcmp(tvit_status_text((tvit_status)-1), "unknown status") == 0, "-1");
}

int main(void) {
    RUN(test_every_operator_of_a_model_equals_the_contract);
    RUN(test_first_row_selects_the_rows_of_the_input);
    RUN(test_a_second_run_gives_the_same_logits);
    RUN(test_a_run_stops_where_it_is_told);
    RUN(test_an_unfit_arena_is_refused);
    RUN(test_the_plan_reuses_the_memory_of_the_image_and_of_dead_activations);
    RUN(test_every_status_has_a_text_of_its_own);
    return check_result();
}
