// SPDX-License-Identifier: Apache-2.0
// Prints operands and results of the arithmetic helpers, for the host to check, and checks the memory functions against
// byte loops at every alignment.

#include "print.h"

#include <string.h>

static uint64_t state = 88172645463325252u;

// xorshift64 (Marsaglia, "Xorshift RNGs", 2003); shifted so that short operands occur.
static uint64_t random_value(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state >> (state & 31) >> (state >> 8 & 31);
}

static void arithmetic(uint64_t x, uint64_t y) {
    const int64_t sx = (int64_t)(x << 1), sy = (int64_t)(y << 1 | 1);
    const uint32_t a = (uint32_t)x, b = (uint32_t)y | 1;
    print("arithmetic");
    print_hex(x);
    print_hex(y);
    print_hex(x * y);
    print_hex(x / y);
    print_hex(x % y);
    print_hex((uint64_t)(sx / sy));
    print_hex((uint64_t)(sx % sy));
    print_hex((uint64_t)a * b);
    print_hex((uint64_t)((int64_t)(int32_t)a * (int32_t)b));
    print_hex(a / b);
    print_hex(a % b);
    print_hex((uint32_t)((int32_t)a / (int32_t)b));
    print_hex((uint32_t)((int32_t)a % (int32_t)b));
    print("\n");
}

enum { ROOM = 96 };
static uint8_t expected[ROOM], got[ROOM], source[ROOM];

static void check(const char *what, uint32_t to, uint32_t from, uint32_t bytes) {
    for (uint32_t i = 0; i < ROOM; i++)
        if (expected[i] != got[i]) {
            print(what);
            print_hex(to);
            print_hex(from);
            print_hex(bytes);
            print(" differs\n");
            return;
        }
}

static void reset(void) {
    for (uint32_t i = 0; i < ROOM; i++) {
        source[i] = (uint8_t)random_value();
        expected[i] = got[i] = (uint8_t)random_value();
    }
}

// Each byte through a volatile pointer, so that no library function is used to check the library.
static void expect(uint32_t to, const uint8_t *values, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes; i++)
        *(volatile uint8_t *)&expected[to + i] = values[i];
}

static void memory(uint32_t to, uint32_t from, uint32_t bytes) {
    uint8_t values[ROOM];
    reset();
    expect(to, source + from, bytes);
    memcpy(got + to, source + from, bytes);
    check("memcpy", to, from, bytes);

    reset();
    for (uint32_t i = 0; i < bytes; i++)
        *(volatile uint8_t *)&values[i] = got[from + i];
    expect(to, values, bytes);
    memmove(got + to, got + from, bytes);
    check("memmove", to, from, bytes);

    reset();
    for (uint32_t i = 0; i < bytes; i++)
        *(volatile uint8_t *)&values[i] = 0xa7;
    expect(to, values, bytes);
    memset(got + to, 0x3a7, bytes);
    check("memset", to, from, bytes);

    const int same = memcmp(got + to, expected + to, bytes);
    if (same) print("memcmp of equal bytes differs\n");
    if (bytes) {
        got[to + bytes - 1] ^= 0x80;
        const int order = memcmp(got + to, expected + to, bytes);
        if ((order < 0) != (got[to + bytes - 1] < expected[to + bytes - 1]) || !order) print("memcmp differs\n");
    }
}

void port_main(uint32_t boot_parameters) {
    (void)boot_parameters;
    uart_init();
    for (int i = 0; i < 200; i++)
        arithmetic(random_value(), random_value() | 1);
    for (uint32_t to = 0; to < 20; to += to < 8 ? 1 : 4)
        for (uint32_t from = 0; from < 20; from += from < 8 ? 1 : 4)
            for (uint32_t bytes = 0; bytes < 40; bytes += bytes < 9 ? 1 : 10)
                memory(to, from, bytes);
    const char *text = "strlen";
    if (strlen(text) != 6 || strlen(text + 6) != 0) print("strlen differs\n");
    finish();
}
