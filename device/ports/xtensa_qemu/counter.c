// SPDX-License-Identifier: Apache-2.0
#include "counter.h"

#include "hardware.h"

#define SAMPLES 32u // of CCOUNT, four instructions apart

static uint32_t tick_time, instruction_shift; // tick_time 0: no conversion
static uint32_t last_ccount;
static uint64_t ticks; // CCOUNT without its wrap

// At `origin_ticks` and `origin_phase` units of time (0 ... tick_time - 1) the count was `origin_count`.
static uint64_t origin_ticks, origin_count;
static uint32_t origin_phase;

// a + b. The compiler adds 64 bits with a branch on the carry, and a reading that costs one instruction more now and
// then shows in what it measures; this takes the same path for all values.
static uint64_t add(uint64_t a, uint64_t b) {
    uint32_t al = (uint32_t)a, bl = (uint32_t)b, low = al + bl;
    uint32_t carry = ((al & bl) | ((al | bl) & ~low)) >> 31;
    return (uint64_t)((uint32_t)(a >> 32) + (uint32_t)(b >> 32) + carry) << 32 | low;
}

static uint64_t subtract(uint64_t a, uint64_t b) {
    uint32_t al = (uint32_t)a, bl = (uint32_t)b, low = al - bl;
    uint32_t borrow = ((~al & bl) | ((~al | bl) & low)) >> 31;
    return (uint64_t)((uint32_t)(a >> 32) - (uint32_t)(b >> 32) - borrow) << 32 | low;
}

static uint64_t extend(uint32_t ccount) {
    ticks = add(ticks, ccount - last_ccount);
    last_ccount = ccount;
    return ticks;
}

static uint64_t count_at(uint64_t now) {
    if (!tick_time) return now;
    // A tick is no longer than an instruction, so at most one instruction starts in it.
    const uint64_t round_up = (1u << instruction_shift) - 1 - origin_phase; // a phase is shorter than an instruction
    const uint64_t elapsed = add(subtract(now, origin_ticks) * tick_time, round_up);
    return add(origin_count, elapsed >> instruction_shift);
}

void counter_init(uint32_t time_of_tick, uint32_t shift) {
    tick_time = time_of_tick;
    instruction_shift = shift;
    last_ccount = read_ccount();
    ticks = origin_ticks = origin_count = 0;
    counter_synchronize();
}

void counter_synchronize(void) {
    if (!tick_time) return;
    static uint32_t samples[SAMPLES];
    uint32_t *at = samples, *const end = samples + SAMPLES;
    uint32_t value;
    __asm__ volatile("1: rsr.ccount %1\n"
                     "   s32i %1, %0, 0\n"
                     "   addi %0, %0, 4\n"
                     "   bltu %0, %2, 1b\n"
                     : "+&a"(at), "=&a"(value)
                     : "a"(end)
                     : "memory");
    const uint64_t first = extend(samples[0]);
    origin_count = count_at(first);
    origin_ticks = first;
    // The phase under which the samples fall as they did: one fits, since 4 * 32 * i modulo 25 takes every value. None
    // fits when the clock jumped in between; then the origin, but no difference of later counts, is off by one.
    origin_phase = 0;
    for (uint32_t phase = 0; phase < tick_time; phase++) {
        uint32_t i = 1;
        while (i < SAMPLES && samples[i] - samples[0] == (phase + (i * 4 << instruction_shift)) / tick_time)
            i++;
        if (i < SAMPLES) continue;
        origin_phase = phase;
        break;
    }
}

uint64_t counter_read(void) {
    return count_at(extend(read_ccount()));
}
