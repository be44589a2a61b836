/* SPDX-License-Identifier: Apache-2.0 */
/* Code pages: the decode array, its timing facts, dropping of overwritten instructions, the disassembler. */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Timing classes of ops.def. */
enum {
    CLASS_ALU,
    CLASS_MUL16,
    CLASS_MUL32,
    CLASS_MULH,
    CLASS_DIV,
    CLASS_LOAD,
    CLASS_STORE,
    CLASS_S32C1I,
    CLASS_JUMP,
    CLASS_JUMP_REG,
    CLASS_CALL,
    CLASS_CALL_REG,
    CLASS_RET,
    CLASS_RETW,
    CLASS_ENTRY,
    CLASS_RFE,
    CLASS_BRANCH,
    CLASS_LOOP,
    CLASS_SREG,
    CLASS_DEVICE,
    CLASS_ISYNC,
    CLASS_RSYNC,
    CLASS_MEMW,
    CLASS_FADD,
    CLASS_FMUL,
    CLASS_FMADD,
    CLASS_FCONV,
    CLASS_FCMP,
    CLASS_FMOV,
    CLASS_FEST,
    CLASS_FLOAD,
    CLASS_FSTORE,
    CLASS_WFR,
    CLASS_RFR,
    CLASS_PIE,
    CLASS_COUNT
};

static const struct {
    const char *mnemonic, *operands;
    uint8_t timing_class;
} op_table[OP_COUNT] = {
#define I(id, mnemonic, operands, class_id) [OP_##id] = {mnemonic, operands, CLASS_##class_id},
#define C(id, mnemonic, operands, class_id) [OP_##id] = {mnemonic, operands, CLASS_##class_id},
#include "ops.def"
#undef I
#undef C
};

/* Result latency, or refill cycles of control transfers, of a class. */
static uint8_t class_latency(const timing_t *timing, unsigned class_id) {
    switch (class_id) {
    case CLASS_MUL16:
        return (uint8_t)timing->latency_mul16;
    case CLASS_MUL32:
        return (uint8_t)timing->latency_mul32;
    case CLASS_MULH:
        return (uint8_t)timing->latency_mulh;
    case CLASS_DIV:
        return (uint8_t)timing->latency_div;
    case CLASS_LOAD:
        return (uint8_t)timing->latency_load;
    case CLASS_S32C1I:
        return (uint8_t)timing->latency_load;
    case CLASS_JUMP:
        return (uint8_t)timing->transfer_jump;
    case CLASS_JUMP_REG:
        return (uint8_t)timing->transfer_jump_register;
    case CLASS_CALL:
        return (uint8_t)timing->transfer_call;
    case CLASS_CALL_REG:
        return (uint8_t)timing->transfer_call_register;
    case CLASS_RET:
        return (uint8_t)timing->transfer_return;
    case CLASS_RETW:
        return (uint8_t)timing->transfer_return_windowed;
    case CLASS_ENTRY:
        return (uint8_t)timing->transfer_entry;
    case CLASS_RFE:
        return (uint8_t)timing->transfer_return_exception;
    case CLASS_BRANCH:
        return (uint8_t)timing->transfer_branch_taken;
    case CLASS_LOOP:
        return (uint8_t)timing->transfer_branch_taken; /* LOOPNEZ, LOOPGTZ that skip the loop */
    case CLASS_SREG:
    case CLASS_DEVICE:
        return (uint8_t)timing->latency_special_register;
    case CLASS_FADD:
        return (uint8_t)timing->latency_fp_add;
    case CLASS_FMUL:
        return (uint8_t)timing->latency_fp_mul;
    case CLASS_FMADD:
        return (uint8_t)timing->latency_fp_madd;
    case CLASS_FCONV:
        return (uint8_t)timing->latency_fp_convert;
    case CLASS_FCMP:
        return (uint8_t)timing->latency_fp_compare;
    case CLASS_FMOV:
        return (uint8_t)timing->latency_fp_move;
    case CLASS_FEST:
        return (uint8_t)timing->latency_fp_estimate;
    case CLASS_FLOAD:
        return (uint8_t)timing->latency_fp_load;
    case CLASS_WFR:
        return (uint8_t)timing->latency_wfr;
    case CLASS_RFR:
        return (uint8_t)timing->latency_rfr;
    default:
        return 1;
    }
}

/* What an instruction that has to wait for a result of this class is waiting for. */
static uint8_t class_cause(unsigned class_id) {
    switch (class_id) {
    case CLASS_DIV:
        return LX7_STALL_DIV;
    case CLASS_MUL16:
    case CLASS_MUL32:
    case CLASS_MULH:
        return LX7_STALL_MUL;
    case CLASS_LOAD:
    case CLASS_FLOAD:
    case CLASS_S32C1I:
        return LX7_STALL_LOAD;
    case CLASS_SREG:
    case CLASS_DEVICE:
        return LX7_STALL_SREG;
    default:
        return LX7_STALL_FPU;
    }
}

static uint8_t field(const insn_t *insn, char name) {
    return name == 'r' ? insn->r : name == 's' ? insn->s : insn->t;
}

/* Scoreboard sources, destination and highest address register from the operand string. */
static void set_resources(const lx7_sim_t *sim, insn_t *insn) {
    unsigned n_src = 0, highest = 0;
    insn->dst = RES_NONE;
    for (int i = 0; i < 4; i++)
        insn->src[i] = RES_NONE;
    for (const char *p = op_table[insn->opid].operands; *p; p++) {
        char kind = *p;
        if (kind == ' ' || kind == 'i' || kind == 'j' || kind == 'x' || kind == 'S' || kind == 'U') continue;
        unsigned number = field(insn, *++p), base = RES_A;
        uint8_t late = 0;
        if (p[1] == '\'') {
            late = sim->timing.latency_store_data_late ? SRC_LATE : 0;
            p++;
        }
        if (kind == 'a' || kind == 'A' || kind == 'm') {
            if (number > highest) highest = number;
        } else if (kind == 'f' || kind == 'F' || kind == 'g') {
            base = RES_F;
        } else {
            base = RES_B;
            number = 0;
        }
        bool reads = kind != 'A' && kind != 'F' && kind != 'B';
        bool writes = kind == 'A' || kind == 'm' || kind == 'F' || kind == 'g' || kind == 'B' || kind == 'n';
        if (reads && n_src < 4) insn->src[n_src++] = (uint8_t)((base + number) | late);
        if (writes && insn->dst == RES_NONE) insn->dst = (uint8_t)(base + number);
    }
    switch (insn->opid) { /* registers the operand string does not show */
    case OP_RET:
    case OP_RETW:
        insn->src[0] = RES_A;
        break;
    case OP_CALL4:
    case OP_CALLX4:
        highest = highest > 4 ? highest : 4;
        break;
    case OP_CALL8:
    case OP_CALLX8:
        highest = highest > 8 ? highest : 8;
        break;
    case OP_CALL12:
    case OP_CALLX12:
        highest = 12;
        break;
    case OP_SRL:
    case OP_SRA:
    case OP_SLL:
    case OP_SRC:
        insn->src[3] = RES_SAR;
        break;
    case OP_LSIP:
    case OP_LSXP:
        insn->dst = (uint8_t)(RES_F + insn->r);
        break;
    case OP_SSIP:
    case OP_SSXP:
    case OP_S32NB:
        insn->dst = RES_NONE;
        break;
    default:
        break;
    }
    if (op_table[insn->opid].timing_class == CLASS_DIV) insn->src[3] = RES_DIV_UNIT;
    insn->quad = (uint8_t)(highest >> 2);
}

/* Atomic swaps that store count as one access. */
uint64_t insn_accesses(const insn_t *insn, uint64_t *width) {
    *width = 4;
    switch (op_table[insn->opid].timing_class) {
    case CLASS_LOAD:
    case CLASS_STORE:
        if (insn->opid == OP_L8UI || insn->opid == OP_S8I)
            *width = 1;
        else if (insn->opid == OP_L16UI || insn->opid == OP_L16SI || insn->opid == OP_S16I)
            *width = 2;
        return insn->count;
    case CLASS_S32C1I:
    case CLASS_FLOAD:
    case CLASS_FSTORE:
        return insn->count;
    case CLASS_PIE:
        if (insn->opid != OP_PIE) return 0;
        *width = (uint64_t)insn->pie->load_bytes + insn->pie->store_bytes;
        return *width ? insn->count : 0;
    default:
        return 0;
    }
}

/* ---- PIE ----------------------------------------------------------------------------------------------- */

static void add_use(pie_op_t *op, unsigned resource, int stage) {
    if (op->n_use < sizeof op->use) op->use[op->n_use++] = (uint8_t)(resource | (stage ? SRC_LATE : 0));
}

static void add_def(pie_op_t *op, unsigned resource, int64_t latency, lx7_stall_t why) {
    if (latency <= 1 || op->n_def == sizeof op->def) return;
    op->def[op->n_def] = (uint8_t)resource;
    op->def_lat[op->n_def] = (uint8_t)latency;
    op->def_why[op->n_def++] = (uint8_t)why;
}

static void add_usage(const timing_t *timing, pie_op_t *op, const pie_usage_t *usage, int stage) {
    int64_t latency = stage ? timing->pie_stage2_result : timing->pie_stage1_result;
    struct {
        uint32_t use, def;
        unsigned base;
    } sets[4] = {{usage->q_use[stage], usage->q_def[stage], RES_Q},
                 {usage->a_use[stage], usage->a_def[stage], RES_A},
                 {usage->f_use[stage], usage->f_def[stage], RES_F},
                 {usage->state_use[stage], usage->state_def[stage], RES_ACCX}};
    for (int i = 0; i < 4; i++) {
        for (uint32_t mask = sets[i].use; mask; mask &= mask - 1)
            add_use(op, sets[i].base + (unsigned)__builtin_ctz(mask), stage);
        for (uint32_t mask = sets[i].def; mask; mask &= mask - 1) {
            unsigned number = (unsigned)__builtin_ctz(mask);
            bool loaded = op->load_bytes && sets[i].base == RES_Q && (op->memory || number == op->insn.qu);
            add_def(op, sets[i].base + number, latency, loaded ? LX7_STALL_LOAD : LX7_STALL_PIE);
        }
    }
}

/* Multiply-accumulates of one execution: lanes of the vector, by operand width in the mnemonic. */
static uint8_t count_macs(const pie_opcode_info_t *info) {
    if (info->class_id != PIE_CLASS_MAC_ACCX && info->class_id != PIE_CLASS_MAC_QACC) return 0;
    return strstr(info->mnemonic, "16.") ? 8 : 16;
}

static bool decode_pie(cpu_t *cpu, const uint8_t *bytes, insn_t *insn) {
    pie_insn_t decoded;
    if (!pie_decode(bytes, &decoded)) return false;
    insn->next = (int16_t)(decoded.length * INSN_STRIDE);
    if (!cpu->sim->pie) {
        insn->opid = OP_ILL;
        return true;
    }
    pie_op_t *op = cpu->unused_pie;
    if (op)
        cpu->unused_pie = op->next;
    else if (!(op = malloc(sizeof *op)))
        abort();
    memset(op, 0, sizeof *op);
    const pie_opcode_info_t *info = pie_opcode_info(decoded.opcode);
    pie_usage_t usage;
    pie_usage(&decoded, &usage);
    op->insn = decoded;
    op->execute = pie_execute_table[decoded.opcode];
    op->load_bytes = info->load_bytes;
    op->store_bytes = info->store_bytes;
    op->memory = info->class_id == PIE_CLASS_MEMORY;
    op->macs = count_macs(info);
    switch (info->class_id) {
    case PIE_CLASS_ADD:
    case PIE_CLASS_MUL:
    case PIE_CLASS_MAC_ACCX:
    case PIE_CLASS_MAC_QACC:
        add_def(op, RES_MAC_UNIT, cpu->sim->timing.pie_mac_to_reduce, LX7_STALL_PIE_UNIT);
        break;
    case PIE_CLASS_REDUCE:
    case PIE_CLASS_FFT:
        add_use(op, RES_MAC_UNIT, 0);
        break;
    default:
        break;
    }
    for (int stage = 0; stage < 2; stage++)
        add_usage(&cpu->sim->timing, op, &usage, stage);
    unsigned highest = 0;
    uint32_t a = usage.a_use[0] | usage.a_use[1] | usage.a_def[0] | usage.a_def[1];
    if (a) highest = 31u - (unsigned)__builtin_clz(a);
    insn->opid = OP_PIE;
    insn->pie = op;
    insn->quad = (uint8_t)(highest >> 2);
    return true;
}

/* ---- the decode array ----------------------------------------------------------------------------------- */

static void init_entry(const lx7_sim_t *sim, insn_t *insn, uint32_t pc) {
    insn->pc = pc;
    insn->opid = OP_DECODE;
    insn->op = sim->labels[OP_DECODE];
    insn->flags = INSN_UNDECODED;
}

static code_page_t *new_page(cpu_t *cpu, uint32_t number) {
    code_page_t *page = aligned_alloc(INSN_STRIDE, sizeof *page);
    if (!page) return NULL;
    memset(page, 0, sizeof *page);
    for (uint32_t i = 0; i < PAGE_BYTES; i++)
        init_entry(cpu->sim, &page->insn[i], (number << PAGE_BITS) + i);
    for (uint32_t i = PAGE_BYTES; i < PAGE_BYTES + PAGE_TAIL; i++) {
        page->insn[i].pc = (number << PAGE_BITS) + i;
        page->insn[i].opid = OP_PAGE_END;
        page->insn[i].op = cpu->sim->labels[OP_PAGE_END];
    }
    cpu->pages[number] = page;
    return page;
}

insn_t *code_lookup(cpu_t *cpu, uint32_t pc) {
    code_page_t *page = cpu->pages[pc >> PAGE_BITS];
    if (unlikely(!page) && !(page = new_page(cpu, pc >> PAGE_BITS))) abort();
    return &page->insn[pc & (PAGE_BYTES - 1)];
}

void decode_insn(cpu_t *cpu, insn_t *insn) {
    lx7_sim_t *sim = cpu->sim;
    uint8_t bytes[4] = {0, 0, 0, 0};
    insn->flags = 0;
    insn->rel = 0;
    if (!memory_mapped(sim, insn->pc, 1) || sim->ptab[insn->pc >> 12] & PF_DEVICE) {
        insn->opid = OP_UNKNOWN;
        insn->op = sim->labels[OP_UNKNOWN];
        insn->next = 3 * INSN_STRIDE;
        insn->imm = 1; /* nothing mapped there */
        return;
    }
    for (uint32_t i = 0; i < 4; i++)
        if (memory_mapped(sim, insn->pc + i, 1)) bytes[i] = sim->mem[insn->pc + i];
    decode_fields(bytes, insn);
    if (insn->opid == OP_RUR || insn->opid == OP_WUR || insn->opid == OP_UNKNOWN) {
        insn_t saved = *insn;
        if (!decode_pie(cpu, bytes, insn)) *insn = saved;
    }
    if ((insn->opid == OP_RSR || insn->opid == OP_WSR || insn->opid == OP_XSR) &&
        !special_register_name((unsigned)insn->imm))
        insn->opid = OP_UNKNOWN;
    if ((insn->opid == OP_RUR || insn->opid == OP_WUR) && (insn->imm < 231 || insn->imm > 233)) insn->opid = OP_UNKNOWN;
    if (insn->opid == OP_UNKNOWN) insn->imm = 0;
    if (insn->opid != OP_PIE)
        set_resources(sim, insn);
    else
        for (int i = 0; i < 4; i++)
            insn->src[i] = RES_NONE;
    insn->lat = class_latency(&sim->timing, op_table[insn->opid].timing_class);
    insn->cause = class_cause(op_table[insn->opid].timing_class);
    uint32_t length = (uint32_t)insn->next / INSN_STRIDE, word = (uint32_t)sim->timing.fetch_word_bytes;
    if (cpu->n_stored) stale_check(cpu, insn);
    if (insn->pc % word + length > word) insn->flags |= INSN_SPLIT;
    unsigned class_id = op_table[insn->opid].timing_class;
    if ((class_id == CLASS_BRANCH || class_id == CLASS_JUMP || insn->opid == OP_CALL0) &&
        ((uint32_t)insn->imm >> PAGE_BITS) == (insn->pc >> PAGE_BITS))
        insn->rel = (insn->imm - (int32_t)insn->pc) * INSN_STRIDE;
    memory_mark_code(sim, insn->pc);
    memory_mark_code(sim, insn->pc + length - 1);
    insn->op = sim->labels[insn->opid];
    unsigned memory_class = sim->ptab[insn->pc >> 12] & PF_CLASS;
    if (memory_class == LX7_REGION_FLASH || memory_class == LX7_REGION_PSRAM) {
        uint32_t line = (uint32_t)sim->timing.icache_line;
        insn->flags |= INSN_CACHED;
        if (insn->pc % line == 0 || insn->pc % line + length > line) insn->op = sim->labels[OP_LINE];
    }
}

/* Forgets instructions that overlap the bytes just written. */
void code_drop(lx7_sim_t *sim, uint32_t address, uint32_t size) {
    for (int core = 0; core < sim->cores; core++) {
        cpu_t *cpu = sim->cpu[core];
        for (uint32_t pc = address - 3; pc != address + size; pc++) {
            code_page_t *page = cpu->pages[pc >> PAGE_BITS];
            if (!page) continue;
            insn_t *insn = &page->insn[pc & (PAGE_BYTES - 1)];
            if (insn->flags & INSN_UNDECODED) continue;
            uint32_t length = (uint32_t)insn->next / INSN_STRIDE;
            if ((int32_t)(pc + length - address) <= 0) continue;
            retire_counters(cpu, insn);
            if (insn->opid == OP_PIE) { /* perhaps the one that stores: in use until the next is decoded */
                insn->pie->next = cpu->unused_pie;
                cpu->unused_pie = insn->pie;
            }
            init_entry(sim, insn, pc);
        }
    }
}

/* ---- text ---------------------------------------------------------------------------------------------- */

int disassemble(lx7_sim_t *sim, uint32_t address, char *text, size_t size) {
    insn_t insn;
    uint8_t bytes[4] = {0, 0, 0, 0};
    memset(&insn, 0, sizeof insn);
    insn.pc = address;
    if (!memory_mapped(sim, address, 1) || sim->ptab[address >> 12] & PF_DEVICE) return 0;
    for (uint32_t i = 0; i < 4; i++)
        if (memory_mapped(sim, address + i, 1)) bytes[i] = sim->mem[address + i];
    decode_fields(bytes, &insn);
    pie_insn_t pie;
    if ((insn.opid == OP_UNKNOWN || insn.opid == OP_RUR || insn.opid == OP_WUR) && pie_decode(bytes, &pie)) {
        pie_disassemble(&pie, text, size);
        return pie.length;
    }
    if (insn.opid == OP_UNKNOWN) return 0;
    int length = insn.next / INSN_STRIDE;
    size_t at = (size_t)snprintf(text, size, "%s%s", op_table[insn.opid].mnemonic, length == 2 ? ".n" : "");
    const char *separator = " ";
    for (const char *p = op_table[insn.opid].operands; *p && at < size; p++) {
        char kind = *p;
        int n;
        if (kind == ' ' || kind == '\'') continue;
        if (kind == 'i')
            n = snprintf(text + at, size - at, "%s%d", separator, insn.imm);
        else if (kind == 'j')
            n = snprintf(text + at, size - at, "%s%d", separator, (int)insn.aux);
        else if (kind == 'x')
            n = snprintf(text + at, size - at, "%s%x", separator, (unsigned)insn.imm);
        else if (kind == 'S' || kind == 'U') {
            const char *name = kind == 'S'       ? special_register_name((unsigned)insn.imm)
                               : insn.imm == 231 ? "threadptr"
                               : insn.imm == 232 ? "fcr"
                               : insn.imm == 233 ? "fsr"
                                                 : NULL;
            n = name ? snprintf(text + at, size - at, "%s%s", separator, name)
                     : snprintf(text + at, size - at, "%s%d", separator, insn.imm);
        } else {
            char file = strchr("aAm", kind) ? 'a' : strchr("fFg", kind) ? 'f' : 'b';
            n = snprintf(text + at, size - at, "%s%c%u", separator, file, field(&insn, *++p));
        }
        at += n > 0 ? (size_t)n : 0;
        separator = ", ";
    }
    return length;
}
