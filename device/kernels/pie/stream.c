// SPDX-License-Identifier: Apache-2.0
// Tiles of a ternary matrix over token blocks: as instruction streams where the rows fit the workspace, else by
// multiplication (lanes.c).
#include "stream.h"
#include "lanes.h"

#include <stddef.h>
#include <string.h>

_Static_assert(offsetof(tvit_stream_args, input) == STREAM_INPUT && offsetof(tvit_stream_args, codes) == STREAM_CODES &&
                   offsetof(tvit_stream_args, output) == STREAM_OUTPUT &&
                   offsetof(tvit_stream_args, records) == STREAM_RECORDS &&
                   offsetof(tvit_stream_args, buffer) == STREAM_BUFFER &&
                   offsetof(tvit_stream_args, more_blocks) == STREAM_MORE_BLOCKS &&
                   offsetof(tvit_stream_args, input_step) == STREAM_INPUT_STEP &&
                   offsetof(tvit_stream_args, output_step) == STREAM_OUTPUT_STEP &&
                   offsetof(tvit_stream_args, channel_step) == STREAM_CHANNEL_STEP &&
                   offsetof(tvit_stream_args, rows) == STREAM_ROWS &&
                   offsetof(tvit_stream_args, scratch) == STREAM_SCRATCH &&
                   offsetof(tvit_stream_args, constants) == STREAM_CONSTANTS &&
                   offsetof(tvit_stream_args, generator) == STREAM_GENERATOR &&
                   offsetof(tvit_stream_args, k) == STREAM_K && offsetof(tvit_stream_args, phase) == STREAM_PHASE &&
                   offsetof(tvit_stream_args, trit_codes) == STREAM_TABLE &&
                   offsetof(tvit_stream_args, bytes) == STREAM_BYTES,
               "stream.S uses these offsets");
_Static_assert(sizeof(tvit_pie_record) == 32 && offsetof(tvit_pie_record, header) == 20 &&
                   offsetof(tvit_pie_record, gain) == 24 && offsetof(tvit_pie_record, shift) == 26,
               "the assembly sources use these offsets");

// Where the codes of stream_trits.S lie in the buffer: in front of what is generated from them, for a row of any
// length.
#define STREAM_BYTES_AT (3 * TVIT_STREAM_INSTRUCTIONS + 64)
_Static_assert(STREAM_BYTES_AT % 16 == 0 && TVIT_STREAM_HEAD_BYTES + STREAM_BYTES_AT + TVIT_STREAM_INSTRUCTIONS + 48 <=
                                                sizeof((tvit_pie_workspace *)0)->stream,
               "the codes of a row lie in the buffer");

// One kind of output: its kernel, and the code in front of the instructions.
typedef struct {
    void (*kernel)(tvit_stream_args *args);
    const uint8_t *head, *head_end;
} stream_kind;

static stream_kind kind_of(const tvit_rows_args *args) {
    switch (args->kind) {
    case TVIT_LINEAR_I16_ADD:
        return (stream_kind){tvit_stream_i16_add_pie, tvit_stream_head_i16_add, tvit_stream_head_i16_set};
    case TVIT_LINEAR_I16_SET:
        return (stream_kind){tvit_stream_i16_set_pie, tvit_stream_head_i16_set, tvit_stream_heads_end};
    case TVIT_LINEAR_TABLE:
        return (stream_kind){tvit_stream_table_pie, tvit_stream_head_table, tvit_stream_head_i16_add};
    default:
        if (args->limit == 127)
            return (stream_kind){tvit_stream_i8_127_pie, tvit_stream_head_i8_127, tvit_stream_head_table};
        return (stream_kind){tvit_stream_i8_pie, tvit_stream_head_i8, tvit_stream_head_i8_127};
    }
}

void *tvit_epilogue_prepare_pie(const tvit_rows_args *args, tvit_pie_workspace *workspace, uint16_t constants[2]) {
    const uint16_t minus_128 = 0x8080, minus_32767 = 0x8001;
    if (args->kind == TVIT_LINEAR_I8) {
        constants[0] = (uint16_t)((256 - args->limit) * 0x101);
        constants[1] = (uint16_t)(args->limit * 0x101);
        return workspace->qacc;
    }
    constants[0] = minus_128;
    constants[1] = minus_32767;
    if (args->kind != TVIT_LINEAR_TABLE) return workspace->qacc;
    for (int32_t y = -128; y < 128; y++) // the table by y as an unsigned byte, the clamp folded in
        workspace->table[y & 255] = (uint8_t)args->table[(y > args->limit    ? args->limit
                                                          : y < -args->limit ? -args->limit
                                                                             : y) +
                                                         128];
    return workspace->table;
}

const uint8_t *tvit_tile_pie(const tvit_ternary_matrix *matrix, uint32_t tile) {
    if (matrix->codec != TVIT_CODEC_GAPS)
        return matrix->trits + tile * tvit_tile_bytes(matrix->codec, TVIT_TILE_CHANNELS, matrix->k);
    return matrix->trits + ((const uint32_t *)(const void *)matrix->trits)[tile];
}

// For every byte of a codec the codes of stream_trits.S: four in the first word, then the fifth, how many, and how many
// trits lie behind the last that is not zero. A byte of zeros only has gap 8 and no code.
static void build_trit_codes(tvit_pie_workspace *workspace, uint32_t codec) {
    if (workspace->trit_codes_of == codec + 1) return;
    const uint32_t trits = codec == TVIT_CODEC_BASE3 ? 5 : 4, bytes = codec == TVIT_CODEC_BASE3 ? 243 : 256;
    for (uint32_t byte = 0; byte < bytes; byte++) {
        uint32_t codes[5] = {0}, count = 0, gap = 0, rest = byte;
        for (uint32_t i = 0; i < trits; i++) {
            uint32_t next = codec == TVIT_CODEC_BASE3 ? rest * 171 >> 9 : rest >> 2; // rest / 3, for rest < 256
            uint32_t digit = codec == TVIT_CODEC_BASE3 ? rest - 3 * next : rest & 3;
            uint32_t minus = codec == TVIT_CODEC_BASE3 ? digit == 0 : digit == 3;
            rest = next;
            gap++;
            if (digit == (codec == TVIT_CODEC_BASE3)) continue; // trit 0
            codes[count++] = minus << 4 | gap;
            gap = 0;
        }
        if (!count) codes[0] = 8;
        workspace->trit_codes[byte][0] = codes[0] | codes[1] << 8 | codes[2] << 16 | codes[3] << 24;
        workspace->trit_codes[byte][1] = codes[4] | count << 8 | gap << 16;
    }
    workspace->trit_codes_of = codec + 1;
}

static void copy_head(uint8_t *buffer, const stream_kind *kind) {
    const size_t bytes = (size_t)(kind->head_end - kind->head);
    memcpy(buffer - bytes, kind->head, bytes);
}

// Gaps of any length: tiles with a row that does not fit go to lanes.c.
static void rows_by_streams(const tvit_rows_args *args, uint32_t first, uint32_t last, tvit_pie_workspace *workspace) {
    const tvit_ternary_matrix *weights = args->weights;
    const stream_kind kind = kind_of(args);
    uint8_t *buffer = workspace->stream + TVIT_STREAM_HEAD_BYTES;
    copy_head(buffer, &kind);
    tvit_stream_args stream = {
        .records = workspace->records,
        .buffer = buffer,
        .input = args->input,
        .more_blocks = args->blocks - 1,
        .input_step = args->input_step - TVIT_BLOCK_TOKENS,
        .channel_step = tvit_channel_step_pie(args->kind),
        .output = args->output,
        .k = weights->k,
        .trit_codes = (const uint32_t(*)[2])workspace->trit_codes,
        .bytes = buffer + STREAM_BYTES_AT,
    };
    stream.output_step = args->output_step - (stream.channel_step - TVIT_BLOCK_TOKENS);
    stream.scratch = tvit_epilogue_prepare_pie(args, workspace, stream.constants);
    if (weights->codec != TVIT_CODEC_GAPS) {
        build_trit_codes(workspace, weights->codec);
        stream.generator = weights->codec == TVIT_CODEC_BASE3 ? tvit_stream_from_base3 : tvit_stream_from_2bit;
    }
    for (uint32_t tile = first; tile < last; tile++) {
        const uint32_t channel = tile * TVIT_TILE_CHANNELS;
        const uint32_t left = weights->n - channel, rows = left < TVIT_TILE_CHANNELS ? left : TVIT_TILE_CHANNELS;
        const uint8_t *bytes = tvit_tile_pie(weights, tile);
        const uint32_t *headers = NULL;
        if (weights->codec == TVIT_CODEC_GAPS) {
            headers = (const uint32_t *)(const void *)bytes;
            bytes += rows * sizeof *headers;
        }
        const uint32_t longest = tvit_pie_records(workspace->records, weights->channels + channel, headers, rows);
        if (headers && longest > TVIT_STREAM_INSTRUCTIONS) {
            tvit_rows_args rest = *args;
            rest.output = stream.output;
            tvit_rows_by_lanes_pie(&rest, tile, tile + 1, workspace);
            copy_head(buffer, &kind);
            stream.output = (uint8_t *)stream.output + rows * stream.channel_step;
            continue;
        }
        stream.codes = bytes;
        stream.phase = 0;
        stream.rows = rows;
        kind.kernel(&stream);
    }
}

void tvit_rows_pie(const tvit_rows_args *args, uint32_t first, uint32_t last, tvit_pie_workspace *workspace) {
    // the instructions of gaps are counted, of the other codecs there are as many as trits at most, and a few
    if (args->weights->codec == TVIT_CODEC_GAPS || args->weights->k <= TVIT_STREAM_MAX_K)
        rows_by_streams(args, first, last, workspace);
    else
        tvit_rows_by_lanes_pie(args, first, last, workspace);
}
