// SPDX-License-Identifier: Apache-2.0
// A model file from anywhere: it is refused with a reason, or it can be planned and run, its logits do not depend on
// what lay in the arena, and nothing outside file and arena is touched (AddressSanitizer; both are exactly sized).
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "model_mutator.h"
#include "run_model.h"
#include "seed_model.h"

static void check_planner(const uint8_t *file, size_t bytes) {
    uint8_t *copy = run_block(bytes, 0);
    tvit_model model;
    tvit_error error;
    memcpy(copy, file, bytes);
    for (uint32_t fast_bytes = 0; fast_bytes <= 2048; fast_bytes += 1024)
        if (model_replan(copy, bytes, fast_bytes)) {
            const tvit_status status = tvit_load(&model, copy, bytes, &error);
            FUZZ_CHECK(status == TVIT_OK); // the planner's plans are valid
        }
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    uint8_t *file = run_block(bytes, 0);
    memcpy(file, data, bytes);
    tvit_model model;
    tvit_error error;
    const tvit_status unplanned = tvit_load_unplanned(&model, file, bytes, &error);
    const tvit_status status = tvit_load(&model, file, bytes, &error);
    FUZZ_CHECK(error.status == status && error.reason && strlen(error.section) <= 4);
    FUZZ_CHECK(tvit_status_text(status)[0] != 0);
    FUZZ_CHECK(status == unplanned || (unplanned == TVIT_OK && status == TVIT_BAD_PLAN));
    if (unplanned == TVIT_OK) check_planner(file, bytes);
    if (status == TVIT_OK) { // names end in the file
        for (uint32_t i = 0; i < model.tensor_count; i++)
            FUZZ_CHECK(strlen(model.names + model.tensors[i].name) < model.names_bytes);
        for (uint32_t i = 0; i < model.operator_count; i++)
            FUZZ_CHECK(strlen(model.names + model.operators[i].name) < model.names_bytes);
    }
    if (status == TVIT_OK && run_is_small(&model)) {
        const size_t half = model.plan->arena_bytes / 2; // nothing depends on where a tensor lies
        int16_t *one = run_model(&model, 0x55, 0), *other = run_model(&model, 0xfe, half);
        FUZZ_CHECK(!memcmp(one, other, model.info->classes * sizeof *one));
        free(one);
        free(other);
    }
    free(file);
    return 0;
}

#ifdef TVIT_LIBFUZZER
size_t LLVMFuzzerMutate(uint8_t *data, size_t bytes, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t most, unsigned int seed);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t most, unsigned int seed) {
    if (seed % 64 == 0 || bytes < sizeof(tvit_header)) { // begin again from a model that is complete
        const small_model *m = seed_model(seed >> 6);
        bytes = m->bytes < most ? m->bytes : most;
        memcpy(data, m->file, bytes);
    } else if (seed % 8 == 1) { // anywhere, with and without the checksums made right
        bytes = LLVMFuzzerMutate(data, bytes, most);
        if (seed & 8) model_seal(data, bytes);
        return bytes;
    }
    return model_mutate(data, bytes, most, seed);
}
#endif
