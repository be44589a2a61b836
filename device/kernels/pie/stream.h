/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of a ternary matrix over token blocks: what linear operators and patch embedding share. */
#ifndef TVIT_PIE_STREAM_H
#define TVIT_PIE_STREAM_H

/* Offsets of tvit_stream_args for stream.S; stream.c checks them. */
#define STREAM_INPUT 0
#define STREAM_CODES 4
#define STREAM_OUTPUT 8
#define STREAM_RECORDS 12
#define STREAM_BUFFER 16
#define STREAM_MORE_BLOCKS 20
#define STREAM_INPUT_STEP 24
#define STREAM_OUTPUT_STEP 28
#define STREAM_CHANNEL_STEP 32
#define STREAM_ROWS 36
#define STREAM_SCRATCH 40
#define STREAM_CONSTANTS 44
#define STREAM_GENERATOR 48
#define STREAM_K 52
#define STREAM_PHASE 56
#define STREAM_TABLE 60
#define STREAM_BYTES 64

/* Offsets in the constants of stream.S. */
#define STREAM_POWERS 128
#define STREAM_HALVES 136

#ifndef __ASSEMBLER__

#include "workspace.h"

/* Computes rows of a matrix for some token blocks. Pixels are allowed as input, so -128 ... 127. */
typedef struct {
    const tvit_ternary_matrix *weights;
    const int8_t *input;     /* [blocks][..][16], 16-byte aligned: first block and column */
    uint32_t input_step;     /* bytes from block to block, a multiple of 16 */
    uint32_t blocks;         /* 1 or more */
    tvit_linear_output kind; /* not TVIT_LINEAR_TABLE_PER_TOKEN */
    int32_t limit;           /* 1 ... 127 where the output is int8 */
    const int8_t *table;     /* [256] for TVIT_LINEAR_TABLE */
    void
        *output; /* [blocks][..][16] int8_t or int16_t, 16-byte aligned: first block, first channel of the first tile */
    uint32_t output_step; /* bytes from block to block, a multiple of 16 */
} tvit_rows_args;

/*
 * Tiles first ... last - 1 (of 16 channels) of all blocks. Bit for bit CONTRACT.md, section 2, in any order of tiles
 * and blocks. The workspace is that of the core it runs on. May read 32 bytes behind the input's last column and behind
 * the codes.
 */
void tvit_rows_pie(const tvit_rows_args *args, uint32_t first, uint32_t last, tvit_pie_workspace *workspace);

/* Bytes from channel to channel of the output. */
static inline uint32_t tvit_channel_step_pie(tvit_linear_output kind) {
    return TVIT_BLOCK_TOKENS * (kind == TVIT_LINEAR_I8 || kind == TVIT_LINEAR_TABLE ? 1 : 2);
}

/* Where a tile of a matrix starts. */
const uint8_t *tvit_tile_pie(const tvit_ternary_matrix *matrix, uint32_t tile);

/* The constants of an epilogue (epilogues.h), and what it needs in a13: 48 bytes, or the table of words, made here. */
void *tvit_epilogue_prepare_pie(const tvit_rows_args *args, tvit_pie_workspace *workspace, uint16_t constants[2]);

/* Rows as instruction streams (stream.S). */
typedef struct {
    const int8_t *input;
    const uint8_t *codes;           /* of the next row; moves on */
    void *output;                   /* the next channel of block 0; moves on */
    const tvit_pie_record *records; /* of the rows */
    uint8_t *buffer;                /* the first generated instruction; the head of the kernel lies in front of it */
    uint32_t more_blocks;           /* blocks - 1 */
    uint32_t input_step;            /* bytes from block to block, less 16 */
    uint32_t output_step;           /* from block to block, less 16 where the output is int16 */
    uint32_t channel_step;          /* from channel to channel of the output: 16 or 32 */
    uint32_t rows;                  /* 1 ... 16; becomes 0 */
    void *scratch;                  /* QACC scratch, or the table of words */
    uint16_t constants[2];          /* of the epilogue, for q2 and q3 */
    void (*generator)(void);        /* NULL: gaps; else for codes of several trits a byte (stream_trits.S), with: */
    uint32_t k;                     /* 1 ... TVIT_STREAM_MAX_K */
    uint32_t phase;                 /* trits of the first byte at codes that belong to the row before; moves on */
    const uint32_t (*trit_codes)[2];
    uint8_t *bytes; /* 16-byte aligned, one for each instruction; may lie in the buffer, 3/4 from its start or more */
} tvit_stream_args;

void tvit_stream_i8_pie(tvit_stream_args *args);
void tvit_stream_i8_127_pie(tvit_stream_args *args); /* limit 127 */
void tvit_stream_table_pie(tvit_stream_args *args);
void tvit_stream_i16_add_pie(tvit_stream_args *args);
void tvit_stream_i16_set_pie(tvit_stream_args *args);

/* The code in front of the generated instructions, one kernel's after the other; copied there. */
extern const uint8_t tvit_stream_head_i8[], tvit_stream_head_i8_127[], tvit_stream_head_table[],
    tvit_stream_head_i16_add[], tvit_stream_head_i16_set[], tvit_stream_heads_end[];

/* Generators; to be called by stream.S only. */
void tvit_stream_from_base3(void);
void tvit_stream_from_2bit(void);

/*
 * Records of 1 ... 16 channels, from their words in the model file and, unless NULL, the headers of their streams.
 * Returns the number of instructions of the longest (without headers it means nothing).
 */
uint32_t tvit_pie_records(tvit_pie_record *records, const uint32_t *channels, const uint32_t *headers, uint32_t count);

#endif
#endif
