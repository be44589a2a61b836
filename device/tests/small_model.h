// SPDX-License-Identifier: Apache-2.0
// A complete model of one block, written field by field from FORMAT.md, and handles to every record of it for tests
// that break one.
#ifndef TVIT_SMALL_MODEL_H
#define TVIT_SMALL_MODEL_H

#include "tvit/runtime.h"

// Sections in file order.
enum { MODL, TENS, OPER, PLAN, NAME, DATA, META, SECTIONS };

// Operators in execution order; POOL and NORM make one row of the patch tokens.
enum { EMBED, NORM1, Q, K, V, ATTN, PROJ, NORM2, FC1, FC2, POOL, NORM, HEAD, OPERATORS };

// Tensors.
enum { IMAGE, STREAM, X, Q_OUT, K_OUT, V_OUT, O, X2, H, POOLED, NORMED, LOGITS, TENSORS };

#define SMALL_DIM 6u
#define SMALL_HIDDEN 17u // more than a tile of 16 channels
#define SMALL_CLASSES 3u
#define SMALL_TOKENS 3u

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
    char *names;
    uint8_t *data;
} small_model;

// per_token: scale mode; codec: of all matrices. The plan is computed. Aborts when the runtime refuses the model.
small_model small_model_make(int per_token, uint32_t codec);

// A copy in its own block, with handles into it.
small_model small_model_copy(const small_model *model);
void small_model_free(small_model *model);

// Make all CRCs right again.
void small_model_seal(small_model *model);

#endif
