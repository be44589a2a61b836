/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside lx7sim: the state of a core, predecoded instructions, memory and timing.
 *
 * Memory is one flat reservation of 4 GB, so that host address = mem + guest address; ptab[address >> 12] says
 * what a page may do fast. Each core predecodes code pages into arrays with one insn_t for every byte of the
 * page; an instruction's handler is a label inside exec.c. Timing is a scoreboard: ready[resource] is the cycle from
 * which a register may be read; an instruction looks at it only while cyc < pend, the latest of those cycles.
 */
#ifndef LX7_CORE_H
#define LX7_CORE_H

#include "lx7sim.h"
#include "pie_model.h"

#include <stdbool.h>

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

enum {
#define I(id, mnemonic, operands, class_id) OP_##id,
#define C(id, mnemonic, operands, class_id) OP_##id,
#include "ops.def"
#undef I
#undef C
    OP_COUNT
};

/* ---- parameters ---------------------------------------------------------------------------------------- */

/* Every number of the cycle model; the TOML key is "section.name". See README.md for meaning and source. */
typedef struct timing {
#define PARAMETER(section, name, low, high) int64_t section##_##name;
#include "parameters.def"
#undef PARAMETER
} timing_t;

enum { MAX_REGIONS = 16 };

typedef struct region {
    char name[24];
    uint32_t start;
    uint64_t size;
    lx7_region_class_t class_id;
} region_t;

/* ---- scoreboard ---------------------------------------------------------------------------------------- */

enum {
    RES_A = 0,
    RES_F = 16,
    RES_Q = 32,
    RES_ACCX = 40,
    RES_QACC_L,
    RES_QACC_H,
    RES_SAR,
    RES_SAR_BYTE,
    RES_UA_STATE,
    RES_FFT_BIT_WIDTH,
    RES_GPIO_OUT,
    RES_GPIO_IN,
    RES_B,
    RES_MAC_UNIT, /* PIE multiply/add unit, second stage */
    RES_DIV_UNIT,
    RES_NONE = 63, /* always ready */
    RES_COUNT = 64,
    SRC_LATE = 0x80, /* in insn_t.src: needed one stage later */
};

/* ---- predecoded instructions ---------------------------------------------------------------------------- */

enum {
    INSN_STRIDE = 64, /* sizeof(insn_t) */
    PAGE_BITS = 12,
    PAGE_BYTES = 1 << PAGE_BITS,
    PAGE_TAIL = 4, /* entries past the end: where an instruction at the end of the page falls through to */
};

/* insn_t.flags: what a taken transfer to this instruction has to look at */
enum {
    INSN_SPLIT = 1,     /* crosses a fetch word */
    INSN_CACHED = 2,    /* lies behind the instruction cache */
    INSN_UNDECODED = 4, /* entry still to be decoded */
};

/* insn_t.warned: what has been told about this address; kept when it is decoded again */
enum { WARNED_MISALIGNED = 1, WARNED_STALE = 2 };

typedef struct insn {
    const void *op; /* handler: label in exec.c */
    uint64_t count; /* completed executions */
    uint64_t taken; /* taken transfers */
    uint32_t pc;
    int32_t imm;     /* immediate, or target address */
    uint8_t r, s, t; /* operands, see ops.def */
    uint8_t quad;    /* highest address register used, divided by four (window check) */
    uint8_t src[4];  /* resources read */
    uint8_t opid;
    uint8_t lat; /* cycles from issue to result; of control transfers: refill cycles when taken */
    uint8_t dst; /* resource written by op_... functions with lat > 1 */
    uint8_t flags;
    int16_t next;   /* length * INSN_STRIDE */
    uint8_t cause;  /* lx7_stall_t of who waits for dst */
    uint8_t warned; /* WARNED_... */
    int32_t rel;    /* distance to the target in the same page in bytes of insn_t, or 0 */
    uint32_t extra; /* 1 + index of its rarely used counters, 0 = none yet */
    union {
        int64_t aux; /* second immediate */
        struct pie_op *pie;
    };
} insn_t;

_Static_assert(sizeof(insn_t) == INSN_STRIDE, "insn_t is one cache line");
_Static_assert(OP_COUNT <= 256, "opid is a byte");

typedef struct code_page {
    insn_t insn[PAGE_BYTES + PAGE_TAIL];
} code_page_t;

/* Rarely used counters of one instruction, in a pool. */
typedef struct extra {
    uint64_t stall[LX7_STALL_COUNT];
    uint64_t access[LX7_REGION_CLASSES]; /* SRAM stays 0: it is what the others leave of count */
    uint64_t icache_miss, dcache_miss;
    lx7_pc_t *past; /* of instructions that were overwritten, or NULL */
} extra_t;

/* One decoded PIE instruction with its timing; from a pool. */
typedef struct pie_op {
    struct pie_op *next; /* in the list of unused ones */
    pie_insn_t insn;
    pie_execute_fn execute;
    uint8_t n_use, n_def;
    uint8_t use[14];     /* resource | SRC_LATE */
    uint8_t def[14];     /* resources with a latency above 1 */
    uint8_t def_lat[14]; /* cycles from issue until a stage-1 reader may issue */
    uint8_t def_why[14]; /* lx7_stall_t of who waits for it */
    uint8_t load_bytes, store_bytes;
    uint8_t macs; /* multiply-accumulates per execution */
    bool memory;  /* does nothing but load or store */
} pie_op_t;

/* ---- caches and bus ------------------------------------------------------------------------------------ */

typedef struct cache {
    uint32_t sets, ways, line_bits;
    uint32_t *tag;     /* [sets][ways]: line address | valid bit 0, most recently used first */
    uint8_t *dirty;    /* [sets][ways] */
    uint64_t *arrival; /* [sets][ways]: the cycle in which an autoloaded line is there, 0 for others */
    uint32_t autoload_lines, autoload_trigger;
    uint64_t access, miss, writeback;
} cache_t;

enum { BUS_SLOTS = 32 }; /* autoload alone books up to four lines and write-backs for each cache and core */

/* The SPI0 bus that flash and PSRAM share: the latest busy intervals, so that a core running a little behind the
 * other finds the gap it would have found. */
typedef struct bus {
    uint64_t start[BUS_SLOTS], end[BUS_SLOTS];
    unsigned head;
} bus_t;

/* ---- cores --------------------------------------------------------------------------------------------- */

enum { N_AR = 64, N_TIMER = 3, N_LEVEL = 7, EXCM_LEVEL = 3, NMI_LEVEL = 7, DEBUG_LEVEL = 6 };

/* PS fields */
#define PS_INTLEVEL 0xfu
#define PS_EXCM 0x10u
#define PS_UM 0x20u
#define PS_RING 0xc0u
#define PS_OWB 0xf00u
#define PS_OWB_SHIFT 8
#define PS_CALLINC 0x30000u
#define PS_CALLINC_SHIFT 16
#define PS_WOE 0x40000u

/* EXCCAUSE */
enum {
    CAUSE_ILLEGAL = 0,
    CAUSE_SYSCALL = 1,
    CAUSE_LEVEL1 = 4,
    CAUSE_ALLOCA = 5,
    CAUSE_DIVIDE = 6,
    CAUSE_FETCH_ADDRESS = 14,
    CAUSE_DATA_ADDRESS = 15,
    CAUSE_COPROCESSOR0 = 32,
};

/* What a function behind C(...) tells exec.c. */
typedef enum action {
    ACT_NEXT,     /* go on with the following instruction */
    ACT_TAKEN,    /* completed; go on at cpu->target, refill cycles insn->lat */
    ACT_REDIRECT, /* not completed (exception, window overflow): go on at cpu->target */
    ACT_RETARGET, /* completed; go on at cpu->target with no cost of its own */
    ACT_STOP,     /* not completed; leave exec() with cpu->stop */
} action_t;

struct lx7_sim;

typedef struct cpu {
    uint32_t a[16]; /* the visible window */
    uint64_t ready[RES_COUNT];
    uint8_t why[RES_COUNT]; /* lx7_stall_t of who waits for it */
    uint64_t cyc, pend, until;
    insn_t *ip, *lend_ip, *lbeg_ip;
    uint32_t lbeg, lend, lcount, sar;
    uint32_t ps, b;
    bool loop_small;  /* the body fits into the loop buffer */
    bool fault;       /* the latest access failed; target or stop is set */
    uint8_t win_safe; /* register quads that need no window overflow: 4 = all */
    uint8_t index;
    uint32_t target; /* where an exception or transfer goes on */
    lx7_stop_t stop;
    struct lx7_sim *sim;
    code_page_t **pages; /* [1 << 20] */

    uint32_t ar[N_AR], wb, ws;
    uint32_t f[16], fcr, fsr;
    uint32_t vecbase, epc[8], eps[8], excsave[8], depc, exccause, excvaddr, debugcause;
    uint32_t intset, intenable, ccompare[N_TIMER], scompare1, cpenable, threadptr;
    uint32_t misc[4], memctl, atomctl, ddr, ibreakenable, ibreaka[2], dbreaka[2], dbreakc[2], icount, icountlevel;
    uint32_t litbase;
    uint32_t itlb[8], dtlb[8];
    uint64_t ccount_base;    /* CCOUNT = cyc + ccount_base */
    uint64_t timer[N_TIMER]; /* cycle at which CCOUNT reaches CCOMPARE next */
    bool sleeping, stalled;  /* WAITI; run-stall of the MX distributor */
    bool fpu_used;           /* the host's sticky floating-point flags are this core's */
    uint64_t cyc_base;       /* cyc at which the counters were cleared */

    pie_state_t pie;
    pie_core_t pie_core;

    uint8_t **synchronized; /* [1 << 20]: the page as at the last ISYNC; NULL: not stored into since then */
    uint32_t *stored;       /* the pages that have such a copy */
    uint32_t n_stored, max_stored;

    extra_t *extra;
    uint32_t n_extra, max_extra;
    pie_op_t *unused_pie; /* of overwritten instructions */
    uint64_t exceptions, interrupts, overflows, underflows;
    uint64_t idle_polls;
} cpu_t;

enum {
    /* ptab[]: low bits lx7_region_class_t */
    PF_CLASS = 3,
    PF_LOAD_SLOW = 4,
    PF_STORE_SLOW = 8,
    PF_CODE = 16, /* holds decoded instructions: stores go the slow way to drop them */
    PF_MAPPED = 32,
    PF_READ_ONLY = 64,
    PF_DEVICE = 128,
};

typedef struct uart {
    uint8_t ier, iir_thre, fcr, lcr, mcr, scr, dll, dlm;
    uint8_t *rx, *tx;
    size_t rx_head, rx_tail, rx_max, tx_head, tx_tail, tx_max;
    unsigned empty_polls; /* status reads in a row that found no input */
} uart_t;

typedef struct mx {
    uint32_t ext_irq, mieng, miasg, mirout[32], mipipart, runstall;
    uint32_t mipicause[LX7_MAX_CORES], lines[LX7_MAX_CORES], ccon[LX7_MAX_CORES];
} mx_t;

struct lx7_sim {
    uint8_t *mem;
    uint8_t *ptab;        /* [1 << 20] */
    uint8_t **load_pages; /* for the PIE model: host page, or NULL where an access must go the slow way */
    uint8_t **store_pages;
    cpu_t *cpu[LX7_MAX_CORES];
    int cores;
    bool pie, trap, loaded, configured;
    uint64_t max_cycles;
    uint32_t entry;
    uint8_t *elf; /* the program file */
    size_t elf_size;
    char command_line[LX7_COMMAND_LINE];
    timing_t timing;
    region_t region[MAX_REGIONS];
    int n_regions;
    int flash_fd;
    uint64_t flash_size;
    uint64_t fill_cycles_i[LX7_REGION_CLASSES], fill_cycles_d[LX7_REGION_CLASSES], writeback_cycles;
    cache_t icache, dcache;
    bus_t bus;
    uart_t uart;
    mx_t mx;
    uint32_t leds;
    bool exit_requested, idle, rearranged;
    uint32_t warned_device;
    uint8_t *spare_copies; /* of pages, for cpu_t.synchronized */
    char message[320];
    lx7_trace_fn trace;
    void *trace_context;
    lx7_warning_fn warn;
    void *warn_context;
    const void *const *labels; /* handlers by opid, from exec.c */
};

/* ---- memory.c ------------------------------------------------------------------------------------------ */

int memory_init(lx7_sim_t *sim);
void memory_free(lx7_sim_t *sim);
void memory_map_regions(lx7_sim_t *sim);
int memory_load_flash(lx7_sim_t *sim, const char *path);
bool memory_mapped(const lx7_sim_t *sim, uint32_t address, uint64_t size);
void memory_mark_code(lx7_sim_t *sim, uint32_t address);
/* Finds out again what may be done fast; after stale_watched() changed. */
void memory_update_page(lx7_sim_t *sim, uint32_t page);
/* Accesses that are not plain aligned SRAM: devices, cached memory, boundary crossings, errors. */
uint32_t slow_load(cpu_t *cpu, insn_t *ip, uint32_t address, uint32_t size);
void slow_store(cpu_t *cpu, insn_t *ip, uint32_t address, uint32_t size, uint32_t value);
void memory_init_pie_bus(cpu_t *cpu);

/* ---- stale.c ------------------------------------------------------------------------------------------- */

/* Whether the next store into a page has to come through stale_before_store(). */
bool stale_watched(const lx7_sim_t *sim, uint32_t page);
void stale_before_store(lx7_sim_t *sim, uint32_t address, uint32_t size);
/* ISYNC; also when the core starts. */
void stale_synchronize(cpu_t *cpu);
/* The host's own writes, once they are in memory, need no ISYNC. */
void stale_host_write(lx7_sim_t *sim, uint32_t address, size_t size);
/* Warns when insn, decoded for execution, was stored since the core's last ISYNC. */
void stale_check(cpu_t *cpu, insn_t *insn);
void stale_free(lx7_sim_t *sim);

/* ---- cache.c ------------------------------------------------------------------------------------------- */

int cache_configure(lx7_sim_t *sim);
void cache_free(lx7_sim_t *sim);
void cache_reset(lx7_sim_t *sim);
/* Time for the data access; adds to cpu->cyc and books the stalls. */
void cache_data(cpu_t *cpu, insn_t *ip, uint32_t address, uint32_t size, lx7_region_class_t class_id, bool store);
void cache_fetch(cpu_t *cpu, insn_t *ip, uint32_t address, lx7_region_class_t class_id);

/* ---- decode.c, code.c ---------------------------------------------------------------------------------- */

/* Decodes the bytes at insn->pc into r, s, t, imm, aux, opid and next; no labels, no scoreboard. */
void decode_fields(const uint8_t *bytes, insn_t *insn);
/* Fills the whole entry. */
void decode_insn(cpu_t *cpu, insn_t *insn);
insn_t *code_lookup(cpu_t *cpu, uint32_t pc);
/* Memory accesses the instruction has made, and the bytes each one moves. */
uint64_t insn_accesses(const insn_t *insn, uint64_t *width);
void code_drop(lx7_sim_t *sim, uint32_t address, uint32_t size);
int disassemble(lx7_sim_t *sim, uint32_t address, char *text, size_t size);

/* ---- exec.c -------------------------------------------------------------------------------------------- */

/* Runs until cpu->cyc >= cpu->until or cpu->stop is set; with cpu NULL only publishes the labels in *labels. */
void exec(cpu_t *cpu, const void *const **labels);

/* ---- timing.c ------------------------------------------------------------------------------------------ */

extra_t *insn_extra(cpu_t *cpu, insn_t *ip);
/* Forgets the rarely used counters of all instructions; their insn_t.extra must be cleared, too. */
void extra_clear(cpu_t *cpu);
/* Books n stall cycles; does not move cpu->cyc. */
void book_stall(cpu_t *cpu, insn_t *ip, uint64_t n, lx7_stall_t cause);

enum { ATTENTION_STOP = 1, ATTENTION_REDIRECT = 2 };
#define PEND_ALWAYS (UINT64_MAX / 2)

/* The careful path before an instruction: operands not ready, window overflow, tracing. Moves cpu->cyc; returns
 * ATTENTION_... when the instruction must not execute. */
int attention(cpu_t *cpu, insn_t *ip);
/* Sets cpu->pend after the window or the tracing changed. */
void update_attention(cpu_t *cpu);

/* ---- exception.c, window.c, sysops.c, fpu.c -------------------------------------------------------------- */

void raise_exception(cpu_t *cpu, uint32_t pc, uint32_t cause);
void raise_address(cpu_t *cpu, insn_t *ip, uint32_t address, uint32_t size, const char *what);
void stop_error(cpu_t *cpu, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Takes the highest pending interrupt above the current level; true when it did (cpu->target is the vector). */
bool take_interrupt(cpu_t *cpu, uint32_t pc);
bool interrupt_pending(const cpu_t *cpu);
void set_interrupt_line(cpu_t *cpu, unsigned number, bool active);
void update_timers(cpu_t *cpu);
uint64_t next_timer(const cpu_t *cpu);
uint32_t read_ccount(const cpu_t *cpu);
/* LBEG/LEND/LCOUNT or PS.EXCM changed. */
void update_loop(cpu_t *cpu);
/* PS.WOE, PS.EXCM, WINDOWBASE or WINDOWSTART changed. */
void update_window(cpu_t *cpu);
void rotate_window(cpu_t *cpu, uint32_t new_base);
void save_window(cpu_t *cpu); /* cpu->a to cpu->ar */
void load_window(cpu_t *cpu);
void set_timer(cpu_t *cpu, unsigned i); /* CCOMPARE i or CCOUNT was written */
void fpu_collect_flags(cpu_t *cpu);
void fpu_set_flags(cpu_t *cpu, uint32_t fsr);
void window_overflow(cpu_t *cpu, uint32_t pc);
uint32_t *special_register(cpu_t *cpu, unsigned number);
const char *special_register_name(unsigned number);

#define I(id, mnemonic, operands, class_id)
#define C(id, mnemonic, operands, class_id) action_t op_##id(cpu_t *cpu, insn_t *ip);
#include "ops.def"
#undef I
#undef C

/* ---- inspect.c ----------------------------------------------------------------------------------------- */

/* The counters of ip are those of another instruction from now on; keeps the present ones as its past. */
void retire_counters(cpu_t *cpu, insn_t *ip);

/* ---- devices: uart.c, mx.c ------------------------------------------------------------------------------ */

void uart_reset(lx7_sim_t *sim);
uint32_t uart_read(lx7_sim_t *sim, cpu_t *cpu, uint32_t reg);
void uart_write(lx7_sim_t *sim, uint32_t reg, uint32_t value);
void uart_update_irq(lx7_sim_t *sim);
void uart_free(lx7_sim_t *sim);
uint32_t device_read(cpu_t *cpu, uint32_t address, uint32_t size);
void device_write(cpu_t *cpu, uint32_t address, uint32_t size, uint32_t value);

void mx_reset(lx7_sim_t *sim);
uint32_t mx_read(cpu_t *cpu, uint32_t offset);
void mx_write(cpu_t *cpu, uint32_t offset, uint32_t value);
void external_irq(lx7_sim_t *sim, unsigned number, bool active);

/* ---- config.c, elf.c ------------------------------------------------------------------------------------ */

int config_load(lx7_sim_t *sim, const char *path);
int elf_load(lx7_sim_t *sim, const char *path); /* reads and checks the file */
/* Copies its segments to memory; clear: also zeroes what the file does not fill. */
void elf_place(lx7_sim_t *sim, bool clear);
int set_error(lx7_sim_t *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- the machine: kc705-nommu with core de212 ----------------------------------------------------------- */

#define RAM_BASE 0x60000000u
#define RAM_SIZE 0x10000000u
#define ROM_BASE 0x50000000u
#define ROM_SIZE 0x04000000u
#define IRAM_BASE 0x40000000u
#define IRAM_SIZE 0x20000u
#define DRAM_BASE 0x3ffe0000u
#define DRAM_SIZE 0x20000u
#define IO_BASE 0x90000000u
#define IO_CACHED 0x70000000u
#define IO_SIZE 0x0e000000u
#define FLASH_SIZE 0x08000000u
#define FPGA_OFFSET 0x0d020000u
#define UART_OFFSET 0x0d050020u
#define RESET_VECTOR0 0x50000000u
#define RESET_VECTOR1 0x40000400u
#define VECBASE_RESET 0x60000000u

#endif
