// SPDX-License-Identifier: Apache-2.0
// Whole models by the naive operators of reference.h, in rows, every tensor in bytes of its own.
#ifndef TVIT_MODEL_REFERENCE_H
#define TVIT_MODEL_REFERENCE_H

#include "model_builder.h"

typedef struct {
    small_model file;
    tvit_model model;
    tvit_context context;
    uint8_t *arena; // exactly tvit_arena_bytes
} running_model;

// Load a file, which it takes over, and set up an arena that holds `fill`.
void running_start(running_model *r, const small_model *file, int fill);
// The same model, planned so that no tensor shares bytes with another.
void running_start_unshared(running_model *r, const running_model *original);
void running_stop(running_model *r);

// Fill the image of one model with drawn pixels, or with those of another model.
void running_draw_image(running_model *r);
void running_copy_image(running_model *r, const running_model *from);

// One operator of a model that was started unshared.
void running_reference_operator(running_model *r, uint32_t index);

// How many values and multipliers of what operator `index` writes differ between any run and the reference.
uint32_t running_differences(const tvit_context *context, const running_model *reference, uint32_t index);

#endif
