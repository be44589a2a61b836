// SPDX-License-Identifier: Apache-2.0
// Counts loops of known length, before and after sleeps, and prints what the counter said; the host sends a byte to
// wake the core. A line "count N C" for each: a loop of N rounds counted C.

#include <stdint.h>

#include "ports/xtensa_qemu/boot_parameters.h"
#include "ports/xtensa_qemu/counter.h"
#include "ports/xtensa_qemu/faults.h"
#include "ports/xtensa_qemu/uart.h"

xtensa_fault_frame fault_frame;
void port_fault(void);
void port_main(uint32_t boot_parameters);

static void print(const char *text) {
    while (*text)
        uart_write((const uint8_t *)text++, 1);
}

static void print_number(uint64_t value) {
    char digits[24], *at = digits + sizeof digits - 1;
    *at = 0;
    do
        *--at = (char)('0' + value % 10);
    while (value /= 10);
    print(" ");
    print(at);
}

void port_fault(void) {
    print("fault\n");
    for (;;) {
    }
}

// Two instructions a round.
static void spin(uint32_t rounds) {
    __asm__ volatile("1: addi %0, %0, -1\n"
                     "   bnez %0, 1b\n"
                     : "+a"(rounds));
}

static void count(uint32_t rounds) {
    const uint64_t before = counter_read();
    spin(rounds);
    const uint64_t after = counter_read();
    print("count");
    print_number(rounds);
    print_number(after - before);
    print("\n");
}

void port_main(uint32_t boot_parameters) {
    uart_init();
    char text[16];
    const int instructions = boot_option(boot_command_line(boot_parameters), "instructions", text, sizeof text) != 0;
    counter_init(instructions ? 25 : 0, 5);
    for (;;) {
        for (uint32_t rounds = 1; rounds < 64; rounds++)
            count(rounds);
        for (uint32_t rounds = 1000; rounds < 200000000; rounds *= 17)
            count(rounds);
        print("asleep\n");
        uart_wait();
        counter_synchronize();
        uint8_t byte;
        while (uart_read(&byte, 1)) {
        }
    }
}
