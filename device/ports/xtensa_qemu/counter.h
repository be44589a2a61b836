// SPDX-License-Identifier: Apache-2.0
// CCOUNT as a counter of 64 bits, in executed instructions where the emulator's clock permits.
//
// With `-icount shift=s` QEMU's clock advances 2^s ns an instruction, and CCOUNT is that clock in whole ticks of the
// core: one tick every 25 ns on de212 (40 MHz). So CCOUNT advances 2^s / 25 an instruction: for s = 5 a tick or two at
// each, and the number of instructions can be computed back exactly, provided the time within a tick is known, too.
// While the core sleeps the clock follows the host's, so counter_synchronize() finds that time anew after each sleep.
// CCOUNT wraps after 2^32 * 25 / 32 = 3.3e9 instructions: read the counter more often than that.
#ifndef XTENSA_QEMU_COUNTER_H
#define XTENSA_QEMU_COUNTER_H

#include <stdint.h>

// A tick of CCOUNT takes `tick_time` units and an instruction 2^instruction_shift: 25 and 5 above. The tick must not be
// the longer one, or instructions could not be told apart. A tick_time of 0: CCOUNT counts what is to be counted
// (cycles).
void counter_init(uint32_t tick_time, uint32_t instruction_shift);

// Call after the core slept.
void counter_synchronize(void);

// Instructions since the start, or ticks.
uint64_t counter_read(void);

#endif
