// SPDX-License-Identifier: Apache-2.0
// What the fuzz targets share. A target is one LLVMFuzzerTestOneInput; clang's libFuzzer calls it with inputs of its
// own, replay.c with files.
#ifndef TVIT_FUZZ_H
#define TVIT_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

// A property that must hold whatever the input is.
#define FUZZ_CHECK(condition)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                                    \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#endif
