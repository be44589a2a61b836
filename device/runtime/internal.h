// SPDX-License-Identifier: Apache-2.0
// What the files of the runtime share.
#ifndef TVIT_INTERNAL_H
#define TVIT_INTERNAL_H

#include "tvit/kernels.h"
#include "tvit/runtime.h"

#define TVIT_NO_INDEX 0xffffffffu

// Fill in error (where there is one) and return status. section: a tag of 4 characters, or "".
tvit_status tvit_refuse(tvit_error *error, tvit_status status, const char *section, uint32_t index, const char *reason);

// The operators against the contract (validate.c): shapes, constants, order of writing, trits and channels.
tvit_status tvit_validate_operators(const tvit_model *model, tvit_error *error);

// Non-zero trits of a byte by codec (2bit, base3), or a mark that it is malformed.
typedef struct {
    uint8_t of[2][256];
} tvit_nonzero_table;
void tvit_count_nonzero(tvit_nonzero_table *table);

// The matrix of a PATCH_EMBED or LINEAR operator (validate_matrix.c); xmax: the largest input magnitude. A matrix that
// an earlier operator of the same kind has is not looked at again.
tvit_status tvit_check_matrix(const tvit_model *model, uint32_t index, const tvit_nonzero_table *table, uint32_t xmax,
                              tvit_error *error);

// Whether operators 0 ... index - 1 have written all of a region, which lies within its tensor, and left it so
// (validate_order.c). They are valid themselves.
int tvit_is_written(const tvit_model *model, uint32_t index, const tvit_region *region);

// PLAN against liveness (plan.c).
tvit_status tvit_validate_plan(const tvit_model *model, tvit_error *error);

typedef union {
    tvit_patch_embed_args patch_embed;
    tvit_layernorm_args layernorm;
    tvit_linear_args linear;
    tvit_attention_args attention;
    tvit_mean_pool_args mean_pool;
} tvit_operator_args;

// An operator's arguments for kernels of this layout. Without a context (NULL) the pointers into its arena are NULL:
// enough for *_buffer_size.
void tvit_bind_operator(const tvit_model *model, uint32_t index, tvit_layout layout, const tvit_context *context,
                        tvit_operator_args *args);

// Where these bytes of the planned arena lie.
static inline uint8_t *tvit_place(const tvit_context *context, uint32_t offset, size_t bytes) {
    const int is_fast = bytes <= context->fast_bytes && offset <= context->fast_bytes - bytes;
    return (is_fast && context->fast ? context->fast : context->arena) + offset;
}

// The layout of a tensor, where the activations have this one.
tvit_layout tvit_tensor_layout(const tvit_model *model, uint32_t tensor, tvit_layout activations);

static inline uint32_t tvit_element_bytes(const tvit_tensor *tensor) {
    return tensor->dtype == TVIT_I16 ? 2 : 1;
}

static inline uint32_t tvit_aligned(uint32_t bytes) {
    return (bytes + TVIT_ALIGN - 1) & ~(TVIT_ALIGN - 1);
}

#endif
