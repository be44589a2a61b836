// SPDX-License-Identifier: Apache-2.0
// What a machine offers to the link server. A port fills one tvit_port, calls tvit_server_run() and never comes back:
//
//     static tvit_server server;
//     int main(void) { tvit_server_run(&server, &port); }
//
// and its fault handler calls tvit_server_fault(). Fields not mentioned in an initializer are 0, which is a valid
// "none" for everything but read, write, counter, name, board, counter_multiplier, counter_divisor and the arena.
#ifndef TVIT_PORT_H
#define TVIT_PORT_H

#include <stddef.h>
#include <stdint.h>

#include "tvit/protocol.h"
#include "tvit/runtime.h"

typedef struct {
    const char *name; // "sram", "flash", "psram"
    uint64_t base;
    uint32_t bytes;
} tvit_port_memory;

// One record of a traced run; read through TVIT_LINK_REGION_TRACE in this layout.
typedef struct {
    uint64_t counter; // ticks of the counter spent in the operator
    uint32_t crc;     // CRC-32 of the output tensor: its values, then its multipliers
    uint32_t operator_index;
} tvit_link_trace;

_Static_assert(sizeof(tvit_link_trace) == TVIT_LINK_TRACE_BYTES, "trace record");

typedef struct tvit_port {
    const char *name;        // "xtensa_qemu"
    const char *board;       // name of the board file, given by the build: "qemu-xtensa"
    const char *details;     // lines "key=value\n" for people, e.g. chip revision; NULL for none
    const char *boot_reason; // "power-on", "watchdog", "fault" ...; NULL when unknown
    void *user;              // first argument of every hook

    // Bytes that have arrived, at most `capacity`, without waiting; 0 when there are none.
    size_t (*read)(void *user, uint8_t *bytes, size_t capacity);
    // Send all bytes, waiting as long as it takes. Both also run inside the fault handler, so they must poll there.
    void (*write)(void *user, const uint8_t *bytes, size_t count);
    // A counter that only grows; a port whose hardware counter wraps extends it. Called at least once an operator.
    uint64_t (*counter)(void *user);
    void (*idle)(void *user);       // nothing to do: wait for a byte if the machine can; NULL to spin
    void (*keep_alive)(void *user); // called once an operator during a run, e.g. to feed a watchdog; NULL for none
    void (*reset)(void *user);      // restart the board, does not return; NULL where it can't
    // Change the rate of the line, both ways, when all that was written has left; NULL where the line has no rate.
    void (*set_baud)(void *user, uint32_t baud);
    uint32_t (*heap_used)(void *user); // bytes of heap in use; NULL where there is no heap

    uint32_t clock_hz;                   // of the core, 0 when unknown
    tvit_link_counter_unit counter_unit; // unit of counter * counter_multiplier / counter_divisor
    uint32_t counter_multiplier, counter_divisor;

    const tvit_port_memory *memories;
    uint32_t memory_count;

    const void *model;    // 16-byte aligned, readable for model_bytes; NULL for none
    uint32_t model_bytes; // the file, or the flash area it lies in
    uint32_t model_exact; // 1: model_bytes is the length of a file; 0: of an area, the header tells the file's
    void *model_ram;      // 16-byte aligned; NULL where no model may be uploaded
    uint32_t model_ram_bytes;

    void *arena; // 16-byte aligned
    uint32_t arena_bytes;
    // Larger and slower memory, 16-byte aligned, for models that do not fit the arena, which then takes the place of
    // its first bytes (tvit_init_split). NULL for none.
    void *external_arena;
    uint32_t external_arena_bytes;

    tvit_link_trace *trace; // records of a traced run; NULL for none
    uint32_t trace_capacity;

    // The cores for tvit_run(); NULL for one.
    const tvit_cores *cores;

    // The stack of the second core, low and high end; NULL where there is none or it is unknown. second_frame tells
    // below which address nothing of it is in use while the core has no work, 0 where that is all of it.
    uint8_t *second_stack_low, *second_stack_high;
    uintptr_t (*second_frame)(void *user);

    // The stack of the server's thread, low and high end, painted by the server from its low end up to its own frame.
    // NULL where it is unknown.
    uint8_t *stack_low, *stack_high;

    uint32_t static_bytes;     // .data + .bss without stack, arena and model RAM
    uint32_t code_bytes;       // .text + .rodata
    uint32_t heap_bytes;       // size of the heap, 0 for none
    uint32_t baud, most_baud;  // rates of the line: at the start, and the highest; with set_baud only
    uint32_t window_bytes;     // how many bytes may be on their way to the device; 0: one frame at a time
    uint32_t test_faults;      // 1: TEST_FAULT is armed
    uintptr_t invalid_address; // what TVIT_LINK_TEST_INVALID_LOAD reads
} tvit_port;

#endif
