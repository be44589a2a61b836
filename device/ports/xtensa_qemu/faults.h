// SPDX-License-Identifier: Apache-2.0
// What _fault_entry (start.S) stores, and the names of EXCCAUSE.
#ifndef XTENSA_QEMU_FAULTS_H
#define XTENSA_QEMU_FAULTS_H

#include <stddef.h>
#include <stdint.h>

#include "vectors.h"

typedef struct {
    uint32_t a[16];
    uint32_t vector; // VECTOR_*
    uint32_t epc1, exccause, excvaddr, depc, ps, epc6, epc7;
    uint32_t busy; // a fault is being reported
} xtensa_fault_frame;

_Static_assert(offsetof(xtensa_fault_frame, vector) == FAULT_VECTOR, "vectors.h");
_Static_assert(offsetof(xtensa_fault_frame, epc7) == FAULT_EPC7, "vectors.h");
_Static_assert(offsetof(xtensa_fault_frame, busy) == FAULT_BUSY, "vectors.h");
_Static_assert(sizeof(xtensa_fault_frame) == FAULT_FRAME_BYTES, "vectors.h");

enum { FAULT_CORES = 2 };

// By core; the program's. port_fault() gets the one of the core that faulted and reports.
extern xtensa_fault_frame fault_frames[FAULT_CORES];

// By core: address of an instruction that software executes in place of it, 0 at other times. Its faults arrive as
// double exceptions, and are its own.
extern uint32_t fault_emulated_pc[FAULT_CORES];

// Address of the instruction that faulted, as the vector tells. To be called on the core that faulted.
uint32_t fault_pc(const xtensa_fault_frame *frame);

// "LoadStoreAlignment", "double exception", "break" ...
const char *fault_text(const xtensa_fault_frame *frame);

#endif
