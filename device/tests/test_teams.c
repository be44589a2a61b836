// SPDX-License-Identifier: Apache-2.0
// A build with a second kernel table (TVIT_KERNELS_PIE): token blocks, one core or two, against the naive operators in
// rows. block_kernels.c has the table.
#include <stdlib.h>
#include <string.h>

#include "block_kernels.h"
#include "check.h"
#include "draw.h"
#include "model_reference.h"
#include "piece_model.h"
#include "small_model.h"

#define ALL 0xffffffffu

static uint32_t forks;
static const tvit_cores two = {TVIT_MAX_CORES, block_kernels_run, &forks}, one = {1, block_kernels_run, &forks};

// All models of a build: small ones and larger ones, whole and in pieces, per-token scales last.
enum { STATIC_MODELS = 9, PER_TOKEN_MODELS = 3 };

static small_model make(int which) {
    uint32_t codec = (uint32_t)which % 3;
    if (which >= STATIC_MODELS) return small_model_make(1, codec);
    return which < 3 ? small_model_make(0, codec) : piece_model_make(which >= 6, codec);
}

static int compare_operator(void *user, const tvit_context *context, uint32_t index) {
    running_reference_operator(user, index);
    CHECK(running_differences(context, user, index) == 0, "operator %u", index);
    return 0;
}

// The reference binds its operators to rows and does not ask which table the model runs on.
static void compare(int which, const tvit_cores *cores) {
    running_model r, expected;
    small_model file = make(which);
    running_start(&r, &file, (int)(draw() & 255));
    running_start_unshared(&expected, &r);
    running_draw_image(&r);
    running_copy_image(&expected, &r);
    r.context.cores = cores;
    CHECK(tvit_run(&r.context, ALL, compare_operator, &expected) == TVIT_OK, "model %d", which);
    running_stop(&expected);
    running_stop(&r);
}

static void test_the_table_is_chosen_by_the_scales(void) {
    for (int which = 0; which < STATIC_MODELS + PER_TOKEN_MODELS; which++) {
        small_model file = make(which);
        tvit_model model;
        CHECK(tvit_load(&model, file.file, file.bytes, NULL) == TVIT_OK, "model %d", which);
        const tvit_kernel_table *table = tvit_kernels_for(&model);
        CHECK(table == (which < STATIC_MODELS ? &tvit_kernels_pie : &tvit_kernels_portable), "%s", table->name);
        CHECK(tvit_arena_bytes(&model) == model.plan->arena_bytes, "planned for this build: model %d", which);
        small_model_free(&file);
    }
}

static void test_token_blocks_give_the_bits_of_rows(void) {
    for (int round = 0; round < 3 * STATIC_MODELS; round++)
        compare(round % STATIC_MODELS, NULL);
}

static void test_two_cores_give_the_bits_of_one(void) {
    for (int which = 0; which < STATIC_MODELS; which++) {
        uint32_t before = forks, calls = block_kernels_shared_calls();
        compare(which, &two);
        uint32_t operators = which < 6 ? OPERATORS : P_OPERATORS, blocks = which < 3 ? 1 : 2;
        CHECK(forks == before + operators, "one fork an operator: %u of %u", forks - before, operators);
        CHECK(block_kernels_shared_calls() == calls + 2 * (operators + blocks - 1), "both parts met in each: %u",
              block_kernels_shared_calls() - calls);
    }
}

static void test_kernels_that_do_not_share_work_run_on_one_core(void) {
    for (int which = STATIC_MODELS; which < STATIC_MODELS + PER_TOKEN_MODELS; which++)
        compare(which, &two);
    compare(0, &one);
    CHECK(forks == 0, "%u forks", forks);
}

// Image and stream as close as the lead allows, the image behind or in front of all else.
static void test_the_image_is_overwritten_behind_its_readers(void) {
    for (int cores = 1; cores <= 2; cores++) {
        running_model r, expected;
        small_model file = piece_model_make(1, TVIT_CODEC_GAPS), moved;
        running_start(&r, &file, 0x33);
        running_start_unshared(&expected, &r);
        moved = small_model_copy(&expected.file);
        moved.offsets[P_IMAGE] = moved.offsets[P_STREAM] + tvit_image_lead(&r.model);
        small_model_seal(&moved);
        running_stop(&r);
        running_start(&r, &moved, 0x33);
        CHECK(tvit_arena_bytes(&r.model) == r.model.plan->arena_bytes, "no copy of the image");
        running_draw_image(&r);
        running_copy_image(&expected, &r);
        r.context.cores = cores == 2 ? &two : NULL;
        CHECK(tvit_run(&r.context, ALL, compare_operator, &expected) == TVIT_OK, "%d cores", cores);
        running_stop(&expected);
        running_stop(&r);
    }
}

static void test_tensors_in_blocks_are_read_as_rows(void) {
    running_model r;
    small_model file = piece_model_make(0, TVIT_CODEC_2BIT);
    running_start(&r, &file, 0);
    int16_t *stream = tvit_tensor_data(&r.context, P_STREAM), out[PIECE_TOKENS * PIECE_DIM];
    for (uint32_t t = 0; t < PIECE_TOKENS; t++)
        for (uint32_t c = 0; c < PIECE_DIM; c++)
            stream[t / 16 * PIECE_DIM * 16 + c * 16 + t % 16] = (int16_t)(1000 * t + c);
    tvit_read_tensor(&r.context, P_STREAM, 0, sizeof out, out);
    for (uint32_t i = 0; i < PIECE_TOKENS * PIECE_DIM; i++)
        CHECK(out[i] == (int16_t)(1000 * (i / PIECE_DIM) + i % PIECE_DIM), "value %u: %d", i, out[i]);
    uint8_t some[40];
    for (uint32_t from = 0; from + 39 <= sizeof out; from++) {
        uint32_t bytes = draw() % 40;
        memset(some, 0xee, sizeof some);
        tvit_read_tensor(&r.context, P_STREAM, from, bytes, some);
        CHECK(memcmp(some, (uint8_t *)out + from, bytes) == 0 && some[bytes] == 0xee, "%u bytes from %u", bytes, from);
    }
    running_stop(&r);
}

int main(void) {
    RUN(test_the_table_is_chosen_by_the_scales);
    RUN(test_token_blocks_give_the_bits_of_rows);
    RUN(test_kernels_that_do_not_share_work_run_on_one_core);
    RUN(test_two_cores_give_the_bits_of_one);
    RUN(test_the_image_is_overwritten_behind_its_readers);
    RUN(test_tensors_in_blocks_are_read_as_rows);
    return check_result();
}
