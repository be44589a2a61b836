// SPDX-License-Identifier: Apache-2.0
// The PIE kernels (ESP32-S3): token blocks, static scales, one or two cores (tvit/kernels.h). The buffer sizes are
// plain C and part of every build, because a model's memory is planned for them (buffer_sizes.c).
#ifndef TVIT_PIE_KERNELS_H
#define TVIT_PIE_KERNELS_H

#include "tvit/kernels.h"

void tvit_patch_embed_pie(const tvit_patch_embed_args *args, void *scratch, const tvit_team *team);
size_t tvit_patch_embed_buffer_size_pie(const tvit_patch_embed_args *args);

void tvit_layernorm_pie(const tvit_layernorm_args *args, void *scratch, const tvit_team *team);
size_t tvit_layernorm_buffer_size_pie(const tvit_layernorm_args *args);

void tvit_linear_pie(const tvit_linear_args *args, void *scratch, const tvit_team *team);
size_t tvit_linear_buffer_size_pie(const tvit_linear_args *args);

void tvit_attention_pie(const tvit_attention_args *args, void *scratch, const tvit_team *team);
size_t tvit_attention_buffer_size_pie(const tvit_attention_args *args);

void tvit_mean_pool_pie(const tvit_mean_pool_args *args, void *scratch, const tvit_team *team);
size_t tvit_mean_pool_buffer_size_pie(const tvit_mean_pool_args *args);

#endif
