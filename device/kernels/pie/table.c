// SPDX-License-Identifier: Apache-2.0
// The PIE kernels that go together: token blocks, static scales, shared by the cores.
#include "pie_kernels.h"

#ifndef TVIT_KERNELS_PIE
#error "define TVIT_KERNELS_PIE for the whole build: it lets the runtime choose this table"
#endif

#define PIE(op) .op = tvit_##op##_pie, .op##_buffer_size = tvit_##op##_buffer_size_pie

const tvit_kernel_table tvit_kernels_pie = {
    .name = "pie",
    .layout = TVIT_LAYOUT_TOKEN_BLOCKS,
    .parallel = 1,
    PIE(patch_embed),
    PIE(layernorm),
    PIE(linear),
    PIE(attention),
    PIE(mean_pool),
};
