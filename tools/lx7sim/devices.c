/* SPDX-License-Identifier: Apache-2.0 */
/* The devices of the kc705 board that programs use: 16550 UART, FPGA registers. Everything else reads 0, with a
 * warning. */
#include "core.h"

#include <stdlib.h>
#include <string.h>

enum {
    UART_RBR_THR = 0,
    UART_IER = 1,
    UART_IIR_FCR = 2,
    UART_LCR = 3,
    UART_MCR = 4,
    UART_LSR = 5,
    UART_MSR = 6,
    UART_SCR = 7,
    IER_RX = 1,
    IER_THRE = 2,
    LCR_DLAB = 0x80,
    LSR_DR = 1,
    LSR_THRE = 0x20,
    LSR_TEMT = 0x40,
    UART_IRQ = 0,
    FIFO_SIZE = 16,
};

/* Status reads in a row without input after which the program counts as waiting for the host. */
enum { IDLE_POLLS = 2000 };

static void push(uint8_t **data, size_t *head, size_t *tail, size_t *max, const uint8_t *bytes, size_t n) {
    if (*head == *tail) *head = *tail = 0;
    if (*tail + n > *max) {
        if (*head) {
            memmove(*data, *data + *head, *tail - *head);
            *tail -= *head;
            *head = 0;
        }
        if (*tail + n > *max) {
            *max = (*tail + n) * 2 + 4096;
            uint8_t *grown = realloc(*data, *max);
            if (!grown) abort();
            *data = grown;
        }
    }
    memcpy(*data + *tail, bytes, n);
    *tail += n;
}

void uart_reset(lx7_sim_t *sim) {
    uart_t *uart = &sim->uart;
    uart->ier = uart->fcr = uart->lcr = uart->mcr = uart->scr = uart->dlm = 0;
    uart->dll = 12;
    uart->iir_thre = 0;
    uart->empty_polls = 0;
}

void uart_free(lx7_sim_t *sim) {
    free(sim->uart.rx);
    free(sim->uart.tx);
}

static bool rx_ready(const uart_t *uart) {
    return uart->rx_head != uart->rx_tail;
}

/* Transmission takes no time, so the holding register is always empty. */
static bool irq_active(const uart_t *uart) {
    return (uart->ier & IER_RX && rx_ready(uart)) || (uart->ier & IER_THRE && uart->iir_thre);
}

void uart_update_irq(lx7_sim_t *sim) {
    external_irq(sim, UART_IRQ, irq_active(&sim->uart));
}

uint32_t uart_read(lx7_sim_t *sim, cpu_t *cpu, uint32_t reg) {
    uart_t *uart = &sim->uart;
    uint32_t value = 0;
    switch (reg) {
    case UART_RBR_THR:
        if (uart->lcr & LCR_DLAB) return uart->dll;
        if (rx_ready(uart)) value = uart->rx[uart->rx_head++];
        uart_update_irq(sim);
        return value;
    case UART_IER:
        return uart->lcr & LCR_DLAB ? uart->dlm : uart->ier;
    case UART_IIR_FCR:
        value = uart->ier & IER_RX && rx_ready(uart) ? 4 : uart->ier & IER_THRE && uart->iir_thre ? 2 : 1;
        if (value == 2) {
            uart->iir_thre = 0;
            uart_update_irq(sim);
        }
        return value | (uart->fcr & 1 ? 0xc0 : 0);
    case UART_LCR:
        return uart->lcr;
    case UART_MCR:
        return uart->mcr;
    case UART_LSR:
        if (rx_ready(uart)) {
            uart->empty_polls = 0;
            return LSR_THRE | LSR_TEMT | LSR_DR;
        }
        cpu->idle_polls++;
        if (++uart->empty_polls >= IDLE_POLLS) {
            sim->idle = true;
            cpu->until = 0;
        }
        return LSR_THRE | LSR_TEMT;
    case UART_MSR:
        return 0xb0; /* carrier, ready, clear to send */
    default:
        return uart->scr;
    }
}

void uart_write(lx7_sim_t *sim, uint32_t reg, uint32_t value) {
    uart_t *uart = &sim->uart;
    uint8_t byte = (uint8_t)value;
    switch (reg) {
    case UART_RBR_THR:
        if (uart->lcr & LCR_DLAB) {
            uart->dll = byte;
            return;
        }
        uart->empty_polls = 0;
        push(&uart->tx, &uart->tx_head, &uart->tx_tail, &uart->tx_max, &byte, 1);
        uart->iir_thre = 1;
        break;
    case UART_IER:
        if (uart->lcr & LCR_DLAB) {
            uart->dlm = byte;
            return;
        }
        if (byte & ~uart->ier & IER_THRE) uart->iir_thre = 1;
        uart->ier = byte & 15;
        break;
    case UART_IIR_FCR:
        uart->fcr = byte & 0xc9;
        if (byte & 2) uart->rx_head = uart->rx_tail;
        break;
    case UART_LCR:
        uart->lcr = byte;
        return;
    case UART_MCR:
        uart->mcr = byte & 0x1f;
        return;
    case UART_SCR:
        uart->scr = byte;
        return;
    default:
        return;
    }
    uart_update_irq(sim);
}

void lx7_uart_send(lx7_sim_t *sim, const uint8_t *data, size_t size) {
    uart_t *uart = &sim->uart;
    push(&uart->rx, &uart->rx_head, &uart->rx_tail, &uart->rx_max, data, size);
    uart->empty_polls = 0;
    uart_update_irq(sim);
}

size_t lx7_uart_receive(lx7_sim_t *sim, uint8_t *data, size_t size) {
    uart_t *uart = &sim->uart;
    size_t n = uart->tx_tail - uart->tx_head;
    if (n > size) n = size;
    if (n) memcpy(data, uart->tx + uart->tx_head, n);
    uart->tx_head += n;
    return n;
}

/* ---- decoding of the device window ---------------------------------------------------------------------------- */

enum { FPGA_DATE = 0, FPGA_FREQUENCY = 4, FPGA_LEDS = 8, FPGA_SWITCHES = 12, FPGA_RESET = 16, RESET_MAGIC = 0xdead };

static void warn_unknown(cpu_t *cpu, uint32_t address, const char *what) {
    lx7_sim_t *sim = cpu->sim;
    if (sim->warned_device == address) return;
    sim->warned_device = address;
    set_error(sim, "warning: %s device register %08x at pc %08x: nothing is simulated there", what, address,
              cpu->ip->pc);
    if (sim->warn) sim->warn(sim->warn_context, sim->message);
}

static uint32_t device_offset(uint32_t address) {
    return address - IO_CACHED < IO_SIZE ? address - IO_CACHED : address - IO_BASE;
}

uint32_t device_read(cpu_t *cpu, uint32_t address, uint32_t size) {
    uint32_t offset = device_offset(address);
    (void)size;
    if (offset - UART_OFFSET < 32) return (offset & 3) ? 0 : uart_read(cpu->sim, cpu, (offset - UART_OFFSET) >> 2);
    switch (offset - FPGA_OFFSET) {
    case FPGA_DATE:
        return 0x09272011; /* as QEMU's board */
    case FPGA_FREQUENCY:
        return (uint32_t)(cpu->sim->timing.clock_cpu_mhz * 1000000);
    case FPGA_LEDS:
        return cpu->sim->leds;
    case FPGA_SWITCHES:
        return 0;
    default:
        warn_unknown(cpu, address, "load from");
        return 0;
    }
}

void device_write(cpu_t *cpu, uint32_t address, uint32_t size, uint32_t value) {
    uint32_t offset = device_offset(address);
    (void)size;
    if (offset - UART_OFFSET < 32) {
        if (!(offset & 3)) uart_write(cpu->sim, (offset - UART_OFFSET) >> 2, value);
        return;
    }
    switch (offset - FPGA_OFFSET) {
    case FPGA_LEDS:
        cpu->sim->leds = value;
        break;
    case FPGA_RESET:
        if (value == RESET_MAGIC) {
            cpu->sim->exit_requested = true;
            cpu->until = 0;
        }
        break;
    default:
        warn_unknown(cpu, address, "store to");
        break;
    }
}
