/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finds code that runs without synchronization: bytes stored into memory are only sure to be what the core fetches
 * after its next ISYNC (Xtensa ISA, ISYNC). The first store into a page after an ISYNC takes the slow way and
 * keeps a copy of the page; stores after it are as fast as ever. An instruction that is decoded for execution and
 * differs from the copy has been stored in between.
 */
#include "core.h"

#include <stdlib.h>
#include <string.h>

static uint8_t *new_copy(lx7_sim_t *sim, const uint8_t *page) {
    uint8_t *copy = sim->spare_copies;
    if (copy)
        memcpy(&sim->spare_copies, copy, sizeof sim->spare_copies); /* linked through their first bytes */
    else if (!(copy = malloc(PAGE_BYTES)))
        abort();
    memcpy(copy, page, PAGE_BYTES);
    return copy;
}

static void keep_page(lx7_sim_t *sim, uint32_t page) {
    for (int i = 0; i < sim->cores; i++) {
        cpu_t *cpu = sim->cpu[i];
        if (cpu->synchronized[page]) continue;
        if (cpu->n_stored == cpu->max_stored) {
            uint32_t max = cpu->max_stored ? cpu->max_stored * 2 : 64;
            uint32_t *grown = realloc(cpu->stored, max * sizeof *grown);
            if (!grown) abort();
            cpu->stored = grown;
            cpu->max_stored = max;
        }
        cpu->stored[cpu->n_stored++] = page;
        cpu->synchronized[page] = new_copy(sim, sim->mem + ((uint64_t)page << PAGE_BITS));
    }
    memory_update_page(sim, page);
}

bool stale_watched(const lx7_sim_t *sim, uint32_t page) {
    for (int i = 0; i < sim->cores; i++)
        if (!sim->cpu[i] || !sim->cpu[i]->synchronized[page]) return true;
    return false;
}

void stale_before_store(lx7_sim_t *sim, uint32_t address, uint32_t size) {
    uint32_t first = address >> PAGE_BITS, last = (address + size - 1) >> PAGE_BITS;
    if (unlikely(stale_watched(sim, first))) keep_page(sim, first);
    if (unlikely(last != first && stale_watched(sim, last))) keep_page(sim, last);
}

void stale_synchronize(cpu_t *cpu) {
    for (uint32_t i = 0; i < cpu->n_stored; i++) {
        uint32_t page = cpu->stored[i];
        uint8_t *copy = cpu->synchronized[page];
        memcpy(copy, &cpu->sim->spare_copies, sizeof cpu->sim->spare_copies);
        cpu->sim->spare_copies = copy;
        cpu->synchronized[page] = NULL;
        memory_update_page(cpu->sim, page);
    }
    cpu->n_stored = 0;
}

void stale_host_write(lx7_sim_t *sim, uint32_t address, size_t size) {
    for (uint64_t at = address, next; at < (uint64_t)address + size; at = next) {
        next = (at | (PAGE_BYTES - 1)) + 1;
        if (next > (uint64_t)address + size) next = (uint64_t)address + size;
        for (int i = 0; i < sim->cores; i++) {
            uint8_t *copy = sim->cpu[i]->synchronized[at >> PAGE_BITS];
            if (copy) memcpy(copy + (at & (PAGE_BYTES - 1)), sim->mem + at, next - at);
        }
    }
}

void stale_check(cpu_t *cpu, insn_t *insn) {
    lx7_sim_t *sim = cpu->sim;
    uint32_t length = (uint32_t)insn->next / INSN_STRIDE;
    char text[96];
    if (insn->warned & WARNED_STALE) return;
    for (uint32_t pc = insn->pc; pc != insn->pc + length; pc++) {
        const uint8_t *copy = cpu->synchronized[pc >> PAGE_BITS];
        if (!copy || copy[pc & (PAGE_BYTES - 1)] == sim->mem[pc]) continue;
        insn->warned |= WARNED_STALE;
        if (!disassemble(sim, insn->pc, text, sizeof text)) return;
        set_error(
            sim,
            "warning: core %d executes %08x (%s), stored since its last isync; the chip may execute what was there "
            "before",
            cpu->index, insn->pc, text);
        if (sim->warn) sim->warn(sim->warn_context, sim->message);
        return;
    }
}

void stale_free(lx7_sim_t *sim) {
    for (int i = 0; i < LX7_MAX_CORES; i++) // each looks at the other's pages
        if (sim->cpu[i]) stale_synchronize(sim->cpu[i]);
    for (int i = 0; i < LX7_MAX_CORES; i++) {
        cpu_t *cpu = sim->cpu[i];
        if (!cpu) continue;
        free(cpu->stored);
        free(cpu->synchronized);
    }
    while (sim->spare_copies) {
        uint8_t *copy = sim->spare_copies;
        memcpy(&sim->spare_copies, copy, sizeof sim->spare_copies);
        free(copy);
    }
}
