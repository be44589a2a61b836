// SPDX-License-Identifier: Apache-2.0
// The memory plan: which bytes of the arena each tensor has. Two tensors may share bytes unless both are alive at the
// same operator. A tensor is alive from its first access to its last; the image from before the first operator, the
// logits to behind the last one. The residual stream is one tensor that operators add to in place. The scratch is alive
// all the time.
#include "internal.h"

#define UNPLACED 0xffffffffu
#define BLOCK 64u

typedef struct {
    int16_t first, last; // operators; -1 before the first
} lifetime;

static uint32_t aligned(uint32_t bytes) {
    return (bytes + TVIT_ALIGN - 1) & ~(TVIT_ALIGN - 1);
}

static uint32_t tensor_bytes(const tvit_model *model, uint32_t t) {
    return (uint32_t)tvit_tensor_bytes(&model->tensors[t]);
}

// Lifetimes of the tensors first ... first + count - 1. One that no operator touches counts as alive at the first.
static void find_lifetimes(const tvit_model *model, uint32_t first, uint32_t count, lifetime *life) {
    for (uint32_t i = 0; i < count; i++)
        life[i] = (lifetime){.first = -2, .last = 0};
    if (first == 0) life[0] = (lifetime){.first = -1, .last = -1};
    for (uint32_t i = 0; i < model->operator_count; i++) {
        const tvit_operator *op = &model->operators[i];
        uint32_t used[4] = {op->input[0], op->input[1], op->input[2], op->output};
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t t = used[j] - first; // TVIT_NO_TENSOR and tensors of other blocks fall outside
            if (used[j] < first || t >= count) continue;
            if (life[t].first == -2) life[t].first = (int16_t)i;
            life[t].last = (int16_t)i;
        }
    }
    for (uint32_t i = 0; i < count; i++)
        if (life[i].first == -2) life[i].first = 0;
    if (model->info->logits - first < count) life[model->info->logits - first].last = (int16_t)model->operator_count;
}

static int together(lifetime a, lifetime b) {
    return a.first <= b.last && b.first <= a.last;
}

static int overlap(uint32_t a, uint32_t a_bytes, uint32_t b, uint32_t b_bytes) {
    return (uint64_t)b + b_bytes > a && (uint64_t)a + a_bytes > b;
}

size_t tvit_tensor_bytes(const tvit_tensor *tensor) {
    uint32_t values = tensor->rows * tensor->columns * (tensor->dtype == TVIT_I16 ? 2 : 1);
    return tensor->flags & TVIT_TENSOR_PER_TOKEN ? aligned(values) + 2 * tensor->rows : values;
}

static uint32_t scratch_of(const tvit_model *model) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < model->operator_count; i++) {
        uint32_t bytes = (uint32_t)tvit_operator_scratch_bytes(model, i);
        if (bytes > most) most = bytes;
    }
    return aligned(most);
}

// --- planning ----------------------------------------------------------------------------------------------------

// The lowest offset at which tensor t meets no placed tensor that is alive together with it.
static uint32_t first_fit(const tvit_model *model, const lifetime *life, const uint32_t *offsets, uint32_t t) {
    uint32_t bytes = tensor_bytes(model, t), at = 0;
    for (uint32_t u = 0; u < model->tensor_count; u++) {
        if (offsets[u] == UNPLACED || !together(life[t], life[u])) continue;
        uint32_t other = tensor_bytes(model, u);
        if (!overlap(at, bytes, offsets[u], other)) continue;
        at = aligned(offsets[u] + other);
        u = UNPLACED; // it moved up: look at all of them again
    }
    return at;
}

tvit_status tvit_plan(const tvit_model *model, tvit_plan_result *result, uint32_t *offsets) {
    lifetime life[TVIT_MAX_TENSORS];
    if (!model || !result || !offsets) return TVIT_BAD_ARGUMENT;
    uint64_t total = 0;
    for (uint32_t t = 0; t < model->tensor_count; t++) {
        offsets[t] = UNPLACED;
        total += aligned(tensor_bytes(model, t));
    }
    result->scratch_bytes = scratch_of(model);
    if (total + result->scratch_bytes >= UNPLACED) return TVIT_ARENA_TOO_SMALL; // of any 32-bit machine
    find_lifetimes(model, 0, model->tensor_count, life);

    uint32_t end = 0;
    for (uint32_t placed = 0; placed < model->tensor_count; placed++) {
        uint32_t largest = UNPLACED;
        for (uint32_t t = 0; t < model->tensor_count; t++)
            if (offsets[t] == UNPLACED &&
                (largest == UNPLACED || tensor_bytes(model, t) > tensor_bytes(model, largest)))
                largest = t;
        offsets[largest] = first_fit(model, life, offsets, largest);
        uint32_t behind = aligned(offsets[largest] + tensor_bytes(model, largest));
        if (behind > end) end = behind;
    }
    result->scratch_offset = end;
    result->arena_bytes = end + result->scratch_bytes;
    return TVIT_OK;
}

// --- validation --------------------------------------------------------------------------------------------------

static tvit_status check_placement(const tvit_model *model, uint32_t t, tvit_error *error) {
    const tvit_plan_record *plan = model->plan;
    uint32_t at = model->tensor_offsets[t], bytes = tensor_bytes(model, t);
    if (at % TVIT_ALIGN || at > plan->arena_bytes || bytes > plan->arena_bytes - at)
        return tvit_refuse(error, TVIT_BAD_PLAN, "PLAN", t, "a tensor outside the arena or misaligned");
    if (overlap(at, bytes, plan->scratch_offset, plan->scratch_bytes))
        return tvit_refuse(error, TVIT_BAD_PLAN, "PLAN", t, "a tensor overlaps the scratch");
    return TVIT_OK;
}

// Tensors in blocks, so that a model of many needs little stack.
tvit_status tvit_validate_plan(const tvit_model *model, tvit_error *error) {
    const tvit_plan_record *plan = model->plan;
    if (plan->reserved || plan->scratch_offset % TVIT_ALIGN || plan->scratch_offset > plan->arena_bytes ||
        plan->scratch_bytes > plan->arena_bytes - plan->scratch_offset)
        return tvit_refuse(error, TVIT_BAD_PLAN, "PLAN", TVIT_NO_INDEX, "the scratch lies outside the arena");
    lifetime mine[BLOCK], others[BLOCK];
    for (uint32_t t0 = 0; t0 < model->tensor_count; t0 += BLOCK) {
        uint32_t t1 = model->tensor_count - t0 < BLOCK ? model->tensor_count : t0 + BLOCK;
        find_lifetimes(model, t0, t1 - t0, mine);
        for (uint32_t t = t0; t < t1; t++) {
            tvit_status status = check_placement(model, t, error);
            if (status) return status;
        }
        for (uint32_t u0 = 0; u0 <= t0; u0 += BLOCK) {
            find_lifetimes(model, u0, u0 == t0 ? t1 - t0 : BLOCK, others);
            for (uint32_t t = t0; t < t1; t++)
                for (uint32_t u = u0; u < t && u < u0 + BLOCK; u++)
                    if (together(mine[t - t0], others[u - u0]) &&
                        overlap(model->tensor_offsets[t], tensor_bytes(model, t), model->tensor_offsets[u],
                                tensor_bytes(model, u)))
                        return tvit_refuse(error, TVIT_BAD_PLAN, "PLAN", t,
                                           "a tensor overlaps another while both are alive");
        }
    }
    if (plan->scratch_bytes < scratch_of(model))
        return tvit_refuse(error, TVIT_BAD_PLAN, "PLAN", TVIT_NO_INDEX,
                           "the scratch is too small for the kernels of this build: pack the model again");
    return TVIT_OK;
}
