// SPDX-License-Identifier: Apache-2.0
// Model files for tests, written field by field from FORMAT.md, with handles to every record for tests that break one.
#ifndef TVIT_MODEL_BUILDER_H
#define TVIT_MODEL_BUILDER_H

#include "tvit/runtime.h"

// Sections in file order.
enum { MODL, TENS, OPER, PLAN, NAME, DATA, META, SECTIONS };

typedef struct {
    uint8_t *file; // 16-byte aligned heap block of exactly `bytes`
    uint32_t bytes;
    tvit_header *header;
    tvit_section *sections; // [SECTIONS]
    tvit_model_record *info;
    tvit_tensor *tensors;
    tvit_operator *operators;
    tvit_plan_record *plan;
    uint32_t *offsets;
    tvit_plan_scratch *scratches;
    char *names;
    uint8_t *data;
} small_model;

// A copy in its own block, with handles into it.
small_model small_model_copy(const small_model *model);
void small_model_free(small_model *model);

// Make all CRCs right again.
void small_model_seal(small_model *model);

// --- building ----------------------------------------------------------------------------------------------------

enum { BUILDER_TENSORS = 32, BUILDER_OPERATORS = 64, BUILDER_DATA = 8192 };

typedef struct {
    uint8_t data[BUILDER_DATA];
    uint32_t data_bytes;
    char names[1024];
    uint32_t names_bytes;
    tvit_tensor tensors[BUILDER_TENSORS];
    tvit_operator operators[BUILDER_OPERATORS];
    uint32_t codec, per_token;
} model_builder;

// A ternary layer of n channels, drawn.
typedef struct {
    uint32_t n, k;
    int8_t trits[512]; // [n][k]
    uint32_t channels[64];
} model_layer;

// What is drawn next; returns the state of the drawing before.
uint32_t builder_seed(uint32_t seed);

void builder_start(model_builder *b, int per_token, uint32_t codec);
uint32_t builder_data(model_builder *b, const void *content, uint32_t bytes);
void builder_tensor(model_builder *b, int id, const char *name, tvit_dtype dtype, uint32_t rows, uint32_t columns,
                    int per_token);
tvit_operator *builder_operator(model_builder *b, int index, const char *name, tvit_op_kind kind, int input,
                                int output);

void draw_layer(model_layer *layer, uint32_t n, uint32_t k);

// Channels first ... first + n - 1 of a layer, on `rows` rows; k is the input's width. Limit 127 or 32767.
tvit_linear_params *builder_linear(model_builder *b, int index, const char *name, int input, int output, uint32_t rows,
                                   const model_layer *layer, uint32_t first, uint32_t n);
// Go through a drawn table: max(0, i) for static scales.
void builder_table(model_builder *b, int index);
// gamma_beta: drawn_layernorm.
tvit_layernorm_params *builder_layernorm(model_builder *b, int index, const char *name, int input, int output,
                                         uint32_t rows, uint32_t gamma_beta_at);
// Drawn trits for gamma and beta of n channels; where they lie in DATA.
uint32_t builder_gamma_beta(model_builder *b, uint32_t n);
// Tensor 0 to `output`, the prefix tokens and positions drawn.
void builder_embedding(model_builder *b, int index, int output, uint32_t patches, uint32_t prefix_tokens,
                       const model_layer *layer);

// The file, planned. Aborts when the runtime refuses it. info: all but scale_mode and name.
small_model builder_finish(model_builder *b, const tvit_model_record *info, uint32_t tensors, uint32_t operators);

#endif
