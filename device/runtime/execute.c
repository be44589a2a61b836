// SPDX-License-Identifier: Apache-2.0
// Run the operators in order, each on one core or shared by all of them.
#include "../kernels/pie/pie_kernels.h"
#include "internal.h"

// What the plan of a model with static scales is made for, whatever the build: its buffer sizes.
static const tvit_kernel_table planned_kernels = {
    .patch_embed_buffer_size = tvit_patch_embed_buffer_size_pie,
    .layernorm_buffer_size = tvit_layernorm_buffer_size_pie,
    .linear_buffer_size = tvit_linear_buffer_size_pie,
    .attention_buffer_size = tvit_attention_buffer_size_pie,
    .mean_pool_buffer_size = tvit_mean_pool_buffer_size_pie,
};

static size_t buffer_size(const tvit_kernel_table *table, uint32_t kind, const tvit_operator_args *args) {
    switch (kind) {
    case TVIT_OP_PATCH_EMBED:
        return table->patch_embed_buffer_size(&args->patch_embed);
    case TVIT_OP_LAYERNORM:
        return table->layernorm_buffer_size(&args->layernorm);
    case TVIT_OP_LINEAR:
        return table->linear_buffer_size(&args->linear);
    case TVIT_OP_ATTENTION:
        return table->attention_buffer_size(&args->attention);
    default:
        return table->mean_pool_buffer_size(&args->mean_pool);
    }
}

static size_t scratch_bytes(const tvit_model *model, uint32_t index, const tvit_kernel_table *table) {
    tvit_operator_args args;
    if (index >= model->operator_count) return 0;
    tvit_bind_operator(model, index, TVIT_LAYOUT_ROWS, NULL, &args); // shapes are the same in every layout
    return buffer_size(table, model->operators[index].kind, &args);
}

size_t tvit_operator_scratch_bytes(const tvit_model *model, uint32_t operator_index) {
    return scratch_bytes(model, operator_index, tvit_kernels_for(model));
}

size_t tvit_planned_scratch_bytes(const tvit_model *model, uint32_t operator_index) {
    int is_static = model->info->scale_mode == TVIT_SCALE_STATIC;
    return scratch_bytes(model, operator_index, is_static ? &planned_kernels : &tvit_kernels_portable);
}

// Bytes of the image where this operator must work on a copy, or 0.
static uint32_t copied_image_bytes(const tvit_model *model, uint32_t index) {
    const tvit_operator *op = &model->operators[index];
    if (op->kind != TVIT_OP_PATCH_EMBED || tvit_kernels_for(model)->layout != TVIT_LAYOUT_ROWS) return 0;
    uint32_t image = model->tensor_offsets[0], bytes = (uint32_t)tvit_tensor_bytes(model, 0);
    uint32_t output = model->tensor_offsets[op->output], end = output + (uint32_t)tvit_tensor_bytes(model, op->output);
    return image < end && output < image + bytes ? bytes : 0;
}

// What an operator has behind the planned arena: its scratch, then its copy of the image.
typedef struct {
    uint32_t scratch, image;
} extra_bytes;

// bytes: of the scratch that its kernel wants.
static extra_bytes behind_arena(const tvit_model *model, uint32_t index, size_t bytes) {
    uint32_t scratch = bytes > model->scratches[index].bytes ? tvit_aligned((uint32_t)bytes) : 0;
    return (extra_bytes){scratch, tvit_aligned(copied_image_bytes(model, index))};
}

size_t tvit_arena_bytes(const tvit_model *model) {
    size_t most = 0;
    for (uint32_t i = 0; i < model->operator_count; i++) {
        extra_bytes extra = behind_arena(model, i, tvit_operator_scratch_bytes(model, i));
        size_t bytes = (size_t)extra.scratch + extra.image;
        if (bytes > most) most = bytes;
    }
    size_t planned = model->plan->arena_bytes;
    return most > SIZE_MAX - planned ? SIZE_MAX : planned + most; // more than any 32-bit machine has
}

tvit_status tvit_init_split(tvit_context *context, const tvit_model *model, void *arena, size_t arena_bytes, void *fast,
                            size_t fast_bytes) {
    if (!context || !model || !arena || (!fast && fast_bytes)) return TVIT_BAD_ARGUMENT;
    if ((uintptr_t)arena % TVIT_ALIGN || (uintptr_t)fast % TVIT_ALIGN) return TVIT_MISALIGNED;
    if (arena_bytes < tvit_arena_bytes(model)) return TVIT_ARENA_TOO_SMALL;
    *context = (tvit_context){
        .model = model, .arena = arena, .arena_bytes = arena_bytes, .fast = fast, .fast_bytes = fast_bytes};
    return TVIT_OK;
}

tvit_status tvit_init(tvit_context *context, const tvit_model *model, void *arena, size_t arena_bytes) {
    return tvit_init_split(context, model, arena, arena_bytes, NULL, 0);
}

// One operator, as its parts see it.
typedef struct {
    const tvit_kernel_table *table;
    uint32_t kind;
    tvit_operator_args args;
    void *scratch;
} job;

static void work(void *argument, const tvit_team *team) {
    const job *j = argument;
    switch (j->kind) {
    case TVIT_OP_PATCH_EMBED:
        j->table->patch_embed(&j->args.patch_embed, j->scratch, team);
        break;
    case TVIT_OP_LAYERNORM:
        j->table->layernorm(&j->args.layernorm, j->scratch, team);
        break;
    case TVIT_OP_LINEAR:
        j->table->linear(&j->args.linear, j->scratch, team);
        break;
    case TVIT_OP_ATTENTION:
        j->table->attention(&j->args.attention, j->scratch, team);
        break;
    case TVIT_OP_MEAN_POOL:
        j->table->mean_pool(&j->args.mean_pool, j->scratch, team);
        break;
    }
}

static void run_operator(const tvit_context *context, uint32_t index) {
    static const tvit_team alone = {.part = 0, .parts = 1, .barrier = NULL};
    const tvit_model *model = context->model;
    const tvit_cores *cores = context->cores;
    uint8_t *behind = context->arena + model->plan->arena_bytes;
    job j = {.table = tvit_kernels_for(model), .kind = model->operators[index].kind};
    tvit_bind_operator(model, index, j.table->layout, context, &j.args);
    const tvit_plan_scratch *planned = &model->scratches[index];
    extra_bytes extra = behind_arena(model, index, buffer_size(j.table, j.kind, &j.args));
    j.scratch = extra.scratch ? behind : tvit_place(context, planned->offset, planned->bytes);
    if (extra.image) {
        const uint32_t *from = tvit_tensor_data(context, 0);
        uint32_t *to = (uint32_t *)(behind + extra.scratch);
        for (uint32_t word = 0; word < extra.image / sizeof *to; word++)
            to[word] = from[word];
        j.args.patch_embed.image = behind + extra.scratch;
    }
    if (cores && cores->cores > 1 && j.table->parallel)
        cores->run(cores->user, work, &j);
    else
        work(&j, &alone);
}

tvit_status tvit_run(tvit_context *context, uint32_t last, tvit_observer observer, void *user) {
    uint32_t count = context->model->operator_count;
    if (last != TVIT_NO_INDEX && last >= count) return TVIT_BAD_ARGUMENT;
    if (last != TVIT_NO_INDEX) count = last + 1;
    for (uint32_t i = 0; i < count; i++) {
        run_operator(context, i);
        if (observer && observer(user, context, i)) return TVIT_STOPPED;
    }
    return TVIT_OK;
}
