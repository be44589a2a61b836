// SPDX-License-Identifier: Apache-2.0
#include "model_builder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../app/crc32.h"
#include "draw.h"
#include "reference.h"

// --- records -----------------------------------------------------------------------------------------------------

uint32_t builder_data(model_builder *b, const void *content, uint32_t bytes) {
    uint32_t at = (b->data_bytes + 15) & ~15u;
    if (at + bytes > BUILDER_DATA) abort();
    memcpy(b->data + at, content, bytes);
    b->data_bytes = at + bytes;
    return at;
}

static uint32_t add_name(model_builder *b, const char *name) {
    uint32_t at = b->names_bytes, bytes = (uint32_t)strlen(name) + 1;
    if (at + bytes > sizeof b->names) abort();
    memcpy(b->names + at, name, bytes);
    b->names_bytes += bytes;
    return at;
}

uint32_t builder_seed(uint32_t seed) {
    uint32_t before = draw_state;
    draw_state = seed;
    return before;
}

void builder_start(model_builder *b, int per_token, uint32_t codec) {
    memset(b, 0, sizeof *b);
    b->per_token = per_token ? TVIT_SCALE_PER_TOKEN : TVIT_SCALE_STATIC;
    b->codec = codec;
    add_name(b, "");
}

void builder_tensor(model_builder *b, int id, const char *name, tvit_dtype dtype, uint32_t rows, uint32_t columns,
                    int per_token) {
    b->tensors[id] =
        (tvit_tensor){add_name(b, name), (uint16_t)dtype, per_token ? TVIT_TENSOR_PER_TOKEN : 0, rows, columns};
}

tvit_operator *builder_operator(model_builder *b, int index, const char *name, tvit_op_kind kind, int input,
                                int output) {
    tvit_operator *op = &b->operators[index];
    *op = (tvit_operator){.kind = (uint16_t)kind, .name = add_name(b, name), .output = (uint16_t)output};
    op->input[0] = (uint16_t)input;
    op->input[1] = op->input[2] = TVIT_NO_TENSOR;
    return op;
}

// --- layers ------------------------------------------------------------------------------------------------------

void draw_layer(model_layer *layer, uint32_t n, uint32_t k) {
    if (n * k > sizeof layer->trits || n > 64) abort();
    layer->n = n;
    layer->k = k;
    for (uint32_t i = 0; i < n * k; i++)
        layer->trits[i] = (int8_t)draw_between(-1, 1);
    for (uint32_t i = 0; i < n; i++)
        layer->channels[i] = (uint32_t)draw_between(-500, 500) << 12 | (uint32_t)draw_between(1, 100) << 5 | 6;
}

static void add_matrix(model_builder *b, const model_layer *layer, uint32_t first, uint32_t n, uint32_t *trits_at,
                       uint32_t *channels_at) {
    uint8_t bytes[2048];
    if (reference_matrix_room(n, layer->k) > sizeof bytes || first + n > layer->n) abort();
    uint32_t count = reference_encode(b->codec, n, layer->k, layer->trits + first * layer->k, bytes);
    *trits_at = builder_data(b, bytes, count);
    *channels_at = builder_data(b, layer->channels + first, 4 * n);
}

tvit_linear_params *builder_linear(model_builder *b, int index, const char *name, int input, int output, uint32_t rows,
                                   const model_layer *layer, uint32_t first, uint32_t n) {
    tvit_operator *op = builder_operator(b, index, name, TVIT_OP_LINEAR, input, output);
    tvit_linear_params *p = &op->param.linear;
    p->k = layer->k;
    p->n = n;
    p->codec = b->codec;
    p->limit = b->tensors[output].dtype == TVIT_I16 ? 32767 : 127;
    p->rows = rows;
    add_matrix(b, layer, first, n, &p->trits_at, &p->channels_at);
    return p;
}

void builder_table(model_builder *b, int index) {
    int8_t narrow[256] = {0};
    int16_t wide[256] = {0};
    for (int i = 1; i < 256; i++) {
        narrow[i] = (int8_t)(i > 128 ? i - 128 : 0);
        wide[i] = (int16_t)(i > 128 ? (i - 128) * 200 : -i);
    }
    b->operators[index].flags |= TVIT_OP_TABLE;
    b->operators[index].param.linear.table_at =
        b->per_token ? builder_data(b, wide, sizeof wide) : builder_data(b, narrow, sizeof narrow);
}

uint32_t builder_gamma_beta(model_builder *b, uint32_t n) {
    uint8_t codes[64];
    if (n > 2 * sizeof codes) abort();
    for (uint32_t i = 0; i < (n + 1) / 2; i++)
        codes[i] = (uint8_t)(draw_between(0, 8) | (2 * i + 1 < n ? draw_between(0, 8) << 4 : 0));
    return builder_data(b, codes, (n + 1) / 2);
}

tvit_layernorm_params *builder_layernorm(model_builder *b, int index, const char *name, int input, int output,
                                         uint32_t rows, uint32_t gamma_beta_at) {
    tvit_layernorm_params *p = &builder_operator(b, index, name, TVIT_OP_LAYERNORM, input, output)->param.layernorm;
    uint32_t n = b->tensors[input].columns, shift = b->per_token ? 9 : 15;
    uint64_t c = (uint64_t)(b->per_token ? 6000 : 45) * n << (15 + shift);
    p->rows = rows;
    p->gamma_beta_at = gamma_beta_at;
    p->c_low = (uint32_t)c;
    p->c_high = (uint32_t)(c >> 32);
    p->beta_unit = 3 << shift;
    p->epsilon_low = 10;
    p->shift = shift;
    return p;
}

void builder_embedding(model_builder *b, int index, int output, uint32_t patches, uint32_t prefix_tokens,
                       const model_layer *layer) {
    tvit_patch_embed_params *p =
        &builder_operator(b, index, "patch_embed.proj", TVIT_OP_PATCH_EMBED, 0, output)->param.patch_embed;
    int8_t position[512];
    int16_t prefix[64];
    if (patches * layer->n > sizeof position || prefix_tokens * layer->n > 64) abort();
    for (uint32_t i = 0; i < patches * layer->n; i++)
        position[i] = (int8_t)draw_between(-127, 127);
    for (uint32_t i = 0; i < prefix_tokens * layer->n; i++)
        prefix[i] = (int16_t)draw_between(-2000, 2000);
    p->k = layer->k;
    p->n = layer->n;
    p->codec = b->codec;
    add_matrix(b, layer, 0, layer->n, &p->trits_at, &p->channels_at);
    p->position_at = builder_data(b, position, patches * layer->n);
    p->position_multiplier = 9;
    p->prefix_at = builder_data(b, prefix, 2 * prefix_tokens * layer->n);
}

// --- the file ----------------------------------------------------------------------------------------------------

static small_model handles(uint8_t *file, uint32_t bytes) {
    small_model m = {.file = file, .bytes = bytes, .header = (tvit_header *)file};
    m.sections = (tvit_section *)(m.header + 1);
    m.info = (tvit_model_record *)(file + m.sections[MODL].offset);
    m.tensors = (tvit_tensor *)(file + m.sections[TENS].offset);
    m.operators = (tvit_operator *)(file + m.sections[OPER].offset);
    m.plan = (tvit_plan_record *)(file + m.sections[PLAN].offset);
    m.offsets = (uint32_t *)(m.plan + 1);
    m.scratches = (tvit_plan_scratch *)(m.offsets + m.sections[TENS].count);
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
    if (tvit_load_unplanned(&model, m->file, m->bytes, &error) ||
        tvit_plan(&model, &result, m->offsets, m->scratches)) {
        printf("# %s %u: %s\n", error.section, error.index, error.reason);
        abort();
    }
    *m->plan = (tvit_plan_record){result.arena_bytes, result.scratch_bytes, {0, 0}};
}

small_model builder_finish(model_builder *b, const tvit_model_record *given, uint32_t tensors, uint32_t operators) {
    static const char tags[SECTIONS][5] = {"MODL", "TENS", "OPER", "PLAN", "NAME", "DATA", "META"};
    tvit_model_record info = *given;
    info.scale_mode = (uint16_t)b->per_token;
    memcpy(info.name, "small", 6);
    uint32_t plan = sizeof(tvit_plan_record) + 4 * tensors + (uint32_t)sizeof(tvit_plan_scratch) * operators;
    struct {
        const void *content;
        uint32_t bytes, count;
    } contents[SECTIONS] = {
        {&info, sizeof info, 1},
        {b->tensors, tensors * (uint32_t)sizeof *b->tensors, tensors},
        {b->operators, operators * (uint32_t)sizeof *b->operators, operators},
        {NULL, plan, 1},
        {b->names, b->names_bytes, 0},
        {b->data, b->data_bytes, 0},
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
