/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments of the candidate inner loops, and the mailbox that the test fills before and reads after a run. */
#ifndef TVIT_CANDIDATES_HARNESS_H
#define TVIT_CANDIDATES_HARNESS_H

#include <stdint.h>

enum { LANES = 16, TILE = 16, MAX_K = 1536, MAX_BLOCKS = 32, MAX_SEGMENTS = 64, CHUNK_TRITS = 64 };

/* What an epilogue needs, made from a 32-bit channel record. */
typedef struct {
    uint32_t qacc_low[2][4]; /* lanes 0..7, 8..15: bits 0 to 127 of QACC_L, QACC_H */
    uint32_t qacc_high[2];   /* bits 128 to 159 */
    int32_t shift;
    int8_t gain, minus_gain, unused[2];
    uint32_t padding[4];
} record_t;

/* The same for one channel in all lanes, with the header of its instruction stream. */
typedef struct {
    uint32_t qacc_low[4], qacc_high;
    uint32_t header;
    int8_t gain, minus_gain;
    uint8_t shift, padding[5];
} stream_record_t;

typedef struct {
    const int8_t *stream, *scalars;
    int8_t *out;
    const record_t *records;
    uint32_t outputs, k32, out_step;
    int8_t limit, minus_limit;
} lanes_args_t;

typedef struct {
    const uint8_t *codes;
    int8_t *out;
    const int8_t *gains;
    uint32_t rows, chunks;
    uint8_t mask;
} decode_args_t;

typedef struct {
    const int8_t *input;
    const uint8_t *codes;
    void *out;
    stream_record_t *records; /* one to work in; of gemm_stream_segments_i8 the segments' */
    uint8_t *buffer;
    uint32_t blocks, input_step, out_step, channels;
    void *scratch;   /* 48 bytes, or the table */
    uint16_t q2, q3; /* constants of the epilogue */
    uint32_t channel_step, saved;
    const uint32_t *channel_words, *headers;
} stream_args_t;

enum { TABLE_TOKENS = 40, TABLE_GROUPS = 8, TABLE_ROWS_OF_GROUP = 81 };

typedef struct {
    const uint8_t *codes;
    const int16_t **addresses;
    const int16_t *const *groups;
    uint32_t channels4;
    int16_t *sums;
    uint32_t channels;
    uint16_t row_bytes;
} table_args_t;

void table_addresses(table_args_t *args);
void table_sums(table_args_t *args);
void gemm_token_lanes(lanes_args_t *args);
void gemm_channel_lanes(lanes_args_t *args);
void gemm_token_lanes_192(lanes_args_t *args);
void gemm_channel_lanes_192(lanes_args_t *args);
/* gemm_stream_segments_i8: as for streams; header: instructions (6 bits), first gap (5), second gap (5), first row
 * (12), segment_kind_t; channels counts segments; buffer is the first of four, SEGMENT_BUFFER bytes each. */
enum { SEGMENT_BUFFER = 320, SEGMENT_HEAD = 36, QACC_BYTES = 48 };
typedef enum { SEGMENT_FIRST, SEGMENT_MIDDLE, SEGMENT_LAST, SEGMENT_ONLY } segment_kind_t;

void gemm_stream_segments_i8(stream_args_t *args);
void gemm_stream_i8(stream_args_t *args);
void gemm_stream_i16_add(stream_args_t *args);
void gemm_stream_i8_table(stream_args_t *args);
void decode_2bit_rows(decode_args_t *args);
void decode_2bit_tile(decode_args_t *args);

/* Written by the test */
typedef struct {
    uint32_t candidate; /* candidate_t */
    uint32_t tokens, k, n, limit;
    uint32_t input, output, weights, channels, headers, table; /* addresses */
    uint32_t cycles, decode_cycles, inner_cycles;              /* results */
} mailbox_t;

typedef enum {
    TOKEN_LANES,
    TOKEN_LANES_192,
    CHANNEL_LANES,
    CHANNEL_LANES_192,
    INSTRUCTION_STREAM,
    INSTRUCTION_STREAM_ADD,
    INSTRUCTION_STREAM_TABLE,
    INSTRUCTION_SEGMENTS,
    ROW_TABLE,
} candidate_t;

#endif
