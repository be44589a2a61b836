// SPDX-License-Identifier: Apache-2.0
#include "pie_trap.h"

#include "../faults.h"

#include <string.h>

#ifndef PIE_DIRECT_MEMORY
#error "compile with PIE_DIRECT_MEMORY: the model then reads and writes memory as the program would"
#endif

_Static_assert((int)PIE_TRAP_CORES == (int)FAULT_CORES, "each has its own of both");

pie_trap_core pie_trap_cores[PIE_TRAP_CORES];

// By the number of the core, for the assembler.
pie_trap_core *const pie_trap_blocks[PIE_TRAP_CORES] = {&pie_trap_cores[0], &pie_trap_cores[1]};

uint32_t pie_trap_execute(pie_trap_core *core);

static void count_misaligned(void *context, const pie_insn_t *insn, uint32_t address, uint32_t size) {
    pie_trap_core *core = context;
    (void)insn;
    core->misaligned++;
    const uint32_t count = core->place_count;
    for (uint32_t i = 0; i < count; i++)
        if (core->places[i].pc == core->pc) return;
    if (count == PIE_TRAP_PLACES) return;
    core->places[count] = (pie_trap_place){core->pc, address, size};
    __atomic_store_n(&core->place_count, count + 1, __ATOMIC_RELEASE);
}

uint32_t pie_trap_places(const pie_trap_core *core) {
    return __atomic_load_n(&core->place_count, __ATOMIC_ACQUIRE);
}

void pie_trap_reset(pie_trap_core *core) {
    pie_reset(&core->state);
    core->emulated_pc = &fault_emulated_pc[core - pie_trap_cores];
    core->core = (pie_core_t){
        .ar = core->a,
        .ar_mask = 15,
        .sar = &core->sar,
        .fr = core->f,
        .bus = {.misaligned = count_misaligned, .context = core},
    };
}

// The instruction's bytes, little endian; the fourth is 0 for one of three. Reads words, and none that it does not lie
// in.
static uint32_t fetch(uint32_t pc) {
    const uint32_t *words = (const uint32_t *)(uintptr_t)(pc & ~3u);
    const uint32_t shift = pc % 4 * 8;
    uint32_t word = words[0] >> shift;
    if (shift > 8 || (shift == 8 && (word & 15) >= 14)) word |= words[1] << (32 - shift);
    return (word & 15) >= 14 ? word : word & 0xffffff;
}

static pie_trap_line *decode(pie_trap_core *core, pie_trap_line *line, uint32_t word) {
    if (!core->core.ar) pie_trap_reset(core);
    line->pc = 0; // nothing is left of the old line when decoding fails
    if (!pie_decode((const uint8_t *)&word, &line->insn)) return NULL;
    line->pc = core->pc;
    line->word = word;
    line->execute = pie_execute_table[line->insn.opcode];
    return line;
}

// MULUH of the base instructions, which the ESP32-S3 has and core de212 lacks.
static bool multiply_high(pie_trap_core *core, uint32_t word) {
    if ((word & 0xff000f) != 0xa20000) return false;
    const uint64_t product = (uint64_t)core->a[word >> 8 & 15] * core->a[word >> 4 & 15];
    core->a[word >> 12 & 15] = (uint32_t)(product >> 32);
    return true;
}

// S32I to an address that is no multiple of four, which the ESP32-S3 allows and core de212 does not.
static bool store_misaligned(pie_trap_core *core, uint32_t word) {
    if ((word & 0xf00f) != 0x6002) return false;
    const uint32_t value = core->a[word >> 4 & 15];
    *core->emulated_pc = core->pc;
    memcpy((void *)(uintptr_t)(core->a[word >> 8 & 15] + (word >> 16 & 255) * 4), &value, sizeof value);
    *core->emulated_pc = 0;
    return true;
}

// Executes the instruction at core->pc. Returns the address behind it, 0 when it is neither PIE's nor one of the above.
uint32_t pie_trap_execute(pie_trap_core *core) {
    const uint32_t pc = core->pc, word = fetch(pc);
    pie_trap_line *line = &core->lines[(pc >> 1) % PIE_TRAP_CACHE_LINES];
    if (line->pc != pc || line->word != word) {
        line = decode(core, line, word);
        if (!line) return multiply_high(core, word) || store_misaligned(core, word) ? pc + 3 : 0;
    }
    *core->emulated_pc = pc; // an access to nowhere is this instruction's fault, not ours
    line->execute(&line->insn, &core->state, &core->core);
    *core->emulated_pc = 0;
    core->executed++;
    return pc + line->insn.length;
}
