// SPDX-License-Identifier: Apache-2.0
// Patch embedding (CONTRACT.md, section 4). A patch is read where it lies, one run of pixels a patch row; a pixel is
// already its value plus 128.
#include "arithmetic.h"
#include "ternary.h"

static void embed_patch(const tvit_patch_embed_args *args, const tvit_channel_group *group, const uint8_t *pixels,
                        uint32_t first, uint32_t patch) {
    uint32_t n = args->weights.n, run = args->patch_size * args->image_channels;
    size_t line = (size_t)args->image_width * args->image_channels;
    const int32_t(*pairs)[4] = (const int32_t(*)[4])group->pairs;
    int32_t y[TVIT_GROUP_CHANNELS];
    for (uint32_t c = 0; c < TVIT_GROUP_CHANNELS; c++)
        y[c] = group->start[c];
    for (uint32_t py = 0; py < args->patch_size; py++, pixels += line, pairs += run)
        tvit_ternary_dot_portable(y, pairs, pixels, run, 0);

    const int8_t *position = args->position + (size_t)patch * n + first;
    int16_t *out = args->output + (size_t)(args->prefix_tokens + patch) * n + first;
    for (uint32_t c = 0; c < group->count; c++) {
        int32_t v = tvit_clamp((group->gain[c] * y[c] + group->bias[c]) >> group->shift[c], 32767);
        out[c] = (int16_t)tvit_clamp(v + position[c] * args->position_multiplier, 32767);
    }
}

void tvit_patch_embed_portable(const tvit_patch_embed_args *args, void *scratch) {
    uint32_t n = args->weights.n, size = args->patch_size;
    uint32_t columns = args->image_width / size, lines = args->image_height / size;
    size_t patch_line = (size_t)args->image_width * args->image_channels * size; // bytes of a row of patches
    tvit_channel_group group;
    for (uint32_t first = 0; first < n; first += TVIT_GROUP_CHANNELS) {
        tvit_channel_group_decode(&group, &args->weights, first, scratch);
        uint32_t patch = 0;
        for (uint32_t y = 0; y < lines; y++)
            for (uint32_t x = 0; x < columns; x++, patch++)
                embed_patch(args, &group, args->image + y * patch_line + (size_t)x * size * args->image_channels, first,
                            patch);
    }
    for (size_t i = 0; i < (size_t)args->prefix_tokens * n; i++)
        args->output[i] = args->prefix[i];
}

size_t tvit_patch_embed_buffer_size_portable(const tvit_patch_embed_args *args) {
    return tvit_channel_group_bytes(&args->weights);
}
