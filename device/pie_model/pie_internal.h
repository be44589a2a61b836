/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the PIE model share: the generated tables, memory access, accumulator forms. Not for callers. */
#ifndef PIE_INTERNAL_H
#define PIE_INTERNAL_H

#include "pie_model.h"

/* Declared here: a freestanding toolchain need not have string.h. */
void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memset(void *to, int value, size_t size);

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the PIE model needs a little-endian machine"
#endif

/* ---- generated tables (pie_tables.c) ------------------------------------------------------------------- */

typedef struct pie_piece {
    uint8_t member; /* offset in pie_insn_t, or PIE_IMMEDIATE */
    uint8_t word_bit;
    uint8_t bits;
    uint8_t operand_bit;
} pie_piece_t;

typedef struct pie_format {
    uint16_t first_piece;
    uint8_t piece_count;
    uint8_t immediate_bits; /* 0: no immediate */
    uint8_t immediate_shift;
    uint8_t immediate_signed;
} pie_format_t;

typedef struct pie_usage_item {
    uint8_t what; /* offset in pie_insn_t of a register number, or PIE_USES_STATE + bit number of a PIE_STATE_* */
    uint8_t stage;
} pie_usage_item_t;

typedef struct pie_usage_span {
    uint16_t first;
    uint8_t reads;
    uint8_t writes;
} pie_usage_span_t;

enum { PIE_IMMEDIATE = 0xff, PIE_USES_STATE = 0x80 };

typedef struct pie_tables {
    const pie_piece_t *pieces;
    const pie_format_t *formats;
    const pie_opcode_info_t *infos;
    const pie_usage_item_t *usage_items;
    const pie_usage_span_t *usage_spans;
    const uint16_t *tree;
} pie_tables_t;

extern const pie_tables_t pie_tables;

/* ---- the functions behind the opcodes ------------------------------------------------------------------- */

#define PIE_ARGUMENTS const pie_insn_t *insn, pie_state_t *state, pie_core_t *core

/* Defines the function of one opcode. The arguments are in scope of the body. */
#define PIE_INSTRUCTION(function) pie_status_t pie_##function(PIE_ARGUMENTS)

#define PIE_PROTOTYPE(id, function) PIE_INSTRUCTION(function);
PIE_OPCODES(PIE_PROTOTYPE)
#undef PIE_PROTOTYPE

#define PIE_INLINE static inline __attribute__((always_inline))
#define PIE_UNUSED(x) ((void)(x))

/* ---- registers ------------------------------------------------------------------------------------------ */

PIE_INLINE uint32_t *pie_ar(const pie_core_t *core, unsigned n) {
    return &core->ar[(core->ar_base + n) & core->ar_mask];
}

PIE_INLINE unsigned pie_sar(const pie_core_t *core) {
    return *core->sar & 63;
}

/* ---- QACC in its three forms ------------------------------------------------------------------------------ */

enum { PIE_FORM_20 = 1, PIE_FORM_40 = 2, PIE_FORM_RAW = 4 };

#define PIE_LIKELY(x) __builtin_expect(!!(x), 1)

/* Brings the form up to date from another one; the others stay valid. */
void pie_qacc_convert(pie_state_t *state, unsigned form);

PIE_INLINE void pie_qacc_need(pie_state_t *state, unsigned form) {
    if (!PIE_LIKELY(state->qacc_forms & form)) pie_qacc_convert(state, form);
}

/* Sign-extends the low 40 bits. */
PIE_INLINE int64_t pie_extend40(int64_t value) {
    return (int64_t)((uint64_t)value << 24) >> 24;
}

/* ---- memory --------------------------------------------------------------------------------------------- */

/* The masked address of an access; reports a misaligned one. size is a power of two. */
PIE_INLINE uint32_t pie_address(const pie_insn_t *insn, pie_core_t *core, uint32_t address, uint32_t size,
                                bool report) {
    uint32_t masked = address & ~(size - 1);
    if (report && address != masked && core->bus.misaligned)
        core->bus.misaligned(core->bus.context, insn, address, size);
    core->access_address = masked;
    return masked;
}

#ifdef PIE_DIRECT_MEMORY
/* Words that may alias anything: what the compiler turns into plain l32i and s32i, not a call of memcpy. */
typedef struct {
    uint32_t word[4];
} __attribute__((may_alias)) pie_words4_t;
typedef struct {
    uint32_t word[2];
} __attribute__((may_alias)) pie_words2_t;
typedef uint32_t __attribute__((may_alias)) pie_word_t;
typedef uint16_t __attribute__((may_alias)) pie_halfword_t;

PIE_INLINE void pie_copy_aligned(void *to, const void *from, uint32_t size) {
    if (size == 16)
        *(pie_words4_t *)to = *(const pie_words4_t *)from;
    else if (size == 8)
        *(pie_words2_t *)to = *(const pie_words2_t *)from;
    else if (size == 4)
        *(pie_word_t *)to = *(const pie_word_t *)from;
    else if (size == 2)
        *(pie_halfword_t *)to = *(const pie_halfword_t *)from;
    else
        *(uint8_t *)to = *(const uint8_t *)from;
}
#endif

/*
 * Every function of an opcode that accesses memory does so before it changes any register, so that a failed
 * access changes nothing. data is aligned to min(size, 4) and its size a compile-time constant.
 */
PIE_INLINE bool pie_load_any(const pie_insn_t *insn, pie_core_t *core, uint32_t address, void *data, uint32_t size,
                             bool report) {
    uint32_t masked = pie_address(insn, core, address, size, report);
#ifdef PIE_DIRECT_MEMORY
    pie_copy_aligned(data, (const void *)(uintptr_t)masked, size);
    return true;
#else
    const pie_bus_t *bus = &core->bus;
    if (PIE_LIKELY(bus->load_pages != NULL)) {
        const uint8_t *page = bus->load_pages[masked >> bus->page_shift];
        if (PIE_LIKELY(page != NULL)) {
            memcpy(data, page + (masked & ((1u << bus->page_shift) - 1)), size);
            return true;
        }
    }
    return bus->load && bus->load(bus->context, masked, data, size);
#endif
}

PIE_INLINE bool pie_load(const pie_insn_t *insn, pie_core_t *core, uint32_t address, void *data, uint32_t size) {
    return pie_load_any(insn, core, address, data, size, true);
}

/* For the opcodes made for unaligned pointers (PIE_UNALIGNED_OK). */
PIE_INLINE bool pie_load_unaligned(const pie_insn_t *insn, pie_core_t *core, uint32_t address, void *data,
                                   uint32_t size) {
    return pie_load_any(insn, core, address, data, size, false);
}

PIE_INLINE bool pie_store(const pie_insn_t *insn, pie_core_t *core, uint32_t address, const void *data, uint32_t size) {
    uint32_t masked = pie_address(insn, core, address, size, true);
#ifdef PIE_DIRECT_MEMORY
    pie_copy_aligned((void *)(uintptr_t)masked, data, size);
    return true;
#else
    const pie_bus_t *bus = &core->bus;
    if (PIE_LIKELY(bus->store_pages != NULL)) {
        uint8_t *page = bus->store_pages[masked >> bus->page_shift];
        if (PIE_LIKELY(page != NULL)) {
            memcpy(page + (masked & ((1u << bus->page_shift) - 1)), data, size);
            return true;
        }
    }
    return bus->store && bus->store(bus->context, masked, data, size);
#endif
}

/* {high, low} >> 8 * bytes, the low 16 bytes: what SRC.Q makes of two consecutive aligned vectors. */
PIE_INLINE pie_q_t pie_funnel(pie_q_t low, pie_q_t high, unsigned bytes) {
    pie_q_t pair[2] = {low, high}, result;
    memcpy(&result, (const uint8_t *)pair + bytes, sizeof result);
    return result;
}

#endif
