// SPDX-License-Identifier: Apache-2.0
// Bare program: runs linear operators that a test has put into memory, and counts the cycles of each.
// host/tests/test_pie_linear.py fills the mailbox.
#include "kernels/pie/pie_kernels.h"
#include "ports/xtensa_qemu/hardware.h"

typedef struct {
    tvit_linear_args args;
    uint32_t parts;     // run one after the other
    uint32_t cycles[2]; // out: of each part
} linear_case;

struct {
    uint32_t count;
    linear_case *cases;
} mailbox = {0, NULL};

int main(void) {
    for (uint32_t i = 0; i < mailbox.count; i++) {
        linear_case *c = &mailbox.cases[i];
        for (uint32_t part = 0; part < c->parts; part++) {
            tvit_team team = {part, c->parts, NULL};
            uint32_t start = read_ccount();
            tvit_linear_pie(&c->args, NULL, &team);
            c->cycles[part] = read_ccount() - start;
        }
    }
    return 0;
}
