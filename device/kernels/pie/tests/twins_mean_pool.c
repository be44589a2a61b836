// SPDX-License-Identifier: Apache-2.0
#include "twins.h"

#pragma weak tvit_mean_pool_pie

typedef struct {
    tvit_mean_pool_args args;
    void *scratch;
} mean_pool_call;

static void work(void *argument, const tvit_team *team) {
    const mean_pool_call *call = argument;
    tvit_mean_pool_pie(&call->args, call->scratch, team);
}

void twins_mean_pool(void) {
    if (!tvit_mean_pool_pie) {
        twins_absent();
        return;
    }
    const uint32_t n = twins_between(1, 100), rows = twins_one_in(8) ? twins_between(200, 800) : twins_between(1, 80);
    const uint32_t first_row = twins_between(0, 40);
    twins_note("n", n);
    twins_note("rows", rows);
    twins_note("first_row", first_row);
    const twins_tensor input = twins_draw_tensor(first_row + rows + twins_draw() % 20, n, 2, 32767);
    const twins_tensor output = twins_draw_tensor(1, n, 2, 32767);
    tvit_mean_pool_args args = {
        .input = twins_row_at(&input, first_row, 0),
        .rows = rows,
        .n = n,
        .output = twins_row_at(&output, 0, 0),
    };
    mean_pool_call call = {args, twins_take(tvit_mean_pool_buffer_size_pie(&args))};
    call.args.input = twins_block_at(&input, first_row & ~15u, 0);
    call.args.input_lane = first_row % 16;
    call.args.output = twins_block_at(&output, 0, 0);

    tvit_mean_pool_portable(&args, twins_take(tvit_mean_pool_buffer_size_portable(&args)));
    twins_run(work, &call);

    twins_compare("output", &output, 0, 1, 0, n);
    twins_compare("input", &input, 0, input.rows, 0, n);
}
