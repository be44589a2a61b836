// SPDX-License-Identifier: Apache-2.0
// Patch embedding (CONTRACT.md, section 4) straight from the image. Some blocks of tokens at a time: the pixels of
// sixteen patches become [k][16] vectors of pixel - 128 in the scratch memory, the position embedding becomes the
// output, and the weights' rows are added to it. The parts share the lines of the patches, then the tiles of 16
// channels.
#include "patch_embed_lanes.h"
#include "pie_kernels.h"
#include "stream.h"

enum { LANES = TVIT_BLOCK_TOKENS, TILE = TVIT_TILE_CHANNELS };

typedef struct {
    const tvit_patch_embed_args *args;
    uint32_t patches, patches_in_line;
    uint32_t run;  // bytes of one line of a patch
    uint32_t line; // of the image
} operation;

static uint32_t multiple_of_16(const void *address, uint32_t bytes) {
    return (((uint32_t)(uintptr_t)address | bytes) & 15) == 0;
}

// The patch of a lane. Lanes of prefix tokens and padding take any: nothing of them is kept.
static uint32_t patch_of(const operation *op, uint32_t block, uint32_t lane) {
    uint32_t token = block * LANES + lane, prefix = op->args->prefix_tokens;
    uint32_t patch = token < prefix ? 0 : token - prefix;
    return patch < op->patches ? patch : op->patches - 1;
}

// Lines first_line ... end_line - 1 of the patches of a block.
static void gather(const operation *op, uint32_t block, uint8_t *out, uint32_t first_line, uint32_t end_line) {
    const tvit_patch_embed_args *args = op->args;
    tvit_transpose_args transpose = {.groups = op->run / LANES, .flip = 0x80};
    for (uint32_t lane = 0; lane < LANES; lane++) {
        uint32_t patch = patch_of(op, block, lane), y = patch / op->patches_in_line, x = patch % op->patches_in_line;
        transpose.rows[lane] = args->image + y * args->patch_size * op->line + x * op->run;
    }
    for (uint32_t py = first_line; py < end_line; py++) {
        uint8_t *to = out + py * op->run * LANES;
        transpose.offset = py * op->line;
        transpose.out = to;
        if (multiple_of_16(args->image, op->run | op->line)) {
            tvit_transpose_lanes(&transpose);
            continue;
        }
        for (uint32_t lane = 0; lane < LANES; lane++) {
            const uint8_t *pixels = transpose.rows[lane] + transpose.offset;
            for (uint32_t i = 0; i < op->run; i++)
                to[i * LANES + lane] = pixels[i] ^ 0x80;
        }
    }
}

// The position embedding of a block's patches in channels first ... end - 1, as the products with their multiplier.
static void place_positions(const operation *op, uint32_t block, uint32_t first, uint32_t end) {
    const tvit_patch_embed_args *args = op->args;
    const uint32_t n = args->weights.n;
    const int16_t multiplier = (int16_t)args->position_multiplier;
    int16_t *out = args->output + (size_t)block * n * LANES;
    const int8_t *rows[LANES];
    for (uint32_t lane = 0; lane < LANES; lane++)
        rows[lane] = args->position + (size_t)patch_of(op, block, lane) * n;
    if (multiple_of_16(args->position, n)) {
        int8_t tile[TILE * LANES] __attribute__((aligned(16)));
        tvit_transpose_args transpose = {.groups = 1, .out = (uint8_t *)tile};
        for (uint32_t lane = 0; lane < LANES; lane++)
            transpose.rows[lane] = (const uint8_t *)rows[lane];
        for (; first < end; first += TILE) {
            transpose.offset = first;
            tvit_transpose_lanes(&transpose);
            tvit_scale_lanes(tile, &multiplier, TILE, out + (size_t)first * LANES);
        }
    } else
        for (; first < end; first++)
            for (uint32_t lane = 0; lane < LANES; lane++)
                out[first * LANES + lane] = (int16_t)(rows[lane][first] * multiplier);
}

void tvit_patch_embed_pie(const tvit_patch_embed_args *args, void *scratch, const tvit_team *team) {
    const uint32_t n = args->weights.n, k = args->weights.k, part = team->part, parts = team->parts;
    const uint32_t lines = args->image_height / args->patch_size;
    operation op = {.args = args,
                    .patches_in_line = args->image_width / args->patch_size,
                    .run = args->patch_size * args->image_channels,
                    .line = args->image_width * args->image_channels};
    op.patches = op.patches_in_line * lines;
    const uint32_t blocks = (args->prefix_tokens + op.patches + LANES - 1) / LANES;
    const uint32_t together = (uint32_t)(tvit_patch_embed_buffer_size_pie(args) / (k * LANES));
    const uint32_t tiles = (n + TILE - 1) / TILE;
    const uint32_t first_tile = tiles * part / parts, end_tile = tiles * (part + 1) / parts;
    const uint32_t first = first_tile * TILE, end = end_tile * TILE < n ? end_tile * TILE : n;

    for (uint32_t done = 0; done < blocks; done += together) {
        uint32_t count = blocks - done < together ? blocks - done : together;
        if (done && parts > 1) team->barrier(team); // the other part has used what was gathered
        for (uint32_t b = 0; b < count; b++)
            gather(&op, done + b, (uint8_t *)scratch + b * k * LANES, args->patch_size * part / parts,
                   args->patch_size * (part + 1) / parts);
        if (parts > 1) team->barrier(team);
        for (uint32_t b = 0; b < count; b++)
            place_positions(&op, done + b, first, end);
        tvit_rows_args rows = {.weights = &args->weights,
                               .input = scratch,
                               .input_step = k * LANES,
                               .blocks = count,
                               .kind = TVIT_LINEAR_I16_ADD,
                               .output = args->output + ((size_t)done * n + first) * LANES,
                               .output_step = n * LANES * sizeof(int16_t)};
        if (first < end) tvit_rows_pie(&rows, first_tile, end_tile, &tvit_pie_workspaces[part]);
    }
    for (uint32_t t = 0; t < args->prefix_tokens; t++) {
        int16_t *out = args->output + (size_t)(t / LANES) * n * LANES + t % LANES;
        for (uint32_t c = first; c < end; c++)
            out[c * LANES] = args->prefix[(size_t)t * n + c];
    }
}
