// SPDX-License-Identifier: Apache-2.0
// Counts loops of known length, before and after sleeps; the host sends a byte to wake the core. A line "count N C" for
// each: a loop of N rounds, two instructions a round, counted C.

#include "print.h"

#include "ports/xtensa_qemu/boot_parameters.h"
#include "ports/xtensa_qemu/counter.h"

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
    print_hex(rounds);
    print_hex(after - before);
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
        for (uint32_t rounds = 1000; rounds < 100000000; rounds *= 17)
            count(rounds);
        print("asleep\n");
        uart_wait();
        counter_synchronize();
        uint8_t byte;
        while (uart_read(&byte, 1)) {
        }
    }
}
