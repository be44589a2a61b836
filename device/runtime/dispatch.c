// SPDX-License-Identifier: Apache-2.0
// Which implementation of each operator this build uses: one line an operator.
#include "tvit/kernels.h"

#define PORTABLE(op) .op = tvit_##op##_portable, .op##_buffer_size = tvit_##op##_buffer_size_portable

const tvit_kernel_table tvit_kernels = {
    PORTABLE(patch_embed), //
    PORTABLE(layernorm),   //
    PORTABLE(linear),      //
    PORTABLE(attention),   //
    PORTABLE(mean_pool),   //
};
