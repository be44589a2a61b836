// SPDX-License-Identifier: Apache-2.0
// Bare program: runs operators that a test has put into memory, part after part, and counts the cycles of each.
// host/tests/pie_operators.py fills the mailbox. For operators whose parts do not meet at a barrier.
#include "kernels/pie/layernorm_lanes.h"
#include "kernels/pie/pie_kernels.h"
#include "ports/xtensa_qemu/hardware.h"

// The factors of 16 tokens, without what LayerNorm does with them.
typedef struct {
    uint64_t c, epsilon;
    uint32_t n;
    const tvit_layernorm_sums *sums;
    tvit_layernorm_factors_of_lanes *factors;
} scale_args;

typedef struct {
    enum { LAYERNORM, PATCH_EMBED, MEAN_POOL, LAYERNORM_SCALE } kind;
    const void *args;
    void *scratch;
    uint32_t scratch_bytes; // out: what the kernel asks for
    uint32_t parts;
    uint32_t cycles[TVIT_MAX_CORES]; // out
} operator_case;

struct {
    uint32_t count;
    operator_case *cases;
} mailbox = {0, NULL};

static void scale(const scale_args *args) {
    tvit_layernorm_scaling scaling = tvit_layernorm_prepare_scaling(args->n, args->c, args->epsilon, INT32_MAX);
    tvit_layernorm_scale_lanes(&scaling, args->sums, args->factors, TVIT_BLOCK_TOKENS);
}

static void run(const operator_case *c, const tvit_team *team) {
    switch (c->kind) {
    case LAYERNORM:
        tvit_layernorm_pie(c->args, c->scratch, team);
        break;
    case PATCH_EMBED:
        tvit_patch_embed_pie(c->args, c->scratch, team);
        break;
    case MEAN_POOL:
        tvit_mean_pool_pie(c->args, c->scratch, team);
        break;
    case LAYERNORM_SCALE:
        scale(c->args);
        break;
    }
}

int main(void) {
    for (uint32_t i = 0; i < mailbox.count; i++) {
        operator_case *c = &mailbox.cases[i];
        for (uint32_t part = 0; part < c->parts; part++) {
            tvit_team team = {part, c->parts, NULL};
            uint32_t start = read_ccount();
            run(c, &team);
            c->cycles[part] = read_ccount() - start;
        }
        c->scratch_bytes = (uint32_t)(c->kind == LAYERNORM     ? tvit_layernorm_buffer_size_pie(c->args)
                                      : c->kind == PATCH_EMBED ? tvit_patch_embed_buffer_size_pie(c->args)
                                      : c->kind == MEAN_POOL   ? tvit_mean_pool_buffer_size_pie(c->args)
                                                               : 0);
    }
    return 0;
}
