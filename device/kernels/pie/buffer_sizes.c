// SPDX-License-Identifier: Apache-2.0
// Scratch of the PIE kernels, for TVIT_MAX_CORES parts. Part of every build: plans are made for these kernels.
#include "layernorm_lanes.h"
#include "pie_kernels.h"
#include "workspace.h"

static size_t blocks_of_16(size_t count) {
    return (count + 15) & ~(size_t)15;
}

// Gathered blocks of patches, [k][16] bytes each, which the parts share. More than one block, because the weights' rows
// are generated again for each group of blocks; no more than an image of 224 x 224 leaves in the memory that its model needs
// later.
size_t tvit_patch_embed_buffer_size_pie(const tvit_patch_embed_args *args) {
    size_t patches = (size_t)(args->image_height / args->patch_size) * (args->image_width / args->patch_size);
    size_t blocks = (args->prefix_tokens + patches + TVIT_BLOCK_TOKENS - 1) / TVIT_BLOCK_TOKENS;
    size_t block = (size_t)args->weights.k * TVIT_BLOCK_TOKENS, fitting = (size_t)(36 * 1024) / block;
    size_t together = fitting < blocks ? fitting : blocks;
    return block * (together ? together : 1);
}

// A pointer of 32 bits a channel for each part, where the workspace has no room for them.
size_t tvit_layernorm_buffer_size_pie(const tvit_layernorm_args *args) {
    size_t pointers = 4 * (size_t)args->n;
    size_t room = sizeof(((tvit_pie_workspace *)0)->stream) - TVIT_LAYERNORM_RECORDS_BYTES;
    return pointers <= room ? 0 : TVIT_MAX_CORES * blocks_of_16(pointers);
}

size_t tvit_linear_buffer_size_pie(const tvit_linear_args *args) {
    (void)args;
    return 0;
}

// A part has the int16 scores of 16 queries, [tokens][16], and 1 KB besides; head dimensions that are no multiple of 16
// need the keys of one head padded.
size_t tvit_attention_buffer_size_pie(const tvit_attention_args *args) {
    size_t tokens = blocks_of_16(args->tokens), padded_dim = blocks_of_16(args->head_dim);
    size_t each = tokens * sizeof(int16_t[TVIT_BLOCK_TOKENS]) + 1024;
    return TVIT_MAX_CORES * each + (padded_dim == args->head_dim ? 0 : tokens * padded_dim);
}

size_t tvit_mean_pool_buffer_size_pie(const tvit_mean_pool_args *args) {
    (void)args;
    return 0;
}
