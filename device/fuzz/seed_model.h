// SPDX-License-Identifier: Apache-2.0
// The complete models that inputs begin from: both scale modes and all codecs, whole and in pieces. The same in every
// process.
#ifndef TVIT_SEED_MODEL_H
#define TVIT_SEED_MODEL_H

#include "piece_model.h"
#include "small_model.h"

enum { SEED_MODELS = 10 };

static inline const small_model *seed_model(uint32_t which) {
    static small_model models[SEED_MODELS]; // drawn once, in this order
    if (!models[0].file) {
        for (uint32_t i = 0; i < 6; i++)
            models[i] = small_model_make((int)(i / 3), i % 3);
        for (uint32_t i = 0; i < 4; i++)
            models[6 + i] = piece_model_make(i % 4 > 0, i % 3);
    }
    return &models[which % SEED_MODELS];
}

#endif
