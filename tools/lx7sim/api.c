/* SPDX-License-Identifier: Apache-2.0 */
/* The public functions: life of a simulator, and the run loop over the cores. */
#include "core.h"

#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *lx7_message(const lx7_sim_t *sim) {
    return sim->message;
}

/* ---- life ------------------------------------------------------------------------------------------------ */

static cpu_t *new_cpu(lx7_sim_t *sim, unsigned index) {
    cpu_t *cpu = aligned_alloc(64, (sizeof *cpu + 63) / 64 * 64);
    if (!cpu) return NULL;
    memset(cpu, 0, sizeof *cpu);
    cpu->sim = sim;
    cpu->index = (uint8_t)index;
    cpu->pages = calloc(1u << (32 - PAGE_BITS), sizeof *cpu->pages);
    cpu->synchronized = calloc(1u << (32 - PAGE_BITS), sizeof *cpu->synchronized);
    if (!cpu->pages || !cpu->synchronized) {
        free(cpu->pages);
        free(cpu->synchronized);
        free(cpu);
        return NULL;
    }
    return cpu;
}

static void free_code(cpu_t *cpu) {
    for (uint32_t i = 0; i < 1u << (32 - PAGE_BITS); i++) {
        code_page_t *page = cpu->pages[i];
        if (!page) continue;
        for (int k = 0; k < PAGE_BYTES; k++)
            if (page->insn[k].opid == OP_PIE) free(page->insn[k].pie);
        free(page);
        cpu->pages[i] = NULL;
    }
    while (cpu->unused_pie) {
        pie_op_t *op = cpu->unused_pie;
        cpu->unused_pie = op->next;
        free(op);
    }
    extra_clear(cpu);
    free(cpu->extra);
    cpu->extra = NULL;
    cpu->max_extra = 0;
}

lx7_sim_t *lx7_new(void) {
    lx7_sim_t *sim = calloc(1, sizeof *sim);
    if (!sim) return NULL;
    sim->cores = 1;
    exec(NULL, &sim->labels);
    if (memory_init(sim)) {
        lx7_free(sim);
        return NULL;
    }
    for (unsigned i = 0; i < LX7_MAX_CORES; i++)
        if (!(sim->cpu[i] = new_cpu(sim, i))) {
            lx7_free(sim);
            return NULL;
        }
    return sim;
}

void lx7_free(lx7_sim_t *sim) {
    if (!sim) return;
    stale_free(sim);
    for (int i = 0; i < LX7_MAX_CORES; i++)
        if (sim->cpu[i]) {
            free_code(sim->cpu[i]);
            free(sim->cpu[i]->pages);
            free(sim->cpu[i]);
        }
    cache_free(sim);
    uart_free(sim);
    memory_free(sim);
    free(sim->elf);
    free(sim);
}

int lx7_load_config(lx7_sim_t *sim, const char *path) {
    return config_load(sim, path);
}

int lx7_load_flash(lx7_sim_t *sim, const char *path) {
    return memory_load_flash(sim, path);
}

int lx7_set_option(lx7_sim_t *sim, const char *name, int64_t value) {
    if (!strcmp(name, "max-cycles") && value >= 0) {
        sim->max_cycles = (uint64_t)value;
        return 0;
    }
    if (sim->loaded) return set_error(sim, "option %s must be set before the program is loaded", name);
    if (!strcmp(name, "cores")) {
        if (value < 1 || value > LX7_MAX_CORES)
            return set_error(sim, "cores must be 1 or %d, not %lld", LX7_MAX_CORES, (long long)value);
        sim->cores = (int)value;
    } else if (!strcmp(name, "pie") && value >= 0 && value <= 1)
        sim->pie = value != 0;
    else if (!strcmp(name, "trap") && value >= 0 && value <= 1)
        sim->trap = value != 0;
    else
        return set_error(sim, "no option %s = %lld", name, (long long)value);
    return 0;
}

void lx7_set_warning(lx7_sim_t *sim, lx7_warning_fn fn, void *context) {
    sim->warn = fn;
    sim->warn_context = context;
}

/* What QEMU's -kernel leaves at the reset vector: four instructions that load a2 with the boot parameters and go to
 * the entry point. Same number of instructions, same registers. */
static void write_boot_code(lx7_sim_t *sim) {
    enum { ENTRY = 8, PARAMETERS = 12 }; /* literals */
    static const uint8_t code[] = {
        0x06, 0x03, 0x00, 0, 0, 0, 0, 0, /* j 16 */
        0,    0,    0,    0, 0, 0, 0, 0, /* literals */
        0x01, 0xfe, 0xff,                /* l32r a0, entry */
        0x21, 0xfe, 0xff,                /* l32r a2, parameters */
        0xa0, 0x00, 0x00,                /* jx a0 */
    };
    /* The list of boot parameters at the end of the ROM's RAM: first tag, memory, command line, last tag. */
    uint16_t text_size = sim->command_line[0] ? (uint16_t)((strlen(sim->command_line) + 4) & ~3u) : 0;
    uint32_t list = (ROM_BASE + 0x2000000u - 32u - text_size) & ~0xffu, at = list + 20;
    static const uint16_t first[2] = {0x7b0b, 0}, memory[2] = {0x1003, 12}, last[2] = {0x7e0b, 0};
    const uint16_t text[2] = {0x1001, text_size};
    uint32_t range[3] = {0, RAM_BASE, RAM_BASE + RAM_SIZE};
    if (sim->entry == RESET_VECTOR0) return;
    memcpy(sim->mem + list, first, 4);
    memcpy(sim->mem + list + 4, memory, 4);
    memcpy(sim->mem + list + 8, range, 12);
    if (text_size) {
        memcpy(sim->mem + at, text, 4);
        memset(sim->mem + at + 4, 0, text_size);
        memcpy(sim->mem + at + 4, sim->command_line, strlen(sim->command_line));
        at += 4u + text_size;
    }
    memcpy(sim->mem + at, last, 4);
    memcpy(sim->mem + RESET_VECTOR0, code, sizeof code);
    memcpy(sim->mem + RESET_VECTOR0 + ENTRY, &sim->entry, 4);
    memcpy(sim->mem + RESET_VECTOR0 + PARAMETERS, &list, 4);
}

int lx7_load_elf(lx7_sim_t *sim, const char *path) {
    if (!sim->configured) return set_error(sim, "no configuration loaded (esp32s3.toml)");
    memory_map_regions(sim);
    if (cache_configure(sim)) return -1;
    if (elf_load(sim, path)) return -1;
    for (int i = 0; i < LX7_MAX_CORES; i++)
        free_code(sim->cpu[i]);
    sim->loaded = true;
    elf_place(sim, true);
    write_boot_code(sim);
    lx7_reset(sim);
    return 0;
}

int lx7_set_command_line(lx7_sim_t *sim, const char *text) {
    if (strlen(text) >= sizeof sim->command_line)
        return set_error(sim, "the command line is longer than %zu bytes", sizeof sim->command_line - 1);
    strcpy(sim->command_line, text);
    return 0;
}

/* Registers as after reset; keeps the core's code, counters and time. */
static void reset_cpu(cpu_t *cpu) {
    stale_synchronize(cpu);
    cpu_t old = *cpu;
    memset(cpu, 0, sizeof *cpu);
    cpu->sim = old.sim;
    cpu->pages = old.pages;
    cpu->extra = old.extra;
    cpu->n_extra = old.n_extra;
    cpu->max_extra = old.max_extra;
    cpu->unused_pie = old.unused_pie;
    cpu->synchronized = old.synchronized;
    cpu->stored = old.stored;
    cpu->max_stored = old.max_stored;
    cpu->index = old.index;
    cpu->cyc = old.cyc;
    cpu->cyc_base = old.cyc_base;
    cpu->ccount_base = old.ccount_base;
    cpu->exceptions = old.exceptions;
    cpu->interrupts = old.interrupts;
    cpu->overflows = old.overflows;
    cpu->underflows = old.underflows;
    cpu->idle_polls = old.idle_polls;
    cpu->target = cpu->index ? RESET_VECTOR1 : RESET_VECTOR0;
    cpu->ps = 0x1f;
    cpu->vecbase = VECBASE_RESET;
    cpu->ws = 1;
    cpu->cpenable = 0xff;
    cpu->atomctl = 0x28;
    for (int i = 0; i < N_TIMER; i++)
        cpu->timer[i] = UINT64_MAX;
    for (int i = 0; i < 8; i++)
        cpu->itlb[i] = cpu->dtlb[i] = 2;
    pie_reset(&cpu->pie);
    memory_init_pie_bus(cpu);
    update_window(cpu);
}

static void reset_devices(lx7_sim_t *sim) {
    mx_reset(sim);
    uart_reset(sim);
    cache_reset(sim);
    sim->exit_requested = sim->idle = false;
    sim->leds = 0;
}

static void forget_warnings(cpu_t *cpu) {
    for (uint32_t i = 0; i < 1u << (32 - PAGE_BITS); i++) {
        code_page_t *page = cpu->pages[i];
        for (int k = 0; page && k < PAGE_BYTES; k++)
            page->insn[k].warned = 0;
    }
}

void lx7_reset(lx7_sim_t *sim) {
    for (int i = 0; i < LX7_MAX_CORES; i++) {
        reset_cpu(sim->cpu[i]);
        sim->cpu[i]->cyc = sim->cpu[i]->ccount_base = 0;
        forget_warnings(sim->cpu[i]);
    }
    reset_devices(sim);
    sim->uart.rx_head = sim->uart.rx_tail = sim->uart.tx_head = sim->uart.tx_tail = 0;
    sim->warned_device = 0;
    sim->message[0] = 0;
    lx7_clear_counters(sim);
}

/* Time that passes without an instruction is booked where the core stands. */
static void skip_to(cpu_t *cpu, uint64_t cycle) {
    insn_t *ip = cpu->ip ? cpu->ip : code_lookup(cpu, cpu->target);
    if (cycle <= cpu->cyc) return;
    book_stall(cpu, ip, cycle - cpu->cyc, LX7_STALL_SLEEP);
    cpu->cyc = cycle;
}

int lx7_reboot(lx7_sim_t *sim) {
    uint64_t latest = 0;
    if (!sim->loaded) return set_error(sim, "no program loaded");
    elf_place(sim, false);
    write_boot_code(sim);
    for (int i = 0; i < sim->cores; i++)
        if (sim->cpu[i]->cyc > latest) latest = sim->cpu[i]->cyc;
    for (int i = 0; i < LX7_MAX_CORES; i++) {
        reset_cpu(sim->cpu[i]);
        if (i < sim->cores) skip_to(sim->cpu[i], latest);
    }
    reset_devices(sim);
    return 0;
}

/* ---- running --------------------------------------------------------------------------------------------- */

static bool running(const cpu_t *cpu) {
    return !cpu->stalled && !cpu->sleeping;
}

/* Runs one core up to cycle `until`. */
static void run_core(cpu_t *cpu, uint64_t until) {
    lx7_sim_t *sim = cpu->sim;
    while (cpu->cyc < until && !cpu->stop && !sim->exit_requested && !sim->idle && !sim->rearranged) {
        update_timers(cpu);
        if (interrupt_pending(cpu)) {
            cpu->sleeping = false;
            take_interrupt(cpu, cpu->target);
        }
        if (cpu->stalled) {
            skip_to(cpu, until);
        } else if (cpu->sleeping) {
            uint64_t timer = next_timer(cpu);
            skip_to(cpu, timer < until ? timer : until);
        } else {
            uint64_t timer = next_timer(cpu);
            cpu->until = timer < until ? timer : until;
            exec(cpu, NULL);
        }
    }
    if (cpu->fpu_used) {
        fpu_collect_flags(cpu);
        cpu->fpu_used = false;
    }
}

/* Nothing can happen without the host: every core that is not stalled sleeps without a timer set. */
static bool all_asleep(const lx7_sim_t *sim) {
    for (int i = 0; i < sim->cores; i++) {
        const cpu_t *cpu = sim->cpu[i];
        if (running(cpu) || (!cpu->stalled && (interrupt_pending(cpu) || next_timer(cpu) != UINT64_MAX))) return false;
    }
    return true;
}

static lx7_stop_t run(lx7_sim_t *sim, uint64_t end) {
    uint64_t quantum = sim->cores > 1 ? (uint64_t)sim->timing.clock_quantum : 1u << 22;
    sim->idle = false;
    while (true) {
        cpu_t *next = sim->cpu[0];
        uint64_t until = end;
        for (int i = 0; i < sim->cores; i++) {
            cpu_t *cpu = sim->cpu[i];
            if (cpu->stop) {
                lx7_stop_t stop = cpu->stop;
                if (stop == LX7_STOP_BREAK) cpu->stop = LX7_STOP_BUDGET;
                return stop;
            }
            if (cpu->cyc < next->cyc) next = cpu;
        }
        if (sim->exit_requested) return LX7_STOP_EXIT;
        if (sim->idle) {
            sim->uart.empty_polls = 0;
            return LX7_STOP_IDLE;
        }
        if (all_asleep(sim)) return LX7_STOP_IDLE;
        if (next->cyc >= end) return LX7_STOP_BUDGET;
        sim->rearranged = false;
        if (next->cyc + quantum < until) until = next->cyc + quantum;
        run_core(next, until);
    }
}

lx7_stop_t lx7_run(lx7_sim_t *sim, uint64_t cycles) {
    if (!sim->loaded) {
        set_error(sim, "no program loaded");
        return LX7_STOP_ERROR;
    }
    fenv_t host;
    feholdexcept(&host);
    fesetround(FE_TONEAREST);
    for (int i = 0; i < sim->cores; i++)
        update_attention(sim->cpu[i]);
    uint64_t start = sim->cpu[0]->cyc;
    for (int i = 1; i < sim->cores; i++)
        if (sim->cpu[i]->cyc < start) start = sim->cpu[i]->cyc;
    uint64_t end = cycles ? start + cycles : UINT64_MAX;
    uint64_t limit = sim->max_cycles ? sim->max_cycles : UINT64_MAX;
    lx7_stop_t stop = run(sim, end < limit ? end : limit);
    if (stop == LX7_STOP_BUDGET && limit <= end) {
        stop = LX7_STOP_MAX_CYCLES;
        set_error(sim, "stopped after %llu cycles (max-cycles) at pc %08x", (unsigned long long)sim->max_cycles,
                  sim->cpu[0]->target);
    }
    fesetenv(&host);
    return stop;
}

void lx7_set_trace(lx7_sim_t *sim, lx7_trace_fn fn, void *context) {
    sim->trace = fn;
    sim->trace_context = context;
}
