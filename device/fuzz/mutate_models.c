// SPDX-License-Identifier: Apache-2.0
// Writes mutated model files to stdout, each behind its length (u32). usage: mutate_models COUNT SEED
#include <string.h>

#include "fuzz.h"
#include "model_mutator.h"
#include "seed_model.h"

int main(int argc, char **argv) {
    enum { MOST = 16384 };
    static uint8_t file[MOST];
    if (argc != 3) return 2;
    const uint32_t count = (uint32_t)strtoul(argv[1], NULL, 10), seed = (uint32_t)strtoul(argv[2], NULL, 10);
    for (uint32_t i = 0; i < count; i++) {
        const small_model *m = seed_model(i);
        uint32_t bytes = m->bytes;
        memcpy(file, m->file, bytes);
        for (uint32_t round = 0; round <= i % 3; round++)
            bytes = (uint32_t)model_mutate(file, bytes, sizeof file, seed + 3 * i + round);
        fwrite(&bytes, sizeof bytes, 1, stdout);
        fwrite(file, 1, bytes, stdout);
    }
    return fflush(stdout) != 0;
}
