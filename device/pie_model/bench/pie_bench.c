/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nanoseconds per instruction of the model on this machine, for the opcodes a kernel spends its time in and for the
 * int8 matrix product's inner loop. Natively, with the sources of device/pie_model in $SOURCES:
 *   gcc -std=c11 -O3 -Idevice/pie_model $SOURCES device/pie_model/bench/pie_bench.c -o build/pie_bench
 *   build/pie_bench [instructions per row]
 */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pie_model.h"

enum { PAGE_SHIFT = 16, MEMORY = 1 << PAGE_SHIFT };

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* The opcode of that name with distinct registers and a2 as the pointer. */
static pie_insn_t instruction(const char *mnemonic) {
    for (unsigned opcode = 0; opcode < PIE_OPCODE_COUNT; opcode++)
        if (strcmp(pie_opcode_info(opcode)->mnemonic, mnemonic) == 0) {
            pie_insn_t insn;
            uint32_t word = pie_opcode_info(opcode)->match;
            uint8_t bytes[4] = {(uint8_t)word, (uint8_t)(word >> 8), (uint8_t)(word >> 16), (uint8_t)(word >> 24)};
            if (!pie_decode(bytes, &insn)) break;
            insn.qz = 4, insn.qz1 = 5, insn.qx = 0, insn.qy = 1, insn.qu = 2, insn.qu1 = 6, insn.qs0 = 3, insn.qs1 = 7;
            insn.as = 2, insn.ad = 3, insn.at = 4, insn.ax = 5, insn.ay = 6;
            return insn;
        }
    fprintf(stderr, "pie_bench: no opcode %s\n", mnemonic);
    exit(1);
}

static double nanoseconds(const pie_insn_t *loop, int count, long total) {
    static uint8_t memory[MEMORY] __attribute__((aligned(16)));
    static uint8_t *pages[1];
    uint32_t ar[16] = {0}, fr[16] = {0}, sar = 5;
    pie_state_t state;
    pie_core_t core = {.ar = ar, .ar_mask = 15, .sar = &sar, .fr = fr};
    pages[0] = memory;
    core.bus.load_pages = core.bus.store_pages = pages;
    core.bus.page_shift = PAGE_SHIFT;
    pie_reset(&state);
    for (int i = 0; i < 128; i++)
        ((uint8_t *)state.q)[i] = (uint8_t)(i * 37);
    for (int i = 0; i < MEMORY; i++)
        memory[i] = (uint8_t)(i * 29 >> 3);

    double start = seconds();
    for (long done = 0; done < total;) {
        ar[2] = 0;
        for (int pass = 0; pass < 64; pass++) /* 64 * 18 vectors fit the memory */
            for (int i = 0; i < count; i++) {
                pie_execute_table[loop[i].opcode](&loop[i], &state, &core);
                done++;
            }
    }
    return (seconds() - start) * 1e9 / (double)total;
}

int main(int argc, char **argv) {
    static const char *const names[] = {
        "ee.vsmulas.s8.qacc.ld.incp",
        "ee.vsmulas.s8.qacc",
        "ee.vmulas.s8.qacc.ld.ip",
        "ee.vmulas.s8.qacc",
        "ee.vmulas.s8.accx.ld.ip",
        "ee.vmulas.s8.accx",
        "ee.vmulas.s16.accx",
        "ee.vmulas.s16.qacc",
        "ee.vsmulas.s16.qacc",
        "ee.vld.128.ip",
        "ee.vst.128.ip",
        "ee.vldbc.8.ip",
        "ee.srcmb.s8.qacc",
        "ee.srs.accx",
        "ee.vadds.s8.ld.incp",
        "ee.vadds.s16",
        "ee.vmul.s8",
        "ee.vzip.8",
        "ee.src.q",
        "ee.zero.qacc",
    };
    long total = argc > 1 ? atol(argv[1]) : 20000000;
    if (total <= 0) {
        fprintf(stderr, "pie_bench: the number of instructions must be positive\n");
        return 2;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        pie_insn_t insn = instruction(names[i]);
        printf("%-34s %6.1f ns\n", names[i], nanoseconds(&insn, 1, total));
    }

    pie_insn_t loop[17]; /* sixteen channels times sixteen inputs */
    loop[0] = instruction("ee.vld.128.ip");
    loop[0].qu = 1, loop[0].imm = 16;
    for (int i = 0; i < 16; i++) {
        loop[1 + i] = instruction("ee.vsmulas.s8.qacc.ld.incp");
        loop[1 + i].sel = (uint8_t)i, loop[1 + i].qx = (uint8_t)(i % 2 ? 3 : 4),
                 loop[1 + i].qu = (uint8_t)(i % 2 ? 4 : 3);
    }
    printf("%-34s %6.1f ns\n", "matrix product loop, an instruction", nanoseconds(loop, 17, total));

    pie_insn_t insn;
    uint32_t word = pie_opcode_info(PIE_EE_VSMULAS_S8_QACC_LD_INCP)->match;
    uint8_t bytes[4] = {(uint8_t)word, (uint8_t)(word >> 8), (uint8_t)(word >> 16), (uint8_t)(word >> 24)};
    double start = seconds();
    unsigned decoded = 0;
    for (long i = 0; i < total; i++) {
        bytes[1] = (uint8_t)(bytes[1] ^ 0x40); /* another register each time */
        decoded += pie_decode(bytes, &insn);
    }
    printf("%-34s %6.1f ns\n", "pie_decode", (seconds() - start) * 1e9 / (double)total);
    return decoded == 0;
}
