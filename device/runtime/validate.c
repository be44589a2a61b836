// SPDX-License-Identifier: Apache-2.0
// Operators against the contract: tensors written before they are read, their types and shapes, constants in range,
// data inside DATA, well-formed trits, and each channel's proof obligation (CONTRACT.md, section 1).
#include "internal.h"

#define LANE_LIMIT (1u << 19)
#define MALFORMED 0x80u // a bit that no count of trits has

typedef struct {
    const tvit_model *model;
    tvit_error *error;
    uint32_t index;
    const tvit_operator *op;
    const tvit_tensor *source, *output;
    int per_token;           // scale mode of the model
    uint8_t nonzero[2][256]; // by codec: non-zero trits of a byte, or MALFORMED
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

static tvit_status rows_in_source(const checker *c, uint32_t first, uint32_t rows) {
    return range(c, rows >= 1 && (uint64_t)first + rows <= c->source->rows, "rows outside the input");
}

static void count_nonzero(uint8_t nonzero[2][256]) {
    for (uint32_t code = 0; code < 256; code++) {
        uint32_t rest = code, count = 0;
        for (int i = 0; i < 5; i++, rest /= 3)
            count += rest % 3 != 1;
        nonzero[TVIT_CODEC_BASE3][code] = code <= 242 ? (uint8_t)count : MALFORMED;
        count = 0;
        for (rest = code; rest; rest >>= 2)
            count += rest & 1;
        nonzero[TVIT_CODEC_2BIT][code] = code >> 1 & ~code & 0x55 ? MALFORMED : (uint8_t)count;
    }
}

// Reads a tile's bytes once; a byte may hold the end of one channel and the start of the next.
typedef struct {
    const uint8_t *next;
    const uint8_t *nonzero;
    uint32_t base3, per_byte;
    uint32_t code, left; // trits of the current byte that are not yet counted
    uint32_t seen;       // the table's entries of all bytes so far, or-ed
} trit_counter;

static void load_byte(trit_counter *t) {
    t->code = *t->next++;
    t->left = t->per_byte;
    t->seen |= t->nonzero[t->code];
}

static uint32_t count_single(trit_counter *t, uint32_t trits) {
    uint32_t count = 0;
    for (; trits; trits--, t->left--) {
        if (t->base3) {
            count += t->code % 3 != 1;
            t->code /= 3;
        } else {
            count += t->code & 1;
            t->code >>= 2;
        }
    }
    return count;
}

// Non-zero trits among the next `trits`.
static uint32_t count_trits(trit_counter *t, uint32_t trits) {
    uint32_t head = t->left < trits ? t->left : trits, count = count_single(t, head);
    trits -= head;
    uint32_t whole = trits / t->per_byte, seen = t->seen;
    trits -= whole * t->per_byte;
    const uint8_t *next = t->next;
    for (const uint8_t *end = next + whole; next != end; next++) {
        uint32_t entry = t->nonzero[*next];
        seen |= entry;
        count += entry;
    }
    t->next = next;
    t->seen = seen;
    if (trits) {
        load_byte(t);
        count += count_single(t, trits);
    }
    return count;
}

static tvit_status check_matrix(const checker *c, uint32_t n, uint32_t k, uint32_t codec, uint32_t trits_at,
                                uint32_t channels_at, uint32_t xmax) {
    tvit_status status;
    if ((status = range(c, n >= 1 && n <= 65536 && k >= 1 && k <= 65536, "matrix dimensions"))) return status;
    if ((status = range(c, codec <= TVIT_CODEC_BASE3, "unknown codec"))) return status;
    if ((status = data(c, trits_at, tvit_matrix_bytes(codec, n, k)))) return status;
    if ((status = data(c, channels_at, (uint64_t)n * 4))) return status;

    const uint8_t *tile = c->model->data + trits_at;
    const uint32_t *channels = (const uint32_t *)(c->model->data + channels_at);
    int bad_channel = 0;
    for (uint32_t first = 0; first < n; first += TVIT_TILE_CHANNELS) {
        uint32_t count = n - first < TVIT_TILE_CHANNELS ? n - first : TVIT_TILE_CHANNELS;
        trit_counter t = {.next = tile, .nonzero = c->nonzero[codec], .base3 = codec == TVIT_CODEC_BASE3};
        t.per_byte = t.base3 ? 5 : 4;
        tile += tvit_tile_bytes(codec, count, k);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t nonzero = count_trits(&t, k), record = channels[first + i];
            int32_t bias = TVIT_CHANNEL_BIAS(record);
            uint32_t gain = (uint32_t)TVIT_CHANNEL_GAIN(record), magnitude = (uint32_t)(bias < 0 ? -bias : bias);
            bad_channel |= gain < 1 || (uint64_t)gain * xmax * nonzero + magnitude >= LANE_LIMIT;
        }
        // The unused trits of the last byte are 0, the padding behind it is zero bytes.
        int padded = count_single(&t, t.left) != 0;
        while (t.next != tile)
            padded |= *t.next++;
        if (t.seen & MALFORMED || padded) return range(c, 0, "malformed trits");
    }
    if (bad_channel)
        return tvit_refuse(c->error, TVIT_BAD_CHANNEL, "DATA", c->index, "a channel can leave its 20-bit accumulator");
    return TVIT_OK;
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
    if ((status = check_matrix(c, p->n, p->k, p->codec, p->trits_at, p->channels_at, 128))) return status;
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
    if ((status = shape(c, c->output->rows == p->rows && n <= 4096, wrong_tensor))) return status;
    if ((status = shape(c, (c->output->flags != 0) == c->per_token, wrong_tensor))) return status;
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

static tvit_status check_linear(const checker *c) {
    const tvit_linear_params *p = &c->op->param.linear;
    uint32_t adds = c->op->flags & TVIT_OP_ADD, table = c->op->flags & TVIT_OP_TABLE;
    tvit_status status;
    if ((status = rows_in_source(c, p->first_row, p->rows))) return status;
    int shapes = c->source->dtype == TVIT_I8 && c->source->columns == p->k && c->output->columns == p->n;
    if ((status = shape(c, shapes, wrong_tensor))) return status;
    if ((status = shape(c, (c->source->flags != 0) == c->per_token, wrong_tensor))) return status;
    int rows = adds ? c->output->rows >= p->rows : c->output->rows == p->rows;
    if ((status = shape(c, rows, wrong_tensor))) return status;
    if (c->output->dtype == TVIT_I16) {
        if ((status = shape(c, !table, "a table before an int16 output"))) return status;
        if ((status = range(c, p->limit == 32767, "limit out of range"))) return status;
    } else {
        if ((status = shape(c, c->output->dtype == TVIT_I8 && !adds, wrong_tensor))) return status;
        if ((status = range(c, p->limit >= 1 && p->limit <= 127, "limit out of range"))) return status;
    }
    if ((status = shape(c, !c->output->flags || table, "per-token output without a table"))) return status;
    if ((status = check_matrix(c, p->n, p->k, p->codec, p->trits_at, p->channels_at, 127))) return status;
    return check_table(c, p);
}

static tvit_status check_attention(const checker *c) {
    const tvit_attention_params *p = &c->op->param.attention;
    tvit_status status;
    int heads = p->heads >= 1 && p->head_dim >= 1 && (uint64_t)p->heads * p->head_dim == c->output->columns;
    if ((status = range(c, heads, "heads times head_dim"))) return status;
    for (uint32_t i = 0; i < 3; i++) {
        const tvit_tensor *t = &c->model->tensors[c->op->input[i]];
        int same = t->rows == c->output->rows && t->columns == c->output->columns;
        if ((status = shape(c, t->dtype == TVIT_I8 && !t->flags && same, wrong_tensor))) return status;
    }
    if ((status = shape(c, c->output->dtype == TVIT_I8 && c->output->rows <= 2048, wrong_tensor))) return status;
    if ((status = shape(c, (c->output->flags != 0) == c->per_token, wrong_tensor))) return status;
    int score = p->score_shift <= 15 && p->exp_multiplier >= 1 && p->exp_multiplier <= 32767;
    if ((status = range(c, score, "score_shift or exp_multiplier out of range"))) return status;
    int out = p->out_multiplier >= 1 && p->out_multiplier < 1u << 28 && p->out_shift >= 1 && p->out_shift <= 24;
    return range(c, out, "out_multiplier or out_shift out of range");
}

static tvit_status check_mean_pool(const checker *c) {
    const tvit_mean_pool_params *p = &c->op->param.mean_pool;
    tvit_status status;
    if ((status = rows_in_source(c, p->first_row, p->rows))) return status;
    int types = c->source->dtype == TVIT_I16 && c->output->dtype == TVIT_I16;
    return shape(c, types && c->output->rows == 1 && c->output->columns == c->source->columns, wrong_tensor);
}

static int is_written(const uint32_t written[], uint32_t tensor) {
    return written[tensor / 32] >> tensor % 32 & 1;
}

static tvit_status check_operator(checker *c, const uint32_t written[]) {
    const tvit_operator *op = c->op;
    uint32_t inputs = op->kind == TVIT_OP_ATTENTION ? 3 : 1;
    tvit_status status;
    for (uint32_t i = 0; i < inputs; i++)
        if ((status = shape(c, is_written(written, op->input[i]), "reads a tensor before it is written")))
            return status;
    int adds_to_nothing = op->flags & TVIT_OP_ADD && !is_written(written, op->output);
    if ((status = shape(c, !adds_to_nothing, "adds to a tensor before it is written"))) return status;
    for (uint32_t i = 0; i < inputs; i++)
        if ((status = shape(c, op->input[i] != op->output, "writes its own input"))) return status;
    c->source = &c->model->tensors[op->input[0]];
    c->output = &c->model->tensors[op->output];
    switch (op->kind) {
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

tvit_status tvit_validate_operators(const tvit_model *model, tvit_error *error) {
    uint32_t written[TVIT_MAX_TENSORS / 32] = {1}; // a bit a tensor; the image is there from the start
    checker c = {.model = model, .error = error, .per_token = model->info->scale_mode == TVIT_SCALE_PER_TOKEN};
    count_nonzero(c.nonzero);
    for (c.index = 0; c.index < model->operator_count; c.index++) {
        c.op = &model->operators[c.index];
        tvit_status status = check_operator(&c, written);
        if (status) return status;
        written[c.op->output / 32] |= 1u << c.op->output % 32;
    }
    if (!is_written(written, model->info->logits))
        return tvit_refuse(error, TVIT_BAD_OPERATOR, "OPER", TVIT_NO_INDEX, "no operator writes the logits");
    return TVIT_OK;
}
