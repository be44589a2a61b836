// SPDX-License-Identifier: Apache-2.0
// Two cores execute vector instructions at the same time (-smp 2). Each goes through its own sequence in rounds, from
// a state of its own, and compares all of its vector registers and what it stored with those of the same sequence on
// one core. The host sends the part to run.

#include "print.h"

#include <string.h>

#include "ports/xtensa_qemu/faults.h"
#include "ports/xtensa_qemu/pie/pie_trap.h"

enum { VECTORS = 8, BYTES = 16 * VECTORS, ROUNDS = 400, CORES = PIE_TRAP_CORES };

// pie_loops.S, and ../cores.S
typedef uint32_t routine(const uint8_t *from, uint8_t *to, uint32_t n, uint32_t mark);
extern routine loop_ends_in_three_bytes, loop_ends_in_four_bytes, loop_of_vectors_only, nested_loops;
extern void matrix_loop(const uint8_t *data, const uint8_t *unused, uint32_t rounds);
extern void load_from_nowhere(void);
extern uint8_t load_from_nowhere_itself[];
extern void cores_release_second(void);
void cores_second(void);

// What one core works on; the matrix loop reads 17 vectors.
typedef struct {
    uint8_t from[BYTES + 16 * 17] __attribute__((aligned(16)));
    uint8_t to[BYTES] __attribute__((aligned(16)));
    pie_state_t state; // behind the sequence
    uint32_t executed; // by the sequence
} core_work;

static core_work work[CORES], reference[CORES];
static volatile uint32_t rounds[CORES], failures[CORES], foreign[CORES], ready[CORES];
static volatile uint8_t part;

// Half of it is code that both cores share, in another order; the data, and so every register, differ.
static void sequence(uint32_t which, uint32_t core, core_work *at) {
    pie_trap_core *trap = &pie_trap_cores[core];
    const uint32_t before = trap->executed;
    pie_reset(&trap->state);
    memset(trap->state.q[7].u8, (int)(0x70 + which), 16);
    memset(at->to, 0, sizeof at->to);
    if (which) {
        matrix_loop(at->from, NULL, 3);
        loop_ends_in_four_bytes(at->from, at->to, VECTORS, 0);
        loop_of_vectors_only(at->from, at->to, VECTORS / 2, 0);
    } else {
        loop_of_vectors_only(at->from, at->to, VECTORS / 2, 0);
        loop_ends_in_three_bytes(at->from, at->to, VECTORS, 0);
        nested_loops(at->from, at->to, VECTORS, 0);
        matrix_loop(at->from, NULL, 2);
    }
    at->state = trap->state;
    at->executed = trap->executed - before;
}

static void prepare(core_work *at, uint32_t which) {
    for (uint32_t i = 0; i < sizeof at->from; i++)
        at->from[i] = (uint8_t)(i * (37 + 2 * which) + 11 * which);
}

static int equal(const core_work *a, const core_work *b) {
    return !memcmp(&a->state, &b->state, sizeof a->state) && !memcmp(a->to, b->to, sizeof a->to) &&
           a->executed == b->executed;
}

// Neither core stops before the other has done its rounds, so none of them runs alone all along.
static void run_rounds(uint32_t core) {
    const uint32_t other = 1 - core;
    ready[core] = 1;
    while (!ready[other]) {
    }
    const uint32_t start = rounds[other];
    while (rounds[core] < ROUNDS || rounds[other] < ROUNDS) {
        sequence(core, core, &work[core]);
        if (!equal(&work[core], &reference[core])) failures[core] = failures[core] + 1;
        rounds[core] = rounds[core] + 1;
    }
    foreign[core] = rounds[other] - start;
}

void cores_second(void) {
    if (part == 'f') {
        ready[1] = 1;
        while (rounds[0] < ROUNDS) {
        }
        load_from_nowhere();
    }
    run_rounds(1);
    ready[1] = 2;
    for (;;) {
    }
}

// Both sequences alone on core 0. They must differ from each other, or equality would show nothing.
static void make_references(void) {
    for (uint32_t which = 0; which < CORES; which++) {
        prepare(&reference[which], which);
        prepare(&work[which], which);
        sequence(which, 0, &reference[which]);
    }
    int64_t sums[CORES] = {0, 0}; // ACCX in plain C: each loop adds the products of its vectors with themselves
    for (uint32_t which = 0; which < CORES; which++) {
        const uint32_t passes[CORES][2] = {{3, 2}, {2, 1}}; // over the first half, over the second
        for (uint32_t i = 0; i < BYTES; i++) {
            const int8_t value = (int8_t)reference[which].from[i];
            sums[which] += (int64_t)value * value * passes[which][i >= BYTES / 2];
        }
        print(sums[which] == reference[which].state.accx ? "right" : "wrong");
        print_hex((uint64_t)reference[which].state.accx);
        print_hex(reference[which].executed);
        print("\n");
    }
}

// Whether the core's cache of decoded instructions has any of the routine.
static int has_decoded(uint32_t core, routine *code) {
    enum { LOOP_BYTES = 24 };
    for (uint32_t i = 0; i < PIE_TRAP_CACHE_LINES; i++)
        if (pie_trap_cores[core].lines[i].pc - (uint32_t)(uintptr_t)code < LOOP_BYTES) return 1;
    return 0;
}

static int has_own_trap(uint32_t core) {
    routine *const only[CORES] = {loop_ends_in_three_bytes, loop_ends_in_four_bytes}; // by the core that calls it
    return has_decoded(core, only[core]) && !has_decoded(core, only[1 - core]) &&
           pie_trap_cores[core].emulated_pc == &fault_emulated_pc[core] &&
           pie_trap_cores[core].state.q[7].u8[0] == 0x70 + core;
}

static void both(void) {
    run_rounds(0);
    while (ready[1] != 2) {
    }
    for (uint32_t core = 0; core < CORES; core++) {
        print("core");
        print_hex(core);
        print_hex(failures[core]);
        print(rounds[core] >= ROUNDS && foreign[core] ? " together" : " alone");
        print(has_own_trap(core) ? " own" : " foreign");
        print("\n");
    }
}

// The second core loads from nowhere while this one is in the middle of its sequence.
static void fault_of_the_second_core(void) {
    print("address");
    print_hex((uintptr_t)load_from_nowhere_itself);
    print("\n");
    for (;;) {
        sequence(0, 0, &work[0]);
        rounds[0] = rounds[0] + 1;
    }
}

void port_main(uint32_t boot_parameters) {
    (void)boot_parameters;
    uart_init();
    pie_trap_reset(&pie_trap_cores[0]);
    pie_trap_reset(&pie_trap_cores[1]);
    print("ready\n"); // what came before was lost
    uint8_t asked;
    while (!uart_read(&asked, 1)) {
    }
    part = asked;
    make_references();
    memset(pie_trap_cores[0].lines, 0, sizeof pie_trap_cores[0].lines); // it has executed the other's sequence
    cores_release_second();
    if (part == 'f') fault_of_the_second_core();
    both();
    finish();
}
