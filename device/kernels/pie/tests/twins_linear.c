// SPDX-License-Identifier: Apache-2.0
#include "twins.h"

#pragma weak tvit_linear_pie

typedef struct {
    tvit_linear_args args;
    void *scratch;
} linear_call;

static void work(void *argument, const tvit_team *team) {
    const linear_call *call = argument;
    tvit_linear_pie(&call->args, call->scratch, team);
}

static uint32_t draw_inputs(void) {
    switch (twins_draw() % 16) {
    case 0:
        return twins_between(1, 8);
    case 1:
        return twins_between(300, 900);
    case 2:
        return twins_between(1500, 1700); // about the longest row that has room in the workspace
    case 3:
        return twins_between(1701, 2500);
    case 4:
    case 5:
        return 16 * twins_between(1, 24);
    default:
        return twins_between(1, 200);
    }
}

void twins_linear(void) {
    static const tvit_linear_output kinds[] = {TVIT_LINEAR_I8, TVIT_LINEAR_TABLE, TVIT_LINEAR_I16_SET,
                                               TVIT_LINEAR_I16_ADD};
    if (!tvit_linear_pie) {
        twins_absent();
        return;
    }
    const uint32_t logits = twins_one_in(6), k = draw_inputs(), n = twins_between(1, k < 300 ? 70 : 20);
    const uint32_t rows = logits            ? 1
                          : twins_one_in(8) ? twins_between(100, 210) % (40000 / k + 1) + 1
                                            : twins_between(1, 50);
    const uint32_t first_row = logits ? twins_between(0, 40) : 16 * (twins_draw() % 3);
    const uint32_t output_row = logits ? 0 : 16 * (twins_draw() % 3),
                   output_rows = output_row + rows + (logits ? 0 : twins_draw() % 40);
    const uint32_t column = logits ? 0 : twins_draw() % 2 * twins_between(0, 40);
    const uint32_t output_columns = logits ? n : column + n + twins_draw() % 2 * twins_between(0, 40);
    const tvit_linear_output kind = kinds[logits ? 2 + twins_draw() % 2 : twins_draw() % 4];
    const uint32_t wide = kind == TVIT_LINEAR_I16_SET || kind == TVIT_LINEAR_I16_ADD;
    twins_note("kind", kind);
    twins_note("rows", rows);
    twins_note("first_row", first_row);
    twins_note("output_row", output_row);
    twins_note("column", column);
    twins_note("of", output_columns);

    const tvit_ternary_matrix matrix = twins_draw_matrix(n, k, 127);
    const twins_tensor input = twins_draw_tensor(first_row + rows + twins_draw() % 20, k, 1, 127);
    twins_tensor output = twins_draw_tensor(output_rows, output_columns, wide ? 2 : 1, wide ? 32767 : 127);
    tvit_linear_args args = {
        .weights = matrix,
        .input = twins_row_at(&input, first_row, 0),
        .rows = rows,
        .kind = kind,
        .limit = (int32_t)(twins_one_in(3) ? 127 : twins_between(1, 127)),
        .table = kind == TVIT_LINEAR_TABLE ? twins_draw_i8(256) : NULL,
        .output = twins_row_at(&output, output_row, column),
        .output_columns = output_columns,
        .output_is_row = logits,
    };
    twins_note("limit", (uint32_t)args.limit);
    void *row = twins_copy(output.values, (size_t)n * (wide ? 2 : 1)); // the logits are no token block
    linear_call call = {args, twins_take(tvit_linear_buffer_size_pie(&args))};
    call.args.input = twins_block_at(&input, first_row & ~15u, 0);
    call.args.input_lane = first_row % 16;
    call.args.output = logits ? row : twins_block_at(&output, output_row, column);

    tvit_linear_portable(&args, twins_take(tvit_linear_buffer_size_portable(&args)));
    twins_run(work, &call);

    if (logits)
        twins_compare_bytes("logits", output.values, row, 2 * n);
    else
        twins_compare_written("output", &output, output_row, rows);
    twins_compare("input", &input, 0, input.rows, 0, k);
}
