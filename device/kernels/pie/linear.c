// SPDX-License-Identifier: Apache-2.0
// Linear operators with static scales (CONTRACT.md, section 2) on token blocks. The parts of a team divide the tiles of
// 16 channels; each part uses its own workspace and nothing else but what it reads.
#include "pie_kernels.h"
#include "stream.h"

_Static_assert(TVIT_MAX_CORES == 2, "tiles are divided by halving");

static int32_t clamp16(int32_t v) {
    return v > 32767 ? 32767 : v < -32767 ? -32767 : v;
}

// The logits: one lane of each channel of a tile, kept as a row.
static void linear_to_row(const tvit_linear_args *args, tvit_rows_args *rows, uint32_t first, uint32_t last,
                          tvit_pie_workspace *workspace) {
    int16_t *out = args->output;
    rows->kind = TVIT_LINEAR_I16_SET;
    rows->output = workspace->rows;
    rows->output_step = sizeof workspace->rows;
    for (uint32_t tile = first; tile < last; tile++) {
        const uint32_t channel = tile * TVIT_TILE_CHANNELS;
        tvit_rows_pie(rows, tile, tile + 1, workspace);
        for (uint32_t c = 0; c < TVIT_TILE_CHANNELS && channel + c < args->weights.n; c++) {
            const int32_t y = workspace->rows[c][args->input_lane];
            out[channel + c] = (int16_t)(args->kind == TVIT_LINEAR_I16_ADD ? clamp16(out[channel + c] + y) : y);
        }
    }
}

void tvit_linear_pie(const tvit_linear_args *args, void *scratch, const tvit_team *team) {
    (void)scratch;
    const uint32_t tiles = (args->weights.n + TVIT_TILE_CHANNELS - 1) / TVIT_TILE_CHANNELS;
    const uint32_t halving = team->parts - 1; // 1 or 2 parts
    const uint32_t first = tiles * team->part >> halving, last = tiles * (team->part + 1) >> halving;
    const uint32_t channel_step = tvit_channel_step_pie(args->kind);
    tvit_pie_workspace *workspace = &tvit_pie_workspaces[team->part];
    tvit_rows_args rows = {
        .weights = &args->weights,
        .input = args->input,
        .input_step = args->weights.k * TVIT_BLOCK_TOKENS,
        .blocks = (args->rows + TVIT_BLOCK_TOKENS - 1) / TVIT_BLOCK_TOKENS,
        .kind = args->kind,
        .limit = args->limit,
        .table = args->table,
        .output = (uint8_t *)args->output + first * TVIT_TILE_CHANNELS * channel_step,
        .output_step = args->output_columns * channel_step,
    };
    if (args->output_is_row)
        linear_to_row(args, &rows, first, last, workspace);
    else
        tvit_rows_pie(&rows, first, last, workspace);
}
