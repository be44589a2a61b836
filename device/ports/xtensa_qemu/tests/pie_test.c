// SPDX-License-Identifier: Apache-2.0
// Vector instructions on the emulated core: the golden cases that lie in flash, loops and branches with an interrupt at
// every possible place, what one instruction costs, and faults. The host sends the number of the part to run.

#include "print.h"

#include <string.h>

#include "pie_model/tests/pie_driver.c" // for the layout of a case
#include "ports/xtensa_qemu/counter.h"
#include "ports/xtensa_qemu/hardware.h"
#include "ports/xtensa_qemu/pie/pie_trap.h"

enum { WINDOW = 8192, BUFFER = 512 };

// As host/tests/test_pie_model_xtensa.py writes them; in flash behind their number in 16 bytes.
typedef struct {
    uint8_t code[4];
    uint32_t length, buffer, pointers;
    uint8_t before[offsetof(driver_machine_t, memory_base)], after[offsetof(driver_machine_t, memory_base)];
    uint8_t memory_before[BUFFER], memory_after[BUFFER];
} golden_case;

extern uint32_t run_case(const uint8_t *code, uint32_t registers[17]);

static pie_trap_core *const trap = &pie_trap_cores[0];

// --- golden cases
// -------------------------------------------------------------------------------------------------------

static uint8_t window[WINDOW] __attribute__((aligned(16))), expected[WINDOW];
static driver_machine_t machine, wanted;

static void enter(driver_machine_t *state, const golden_case *test, const uint8_t *registers) {
    memset(state, 0, sizeof *state);
    memcpy(state, registers, sizeof test->before);
    state->ar_base = 0;
    state->ar_mask = 15;
    for (int n = 0; n < 16; n++)
        if (test->pointers >> n & 1) state->ar[n] += (uint32_t)(uintptr_t)window + test->buffer;
}

static void execute(driver_machine_t *state, const golden_case *test, uint32_t alignment) {
    static uint8_t code[16] __attribute__((aligned(4)));
    static const uint8_t ret[3] = {0x80, 0x00, 0x00};
    static uint32_t registers[17];
    memcpy(code + alignment, test->code, test->length);
    memcpy(code + alignment + test->length, ret, sizeof ret);
    memcpy(trap->state.q, state->q, sizeof state->q);
    pie_qacc_write(&trap->state, state->qacc_l, state->qacc_h);
    memcpy(&trap->state.ua_state, state->ua_state, 16);
    memcpy(&trap->state.accx, state->accx, 8);
    memcpy(trap->f, state->fr, sizeof trap->f);
    trap->state.sar_byte = (uint8_t)state->sar_byte;
    trap->state.fft_bit_width = (uint8_t)state->fft_bit_width;
    trap->state.gpio_out = (uint8_t)state->gpio_out;
    memcpy(registers, state->ar, 64);
    registers[16] = state->sar;
    run_case(code + alignment, registers);
    memcpy(state->ar, registers, 64);
    state->sar = registers[16];
    memcpy(state->q, trap->state.q, sizeof state->q);
    pie_qacc_read(&trap->state, state->qacc_l, state->qacc_h);
    memcpy(state->ua_state, &trap->state.ua_state, 16);
    memcpy(state->accx, &trap->state.accx, 8);
    memcpy(state->fr, trap->f, sizeof trap->f);
    state->sar_byte = trap->state.sar_byte;
    state->fft_bit_width = trap->state.fft_bit_width;
    state->gpio_out = trap->state.gpio_out;
}

static void golden_cases(void) {
    const uint32_t count = *(const uint32_t *)FLASH_BASE;
    const golden_case *cases = (const golden_case *)(FLASH_BASE + 16);
    const uint32_t before = trap->executed;
    uint32_t failures = 0;
    for (uint32_t i = 0; i < count; i++) {
        const golden_case *test = &cases[i];
        memset(window, 0x5a, sizeof window);
        memset(expected, 0x5a, sizeof expected);
        memcpy(window + test->buffer, test->memory_before, BUFFER);
        memcpy(expected + test->buffer, test->memory_after, BUFFER);
        enter(&machine, test, test->before);
        enter(&wanted, test, test->after);
        execute(&machine, test, i % 4);
        if (memcmp(&machine, &wanted, sizeof test->before) || memcmp(window, expected, sizeof window)) {
            if (failures++ < 10) {
                print("failed");
                print_hex(i);
                print("\n");
            }
        }
    }
    print("golden");
    print_hex(count);
    print_hex(failures);
    print_hex(trap->executed - before);
    print("\n");
}

// --- loops, branches, interrupts
// ------------------------------------------------------------------------------------------

typedef uint32_t routine(const uint8_t *from, uint8_t *to, uint32_t n, uint32_t mark);
extern routine loop_ends_in_three_bytes, loop_ends_in_four_bytes, loop_of_vectors_only, branches_around_vectors,
    loop_of_calls, nested_loops;

static routine *const routines[] = {loop_ends_in_three_bytes, loop_ends_in_four_bytes, loop_of_vectors_only,
                                    branches_around_vectors,  loop_of_calls,           nested_loops};

enum { VECTORS = 5, ROOM = 16 * (VECTORS + 2), TIMER_INTERRUPT = 6 };
static uint8_t from[ROOM] __attribute__((aligned(16))), to[ROOM] __attribute__((aligned(16)));

static uint32_t interrupts_enabled(void) {
    uint32_t mask;
    __asm__ volatile("rsr.intenable %0" : "=a"(mask));
    return mask;
}

// The timer raises its interrupt after so many ticks; the handler turns it off (start.S).
static void set_timer(uint32_t ticks) {
    __asm__ volatile("wsr.ccompare0 %0\n"
                     "wsr.intenable %1\n"
                     "rsync" ::"a"(read_ccount() + ticks),
                     "a"(1u << TIMER_INTERRUPT));
}

static int check(uint32_t which, uint32_t n) {
    int64_t sum = 0;
    for (uint32_t i = 0; i < 16 * n; i++)
        sum += (int8_t)from[i] * (int8_t)from[i];
    memset(to, 0xa5, sizeof to);
    trap->state.accx = 0;
    const uint32_t result = routines[which](from, to, n, 7);
    int good = result == 700 + n && trap->state.accx == sum && !memcmp(to, from, 16 * n);
    for (uint32_t i = 16 * n; i < ROOM; i++)
        good &= to[i] == 0xa5;
    return good;
}

static void loops(void) {
    for (uint32_t i = 0; i < ROOM; i++)
        from[i] = (uint8_t)(i * 37 + 11);
    for (uint32_t which = 0; which < sizeof routines / sizeof routines[0]; which++) {
        uint32_t good = 0, taken = 0, runs = 0;
        for (uint32_t n = 1; n <= VECTORS; n++, runs++)
            good += (uint32_t)check(which, n);
        uint32_t late = 0; // the routine was over before the timer
        for (uint32_t ticks = 20; late < 10; ticks += 3, runs++) {
            set_timer(ticks);
            good += (uint32_t)check(which, VECTORS);
            if (interrupts_enabled())
                late++;
            else
                taken++;
        }
        set_timer(0x7fffffff);
        print("routine");
        print_hex(which);
        print_hex(runs - good);
        print_hex(taken);
        print("\n");
    }
    if (!check(2, 0)) print("a loop of no rounds differs\n");
}

// --- cost
// -----------------------------------------------------------------------------------------------------------------

extern void matrix_loop(const uint8_t *data, const uint8_t *unused, uint32_t rounds);

static void cost(void) {
    enum { ROUNDS = 5000 };
    const uint32_t executed = trap->executed;
    const uint64_t before = counter_read();
    matrix_loop(window, NULL, ROUNDS);
    print("cost");
    print_hex(trap->executed - executed);
    print_hex(counter_read() - before);
    print("\n");
}

// --- faults
// ---------------------------------------------------------------------------------------------------------------

extern void undefined_instruction(void), load_from_nowhere(void);
extern uint8_t undefined_instruction_itself[], load_from_nowhere_itself[];

static void print_address(const uint8_t *code) {
    print("address");
    print_hex((uintptr_t)code);
    print("\n");
}

void port_main(uint32_t boot_parameters) {
    (void)boot_parameters;
    uart_init();
    counter_init(25, 5);
    pie_trap_reset(trap);
    print("ready\n"); // what came before was lost
    for (;;) {
        uint8_t part = 0;
        while (!uart_read(&part, 1))
            uart_wait();
        counter_synchronize();
        switch (part) {
        case 'g':
            golden_cases();
            break;
        case 'l':
            loops();
            break;
        case 'c':
            cost();
            break;
        case 'u':
            print_address(undefined_instruction_itself);
            undefined_instruction();
            break;
        case 'n':
            print_address(load_from_nowhere_itself);
            load_from_nowhere();
            break;
        }
        print("end\n");
    }
}
