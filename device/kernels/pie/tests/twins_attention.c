// SPDX-License-Identifier: Apache-2.0
#include "twins.h"

#pragma weak tvit_attention_pie

typedef struct {
    tvit_attention_args args;
    void *scratch;
} attention_call;

static void work(void *argument, const tvit_team *team) {
    const attention_call *call = argument;
    tvit_attention_pie(&call->args, call->scratch, team);
}

// Where an operand lies.
typedef struct {
    const twins_tensor *tensor;
    uint32_t column;
} place;

static void draw_within(const place *at, uint32_t tokens, uint32_t width, int32_t limit) {
    for (uint32_t t = 0; t < tokens; t++)
        for (uint32_t i = 0; i < width; i++) {
            int8_t *value = twins_row_at(at->tensor, t, at->column + i);
            if (*value > limit) *value = (int8_t)limit;
            if (*value < -limit) *value = (int8_t)-limit;
            *(int8_t *)twins_block_at(at->tensor, t, at->column + i) = *value;
        }
}

void twins_attention(void) {
    if (!tvit_attention_pie) {
        twins_absent();
        return;
    }
    const uint32_t tokens = twins_one_in(12) ? twins_between(100, 260) : twins_between(1, 70);
    const uint32_t heads = tokens < 100 ? twins_between(1, 3) : 1;
    const uint32_t head_dim = twins_one_in(2) ? 16u << twins_draw() % 3 : twins_between(1, tokens < 100 ? 70 : 20);
    const uint32_t width = heads * head_dim;
    // A projection saturates q so that its products fit 20 bits (CONTRACT.md, section 6).
    const int32_t fits = ((1 << 19) - 1) / (int32_t)(127 * head_dim), limit = fits < 127 ? fits : 127;

    // Tensors of their own, or columns of one tensor; the output over q, or in a tensor of its own.
    const uint32_t together = twins_draw() % 2, over_q = twins_draw() % 2,
                   spare = twins_draw() % 2 * twins_between(1, 40);
    const uint32_t columns = together ? 3 * width + spare : width + spare, first = twins_draw() % 3;
    twins_tensor tensors[4];
    place q, k, v, o;
    for (uint32_t i = 0; i < 4; i++)
        if (i == 0 || i == 3 || !together) tensors[i] = twins_draw_tensor(tokens, columns, 1, 127);
    q = (place){&tensors[0], together ? first * width : spare};
    k = (place){&tensors[together ? 0 : 1], together ? (first + 1) % 3 * width : 0};
    v = (place){&tensors[together ? 0 : 2], together ? (first + 2) % 3 * width : spare};
    o = over_q ? q : (place){&tensors[3], spare};
    draw_within(&q, tokens, width, limit);
    twins_note("tokens", tokens);
    twins_note("heads", heads);
    twins_note("head_dim", head_dim);
    twins_note("together", together);
    twins_note("over_q", over_q);
    twins_note("columns", columns);

    tvit_attention_args args = {
        .q = twins_row_at(q.tensor, 0, q.column),
        .k = twins_row_at(k.tensor, 0, k.column),
        .v = twins_row_at(v.tensor, 0, v.column),
        .q_columns = columns,
        .k_columns = columns,
        .v_columns = columns,
        .output_columns = columns,
        .tokens = tokens,
        .heads = heads,
        .head_dim = head_dim,
        .score_shift = twins_one_in(2) ? 15 - (uint32_t)__builtin_clz(head_dim) % 16 : twins_draw() % 16,
        .exp_multiplier = (int32_t)(twins_one_in(2) ? twins_between(16384, 32767) : twins_between(1, 32767)),
        .out_multiplier = (twins_draw() >> twins_between(4, 31)) + 1,
        .out_shift = twins_between(1, 24),
        .output = twins_row_at(o.tensor, 0, o.column),
    };
    if (args.out_multiplier >= 1u << 28) args.out_multiplier = (1u << 28) - 1;
    if (twins_one_in(2)) { // outputs of the size of v: out_multiplier / sum(p) * sum(p) >> 4 + out_shift
        args.out_shift = twins_between(8, 20);
        args.out_multiplier = 16u << args.out_shift;
        if (args.out_multiplier >= 1u << 28) args.out_multiplier = (1u << 28) - 1;
    }
    twins_note("score_shift", args.score_shift);
    twins_note("exp_multiplier", (uint32_t)args.exp_multiplier);
    twins_note("out_multiplier", args.out_multiplier);
    twins_note("out_shift", args.out_shift);
    attention_call call = {args, twins_take(tvit_attention_buffer_size_pie(&args))};
    call.args.q = twins_block_at(q.tensor, 0, q.column);
    call.args.k = twins_block_at(k.tensor, 0, k.column);
    call.args.v = twins_block_at(v.tensor, 0, v.column);
    call.args.output = twins_block_at(o.tensor, 0, o.column);

    tvit_attention_portable(&args, twins_take(tvit_attention_buffer_size_portable(&args)));
    twins_run(work, &call);

    // All but the columns of k, which are the kernel's.
    for (uint32_t i = 0; i < 4; i++) {
        if (i != 0 && i != 3 && together) continue;
        const char *what = &tensors[i] == o.tensor ? "output"
                           : i == 0                ? "q"
                           : i == 1                ? "k"
                           : i == 2                ? "v"
                                                   : "other tensor";
        const int has_k = &tensors[i] == k.tensor;
        const uint32_t before = has_k ? k.column : columns;
        twins_compare(what, &tensors[i], 0, tokens, 0, before);
        if (has_k) twins_compare(what, &tensors[i], 0, tokens, before + width, columns - before - width);
    }
}
