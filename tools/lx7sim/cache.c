/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The caches between the cores and the SPI bus of flash and PSRAM: an instruction cache and a data cache, both shared
 * by the cores, set associative, least recently used, write back with write allocation. A miss stops the core until
 * the whole line has arrived; the two caches, the two cores and write-backs queue for one bus. Autoload fetches the
 * lines that follow an accessed one while the core goes on.
 */
#include "core.h"

#include <stdlib.h>
#include <string.h>

static int configure(lx7_sim_t *sim, cache_t *cache, const char *name, int64_t size, int64_t line, int64_t ways) {
    int64_t sets = size / (line * ways);
    if (line & (line - 1) || sets < 1 || sets & (sets - 1) || sets * line * ways != size)
        return set_error(sim, "%s: size %lld, line %lld and ways %lld give no power of two of sets", name,
                         (long long)size, (long long)line, (long long)ways);
    free(cache->tag);
    free(cache->dirty);
    free(cache->arrival);
    cache->sets = (uint32_t)sets;
    cache->ways = (uint32_t)ways;
    cache->line_bits = (uint32_t)__builtin_ctzll((uint64_t)line);
    cache->tag = calloc((size_t)(sets * ways), sizeof *cache->tag);
    cache->dirty = calloc((size_t)(sets * ways), 1);
    cache->arrival = calloc((size_t)(sets * ways), sizeof *cache->arrival);
    return cache->tag && cache->dirty && cache->arrival ? 0 : set_error(sim, "no memory for the %s", name);
}

/* CPU cycles to move one line: command, address and dummy clocks, then the data. */
static uint64_t line_cycles(const timing_t *timing, int64_t command, int64_t mhz, int64_t bits, int64_t line) {
    int64_t clocks = command + (line * 8 + bits - 1) / bits;
    return (uint64_t)(timing->bus_fill_overhead + (clocks * timing->clock_cpu_mhz + mhz - 1) / mhz);
}

int cache_configure(lx7_sim_t *sim) {
    const timing_t *t = &sim->timing;
    if (configure(sim, &sim->icache, "icache", t->icache_size, t->icache_line, t->icache_ways)) return -1;
    if (configure(sim, &sim->dcache, "dcache", t->dcache_size, t->dcache_line, t->dcache_ways)) return -1;
    sim->icache.autoload_lines = (uint32_t)t->icache_autoload_lines;
    sim->icache.autoload_trigger = (uint32_t)t->icache_autoload_trigger;
    sim->dcache.autoload_lines = (uint32_t)t->dcache_autoload_lines;
    sim->dcache.autoload_trigger = (uint32_t)t->dcache_autoload_trigger;
    sim->fill_cycles_i[LX7_REGION_FLASH] =
        line_cycles(t, t->flash_command_clocks, t->flash_mhz, t->flash_bits_per_clock, t->icache_line);
    sim->fill_cycles_i[LX7_REGION_PSRAM] =
        line_cycles(t, t->psram_command_clocks, t->psram_mhz, t->psram_bits_per_clock, t->icache_line);
    sim->fill_cycles_d[LX7_REGION_FLASH] =
        line_cycles(t, t->flash_command_clocks, t->flash_mhz, t->flash_bits_per_clock, t->dcache_line);
    sim->fill_cycles_d[LX7_REGION_PSRAM] =
        line_cycles(t, t->psram_command_clocks, t->psram_mhz, t->psram_bits_per_clock, t->dcache_line);
    sim->writeback_cycles =
        line_cycles(t, t->psram_write_command_clocks, t->psram_mhz, t->psram_bits_per_clock, t->dcache_line);
    return 0;
}

static void clear(cache_t *cache) {
    if (!cache->tag) return;
    memset(cache->tag, 0, sizeof *cache->tag * cache->sets * cache->ways);
    memset(cache->dirty, 0, cache->sets * cache->ways);
    memset(cache->arrival, 0, sizeof *cache->arrival * cache->sets * cache->ways);
}

void cache_reset(lx7_sim_t *sim) {
    clear(&sim->icache);
    clear(&sim->dcache);
    memset(&sim->bus, 0, sizeof sim->bus);
}

void cache_free(lx7_sim_t *sim) {
    free(sim->icache.tag);
    free(sim->icache.dirty);
    free(sim->icache.arrival);
    free(sim->dcache.tag);
    free(sim->dcache.dirty);
    free(sim->dcache.arrival);
}

/* First cycle >= from at which the bus is free for length cycles; books it. */
static uint64_t bus_reserve(bus_t *bus, uint64_t from, uint64_t length) {
    bool moved = true;
    while (moved) {
        moved = false;
        for (unsigned i = 0; i < BUS_SLOTS; i++)
            if (bus->start[i] < from + length && from < bus->end[i]) {
                from = bus->end[i];
                moved = true;
            }
    }
    bus->start[bus->head] = from;
    bus->end[bus->head] = from + length;
    bus->head = (bus->head + 1) % BUS_SLOTS;
    return from;
}

/* Looks a line up and makes it the most recent; false on a miss, then *victim_dirty tells about the line replaced. */
static bool touch(cache_t *cache, uint32_t address, bool store, bool *victim_dirty) {
    uint32_t line = address >> cache->line_bits, set = line & (cache->sets - 1);
    uint32_t *tag = cache->tag + (size_t)set * cache->ways, wanted = line << 1 | 1;
    uint8_t *dirty = cache->dirty + (size_t)set * cache->ways;
    uint64_t *arrival = cache->arrival + (size_t)set * cache->ways;
    uint32_t way = 0;
    if (likely(tag[0] == wanted)) {
        dirty[0] |= store;
        return true;
    }
    while (way < cache->ways - 1 && tag[way] != wanted)
        way++;
    bool hit = tag[way] == wanted;
    uint8_t d = hit ? dirty[way] : 0;
    uint64_t there = hit ? arrival[way] : 0;
    *victim_dirty = !hit && tag[way] & 1 && dirty[way];
    memmove(tag + 1, tag, way * sizeof *tag);
    memmove(dirty + 1, dirty, way);
    if (cache->autoload_lines) memmove(arrival + 1, arrival, way * sizeof *arrival);
    tag[0] = wanted;
    dirty[0] = d | store;
    arrival[0] = there;
    return hit;
}

static void wait_for_line(cpu_t *cpu, insn_t *ip, uint64_t cycles, lx7_stall_t cause) {
    uint64_t start = bus_reserve(&cpu->sim->bus, cpu->cyc, cycles);
    if (start != cpu->cyc) book_stall(cpu, ip, start - cpu->cyc, LX7_STALL_BUS);
    book_stall(cpu, ip, cycles, cause);
    cpu->cyc = start + cycles;
}

static bool holds(const cache_t *cache, uint32_t address) {
    uint32_t line = address >> cache->line_bits;
    const uint32_t *tag = cache->tag + (size_t)(line & (cache->sets - 1)) * cache->ways;
    for (uint32_t way = 0; way < cache->ways; way++)
        if (tag[way] == (line << 1 | 1)) return true;
    return false;
}

/* When the cache autoloads: waits for the accessed line if it is still on its way, and requests those after it, as far
 * as they are of the same memory. The core does not wait for these; the bus is busy with them. */
static void autoload(cpu_t *cpu, insn_t *ip, cache_t *cache, uint32_t address, bool hit, uint64_t fill_cycles,
                     lx7_stall_t cause) {
    lx7_sim_t *sim = cpu->sim;
    uint32_t line = address >> cache->line_bits;
    uint64_t there = cache->arrival[(size_t)(line & (cache->sets - 1)) * cache->ways];
    if (there > cpu->cyc) {
        book_stall(cpu, ip, there - cpu->cyc, cause);
        cpu->cyc = there;
    }
    if (cache->autoload_trigger != 2 && hit != (cache->autoload_trigger == 1)) return;
    for (uint32_t i = 1; i <= cache->autoload_lines; i++) {
        uint32_t next = (line + i) << cache->line_bits;
        bool victim_dirty = false;
        if ((sim->ptab[next >> PAGE_BITS] ^ sim->ptab[address >> PAGE_BITS]) & (PF_CLASS | PF_MAPPED)) return;
        if (holds(cache, next)) continue;
        touch(cache, next, false, &victim_dirty);
        if (victim_dirty) {
            cache->writeback++;
            bus_reserve(&sim->bus, cpu->cyc, sim->writeback_cycles);
        }
        uint64_t start = bus_reserve(&sim->bus, cpu->cyc, fill_cycles);
        cache->arrival[(size_t)((line + i) & (cache->sets - 1)) * cache->ways] = start + fill_cycles;
    }
}

/* The two flash windows are one memory. */
static uint32_t physical(uint32_t address) {
    return address - IO_CACHED < FLASH_SIZE ? address - IO_CACHED + IO_BASE : address;
}

void cache_data(cpu_t *cpu, insn_t *ip, uint32_t address, uint32_t size, lx7_region_class_t class_id, bool store) {
    lx7_sim_t *sim = cpu->sim;
    cache_t *cache = &sim->dcache;
    lx7_stall_t cause = store ? LX7_STALL_DCACHE_WR : LX7_STALL_DCACHE;
    uint32_t step = 1u << cache->line_bits, first = physical(address) & ~(step - 1),
             last = physical(address) + size - 1;
    if (sim->timing.dcache_hit) {
        book_stall(cpu, ip, (uint64_t)sim->timing.dcache_hit, cause);
        cpu->cyc += (uint64_t)sim->timing.dcache_hit;
    }
    for (uint32_t line = first; line <= last; line += step) {
        bool victim_dirty = false;
        bool hit = touch(cache, line, store, &victim_dirty);
        cache->access++;
        if (unlikely(!hit)) {
            cache->miss++;
            insn_extra(cpu, ip)->dcache_miss++;
            if (victim_dirty) {
                cache->writeback++;
                wait_for_line(cpu, ip, sim->writeback_cycles, LX7_STALL_DCACHE_WR);
            }
            wait_for_line(cpu, ip, sim->fill_cycles_d[class_id], cause);
        }
        if (unlikely(cache->autoload_lines)) autoload(cpu, ip, cache, line, hit, sim->fill_cycles_d[class_id], cause);
    }
}

void cache_fetch(cpu_t *cpu, insn_t *ip, uint32_t address, lx7_region_class_t class_id) {
    lx7_sim_t *sim = cpu->sim;
    bool victim_dirty;
    if (sim->timing.icache_hit) {
        book_stall(cpu, ip, (uint64_t)sim->timing.icache_hit, LX7_STALL_ICACHE);
        cpu->cyc += (uint64_t)sim->timing.icache_hit;
    }
    cache_t *cache = &sim->icache;
    uint32_t line = physical(address);
    bool hit = touch(cache, line, false, &victim_dirty);
    cache->access++;
    if (unlikely(!hit)) {
        cache->miss++;
        insn_extra(cpu, ip)->icache_miss++;
        wait_for_line(cpu, ip, sim->fill_cycles_i[class_id], LX7_STALL_ICACHE);
    }
    if (unlikely(cache->autoload_lines))
        autoload(cpu, ip, cache, line, hit, sim->fill_cycles_i[class_id], LX7_STALL_ICACHE);
}
