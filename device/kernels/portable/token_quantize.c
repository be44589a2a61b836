// SPDX-License-Identifier: Apache-2.0
// Per-token quantization (CONTRACT.md, section 8).
#include "tvit/kernels.h"

uint16_t tvit_token_quantize_portable(int8_t *output, const int16_t *input, uint32_t n) {
    int32_t m = 1;
    for (uint32_t i = 0; i < n; i++) {
        int32_t g = input[i] < 0 ? -input[i] : input[i];
        if (g > m) m = g;
    }
    int32_t r = (127 << 20) / m;
    for (uint32_t i = 0; i < n; i++)
        output[i] = (int8_t)((input[i] * r + (1 << 19)) >> 20);
    return (uint16_t)m;
}
