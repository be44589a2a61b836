// SPDX-License-Identifier: Apache-2.0
// Tensors in the arena: their size, their layout, their values as rows.
#include "internal.h"

uint32_t tvit_tensor_value_bytes(const tvit_tensor *tensor) {
    return tensor->rows * tensor->columns * tvit_element_bytes(tensor);
}

// The image and the logits are what the host sees: rows in every layout.
static int is_always_rows(const tvit_model *model, uint32_t tensor) {
    return model->tensors[tensor].dtype == TVIT_U8 || tensor == model->info->logits;
}

tvit_layout tvit_tensor_layout(const tvit_model *model, uint32_t tensor, tvit_layout activations) {
    return is_always_rows(model, tensor) ? TVIT_LAYOUT_ROWS : activations;
}

size_t tvit_tensor_bytes(const tvit_model *model, uint32_t tensor) {
    const tvit_tensor *t = &model->tensors[tensor];
    uint32_t values = tvit_tensor_value_bytes(t), rows = t->rows + TVIT_BLOCK_TOKENS - 1;
    if (t->flags & TVIT_TENSOR_PER_TOKEN) return tvit_aligned(values) + 2 * t->rows;
    if (model->info->scale_mode == TVIT_SCALE_PER_TOKEN || is_always_rows(model, tensor)) return values;
    return (rows - rows % TVIT_BLOCK_TOKENS) * t->columns * tvit_element_bytes(t);
}

void *tvit_tensor_data(const tvit_context *context, uint32_t tensor) {
    const tvit_model *model = context->model;
    if (tensor >= model->tensor_count) return NULL;
    return tvit_place(context, model->tensor_offsets[tensor], tvit_tensor_bytes(model, tensor));
}

uint16_t *tvit_tensor_multipliers(const tvit_context *context, uint32_t tensor) {
    const tvit_model *model = context->model;
    if (tensor >= model->tensor_count || !(model->tensors[tensor].flags & TVIT_TENSOR_PER_TOKEN)) return NULL;
    uint32_t values = tvit_aligned(tvit_tensor_value_bytes(&model->tensors[tensor]));
    return (uint16_t *)((uint8_t *)tvit_tensor_data(context, tensor) + values);
}

void tvit_read_tensor(const tvit_context *context, uint32_t tensor, uint32_t offset, uint32_t bytes, void *out) {
    const tvit_model *model = context->model;
    const tvit_tensor *t = &model->tensors[tensor];
    const uint8_t *data = tvit_tensor_data(context, tensor);
    uint8_t *to = out, *end = to + bytes;
    if (tvit_tensor_layout(model, tensor, tvit_kernels_for(model)->layout) == TVIT_LAYOUT_ROWS) {
        for (data += offset; to != end; data++)
            *to++ = *data;
        return;
    }
    uint32_t size = tvit_element_bytes(t), line = t->columns * size, row = offset / line, byte = offset % size;
    for (uint32_t column = offset % line / size; to != end; row++, column = 0) {
        uint32_t first = row / TVIT_BLOCK_TOKENS * t->columns * TVIT_BLOCK_TOKENS + row % TVIT_BLOCK_TOKENS;
        const uint8_t *value = data + (first + column * TVIT_BLOCK_TOKENS) * size;
        for (; column < t->columns && to != end; column++, value += TVIT_BLOCK_TOKENS * size, byte = 0)
            for (; byte < size && to != end; byte++)
                *to++ = value[byte];
    }
}

tvit_region tvit_operator_output(const tvit_model *model, uint32_t operator_index) {
    const tvit_operator *op = &model->operators[operator_index];
    const tvit_tensor *t = &model->tensors[op->output];
    tvit_region all = {.tensor = op->output, .rows = t->rows, .columns = t->columns};
    if (op->kind == TVIT_OP_LAYERNORM) all.rows = op->param.layernorm.rows;
    if (op->kind == TVIT_OP_LINEAR) {
        const tvit_linear_params *p = &op->param.linear;
        return (tvit_region){op->output, p->output_row, p->rows, p->output_column, p->n};
    }
    if (op->kind == TVIT_OP_ATTENTION) {
        all.column = op->param.attention.output_column;
        all.columns = op->param.attention.heads * op->param.attention.head_dim;
    }
    return all;
}
