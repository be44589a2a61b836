/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exceptions, interrupts, timers (ISA manual, chapters 4.4.1 to 4.4.6), with the vector offsets, interrupt numbers
 * and levels of core de212, which the programs for kc705-nommu are built for.
 */
#include "core.h"

#include <stdarg.h>
#include <stdio.h>

#define VECTOR_KERNEL 0x300u
#define VECTOR_USER 0x340u
#define VECTOR_DOUBLE 0x3c0u

static const uint32_t level_mask[N_LEVEL + 1] = {0,          0x001f80ff, 0x00000100, 0x00200e00,
                                                 0x00001000, 0x00002000, 0,          0x4000};
static const uint16_t level_vector[N_LEVEL + 1] = {0, 0, 0x180, 0x1c0, 0x200, 0x240, 0x280, 0x2c0};
static const uint8_t timer_interrupt[N_TIMER] = {6, 10, 13};

#define NMI_MASK 0x4000u
#define EDGE_MASK 0x003f8000u

int set_error(lx7_sim_t *sim, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sim->message, sizeof sim->message, format, arguments);
    va_end(arguments);
    return -1;
}

void stop_error(cpu_t *cpu, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(cpu->sim->message, sizeof cpu->sim->message, format, arguments);
    va_end(arguments);
    if (cpu->sim->cores > 1 && n >= 0 && (size_t)n < sizeof cpu->sim->message)
        snprintf(cpu->sim->message + n, sizeof cpu->sim->message - (size_t)n, " (core %u)", cpu->index);
    cpu->stop = LX7_STOP_ERROR;
}

/* Common tail: the pipeline is flushed and refilled from the vector. */
static void enter(cpu_t *cpu, uint32_t vector) {
    uint64_t n = (uint64_t)cpu->sim->timing.transfer_exception;
    cpu->target = cpu->vecbase + vector;
    if (cpu->ip) book_stall(cpu, cpu->ip, n, LX7_STALL_EXCEPTION);
    cpu->cyc += n;
    update_loop(cpu);
    update_window(cpu);
}

void raise_exception(cpu_t *cpu, uint32_t pc, uint32_t cause) {
    uint32_t vector = cpu->ps & PS_UM ? VECTOR_USER : VECTOR_KERNEL;
    if (cpu->ps & PS_EXCM) {
        if (pc == cpu->vecbase + VECTOR_DOUBLE) { /* would go on for ever */
            /* What led here lies in DEPC; if that is a vector with nothing in it, what led there lies in EPC1. */
            uint32_t handler = cpu->depc - cpu->vecbase;
            bool unhandled = handler == VECTOR_KERNEL || handler == VECTOR_USER;
            stop_error(cpu,
                       "exception %u in the double exception vector %08x: nothing there handles exceptions (the first "
                       "was at %08x)",
                       cause, pc, unhandled ? cpu->epc[1] : cpu->depc);
            return;
        }
        cpu->depc = pc;
        vector = VECTOR_DOUBLE;
    } else {
        cpu->epc[1] = pc;
    }
    cpu->exccause = cause;
    cpu->ps |= PS_EXCM;
    cpu->exceptions++;
    enter(cpu, vector);
}

/* An access outside the map: stops, or with option trap raises what QEMU's kc705 raises (PIF address error). */
void raise_address(cpu_t *cpu, insn_t *ip, uint32_t address, uint32_t size, const char *what) {
    bool fetch = size == 1 && what[0] == 'i';
    cpu->fault = true;
    if (!cpu->sim->trap) {
        uint8_t flags = cpu->sim->ptab[address >> PAGE_BITS];
        stop_error(cpu, "%s %08x (%u bytes) at pc %08x: %s", what, address, size, ip->pc,
                   flags & PF_READ_ONLY ? "flash is read-only" : "outside the memory map");
        return;
    }
    cpu->excvaddr = address;
    raise_exception(cpu, ip->pc, fetch ? CAUSE_FETCH_ADDRESS : CAUSE_DATA_ADDRESS);
}

static unsigned current_level(const cpu_t *cpu) {
    unsigned level = cpu->ps & PS_INTLEVEL;
    return cpu->ps & PS_EXCM && level < EXCM_LEVEL ? EXCM_LEVEL : level;
}

static unsigned pending_level(const cpu_t *cpu) {
    uint32_t active = cpu->intset & (cpu->intenable | NMI_MASK);
    unsigned floor = current_level(cpu);
    if (likely(!active)) return 0;
    if (floor >= NMI_LEVEL) floor = NMI_LEVEL - 1;
    for (unsigned level = N_LEVEL; level > floor; level--)
        if (level_mask[level] & active) return level;
    return 0;
}

bool interrupt_pending(const cpu_t *cpu) {
    return pending_level(cpu) != 0;
}

bool take_interrupt(cpu_t *cpu, uint32_t pc) {
    unsigned level = pending_level(cpu);
    if (!level) return false;
    cpu->interrupts++;
    if (level == 1) {
        cpu->exceptions--;
        raise_exception(cpu, pc, CAUSE_LEVEL1);
        return true;
    }
    cpu->epc[level] = pc;
    cpu->eps[level] = cpu->ps;
    cpu->ps = (cpu->ps & ~PS_INTLEVEL) | level | PS_EXCM;
    if (level == NMI_LEVEL) cpu->intset &= ~NMI_MASK;
    enter(cpu, level_vector[level]);
    return true;
}

/* Changes one of the interrupt inputs; a core that runs sees it when it next leaves exec(). */
void set_interrupt_line(cpu_t *cpu, unsigned number, bool active) {
    uint32_t mask = 1u << number;
    if (active)
        cpu->intset |= mask;
    else if (!(mask & (EDGE_MASK | NMI_MASK)))
        cpu->intset &= ~mask;
    if (interrupt_pending(cpu)) cpu->until = 0;
}

/* ---- CCOUNT and CCOMPARE --------------------------------------------------------------------------------- */

uint32_t read_ccount(const cpu_t *cpu) {
    return (uint32_t)(cpu->cyc + cpu->ccount_base);
}

void set_timer(cpu_t *cpu, unsigned i) {
    uint32_t distance = cpu->ccompare[i] - read_ccount(cpu) - 1;
    cpu->intset &= ~(1u << timer_interrupt[i]);
    cpu->timer[i] = cpu->cyc + distance + 1;
    if (cpu->timer[i] < cpu->until) cpu->until = cpu->timer[i];
}

void update_timers(cpu_t *cpu) {
    for (unsigned i = 0; i < N_TIMER; i++)
        if (cpu->cyc >= cpu->timer[i]) {
            cpu->timer[i] += 1ull << 32;
            set_interrupt_line(cpu, timer_interrupt[i], true);
        }
}

uint64_t next_timer(const cpu_t *cpu) {
    uint64_t next = cpu->timer[0];
    for (unsigned i = 1; i < N_TIMER; i++)
        if (cpu->timer[i] < next) next = cpu->timer[i];
    return next;
}
