// SPDX-License-Identifier: Apache-2.0
// The 16550 UART, polled.
#ifndef XTENSA_QEMU_UART_H
#define XTENSA_QEMU_UART_H

#include <stddef.h>
#include <stdint.h>

void uart_init(void);

// Bytes that have arrived, at most `capacity`; does not wait.
size_t uart_read(uint8_t *bytes, size_t capacity);

// Waits while the transmitter is full.
void uart_write(const uint8_t *bytes, size_t count);

// Sleeps until a byte has arrived.
void uart_wait(void);

#endif
