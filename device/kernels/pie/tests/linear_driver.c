// SPDX-License-Identifier: Apache-2.0
// Bare program: runs linear operators that a test has put into memory, and counts the cycles of each.
// host/tests/test_pie_linear.py fills the mailbox.
#include "kernels/pie/pie_kernels.h"

#include <string.h>

typedef struct {
    tvit_linear_args args;
    uint32_t parts;     // run one after the other
    uint32_t cycles[2]; // out: of each part
} linear_case;

struct {
    uint32_t count;
    linear_case *cases;
} mailbox = {0, NULL};

void *memcpy(void *restrict to, const void *restrict from, size_t count) {
    uint8_t *t = to;
    const uint8_t *f = from;
    while (count--)
        *t++ = *f++;
    return to;
}

void *memset(void *to, int value, size_t count) {
    uint8_t *t = to;
    while (count--)
        *t++ = (uint8_t)value;
    return to;
}

static uint32_t cycle_count(void) {
    uint32_t value;
    __asm__ volatile("rsr.ccount %0" : "=a"(value) : : "memory");
    return value;
}

int main(void) {
    for (uint32_t i = 0; i < mailbox.count; i++) {
        linear_case *c = &mailbox.cases[i];
        for (uint32_t part = 0; part < c->parts; part++) {
            tvit_team team = {part, c->parts, NULL};
            uint32_t start = cycle_count();
            tvit_linear_pie(&c->args, NULL, &team);
            c->cycles[part] = cycle_count() - start;
        }
    }
    return 0;
}
