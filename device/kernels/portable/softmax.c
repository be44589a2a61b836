// SPDX-License-Identifier: Apache-2.0
// Softmax of integer scores (CONTRACT.md, sections 6 and 7).
#include "tvit/kernels.h"

static inline int32_t exp2_q14(int32_t t) {
    int32_t f = (t & 1023) << 5;
    int32_t h = 3803 + ((f * -661) >> 15);
    h = -11334 + ((f * h) >> 15);
    h = 16384 + ((f * h) >> 15);
    return h >> (t >> 10);
}

int32_t tvit_exp2_q14_portable(int32_t t) {
    return exp2_q14(t);
}

int32_t tvit_softmax_portable(int16_t *a, uint32_t stride, uint32_t tokens, int32_t highest, int32_t exp_multiplier) {
    uint32_t total = 0;
    int16_t *end = a + (size_t)tokens * stride;
    for (int16_t *at = a; at != end; at += stride) {
        int32_t distance = highest - *at;
        if (distance > 32767) distance = 32767;
        int32_t e = exp2_q14((distance * exp_multiplier) >> 15);
        *at = (int16_t)e;
        total += (uint32_t)e;
    }
    uint32_t target = 4128 - (tokens + 1) / 2;
    uint32_t quotient = (target << 19) / total;
    int32_t r = quotient < 4079 ? (int32_t)quotient : 4079;
    int32_t delta = (1 << 18) / r;
    int32_t sum = 0;
    for (int16_t *at = a; at != end; at += stride) {
        int32_t p = ((*at + delta) * r) >> 19;
        *at = (int16_t)p;
        sum += p;
    }
    return sum;
}
