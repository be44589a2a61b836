// SPDX-License-Identifier: Apache-2.0
// The operators as CONTRACT.md writes them: plain loops, 64-bit integers, no regard for speed; in rows.
#ifndef TVIT_REFERENCE_H
#define TVIT_REFERENCE_H

#include "tvit/kernels.h"

// trits[n][k] to the matrix of the file; returns its bytes, at most reference_matrix_room for any codec.
uint32_t reference_encode(uint32_t codec, uint32_t n, uint32_t k, const int8_t *trits, uint8_t *bytes);
uint32_t reference_matrix_room(uint32_t n, uint32_t k);

void reference_patch_embed(const tvit_patch_embed_args *args, const int8_t *trits);
void reference_layernorm(const tvit_layernorm_args *args);
void reference_linear(const tvit_linear_args *args, const int8_t *trits);
void reference_attention(const tvit_attention_args *args);
// Scores become probabilities; returns their sum.
int64_t reference_softmax(int64_t *a, uint32_t tokens, int32_t exp_multiplier);
void reference_mean_pool(const tvit_mean_pool_args *args);
uint16_t reference_token_quantize(int8_t *output, const int16_t *input, uint32_t n);

#endif
