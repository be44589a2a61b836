// SPDX-License-Identifier: Apache-2.0
// The planner on drawn lists of operators: what it makes holds by a plain look at all pairs, and by the loader's check,
// which also notices when two things are moved onto each other.
#include <stdlib.h>
#include <string.h>

#include "../runtime/internal.h"
#include "check.h"
#include "draw.h"

enum { MOST_TENSORS = 80, MOST_OPERATORS = 90 }; // more than one block of the loader's

typedef struct {
    tvit_model_record info;
    tvit_tensor tensors[MOST_TENSORS];
    tvit_operator operators[MOST_OPERATORS];
    tvit_plan_record record;
    uint32_t offsets[MOST_TENSORS];
    tvit_plan_scratch scratches[MOST_OPERATORS];
    tvit_model model;
} drawn_model;

static uint32_t draw_tensor(const drawn_model *d) {
    return (uint32_t)draw_between(1, (int32_t)d->model.tensor_count - 1);
}

// Records that say who touches what, when; the rest is as far from a network as it likes. Tensor 0 is the image, 1 the
// stream, 2 the logits.
static void draw_model(drawn_model *d) {
    memset(d, 0, sizeof *d);
    uint32_t patch = (uint32_t)draw_between(1, 8), across = (uint32_t)draw_between(1, 8), down = across;
    uint32_t channels = (uint32_t)draw_between(1, 12), prefix = (uint32_t)draw_between(0, 20);
    d->info = (tvit_model_record){
        .image_height = (uint16_t)(patch * down),
        .image_width = (uint16_t)(patch * across),
        .image_channels = (uint16_t)channels,
        .patch_size = (uint16_t)patch,
        .tokens = (uint16_t)(across * down + prefix),
        .prefix_tokens = (uint16_t)prefix,
        .embed_dim = (uint16_t)draw_between(1, 90),
        .scale_mode = draw() % 4 ? TVIT_SCALE_STATIC : TVIT_SCALE_PER_TOKEN,
        .stream = 1,
        .logits = 2,
    };
    d->model = (tvit_model){.info = &d->info,
                            .tensors = d->tensors,
                            .operators = d->operators,
                            .plan = &d->record,
                            .tensor_offsets = d->offsets,
                            .scratches = d->scratches};
    d->model.tensor_count = (uint32_t)draw_between(3, draw() % 4 ? 12 : MOST_TENSORS);
    d->model.operator_count = (uint32_t)draw_between(1, draw() % 4 ? 15 : MOST_OPERATORS);
    d->tensors[0] = (tvit_tensor){.rows = d->info.image_height, .columns = d->info.image_width * channels};
    d->tensors[1] = (tvit_tensor){.dtype = TVIT_I16, .rows = d->info.tokens, .columns = d->info.embed_dim};
    for (uint32_t t = 2; t < d->model.tensor_count; t++)
        d->tensors[t] = (tvit_tensor){.dtype = TVIT_I8,
                                      .rows = (uint32_t)draw_between(1, 50),
                                      .columns = (uint32_t)draw_between(1, draw() % 3 ? 20 : 200)};
    for (uint32_t i = 0; i < d->model.operator_count; i++) {
        tvit_operator *op = &d->operators[i];
        *op = (tvit_operator){.kind = draw() % 2 ? TVIT_OP_LINEAR : TVIT_OP_ATTENTION,
                              .input = {(uint16_t)draw_tensor(d), TVIT_NO_TENSOR, TVIT_NO_TENSOR},
                              .output = (uint16_t)draw_tensor(d)};
        if (op->kind == TVIT_OP_LINEAR) continue;
        op->input[1] = (uint16_t)draw_tensor(d);
        op->input[2] = (uint16_t)draw_tensor(d);
        op->param.attention.heads = 1;
        op->param.attention.head_dim = (uint32_t)draw_between(1, 20);
    }
    uint32_t embedding = draw() % 3 ? 0 : draw() % d->model.operator_count;
    d->operators[embedding] =
        (tvit_operator){.kind = TVIT_OP_PATCH_EMBED, .input = {0, TVIT_NO_TENSOR, TVIT_NO_TENSOR}};
    d->operators[embedding].output = 1;
    d->operators[embedding].param.patch_embed.k = patch * patch * channels;
}

static int touches(const tvit_operator *op, uint32_t t) {
    return op->input[0] == t || op->input[1] == t || op->input[2] == t || op->output == t;
}

// First and last operator at which a tensor is alive.
static void lifetime(const drawn_model *d, uint32_t t, int *first, int *last) {
    int count = (int)d->model.operator_count;
    *first = t == 0 ? -1 : count;
    *last = t == 0 ? -1 : 0;
    for (int i = count; i-- > 0;)
        if (touches(&d->operators[i], t)) *first = t == 0 ? -1 : i;
    for (int i = 0; i < count; i++)
        if (touches(&d->operators[i], t)) *last = i;
    if (*first == count) *first = 0; // touched by no operator
    if (t == 2) *last = count;
}

static uint32_t bytes_of(const drawn_model *d, uint32_t t) {
    return (uint32_t)tvit_tensor_bytes(&d->model, t);
}

static int meet(uint32_t a, uint32_t a_bytes, uint32_t b, uint32_t b_bytes) {
    return a < b + b_bytes && b < a + a_bytes;
}

// The image may lie over the stream where that is written when the image is read for the last time.
static int is_exception(const drawn_model *d, uint32_t t, uint32_t u) {
    int image_first, image_last, first, last;
    if (t > 0 && u > 0) return 0;
    lifetime(d, 0, &image_first, &image_last);
    lifetime(d, t + u, &first, &last);
    uint32_t lead = tvit_image_lead(&d->model);
    return t + u == 1 && d->info.scale_mode == TVIT_SCALE_STATIC && first == image_last &&
           d->offsets[0] >= (uint64_t)d->offsets[1] + lead;
}

// Pairs that lie on each other while both are alive.
static uint32_t conflicts(const drawn_model *d) {
    uint32_t found = 0;
    for (uint32_t t = 0; t < d->model.tensor_count; t++) {
        int first, last, other_first, other_last;
        lifetime(d, t, &first, &last);
        for (uint32_t u = 0; u < t; u++) {
            lifetime(d, u, &other_first, &other_last);
            found += first <= other_last && other_first <= last && !is_exception(d, t, u) &&
                     meet(d->offsets[t], bytes_of(d, t), d->offsets[u], bytes_of(d, u));
        }
        for (int i = first < 0 ? 0 : first; i <= last && i < (int)d->model.operator_count; i++)
            found += d->scratches[i].bytes &&
                     meet(d->offsets[t], bytes_of(d, t), d->scratches[i].offset, d->scratches[i].bytes);
    }
    return found;
}

// The bytes alive at the fullest operator, not counting an image that may lie in the stream.
static uint32_t bound(const drawn_model *d) {
    uint32_t most = 0;
    for (int i = 0; i < (int)d->model.operator_count; i++) {
        uint32_t bytes = (d->scratches[i].bytes + 15) & ~15u;
        for (uint32_t t = 1; t < d->model.tensor_count; t++) {
            int first, last;
            lifetime(d, t, &first, &last);
            if (first <= i && i <= last) bytes += (bytes_of(d, t) + 15) & ~15u;
        }
        if (bytes > most) most = bytes;
    }
    return most;
}

static int plan(drawn_model *d) {
    tvit_plan_result result;
    if (tvit_plan(&d->model, &result, d->offsets, d->scratches)) return 0;
    d->record = (tvit_plan_record){result.arena_bytes, result.scratch_bytes, {0, 0}};
    return 1;
}

static void test_plans_hold_by_a_plain_look_at_all_pairs(void) {
    uint32_t overlaps = 0, rounds = 1500;
    uint64_t made = 0, possible = 0;
    for (uint32_t round = 0; round < rounds; round++) {
        static drawn_model d;
        tvit_error error;
        draw_model(&d);
        CHECK(plan(&d), "round %u", round);
        CHECK(conflicts(&d) == 0, "round %u: %u pairs", round, conflicts(&d));
        CHECK(tvit_validate_plan(&d.model, &error) == TVIT_OK, "round %u: %s", round, error.reason);
        uint32_t end = 0, least = bound(&d);
        for (uint32_t t = 0; t < d.model.tensor_count; t++)
            if (d.offsets[t] + bytes_of(&d, t) > end) end = d.offsets[t] + bytes_of(&d, t);
        CHECK(end <= d.record.arena_bytes && d.record.arena_bytes >= least, "round %u", round);
        overlaps += meet(d.offsets[0], bytes_of(&d, 0), d.offsets[1], bytes_of(&d, 1)) && is_exception(&d, 0, 1);
        made += d.record.arena_bytes;
        possible += least;
    }
    CHECK(overlaps > rounds / 20, "image and stream overlap in %u of %u", overlaps, rounds);
    CHECK(made * 100 < possible * 115, "%llu bytes in all, %llu alive", (unsigned long long)made,
          (unsigned long long)possible);
}

// Moved plans: the loader accepts what has no conflict and refuses what has one.
static void test_the_loader_sees_every_overlap(void) {
    uint32_t accepted = 0, refused = 0;
    for (uint32_t round = 0; round < 3000; round++) {
        static drawn_model d;
        draw_model(&d);
        CHECK(plan(&d), "round %u", round);
        uint32_t t = draw() % d.model.tensor_count, i = draw() % d.model.operator_count;
        if (draw() % 3)
            d.offsets[t] = d.offsets[draw() % d.model.tensor_count] + 16 * (uint32_t)draw_between(0, 20);
        else
            d.scratches[i].offset = d.offsets[t];
        d.record.arena_bytes += 1u << 20;
        tvit_error error;
        int holds = tvit_validate_plan(&d.model, &error) == TVIT_OK;
        CHECK(holds == (conflicts(&d) == 0), "round %u: %u pairs, the loader says %s", round, conflicts(&d),
              error.reason);
        accepted += (uint32_t)holds;
        refused += (uint32_t)!holds;
    }
    CHECK(accepted > 300 && refused > 300, "%u accepted, %u refused", accepted, refused);
}

int main(void) {
    RUN(test_plans_hold_by_a_plain_look_at_all_pairs);
    RUN(test_the_loader_sees_every_overlap);
    return check_result();
}
