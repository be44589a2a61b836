/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A flat interface to the PIE model for the tests: one structure without padding rules to mirror, one core, one
 * window of memory. Built as a shared library together with the model.
 */
#include "pie_model.h"

#if __STDC_HOSTED__
#include <string.h>
#else
void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memset(void *to, int value, size_t size);
#endif

typedef struct driver_machine {
    uint8_t q[8][16];
    uint8_t qacc_l[20], qacc_h[20];
    uint8_t ua_state[16];
    uint8_t accx[8]; /* little endian, sign-extended */
    uint32_t sar, sar_byte, fft_bit_width, gpio_out, gpio_in;
    uint32_t ar[64]; /* physical registers */
    uint32_t ar_base, ar_mask;
    uint32_t fr[16];
    uint32_t memory_base, memory_size; /* addresses memory_base .. memory_base + memory_size - 1 are memory[] */
    uint32_t use_pages;                /* 0: through the callbacks */
    uint32_t access_address;           /* out */
    uint32_t misaligned_count, misaligned_address, misaligned_size; /* out */
    uint32_t qacc_form; /* bring QACC into this form first: 0 as written, 1, 2 or 4 */
    uint8_t *memory;
} driver_machine_t;

static bool load(void *context, uint32_t address, void *data, uint32_t size) {
    driver_machine_t *machine = context;
    if (address < machine->memory_base || address - machine->memory_base + size > machine->memory_size) return false;
    memcpy(data, machine->memory + (address - machine->memory_base), size);
    return true;
}

static bool store(void *context, uint32_t address, const void *data, uint32_t size) {
    driver_machine_t *machine = context;
    if (address < machine->memory_base || address - machine->memory_base + size > machine->memory_size) return false;
    memcpy(machine->memory + (address - machine->memory_base), data, size);
    return true;
}

static void misaligned(void *context, const pie_insn_t *insn, uint32_t address, uint32_t size) {
    driver_machine_t *machine = context;
    (void)insn;
    machine->misaligned_count++;
    machine->misaligned_address = address;
    machine->misaligned_size = size;
}

enum { PAGE_SHIFT = 12, PAGE_TABLE = 1 << 10 }; /* addresses below 4 MiB */

/* Executes count instructions, one after the other; -1 when one does not decode, else the status of the last one. */
int driver_run(driver_machine_t *machine, const uint8_t *code, uint32_t bytes) {
    static uint8_t *pages[PAGE_TABLE];
    pie_state_t state;
    pie_core_t core = {
        .ar = machine->ar,
        .ar_base = machine->ar_base,
        .ar_mask = machine->ar_mask,
        .sar = &machine->sar,
        .fr = machine->fr,
        .gpio_in = (uint8_t)machine->gpio_in,
        .bus = {.load = load, .store = store, .misaligned = misaligned, .context = machine},
    };
    if (machine->use_pages) {
        memset(pages, 0, sizeof pages);
        for (uint32_t offset = 0; offset < machine->memory_size; offset += 1 << PAGE_SHIFT)
            pages[(machine->memory_base + offset) >> PAGE_SHIFT] = machine->memory + offset;
        core.bus.load_pages = core.bus.store_pages = pages;
        core.bus.page_shift = PAGE_SHIFT;
    }

    pie_reset(&state);
    memcpy(state.q, machine->q, sizeof machine->q);
    pie_qacc_write(&state, machine->qacc_l, machine->qacc_h);
    memcpy(&state.ua_state, machine->ua_state, 16);
    memcpy(&state.accx, machine->accx, 8);
    state.sar_byte = (uint8_t)machine->sar_byte;
    state.fft_bit_width = (uint8_t)machine->fft_bit_width;
    state.gpio_out = (uint8_t)machine->gpio_out;
    if (machine->qacc_form) { /* an instruction that changes no lane and leaves the form in question */
        pie_insn_t srcmb = {.opcode = machine->qacc_form == 1 ? PIE_EE_SRCMB_S8_QACC : PIE_EE_SRCMB_S16_QACC, .qu = 0};
        uint32_t zero = 0;
        pie_core_t idle = {.ar = &zero};
        pie_q_t saved = state.q[0];
        pie_execute(&srcmb, &state, &idle);
        state.q[0] = saved;
    }

    int status = PIE_OK;
    machine->misaligned_count = 0;
    for (uint32_t at = 0; at < bytes && status == PIE_OK;) {
        pie_insn_t insn;
        if (!pie_decode(code + at, &insn)) return -1;
        status = pie_execute(&insn, &state, &core);
        at += insn.length;
    }

    memcpy(machine->q, state.q, sizeof machine->q);
    pie_qacc_read(&state, machine->qacc_l, machine->qacc_h);
    memcpy(machine->ua_state, &state.ua_state, 16);
    memcpy(machine->accx, &state.accx, 8);
    machine->sar_byte = state.sar_byte;
    machine->fft_bit_width = state.fft_bit_width;
    machine->gpio_out = state.gpio_out;
    machine->access_address = core.access_address;
    return status;
}

/* Decodes and disassembles: the opcode's id or -1; length and text are untouched then. */
int driver_disassemble(const uint8_t *bytes, uint32_t *length, char *text, uint32_t size) {
    pie_insn_t insn;
    if (!pie_decode(bytes, &insn)) return -1;
    *length = insn.length;
    pie_disassemble(&insn, text, size);
    return insn.opcode;
}

/* The usage of the instruction at bytes as 16 words: q, a, f, state; each use stage 1, 2, def stage 1, 2. */
int driver_usage(const uint8_t *bytes, uint32_t words[16]) {
    pie_insn_t insn;
    pie_usage_t usage;
    if (!pie_decode(bytes, &insn)) return -1;
    pie_usage(&insn, &usage);
    for (int s = 0; s < 2; s++) {
        words[s] = usage.q_use[s], words[2 + s] = usage.q_def[s];
        words[4 + s] = usage.a_use[s], words[6 + s] = usage.a_def[s];
        words[8 + s] = usage.f_use[s], words[10 + s] = usage.f_def[s];
        words[12 + s] = usage.state_use[s], words[14 + s] = usage.state_def[s];
    }
    return insn.opcode;
}

const char *driver_mnemonic(uint32_t opcode) {
    const pie_opcode_info_t *info = pie_opcode_info(opcode);
    return info ? info->mnemonic : NULL;
}
