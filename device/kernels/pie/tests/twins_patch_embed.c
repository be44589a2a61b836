// SPDX-License-Identifier: Apache-2.0
#include "twins.h"

#pragma weak tvit_patch_embed_pie

typedef struct {
    tvit_patch_embed_args args;
    void *scratch;
} patch_embed_call;

static void work(void *argument, const tvit_team *team) {
    const patch_embed_call *call = argument;
    tvit_patch_embed_pie(&call->args, call->scratch, team);
}

// How far behind the output the image must begin where they overlap (tvit_image_lead() of the runtime, from arguments).
static uint32_t image_lead(const tvit_patch_embed_args *args, uint32_t patches, uint32_t across) {
    const uint32_t tokens = args->prefix_tokens + patches, line_bytes = args->image_width * args->image_channels;
    int32_t lead = 0;
    for (uint32_t end = 16; end < tokens + 16; end += 16) {
        uint32_t read = end > args->prefix_tokens ? end - args->prefix_tokens : 0;
        if (read > patches) read = patches;
        const int32_t ahead =
            (int32_t)(end * args->weights.n * 2) - (int32_t)(read / across * args->patch_size * line_bytes);
        if (ahead > lead) lead = ahead;
    }
    return ((uint32_t)lead + 15) & ~15u;
}

void twins_patch_embed(void) {
    if (!tvit_patch_embed_pie) {
        twins_absent();
        return;
    }
    // Half of them as models have them: a line of a patch and the outputs multiples of 16. Some of several groups of
    // blocks.
    const uint32_t usual = twins_draw() % 2, groups = twins_one_in(8);
    const uint32_t channels = groups || usual ? 1u << twins_draw() % 3 : twins_between(1, 4);
    const uint32_t size = groups            ? 16
                          : usual           ? 16 / channels
                          : twins_one_in(4) ? twins_between(7, 16)
                                            : twins_between(1, 6);
    const uint32_t most = groups ? 9 : size > 6 ? 4 : 8;
    const uint32_t down = twins_between(groups ? 6 : 1, most), across = twins_between(groups ? 6 : 1, most);
    const uint32_t n = usual || groups ? 16 * twins_between(1, 2) : twins_between(1, size > 6 ? 20 : 50);
    const uint32_t prefix = twins_draw() % 3, k = size * size * channels;
    const uint32_t patches = down * across, tokens = prefix + patches, image_bytes = patches * k;
    const uint32_t overlap = twins_draw() % 2;
    twins_note("patch", size);
    twins_note("channels", channels);
    twins_note("down", down);
    twins_note("across", across);
    twins_note("prefix", prefix);
    twins_note("overlap", overlap);
    const tvit_ternary_matrix matrix = twins_draw_matrix(n, k, 128);
    uint8_t *image = twins_take(image_bytes);
    if (twins_one_in(8)) memset(image, twins_draw() % 2 ? 255 : 0, image_bytes);
    twins_tensor output = twins_draw_tensor(tokens, n, 2, 32767);
    tvit_patch_embed_args args = {
        .weights = matrix,
        .image = image,
        .image_height = down * size,
        .image_width = across * size,
        .image_channels = channels,
        .patch_size = size,
        .position = twins_draw_i8((size_t)patches * n),
        .position_multiplier = (int32_t)twins_between(1, 255),
        .prefix = twins_draw_i16((size_t)prefix * n),
        .prefix_tokens = prefix,
        .output = (int16_t *)output.values,
    };
    const uint32_t lead = image_lead(&args, patches, across), padded = (tokens + 15) & ~15u, bytes = padded * n * 2;
    uint8_t *memory = overlap ? twins_take(lead + image_bytes > bytes ? lead + image_bytes : bytes) : output.blocks;
    patch_embed_call call = {args, twins_take(tvit_patch_embed_buffer_size_pie(&args))};
    if (overlap) {
        memcpy(memory + lead, image, image_bytes);
        call.args.image = memory + lead;
        output.blocks = memory;
    }
    call.args.output = (int16_t *)memory;
    const uint8_t *before = twins_copy(image, image_bytes);

    tvit_patch_embed_portable(&args, twins_take(tvit_patch_embed_buffer_size_portable(&args)));
    twins_run(work, &call);

    twins_compare("output", &output, 0, tokens, 0, n);
    if (!overlap) twins_compare_bytes("image", before, image, image_bytes);
}
