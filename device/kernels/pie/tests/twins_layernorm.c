// SPDX-License-Identifier: Apache-2.0
#include "twins.h"

#pragma weak tvit_layernorm_pie

typedef struct {
    tvit_layernorm_args args;
    void *scratch;
} layernorm_call;

static void work(void *argument, const tvit_team *team) {
    const layernorm_call *call = argument;
    tvit_layernorm_pie(&call->args, call->scratch, team);
}

static uint32_t root_rounded_up(uint32_t n) {
    uint32_t root = 1;
    while (root * root < n)
        root++;
    return root;
}

void twins_layernorm(void) {
    static const uint32_t widths[] = {1, 2, 3, 16, 33, 64, 192, 384};
    if (!tvit_layernorm_pie) {
        twins_absent();
        return;
    }
    const uint32_t n = twins_one_in(24)   ? twins_between(1000, 4096)
                       : twins_draw() % 2 ? widths[twins_draw() % 8]
                                          : twins_between(1, 100);
    const uint32_t rows = n < 1000 ? twins_between(1, 50) : twins_between(1, 17);
    const uint32_t first_row = 16 * (twins_draw() % 3), output_rows = rows + twins_draw() % 2 * twins_between(0, 40);
    twins_note("n", n);
    twins_note("rows", rows);
    twins_note("first_row", first_row);
    const twins_tensor input = twins_draw_tensor(first_row + rows + twins_draw() % 20, n, 2,
                                                 twins_one_in(3) ? (int32_t)twins_between(1, 60) : 32767);
    const twins_tensor output = twins_draw_tensor(output_rows, n, 1, 127);
    const uint32_t pattern = twins_draw() % 6; // 0: a row without variance, 1: the largest, 2: one value that differs
    for (uint32_t i = 0; i < n && pattern < 3; i++) {
        const int16_t value = (int16_t)(pattern == 0 ? -5 : pattern == 1 ? (i & 1 ? 32767 : -32767) : i ? 7 : 32767);
        *(int16_t *)twins_row_at(&input, first_row, i) = value;
        *(int16_t *)twins_block_at(&input, first_row, i) = value;
    }
    uint8_t *gamma_beta = twins_take((n + 1) / 2);
    for (uint32_t i = 0; i < (n + 1) / 2; i++)
        gamma_beta[i] = (uint8_t)(twins_draw() % 9 | (2 * i + 1 < n ? twins_draw() % 9 << 4 : 0));
    // Constants within the contract's bound, its edges included (CONTRACT.md, section 5).
    const uint32_t shift = twins_between(1, 24);
    const uint64_t most = (uint64_t)(((1u << 30) - (1u << shift)) / 2) * n / root_rounded_up(n) << 15;
    const uint64_t c = (most >> twins_between(0, 40)) + 1;
    const int32_t beta = (int32_t)((1u << 30) - (1u << shift)) / 2 - 2;
    tvit_layernorm_args args = {
        .input = twins_row_at(&input, first_row, 0),
        .gamma_beta = gamma_beta,
        .rows = rows,
        .n = n,
        .c = c < most ? c : most,
        .epsilon = (((uint64_t)twins_draw() << 22) >> twins_between(0, 53)) + 1,
        .beta_unit = twins_signed(-beta, beta) >> twins_between(0, 29),
        .shift = shift,
        .output = twins_row_at(&output, 0, 0),
    };
    twins_note("c_high", (uint32_t)(args.c >> 32));
    twins_note("c_low", (uint32_t)args.c);
    twins_note("epsilon", (uint32_t)args.epsilon);
    twins_note("beta_unit", (uint32_t)args.beta_unit);
    twins_note("shift", shift);
    twins_note("pattern", pattern);
    layernorm_call call = {args, twins_take(tvit_layernorm_buffer_size_pie(&args))};
    call.args.input = twins_block_at(&input, first_row, 0);
    call.args.output = twins_block_at(&output, 0, 0);

    tvit_layernorm_portable(&args, twins_take(tvit_layernorm_buffer_size_portable(&args)));
    twins_run(work, &call);

    twins_compare_written("output", &output, 0, rows);
    twins_compare("input", &input, 0, input.rows, 0, n);
}
