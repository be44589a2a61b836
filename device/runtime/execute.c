// SPDX-License-Identifier: Apache-2.0
// Bind the operators' arguments to file and arena, and run them in order.
#include "internal.h"

// Element size by tvit_dtype.
static const uint8_t element_bytes[] = {[TVIT_U8] = 1, [TVIT_I8] = 1, [TVIT_I16] = 2};

static uint8_t *values(const tvit_model *model, uint8_t *arena, uint32_t tensor, uint32_t row) {
    const tvit_tensor *t = &model->tensors[tensor];
    return arena ? arena + model->tensor_offsets[tensor] + row * t->columns * element_bytes[t->dtype] : NULL;
}

static uint16_t *multipliers(const tvit_model *model, uint8_t *arena, uint32_t tensor, uint32_t row) {
    const tvit_tensor *t = &model->tensors[tensor];
    if (!arena || !(t->flags & TVIT_TENSOR_PER_TOKEN)) return NULL;
    uint32_t bytes = t->rows * t->columns * element_bytes[t->dtype];
    bytes = (bytes + TVIT_ALIGN - 1) & ~(TVIT_ALIGN - 1);
    return (uint16_t *)(arena + model->tensor_offsets[tensor] + bytes) + row;
}

static uint64_t join(uint32_t low, uint32_t high) {
    return (uint64_t)high << 32 | low;
}

static void bind_patch_embed(const tvit_model *model, const tvit_operator *op, uint8_t *arena,
                             tvit_patch_embed_args *args) {
    const tvit_patch_embed_params *p = &op->param.patch_embed;
    const tvit_model_record *info = model->info;
    *args = (tvit_patch_embed_args){
        .weights = {model->data + p->trits_at, (const uint32_t *)(model->data + p->channels_at), p->k, p->n, p->codec},
        .image = values(model, arena, op->input[0], 0),
        .image_height = info->image_height,
        .image_width = info->image_width,
        .image_channels = info->image_channels,
        .patch_size = info->patch_size,
        .position = (const int8_t *)(model->data + p->position_at),
        .position_multiplier = (int32_t)p->position_multiplier,
        .prefix = (const int16_t *)(model->data + p->prefix_at),
        .prefix_tokens = info->prefix_tokens,
        .output = (int16_t *)values(model, arena, op->output, 0),
    };
}

static void bind_layernorm(const tvit_model *model, const tvit_operator *op, uint8_t *arena,
                           tvit_layernorm_args *args) {
    const tvit_layernorm_params *p = &op->param.layernorm;
    *args = (tvit_layernorm_args){
        .input = (const int16_t *)values(model, arena, op->input[0], p->first_row),
        .gamma_beta = model->data + p->gamma_beta_at,
        .rows = p->rows,
        .n = model->tensors[op->input[0]].columns,
        .c = join(p->c_low, p->c_high),
        .epsilon = join(p->epsilon_low, p->epsilon_high),
        .beta_unit = p->beta_unit,
        .shift = p->shift,
        .output = (int8_t *)values(model, arena, op->output, 0),
        .per_token = model->tensors[op->output].flags & TVIT_TENSOR_PER_TOKEN,
        .output_multipliers = multipliers(model, arena, op->output, 0),
    };
}

static tvit_linear_output linear_output(const tvit_model *model, const tvit_operator *op) {
    const tvit_tensor *output = &model->tensors[op->output];
    if (output->dtype == TVIT_I16) return op->flags & TVIT_OP_ADD ? TVIT_LINEAR_I16_ADD : TVIT_LINEAR_I16_SET;
    if (!(op->flags & TVIT_OP_TABLE)) return TVIT_LINEAR_I8;
    return output->flags & TVIT_TENSOR_PER_TOKEN ? TVIT_LINEAR_TABLE_PER_TOKEN : TVIT_LINEAR_TABLE;
}

static void bind_linear(const tvit_model *model, const tvit_operator *op, uint8_t *arena, tvit_linear_args *args) {
    const tvit_linear_params *p = &op->param.linear;
    *args = (tvit_linear_args){
        .weights = {model->data + p->trits_at, (const uint32_t *)(model->data + p->channels_at), p->k, p->n, p->codec},
        .input = (const int8_t *)values(model, arena, op->input[0], p->first_row),
        .input_multipliers = multipliers(model, arena, op->input[0], p->first_row),
        .rows = p->rows,
        .kind = linear_output(model, op),
        .limit = (int32_t)p->limit,
        .table = op->flags & TVIT_OP_TABLE ? model->data + p->table_at : NULL,
        .output = values(model, arena, op->output, 0),
        .output_multipliers = multipliers(model, arena, op->output, 0),
    };
}

static void bind_attention(const tvit_model *model, const tvit_operator *op, uint8_t *arena,
                           tvit_attention_args *args) {
    const tvit_attention_params *p = &op->param.attention;
    *args = (tvit_attention_args){
        .q = (const int8_t *)values(model, arena, op->input[0], 0),
        .k = (const int8_t *)values(model, arena, op->input[1], 0),
        .v = (const int8_t *)values(model, arena, op->input[2], 0),
        .tokens = model->tensors[op->output].rows,
        .heads = p->heads,
        .head_dim = p->head_dim,
        .score_shift = p->score_shift,
        .exp_multiplier = (int32_t)p->exp_multiplier,
        .out_multiplier = p->out_multiplier,
        .out_shift = p->out_shift,
        .output = (int8_t *)values(model, arena, op->output, 0),
        .per_token = model->tensors[op->output].flags & TVIT_TENSOR_PER_TOKEN,
        .output_multipliers = multipliers(model, arena, op->output, 0),
    };
}

static void bind_mean_pool(const tvit_model *model, const tvit_operator *op, uint8_t *arena,
                           tvit_mean_pool_args *args) {
    const tvit_mean_pool_params *p = &op->param.mean_pool;
    *args = (tvit_mean_pool_args){
        .input = (const int16_t *)values(model, arena, op->input[0], p->first_row),
        .rows = p->rows,
        .n = model->tensors[op->input[0]].columns,
        .output = (int16_t *)values(model, arena, op->output, 0),
    };
}

void tvit_bind_operator(const tvit_model *model, uint32_t index, uint8_t *arena, tvit_operator_args *args) {
    const tvit_operator *op = &model->operators[index];
    switch (op->kind) {
    case TVIT_OP_PATCH_EMBED:
        bind_patch_embed(model, op, arena, &args->patch_embed);
        break;
    case TVIT_OP_LAYERNORM:
        bind_layernorm(model, op, arena, &args->layernorm);
        break;
    case TVIT_OP_LINEAR:
        bind_linear(model, op, arena, &args->linear);
        break;
    case TVIT_OP_ATTENTION:
        bind_attention(model, op, arena, &args->attention);
        break;
    case TVIT_OP_MEAN_POOL:
        bind_mean_pool(model, op, arena, &args->mean_pool);
        break;
    }
}

size_t tvit_operator_scratch_bytes(const tvit_model *model, uint32_t operator_index) {
    tvit_operator_args args;
    if (operator_index >= model->operator_count) return 0;
    tvit_bind_operator(model, operator_index, NULL, &args);
    switch (model->operators[operator_index].kind) {
    case TVIT_OP_PATCH_EMBED:
        return tvit_kernels.patch_embed_buffer_size(&args.patch_embed);
    case TVIT_OP_LAYERNORM:
        return tvit_kernels.layernorm_buffer_size(&args.layernorm);
    case TVIT_OP_LINEAR:
        return tvit_kernels.linear_buffer_size(&args.linear);
    case TVIT_OP_ATTENTION:
        return tvit_kernels.attention_buffer_size(&args.attention);
    default:
        return tvit_kernels.mean_pool_buffer_size(&args.mean_pool);
    }
}

static void run_operator(const tvit_context *context, uint32_t index) {
    const tvit_model *model = context->model;
    void *scratch = context->arena + model->plan->scratch_offset;
    tvit_operator_args args;
    tvit_bind_operator(model, index, context->arena, &args);
    switch (model->operators[index].kind) {
    case TVIT_OP_PATCH_EMBED:
        tvit_kernels.patch_embed(&args.patch_embed, scratch);
        break;
    case TVIT_OP_LAYERNORM:
        tvit_kernels.layernorm(&args.layernorm, scratch);
        break;
    case TVIT_OP_LINEAR:
        tvit_kernels.linear(&args.linear, scratch);
        break;
    case TVIT_OP_ATTENTION:
        tvit_kernels.attention(&args.attention, scratch);
        break;
    case TVIT_OP_MEAN_POOL:
        tvit_kernels.mean_pool(&args.mean_pool, scratch);
        break;
    }
}

tvit_status tvit_init(tvit_context *context, const tvit_model *model, void *arena, size_t arena_bytes) {
    if (!context || !model || !arena) return TVIT_BAD_ARGUMENT;
    if ((uintptr_t)arena % TVIT_ALIGN) return TVIT_MISALIGNED;
    if (arena_bytes < model->plan->arena_bytes) return TVIT_ARENA_TOO_SMALL;
    context->model = model;
    context->arena = arena;
    context->arena_bytes = arena_bytes;
    return TVIT_OK;
}

void *tvit_tensor_data(const tvit_context *context, uint32_t tensor) {
    return tensor < context->model->tensor_count ? values(context->model, context->arena, tensor, 0) : NULL;
}

uint16_t *tvit_tensor_multipliers(const tvit_context *context, uint32_t tensor) {
    return tensor < context->model->tensor_count ? multipliers(context->model, context->arena, tensor, 0) : NULL;
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
