// SPDX-License-Identifier: Apache-2.0
// The memory plan: which bytes of the arena each tensor and each operator's scratch has. Two of them may share bytes
// unless both are alive at the same operator. A tensor is alive from its first access to its last; the image from
// before the first operator, the logits to behind the last one; a scratch at its operator only. The residual stream is
// one tensor that operators add to in place. Image and stream may overlap as tvit_image_lead() tells.
#include "internal.h"

#define UNPLACED 0xffffffffu
#define BLOCK 64u // tensors whose lifetimes are looked at together
#define MAX_ITEMS (TVIT_MAX_TENSORS + TVIT_MAX_OPERATORS)

typedef struct {
    int16_t first, last; // operators; -1 before the first
} lifetime;

static uint32_t tensor_bytes(const tvit_model *model, uint32_t t) {
    return (uint32_t)tvit_tensor_bytes(model, t);
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

// The last operator that reads the image.
static uint32_t last_embedding(const tvit_model *model) {
    for (uint32_t i = model->operator_count; i > 0; i--)
        if (model->operators[i - 1].kind == TVIT_OP_PATCH_EMBED) return i - 1;
    return TVIT_NO_INDEX;
}

// The tensor that may overlap the image: written by the image's last reader, untouched before. TVIT_NO_TENSOR: none.
static uint32_t overlapping_tensor(const tvit_model *model) {
    uint32_t embedding = last_embedding(model);
    if (embedding == TVIT_NO_INDEX || model->info->scale_mode == TVIT_SCALE_PER_TOKEN) return TVIT_NO_TENSOR;
    uint32_t tensor = model->operators[embedding].output;
    lifetime life;
    find_lifetimes(model, tensor, 1, &life);
    return life.first == (int16_t)embedding ? tensor : TVIT_NO_TENSOR;
}

uint32_t tvit_image_lead(const tvit_model *model) {
    const tvit_model_record *info = model->info;
    if (overlapping_tensor(model) == TVIT_NO_TENSOR) return UNPLACED;
    uint32_t per_line = info->image_width / info->patch_size, patches = info->tokens - info->prefix_tokens;
    uint32_t line_bytes = (uint32_t)info->image_width * info->image_channels * info->patch_size, lead = 0;
    for (uint32_t end = TVIT_BLOCK_TOKENS; end < info->tokens + TVIT_BLOCK_TOKENS; end += TVIT_BLOCK_TOKENS) {
        uint32_t gathered = end < info->prefix_tokens ? 0 : end - info->prefix_tokens;
        uint32_t read = (gathered < patches ? gathered : patches) / per_line * line_bytes;
        uint32_t written = end * info->embed_dim * sizeof(int16_t);
        if (written > read && written - read > lead) lead = written - read;
    }
    return tvit_aligned(lead);
}

// --- planning ----------------------------------------------------------------------------------------------------

// What has a place in the arena: the tensors, then the operators' scratches.
typedef struct {
    uint32_t offset, bytes; // bytes a multiple of 16
    uint32_t reads;         // how often each byte is read or written, about
    lifetime life;
} item;

typedef struct {
    uint32_t tensors, count; // items
    uint32_t partner, lead;  // the item that may overlap the image, and from where on
    item items[MAX_ITEMS];
    uint16_t order[MAX_ITEMS];  // in which the items are placed
    uint16_t placed[MAX_ITEMS]; // those that have a place, by offset
} layout;

// The lowest offset at which item i meets no placed one that is alive together with it.
static uint32_t first_fit(const layout *l, uint32_t i, uint32_t placed) {
    const item *mine = &l->items[i], *under = NULL; // the image, where the item would lie over it
    uint32_t at = 0;
    for (uint32_t j = 0; j < placed; j++) {
        uint32_t u = l->placed[j];
        const item *other = &l->items[u];
        if (at + mine->bytes <= other->offset) break; // and so all that follow
        uint32_t end = other->offset + other->bytes;
        if (!together(mine->life, other->life) || at >= end) continue;
        if (i == 0 && u == l->partner) end = other->offset + l->lead;
        if (i == l->partner && u == 0 && at + l->lead <= other->offset) {
            under = other;
            continue;
        }
        if (at < end) at = end;
        // Moved up, it may now be ahead of the image.
        if (under && at + l->lead > under->offset && at < under->offset + under->bytes)
            at = under->offset + under->bytes;
    }
    return at;
}

// Give item i its offset, after `placed` others.
static void put(layout *l, uint32_t i, uint32_t offset, uint32_t placed) {
    uint32_t at = placed;
    l->items[i].offset = offset;
    for (; at > 0 && l->items[l->placed[at - 1]].offset > offset; at--)
        l->placed[at] = l->placed[at - 1];
    l->placed[at] = (uint16_t)i;
}

// Place the items in order; the bytes they need.
static uint32_t place(layout *l) {
    uint32_t most = 0;
    for (uint32_t placed = 0; placed < l->count; placed++) {
        uint32_t i = l->order[placed];
        put(l, i, first_fit(l, i, placed), placed);
        if (l->items[i].offset + l->items[i].bytes > most) most = l->items[i].offset + l->items[i].bytes;
    }
    return most;
}

// The same, but first those that fit into the first fast_bytes as a whole.
static uint32_t place_split(layout *l, uint32_t fast_bytes) {
    uint32_t placed = 0, rest = 0, most = 0;
    for (uint32_t n = 0; n < l->count; n++) {
        uint32_t i = l->order[n], at = first_fit(l, i, placed);
        if ((uint64_t)at + l->items[i].bytes <= fast_bytes)
            put(l, i, at, placed++);
        else
            l->order[rest++] = (uint16_t)i;
    }
    for (uint32_t n = 0; n < rest; n++)
        put(l, l->order[n], first_fit(l, l->order[n], placed), placed), placed++;
    for (uint32_t i = 0; i < l->count; i++)
        if (l->items[i].offset + l->items[i].bytes > most) most = l->items[i].offset + l->items[i].bytes;
    return most;
}

// Bytes alive at each operator (loads[0]: before the first); the most of them.
static uint32_t find_loads(const layout *l, uint32_t *loads, uint32_t count) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < count; i++)
        loads[i] = 0;
    for (uint32_t i = 0; i < l->count; i++)
        for (int32_t at = l->items[i].life.first; at <= l->items[i].life.last; at++)
            loads[at + 1] += l->items[i].bytes;
    for (uint32_t i = 0; i < count; i++)
        if (loads[i] > most) most = loads[i];
    return most;
}

// What an order goes by first; among equals the larger item comes first, then the lower number.
enum { BY_SIZE, BY_LIFETIME, BY_AREA, BY_LOAD, BY_START, ORDERS, BY_READS = ORDERS };

static uint64_t rank(const layout *l, const uint32_t *loads, uint32_t i, int order) {
    const item *mine = &l->items[i];
    uint32_t length = (uint32_t)(mine->life.last - mine->life.first + 1), load = 0;
    switch (order) {
    case BY_LIFETIME:
        return length;
    case BY_AREA:
        return (uint64_t)length * mine->bytes;
    case BY_LOAD:
        for (int32_t at = mine->life.first; at <= mine->life.last; at++)
            if (loads[at + 1] > load) load = loads[at + 1];
        return load;
    case BY_READS:
        return mine->reads;
    case BY_START:
        return (uint32_t)(TVIT_MAX_OPERATORS - mine->life.first);
    default:
        return 0;
    }
}

static void sort(layout *l, const uint32_t *loads, int order, int image_first) {
    uint64_t ranks[MAX_ITEMS];
    for (uint32_t i = 0; i < l->count; i++) {
        uint32_t at = i;
        ranks[i] = rank(l, loads, i, order);
        if (image_first && (i == 0 || i == l->partner)) ranks[i] = UINT64_MAX - (i == 0);
        for (; at > 0; at--) {
            uint32_t before = l->order[at - 1];
            if (ranks[before] > ranks[i]) break;
            if (ranks[before] == ranks[i] && l->items[before].bytes >= l->items[i].bytes) break;
            l->order[at] = (uint16_t)before;
        }
        l->order[at] = (uint16_t)i;
    }
}

static tvit_status find_items(const tvit_model *model, layout *l) {
    lifetime life[TVIT_MAX_TENSORS];
    uint64_t total = 0;
    find_lifetimes(model, 0, model->tensor_count, life);
    l->tensors = model->tensor_count;
    l->count = model->tensor_count + model->operator_count;
    l->partner = overlapping_tensor(model);
    l->lead = tvit_image_lead(model);
    for (uint32_t i = 0; i < l->count; i++) {
        item *mine = &l->items[i];
        uint32_t op = i - l->tensors;
        size_t bytes = i < l->tensors ? tensor_bytes(model, i) : tvit_planned_scratch_bytes(model, op);
        mine->life = i < l->tensors ? life[i] : (lifetime){(int16_t)op, (int16_t)op};
        mine->bytes = tvit_aligned((uint32_t)bytes);
        mine->offset = 0;
        mine->reads = 0;
        total += (uint64_t)bytes + TVIT_ALIGN;
    }
    return total < UNPLACED ? TVIT_OK : TVIT_ARENA_TOO_SMALL; // of any 32-bit machine
}

// Every output channel of a linear operator reads all of its input, as that of the patch embedding reads the patches in
// its scratch; every block of queries reads keys, values and the scratch of its operator. Anything else is touched a
// few times.
static void find_reads(const tvit_model *model, layout *l) {
    for (uint32_t i = 0; i < l->count; i++)
        l->items[i].reads = i >= l->tensors; // scratch before tensors
    for (uint32_t i = 0; i < model->operator_count; i++) {
        const tvit_operator *op = &model->operators[i];
        item *scratch = &l->items[l->tensors + i];
        const uint32_t blocks = 1 + model->info->tokens / TVIT_BLOCK_TOKENS;
        if (op->kind == TVIT_OP_LINEAR) l->items[op->input[0]].reads += op->param.linear.n;
        if (op->kind == TVIT_OP_PATCH_EMBED) scratch->reads += op->param.patch_embed.n;
        if (op->kind == TVIT_OP_ATTENTION) {
            scratch->reads += blocks * op->param.attention.heads;
            l->items[op->input[1]].reads += blocks;
            l->items[op->input[2]].reads += blocks;
        }
    }
}

static void tell(const layout *l, uint32_t arena_bytes, tvit_plan_result *result, uint32_t *offsets,
                 tvit_plan_scratch *scratches) {
    *result = (tvit_plan_result){.arena_bytes = arena_bytes};
    for (uint32_t i = 0; i < l->tensors; i++)
        offsets[i] = l->items[i].offset;
    for (uint32_t i = l->tensors; i < l->count; i++) {
        scratches[i - l->tensors] = (tvit_plan_scratch){l->items[i].offset, l->items[i].bytes};
        if (l->items[i].bytes > result->scratch_bytes) result->scratch_bytes = l->items[i].bytes;
    }
}

tvit_status tvit_plan_split(const tvit_model *model, uint32_t fast_bytes, tvit_plan_result *result, uint32_t *offsets,
                            tvit_plan_scratch *scratches) {
    layout l;
    if (!model || !result || !offsets || !scratches) return TVIT_BAD_ARGUMENT;
    tvit_status status = find_items(model, &l);
    if (status) return status;
    find_reads(model, &l);
    sort(&l, NULL, BY_READS, 0);
    tell(&l, place_split(&l, fast_bytes), result, offsets, scratches);
    return TVIT_OK;
}

tvit_status tvit_plan(const tvit_model *model, tvit_plan_result *result, uint32_t *offsets,
                      tvit_plan_scratch *scratches) {
    layout l;
    uint32_t loads[TVIT_MAX_OPERATORS + 2];
    if (!model || !result || !offsets || !scratches) return TVIT_BAD_ARGUMENT;
    tvit_status status = find_items(model, &l);
    if (status) return status;
    uint32_t bound = find_loads(&l, loads, model->operator_count + 2);
    *result = (tvit_plan_result){.arena_bytes = UNPLACED, .scratch_bytes = 0};
    int image_first = l.partner != TVIT_NO_TENSOR && l.lead < l.items[l.partner].bytes;
    for (int order = 0; order < 2 * ORDERS && (image_first || result->arena_bytes > bound); order++) {
        if (order % 2 && !image_first) continue;
        sort(&l, loads, order / 2, order % 2);
        uint32_t arena = place(&l);
        if (arena >= result->arena_bytes) continue;
        tell(&l, arena, result, offsets, scratches);
    }
    return TVIT_OK;
}

// --- validation --------------------------------------------------------------------------------------------------

// Inside the arena and aligned.
static int is_placed(const tvit_model *model, uint32_t offset, uint32_t bytes) {
    uint32_t end = model->plan->arena_bytes;
    return offset % TVIT_ALIGN == 0 && offset <= end && bytes <= end - offset;
}

static tvit_status check_records(const tvit_model *model, tvit_error *error) {
    const tvit_plan_record *plan = model->plan;
    uint32_t most = 0;
    int misplaced = 0;
    for (uint32_t i = 0; i < model->operator_count; i++) {
        const tvit_plan_scratch *s = &model->scratches[i];
        misplaced |= !is_placed(model, s->offset, s->bytes);
        if (s->bytes > most) most = s->bytes;
    }
    if (plan->reserved[0] || plan->reserved[1] || plan->arena_bytes % TVIT_ALIGN || plan->scratch_bytes != most)
        return tvit_refuse(error, TVIT_BAD_PLAN, "PLAN", TVIT_NO_INDEX, "the plan's record does not hold");
    if (misplaced)
        return tvit_refuse(error, TVIT_BAD_PLAN, "PLAN", TVIT_NO_INDEX, "a scratch outside the arena or misaligned");
    for (uint32_t t = 0; t < model->tensor_count; t++)
        if (!is_placed(model, model->tensor_offsets[t], tensor_bytes(model, t)))
            return tvit_refuse(error, TVIT_BAD_PLAN, "PLAN", t, "a tensor outside the arena or misaligned");
    return TVIT_OK;
}

static int meets_scratch(const tvit_model *model, uint32_t t, lifetime life) {
    uint32_t at = model->tensor_offsets[t], bytes = tensor_bytes(model, t);
    for (uint32_t i = 0; i < model->operator_count; i++) {
        const tvit_plan_scratch *s = &model->scratches[i];
        if (s->bytes && together(life, (lifetime){(int16_t)i, (int16_t)i}) && overlap(at, bytes, s->offset, s->bytes))
            return 1;
    }
    return 0;
}

// Tensors in blocks, so that a model of many needs little stack.
tvit_status tvit_validate_plan(const tvit_model *model, tvit_error *error) {
    lifetime mine[BLOCK], others[BLOCK];
    tvit_status status = check_records(model, error);
    if (status) return status;
    const uint32_t *offsets = model->tensor_offsets;
    uint32_t partner = overlapping_tensor(model), lead = tvit_image_lead(model);
    for (uint32_t t0 = 0; t0 < model->tensor_count; t0 += BLOCK) {
        uint32_t t1 = model->tensor_count - t0 < BLOCK ? model->tensor_count : t0 + BLOCK;
        find_lifetimes(model, t0, t1 - t0, mine);
        for (uint32_t t = t0; t < t1; t++)
            if (meets_scratch(model, t, mine[t - t0]))
                return tvit_refuse(error, TVIT_BAD_PLAN, "PLAN", t, "a tensor overlaps a scratch while it is alive");
        for (uint32_t u0 = 0; u0 <= t0; u0 += BLOCK) {
            find_lifetimes(model, u0, u0 == t0 ? t1 - t0 : BLOCK, others);
            for (uint32_t t = t0; t < t1; t++)
                for (uint32_t u = u0; u < t && u < u0 + BLOCK; u++) {
                    if (!together(mine[t - t0], others[u - u0])) continue;
                    if (!overlap(offsets[t], tensor_bytes(model, t), offsets[u], tensor_bytes(model, u))) continue;
                    if (u == 0 && t == partner && offsets[0] >= (uint64_t)offsets[t] + lead) continue;
                    return tvit_refuse(error, TVIT_BAD_PLAN, "PLAN", t,
                                       "a tensor overlaps another while both are alive");
                }
        }
    }
    return TVIT_OK;
}
