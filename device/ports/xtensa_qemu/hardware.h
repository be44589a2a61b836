// SPDX-License-Identifier: Apache-2.0
// The machine: QEMU's kc705-nommu with the de212 core, as far as this port touches it. A simulator that boots the same
// ELF implements this page: RAM, flash, UART, the FPGA's registers, PRID = number of the core, a2 = boot parameters or
// 0.
#ifndef XTENSA_QEMU_HARDWARE_H
#define XTENSA_QEMU_HARDWARE_H

#ifndef __ASSEMBLER__
#include <stdint.h>
#endif

// CFI flash on the bus without the cache attribute: the model file starts at offset 0.
#define FLASH_BASE 0x90000000u
#define FLASH_BYTES 0x08000000u

// 16550 UART, a register every four bytes.
#define UART_BASE 0x9d050020u
#define UART_DATA 0x00u // receive and transmit FIFO; divisor low with LCR.DLAB
#define UART_IER 0x04u  // divisor high with LCR.DLAB
#define UART_IER_RECEIVED 0x01u
#define UART_FCR 0x08u
#define UART_LCR 0x0cu
#define UART_MCR 0x10u
#define UART_LSR 0x14u
// FIFOs on; QEMU lets as many bytes in as the trigger level says, and interrupts when so many are there.
#define UART_FCR_ON_TRIGGER1 0x01u
#define UART_FCR_ON_TRIGGER14 0xc1u
#define UART_FCR_ON_CLEAR_TRIGGER14 0xc7u // and emptied
#define UART_LCR_8N1 0x03u
#define UART_MCR_DTR_RTS_INTERRUPT 0x0bu
#define UART_LSR_DATA_READY 0x01u
#define UART_LSR_TRANSMIT_EMPTY 0x20u

#define UART_INTERRUPT 0 // number of the core's interrupt, level 1

// With two cores the interrupts of devices and of the cores go through the MX interrupt distributor, whose registers
// are external registers (RER, WER), and arrive under other numbers.
#define MX_UART_INTERRUPT 3
#define MX_IPI_INTERRUPT 0            // of group 0, as MIPIPART is after reset
#define MX_IPI_CAUSE 0x100            // and the core's number: its groups that are pending, cleared by writing 1
#define MX_IPI_SET 0x140              // and the group: to the cores whose bits are written
#define MX_SYSTEM_CONFIGURATION 0x1a0 // bits 18 and up: cores - 1; 0 on a machine with one core
#define MX_RUN_STALL 0x200            // a bit for each core that is stalled
#define MX_RESET_VECTOR 0x40000400    // of cores other than 0

#define FPGA_BASE 0x9d020000u
#define FPGA_CLOCK_HZ 0x04u
#define FPGA_RESET 0x10u
#define FPGA_RESET_KEY 0xdeadu

// System ROM and RAM, where a loader may leave its boot parameters.
#define SYSROM_BASE 0x50000000u
#define SYSROM_BYTES 0x04000000u
#define RAM_BASE 0x60000000u

#ifndef __ASSEMBLER__

static inline volatile uint32_t *hardware_register(uint32_t address) {
    return (volatile uint32_t *)(uintptr_t)address;
}

static inline uint32_t read_ccount(void) {
    uint32_t value;
    __asm__ volatile("rsr.ccount %0" : "=a"(value)::"memory");
    return value;
}

// Registers of the interrupt distributor (external_registers.S). Where there is none they read as 0.
uint32_t read_external_register(uint32_t address);
void write_external_register(uint32_t address, uint32_t value);

#endif
#endif
