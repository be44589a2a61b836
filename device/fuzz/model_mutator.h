// SPDX-License-Identifier: Apache-2.0
// Mutations of a .tvit file that know its sections and records, so that they get past the checksums to what the loader
// checks behind them. The same seed makes the same mutation. Used by libFuzzer (fuzz_model.c) and by the host's tests.
#ifndef TVIT_MODEL_MUTATOR_H
#define TVIT_MODEL_MUTATOR_H

#include <stddef.h>
#include <stdint.h>

// Change a file of `bytes` in place, in a buffer of `most`; returns its new size. Most results have correct checksums,
// and a memory plan that fits where one can be made. The signature (SHA-256, checked by the host only) is left alone.
size_t model_mutate(uint8_t *file, size_t bytes, size_t most, uint32_t seed);

// Make the header's size, and the CRC-32 of each section, the section table and the header, agree with the content.
void model_seal(uint8_t *file, size_t bytes);

// Replace PLAN by the planner's, with fast_bytes by the planner's for two memories. Returns 0 when the file is refused
// before its plan is looked at.
int model_replan(uint8_t *file, size_t bytes, uint32_t fast_bytes);

#endif
