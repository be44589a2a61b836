// SPDX-License-Identifier: Apache-2.0
// The portable kernels as a table, and which table runs a model.
#include "tvit/runtime.h"

// A portable kernel does the whole operator itself.
#define ALONE(op)                                                                                                      \
    static void op##_alone(const tvit_##op##_args *args, void *scratch, const tvit_team *team) {                       \
        (void)team;                                                                                                    \
        tvit_##op##_portable(args, scratch);                                                                           \
    }
#define PORTABLE(op) .op = op##_alone, .op##_buffer_size = tvit_##op##_buffer_size_portable

ALONE(patch_embed)
ALONE(layernorm)
ALONE(linear)
ALONE(attention)
ALONE(mean_pool)

const tvit_kernel_table tvit_kernels_portable = {
    .name = "portable",
    .layout = TVIT_LAYOUT_ROWS,
    .parallel = 0,
    PORTABLE(patch_embed),
    PORTABLE(layernorm),
    PORTABLE(linear),
    PORTABLE(attention),
    PORTABLE(mean_pool),
};

const tvit_kernel_table *tvit_kernels_for(const tvit_model *model) {
#ifdef TVIT_KERNELS_PIE
    if (model->info->scale_mode == TVIT_SCALE_STATIC) return &tvit_kernels_pie;
#endif
    (void)model;
    return &tvit_kernels_portable;
}
