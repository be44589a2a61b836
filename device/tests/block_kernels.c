// SPDX-License-Identifier: Apache-2.0
#include "block_kernels.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels/pie/pie_kernels.h"

#define LANES TVIT_BLOCK_TOKENS

// --- cores -------------------------------------------------------------------------------------------------------

static pthread_barrier_t meeting;
static atomic_uint shared_calls;

static void meet(const tvit_team *team) {
    if (team->parts < 2) abort(); // one part has nobody to wait for
    pthread_barrier_wait(&meeting);
}

typedef struct {
    tvit_team team;
    tvit_team_work work;
    void *argument;
} member;

static void *take_part(void *user) {
    member *m = user;
    m->work(m->argument, &m->team);
    return NULL;
}

void block_kernels_run(void *user, tvit_team_work work, void *argument) {
    enum { PARTS = TVIT_MAX_CORES };
    member members[PARTS];
    pthread_t threads[PARTS];
    ++*(uint32_t *)user;
    if (pthread_barrier_init(&meeting, NULL, PARTS)) abort();
    for (uint32_t i = 0; i < PARTS; i++) {
        members[i] = (member){{i, PARTS, meet}, work, argument};
        if (pthread_create(&threads[i], NULL, take_part, &members[i])) abort();
    }
    for (uint32_t i = 0; i < PARTS; i++)
        if (pthread_join(threads[i], NULL)) abort();
    pthread_barrier_destroy(&meeting);
}

uint32_t block_kernels_shared_calls(void) {
    return shared_calls;
}

// All parts have read what they need, and may write.
static void all_have_read(const tvit_team *team) {
    if (team->parts > 1) {
        atomic_fetch_add(&shared_calls, 1);
        team->barrier(team);
    }
}

// --- layout ------------------------------------------------------------------------------------------------------

static void *room(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) abort();
    return memory;
}

static size_t place_of(uint32_t row, uint32_t column, uint32_t columns) {
    return (row / LANES * (size_t)columns + column) * LANES + row % LANES;
}

// Rows `lane` ... of n columns of a tensor of `columns`, as [rows][n].
static void *to_rows(const void *blocks, uint32_t lane, uint32_t rows, uint32_t n, uint32_t columns, uint32_t size) {
    uint8_t *out = room((size_t)rows * n * size);
    for (uint32_t row = 0; row < rows; row++)
        for (uint32_t c = 0; c < n; c++)
            memcpy(out + ((size_t)row * n + c) * size,
                   (const uint8_t *)blocks + place_of(lane + row, c, columns) * size, size);
    return out;
}

// This part's columns of [rows][n] into the blocks of a tensor; garbage behind the last row.
static void to_blocks(const tvit_team *team, void *blocks, const void *values, uint32_t rows, uint32_t n,
                      uint32_t columns, uint32_t size) {
    for (uint32_t row = 0; row < (rows + LANES - 1) / LANES * LANES; row++)
        for (uint32_t c = n * team->part / team->parts; c < n * (team->part + 1) / team->parts; c++) {
            uint8_t *at = (uint8_t *)blocks + place_of(row, c, columns) * size;
            if (row < rows)
                memcpy(at, (const uint8_t *)values + ((size_t)row * n + c) * size, size);
            else
                memset(at, 0x80, size);
        }
}

// --- operators ---------------------------------------------------------------------------------------------------

// Some tokens of the embedding: the prefix tokens first, then patches, which are an image of one patch a line.
static void embed(const tvit_patch_embed_args *args, uint32_t first, const uint8_t *pixels, uint32_t patches,
                  uint32_t prefix, int16_t *out) {
    uint32_t n = args->weights.n, patch = first < args->prefix_tokens ? 0 : first - args->prefix_tokens;
    tvit_patch_embed_args some = *args;
    some.image = pixels;
    some.image_width = args->patch_size;
    some.image_height = args->patch_size * patches;
    some.position = args->position + (size_t)patch * n;
    some.prefix = args->prefix + (size_t)first * n;
    some.prefix_tokens = prefix;
    some.output = out;
    void *scratch = room(tvit_patch_embed_buffer_size_portable(&some));
    tvit_patch_embed_portable(&some, scratch);
    free(scratch);
}

static void gather(const tvit_patch_embed_args *args, uint32_t patch, uint8_t *out) {
    uint32_t size = args->patch_size, across = args->image_width / size, run = size * args->image_channels;
    size_t line = (size_t)args->image_width * args->image_channels;
    for (uint32_t y = 0; y < size; y++)
        memcpy(out + y * run, args->image + (patch / across * size + y) * line + patch % across * run, run);
}

static void patch_embed(const tvit_patch_embed_args *args, void *scratch, const tvit_team *team) {
    uint32_t n = args->weights.n, k = args->weights.k, prefix = args->prefix_tokens;
    uint32_t patches = args->image_width / args->patch_size * (args->image_height / args->patch_size);
    (void)scratch;
    for (uint32_t first = 0; first < prefix + patches; first += LANES) {
        uint32_t rows = prefix + patches - first < LANES ? prefix + patches - first : LANES;
        uint32_t prefix_rows = first >= prefix ? 0 : prefix - first < rows ? prefix - first : rows;
        uint8_t *pixels = room((size_t)rows * k);
        int16_t *out = room((size_t)rows * n * 2);
        for (uint32_t i = prefix_rows; i < rows; i++)
            gather(args, first + i - prefix, pixels + (size_t)(i - prefix_rows) * k);
        embed(args, first, pixels, rows - prefix_rows, prefix_rows, out);
        all_have_read(team);
        to_blocks(team, args->output + (size_t)first * n, out, rows, n, n, 2);
        if (team->parts > 1) team->barrier(team); // the next block may lie where others still write
        free(out);
        free(pixels);
    }
}

static void layernorm(const tvit_layernorm_args *args, void *scratch, const tvit_team *team) {
    tvit_layernorm_args rows = *args;
    void *input = to_rows(args->input, 0, args->rows, args->n, args->n, 2);
    rows.input = input;
    rows.output = room((size_t)args->rows * args->n);
    (void)scratch;
    tvit_layernorm_portable(&rows, NULL);
    all_have_read(team);
    to_blocks(team, args->output, rows.output, args->rows, args->n, args->n, 1);
    free(rows.output);
    free(input);
}

static void linear(const tvit_linear_args *args, void *scratch, const tvit_team *team) {
    uint32_t n = args->weights.n, k = args->weights.k, size = args->kind >= TVIT_LINEAR_I16_SET ? 2 : 1;
    uint32_t columns = args->output_columns;
    tvit_linear_args rows = *args;
    void *input = to_rows(args->input, args->input_lane, args->rows, k, k, 1);
    rows.input = input;
    rows.output_columns = n;
    if (args->output_is_row) {
        if (args->rows != 1 || size != 2) abort();
        rows.output = room(2 * n);
        memcpy(rows.output, args->output, 2 * n);
    } else {
        rows.output = to_rows(args->output, 0, args->rows, n, columns, size);
    }
    (void)scratch;
    void *own = room(tvit_linear_buffer_size_portable(&rows));
    tvit_linear_portable(&rows, own);
    all_have_read(team);
    if (!args->output_is_row)
        to_blocks(team, args->output, rows.output, args->rows, n, columns, size);
    else if (team->part == 0)
        memcpy(args->output, rows.output, 2 * n);
    free(own);
    free(rows.output);
    free(input);
}

static void attention(const tvit_attention_args *args, void *scratch, const tvit_team *team) {
    uint32_t t = args->tokens, width = args->heads * args->head_dim;
    tvit_attention_args rows = *args;
    int8_t *q = to_rows(args->q, 0, t, width, args->q_columns, 1),
           *k = to_rows(args->k, 0, t, width, args->k_columns, 1);
    int8_t *v = to_rows(args->v, 0, t, width, args->v_columns, 1), *garbage = room((size_t)t * width);
    rows.q = q, rows.k = k, rows.v = v;
    rows.q_columns = rows.k_columns = rows.v_columns = rows.output_columns = width;
    rows.output = room((size_t)t * width);
    (void)scratch;
    void *own = room(tvit_attention_buffer_size_portable(&rows));
    tvit_attention_portable(&rows, own);
    all_have_read(team);
    to_blocks(team, args->output, rows.output, t, width, args->output_columns, 1);
    memset(garbage, 0x80, (size_t)t * width);
    to_blocks(team, args->k, garbage, t, width, args->k_columns, 1);
    free(own), free(q), free(k), free(v), free(garbage), free(rows.output);
}

static void mean_pool(const tvit_mean_pool_args *args, void *scratch, const tvit_team *team) {
    tvit_mean_pool_args rows = *args;
    void *input = to_rows(args->input, args->input_lane, args->rows, args->n, args->n, 2);
    rows.input = input;
    rows.output = room(2 * args->n);
    (void)scratch;
    tvit_mean_pool_portable(&rows, NULL);
    all_have_read(team);
    to_blocks(team, args->output, rows.output, 1, args->n, args->n, 2);
    free(rows.output);
    free(input);
}

// --- the table ---------------------------------------------------------------------------------------------------

// The heap is these kernels' scratch; they ask for what the PIE kernels do, so that plans hold.
const tvit_kernel_table tvit_kernels_pie = {
    .name = "blocks",
    .layout = TVIT_LAYOUT_TOKEN_BLOCKS,
    .parallel = 1,
    .patch_embed = patch_embed,
    .patch_embed_buffer_size = tvit_patch_embed_buffer_size_pie,
    .layernorm = layernorm,
    .layernorm_buffer_size = tvit_layernorm_buffer_size_pie,
    .linear = linear,
    .linear_buffer_size = tvit_linear_buffer_size_pie,
    .attention = attention,
    .attention_buffer_size = tvit_attention_buffer_size_pie,
    .mean_pool = mean_pool,
    .mean_pool_buffer_size = tvit_mean_pool_buffer_size_pie,
};
