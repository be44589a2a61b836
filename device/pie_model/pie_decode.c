/* SPDX-License-Identifier: Apache-2.0 */
/* Decoding, dispatch, disassembly and static facts, all from the generated tables. */
#include "pie_internal.h"

enum { LEAF = 0x8000 };

bool pie_decode(const uint8_t *bytes, pie_insn_t *insn) {
    uint32_t word = bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16;
    if ((word & 14) == 14) word |= (uint32_t)bytes[3] << 24;

    const uint16_t *tree = pie_tables.tree;
    uint32_t at = 1;
    do {
        uint32_t shift = tree[at] & 0xff, width = tree[at] >> 8;
        at = tree[at + 1 + (word >> shift & ((1u << width) - 1))];
        if (at == 0) return false;
    } while (!(at & LEAF));
    uint32_t opcode = at & ~(uint32_t)LEAF;
    const pie_opcode_info_t *info = &pie_tables.infos[opcode];
    if ((word & info->mask) != info->match) return false;

    const pie_format_t *format = &pie_tables.formats[opcode];
    const pie_piece_t *piece = &pie_tables.pieces[format->first_piece];
    uint32_t immediate = 0;
    pie_insn_t decoded = {.opcode = (uint16_t)opcode, .length = info->length};
    for (unsigned n = format->piece_count; n; n--, piece++) {
        uint32_t bits = (word >> piece->word_bit & ((1u << piece->bits) - 1)) << piece->operand_bit;
        if (piece->member == PIE_IMMEDIATE)
            immediate |= bits;
        else
            ((uint8_t *)&decoded)[piece->member] |= (uint8_t)bits;
    }
    if (format->immediate_signed) {
        uint32_t sign = 1u << (format->immediate_bits - 1);
        immediate = (immediate ^ sign) - sign;
    }
    decoded.imm = (int32_t)(immediate << format->immediate_shift);
    *insn = decoded;
    return true;
}

pie_status_t pie_execute(const pie_insn_t *insn, pie_state_t *state, pie_core_t *core) {
    return pie_execute_table[insn->opcode](insn, state, core);
}

const pie_opcode_info_t *pie_opcode_info(unsigned opcode) {
    return opcode < PIE_OPCODE_COUNT ? &pie_tables.infos[opcode] : NULL;
}

/* ---- usage ---------------------------------------------------------------------------------------------- */

static void use_one(const pie_insn_t *insn, unsigned what, uint8_t *q, uint16_t *a, uint16_t *f, uint16_t *state) {
    if (what >= PIE_USES_STATE) {
        *state = (uint16_t)(*state | 1u << (what - PIE_USES_STATE));
        return;
    }
    unsigned number = ((const uint8_t *)insn)[what];
    if (what >= offsetof(pie_insn_t, f))
        *f = (uint16_t)(*f | 1u << number);
    else if (what >= offsetof(pie_insn_t, as))
        *a = (uint16_t)(*a | 1u << number);
    else
        *q = (uint8_t)(*q | 1u << number);
}

void pie_usage(const pie_insn_t *insn, pie_usage_t *usage) {
    const pie_usage_span_t *span = &pie_tables.usage_spans[insn->opcode];
    const pie_usage_item_t *item = &pie_tables.usage_items[span->first];
    memset(usage, 0, sizeof *usage);
    for (unsigned n = span->reads; n; n--, item++) {
        unsigned s = item->stage - 1u;
        use_one(insn, item->what, &usage->q_use[s], &usage->a_use[s], &usage->f_use[s], &usage->state_use[s]);
    }
    for (unsigned n = span->writes; n; n--, item++) {
        unsigned s = item->stage - 1u;
        use_one(insn, item->what, &usage->q_def[s], &usage->a_def[s], &usage->f_def[s], &usage->state_def[s]);
    }
}

/* ---- disassembly ---------------------------------------------------------------------------------------- */

typedef struct text {
    char *at;
    size_t size;
    int length;
} text_t;

static void put(text_t *text, char c) {
    if ((size_t)text->length + 1 < text->size) text->at[text->length] = c;
    text->length++;
}

static void put_string(text_t *text, const char *string) {
    while (*string)
        put(text, *string++);
}

/* value below 256; without division, for which cores without the instruction need a library */
static void put_decimal(text_t *text, uint32_t value) {
    bool started = false;
    for (uint32_t unit = 100; unit; unit = unit == 100 ? 10 : unit == 10 ? 1 : 0) {
        char digit = '0';
        while (value >= unit)
            value -= unit, digit++;
        started |= digit != '0' || unit == 1;
        if (started) put(text, digit);
    }
}

static void put_hexadecimal(text_t *text, uint32_t value) {
    int shift = 28;
    while (shift && !(value >> shift))
        shift -= 4;
    for (; shift >= 0; shift -= 4)
        put(text, "0123456789abcdef"[value >> shift & 15]);
}

/* objdump prints what lies between -256 and 256 in decimal, anything else as an unsigned hexadecimal word. */
static void put_immediate(text_t *text, int32_t value) {
    if (value > -256 && value < 256) {
        if (value < 0) put(text, '-');
        put_decimal(text, (uint32_t)(value < 0 ? -value : value));
    } else {
        put_string(text, "0x");
        put_hexadecimal(text, (uint32_t)value);
    }
}

typedef struct operand_name {
    char name[5];
    char prefix; /* 0: a number */
    uint8_t member;
} operand_name_t;

#define REGISTER(letter, member)                                                                                       \
    { #member, letter, offsetof(pie_insn_t, member) }
#define NUMBER(member)                                                                                                 \
    { #member, 0, offsetof(pie_insn_t, member) }
static const operand_name_t operand_names[] = {
    REGISTER('q', qz),
    REGISTER('q', qz1),
    REGISTER('q', qx),
    REGISTER('q', qy),
    REGISTER('q', qm),
    REGISTER('q', qu),
    REGISTER('q', qu1),
    REGISTER('q', qs0),
    REGISTER('q', qs1),
    REGISTER('a', as),
    REGISTER('a', ad),
    REGISTER('a', at),
    REGISTER('a', ax),
    REGISTER('a', ay),
    NUMBER(sel),
    NUMBER(lane),
    NUMBER(upd),
    NUMBER(sar),
    {"f0", 'f', offsetof(pie_insn_t, f)},
    {"f1", 'f', offsetof(pie_insn_t, f) + 1},
    {"f2", 'f', offsetof(pie_insn_t, f) + 2},
    {"f3", 'f', offsetof(pie_insn_t, f) + 3},
};

static bool starts_with(const char *string, const char *name, size_t length) {
    size_t i = 0;
    for (; i < length && name[i]; i++)
        if (string[i] != name[i]) return false;
    return i == length && !name[i];
}

int pie_disassemble(const pie_insn_t *insn, char *text, size_t size) {
    text_t out = {text, size, 0};
    const pie_opcode_info_t *info = pie_opcode_info(insn->opcode);
    if (!info) {
        put_string(&out, "?");
    } else {
        put_string(&out, info->mnemonic);
        for (const char *syntax = info->syntax; *syntax;) {
            size_t length = 0;
            while (syntax[length] && syntax[length] != ',')
                length++;
            put_string(&out, syntax == info->syntax ? " " : ", ");
            const operand_name_t *name = NULL;
            for (size_t i = 0; i < sizeof operand_names / sizeof *operand_names; i++)
                if (starts_with(syntax, operand_names[i].name, length)) name = &operand_names[i];
            if (!name) { /* imm1 .. imm16 */
                put_immediate(&out, insn->imm);
            } else {
                if (name->prefix) put(&out, name->prefix);
                put_decimal(&out, ((const uint8_t *)insn)[name->member]);
            }
            syntax += length;
            if (*syntax) syntax += 2; /* ", " */
        }
    }
    if (size) text[(size_t)out.length < size ? (size_t)out.length : size - 1] = 0;
    return out.length;
}
