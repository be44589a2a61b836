// SPDX-License-Identifier: Apache-2.0
// Planning and running whole models.
#include <stdlib.h>
#include <string.h>

#include "../runtime/internal.h"
#include "check.h"
#include "draw.h"
#include "model_reference.h"
#include "piece_model.h"
#include "small_model.h"

#define ALL 0xffffffffu

static void start(running_model *r, int per_token, uint32_t codec) {
    small_model file = small_model_make(per_token, codec);
    running_start(r, &file, 0x33);
}

static int compare_operator(void *user, const tvit_context *context, uint32_t index) {
    running_reference_operator(user, index);
    CHECK(running_differences(context, user, index) == 0, "operator %u", index);
    return 0;
}

static void compare_model(running_model *r) {
    running_model expected;
    running_start_unshared(&expected, r);
    running_draw_image(r);
    running_copy_image(&expected, r);
    CHECK(tvit_run(&r->context, ALL, compare_operator, &expected) == TVIT_OK, "run");
    running_stop(&expected);
}

static void test_every_operator_of_a_model_equals_the_contract(void) {
    for (int round = 0; round < 42; round++) {
        running_model r;
        start(&r, round & 1, (uint32_t)round / 2 % 3);
        compare_model(&r);
        running_stop(&r);
    }
}

static void test_every_operator_of_a_model_in_pieces_equals_the_contract(void) {
    for (int round = 0; round < 12; round++) {
        small_model file = piece_model_make(round & 1, (uint32_t)round / 2 % 3);
        running_model r;
        running_start(&r, &file, round * 20);
        compare_model(&r);
        running_stop(&r);
    }
}

// The logits of a model that lies in an arena of `fill`.
static void run_piece_model(int in_pieces, uint32_t codec, int fill, const uint8_t image[PIECE_PIXELS],
                            int16_t logits[PIECE_CLASSES]) {
    small_model file = piece_model_make(in_pieces, codec);
    running_model r;
    running_start(&r, &file, fill);
    memcpy(tvit_tensor_data(&r.context, P_IMAGE), image, PIECE_PIXELS);
    CHECK(tvit_run(&r.context, ALL, NULL, NULL) == TVIT_OK, "run");
    memcpy(logits, tvit_tensor_data(&r.context, P_LOGITS), PIECE_CLASSES * sizeof *logits);
    running_stop(&r);
}

static void test_a_model_in_pieces_gives_the_logits_of_the_whole_one(void) {
    for (int round = 0; round < 20; round++) {
        uint8_t image[PIECE_PIXELS];
        int16_t whole[PIECE_CLASSES], pieces[PIECE_CLASSES];
        for (uint32_t i = 0; i < PIECE_PIXELS; i++)
            image[i] = (uint8_t)draw();
        run_piece_model(0, (uint32_t)round % 3, 0x33, image, whole);
        run_piece_model(1, (uint32_t)(round + 1) % 3, draw() & 255, image, pieces);
        CHECK(memcmp(whole, pieces, sizeof whole) == 0, "round %d: %d and %d", round, whole[0], pieces[0]);
        int different = 0;
        for (uint32_t i = 1; i < PIECE_CLASSES; i++)
            different |= whole[i] != whole[0];
        CHECK(different, "round %d: all logits are %d", round, whole[0]);
    }
}

static void test_first_row_selects_the_rows_of_the_input(void) {
    running_model r;
    start(&r, 1, TVIT_CODEC_BASE3);
    tvit_operator *ops = r.file.operators;
    ops[NORM].param.layernorm.first_row = ops[HEAD].param.linear.first_row = ops[POOL].param.mean_pool.first_row = 2;
    ops[NORM].input[0] = STREAM;
    ops[HEAD].input[0] = X;
    tvit_operator_args args;
    const int16_t *stream = tvit_tensor_data(&r.context, STREAM);
    tvit_bind_operator(&r.model, NORM, TVIT_LAYOUT_ROWS, &r.context, &args);
    CHECK(args.layernorm.input == stream + 2 * SMALL_DIM, "LayerNorm");
    tvit_bind_operator(&r.model, POOL, TVIT_LAYOUT_ROWS, &r.context, &args);
    CHECK(args.mean_pool.input == stream + 2 * SMALL_DIM, "mean pooling");
    tvit_bind_operator(&r.model, HEAD, TVIT_LAYOUT_ROWS, &r.context, &args);
    CHECK(args.linear.input == (int8_t *)tvit_tensor_data(&r.context, X) + 2 * SMALL_DIM, "linear");
    CHECK(args.linear.input_multipliers == tvit_tensor_multipliers(&r.context, X) + 2, "its multipliers");
    running_stop(&r);
}

static void test_a_second_run_gives_the_same_logits(void) {
    running_model r;
    start(&r, 0, TVIT_CODEC_BASE3);
    int16_t first[SMALL_CLASSES];
    for (int round = 0; round < 2; round++) {
        memset(tvit_tensor_data(&r.context, IMAGE), 77, 8); // the run overwrites the image
        CHECK(tvit_run(&r.context, ALL, NULL, NULL) == TVIT_OK, "run");
        const int16_t *logits = tvit_tensor_data(&r.context, LOGITS);
        if (round == 0) memcpy(first, logits, sizeof first);
        CHECK(memcmp(first, logits, sizeof first) == 0, "round %d", round);
    }
    running_stop(&r);
}

static int stop_at(void *user, const tvit_context *context, uint32_t index) {
    (void)context;
    uint32_t *seen = user;
    seen[1] = index;
    return index == seen[0];
}

static void test_a_run_stops_where_it_is_told(void) {
    running_model r;
    start(&r, 0, TVIT_CODEC_2BIT);
    uint32_t seen[2] = {Q, ALL};
    running_draw_image(&r);
    CHECK(tvit_run(&r.context, ALL, stop_at, seen) == TVIT_STOPPED && seen[1] == Q, "the observer: %u", seen[1]);
    seen[0] = ALL;
    CHECK(tvit_run(&r.context, NORM1, stop_at, seen) == TVIT_OK && seen[1] == NORM1, "the last operator: %u", seen[1]);
    CHECK(tvit_run(&r.context, 0, stop_at, seen) == TVIT_OK && seen[1] == 0, "the first operator: %u", seen[1]);
    CHECK(tvit_run(&r.context, OPERATORS, stop_at, seen) == TVIT_BAD_ARGUMENT, "an operator that does not exist");
    running_stop(&r);
}

static void test_an_unfit_arena_is_refused(void) {
    running_model r;
    start(&r, 0, TVIT_CODEC_BASE3);
    size_t bytes = tvit_arena_bytes(&r.model);
    CHECK(tvit_init(&r.context, &r.model, r.arena, bytes - 1) == TVIT_ARENA_TOO_SMALL, "one byte short");
    CHECK(tvit_init(&r.context, &r.model, r.arena + 8, bytes) == TVIT_MISALIGNED, "misaligned");
    CHECK(tvit_init(&r.context, &r.model, NULL, bytes) == TVIT_BAD_ARGUMENT, "no arena");
    CHECK(tvit_init(&r.context, NULL, r.arena, bytes) == TVIT_BAD_ARGUMENT, "no model");
    CHECK(tvit_tensor_data(&r.context, TENSORS) == NULL, "a tensor that does not exist");
    CHECK(tvit_tensor_multipliers(&r.context, TENSORS) == NULL, "its multipliers");
    CHECK(tvit_operator_scratch_bytes(&r.model, OPERATORS) == 0, "an operator that does not exist");
    running_stop(&r);
}

static void test_the_plan_reuses_the_memory_of_the_image_and_of_dead_activations(void) {
    running_model r;
    start(&r, 1, TVIT_CODEC_BASE3);
    const uint32_t *at = r.model.tensor_offsets;
    uint32_t total = 0;
    int reused = 0;
    for (uint32_t t = 0; t < TENSORS; t++) {
        total += (uint32_t)(tvit_tensor_bytes(&r.model, t) + 15) & ~15u;
        reused |= t != IMAGE && at[t] < at[IMAGE] + 8 && at[IMAGE] < at[t] + tvit_tensor_bytes(&r.model, t);
    }
    for (uint32_t i = 0; i < OPERATORS; i++) {
        const tvit_plan_scratch *s = &r.model.scratches[i];
        reused |= s->offset < at[IMAGE] + 8 && at[IMAGE] < s->offset + s->bytes;
    }
    CHECK(reused, "nothing lies where the image was");
    CHECK(r.model.plan->arena_bytes < total, "%u of %u", r.model.plan->arena_bytes, total);
    running_stop(&r);
}

// Bytes alive at one operator, of the tensors and of its scratch.
static uint32_t load_at(const tvit_model *model, uint32_t index) {
    uint32_t bytes = (uint32_t)(tvit_planned_scratch_bytes(model, index) + 15) & ~15u;
    for (uint32_t t = 0; t < model->tensor_count; t++) {
        uint32_t first = t == 0 ? 0 : ALL, last = 0;
        for (uint32_t i = 0; i < model->operator_count; i++) {
            const tvit_operator *op = &model->operators[i];
            if (op->input[0] != t && op->input[1] != t && op->input[2] != t && op->output != t) continue;
            if (first == ALL) first = i;
            last = i;
        }
        if (t == model->info->logits) last = model->operator_count;
        if (first <= index && index <= last) bytes += (uint32_t)(tvit_tensor_bytes(model, t) + 15) & ~15u;
    }
    return bytes;
}

static void test_the_plan_is_as_small_as_the_fullest_operator_needs(void) {
    for (int which = 0; which < 4; which++) {
        small_model file = which < 2 ? small_model_make(which, 0) : piece_model_make(which & 1, 0);
        running_model r;
        running_start(&r, &file, 0);
        uint32_t most = 0, scratch = 0;
        for (uint32_t i = 0; i < r.model.operator_count; i++) {
            uint32_t load = load_at(&r.model, i), bytes = (uint32_t)tvit_planned_scratch_bytes(&r.model, i);
            if (load > most) most = load;
            if (bytes > scratch) scratch = bytes;
            CHECK(r.model.scratches[i].bytes == ((bytes + 15) & ~15u), "operator %u: %u", i, bytes);
        }
        CHECK(r.model.plan->arena_bytes == most, "model %d: %u, %u alive", which, r.model.plan->arena_bytes, most);
        CHECK(r.model.plan->scratch_bytes == ((scratch + 15) & ~15u), "scratch %u", r.model.plan->scratch_bytes);
        running_stop(&r);
    }
}

// A model whose plan is made by hand: the tensors one behind the other, no scratch planned.
static small_model without_scratch(void) {
    small_model m = piece_model_make(1, TVIT_CODEC_GAPS);
    tvit_model model;
    uint32_t at = 0;
    if (tvit_load(&model, m.file, m.bytes, NULL)) abort();
    for (uint32_t t = 0; t < P_TENSORS; t++) {
        m.offsets[t] = at;
        at += (uint32_t)(tvit_tensor_bytes(&model, t) + 15) & ~15u;
    }
    memset(m.scratches, 0, P_OPERATORS * sizeof *m.scratches);
    *m.plan = (tvit_plan_record){.arena_bytes = at, .scratch_bytes = 0};
    return m;
}

static void test_scratch_that_was_not_planned_lies_behind_the_arena(void) {
    uint8_t image[PIECE_PIXELS];
    int16_t expected[PIECE_CLASSES];
    for (uint32_t i = 0; i < PIECE_PIXELS; i++)
        image[i] = (uint8_t)draw();
    run_piece_model(0, TVIT_CODEC_2BIT, 0x33, image, expected);
    for (int planned = 0; planned < 2; planned++) {
        small_model m = without_scratch();
        tvit_model model;
        if (planned) { // for one operator
            m.scratches[P_ATTN0] = (tvit_plan_scratch){m.plan->arena_bytes, 16384};
            *m.plan = (tvit_plan_record){.arena_bytes = m.plan->arena_bytes + 16384, .scratch_bytes = 16384};
        }
        small_model_seal(&m);
        CHECK(tvit_load(&model, m.file, m.bytes, NULL) == TVIT_OK, "planned %d", planned);
        size_t most = 0;
        for (uint32_t i = 0; i < P_OPERATORS; i++) {
            size_t bytes = (tvit_operator_scratch_bytes(&model, i) + 15) & ~(size_t)15;
            if (bytes > most && !(planned && i == P_ATTN0)) most = bytes;
        }
        CHECK(most > 0 && tvit_arena_bytes(&model) == model.plan->arena_bytes + most, "planned %d: %zu", planned,
              tvit_arena_bytes(&model));
        running_model r;
        running_start(&r, &m, 0x55);
        CHECK(tvit_init(&r.context, &r.model, r.arena, tvit_arena_bytes(&model) - 1) == TVIT_ARENA_TOO_SMALL, "less");
        CHECK(tvit_init(&r.context, &r.model, r.arena, tvit_arena_bytes(&model)) == TVIT_OK, "enough");
        memcpy(tvit_tensor_data(&r.context, P_IMAGE), image, PIECE_PIXELS);
        CHECK(tvit_run(&r.context, ALL, NULL, NULL) == TVIT_OK, "run");
        CHECK(memcmp(tvit_tensor_data(&r.context, P_LOGITS), expected, sizeof expected) == 0, "planned %d", planned);
        running_stop(&r);
    }
}

enum { GUARD = 64 };

// Memory of exactly so many bytes between painted guards.
static uint8_t *guarded(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 16, bytes + 2 * GUARD)) abort();
    memset(memory, 0xa7, bytes + 2 * GUARD);
    return (uint8_t *)memory + GUARD;
}

static uint32_t damage(const uint8_t *memory, size_t bytes) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < GUARD; i++)
        count += (memory[-1 - (int)i] != 0xa7) + (memory[bytes + i] != 0xa7);
    return count;
}

// The end of the last item of the plan that lies in the first `fast` bytes as a whole.
static uint32_t end_of_fast(const tvit_model *model, uint32_t fast) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < model->tensor_count; i++) {
        uint32_t end = model->tensor_offsets[i] + (uint32_t)tvit_tensor_bytes(model, i);
        if (end <= fast && end > most) most = end;
    }
    for (uint32_t i = 0; i < model->operator_count; i++) {
        uint32_t end = model->scratches[i].offset + model->scratches[i].bytes;
        if (tvit_operator_scratch_bytes(model, i) <= model->scratches[i].bytes && end <= fast && end > most) most = end;
    }
    return most;
}

// Every operator of a model with its first `fast_bytes` elsewhere, exactly as in one memory.
static void compare_split(const running_model *original, uint32_t fast_bytes) {
    running_model expected;
    const tvit_model *model = &original->model;
    const size_t bytes = tvit_arena_bytes(model);
    uint8_t *arena = guarded(bytes), *fast = guarded(fast_bytes);
    tvit_context context;
    running_start_unshared(&expected, original);
    running_draw_image(&expected);
    CHECK(tvit_init_split(&context, model, arena, bytes - 1, fast, fast_bytes) == TVIT_ARENA_TOO_SMALL, "less");
    CHECK(tvit_init_split(&context, model, arena, bytes, fast, fast_bytes) == TVIT_OK, "init");
    memcpy(tvit_tensor_data(&context, 0), tvit_tensor_data(&expected.context, 0), tvit_tensor_bytes(model, 0));
    for (uint32_t i = 0; i < model->operator_count; i++)
        running_reference_operator(&expected, i);
    CHECK(tvit_run(&context, ALL, NULL, NULL) == TVIT_OK, "run");
    CHECK(running_differences(&context, &expected, model->operator_count - 1) == 0, "%u fast bytes", fast_bytes);
    CHECK(damage(arena, bytes) == 0 && damage(fast, fast_bytes) == 0, "%u fast bytes", fast_bytes);
    size_t written = fast_bytes;
    while (written && fast[written - 1] == 0xa7)
        written--;
    CHECK(written <= end_of_fast(model, fast_bytes), "%zu of %u bytes", written, fast_bytes);
    CHECK((written > 0) == (end_of_fast(model, fast_bytes) > 0), "%zu of %u bytes", written, fast_bytes);
    free(arena - GUARD);
    free(fast - GUARD);
    running_stop(&expected);
}

static void test_the_first_bytes_of_an_arena_may_lie_elsewhere(void) {
    for (int which = 0; which < 4; which++) {
        small_model file = which < 2 ? small_model_make(which, 0) : piece_model_make(which & 1, TVIT_CODEC_GAPS);
        running_model r;
        running_start(&r, &file, 0);
        for (uint32_t fast = 0; fast <= r.model.plan->arena_bytes + 16; fast += 112)
            compare_split(&r, fast);
        compare_split(&r, r.model.plan->arena_bytes);
        running_stop(&r);
    }
}

// Scratch and the copy of the image that were not planned stay behind the arena.
static void test_what_was_not_planned_lies_behind_an_arena_in_two_memories(void) {
    small_model m = without_scratch();
    tvit_model model;
    small_model_seal(&m);
    if (tvit_load(&model, m.file, m.bytes, NULL)) abort();
    m.offsets[P_IMAGE] = m.offsets[P_STREAM] + tvit_image_lead(&model);
    small_model_seal(&m);
    running_model r;
    running_start(&r, &m, 0);
    CHECK(tvit_arena_bytes(&r.model) > r.model.plan->arena_bytes, "scratch behind the plan");
    for (uint32_t fast = 0; fast <= r.model.plan->arena_bytes; fast += 112)
        compare_split(&r, fast);
    running_stop(&r);
}

static void test_a_plan_for_two_memories_puts_first_what_is_read_most(void) {
    for (int which = 0; which < 4; which++) {
        small_model file = which < 2 ? small_model_make(which, 0) : piece_model_make(which & 1, TVIT_CODEC_GAPS);
        tvit_model model;
        tvit_plan_result result;
        uint32_t fast = 0;
        if (tvit_load(&model, file.file, file.bytes, NULL)) abort();
        for (uint32_t i = 0; i < model.operator_count; i++) // room for any input and any scratch
            if (model.operators[i].kind == TVIT_OP_LINEAR) {
                uint32_t bytes = (uint32_t)tvit_tensor_bytes(&model, model.operators[i].input[0]);
                if (bytes > fast) fast = bytes;
            }
        fast = ((fast + 15) & ~15u) + model.plan->scratch_bytes;
        CHECK(tvit_plan_split(&model, fast, &result, file.offsets, file.scratches) == TVIT_OK, "plan %d", which);
        *file.plan = (tvit_plan_record){.arena_bytes = result.arena_bytes, .scratch_bytes = result.scratch_bytes};
        small_model_seal(&file);
        running_model r;
        running_start(&r, &file, 0);
        CHECK(result.arena_bytes > fast, "model %d: %u of %u", which, fast, result.arena_bytes);
        for (uint32_t i = 0; i < r.model.operator_count; i++) {
            const tvit_operator *op = &r.model.operators[i];
            if (op->kind != TVIT_OP_LINEAR) continue;
            uint32_t t = op->input[0], end = r.model.tensor_offsets[t] + (uint32_t)tvit_tensor_bytes(&r.model, t);
            CHECK(end <= fast, "model %d, operator %u: its input ends at %u of %u", which, i, end, fast);
        }
        compare_split(&r, fast);
        running_stop(&r);
        CHECK(tvit_plan_split(NULL, fast, &result, NULL, NULL) == TVIT_BAD_ARGUMENT, "no model");
    }
}

static void test_an_unfit_second_memory_is_refused(void) {
    running_model r;
    start(&r, 0, TVIT_CODEC_BASE3);
    const size_t bytes = tvit_arena_bytes(&r.model);
    uint8_t *scratch = guarded(256);
    tvit_context *c = &r.context;
    CHECK(tvit_init_split(c, &r.model, r.arena, bytes, scratch + 8, 128) == TVIT_MISALIGNED, "misaligned");
    CHECK(tvit_init_split(c, &r.model, r.arena + 8, bytes, scratch, 256) == TVIT_MISALIGNED, "a misaligned arena");
    CHECK(tvit_init_split(c, &r.model, r.arena, bytes, NULL, 16) == TVIT_BAD_ARGUMENT, "bytes of nothing");
    CHECK(tvit_init_split(c, &r.model, NULL, bytes, scratch, 256) == TVIT_BAD_ARGUMENT, "no arena");
    CHECK(tvit_init_split(c, &r.model, r.arena, 0, scratch, 256) == TVIT_ARENA_TOO_SMALL, "an arena of nothing");
    CHECK(tvit_init_split(c, &r.model, r.arena, bytes, NULL, 0) == TVIT_OK, "one memory only");
    free(scratch - GUARD);
    running_stop(&r);
}

static void test_the_image_may_lie_in_the_stream_behind_its_lead(void) {
    uint8_t image[PIECE_PIXELS];
    int16_t expected[PIECE_CLASSES];
    for (uint32_t i = 0; i < PIECE_PIXELS; i++)
        image[i] = (uint8_t)draw();
    run_piece_model(0, TVIT_CODEC_2BIT, 0x33, image, expected);
    small_model m = without_scratch();
    tvit_model model;
    tvit_error error;
    small_model_seal(&m);
    CHECK(tvit_load(&model, m.file, m.bytes, NULL) == TVIT_OK, "apart");
    // Two blocks of 192 bytes. When the first is gathered, 15 patches: three lines of four, of 16 bytes each. Then all.
    uint32_t lead = tvit_image_lead(&model);
    CHECK(lead == 320, "lead %u", lead); // 2 * 192 - 64, more than 192 - 48
    m.offsets[P_IMAGE] = m.offsets[P_STREAM] + lead - 16;
    small_model_seal(&m);
    CHECK(tvit_load(&model, m.file, m.bytes, &error) == TVIT_BAD_PLAN && error.index == P_STREAM, "16 bytes too low");
    m.offsets[P_IMAGE] += 16;
    small_model_seal(&m);
    CHECK(tvit_load(&model, m.file, m.bytes, NULL) == TVIT_OK, "at the lead");
    running_model r;
    running_start(&r, &m, 0x55);
    // Even closer, as the loader would not accept it: rows without padding are shorter than the lead.
    r.file.offsets[P_IMAGE] = r.file.offsets[P_STREAM] + 16;
    memcpy(tvit_tensor_data(&r.context, P_IMAGE), image, PIECE_PIXELS);
    CHECK(tvit_run(&r.context, ALL, NULL, NULL) == TVIT_OK, "run");
    CHECK(memcmp(tvit_tensor_data(&r.context, P_LOGITS), expected, sizeof expected) == 0, "the copy of the image");
    running_stop(&r);
}

// The planner puts a large image into a larger stream.
static void test_the_plan_lets_image_and_stream_overlap(void) {
    running_model r;
    small_model m = piece_model_make(0, TVIT_CODEC_2BIT);
    running_start(&r, &m, 0);
    tvit_operator *ops = r.file.operators;
    tvit_plan_result result;
    uint32_t offsets[P_TENSORS];
    tvit_plan_scratch scratches[OPERATORS];
    // Only the records count: an image of 64 channels, one embedding and the head.
    r.file.info->image_channels = 64;
    r.file.tensors[P_IMAGE].columns *= 64;
    ops[1] = ops[HEAD];
    r.model.operator_count = 2;
    CHECK(tvit_plan(&r.model, &result, offsets, scratches) == TVIT_OK, "plan");
    uint32_t stream = offsets[P_STREAM], image = offsets[P_IMAGE], lead = tvit_image_lead(&r.model);
    uint32_t stream_bytes = (uint32_t)tvit_tensor_bytes(&r.model, P_STREAM);
    CHECK(lead < stream_bytes && image >= stream + lead && image < stream + stream_bytes, "image %u, stream %u + %u",
          image, stream, lead);
    running_stop(&r);
}

static void test_tensors_are_read_as_rows_from_any_byte(void) {
    running_model r;
    start(&r, 0, TVIT_CODEC_2BIT);
    uint8_t *stream = tvit_tensor_data(&r.context, STREAM), out[2 * SMALL_TOKENS * SMALL_DIM + 1];
    uint32_t all = tvit_tensor_value_bytes(&r.model.tensors[STREAM]);
    CHECK(all == 2 * SMALL_TOKENS * SMALL_DIM, "%u bytes", all);
    for (uint32_t i = 0; i < all; i++)
        stream[i] = (uint8_t)i;
    for (uint32_t from = 0; from < all; from++)
        for (uint32_t bytes = 0; bytes <= all - from; bytes++) {
            memset(out, 0xee, sizeof out);
            tvit_read_tensor(&r.context, STREAM, from, bytes, out);
            for (uint32_t i = 0; i < bytes; i++)
                CHECK(out[i] == from + i, "byte %u", from + i);
            CHECK(out[bytes] == 0xee, "behind %u", bytes);
        }
    running_stop(&r);
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
    RUN(test_every_operator_of_a_model_in_pieces_equals_the_contract);
    RUN(test_a_model_in_pieces_gives_the_logits_of_the_whole_one);
    RUN(test_first_row_selects_the_rows_of_the_input);
    RUN(test_a_second_run_gives_the_same_logits);
    RUN(test_a_run_stops_where_it_is_told);
    RUN(test_an_unfit_arena_is_refused);
    RUN(test_the_plan_reuses_the_memory_of_the_image_and_of_dead_activations);
    RUN(test_the_plan_is_as_small_as_the_fullest_operator_needs);
    RUN(test_scratch_that_was_not_planned_lies_behind_the_arena);
    RUN(test_the_first_bytes_of_an_arena_may_lie_elsewhere);
    RUN(test_what_was_not_planned_lies_behind_an_arena_in_two_memories);
    RUN(test_a_plan_for_two_memories_puts_first_what_is_read_most);
    RUN(test_an_unfit_second_memory_is_refused);
    RUN(test_the_image_may_lie_in_the_stream_behind_its_lead);
    RUN(test_the_plan_lets_image_and_stream_overlap);
    RUN(test_tensors_are_read_as_rows_from_any_byte);
    RUN(test_every_status_has_a_text_of_its_own);
    return check_result();
}
