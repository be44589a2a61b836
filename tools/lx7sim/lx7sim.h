/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lx7sim: instruction-set simulator of the ESP32-S3's Xtensa LX7 with a cycle model.
 *
 * It boots the ELF files that QEMU's machine kc705-nommu boots: same memory map, UART, vectors, interrupt
 * numbers (core de212) and MX interrupt distributor, but with the instructions of the S3's core. On top of
 * that map a TOML file says which address range is timed as SRAM, as flash or PSRAM behind the caches, or as
 * a device.
 *
 * All functions that can fail return 0 on success and -1 on failure; lx7_message() then holds one line.
 * A simulator belongs to one thread at a time.
 */
#ifndef LX7SIM_H
#define LX7SIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LX7_MAX_CORES = 2, LX7_COMMAND_LINE = 256 };

typedef struct lx7_sim lx7_sim_t;

/* Why lx7_run() came back. */
typedef enum lx7_stop {
    LX7_STOP_BUDGET = 0,     /* the cycles asked for have passed */
    LX7_STOP_EXIT = 1,       /* the program reset the board (0xdead to the FPGA's reset register) */
    LX7_STOP_IDLE = 2,       /* it waits for UART input that is not there, or every core sleeps in WAITI */
    LX7_STOP_MAX_CYCLES = 3, /* the limit of option max-cycles */
    LX7_STOP_ERROR = 4,      /* lx7_message() says what and where */
    LX7_STOP_BREAK = 5,      /* a trace call-back asked for it */
} lx7_stop_t;

/* Why an instruction did not issue in the cycle after its predecessor. */
typedef enum lx7_stall {
    LX7_STALL_LOAD,      /* operand still being loaded */
    LX7_STALL_MUL,       /* operand from MUL16, MULL, MULUH, MULSH */
    LX7_STALL_DIV,       /* operand from the divider, or the divider busy */
    LX7_STALL_FPU,       /* operand from the floating-point unit */
    LX7_STALL_SREG,      /* operand from RSR, RUR, RER */
    LX7_STALL_PIE,       /* vector or accumulator operand */
    LX7_STALL_PIE_UNIT,  /* SRCMB, SRS or FFT right after a MAC-class instruction */
    LX7_STALL_BRANCH,    /* pipeline refilled after a taken branch, jump, call or return (booked there) */
    LX7_STALL_FETCH,     /* branch target that crosses a fetch word (booked at the target) */
    LX7_STALL_LOOP,      /* loop set-up, and loop-back of a body longer than the loop buffer */
    LX7_STALL_ICACHE,    /* instruction cache miss */
    LX7_STALL_DCACHE,    /* data cache miss of a load */
    LX7_STALL_DCACHE_WR, /* data cache miss of a store, and dirty lines written back */
    LX7_STALL_BUS,       /* the flash/PSRAM bus was busy with the other core or a write-back */
    LX7_STALL_UNALIGNED, /* access that crosses a 16-byte boundary */
    LX7_STALL_SRAM,      /* data access to the SRAM block that the next instructions are fetched from */
    LX7_STALL_DEVICE,    /* device register */
    LX7_STALL_SYNC,      /* ISYNC, MEMW, S32C1I, RSYNC ... */
    LX7_STALL_EXCEPTION, /* entry of an exception or interrupt (booked at the interrupted instruction) */
    LX7_STALL_SLEEP,     /* WAITI, run-stall */
    LX7_STALL_COUNT
} lx7_stall_t;

/* How a memory access is timed. */
typedef enum lx7_region_class {
    LX7_REGION_SRAM,
    LX7_REGION_FLASH,
    LX7_REGION_PSRAM,
    LX7_REGION_DEVICE,
    LX7_REGION_CLASSES
} lx7_region_class_t;

/* What one instruction address has seen on one core, whatever instructions were stored there in the meantime.
 * cycles = count + the sum of stall[]. */
typedef struct lx7_pc {
    uint32_t pc;
    uint32_t length;                     /* bytes of the instruction */
    uint64_t count;                      /* completed executions */
    uint64_t taken;                      /* of these, branches taken, jumps, calls, returns */
    uint64_t stall[LX7_STALL_COUNT];     /* cycles waited, by cause */
    uint64_t access[LX7_REGION_CLASSES]; /* loads and stores, by class of the address */
    uint64_t bytes[LX7_REGION_CLASSES];  /* bytes they moved between core and memory or cache */
    uint64_t icache_miss, dcache_miss;   /* lines filled for this instruction */
    uint64_t mac;                        /* int8/int16 multiply-accumulates of a PIE instruction */
} lx7_pc_t;

/* Totals of one core. */
typedef struct lx7_totals {
    uint64_t cycles;
    uint64_t instructions; /* completed */
    uint64_t stall[LX7_STALL_COUNT];
    uint64_t access[LX7_REGION_CLASSES];
    uint64_t bytes[LX7_REGION_CLASSES];
    uint64_t icache_access, icache_miss, dcache_access, dcache_miss, dcache_writeback;
    uint64_t exceptions, interrupts, window_overflows, window_underflows;
    uint64_t idle_polls; /* UART status reads that found no input */
    uint64_t mac;        /* int8/int16 multiply-accumulates done by PIE instructions */
} lx7_totals_t;

/* ---- life ---------------------------------------------------------------------------------------------- */

lx7_sim_t *lx7_new(void); /* NULL when the address space cannot be reserved */
void lx7_free(lx7_sim_t *sim);

/* The latest error, warning or stop in one line; "" at first. */
const char *lx7_message(const lx7_sim_t *sim);

/* Called with one line about what is no error but nearly always a bug: a misaligned vector access, an
 * instruction executed without ISYNC after it was stored (both once an instruction address), a device register that is
 * not simulated. Without it the line is only in lx7_message(). */
typedef void (*lx7_warning_fn)(void *context, const char *line);
void lx7_set_warning(lx7_sim_t *sim, lx7_warning_fn fn, void *context);

/* Reads the timing parameters and regions (esp32s3.toml). Must come before lx7_load_elf(). */
int lx7_load_config(lx7_sim_t *sim, const char *path);

/* Changes one parameter by its TOML name, "section.key"; before lx7_load_elf(). */
int lx7_set_parameter(lx7_sim_t *sim, const char *name, int64_t value);
int lx7_get_parameter(const lx7_sim_t *sim, const char *name, int64_t *value);
/* The name of parameter i, NULL after the last one. */
const char *lx7_parameter_name(int i);

/*
 * Options, before lx7_load_elf():
 *   "cores" 1..2; "pie" 0/1: execute PIE instructions (else they raise IllegalInstruction, as on a core
 *   without them); "trap" 0/1: deliver accesses outside the memory map as exceptions to the program instead of
 *   stopping; "max-cycles" N, 0 = none.
 */
int lx7_set_option(lx7_sim_t *sim, const char *name, int64_t value);

/* Contents of the flash window at 0x70000000 and 0x90000000, at most 128 MB; 0xff to the end of its last 64 KB, then 0.
 */
int lx7_load_flash(lx7_sim_t *sim, const char *path);
/* Loads an ELF file's segments and resets the cores, as QEMU's -kernel does. */
int lx7_load_elf(lx7_sim_t *sim, const char *path);
/* The command line in the boot parameters (QEMU's -append), before lx7_load_elf(); at most LX7_COMMAND_LINE - 1 bytes.
 */
int lx7_set_command_line(lx7_sim_t *sim, const char *text);
/* Power-on: registers, caches, devices, UART queues, counters; memory is kept. */
void lx7_reset(lx7_sim_t *sim);
/* What a board reset does in QEMU: registers and devices are reset, what the ELF file initializes is loaded again;
 * other memory, CCOUNT, the counters and bytes on the UART's line are kept. Meant for after LX7_STOP_EXIT. */
int lx7_reboot(lx7_sim_t *sim);

/* ---- running ------------------------------------------------------------------------------------------- */

/* Runs about `cycles` more cycles of core 0 (0: without limit). */
lx7_stop_t lx7_run(lx7_sim_t *sim, uint64_t cycles);

/* UART: bytes to the program (all are queued), and what it has printed (up to size, returns how many). */
void lx7_uart_send(lx7_sim_t *sim, const uint8_t *data, size_t size);
size_t lx7_uart_receive(lx7_sim_t *sim, uint8_t *data, size_t size);

/* ---- looking in ---------------------------------------------------------------------------------------- */

int lx7_read_memory(lx7_sim_t *sim, uint32_t address, void *data, size_t size);
int lx7_write_memory(lx7_sim_t *sim, uint32_t address, const void *data, size_t size);

/* A register by name: "pc", "a0".."a15", "ar0".."ar63", "f0".."f15" (bits), special registers ("ps", "sar" ...).
 * Returns 0 for an unknown name. */
uint32_t lx7_register(const lx7_sim_t *sim, int core, const char *name);
/* PIE: "q0".."q7" (16 bytes), "qacc_l", "qacc_h" (20 bytes), "accx" (5 bytes), "ua_state" (16 bytes); returns the
 * number of bytes written to data, 0 for an unknown name. */
size_t lx7_vector_register(const lx7_sim_t *sim, int core, const char *name, uint8_t *data);
/* All registers as text; returns the full length. */
size_t lx7_dump_registers(const lx7_sim_t *sim, int core, char *text, size_t size);

void lx7_get_totals(const lx7_sim_t *sim, int core, lx7_totals_t *totals);
/* Executed instruction addresses of one core in ascending order: fills rows[0..max-1], returns how many there are. */
size_t lx7_get_pcs(const lx7_sim_t *sim, int core, lx7_pc_t *rows, size_t max);
void lx7_clear_counters(lx7_sim_t *sim);
const char *lx7_stall_name(lx7_stall_t cause);
const char *lx7_region_name(lx7_region_class_t class_id);

/* Text of the instruction at an address ("add a2, a3, a4"); returns its length in bytes, 0 when unknown. */
int lx7_disassemble(lx7_sim_t *sim, uint32_t address, char *text, size_t size);

/* One issued instruction, for traces and schedules. */
typedef struct lx7_event {
    uint32_t pc;
    uint32_t core;
    uint64_t cycle;  /* when it issues */
    uint32_t waited; /* operand and unit stalls before it */
    uint32_t cause;  /* lx7_stall_t of the longest of them; LX7_STALL_COUNT when waited is 0 */
} lx7_event_t;

/* Called before each instruction executes; non-zero stops the run with LX7_STOP_BREAK. NULL ends tracing. Slow. */
typedef int (*lx7_trace_fn)(void *context, const lx7_event_t *event);
void lx7_set_trace(lx7_sim_t *sim, lx7_trace_fn fn, void *context);

#ifdef __cplusplus
}
#endif

#endif
