// SPDX-License-Identifier: Apache-2.0
#include "probe.h"

#include <stdint.h>

#include "kernels/pie/workspace.h"
#include "tvit/runtime.h"

static int portable_only;

// Generated code is written through the data bus and fetched through the instruction bus. Espressif's QEMU of 2026 has
// two memories there.
static int is_on_both_buses(void) {
    static volatile uint32_t word;
    const volatile uint32_t *other = (const volatile uint32_t *)((uintptr_t)&word + TVIT_EXECUTABLE_OFFSET);
    for (uint32_t i = 0; i < 2; i++) {
        word = i ? 0x00ff55aau : 0xaa55ff00u;
        __asm__ volatile("memw" ::: "memory");
        if (*other != word) return 0;
    }
    return 1;
}

// EE.LDXQ.32 loads from as + 4 * index; the same QEMU, 4 bytes below.
static int loads_by_index(void) {
    static const uint32_t table[4] = {0x11111111u, 0x22222222u, 0x33333333u, 0x44444444u};
    static const int16_t indices[8] __attribute__((aligned(16))) = {2, 2, 2, 2, 2, 2, 2, 2};
    const int16_t *from = indices;
    uint32_t loaded;
    __asm__ volatile("ee.vld.128.ip q0, %1, 0\n"
                     "ee.ldxq.32 q1, q0, %2, 0, 3\n"
                     "ee.movi.32.a q1, %0, 0\n"
                     : "=a"(loaded), "+a"(from)
                     : "a"(table)
                     : "memory");
    return loaded == table[2];
}

const char *probe_vector_kernels(void) {
    const char *why = !is_on_both_buses() ? "SRAM is not on both buses" : !loads_by_index() ? "EE.LDXQ.32" : NULL;
    portable_only = why != NULL;
    return why;
}

const tvit_kernel_table *__real_tvit_kernels_for(const tvit_model *model);
const tvit_kernel_table *__wrap_tvit_kernels_for(const tvit_model *model);

const tvit_kernel_table *__wrap_tvit_kernels_for(const tvit_model *model) {
    return portable_only ? &tvit_kernels_portable : __real_tvit_kernels_for(model);
}
