// SPDX-License-Identifier: Apache-2.0
// Scratch of the PIE kernels, for TVIT_MAX_CORES parts. Part of every build: plans are made for these kernels.
#include "attention_work.h"
#include "layernorm_records.h"
#include "pie_kernels.h"
#include "workspace.h"

static size_t blocks_of_16(size_t count) {
    return (count + 15) & ~(size_t)15;
}

// Gathered blocks of patches, [k][16] bytes each, which the parts share. The weights' rows are generated and read from
// flash again for each group of blocks, so more than one block is worth having: as many as fit beside image and stream
// into the memory that a model with an MLP of 4 n in two passes needs anyway, but not more than half of all. For
// DeiT-Tiny at 224 x 224 these are 3 blocks, for DeiT-Small 7.
size_t tvit_patch_embed_buffer_size_pie(const tvit_patch_embed_args *args) {
    const size_t lines = args->image_height / args->patch_size, columns = args->image_width / args->patch_size;
    const size_t image = (size_t)args->image_height * args->image_width * args->image_channels;
    const size_t blocks = blocks_of_16(args->prefix_tokens + lines * columns) / TVIT_BLOCK_TOKENS,
                 half = (blocks + 1) / 2;
    const size_t channel = args->weights.n * TVIT_BLOCK_TOKENS, stream = blocks * channel * sizeof(int16_t);
    const size_t mlp = stream + half * channel * (1 + 4), used = image > stream ? image : stream;
    const size_t block = (size_t)args->weights.k * TVIT_BLOCK_TOKENS;
    const size_t fitting = mlp > used ? (mlp - used) / block : 0, together = fitting < half ? fitting : half;
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

// The scores of 16 queries, [rows][8] int16 of each half, between spare rows, and the queries. Where the second half's
// scores and the queries lay come the sums [head_dim][16] int16 and what is read ahead of them.
uint32_t tvit_attention_part_bytes_pie(uint32_t tokens, uint32_t head_dim) {
    const uint32_t rows = ((tokens + 1) & ~1u) + TVIT_ATTENTION_SPARE_ROWS;
    const uint32_t queries = (uint32_t)blocks_of_16(head_dim) + 2, sums = 2 * head_dim + 2;
    const uint32_t behind = rows + queries > sums ? rows + queries : sums;
    return WORK_BYTES + (TVIT_ATTENTION_SPARE_ROWS + rows + behind) * 16;
}

// Head dimensions that are no multiple of 16 need the keys of one head padded.
size_t tvit_attention_buffer_size_pie(const tvit_attention_args *args) {
    size_t padded_dim = blocks_of_16(args->head_dim);
    size_t keys = padded_dim == args->head_dim ? 0 : blocks_of_16(args->tokens) * padded_dim;
    return TVIT_ATTENTION_POWERS_BYTES + keys +
           TVIT_MAX_CORES * (size_t)tvit_attention_part_bytes_pie(args->tokens, args->head_dim);
}

size_t tvit_mean_pool_buffer_size_pie(const tvit_mean_pool_args *args) {
    (void)args;
    return 0;
}
