// SPDX-License-Identifier: Apache-2.0
// Bare program: runs attention operators that a test has put into memory, on one core, and counts the cycles of each.
// host/tests/test_pie_attention.py fills the mailbox.
#include "kernels/pie/pie_kernels.h"
#include "ports/xtensa_qemu/hardware.h"

typedef struct {
    tvit_attention_args args;
    void *scratch;
    uint32_t cycles; // out
    uint32_t needed; // out: bytes of scratch
} attention_case;

struct {
    uint32_t count;
    attention_case *cases;
} mailbox = {0, NULL};

int main(void) {
    const tvit_team alone = {0, 1, NULL};
    for (uint32_t i = 0; i < mailbox.count; i++) {
        attention_case *c = &mailbox.cases[i];
        c->needed = (uint32_t)tvit_attention_buffer_size_pie(&c->args);
        uint32_t start = read_ccount();
        tvit_attention_pie(&c->args, c->scratch, &alone);
        c->cycles = read_ccount() - start;
    }
    return 0;
}
