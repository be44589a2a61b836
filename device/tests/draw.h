// SPDX-License-Identifier: Apache-2.0
// Seeded numbers for tests: the same everywhere.
#ifndef TVIT_DRAW_H
#define TVIT_DRAW_H

#include <stdint.h>

static uint32_t draw_state = 2463534242u;

static inline uint32_t draw(void) {
    draw_state ^= draw_state << 13;
    draw_state ^= draw_state >> 17;
    draw_state ^= draw_state << 5;
    return draw_state;
}

// low ... high, both included.
static inline int32_t draw_between(int32_t low, int32_t high) {
    return (int32_t)(low + (int64_t)(draw() % ((uint64_t)((int64_t)high - low) + 1)));
}

#endif
