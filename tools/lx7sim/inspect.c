/* SPDX-License-Identifier: Apache-2.0 */
/* The public functions that look into a simulator: memory, registers, counters. */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const stall_names[LX7_STALL_COUNT] = {
    "load",   "mul",    "div",          "fpu", "sreg",      "pie",  "pie_unit", "branch", "fetch",     "loop",
    "icache", "dcache", "dcache_write", "bus", "unaligned", "sram", "device",   "sync",   "exception", "sleep",
};

const char *lx7_stall_name(lx7_stall_t cause) {
    return (unsigned)cause < LX7_STALL_COUNT ? stall_names[cause] : NULL;
}

/* ---- memory and registers ---------------------------------------------------------------------------------- */

int lx7_read_memory(lx7_sim_t *sim, uint32_t address, void *data, size_t size) {
    if (!size) return 0;
    if (!memory_mapped(sim, address, size) || sim->ptab[address >> PAGE_BITS] & PF_DEVICE)
        return set_error(sim, "read of %zu bytes at %08x is outside the memory map", size, address);
    memcpy(data, sim->mem + address, size);
    return 0;
}

int lx7_write_memory(lx7_sim_t *sim, uint32_t address, const void *data, size_t size) {
    if (!size) return 0;
    bool ok = memory_mapped(sim, address, size);
    for (uint64_t at = address; ok && at < address + size; at = (at | (PAGE_BYTES - 1)) + 1)
        ok = !(sim->ptab[at >> PAGE_BITS] & (PF_READ_ONLY | PF_DEVICE));
    if (!ok) return set_error(sim, "write of %zu bytes at %08x is outside the RAM of the memory map", size, address);
    memcpy(sim->mem + address, data, size);
    stale_host_write(sim, address, size);
    code_drop(sim, address, (uint32_t)size);
    return 0;
}

static bool numbered(const char *name, const char *prefix, unsigned limit, unsigned *number) {
    size_t n = strlen(prefix);
    char *end;
    if (strncmp(name, prefix, n) || name[n] < '0' || name[n] > '9') return false;
    *number = (unsigned)strtoul(name + n, &end, 10);
    return !*end && *number < limit;
}

uint32_t lx7_register(const lx7_sim_t *sim, int core, const char *name) {
    if (core < 0 || core >= sim->cores) return 0;
    cpu_t *cpu = sim->cpu[core];
    unsigned i;
    if (!strcmp(name, "pc")) return cpu->target;
    if (!strcmp(name, "ccount")) return read_ccount(cpu);
    if (!strcmp(name, "prid")) return cpu->index;
    if (!strcmp(name, "fcr")) return cpu->fcr;
    if (!strcmp(name, "fsr")) return cpu->fsr;
    if (!strcmp(name, "threadptr")) return cpu->threadptr;
    if (numbered(name, "a", 16, &i)) return cpu->a[i];
    if (numbered(name, "f", 16, &i)) return cpu->f[i];
    if (numbered(name, "ar", N_AR, &i)) {
        save_window(cpu);
        return cpu->ar[i];
    }
    for (i = 0; i < 256; i++) {
        const char *known = special_register_name(i);
        const uint32_t *value = known && !strcmp(known, name) ? special_register(cpu, i) : NULL;
        if (value) return *value;
    }
    return 0;
}

size_t lx7_vector_register(const lx7_sim_t *sim, int core, const char *name, uint8_t *data) {
    if (core < 0 || core >= sim->cores) return 0;
    const pie_state_t *pie = &sim->cpu[core]->pie;
    uint8_t low[20], high[20];
    unsigned i;
    if (numbered(name, "q", 8, &i)) {
        memcpy(data, &pie->q[i], 16);
        return 16;
    }
    if (!strcmp(name, "ua_state")) {
        memcpy(data, &pie->ua_state, 16);
        return 16;
    }
    if (!strcmp(name, "accx")) {
        memcpy(data, &pie->accx, 5);
        return 5;
    }
    if (strcmp(name, "qacc_l") && strcmp(name, "qacc_h")) return 0;
    pie_qacc_read(pie, low, high);
    memcpy(data, name[5] == 'l' ? low : high, 20);
    return 20;
}

size_t lx7_dump_registers(const lx7_sim_t *sim, int core, char *text, size_t size) {
    static const char *const shown[] = {"ps",         "sar",         "lbeg",      "lend",     "lcount", "br",
                                        "windowbase", "windowstart", "exccause",  "excvaddr", "epc1",   "depc",
                                        "vecbase",    "intenable",   "interrupt", "ccount"};
    size_t at = 0;
#define PUT(...) at += (size_t)snprintf(at < size ? text + at : NULL, at < size ? size - at : 0, __VA_ARGS__)
    if (core < 0 || core >= sim->cores) return 0;
    const cpu_t *cpu = sim->cpu[core];
    PUT("core %d pc %08x\n", core, cpu->target);
    for (unsigned i = 0; i < 16; i++)
        PUT("a%-2u %08x%s", i, cpu->a[i], i % 4 == 3 ? "\n" : "  ");
    for (unsigned i = 0; i < sizeof shown / sizeof *shown; i++)
        PUT("%-11s %08x%s", shown[i], lx7_register(sim, core, shown[i]), i % 4 == 3 ? "\n" : "  ");
    for (unsigned i = 0; i < 16; i++)
        PUT("f%-2u %08x%s", i, cpu->f[i], i % 4 == 3 ? "\n" : "  ");
    if (sim->pie) {
        for (unsigned i = 0; i < 8; i++) {
            PUT("q%u  ", i);
            for (unsigned k = 0; k < 16; k++)
                PUT("%02x%s", cpu->pie.q[i].u8[k], k == 15 ? "\n" : "");
        }
        PUT("accx %010llx\n", (unsigned long long)(cpu->pie.accx & 0xffffffffffll));
    }
#undef PUT
    return at;
}

int lx7_disassemble(lx7_sim_t *sim, uint32_t address, char *text, size_t size) {
    return disassemble(sim, address, text, size);
}

/* ---- counters -------------------------------------------------------------------------------------------- */

static void add_row(lx7_pc_t *row, const lx7_pc_t *past) {
    row->count += past->count;
    row->taken += past->taken;
    for (int i = 0; i < LX7_STALL_COUNT; i++)
        row->stall[i] += past->stall[i];
    for (int i = 0; i < LX7_REGION_CLASSES; i++) {
        row->access[i] += past->access[i];
        row->bytes[i] += past->bytes[i];
    }
    row->icache_miss += past->icache_miss;
    row->dcache_miss += past->dcache_miss;
    row->mac += past->mac;
}

/* Stalls that follow from other counters are not booked one by one in the hot paths. */
static void fill_row(const cpu_t *cpu, const insn_t *insn, lx7_pc_t *row) {
    memset(row, 0, sizeof *row);
    row->pc = insn->pc;
    row->length = (uint32_t)insn->next / INSN_STRIDE;
    row->count = insn->count;
    row->taken = insn->taken;
    uint64_t width = 0, accesses = insn_accesses(insn, &width), elsewhere = 0;
    if (insn->extra) {
        const extra_t *extra = &cpu->extra[insn->extra - 1];
        memcpy(row->stall, extra->stall, sizeof row->stall);
        memcpy(row->access, extra->access, sizeof row->access);
        row->icache_miss = extra->icache_miss;
        row->dcache_miss = extra->dcache_miss;
    }
    row->stall[LX7_STALL_BRANCH] += insn->taken * insn->lat;
    for (int i = 0; i < LX7_REGION_CLASSES; i++)
        elsewhere += row->access[i];
    if (accesses > elsewhere) row->access[LX7_REGION_SRAM] += accesses - elsewhere;
    for (int i = 0; i < LX7_REGION_CLASSES; i++)
        row->bytes[i] = row->access[i] * width;
    if (insn->opid == OP_PIE) row->mac = insn->count * insn->pie->macs;
    if (insn->extra && cpu->extra[insn->extra - 1].past) add_row(row, cpu->extra[insn->extra - 1].past);
}

void retire_counters(cpu_t *cpu, insn_t *ip) {
    if (!ip->count && !ip->extra) return;
    lx7_pc_t row;
    fill_row(cpu, ip, &row);
    extra_t *extra = insn_extra(cpu, ip);
    lx7_pc_t *past = extra->past ? extra->past : malloc(sizeof *past);
    if (!past) abort();
    *past = row;
    memset(extra, 0, sizeof *extra);
    extra->past = past;
    ip->count = ip->taken = 0;
}

static bool counted(const insn_t *insn) {
    return insn->count || insn->extra;
}

size_t lx7_get_pcs(const lx7_sim_t *sim, int core, lx7_pc_t *rows, size_t max) {
    size_t n = 0;
    if (core < 0 || core >= sim->cores) return 0;
    const cpu_t *cpu = sim->cpu[core];
    for (uint32_t i = 0; i < 1u << (32 - PAGE_BITS); i++) {
        const code_page_t *page = cpu->pages[i];
        for (int k = 0; page && k < PAGE_BYTES; k++) {
            if (!counted(&page->insn[k])) continue;
            if (n < max) fill_row(cpu, &page->insn[k], &rows[n]);
            n++;
        }
    }
    return n;
}

void lx7_get_totals(const lx7_sim_t *sim, int core, lx7_totals_t *totals) {
    memset(totals, 0, sizeof *totals);
    if (core < 0 || core >= sim->cores) return;
    const cpu_t *cpu = sim->cpu[core];
    totals->cycles = cpu->cyc - cpu->cyc_base;
    for (uint32_t i = 0; i < 1u << (32 - PAGE_BITS); i++) {
        const code_page_t *page = cpu->pages[i];
        for (int k = 0; page && k < PAGE_BYTES; k++) {
            const insn_t *insn = &page->insn[k];
            lx7_pc_t row;
            if (!counted(insn)) continue;
            fill_row(cpu, insn, &row);
            totals->instructions += row.count;
            for (int j = 0; j < LX7_STALL_COUNT; j++)
                totals->stall[j] += row.stall[j];
            for (int j = 0; j < LX7_REGION_CLASSES; j++) {
                totals->access[j] += row.access[j];
                totals->bytes[j] += row.bytes[j];
            }
            totals->mac += row.mac;
        }
    }
    totals->icache_access = sim->icache.access;
    totals->icache_miss = sim->icache.miss;
    totals->dcache_access = sim->dcache.access;
    totals->dcache_miss = sim->dcache.miss;
    totals->dcache_writeback = sim->dcache.writeback;
    totals->exceptions = cpu->exceptions;
    totals->interrupts = cpu->interrupts;
    totals->window_overflows = cpu->overflows;
    totals->window_underflows = cpu->underflows;
    totals->idle_polls = cpu->idle_polls;
}

void lx7_clear_counters(lx7_sim_t *sim) {
    for (int core = 0; core < LX7_MAX_CORES; core++) {
        cpu_t *cpu = sim->cpu[core];
        for (uint32_t i = 0; i < 1u << (32 - PAGE_BITS); i++) {
            code_page_t *page = cpu->pages[i];
            for (int k = 0; page && k < PAGE_BYTES; k++)
                page->insn[k].count = page->insn[k].taken = page->insn[k].extra = 0;
        }
        extra_clear(cpu);
        cpu->cyc_base = cpu->cyc;
        cpu->exceptions = cpu->interrupts = cpu->overflows = cpu->underflows = cpu->idle_polls = 0;
    }
    sim->icache.access = sim->icache.miss = sim->dcache.access = sim->dcache.miss = sim->dcache.writeback = 0;
}
