// SPDX-License-Identifier: Apache-2.0
#include "small_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../app/crc32.h"
#include "draw.h"
#include "reference.h"

#define DATA_BYTES 8192u

typedef struct {
    uint8_t data[DATA_BYTES];
    uint32_t data_bytes;
    char names[512];
    uint32_t names_bytes;
    tvit_tensor tensors[TENSORS];
    tvit_operator operators[OPERATORS];
    uint32_t codec, per_token;
} builder;

static uint32_t add_data(builder *b, const void *content, uint32_t bytes) {
    uint32_t at = (b->data_bytes + 15) & ~15u;
    if (at + bytes > DATA_BYTES) abort();
    memcpy(b->data + at, content, bytes);
    b->data_bytes = at + bytes;
    return at;
}

static uint32_t add_name(builder *b, const char *name) {
    uint32_t at = b->names_bytes, bytes = (uint32_t)strlen(name) + 1;
    memcpy(b->names + at, name, bytes);
    b->names_bytes += bytes;
    return at;
}

static void set_tensor(builder *b, int id, const char *name, tvit_dtype dtype, uint32_t rows, uint32_t columns,
                       int per_token) {
    b->tensors[id] =
        (tvit_tensor){add_name(b, name), (uint16_t)dtype, per_token ? TVIT_TENSOR_PER_TOKEN : 0, rows, columns};
}

static tvit_operator *set_operator(builder *b, int index, const char *name, tvit_op_kind kind, int input, int output) {
    tvit_operator *op = &b->operators[index];
    *op = (tvit_operator){.kind = (uint16_t)kind, .name = add_name(b, name), .output = (uint16_t)output};
    op->input[0] = (uint16_t)input;
    op->input[1] = op->input[2] = TVIT_NO_TENSOR;
    return op;
}

static void add_matrix(builder *b, uint32_t n, uint32_t k, uint32_t *trits_at, uint32_t *channels_at) {
    int8_t trits[512];
    uint8_t bytes[512];
    uint32_t channels[64];
    if (n * k > sizeof trits || n > 64) abort();
    for (uint32_t i = 0; i < n * k; i++)
        trits[i] = (int8_t)draw_between(-1, 1);
    for (uint32_t i = 0; i < n; i++)
        channels[i] = (uint32_t)draw_between(-500, 500) << 12 | (uint32_t)draw_between(1, 100) << 5 | 6;
    reference_encode(b->codec, n, k, trits, bytes);
    *trits_at = add_data(b, bytes, tvit_matrix_bytes(b->codec, n, k));
    *channels_at = add_data(b, channels, 4 * n);
}

static tvit_linear_params *set_linear(builder *b, int index, const char *name, int input, int output, uint32_t rows) {
    tvit_operator *op = set_operator(b, index, name, TVIT_OP_LINEAR, input, output);
    tvit_linear_params *p = &op->param.linear;
    p->k = b->tensors[input].columns;
    p->n = b->tensors[output].columns;
    p->codec = b->codec;
    p->limit = b->tensors[output].dtype == TVIT_I16 ? 32767 : 127;
    p->rows = rows;
    add_matrix(b, p->n, p->k, &p->trits_at, &p->channels_at);
    return p;
}

static void set_layernorm(builder *b, int index, const char *name, int input, int output, uint32_t rows) {
    tvit_layernorm_params *p = &set_operator(b, index, name, TVIT_OP_LAYERNORM, input, output)->param.layernorm;
    uint32_t n = b->tensors[input].columns, shift = b->per_token ? 9 : 15;
    uint64_t c = (uint64_t)(b->per_token ? 6000 : 45) * n << (15 + shift);
    uint8_t codes[SMALL_DIM];
    for (uint32_t i = 0; i < (n + 1) / 2; i++)
        codes[i] = (uint8_t)(draw_between(0, 8) | (2 * i + 1 < n ? draw_between(0, 8) << 4 : 0));
    p->rows = rows;
    p->gamma_beta_at = add_data(b, codes, (n + 1) / 2);
    p->c_low = (uint32_t)c;
    p->c_high = (uint32_t)(c >> 32);
    p->beta_unit = 3 << shift;
    p->epsilon_low = 10;
    p->shift = shift;
}

static void set_embedding(builder *b) {
    tvit_patch_embed_params *p =
        &set_operator(b, EMBED, "patch_embed.proj", TVIT_OP_PATCH_EMBED, IMAGE, STREAM)->param.patch_embed;
    int8_t position[2 * SMALL_DIM];
    int16_t prefix[SMALL_DIM];
    for (uint32_t i = 0; i < 2 * SMALL_DIM; i++)
        position[i] = (int8_t)draw_between(-127, 127);
    for (uint32_t i = 0; i < SMALL_DIM; i++)
        prefix[i] = (int16_t)draw_between(-2000, 2000);
    p->k = 4;
    p->n = SMALL_DIM;
    p->codec = b->codec;
    add_matrix(b, p->n, p->k, &p->trits_at, &p->channels_at);
    p->position_at = add_data(b, position, sizeof position);
    p->position_multiplier = 9;
    p->prefix_at = add_data(b, prefix, sizeof prefix);
}

static void set_table(builder *b, tvit_operator *op) {
    int8_t narrow[256] = {0};
    int16_t wide[256] = {0};
    for (int i = 1; i < 256; i++) {
        narrow[i] = (int8_t)(i > 128 ? i - 128 : 0);
        wide[i] = (int16_t)(i > 128 ? (i - 128) * 200 : -i);
    }
    op->flags |= TVIT_OP_TABLE;
    op->param.linear.table_at = b->per_token ? add_data(b, wide, sizeof wide) : add_data(b, narrow, sizeof narrow);
}

static void describe(builder *b) {
    const uint32_t t = SMALL_TOKENS, d = SMALL_DIM;
    int per_token = b->per_token != 0;
    add_name(b, "");
    set_tensor(b, IMAGE, "image", TVIT_U8, 2, 4, 0);
    set_tensor(b, STREAM, "stream", TVIT_I16, t, d, 0);
    set_tensor(b, X, "norm1", TVIT_I8, t, d, per_token);
    set_tensor(b, Q_OUT, "q", TVIT_I8, t, d, 0);
    set_tensor(b, K_OUT, "k", TVIT_I8, t, d, 0);
    set_tensor(b, V_OUT, "v", TVIT_I8, t, d, 0);
    set_tensor(b, O, "attn", TVIT_I8, t, d, per_token);
    set_tensor(b, X2, "norm2", TVIT_I8, t, d, per_token);
    set_tensor(b, H, "fc1", TVIT_I8, t, SMALL_HIDDEN, per_token);
    set_tensor(b, POOLED, "pool", TVIT_I16, 1, d, 0);
    set_tensor(b, NORMED, "norm", TVIT_I8, 1, d, per_token);
    set_tensor(b, LOGITS, "logits", TVIT_I16, 1, SMALL_CLASSES, 0);

    set_embedding(b);
    set_layernorm(b, NORM1, "norm1", STREAM, X, t);
    set_linear(b, Q, "attn.q", X, Q_OUT, t)->limit = 100;
    set_linear(b, K, "attn.k", X, K_OUT, t);
    set_linear(b, V, "attn.v", X, V_OUT, t);
    tvit_operator *attention = set_operator(b, ATTN, "attn", TVIT_OP_ATTENTION, Q_OUT, O);
    attention->input[1] = K_OUT;
    attention->input[2] = V_OUT;
    attention->param.attention =
        (tvit_attention_params){2, 3, 2, 20000, 40u << (per_token ? 8 : 16), per_token ? 8 : 16};
    set_linear(b, PROJ, "attn.proj", O, STREAM, t);
    b->operators[PROJ].flags = TVIT_OP_ADD;
    set_layernorm(b, NORM2, "norm2", STREAM, X2, t);
    set_linear(b, FC1, "mlp.fc1", X2, H, t);
    set_table(b, &b->operators[FC1]);
    set_linear(b, FC2, "mlp.fc2", H, STREAM, t);
    b->operators[FC2].flags = TVIT_OP_ADD;
    tvit_mean_pool_params *pool = &set_operator(b, POOL, "pool", TVIT_OP_MEAN_POOL, STREAM, POOLED)->param.mean_pool;
    *pool = (tvit_mean_pool_params){1, 2};
    set_layernorm(b, NORM, "fc_norm", POOLED, NORMED, 1);
    set_linear(b, HEAD, "head", NORMED, LOGITS, 1);
}

static small_model handles(uint8_t *file, uint32_t bytes) {
    small_model m = {.file = file, .bytes = bytes, .header = (tvit_header *)file};
    m.sections = (tvit_section *)(m.header + 1);
    m.info = (tvit_model_record *)(file + m.sections[MODL].offset);
    m.tensors = (tvit_tensor *)(file + m.sections[TENS].offset);
    m.operators = (tvit_operator *)(file + m.sections[OPER].offset);
    m.plan = (tvit_plan_record *)(file + m.sections[PLAN].offset);
    m.offsets = (uint32_t *)(m.plan + 1);
    m.names = (char *)(file + m.sections[NAME].offset);
    m.data = file + m.sections[DATA].offset;
    return m;
}

static uint8_t *block(uint32_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 16, bytes)) abort();
    memset(memory, 0, bytes);
    return memory;
}

static void compute_plan(small_model *m) {
    tvit_model model;
    tvit_error error;
    tvit_plan_result result;
    uint32_t offsets[TENSORS];
    if (tvit_load_unplanned(&model, m->file, m->bytes, &error) || tvit_plan(&model, &result, offsets)) {
        printf("# %s %u: %s\n", error.section, error.index, error.reason);
        abort();
    }
    *m->plan = (tvit_plan_record){result.arena_bytes, result.scratch_offset, result.scratch_bytes, 0};
    memcpy(m->offsets, offsets, sizeof offsets);
}

small_model small_model_make(int per_token, uint32_t codec) {
    static builder b;
    memset(&b, 0, sizeof b);
    b.per_token = per_token ? TVIT_SCALE_PER_TOKEN : TVIT_SCALE_STATIC;
    b.codec = codec;
    describe(&b);
    tvit_model_record info = {
        .image_height = 2,
        .image_width = 4,
        .image_channels = 1,
        .patch_size = 2,
        .tokens = SMALL_TOKENS,
        .prefix_tokens = 1,
        .embed_dim = SMALL_DIM,
        .depth = 1,
        .heads = 2,
        .head_dim = 3,
        .mlp_dim = SMALL_HIDDEN,
        .classes = SMALL_CLASSES,
        .scale_mode = (uint16_t)b.per_token,
        .stream = STREAM,
        .logits = LOGITS,
        .name = "small",
    };
    static const char tags[SECTIONS][5] = {"MODL", "TENS", "OPER", "PLAN", "NAME", "DATA", "META"};
    struct {
        const void *content;
        uint32_t bytes, count;
    } contents[SECTIONS] = {
        {&info, sizeof info, 1},
        {b.tensors, sizeof b.tensors, TENSORS},
        {b.operators, sizeof b.operators, OPERATORS},
        {NULL, sizeof(tvit_plan_record) + 4 * TENSORS, 1},
        {b.names, b.names_bytes, 0},
        {b.data, b.data_bytes, 0},
        {"{}", 2, 0},
    };
    uint32_t at = sizeof(tvit_header) + sizeof(tvit_section) * SECTIONS, bytes = at;
    for (int i = 0; i < SECTIONS; i++)
        bytes += (contents[i].bytes + 15) & ~15u;
    uint8_t *file = block(bytes);
    tvit_section *sections = (tvit_section *)(file + sizeof(tvit_header));
    for (int i = 0; i < SECTIONS; i++) {
        memcpy(sections[i].tag, tags[i], 4);
        sections[i].offset = at;
        sections[i].bytes = contents[i].bytes;
        sections[i].count = contents[i].count;
        if (contents[i].content) memcpy(file + at, contents[i].content, contents[i].bytes);
        at += (contents[i].bytes + 15) & ~15u;
    }
    small_model m = handles(file, bytes);
    *m.header = (tvit_header){.magic = TVIT_MAGIC,
                              .version = TVIT_VERSION,
                              .header_bytes = sizeof(tvit_header),
                              .file_bytes = bytes,
                              .section_count = SECTIONS};
    small_model_seal(&m);
    compute_plan(&m);
    small_model_seal(&m);
    return m;
}

small_model small_model_copy(const small_model *model) {
    uint8_t *file = block(model->bytes);
    memcpy(file, model->file, model->bytes);
    return handles(file, model->bytes);
}

void small_model_free(small_model *model) {
    free(model->file);
    model->file = NULL;
}

void small_model_seal(small_model *m) {
    for (int i = 0; i < SECTIONS; i++) {
        tvit_section *s = &m->sections[i];
        if ((uint64_t)s->offset + s->bytes <= m->bytes) s->crc = tvit_crc32(0, m->file + s->offset, s->bytes);
    }
    m->header->table_crc = tvit_crc32(0, m->sections, sizeof(tvit_section) * SECTIONS);
    m->header->header_crc = tvit_crc32(0, m->header, 60);
}
