// SPDX-License-Identifier: Apache-2.0
// Offers model files to the device's loader, and runs those that it accepts. Files come on stdin, each behind its
// length (u32), and lie in heap blocks of exactly their size. Prints a line a file: status, section, index, then the
// logits, or
// "-" for a model that is too much work.
#include <string.h>

#include "fuzz.h"
#include "run_model.h"

int main(void) {
    uint32_t bytes;
    while (fread(&bytes, sizeof bytes, 1, stdin) == 1) {
        uint8_t *file = run_block(bytes, 0);
        FUZZ_CHECK(fread(file, 1, bytes, stdin) == bytes);
        tvit_model model;
        tvit_error error;
        const tvit_status status = tvit_load(&model, file, bytes, &error);
        printf("%d %s. %d", (int)status, error.section, (int)error.index);
        if (status == TVIT_OK && run_is_small(&model)) {
            int16_t *logits = run_model(&model, 0x55, 0);
            for (uint32_t i = 0; i < model.info->classes; i++)
                printf(" %d", logits[i]);
            free(logits);
        } else if (status == TVIT_OK) {
            printf(" -");
        }
        printf("\n");
        free(file);
    }
    return 0;
}
