// SPDX-License-Identifier: Apache-2.0
#include "faults.h"

// Xtensa ISA Reference Manual, table 4-64 (exception causes).
static const char *const causes[] = {
    [0] = "IllegalInstruction",     [1] = "Syscall",
    [2] = "InstructionFetchError",  [3] = "LoadStoreError",
    [4] = "Level1Interrupt",        [5] = "Alloca",
    [6] = "IntegerDivideByZero",    [8] = "Privileged",
    [9] = "LoadStoreAlignment",     [12] = "InstrPIFDataError",
    [13] = "LoadStorePIFDataError", [14] = "InstrPIFAddrError",
    [15] = "LoadStorePIFAddrError", [16] = "InstTLBMiss",
    [17] = "InstTLBMultiHit",       [18] = "InstFetchPrivilege",
    [20] = "InstFetchProhibited",   [24] = "LoadStoreTLBMiss",
    [25] = "LoadStoreTLBMultiHit",  [26] = "LoadStorePrivilege",
    [28] = "LoadProhibited",        [29] = "StoreProhibited",
};

uint32_t fault_emulated_pc[FAULT_CORES];

static uint32_t emulated_pc(void) {
    uint32_t core;
    __asm__("rsr.prid %0" : "=a"(core));
    return fault_emulated_pc[core % FAULT_CORES];
}

static int is_emulated(const xtensa_fault_frame *frame) {
    return frame->vector == VECTOR_DOUBLE && emulated_pc() != 0;
}

uint32_t fault_pc(const xtensa_fault_frame *frame) {
    if (is_emulated(frame)) return emulated_pc();
    switch (frame->vector) {
    case VECTOR_DOUBLE:
        return frame->depc;
    case VECTOR_DEBUG:
        return frame->epc6;
    case VECTOR_NMI:
        return frame->epc7;
    default:
        return frame->epc1;
    }
}

const char *fault_text(const xtensa_fault_frame *frame) {
    switch (is_emulated(frame) ? VECTOR_USER : frame->vector) {
    case VECTOR_USER: {
        const char *text = frame->exccause < sizeof causes / sizeof *causes ? causes[frame->exccause] : NULL;
        return text ? text : "exception of unknown cause";
    }
    case VECTOR_DOUBLE:
        return "double exception";
    case VECTOR_DEBUG:
        return "debug exception (break instruction)";
    case VECTOR_NMI:
        return "non-maskable interrupt";
    case VECTOR_WINDOW:
        return "window exception (code for another ABI)";
    default:
        return "unexpected interrupt";
    }
}
