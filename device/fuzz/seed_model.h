// SPDX-License-Identifier: Apache-2.0
// The complete models that inputs begin from: both scale modes, both codecs. The same in every process.
#ifndef TVIT_SEED_MODEL_H
#define TVIT_SEED_MODEL_H

#include "small_model.h"

static inline const small_model *seed_model(uint32_t per_token, uint32_t codec) {
    static small_model models[4]; // drawn once, in this order
    if (!models[0].file)
        for (uint32_t i = 0; i < 4; i++)
            models[i] = small_model_make((int)(i >> 1), i & 1);
    return &models[(per_token & 1) << 1 | (codec & 1)];
}

#endif
