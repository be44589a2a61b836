// SPDX-License-Identifier: Apache-2.0
// The kernels' arguments: an operator's record, its constants in the file, its tensors in the arena.
#include "internal.h"

typedef struct {
    const tvit_model *model;
    const tvit_context *context; // NULL: pointers into its arena are NULL
    tvit_layout layout;          // of the kernels that run the model
} binder;

// Row and column of a tensor; in token blocks the block that holds the row.
static void *values(const binder *b, uint32_t tensor, uint32_t row, uint32_t column) {
    if (!b->context) return NULL;
    const tvit_tensor *t = &b->model->tensors[tensor];
    if (tvit_tensor_layout(b->model, tensor, b->layout) == TVIT_LAYOUT_TOKEN_BLOCKS) {
        row -= row % TVIT_BLOCK_TOKENS;
        column *= TVIT_BLOCK_TOKENS;
    }
    return (uint8_t *)tvit_tensor_data(b->context, tensor) + (row * t->columns + column) * tvit_element_bytes(t);
}

static uint32_t lane(const binder *b, uint32_t row) {
    return b->layout == TVIT_LAYOUT_TOKEN_BLOCKS ? row % TVIT_BLOCK_TOKENS : 0;
}

// Only models with per-token scales have multipliers, and those run in rows.
static uint16_t *multipliers(const binder *b, uint32_t tensor, uint32_t row) {
    uint16_t *first = b->context ? tvit_tensor_multipliers(b->context, tensor) : NULL;
    return first ? first + row : NULL;
}

static uint64_t join(uint32_t low, uint32_t high) {
    return (uint64_t)high << 32 | low;
}

static void bind_patch_embed(const binder *b, const tvit_operator *op, tvit_patch_embed_args *args) {
    const tvit_patch_embed_params *p = &op->param.patch_embed;
    const tvit_model_record *info = b->model->info;
    const uint8_t *data = b->model->data;
    *args = (tvit_patch_embed_args){
        .weights = {data + p->trits_at, (const uint32_t *)(data + p->channels_at), p->k, p->n, p->codec},
        .image = values(b, op->input[0], 0, 0),
        .image_height = info->image_height,
        .image_width = info->image_width,
        .image_channels = info->image_channels,
        .patch_size = info->patch_size,
        .position = (const int8_t *)(data + p->position_at),
        .position_multiplier = (int32_t)p->position_multiplier,
        .prefix = (const int16_t *)(data + p->prefix_at),
        .prefix_tokens = info->prefix_tokens,
        .output = values(b, op->output, 0, 0),
    };
}

static void bind_layernorm(const binder *b, const tvit_operator *op, tvit_layernorm_args *args) {
    const tvit_layernorm_params *p = &op->param.layernorm;
    *args = (tvit_layernorm_args){
        .input = values(b, op->input[0], p->first_row, 0),
        .gamma_beta = b->model->data + p->gamma_beta_at,
        .rows = p->rows,
        .n = b->model->tensors[op->input[0]].columns,
        .c = join(p->c_low, p->c_high),
        .epsilon = join(p->epsilon_low, p->epsilon_high),
        .beta_unit = p->beta_unit,
        .shift = p->shift,
        .output = values(b, op->output, 0, 0),
        .per_token = b->model->tensors[op->output].flags & TVIT_TENSOR_PER_TOKEN,
        .output_multipliers = multipliers(b, op->output, 0),
    };
}

static tvit_linear_output linear_output(const tvit_model *model, const tvit_operator *op) {
    const tvit_tensor *output = &model->tensors[op->output];
    if (output->dtype == TVIT_I16) return op->flags & TVIT_OP_ADD ? TVIT_LINEAR_I16_ADD : TVIT_LINEAR_I16_SET;
    if (!(op->flags & TVIT_OP_TABLE)) return TVIT_LINEAR_I8;
    return output->flags & TVIT_TENSOR_PER_TOKEN ? TVIT_LINEAR_TABLE_PER_TOKEN : TVIT_LINEAR_TABLE;
}

static void bind_linear(const binder *b, const tvit_operator *op, tvit_linear_args *args) {
    const tvit_linear_params *p = &op->param.linear;
    const uint8_t *data = b->model->data;
    *args = (tvit_linear_args){
        .weights = {data + p->trits_at, (const uint32_t *)(data + p->channels_at), p->k, p->n, p->codec},
        .input = values(b, op->input[0], p->first_row, 0),
        .input_multipliers = multipliers(b, op->input[0], p->first_row),
        .rows = p->rows,
        .kind = linear_output(b->model, op),
        .limit = (int32_t)p->limit,
        .table = op->flags & TVIT_OP_TABLE ? data + p->table_at : NULL,
        .output = values(b, op->output, p->output_row, p->output_column),
        .output_multipliers = multipliers(b, op->output, 0),
        .output_columns = b->model->tensors[op->output].columns,
        .input_lane = lane(b, p->first_row),
        .output_is_row = op->output == b->model->info->logits,
    };
}

static void bind_attention(const binder *b, const tvit_operator *op, tvit_attention_args *args) {
    const tvit_attention_params *p = &op->param.attention;
    const tvit_tensor *tensors = b->model->tensors;
    *args = (tvit_attention_args){
        .q = values(b, op->input[0], 0, p->q_column),
        .k = values(b, op->input[1], 0, p->k_column),
        .v = values(b, op->input[2], 0, p->v_column),
        .q_columns = tensors[op->input[0]].columns,
        .k_columns = tensors[op->input[1]].columns,
        .v_columns = tensors[op->input[2]].columns,
        .output_columns = tensors[op->output].columns,
        .tokens = tensors[op->output].rows,
        .heads = p->heads,
        .head_dim = p->head_dim,
        .score_shift = p->score_shift,
        .exp_multiplier = (int32_t)p->exp_multiplier,
        .out_multiplier = p->out_multiplier,
        .out_shift = p->out_shift,
        .output = values(b, op->output, 0, p->output_column),
        .per_token = tensors[op->output].flags & TVIT_TENSOR_PER_TOKEN,
        .output_multipliers = multipliers(b, op->output, 0),
    };
}

static void bind_mean_pool(const binder *b, const tvit_operator *op, tvit_mean_pool_args *args) {
    const tvit_mean_pool_params *p = &op->param.mean_pool;
    *args = (tvit_mean_pool_args){
        .input = values(b, op->input[0], p->first_row, 0),
        .rows = p->rows,
        .n = b->model->tensors[op->input[0]].columns,
        .output = values(b, op->output, 0, 0),
        .input_lane = lane(b, p->first_row),
    };
}

void tvit_bind_operator(const tvit_model *model, uint32_t index, tvit_layout layout, const tvit_context *context,
                        tvit_operator_args *args) {
    const tvit_operator *op = &model->operators[index];
    const binder b = {model, context, layout};
    switch (op->kind) {
    case TVIT_OP_PATCH_EMBED:
        bind_patch_embed(&b, op, &args->patch_embed);
        break;
    case TVIT_OP_LAYERNORM:
        bind_layernorm(&b, op, &args->layernorm);
        break;
    case TVIT_OP_LINEAR:
        bind_linear(&b, op, &args->linear);
        break;
    case TVIT_OP_ATTENTION:
        bind_attention(&b, op, &args->attention);
        break;
    case TVIT_OP_MEAN_POOL:
        bind_mean_pool(&b, op, &args->mean_pool);
        break;
    }
}
