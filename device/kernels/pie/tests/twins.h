// SPDX-License-Identifier: Apache-2.0
// Each PIE kernel against its portable twin: one drawn operator in two layouts, every bit equal. The program runs on
// any machine that executes the instructions or emulates them (host/tests/pie_twins.py).
//
// An operator's file draws shapes and values, runs the portable kernel on rows, has the PIE kernel run on copies in
// token blocks by one or two parts, and compares all elements of the output tensor: those that the operator writes and
// those that it must leave alone. Lanes behind the last row are padding: they begin with anything and may end with
// anything.
#ifndef TVIT_PIE_TWINS_H
#define TVIT_PIE_TWINS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/pie/pie_kernels.h"
// Memory for one round: 16-byte aligned, drawn bytes, a guard behind it that is checked at the end of the round.
void *twins_take(size_t bytes);
void *twins_copy(const void *bytes, size_t count);

uint32_t twins_draw(void); // 32 bits
int twins_one_in(uint32_t chances);
uint32_t twins_between(uint32_t low, uint32_t high); // both included
int32_t twins_signed(int32_t low, int32_t high);     // likewise
int8_t *twins_draw_i8(size_t count);                 // -127 ... 127, now and then all extreme or all small
int16_t *twins_draw_i16(size_t count);               // -32767 ... 32767, likewise

// Drawn trits in a drawn codec, channels that use the whole of their 20-bit lanes for inputs up to xmax.
tvit_ternary_matrix twins_draw_matrix(uint32_t n, uint32_t k, int32_t xmax);

// What the round is about, for the report of a difference. Up to 16 numbers.
void twins_note(const char *name, uint32_t value);

// A tensor: its values as rows, which the portable kernel works on, and as token blocks.
typedef struct {
    uint8_t *values, *blocks;
    uint32_t rows, columns, element_bytes;
} twins_tensor;

// Drawn values in both layouts; those behind the last row of the blocks are drawn, too.
twins_tensor twins_draw_tensor(uint32_t rows, uint32_t columns, uint32_t element_bytes, int32_t limit);

// An element of either layout; in the blocks the row is a multiple of 16.
void *twins_row_at(const twins_tensor *tensor, uint32_t row, uint32_t column);
void *twins_block_at(const twins_tensor *tensor, uint32_t row, uint32_t column);

// Compare rows first_row ... first_row + rows - 1 of both layouts, and columns likewise. The first difference of a
// round is reported with the notes.
void twins_compare(const char *what, const twins_tensor *tensor, uint32_t first_row, uint32_t rows,
                   uint32_t first_column, uint32_t columns);
// The same for a tensor of which an operator writes `rows` rows from `first_row` on: what lies in the other lanes of
// the last of these blocks is padding.
void twins_compare_written(const char *what, const twins_tensor *tensor, uint32_t first_row, uint32_t rows);
void twins_compare_bytes(const char *what, const void *expected, const void *got, uint32_t bytes);

// The operator has no PIE kernel in this build.
void twins_absent(void);

// Call work(argument, team) by as many parts as the round has.
void twins_run(void (*work)(void *argument, const tvit_team *team), void *argument);

// One round of each operator.
void twins_linear(void);
void twins_attention(void);
void twins_layernorm(void);
void twins_mean_pool(void);
void twins_patch_embed(void);

#endif
