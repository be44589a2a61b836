// SPDX-License-Identifier: Apache-2.0
// A model of one block and 17 tokens, whole or in pieces: head by head, the MLP in two passes over the tokens and two
// chunks of hidden channels, the logits in two parts. The same weights, so the same logits.
#ifndef TVIT_PIECE_MODEL_H
#define TVIT_PIECE_MODEL_H

#include "model_builder.h"

#define PIECE_DIM 6u
#define PIECE_HEAD 3u
#define PIECE_HIDDEN 17u
#define PIECE_CLASSES 5u
#define PIECE_TOKENS 17u // a block of 16 and one
#define PIECE_PIXELS 64u

// Tensors of both; those of P_HEAD_K and P_HEAD_V are one head wide in pieces.
enum { P_IMAGE, P_STREAM, P_X, P_O, P_K, P_V, P_HIDDEN, P_POOLED, P_NORMED, P_LOGITS, P_TENSORS };

// Operators in pieces. The first head's keys lie where the second head's output will be.
enum {
    P_EMBED,
    P_NORM1,
    P_Q0,
    P_K0,
    P_V0,
    P_ATTN0,
    P_Q1,
    P_K1,
    P_V1,
    P_ATTN1,
    P_PROJ,
    P_NORM2_0, // the first 16 tokens
    P_FC1_00,
    P_FC1_01,
    P_FC2_0,
    P_NORM2_1, // the last one
    P_FC1_10,
    P_FC1_11,
    P_FC2_1,
    P_POOL,
    P_NORM,
    P_HEAD0,
    P_HEAD1,
    P_OPERATORS
};

// Static scales. Whole, the operators are those of small_model.h, with q in the place of the output.
small_model piece_model_make(int in_pieces, uint32_t codec);

#endif
