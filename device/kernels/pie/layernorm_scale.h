// SPDX-License-Identifier: Apache-2.0
// The scalar part of LayerNorm (CONTRACT.md, section 5): from the sums of a token to its factors, exactly, in about 130
// instructions where bit-by-bit roots and quotients take 1000.
//
// One estimate serves both: r = 1/sqrt(V) from a table of eight bits and two Newton steps, to 28 bits. V * r is the
// root to one or two units, C * r the quotient; what is left, V - d*d and C - A*d, is known to be below 2^31 in
// magnitude, so 32-bit arithmetic gives it exactly and says how to correct the estimate. Divisions by N multiply by a
// reciprocal.
//
// Plain C, so that it can be checked against exact arithmetic on any machine.
#ifndef TVIT_PIE_LAYERNORM_SCALE_H
#define TVIT_PIE_LAYERNORM_SCALE_H

#include "tvit/kernels.h"

#if defined(__XTENSA__) && !defined(TVIT_ASSEMBLER_HAS_PIE)
// A compiler for a smaller core calls functions for these: one instruction each on the ESP32-S3.
__asm__(".include \"kernels/pie/pie.inc\"");
static inline uint32_t tvit_multiply_high(uint32_t a, uint32_t b) {
    uint32_t high;
    __asm__("muluh %0, %1, %2" : "=a"(high) : "a"(a), "a"(b));
    return high;
}
static inline uint32_t tvit_divide(uint32_t a, uint32_t b) {
    uint32_t quotient;
    __asm__("quou %0, %1, %2" : "=a"(quotient) : "a"(a), "a"(b));
    return quotient;
}
#else
static inline uint32_t tvit_multiply_high(uint32_t a, uint32_t b) {
    return (uint32_t)((uint64_t)a * b >> 32);
}
static inline uint32_t tvit_divide(uint32_t a, uint32_t b) {
    return a / b;
}
#endif

#define RARELY(condition) __builtin_expect(condition, 0)

static inline uint64_t tvit_multiply_wide(uint32_t a, uint32_t b) {
    return (uint64_t)tvit_multiply_high(a, b) << 32 | a * b;
}

static inline uint32_t tvit_leading_zeros(uint64_t v) { // v > 0
    uint32_t high = (uint32_t)(v >> 32);
    return high ? (uint32_t)__builtin_clz(high) : 32 + (uint32_t)__builtin_clz((uint32_t)v);
}

// What one operator's tokens have in common.
typedef struct {
    uint64_t epsilon;
    uint32_t n;
    uint32_t reciprocal, reciprocal_shift; // v / n == v * 2 * reciprocal >> 32 + shift, for v < 2^31
    uint32_t c_low, c_cap;                 // c modulo 2^32; the quotient is capped where d <= c_cap
    uint32_t c_top;                        // c with its highest bit in bit 31,
    int32_t c_zeros;                       // and the zeros above it in 64 bits, less two
} tvit_layernorm_constants;

static inline tvit_layernorm_constants tvit_layernorm_prepare(uint32_t n, uint64_t c, uint64_t epsilon) {
    tvit_layernorm_constants k = {.epsilon = epsilon, .n = n, .c_low = (uint32_t)c, .c_cap = (uint32_t)(c >> 30)};
    while (1u << k.reciprocal_shift < n)
        k.reciprocal_shift++;
    // ceil(2^(31 + shift) / n), at most 2^32 - 1 because n > 2^(shift - 1): a quotient of 32 bits, bit by bit
    uint32_t remainder = 1u << k.reciprocal_shift;
    for (int32_t bit = 31; bit >= 0; bit--) {
        k.reciprocal <<= 1;
        if (remainder >= n) {
            remainder -= n;
            k.reciprocal |= 1;
        }
        remainder <<= 1;
    }
    k.reciprocal += remainder > 0;
    uint32_t zeros = tvit_leading_zeros(c);
    k.c_top = (uint32_t)(c << zeros >> 32);
    k.c_zeros = (int32_t)zeros - 2;
    return k;
}

// v / n for v < 2^31: the reciprocal is too large by less than n / 2^(31 + shift) <= 2^-31, which v cannot make one.
static inline uint32_t tvit_divide_by_n(const tvit_layernorm_constants *k, uint32_t v) {
    return tvit_multiply_high(2 * v, k->reciprocal) >> k->reciprocal_shift;
}

// The factors of a token: u = (x * a - B) >> 15, with -B = offset * 2^15 + remainder.
typedef struct {
    uint32_t a;         // 0 ... 2^30 - 1
    int32_t offset;     // -2^30 ... 2^30
    uint32_t remainder; // 0 ... 2^15 - 1
} tvit_layernorm_factors;

// 256 * (1 / sqrt((i + 0.5) / 256) - 1), rounded: by its top eight bits, 64 ... 255, m's 1 / sqrt is known to 2^-7.5.
static const uint8_t tvit_layernorm_roots[256] = {
    // clang-format off
    [64] = 254, 250, 246, 243, 239, 235, 232, 228, 225, 222, 219, 215, 212, 209, 206, 203,
    201, 198, 195, 192, 190, 187, 184, 182, 179, 177, 175, 172, 170, 168, 165, 163,
    161, 159, 157, 155, 153, 151, 149, 147, 145, 143, 141, 139, 137, 135, 134, 132,
    130, 128, 127, 125, 123, 122, 120, 119, 117, 116, 114, 113, 111, 110, 108, 107,
    105, 104, 103, 101, 100, 99, 97, 96, 95, 93, 92, 91, 90, 88, 87, 86,
    85, 84, 82, 81, 80, 79, 78, 77, 76, 75, 74, 72, 71, 70, 69, 68,
    67, 66, 65, 64, 63, 62, 61, 60, 60, 59, 58, 57, 56, 55, 54, 53,
    52, 51, 51, 50, 49, 48, 47, 46, 46, 45, 44, 43, 42, 42, 41, 40,
    39, 38, 38, 37, 36, 35, 35, 34, 33, 33, 32, 31, 30, 30, 29, 28,
    28, 27, 26, 26, 25, 24, 24, 23, 22, 22, 21, 20, 20, 19, 19, 18,
    17, 17, 16, 16, 15, 14, 14, 13, 13, 12, 11, 11, 10, 10, 9, 9,
    8, 8, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0,
    // clang-format on
};

// s1, s2: sums of x and x*x over the n channels, s2 in two words.
static inline tvit_layernorm_factors tvit_layernorm_scale(const tvit_layernorm_constants *k, int32_t s1,
                                                          uint32_t s2_low, uint32_t s2_high) {
    uint32_t magnitude = s1 < 0 ? 0u - (uint32_t)s1 : (uint32_t)s1;
    uint64_t v = tvit_multiply_wide(k->n, s2_low) + ((uint64_t)(k->n * s2_high) << 32) -
                 tvit_multiply_wide(magnitude, magnitude) + k->epsilon;

    // v = m * 2^(32 - 2 half), with m in 2^30 ... 2^32 - 1; half is 4 ... 31 because v < 2^55
    uint32_t high = (uint32_t)(v >> 32), low = (uint32_t)v, zeros, m;
    if (high) {
        zeros = (uint32_t)__builtin_clz(high) & ~1u;
        m = high << zeros | low >> (32 - zeros);
    } else {
        zeros = (uint32_t)__builtin_clz(low) & ~1u;
        m = low << zeros;
        zeros += 32;
    }
    uint32_t half = zeros >> 1;

    // r = 2^30 / sqrt(m / 2^32), twice r (3 - m r r) / 2; r is 2^31 / sqrt before the last step
    uint32_t seed = 256 + tvit_layernorm_roots[m >> 24];
    uint32_t excess = tvit_multiply_high(seed * seed << 14, m);
    uint32_t r = tvit_multiply_high(seed << 23, (3u << 30) - excess) << 1;
    excess = tvit_multiply_high(tvit_multiply_high(r, r), m);
    r = tvit_multiply_high(r, (3u << 30) - excess);

    uint32_t d = tvit_multiply_high(m, r) >> (half - 2);
    int32_t left = (int32_t)(low - d * d);
    while (RARELY(left < 0)) {
        d--;
        left += (int32_t)(2 * d + 1);
    }
    while (RARELY((uint32_t)left > 2 * d)) {
        left -= (int32_t)(2 * d + 1);
        d++;
    }

    uint32_t a = tvit_multiply_high(k->c_top, r);
    int32_t shift = k->c_zeros - (int32_t)half;
    if (RARELY((uint32_t)shift >= 32)) // below -1 it will be capped
        a = shift < 0 ? a << 1 : 0;
    else
        a >>= shift;
    left = (int32_t)(k->c_low - a * d);
    if (RARELY(d <= k->c_cap)) // C / d is 2^30 or more
        a = (1u << 30) - 1;
    else if (RARELY(left < 0))
        a -= tvit_divide(0u - (uint32_t)left + d - 1, d);
    else if ((uint32_t)left >= d) // the root of V is not d, so C times its reciprocal is less than C / d
        a += tvit_divide((uint32_t)left, d);

    // s1 = mean * n + rest, a = part * n + a_rest:  B = mean * a + (rest * a) / n
    uint32_t raised = (uint32_t)(s1 + (int32_t)(k->n << 15)), mean = tvit_divide_by_n(k, raised);
    uint32_t rest = raised - mean * k->n, part = tvit_divide_by_n(k, a), a_rest = a - part * k->n;
    uint32_t fraction = rest * part + tvit_divide_by_n(k, rest * a_rest); // below a
    // -B = (2^15 - mean) * a - fraction: from -mean * a, two words, 2^15 * a is added last
    uint32_t product_low = mean * a, product_high = tvit_multiply_high(mean, a);
    uint32_t sum = product_low + fraction;
    product_high += sum < fraction;
    uint32_t minus_low = 0u - sum, minus_high = 0u - product_high - (sum != 0);
    tvit_layernorm_factors factors = {
        .a = a, .offset = (int32_t)((minus_high << 17 | minus_low >> 15) + a), .remainder = minus_low & 0x7fff};
    return factors;
}

#undef RARELY

#endif
