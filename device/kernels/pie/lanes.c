// SPDX-License-Identifier: Apache-2.0
// Tiles of a ternary matrix over token blocks, by multiplication with int8 weights: for rows that are too long to
// become instruction streams. As many rows of a tile as fit are decoded into the workspace, multiplied by their gains
// there, and used for every block. Rows longer than the workspace (about 6,900 inputs) are decoded in pieces for each
// block.
#include "lanes.h"

#include <stddef.h>
#include <string.h>

_Static_assert(offsetof(tvit_lanes_args, input) == LANES_INPUT && offsetof(tvit_lanes_args, weights) == LANES_WEIGHTS &&
                   offsetof(tvit_lanes_args, output) == LANES_OUTPUT &&
                   offsetof(tvit_lanes_args, records) == LANES_RECORDS &&
                   offsetof(tvit_lanes_args, rows) == LANES_ROWS &&
                   offsetof(tvit_lanes_args, output_step) == LANES_OUTPUT_STEP &&
                   offsetof(tvit_lanes_args, first) == LANES_FIRST && offsetof(tvit_lanes_args, loops) == LANES_LOOPS &&
                   offsetof(tvit_lanes_args, keep) == LANES_CONTINUE &&
                   offsetof(tvit_lanes_args, scratch) == LANES_SCRATCH &&
                   offsetof(tvit_lanes_args, constants) == LANES_CONSTANTS,
               "lanes.S uses these offsets");

// Weights that fit: the kernel loads 16 bytes more than it uses, the decoder stores one.
#define WEIGHT_BYTES ((sizeof((tvit_pie_workspace *)0)->stream - 32) & ~(size_t)31)

typedef void (*lanes_kernel)(const tvit_lanes_args *args);

static lanes_kernel kernel_of(tvit_linear_output kind) {
    switch (kind) {
    case TVIT_LINEAR_I16_ADD:
        return tvit_lanes_i16_add_pie;
    case TVIT_LINEAR_I16_SET:
        return tvit_lanes_i16_set_pie;
    case TVIT_LINEAR_TABLE:
        return tvit_lanes_table_pie;
    default:
        return tvit_lanes_i8_pie;
    }
}

// Trit i of a byte, -1, 0 or 1.
static int8_t trit_of(uint32_t codec, uint32_t byte, uint32_t i) {
    if (codec == TVIT_CODEC_2BIT) {
        const uint32_t code = byte >> 2 * i & 3;
        return (int8_t)((int32_t)(code & 1) - (int32_t)(code & 2));
    }
    while (i--)
        byte = byte * 171 >> 9; // byte / 3, for byte < 256
    return (int8_t)((int32_t)(byte - 3 * (byte * 171 >> 9)) - 1);
}

// The trits of every byte, eight bytes each, in the memory of the codes for instruction streams.
static void build_trits(tvit_pie_workspace *workspace, uint32_t codec) {
    const uint32_t name = TVIT_TRIT_CODES_DECODED + codec;
    if (workspace->trit_codes_of == name) return;
    int8_t(*trits)[8] = (int8_t(*)[8])(void *)workspace->trit_codes;
    for (uint32_t byte = 0; byte < (codec == TVIT_CODEC_BASE3 ? 243 : 256); byte++)
        for (uint32_t i = 0; i < 5; i++)
            trits[byte][i] = i < 4 || codec == TVIT_CODEC_BASE3 ? trit_of(codec, byte, i) : 0;
    workspace->trit_codes_of = name;
}

// `count` trits from number `at` of a tile on.
static void decode_trits(const tvit_rows_args *args, const uint8_t *tile, uint32_t at, uint32_t count, int8_t *out,
                         tvit_pie_workspace *workspace) {
    const uint32_t codec = args->weights->codec, per_byte = codec == TVIT_CODEC_BASE3 ? 5 : 4;
    const uint8_t *byte = tile + at / per_byte;
    uint32_t phase = at % per_byte;
    for (; phase && count; count--) {
        *out++ = trit_of(codec, *byte, phase++);
        if (phase == per_byte) byte++, phase = 0;
    }
    const uint32_t whole = count / per_byte;
    if (whole) tvit_trits_decode_pie((const uint32_t(*)[2])workspace->trit_codes, byte, whole, out, per_byte);
    out += whole * per_byte;
    for (uint32_t i = 0; i < count - whole * per_byte; i++)
        *out++ = trit_of(codec, byte[whole], i);
}

// Row `row` of a tile of codec gaps.
static void decode_gaps(const uint8_t *tile, uint32_t rows, uint32_t row, uint32_t k, int8_t *out) {
    const uint32_t *headers = (const uint32_t *)(const void *)tile;
    const uint8_t *codes = (const uint8_t *)(headers + rows);
    for (uint32_t i = 0; i < row; i++)
        codes += (TVIT_GAPS_INSTRUCTIONS(headers[i]) + 1) / 2;
    const uint32_t header = headers[row], instructions = TVIT_GAPS_INSTRUCTIONS(header);
    const uint32_t gaps[2] = {TVIT_GAPS_FIRST_GAP(header), TVIT_GAPS_SECOND_GAP(header)};
    uint32_t position = TVIT_GAPS_POSITION(header), ahead[3] = {gaps[0], gaps[1], 0};
    memset(out, 0, k);
    for (uint32_t i = 0; i < instructions; i++) {
        const uint32_t code = codes[i / 2] >> 4 * (i & 1) & 15;
        out[position] = (int8_t)(out[position] + (code & 8 ? -1 : 1));
        ahead[2] = code & 7; // from instruction i + 2 to i + 3
        position += ahead[0];
        ahead[0] = ahead[1];
        ahead[1] = ahead[2];
    }
}

// A piece of a row, with its gain, aligned to the end of `out` (a multiple of 32 bytes).
static void decode(const tvit_rows_args *args, const uint8_t *tile, uint32_t rows, uint32_t row, uint32_t from,
                   uint32_t count, int8_t *out, tvit_pie_workspace *workspace) {
    const uint32_t padded = (count + 31) & ~31u, k = args->weights->k;
    if (args->weights->codec == TVIT_CODEC_GAPS)
        decode_gaps(tile, rows, row, k, out + padded - count);
    else
        decode_trits(args, tile, row * k + from, count, out + padded - count, workspace);
    tvit_gain_pie(out, padded / 16, &workspace->records[row].gain);
}

static void set_inputs(tvit_lanes_args *lanes, uint32_t count) {
    lanes->loops = (count - 1) / 32;
    lanes->first = count - 32 * lanes->loops;
}

// One row that does not fit, one block.
static void long_row(const tvit_rows_args *args, tvit_lanes_args *lanes, const uint8_t *tile, uint32_t rows,
                     uint32_t row, lanes_kernel kernel, tvit_pie_workspace *workspace) {
    const uint32_t k = args->weights->k;
    const int8_t *input = lanes->input;
    lanes->rows = 1;
    for (uint32_t from = 0; from < k; from += WEIGHT_BYTES) {
        const uint32_t count = k - from < WEIGHT_BYTES ? k - from : WEIGHT_BYTES;
        decode(args, tile, rows, row, from, count, (int8_t *)workspace->stream, workspace);
        set_inputs(lanes, count);
        lanes->keep = from > 0;
        lanes->input = input + from * TVIT_BLOCK_TOKENS;
        (from + count == k ? kernel : tvit_lanes_none_pie)(lanes);
    }
}

void tvit_rows_by_lanes_pie(const tvit_rows_args *args, uint32_t first, uint32_t last, tvit_pie_workspace *workspace) {
    const tvit_ternary_matrix *weights = args->weights;
    const uint32_t k = weights->k, row_bytes = (k + 31) & ~31u, channel_step = tvit_channel_step_pie(args->kind);
    const uint32_t batch = row_bytes > WEIGHT_BYTES ? 1 : WEIGHT_BYTES / row_bytes; // rows
    const lanes_kernel kernel = kernel_of(args->kind);
    tvit_lanes_args lanes = {.weights = (const int8_t *)workspace->stream, .output_step = TVIT_BLOCK_TOKENS};
    lanes.scratch = tvit_epilogue_prepare_pie(args, workspace, lanes.constants);
    if (weights->codec != TVIT_CODEC_GAPS) build_trits(workspace, weights->codec);
    set_inputs(&lanes, k);
    uint8_t *output = args->output;
    for (uint32_t tile = first; tile < last; tile++, output += TVIT_TILE_CHANNELS * channel_step) {
        const uint32_t channel = tile * TVIT_TILE_CHANNELS;
        const uint32_t left = weights->n - channel, rows = left < TVIT_TILE_CHANNELS ? left : TVIT_TILE_CHANNELS;
        const uint8_t *bytes = tvit_tile_pie(weights, tile);
        tvit_pie_records(workspace->records, weights->channels + channel, NULL, rows);
        for (uint32_t row = 0; row < rows; row += lanes.rows) {
            lanes.rows = rows - row < batch ? rows - row : batch;
            lanes.records = workspace->records + row;
            for (uint32_t i = 0; row_bytes <= WEIGHT_BYTES && i < lanes.rows; i++)
                decode(args, bytes, rows, row + i, 0, k, (int8_t *)workspace->stream + i * row_bytes, workspace);
            for (uint32_t block = 0; block < args->blocks; block++) {
                lanes.input = args->input + block * args->input_step;
                lanes.output = output + block * args->output_step + row * channel_step;
                if (row_bytes <= WEIGHT_BYTES)
                    kernel(&lanes);
                else
                    long_row(args, &lanes, bytes, rows, row, kernel, workspace);
            }
        }
    }
}
