// SPDX-License-Identifier: Apache-2.0
// Mean pooling (CONTRACT.md, section 9).
#include "arithmetic.h"
#include "tvit/kernels.h"

void tvit_mean_pool_portable(const tvit_mean_pool_args *args, void *scratch) {
    (void)scratch;
    for (uint32_t i = 0; i < args->n; i++) {
        int32_t sum = (int32_t)(args->rows >> 1);
        const int16_t *x = args->input + i;
        for (uint32_t row = 0; row < args->rows; row++, x += args->n)
            sum += *x;
        // C truncates towards zero, the contract rounds down: shift the range of a negative sum.
        uint32_t magnitude = sum < 0 ? 0u - (uint32_t)sum : (uint32_t)sum;
        int32_t mean =
            sum < 0 ? -(int32_t)((magnitude + args->rows - 1) / args->rows) : (int32_t)(magnitude / args->rows);
        args->output[i] = (int16_t)tvit_clamp(mean, 32767);
    }
}

size_t tvit_mean_pool_buffer_size_portable(const tvit_mean_pool_args *args) {
    (void)args;
    return 0;
}
