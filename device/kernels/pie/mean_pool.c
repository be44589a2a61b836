// SPDX-License-Identifier: Apache-2.0
// Mean pooling (CONTRACT.md, section 9) of token blocks. It runs once in a model, on one channel in 16 lanes after the
// other.
#include "pie_kernels.h"

enum { LANES = TVIT_BLOCK_TOKENS };

static int32_t sum_of(const int16_t *x, uint32_t first, uint32_t end) {
    int32_t sum = 0;
    for (uint32_t lane = first; lane < end; lane++)
        sum += x[lane];
    return sum;
}

void tvit_mean_pool_pie(const tvit_mean_pool_args *args, void *scratch, const tvit_team *team) {
    (void)scratch;
    const uint32_t end = args->input_lane + args->rows; // counted from the lane 0 that `input` points to
    const int32_t rows = (int32_t)args->rows;
    const size_t block = (size_t)args->n * LANES;
    for (uint32_t c = args->n * team->part / team->parts; c < args->n * (team->part + 1) / team->parts; c++) {
        const int16_t *x = args->input + (size_t)c * LANES;
        int32_t sum = rows >> 1;
        uint32_t first = args->input_lane;
        for (uint32_t left = end; left; x += block, first = 0) {
            uint32_t lanes = left < LANES ? left : LANES;
            sum += sum_of(x, first, lanes);
            left -= lanes;
        }
        int32_t mean = sum / rows - (sum % rows < 0); // C truncates towards zero, the contract rounds down
        args->output[c * LANES] = (int16_t)(mean > 32767 ? 32767 : mean < -32767 ? -32767 : mean);
    }
}
