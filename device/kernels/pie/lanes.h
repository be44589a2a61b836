/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of int8 weights over token blocks. */
#ifndef TVIT_PIE_LANES_H
#define TVIT_PIE_LANES_H

/* Offsets of tvit_lanes_args for lanes.S; lanes.c checks them. */
#define LANES_INPUT 0
#define LANES_WEIGHTS 4
#define LANES_OUTPUT 8
#define LANES_RECORDS 12
#define LANES_ROWS 16
#define LANES_OUTPUT_STEP 20
#define LANES_FIRST 24
#define LANES_LOOPS 28
#define LANES_CONTINUE 32
#define LANES_SCRATCH 36
#define LANES_CONSTANTS 40

#ifndef __ASSEMBLER__

#include "stream.h"

/* One token block, some channels. */
typedef struct {
    const int8_t *input;            /* [inputs][16], 16-byte aligned */
    const int8_t *weights;          /* [rows][first + 32 * loops], aligned to its end in 32 * (loops + 1) */
    void *output;                   /* [rows][16] */
    const tvit_pie_record *records; /* of the rows */
    uint32_t rows;                  /* 1 or more */
    uint32_t output_step;           /* from channel to channel: 16 */
    uint32_t first;                 /* 1 ... 32 inputs, then */
    uint32_t loops;                 /* as many times 32 */
    uint32_t keep;                  /* 1: goes on with the sums in QACC instead of the biases; for one row */
    void *scratch;                  /* as for instruction streams */
    uint16_t constants[2];
} tvit_lanes_args;

void tvit_lanes_i8_pie(const tvit_lanes_args *args);
void tvit_lanes_table_pie(const tvit_lanes_args *args);
void tvit_lanes_i16_add_pie(const tvit_lanes_args *args);
void tvit_lanes_i16_set_pie(const tvit_lanes_args *args);
void tvit_lanes_none_pie(const tvit_lanes_args *args); /* leaves the sums in QACC; for one row */

/* As tvit_rows_pie, for rows of any length. */
void tvit_rows_by_lanes_pie(const tvit_rows_args *args, uint32_t first, uint32_t last, tvit_pie_workspace *workspace);

void tvit_trits_decode_pie(const uint32_t (*table)[2], const uint8_t *bytes, uint32_t count, int8_t *trits,
                           uint32_t step);
void tvit_gain_pie(int8_t *values, uint32_t vectors, const int8_t *gain);

#endif
#endif
