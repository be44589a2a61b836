// SPDX-License-Identifier: Apache-2.0
// A complete model of one block and three tokens.
#ifndef TVIT_SMALL_MODEL_H
#define TVIT_SMALL_MODEL_H

#include "model_builder.h"

// Operators in execution order; POOL and NORM make one row of the patch tokens.
enum { EMBED, NORM1, Q, K, V, ATTN, PROJ, NORM2, FC1, FC2, POOL, NORM, HEAD, OPERATORS };

// Tensors.
enum { IMAGE, STREAM, X, Q_OUT, K_OUT, V_OUT, O, X2, H, POOLED, NORMED, LOGITS, TENSORS };

#define SMALL_DIM 6u
#define SMALL_HIDDEN 17u // more than a tile of 16 channels
#define SMALL_CLASSES 3u
#define SMALL_TOKENS 3u

// per_token: scale mode; codec: of all matrices. The plan is computed. Aborts when the runtime refuses the model.
small_model small_model_make(int per_token, uint32_t codec);

#endif
