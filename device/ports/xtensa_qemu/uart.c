// SPDX-License-Identifier: Apache-2.0
#include "uart.h"

#include "hardware.h"

static volatile uint32_t *reg(uint32_t offset) {
    return hardware_register(UART_BASE + offset);
}

static uint32_t interrupt_mask;

void uart_init(void) {
    // A machine with two cores has its interrupt distributor between.
    interrupt_mask = 1u << (read_external_register(MX_SYSTEM_CONFIGURATION) ? MX_UART_INTERRUPT : UART_INTERRUPT);
    *reg(UART_IER) = 0;
    *reg(UART_LCR) = UART_LCR_8N1;
    *reg(UART_FCR) = UART_FCR_ON_CLEAR_TRIGGER14;
    *reg(UART_MCR) = UART_MCR_DTR_RTS_INTERRUPT;
}

size_t uart_read(uint8_t *bytes, size_t capacity) {
    size_t count = 0;
    while (count < capacity && (*reg(UART_LSR) & UART_LSR_DATA_READY))
        bytes[count++] = (uint8_t)*reg(UART_DATA);
    return count;
}

void uart_write(const uint8_t *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        while (!(*reg(UART_LSR) & UART_LSR_TRANSMIT_EMPTY)) {
        }
        *reg(UART_DATA) = bytes[i];
    }
}

// Interrupts stay masked until WAITI lowers the level and sleeps in one step, so a byte that arrives before it is not
// missed: the handler then runs at once. It clears INTENABLE and returns behind WAITI.
void uart_wait(void) {
    uint32_t ps;
    __asm__ volatile("rsil %0, 15" : "=a"(ps)::"memory");
    *reg(UART_FCR) = UART_FCR_ON_TRIGGER1;
    *reg(UART_IER) = UART_IER_RECEIVED;
    __asm__ volatile("wsr.intenable %0\n"
                     "rsync\n"
                     "waiti 0" ::"a"(interrupt_mask)
                     : "memory");
    *reg(UART_IER) = 0;
    *reg(UART_FCR) = UART_FCR_ON_TRIGGER14;
}
