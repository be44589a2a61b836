// SPDX-License-Identifier: Apache-2.0
// Run an accepted model once, if it is little work: whatever a mutation made of it.
#ifndef TVIT_RUN_MODEL_H
#define TVIT_RUN_MODEL_H

#include <string.h>

#include "fuzz.h"
#include "tvit/runtime.h"

#define RUN_MOST_ARENA (1u << 22)
#define RUN_MOST_WORK (1u << 22) // multiply-accumulates; a file may ask for 2^40

// Exactly sized, so that AddressSanitizer sees a byte too many.
static inline void *run_block(size_t bytes, int fill) {
    void *memory = NULL;
    if (posix_memalign(&memory, TVIT_ALIGN, bytes ? bytes : 1)) abort();
    memset(memory, fill, bytes ? bytes : 1);
    return memory;
}

static inline uint64_t run_work(const tvit_model *model) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < model->operator_count; i++) {
        const tvit_operator *op = &model->operators[i];
        const tvit_tensor *t = &model->tensors[op->output];
        const uint64_t rows = t->rows, columns = t->columns;
        if (op->kind == TVIT_OP_PATCH_EMBED)
            sum += rows * op->param.patch_embed.n * op->param.patch_embed.k;
        else if (op->kind == TVIT_OP_LINEAR)
            sum += rows * op->param.linear.n * op->param.linear.k;
        else if (op->kind == TVIT_OP_ATTENTION)
            sum += 2 * rows * rows * columns;
        else
            sum += (rows + model->tensors[op->input[0]].rows) * columns;
    }
    return sum;
}

static inline int run_is_small(const tvit_model *model) {
    return tvit_arena_bytes(model) <= RUN_MOST_ARENA && run_work(model) <= RUN_MOST_WORK;
}

// The logits of one run in an arena that held `fill`, its first `fast_bytes` in a memory of their own; to be freed.
// Pixel i of the image is 37 i + 11, modulo 256.
static inline int16_t *run_model(const tvit_model *model, int fill, size_t fast_bytes) {
    const size_t bytes = tvit_arena_bytes(model);
    void *arena = run_block(bytes, fill), *fast = fast_bytes ? run_block(fast_bytes, fill) : NULL;
    tvit_context context;
    FUZZ_CHECK(tvit_init_split(&context, model, arena, bytes, fast, fast_bytes) == TVIT_OK);
    uint8_t *image = tvit_tensor_data(&context, 0);
    for (size_t i = 0; i < tvit_tensor_bytes(model, 0); i++)
        image[i] = (uint8_t)(37 * i + 11);
    FUZZ_CHECK(tvit_run(&context, 0xffffffffu, NULL, NULL) == TVIT_OK);
    const uint32_t classes = model->info->classes;
    int16_t *logits = malloc(classes * sizeof *logits);
    FUZZ_CHECK(logits != NULL);
    memcpy(logits, tvit_tensor_data(&context, model->info->logits), classes * sizeof *logits);
    free(arena);
    free(fast);
    return logits;
}

#endif
