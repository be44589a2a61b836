// SPDX-License-Identifier: Apache-2.0
// Mean pooling (CONTRACT.md, section 9) of token blocks: a channel is the sum of its vectors' lanes.
#include "pie_kernels.h"

enum { LANES = TVIT_BLOCK_TOKENS };

int32_t tvit_sum_lanes(const int16_t *x, uint32_t block_bytes, uint32_t blocks, const int16_t weights[2][LANES]);

static int32_t sum_of_one_block(const int16_t *x, const int16_t *weights) {
    int32_t sum = 0;
    for (uint32_t lane = 0; lane < LANES; lane++)
        sum += x[lane] * weights[lane];
    return sum;
}

void tvit_mean_pool_pie(const tvit_mean_pool_args *args, void *scratch, const tvit_team *team) {
    (void)scratch;
    const uint32_t first = args->input_lane, end = first + args->rows, blocks = (end + LANES - 1) / LANES;
    const int32_t rows = (int32_t)args->rows;
    int16_t weights[2][LANES] __attribute__((aligned(16))); // of the first block, of the last one
    for (uint32_t lane = 0; lane < LANES; lane++) {
        weights[0][lane] = lane >= first && lane < end;
        weights[1][lane] = (blocks - 1) * LANES + lane < end;
    }
    for (uint32_t c = args->n * team->part / team->parts; c < args->n * (team->part + 1) / team->parts; c++) {
        const int16_t *x = args->input + (size_t)c * LANES;
        int32_t sum = rows >> 1;
        if (blocks == 1)
            sum += sum_of_one_block(x, weights[0]);
        else
            sum += tvit_sum_lanes(x, args->n * LANES * (uint32_t)sizeof *x, blocks, weights);
        const int32_t mean = sum / rows - (sum % rows < 0); // C truncates towards zero, the contract rounds down
        args->output[c * LANES] = (int16_t)(mean > 32767 ? 32767 : mean < -32767 ? -32767 : mean);
    }
}
