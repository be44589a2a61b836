// SPDX-License-Identifier: Apache-2.0
// Nothing is read that no operator has written. Operators write pieces of tensors, so this is a question for each row
// and column: the operators before are looked through from the latest one, for the one that wrote it, and for those
// that have spoilt it since. No memory is needed but a few variables.
//
// What is spoilt: the columns of an attention's keys, which kernels may use as memory; and in token blocks the rows
// behind the last one written, up to a multiple of 16.
#include "internal.h"

static int holds(uint32_t first, uint32_t count, uint32_t at) {
    return at >= first && at - first < count;
}

// A row and column whose writer is looked for, and where the neighbours end that share its answer.
typedef struct {
    uint32_t row, column, row_end, column_end;
} probe;

// Take a spoilt region off the neighbours; 0 where it holds the probe itself.
static int keep_off(probe *p, const tvit_region *spoilt) {
    if (spoilt->rows == 0) return 1;
    if (!holds(spoilt->row, spoilt->rows, p->row)) {
        if (spoilt->row > p->row && spoilt->row < p->row_end) p->row_end = spoilt->row;
        return 1;
    }
    if (holds(spoilt->column, spoilt->columns, p->column)) return 0;
    if (spoilt->column > p->column && spoilt->column < p->column_end) p->column_end = spoilt->column;
    return 1;
}

// Rows of whole blocks that a write of this region covers with anything.
static tvit_region rows_behind(const tvit_model *model, const tvit_region *written) {
    uint32_t end = written->row + written->rows;
    int blocks = model->info->scale_mode == TVIT_SCALE_STATIC && written->tensor != model->info->logits;
    tvit_region behind = *written;
    behind.row = end;
    behind.rows = blocks ? (0u - end) % TVIT_BLOCK_TOKENS : 0;
    return behind;
}

// Whether the probe was written before operator `index` and is still as it was.
static int is_written(const tvit_model *model, uint32_t index, uint32_t tensor, probe *p) {
    for (uint32_t i = index; i > 0; i--) {
        const tvit_operator *op = &model->operators[i - 1];
        if (op->output == tensor) {
            tvit_region written = tvit_operator_output(model, i - 1), behind = rows_behind(model, &written);
            if (holds(written.row, written.rows, p->row) && holds(written.column, written.columns, p->column)) {
                uint32_t row_end = written.row + written.rows, column_end = written.column + written.columns;
                if (row_end < p->row_end) p->row_end = row_end;
                if (column_end < p->column_end) p->column_end = column_end;
                return 1;
            }
            if (!keep_off(p, &behind)) return 0;
        }
        if (op->kind == TVIT_OP_ATTENTION && op->input[1] == tensor) {
            const tvit_attention_params *a = &op->param.attention;
            tvit_region keys = {tensor, 0, model->tensors[tensor].rows, a->k_column, a->heads * a->head_dim};
            if (!keep_off(p, &keys)) return 0;
        }
    }
    return 0;
}

int tvit_is_written(const tvit_model *model, uint32_t index, const tvit_region *region) {
    uint32_t row_end = region->row + region->rows, column_end = region->column + region->columns;
    for (uint32_t row = region->row; row < row_end;) {
        uint32_t band_end = row_end; // rows that have the same writers as this one
        for (uint32_t column = region->column; column < column_end;) {
            probe p = {row, column, band_end, column_end};
            if (!is_written(model, index, region->tensor, &p)) return 0;
            band_end = p.row_end;
            column = p.column_end;
        }
        row = band_end;
    }
    return 1;
}
