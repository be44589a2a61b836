// SPDX-License-Identifier: Apache-2.0
#include "model_reference.h"

#include <stdlib.h>
#include <string.h>

#include "../runtime/internal.h"
#include "draw.h"
#include "reference.h"

void running_start(running_model *r, const small_model *file, int fill) {
    void *arena = NULL;
    r->file = *file;
    if (tvit_load(&r->model, r->file.file, r->file.bytes, NULL)) abort();
    size_t bytes = tvit_arena_bytes(&r->model);
    if (posix_memalign(&arena, 16, bytes)) abort();
    memset(arena, fill, bytes);
    r->arena = arena;
    if (tvit_init(&r->context, &r->model, arena, bytes)) abort();
}

void running_start_unshared(running_model *r, const running_model *original) {
    small_model file = small_model_copy(&original->file);
    uint32_t at = 0;
    for (uint32_t t = 0; t < original->model.tensor_count; t++) {
        file.offsets[t] = at;
        at += (uint32_t)(tvit_tensor_bytes(&original->model, t) + 15) & ~15u;
    }
    for (uint32_t i = 0; i < original->model.operator_count; i++)
        file.scratches[i].offset = at;
    file.plan->arena_bytes = at + ((file.plan->scratch_bytes + 15) & ~15u);
    small_model_seal(&file);
    running_start(r, &file, 0x33);
}

void running_stop(running_model *r) {
    free(r->arena);
    small_model_free(&r->file);
}

void running_draw_image(running_model *r) {
    uint8_t *image = tvit_tensor_data(&r->context, 0);
    for (size_t i = 0; i < tvit_tensor_bytes(&r->model, 0); i++)
        image[i] = (uint8_t)draw();
}

void running_copy_image(running_model *r, const running_model *from) {
    memcpy(tvit_tensor_data(&r->context, 0), tvit_tensor_data(&from->context, 0), tvit_tensor_bytes(&r->model, 0));
}

// The trits of a matrix, by the kernel that test_kernels.c compares with the encoder.
static int8_t *decode(const tvit_ternary_matrix *m) {
    int8_t *trits = malloc((size_t)m->n * m->k);
    int32_t(*pairs)[4] = malloc(16 * m->k), sums[8];
    for (uint32_t o = 0; o < m->n; o++) {
        uint32_t count = m->n - o / 8 * 8 < 8 ? m->n - o / 8 * 8 : 8;
        tvit_trits_decode_portable(m, o / 8 * 8, count, pairs, sums);
        for (uint32_t i = 0; i < m->k; i++) {
            int32_t pair = pairs[i][o % 8 / 2];
            trits[o * m->k + i] = (int8_t)(o & 1 ? (pair + 0x8000) >> 16 : (int16_t)pair);
        }
    }
    free(pairs);
    return trits;
}

void running_reference_operator(running_model *r, uint32_t index) {
    tvit_operator_args args;
    int8_t *trits;
    tvit_bind_operator(&r->model, index, TVIT_LAYOUT_ROWS, &r->context, &args);
    switch (r->model.operators[index].kind) {
    case TVIT_OP_PATCH_EMBED:
        trits = decode(&args.patch_embed.weights);
        reference_patch_embed(&args.patch_embed, trits);
        free(trits);
        break;
    case TVIT_OP_LINEAR:
        trits = decode(&args.linear.weights);
        reference_linear(&args.linear, trits);
        free(trits);
        break;
    case TVIT_OP_LAYERNORM:
        reference_layernorm(&args.layernorm);
        break;
    case TVIT_OP_ATTENTION:
        reference_attention(&args.attention);
        break;
    default:
        reference_mean_pool(&args.mean_pool);
        break;
    }
}

uint32_t running_differences(const tvit_context *context, const running_model *reference, uint32_t index) {
    const tvit_model *model = context->model;
    tvit_region region = tvit_operator_output(model, index);
    const tvit_tensor *t = &model->tensors[region.tensor];
    uint32_t size = t->dtype == TVIT_I16 ? 2 : 1, bytes = region.columns * size, differences = 0;
    const uint8_t *expected = tvit_tensor_data(&reference->context, region.tensor);
    uint8_t *got = malloc(bytes);
    for (uint32_t row = region.row; row < region.row + region.rows; row++) {
        uint32_t at = (row * t->columns + region.column) * size;
        tvit_read_tensor(context, region.tensor, at, bytes, got);
        for (uint32_t i = 0; i < bytes; i++)
            differences += got[i] != expected[at + i];
    }
    free(got);
    const uint16_t *m = tvit_tensor_multipliers(context, region.tensor);
    const uint16_t *expected_m = tvit_tensor_multipliers(&reference->context, region.tensor);
    differences += (m != NULL) != (t->flags != 0);
    for (uint32_t row = 0; m && row < region.rows; row++)
        differences += m[row] != expected_m[row];
    return differences;
}
