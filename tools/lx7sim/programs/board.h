/* SPDX-License-Identifier: Apache-2.0 */
/* UART and cycle counter of kc705-nommu for the bare test programs. */
#ifndef LX7SIM_BOARD_H
#define LX7SIM_BOARD_H
#include <stdint.h>

static inline void put_char(int c) {
    volatile uint32_t *uart = (volatile uint32_t *)0x9d050020;
    while (!(uart[5] & 0x20)) {
    }
    uart[0] = (uint32_t)c;
}

static inline void put_string(const char *s) {
    while (*s)
        put_char(*s++);
}

static inline void put_hex(uint32_t value) {
    for (int shift = 28; shift >= 0; shift -= 4)
        put_char("0123456789abcdef"[value >> shift & 15]);
}

static inline uint32_t cycle_count(void) {
    uint32_t value;
    __asm__ volatile("rsr %0, ccount" : "=a"(value));
    return value;
}

#endif
