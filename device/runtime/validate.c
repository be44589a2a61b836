// SPDX-License-Identifier: Apache-2.0
// Operators against the contract: tensors written before they are read, their types and shapes, constants in range,
// data inside DATA. Matrices are looked at by validate_matrix.c, the order of writing and reading by validate_order.c.
#include "internal.h"

typedef struct {
    const tvit_model *model;
    tvit_error *error;
    uint32_t index;
    const tvit_operator *op;
    const tvit_tensor *source, *output;
    int per_token; // scale mode of the model
    tvit_nonzero_table nonzero;
} checker;

static tvit_status shape(const checker *c, int ok, const char *reason) {
    return ok ? TVIT_OK : tvit_refuse(c->error, TVIT_BAD_OPERATOR, "OPER", c->index, reason);
}

static tvit_status range(const checker *c, int ok, const char *reason) {
    return ok ? TVIT_OK : tvit_refuse(c->error, TVIT_BAD_PARAMETER, "OPER", c->index, reason);
}

static const char wrong_tensor[] = "a tensor of the wrong type or shape";

static tvit_status data(const checker *c, uint32_t at, uint64_t bytes) {
    return range(c, at % TVIT_ALIGN == 0 && at + bytes <= c->model->data_bytes, "data outside DATA or misaligned");
}

// Pieces of models with static scales begin where a block of tokens does.
static tvit_status starts_block(const checker *c, uint32_t row) {
    return range(c, c->per_token || row % TVIT_BLOCK_TOKENS == 0, "a first row that is no multiple of 16");
}

static tvit_status rows_in_source(const checker *c, uint32_t first, uint32_t rows) {
    return range(c, rows >= 1 && (uint64_t)first + rows <= c->source->rows, "rows outside the input");
}

// Whether `count` values of int8 or int16 contain the excluded minimum.
static int has_minimum_i8(const checker *c, uint32_t at, uint32_t count) {
    const int8_t *values = (const int8_t *)(c->model->data + at);
    int found = 0;
    while (count--)
        found |= *values++ == -128;
    return found;
}

static int has_minimum_i16(const checker *c, uint32_t at, uint32_t count) {
    const int16_t *values = (const int16_t *)(c->model->data + at);
    int found = 0;
    while (count--)
        found |= *values++ == -32768;
    return found;
}

static tvit_status check_patch_embed(const checker *c) {
    const tvit_patch_embed_params *p = &c->op->param.patch_embed;
    const tvit_model_record *info = c->model->info;
    uint32_t patches = (uint32_t)info->tokens - info->prefix_tokens;
    uint64_t pixels = (uint64_t)info->patch_size * info->patch_size * info->image_channels;
    tvit_status status;
    if ((status = shape(c, c->op->input[0] == 0 && c->op->output == info->stream, wrong_tensor))) return status;
    if ((status = shape(c, p->n == info->embed_dim && p->k == pixels, wrong_tensor))) return status;
    if ((status = tvit_check_matrix(c->model, c->index, &c->nonzero, 128, c->error))) return status;
    int multiplier = p->position_multiplier >= 1 && p->position_multiplier <= 255;
    if ((status = range(c, multiplier, "position_multiplier out of range"))) return status;
    uint32_t prefix_values = info->prefix_tokens * p->n;
    if ((status = data(c, p->position_at, patches * p->n))) return status;
    if ((status = data(c, p->prefix_at, (uint64_t)prefix_values * 2))) return status;
    int excluded = has_minimum_i8(c, p->position_at, patches * p->n) || has_minimum_i16(c, p->prefix_at, prefix_values);
    return range(c, !excluded, "a value at the excluded minimum");
}

static tvit_status check_layernorm(const checker *c) {
    const tvit_layernorm_params *p = &c->op->param.layernorm;
    uint32_t n = c->source->columns;
    tvit_status status;
    if ((status = rows_in_source(c, p->first_row, p->rows))) return status;
    int types = c->source->dtype == TVIT_I16 && c->output->dtype == TVIT_I8;
    if ((status = shape(c, types && c->output->columns == n, wrong_tensor))) return status;
    int rows = c->per_token ? c->output->rows == p->rows : c->output->rows >= p->rows;
    if ((status = shape(c, rows && n <= 4096, wrong_tensor))) return status;
    if ((status = shape(c, (c->output->flags != 0) == c->per_token, wrong_tensor))) return status;
    if ((status = starts_block(c, p->first_row))) return status;
    if ((status = data(c, p->gamma_beta_at, (n + 1) / 2))) return status;
    const uint8_t *codes = c->model->data + p->gamma_beta_at;
    int malformed = 0;
    for (uint32_t i = 0; i < (n + 1) / 2; i++)
        malformed |= (codes[i] & 15) > 8 || codes[i] >> 4 > 8;
    if ((status = range(c, !malformed, "a gamma_beta code above 8"))) return status;
    int padded = n % 2 && codes[n / 2] >> 4;
    if ((status = range(c, !padded, "the padding of gamma_beta is not zero"))) return status;
    if ((status = range(c, p->shift >= 1 && p->shift <= 24, "shift out of range"))) return status;
    uint64_t scale = (uint64_t)p->c_high << 32 | p->c_low, epsilon = (uint64_t)p->epsilon_high << 32 | p->epsilon_low;
    int constants = scale >= 1 && scale < (uint64_t)1 << 62 && epsilon >= 1 && epsilon < (uint64_t)1 << 54;
    if ((status = range(c, constants, "C or epsilon out of range"))) return status;
    // u stays below sqrt(n) * C / (n * 2^15). From C = 2^52 on that is above 2^30, and below nothing here wraps.
    uint32_t root = 1;
    while (root * root < n)
        root++;
    uint32_t beta = p->beta_unit < 0 ? 0u - (uint32_t)p->beta_unit : (uint32_t)p->beta_unit;
    int fits = scale < (uint64_t)1 << 52 && (root * scale / n >> 15) + beta + (1u << p->shift) < 1u << 30;
    return range(c, fits, "C or beta_unit is too large");
}

static tvit_status check_table(const checker *c, const tvit_linear_params *p) {
    if (!(c->op->flags & TVIT_OP_TABLE)) return range(c, p->table_at == 0, "a table offset without a table");
    tvit_status status;
    if (c->output->flags) {
        if ((status = data(c, p->table_at, 512))) return status;
        int ok = !has_minimum_i16(c, p->table_at, 256) && *(const int16_t *)(c->model->data + p->table_at) == 0;
        return range(c, ok, "a table entry out of range");
    }
    if ((status = data(c, p->table_at, 256))) return status;
    return range(c, !has_minimum_i8(c, p->table_at, 256) && c->model->data[p->table_at] == 0,
                 "a table entry out of range");
}

// Where the output goes: into all of its tensor, or to a piece of it where scales are static.
static tvit_status check_linear_output(const checker *c, const tvit_linear_params *p) {
    const tvit_tensor *output = c->output;
    tvit_status status;
    if (c->per_token) {
        int rows = c->op->flags & TVIT_OP_ADD ? output->rows >= p->rows : output->rows == p->rows;
        if ((status = shape(c, output->columns == p->n && rows, wrong_tensor))) return status;
        return range(c, p->output_row == 0 && p->output_column == 0, "a piece of a tensor with per-token scales");
    }
    int inside =
        (uint64_t)p->output_row + p->rows <= output->rows && (uint64_t)p->output_column + p->n <= output->columns;
    if ((status = range(c, inside, "rows or columns outside the output"))) return status;
    if (c->op->output == c->model->info->logits) return TVIT_OK;
    if ((status = starts_block(c, p->first_row))) return status;
    return starts_block(c, p->output_row);
}

static tvit_status check_linear(const checker *c) {
    const tvit_linear_params *p = &c->op->param.linear;
    uint32_t adds = c->op->flags & TVIT_OP_ADD, table = c->op->flags & TVIT_OP_TABLE;
    tvit_status status;
    if ((status = rows_in_source(c, p->first_row, p->rows))) return status;
    if ((status = shape(c, c->source->dtype == TVIT_I8 && c->source->columns == p->k, wrong_tensor))) return status;
    if ((status = shape(c, (c->source->flags != 0) == c->per_token, wrong_tensor))) return status;
    if ((status = check_linear_output(c, p))) return status;
    if (c->output->dtype == TVIT_I16) {
        if ((status = shape(c, !table, "a table before an int16 output"))) return status;
        if ((status = range(c, p->limit == 32767, "limit out of range"))) return status;
    } else {
        if ((status = shape(c, c->output->dtype == TVIT_I8 && !adds, wrong_tensor))) return status;
        if ((status = range(c, p->limit >= 1 && p->limit <= 127, "limit out of range"))) return status;
    }
    if ((status = shape(c, !c->output->flags || table, "per-token output without a table"))) return status;
    if ((status = tvit_check_matrix(c->model, c->index, &c->nonzero, 127, c->error))) return status;
    return check_table(c, p);
}

// What an attention reads (0 q, 1 k, 2 v) and writes (3): all rows of some columns.
static tvit_region attention_region(const checker *c, uint32_t which) {
    const tvit_attention_params *p = &c->op->param.attention;
    const uint32_t columns[] = {p->q_column, p->k_column, p->v_column, p->output_column};
    uint32_t tensor = which < 3 ? c->op->input[which] : c->op->output;
    return (tvit_region){tensor, 0, c->model->tensors[tensor].rows, columns[which], p->heads * p->head_dim};
}

// Columns inside their tensors, and no two the same ones, but that the output may take the place of the queries.
static tvit_status check_attention_columns(const checker *c) {
    tvit_region regions[4];
    tvit_status status;
    for (uint32_t i = 0; i < 4; i++) {
        tvit_region r = regions[i] = attention_region(c, i);
        uint32_t columns = c->model->tensors[r.tensor].columns;
        int inside = c->per_token ? r.column == 0 && r.columns == columns : (uint64_t)r.column + r.columns <= columns;
        if ((status = range(c, inside, "columns outside a tensor"))) return status;
    }
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t j = 0; j < i; j++) {
            const tvit_region *a = &regions[i], *b = &regions[j];
            int apart = a->tensor != b->tensor || a->column >= b->column + b->columns ||
                        b->column >= a->column + a->columns || (i == 3 && j == 0 && a->column == b->column);
            if ((status = shape(c, apart, "the same columns twice"))) return status;
        }
    return TVIT_OK;
}

static tvit_status check_attention(const checker *c) {
    const tvit_attention_params *p = &c->op->param.attention;
    tvit_status status;
    int heads = p->heads >= 1 && p->head_dim >= 1 && (uint64_t)p->heads * p->head_dim <= c->output->columns;
    if ((status = range(c, heads, "heads times head_dim"))) return status;
    for (uint32_t i = 0; i < 3; i++) {
        const tvit_tensor *t = &c->model->tensors[c->op->input[i]];
        int fits = t->dtype == TVIT_I8 && !t->flags && t->rows == c->output->rows;
        if ((status = shape(c, fits, wrong_tensor))) return status;
    }
    if ((status = shape(c, c->output->dtype == TVIT_I8 && c->output->rows <= 2048, wrong_tensor))) return status;
    if ((status = shape(c, (c->output->flags != 0) == c->per_token, wrong_tensor))) return status;
    if ((status = check_attention_columns(c))) return status;
    int score = p->score_shift <= 15 && p->exp_multiplier >= 1 && p->exp_multiplier <= 32767;
    if ((status = range(c, score, "score_shift or exp_multiplier out of range"))) return status;
    int out = p->out_multiplier >= 1 && p->out_multiplier < 1u << 28 && p->out_shift >= 1 && p->out_shift <= 24;
    return range(c, out, "out_multiplier or out_shift out of range");
}

static tvit_status check_mean_pool(const checker *c) {
    const tvit_mean_pool_params *p = &c->op->param.mean_pool;
    tvit_status status;
    if ((status = rows_in_source(c, p->first_row, p->rows))) return status;
    if ((status = range(c, p->rows <= 65535, "rows out of range"))) return status;
    int types = c->source->dtype == TVIT_I16 && c->output->dtype == TVIT_I16;
    return shape(c, types && c->output->rows == 1 && c->output->columns == c->source->columns, wrong_tensor);
}

// What operator c->op reads was written, row by row and column by column.
static tvit_status check_order(const checker *c) {
    const tvit_operator *op = c->op;
    tvit_region read[3] = {{op->input[0], 0, c->source->rows, 0, c->source->columns}};
    uint32_t count = 1;
    switch (op->kind) {
    case TVIT_OP_PATCH_EMBED: // the image is there from the start
        return TVIT_OK;
    case TVIT_OP_ATTENTION:
        for (count = 0; count < 3; count++)
            read[count] = attention_region(c, count);
        break;
    case TVIT_OP_LAYERNORM:
        read[0].row = op->param.layernorm.first_row, read[0].rows = op->param.layernorm.rows;
        break;
    case TVIT_OP_LINEAR:
        read[0].row = op->param.linear.first_row, read[0].rows = op->param.linear.rows;
        if (op->flags & TVIT_OP_ADD) read[count++] = tvit_operator_output(c->model, c->index);
        break;
    default:
        read[0].row = op->param.mean_pool.first_row, read[0].rows = op->param.mean_pool.rows;
    }
    for (uint32_t i = 0; i < count; i++) {
        int written = tvit_is_written(c->model, c->index, &read[i]);
        tvit_status status = shape(c, written, "reads what no operator has written, or what one has used up");
        if (status) return status;
    }
    return TVIT_OK;
}

static tvit_status check_by_kind(const checker *c) {
    switch (c->op->kind) {
    case TVIT_OP_PATCH_EMBED:
        return check_patch_embed(c);
    case TVIT_OP_LAYERNORM:
        return check_layernorm(c);
    case TVIT_OP_LINEAR:
        return check_linear(c);
    case TVIT_OP_ATTENTION:
        return check_attention(c);
    default:
        return check_mean_pool(c);
    }
}

static int has_bit(const uint32_t bits[], uint32_t tensor) {
    return bits[tensor / 32] >> tensor % 32 & 1;
}

static tvit_status check_operator(checker *c, const uint32_t written[]) {
    const tvit_operator *op = c->op;
    uint32_t inputs = op->kind == TVIT_OP_ATTENTION ? 3 : 1, logits = c->model->info->logits;
    tvit_status status;
    for (uint32_t i = 0; i < inputs; i++)
        if ((status = shape(c, has_bit(written, op->input[i]), "reads a tensor before it is written"))) return status;
    int adds_to_nothing = op->flags & TVIT_OP_ADD && !has_bit(written, op->output);
    if ((status = shape(c, !adds_to_nothing, "adds to a tensor before it is written"))) return status;
    int own = op->kind != TVIT_OP_ATTENTION && op->input[0] == op->output;
    if ((status = shape(c, !own, "writes its own input"))) return status;
    int misuse = op->output == logits && op->kind != TVIT_OP_LINEAR;
    for (uint32_t i = 0; i < inputs; i++)
        misuse |= op->input[i] == logits;
    if ((status = shape(c, !misuse, "the logits are written by LINEAR and read by no operator"))) return status;
    c->source = &c->model->tensors[op->input[0]];
    c->output = &c->model->tensors[op->output];
    if ((status = check_by_kind(c))) return status;
    return check_order(c);
}

tvit_status tvit_validate_operators(const tvit_model *model, tvit_error *error) {
    uint32_t written[TVIT_MAX_TENSORS / 32] = {1}; // a bit a tensor; the image is there from the start
    checker c = {.model = model, .error = error, .per_token = model->info->scale_mode == TVIT_SCALE_PER_TOKEN};
    tvit_count_nonzero(&c.nonzero);
    for (c.index = 0; c.index < model->operator_count; c.index++) {
        c.op = &model->operators[c.index];
        tvit_status status = check_operator(&c, written);
        if (status) return status;
        written[c.op->output / 32] |= 1u << c.op->output % 32;
    }
    tvit_region logits = {model->info->logits, 0, 1, 0, model->info->classes};
    if (!tvit_is_written(model, model->operator_count, &logits))
        return tvit_refuse(error, TVIT_BAD_OPERATOR, "OPER", TVIT_NO_INDEX, "no operator writes the logits");
    return TVIT_OK;
}
