// SPDX-License-Identifier: Apache-2.0
// Small exact arithmetic shared by the portable kernels. Divisions of 64-bit numbers are written out because on
// machines without a divider the compiler's own take a number of instructions that depends on the data.
#ifndef TVIT_ARITHMETIC_H
#define TVIT_ARITHMETIC_H

#include <stdint.h>

// An inner loop that is compiled as written: apart from its callers, so that a machine of 16 registers keeps all of its
// variables in them, and without its callers' constants, of which compilers make more instructions, not less. On such a
// machine GCC also wants -fno-schedule-insns: its first scheduling pass hoists loads until the sums are spilled (lx106:
// 2.3 instructions for a linear multiply-accumulate instead of 2.8, 4.5 in attention instead of 6.8).
#if defined(__GNUC__) && !defined(__clang__)
#define TVIT_INNER_LOOP static __attribute__((noipa))
#else
#define TVIT_INNER_LOOP static __attribute__((noinline))
#endif

// Limit to -limit ... limit.
static inline int32_t tvit_clamp(int32_t value, int32_t limit) {
    if (value > limit) value = limit;
    if (value < -limit) value = -limit;
    return value;
}

// The largest d with d * d <= v, for v < 2^56: one bit of d a step.
static inline uint32_t tvit_isqrt(uint64_t v) {
    uint32_t root = 0, remainder = 0;
    uint32_t halves[2] = {(uint32_t)(v >> 28) << 4, (uint32_t)v << 4}; // 28 bits each, at the top of a word
    for (int half = 0; half < 2; half++) {
        uint32_t bits = halves[half];
        for (int i = 0; i < 14; i++) {
            remainder = remainder << 2 | bits >> 30;
            bits <<= 2;
            uint32_t trial = root << 2 | 1;
            root <<= 1;
            if (remainder >= trial) {
                remainder -= trial;
                root |= 1;
            }
        }
    }
    return root;
}

// min(c / d, 2^30 - 1) for c < 2^52 and 1 <= d < 2^28: one bit of the quotient a step.
static inline uint32_t tvit_quotient_30(uint64_t c, uint32_t d) {
    uint32_t remainder = (uint32_t)(c >> 30), bits = (uint32_t)c << 2, quotient = 0;
    if (remainder >= d) return (1u << 30) - 1;
    for (int i = 0; i < 30; i++) {
        remainder = remainder << 1 | bits >> 31;
        bits <<= 1;
        quotient <<= 1;
        if (remainder >= d) {
            remainder -= d;
            quotient |= 1;
        }
    }
    return quotient;
}

// v / n for 1 <= n <= 65536: long division with digits of 16 bits.
static inline uint64_t tvit_divide_by_16_bits(uint64_t v, uint32_t n) {
    uint32_t remainder = 0;
    uint64_t quotient = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t part = remainder << 16 | (uint32_t)(v >> 48);
        uint32_t digit = part / n;
        remainder = part - digit * n;
        v <<= 16;
        quotient = quotient << 16 | digit;
    }
    return quotient;
}

#endif
