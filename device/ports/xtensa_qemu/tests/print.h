// SPDX-License-Identifier: Apache-2.0
// Text over the UART for the bare-metal test programs, and the fault report of one line.
#ifndef XTENSA_QEMU_TESTS_PRINT_H
#define XTENSA_QEMU_TESTS_PRINT_H

#include <stdint.h>

#include "ports/xtensa_qemu/faults.h"
#include "ports/xtensa_qemu/uart.h"

static inline void print(const char *text) {
    while (*text)
        uart_write((const uint8_t *)text++, 1);
}

static inline void print_hex(uint64_t value) {
    char digits[20], *at = digits + sizeof digits - 1;
    *at = 0;
    do
        *--at = "0123456789abcdef"[value & 15];
    while (value >>= 4);
    *--at = ' ';
    print(at);
}

// The test program's; start.S calls them.
xtensa_fault_frame fault_frames[FAULT_CORES];
void port_main(uint32_t boot_parameters);
void port_fault(const xtensa_fault_frame *frame);

void port_fault(const xtensa_fault_frame *frame) {
    print("fault");
    print_hex(frame->exccause);
    print_hex(fault_pc(frame));
    print_hex(frame->excvaddr);
    print("\nend\n");
    for (;;) {
    }
}

static inline _Noreturn void finish(void) {
    print("end\n");
    for (;;)
        uart_wait();
}

#endif
