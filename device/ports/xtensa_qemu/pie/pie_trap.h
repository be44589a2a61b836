// SPDX-License-Identifier: Apache-2.0
// The vector instructions of the ESP32-S3 (PIE) on a core without them: each raises IllegalInstruction, is executed by
// the model of device/pie_model on the state of this core, and the program goes on behind it. Linking pie_trap.S and
// pie_trap.c is all that it takes; a build without them reports such an instruction as a fault.
//
// Works in code of either ABI, at the end of zero-overhead loops, and between interrupts, which stay masked while an
// instruction is emulated. Not in interrupt handlers that run with PS.EXCM set, where no core takes exceptions.
#ifndef XTENSA_QEMU_PIE_TRAP_H
#define XTENSA_QEMU_PIE_TRAP_H

// Layout of pie_trap_core, for the assembler.
#define PIE_TRAP_SAR 64
#define PIE_TRAP_PC 68
#define PIE_TRAP_STACK_TOP 2304 // a multiple of 256, for ADDMI

#define PIE_TRAP_CORES 2

#ifndef __ASSEMBLER__

#include <stdint.h>

#include "pie_model/pie_model.h"

enum { PIE_TRAP_CACHE_LINES = 1024, PIE_TRAP_PLACES = 16 };

// A decoded instruction. Code may change under us (a loader, a test), so the bytes are compared, too.
typedef struct {
    uint32_t pc, word;
    pie_execute_fn execute;
    pie_insn_t insn;
} pie_trap_line;

// An instruction that accessed an address that is no multiple of the access, the first time.
typedef struct {
    uint32_t pc, address, size;
} pie_trap_place;

// One of each core, and nobody else's: two cores may trap at the same time.
typedef struct {
    uint32_t a[16];
    uint32_t sar, pc;
    uint8_t stack[PIE_TRAP_STACK_TOP - 72]; // of the emulation: the program's may be anywhere
    pie_core_t core;
    pie_state_t state;
    uint32_t f[16];        // FPU registers that vector loads reach, where the core has none
    uint32_t *emulated_pc; // this core's fault_emulated_pc
    uint32_t executed;
    uint32_t misaligned; // accesses that the chip rounds down
    uint32_t place_count;
    pie_trap_place places[PIE_TRAP_PLACES];
    pie_trap_line lines[PIE_TRAP_CACHE_LINES];
} pie_trap_core;

_Static_assert(offsetof(pie_trap_core, sar) == PIE_TRAP_SAR, "for the assembler");
_Static_assert(offsetof(pie_trap_core, pc) == PIE_TRAP_PC, "for the assembler");
_Static_assert(offsetof(pie_trap_core, stack) + sizeof((pie_trap_core *)0)->stack == PIE_TRAP_STACK_TOP, "likewise");

extern pie_trap_core pie_trap_cores[PIE_TRAP_CORES];

// The vector registers start as zero at the first instruction; call this to use them before.
void pie_trap_reset(pie_trap_core *core);

// How many places there are, all of them readable, also by another core.
uint32_t pie_trap_places(const pie_trap_core *core);

#endif
#endif
