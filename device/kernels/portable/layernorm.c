// SPDX-License-Identifier: Apache-2.0
// LayerNorm (CONTRACT.md, section 5), without 64-bit products in the loop over the channels.
#include "arithmetic.h"
#include "tvit/kernels.h"

// u[n] = (x[n] * A - B) >> 15 with A = ah * 2^15 + al and B = bh * 2^15 + bl.
typedef struct {
    int32_t ah, al, bl;
    uint32_t bh; // modulo 2^32
} normalizer;

static normalizer measure(const int16_t *x, const tvit_layernorm_args *args) {
    uint32_t n = args->n;
    int32_t s1 = 0;
    uint64_t s2 = 0;
    for (uint32_t i = 0; i < n;) {
        uint32_t end = n - i < 4 ? n : i + 4, squares = 0; // four squares stay below 2^32
        for (; i < end; i++) {
            s1 += x[i];
            squares += (uint32_t)(x[i] * x[i]);
        }
        s2 += squares;
    }
    uint32_t magnitude = s1 < 0 ? 0u - (uint32_t)s1 : (uint32_t)s1;
    uint64_t v = n * s2 - (uint64_t)magnitude * magnitude + args->epsilon;
    uint32_t a = tvit_quotient_30(args->c, tvit_isqrt(v));
    // B = floor(S1 * A / N)
    uint64_t product = (uint64_t)magnitude * a;
    uint64_t b = s1 < 0 ? 0 - tvit_divide_by_16_bits(product + n - 1, n) : tvit_divide_by_16_bits(product, n);
    normalizer result = {(int32_t)(a >> 15), (int32_t)(a & 0x7fff), (int32_t)(b & 0x7fff), (uint32_t)(b >> 15)};
    return result;
}

void tvit_layernorm_portable(const tvit_layernorm_args *args, void *scratch) {
    uint32_t n = args->n, shift = args->shift;
    int32_t limit = args->per_token ? 32767 : 127;
    int32_t gamma[9], offset[9]; // by gamma_beta code
    for (int32_t code = 0; code < 9; code++) {
        gamma[code] = code / 3 - 1;
        offset[code] = (code % 3 - 1) * args->beta_unit + (1 << (shift - 1));
    }
    for (uint32_t row = 0; row < args->rows; row++) {
        const int16_t *x = args->input + (size_t)row * n;
        int8_t *out = args->output + (size_t)row * n;
        int16_t *wide = scratch;
        normalizer f = measure(x, args);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t high = (uint32_t)(x[i] * f.ah) - f.bh;
            int32_t u = (int32_t)(high + (uint32_t)((x[i] * f.al - f.bl) >> 15));
            uint32_t code = args->gamma_beta[i / 2] >> (i % 2 * 4) & 15;
            int32_t y = tvit_clamp((gamma[code] * u + offset[code]) >> shift, limit);
            if (args->per_token)
                wide[i] = (int16_t)y;
            else
                out[i] = (int8_t)y;
        }
        if (args->per_token) args->output_multipliers[row] = tvit_token_quantize_portable(out, wide, n);
    }
}

size_t tvit_layernorm_buffer_size_portable(const tvit_layernorm_args *args) {
    return args->per_token ? sizeof(int16_t) * args->n : 0;
}
