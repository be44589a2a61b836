// SPDX-License-Identifier: Apache-2.0
// tvit_kernels_pie for tests without PIE: kernels in token blocks that share their work, made of the portable ones.
// They use all liberties that kernels have: lanes behind the last row get garbage, an attention's keys are used up, the
// patch embedding overwrites the image block by block.
#ifndef TVIT_BLOCK_KERNELS_H
#define TVIT_BLOCK_KERNELS_H

#include "tvit/runtime.h"

// Threads as cores: run() starts one for each part and counts its calls in *user (uint32_t).
void block_kernels_run(void *user, tvit_team_work work, void *argument);

// How often kernels were called by a part of several, since the start.
uint32_t block_kernels_shared_calls(void);

#endif
