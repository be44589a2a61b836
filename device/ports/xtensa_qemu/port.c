// SPDX-License-Identifier: Apache-2.0
// The machine as the link server sees it.

#include "app/port.h"

#include <string.h>

#include "app/server.h"
#include "boot_parameters.h"
#include "cores.h"
#include "counter.h"
#include "faults.h"
#include "hardware.h"
#include "port_extension.h"
#include "uart.h"

// Sizes and ends, from link.ld.
extern uint8_t __text_start[], __rodata_end[], __data_start[], __bss_end[];
extern uint8_t __stack_bottom[], __stack_top[], __second_stack_bottom[], __second_stack_top[];
extern uint8_t __arena_start[], __arena_end[], __model_ram_start[], __model_ram_end[];
extern uint8_t __external_arena_start[], __external_arena_end[];
extern uint8_t __ram_end[];

enum { TRACE_RECORDS = 4096 };
enum { WINDOW_BYTES = 16384 }; // the emulator stops the sender while the UART is full
enum { UNMAPPED_ADDRESS = 0x10000000 };

// Says across a reset why it happened. Power-on leaves anything but these two.
static uint32_t reset_reason __attribute__((section(".noinit")));
enum { REASON_REQUESTED = 0x72657175, REASON_FAULT = 0x6661756c };

xtensa_fault_frame fault_frames[FAULT_CORES];

static tvit_server server;
static tvit_link_trace trace[TRACE_RECORDS];
static tvit_port_memory memories[2];
static char board_name[32];

static size_t read_bytes(void *user, uint8_t *bytes, size_t capacity) {
    (void)user;
    return uart_read(bytes, capacity);
}

static void write_bytes(void *user, const uint8_t *bytes, size_t count) {
    (void)user;
    uart_write(bytes, count);
}

static uint64_t counter(void *user) {
    (void)user;
    return counter_read();
}

static void idle(void *user) {
    (void)user;
    uart_wait();
    counter_synchronize();
}

static uintptr_t second_frame(void *user) {
    (void)user;
    return cores_idle_frame();
}

static void reset(void *user) {
    (void)user;
    reset_reason = fault_frames[0].busy || fault_frames[1].busy ? REASON_FAULT : REASON_REQUESTED;
    for (;;)
        *hardware_register(FPGA_BASE + FPGA_RESET) = FPGA_RESET_KEY;
}

static tvit_port port = {
    .name = "xtensa_qemu",
    .board = board_name,
    .read = read_bytes,
    .write = write_bytes,
    .counter = counter,
    .idle = idle,
    .reset = reset,
    .counter_multiplier = 1,
    .counter_divisor = 1,
    .memories = memories,
    .memory_count = 2,
    .model = (const void *)FLASH_BASE,
    .model_bytes = FLASH_BYTES,
    .trace = trace,
    .trace_capacity = TRACE_RECORDS,
    .window_bytes = WINDOW_BYTES,
    .test_faults = 1,
    .invalid_address = UNMAPPED_ADDRESS,
};

// "25>>5": the counter counts instructions, CCOUNT * 25 / 2^5. Without it, cycles.
static void set_counter(const char *line) {
    char text[16];
    uint32_t part[2] = {0, 0}, index = 0;
    const char *c = boot_option(line, "instructions", text, sizeof text);
    for (; c && *c; c++) {
        if (*c >= '0' && *c <= '9' && part[index] < 1000)
            part[index] = part[index] * 10 + (uint32_t)(*c - '0');
        else if (index++ || c[0] != '>' || *++c != '>')
            break;
    }
    if (!c || *c || index != 1 || !part[0] || part[1] > 10 || part[0] > 1u << part[1]) part[0] = 0;
    port.counter_unit = part[0] ? TVIT_LINK_COUNTER_INSTRUCTIONS : TVIT_LINK_COUNTER_CYCLES;
    counter_init(part[0], part[1]);
}

// "cores=1" leaves the second core of a machine with two in its stall.
static void set_cores(const char *line) {
    char text[4];
    const char *wanted = boot_option(line, "cores", text, sizeof text);
    port.cores = cores_init(wanted && wanted[0] == '1' && !wanted[1] ? 1 : TVIT_MAX_CORES);
    if (port.cores->cores == 1) return;
    port.second_stack_low = __second_stack_bottom;
    port.second_stack_high = __second_stack_top;
    port.second_frame = second_frame;
}

__attribute__((weak)) void port_extend(tvit_port *plain, tvit_server *its_server) {
    (void)plain;
    (void)its_server;
}

// Called by start.S. boot_parameters: what the loader left in a2.
_Noreturn void port_main(uint32_t boot_parameters);
_Noreturn void port_main(uint32_t boot_parameters) {
    uart_init();
    const char *line = boot_command_line(boot_parameters);
    if (!boot_option(line, "board", board_name, sizeof board_name)) memcpy(board_name, TVIT_BOARD, sizeof TVIT_BOARD);
    set_counter(line);
    set_cores(line);

    port.boot_reason = reset_reason == REASON_FAULT ? "fault" : reset_reason == REASON_REQUESTED ? "reset" : "power-on";
    reset_reason = 0;
    port.clock_hz = *hardware_register(FPGA_BASE + FPGA_CLOCK_HZ);
    memories[0] = (tvit_port_memory){"ram", RAM_BASE, (uint32_t)((uintptr_t)__ram_end - RAM_BASE)};
    memories[1] = (tvit_port_memory){"flash", FLASH_BASE, FLASH_BYTES};
    port.arena = __arena_start;
    port.arena_bytes = (uint32_t)(__arena_end - __arena_start);
    port.external_arena_bytes = (uint32_t)(__external_arena_end - __external_arena_start);
    port.external_arena = port.external_arena_bytes ? __external_arena_start : NULL;
    port.model_ram = __model_ram_start;
    port.model_ram_bytes = (uint32_t)(__model_ram_end - __model_ram_start);
    port.stack_low = __stack_bottom;
    port.stack_high = __stack_top;
    port.static_bytes = (uint32_t)(__bss_end - __data_start);
    port.code_bytes = (uint32_t)(__rodata_end - __text_start);
    port_extend(&port, &server);
    tvit_server_run(&server, &port);
}

// Called by start.S on a stack of its own.
_Noreturn void port_fault(const xtensa_fault_frame *frame);
_Noreturn void port_fault(const xtensa_fault_frame *frame) {
    const tvit_fault fault = {
        .cause = frame->exccause,
        .core = (uint32_t)(frame - fault_frames),
        .pc = fault_pc(frame),
        .address = frame->excvaddr,
        .text = fault_text(frame),
    };
    port.idle = NULL; // sleeping needs interrupts
    tvit_server_fault(&server, &fault);
}
