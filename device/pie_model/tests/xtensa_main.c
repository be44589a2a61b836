/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs the golden cases on an Xtensa core: the model as a trap handler contains it, compiled by the same compiler.
 * The cases lie behind the program (symbol cases), made by host/tests/test_pie_model_xtensa.py. Prints through the
 * semihosting calls of qemu-system-xtensa and ends with status 0 when no case failed.
 */
#include "pie_driver.c"

enum { WINDOW = 8192, BUFFER_SIZE = 512 };

typedef struct golden_case {
    uint8_t code[4];
    uint32_t length;
    uint32_t buffer;   /* offset in the window */
    uint32_t pointers; /* bit n: an is an offset from the buffer */
    uint8_t before[offsetof(driver_machine_t, memory_base)];
    uint8_t after[offsetof(driver_machine_t, memory_base)];
    uint8_t memory_before[BUFFER_SIZE];
    uint8_t memory_after[BUFFER_SIZE];
} golden_case_t;

extern const golden_case_t cases[];
extern const uint32_t case_count;

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    for (size_t i = 0; i < size; i++)
        ((volatile uint8_t *)to)[i] = ((const uint8_t *)from)[i];
    return to;
}

void *memset(void *to, int value, size_t size) {
    for (size_t i = 0; i < size; i++)
        ((volatile uint8_t *)to)[i] = (uint8_t)value;
    return to;
}

int memcmp(const void *a, const void *b, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (((const uint8_t *)a)[i] != ((const uint8_t *)b)[i]) return 1;
    return 0;
}

static void print_number(const char *label, uint32_t value) {
    static char line[64];
    int length = 0;
    while (label[length])
        line[length] = label[length], length++;
    for (int shift = 28; shift >= 0; shift -= 4)
        line[length++] = "0123456789abcdef"[value >> shift & 15];
    line[length++] = '\n';
    register uint32_t call __asm__("a2") = 4; /* write */
    register uint32_t file __asm__("a3") = 1;
    register const char *text __asm__("a4") = line;
    register int size __asm__("a5") = length;
    __asm__ volatile(".byte 0x00, 0x51, 0x00" /* simcall */
                     : "+r"(call), "+r"(file)
                     : "r"(text), "r"(size)
                     : "memory");
}

static void enter(driver_machine_t *machine, const golden_case_t *test, const uint8_t *registers, uint32_t base) {
    memset(machine, 0, sizeof *machine);
    memcpy(machine, registers, sizeof test->before);
    machine->ar_base = 0;
    machine->ar_mask = 15;
    for (int n = 0; n < 16; n++)
        if (test->pointers >> n & 1) machine->ar[n] += base + test->buffer;
}

int main(void) {
    static uint8_t window[WINDOW] __attribute__((aligned(16))), expected[WINDOW];
    static driver_machine_t got, wanted;
    uint32_t failures = 0, base = (uint32_t)(uintptr_t)window;
    for (uint32_t i = 0; i < case_count; i++) {
        const golden_case_t *test = &cases[i];
        memset(window, 0x5a, sizeof window);
        memset(expected, 0x5a, sizeof expected);
        memcpy(window + test->buffer, test->memory_before, BUFFER_SIZE);
        memcpy(expected + test->buffer, test->memory_after, BUFFER_SIZE);
        enter(&got, test, test->before, base);
        enter(&wanted, test, test->after, base);
        int status = driver_run(&got, test->code, test->length);
        if (status || memcmp(&got, &wanted, sizeof test->before) || memcmp(window, expected, sizeof window)) {
            if (failures < 10) print_number("failed case ", i);
            failures++;
        }
    }
    print_number("cases ", case_count);
    print_number("failures ", failures);
    return failures != 0;
}
