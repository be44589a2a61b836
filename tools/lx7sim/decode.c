/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From instruction bytes to insn_t fields: Xtensa Instruction Set Architecture Reference Manual, chapter 7
 * (opcode maps). Names of the fields are the manual's: op0, op1, op2, r, s, t. insn_t.r is always the
 * destination, s and t the sources, whatever field of the word they come from.
 */
#include "core.h"

#include <string.h>

/* Operands of BEQI and its like, and of BLTUI, BGEUI (ISA manual, table 3-17, 3-18). */
static const int32_t b4const[16] = {-1, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32, 64, 128, 256};
static const int32_t b4constu[16] = {32768, 65536, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32, 64, 128, 256};

static int32_t sign_extend(uint32_t value, unsigned bits) {
    return (int32_t)(value << (32 - bits)) >> (32 - bits);
}

typedef struct word {
    uint32_t raw;
    uint8_t r, s, t, op1, op2;
} word_t;

static void set(insn_t *insn, unsigned op, unsigned r, unsigned s, unsigned t) {
    insn->opid = (uint8_t)op;
    insn->r = (uint8_t)r;
    insn->s = (uint8_t)s;
    insn->t = (uint8_t)t;
}

static void unknown(insn_t *insn) {
    insn->opid = OP_UNKNOWN;
}

static void decode_st0(insn_t *insn, const word_t *w) {
    switch (w->r) {
    case 0: { /* SNM0 */
        unsigned m = w->t >> 2, n = w->t & 3;
        static const uint8_t callx[4] = {OP_CALLX0, OP_CALLX4, OP_CALLX8, OP_CALLX12};
        if (m == 0 && n == 0 && w->s == 0)
            set(insn, OP_ILL, 0, 0, 0);
        else if (m == 2 && n == 0 && w->s == 0)
            set(insn, OP_RET, 0, 0, 0);
        else if (m == 2 && n == 1 && w->s == 0)
            set(insn, OP_RETW, 0, 0, 0);
        else if (m == 2 && n == 2)
            set(insn, OP_JX, 0, w->s, 0);
        else if (m == 3)
            set(insn, callx[n], 0, w->s, 0);
        break;
    }
    case 1:
        set(insn, OP_MOVSP, w->t, w->s, 0);
        break;
    case 2: { /* SYNC */
        static const uint8_t sync[16] = {[0] = OP_ISYNC, [1] = OP_RSYNC, [2] = OP_ESYNC, [3] = OP_DSYNC,
                                         [8] = OP_EXCW,  [12] = OP_MEMW, [13] = OP_EXTW, [15] = OP_NOP};
        if (w->s == 0 && (sync[w->t] || w->t == 0)) set(insn, sync[w->t], 0, 0, 0);
        break;
    }
    case 3: /* RFEI */
        if (w->t == 0) {
            static const uint8_t rfet[16] = {[0] = OP_RFE, [2] = OP_RFDE, [4] = OP_RFWO, [5] = OP_RFWU};
            if (rfet[w->s]) set(insn, rfet[w->s], 0, 0, 0);
        } else if (w->t == 1 && w->s >= 2) {
            set(insn, OP_RFI, 0, 0, 0);
            insn->imm = w->s;
        }
        break;
    case 4:
        set(insn, OP_BREAK, 0, 0, 0);
        insn->imm = w->s;
        insn->aux = w->t;
        break;
    case 5:
        if (w->t == 0 && w->s <= 1) set(insn, w->s ? OP_SIMCALL : OP_SYSCALL, 0, 0, 0);
        break;
    case 6:
        set(insn, OP_RSIL, w->t, 0, 0);
        insn->imm = w->s;
        break;
    case 7:
        if (w->t == 0) {
            set(insn, OP_WAITI, 0, 0, 0);
            insn->imm = w->s;
        }
        break;
    case 8:
        set(insn, OP_ANY4, w->t, w->s, 0);
        break;
    case 9:
        set(insn, OP_ALL4, w->t, w->s, 0);
        break;
    case 10:
        set(insn, OP_ANY8, w->t, w->s, 0);
        break;
    case 11:
        set(insn, OP_ALL8, w->t, w->s, 0);
        break;
    default:
        break;
    }
}

static void decode_st1(insn_t *insn, const word_t *w) {
    switch (w->r) {
    case 0:
        if (w->t == 0) set(insn, OP_SSR, 0, w->s, 0);
        break;
    case 1:
        if (w->t == 0) set(insn, OP_SSL, 0, w->s, 0);
        break;
    case 2:
        if (w->t == 0) set(insn, OP_SSA8L, 0, w->s, 0);
        break;
    case 3:
        if (w->t == 0) set(insn, OP_SSA8B, 0, w->s, 0);
        break;
    case 4:
        if ((w->t & 14) == 0) {
            set(insn, OP_SSAI, 0, 0, 0);
            insn->imm = w->s | (w->t & 1) << 4;
        }
        break;
    case 6:
        set(insn, OP_RER, w->t, w->s, 0);
        break;
    case 7:
        set(insn, OP_WER, 0, w->s, w->t);
        break;
    case 8:
        if (w->s == 0) {
            set(insn, OP_ROTW, 0, 0, 0);
            insn->imm = sign_extend(w->t, 4);
        }
        break;
    case 14:
        set(insn, OP_NSA, w->t, w->s, 0);
        break;
    case 15:
        set(insn, OP_NSAU, w->t, w->s, 0);
        break;
    default:
        break;
    }
}

/* Region protection: attributes are stored and read back, never enforced. aux bit 0: data side, imm: 0 = read 0. */
static void decode_tlb(insn_t *insn, const word_t *w) {
    static const uint8_t op[16] = {[3] = OP_TLBR,  [4] = OP_TLBI,  [5] = OP_TLBR,  [6] = OP_TLBW,  [7] = OP_TLBR,
                                   [11] = OP_TLBR, [12] = OP_TLBI, [13] = OP_TLBR, [14] = OP_TLBW, [15] = OP_TLBR};
    unsigned id = op[w->r];
    if (!id) return;
    if (id == OP_TLBW)
        set(insn, id, 0, w->s, w->t);
    else if (id == OP_TLBI)
        set(insn, id, 0, w->s, 0);
    else
        set(insn, id, w->t, w->s, 0);
    insn->imm = (w->r & 7) == 7; /* R.TLB1 reads the attribute, the others the address */
    insn->aux = w->r >> 3;
}

static void decode_rst0(insn_t *insn, const word_t *w) {
    static const uint8_t alu[16] = {
        [1] = OP_AND,    [2] = OP_OR,   [3] = OP_XOR,    [8] = OP_ADD,    [9] = OP_ADDX2, [10] = OP_ADDX4,
        [11] = OP_ADDX8, [12] = OP_SUB, [13] = OP_SUBX2, [14] = OP_SUBX4, [15] = OP_SUBX8};
    switch (w->op2) {
    case 0:
        decode_st0(insn, w);
        break;
    case 4:
        decode_st1(insn, w);
        break;
    case 5:
        decode_tlb(insn, w);
        break;
    case 6:
        if (w->s <= 1) set(insn, w->s ? OP_ABS : OP_NEG, w->r, 0, w->t);
        break;
    case 7:
        break;
    default:
        set(insn, alu[w->op2], w->r, w->s, w->t);
        break;
    }
}

static void decode_rst1(insn_t *insn, const word_t *w) {
    switch (w->op2) {
    case 0:
    case 1:
        set(insn, OP_SLLI, w->r, w->s, 0);
        insn->imm = 32 - (w->t | (w->op2 & 1) << 4);
        break;
    case 2:
    case 3:
        set(insn, OP_SRAI, w->r, 0, w->t);
        insn->imm = w->s | (w->op2 & 1) << 4;
        break;
    case 4:
        set(insn, OP_SRLI, w->r, 0, w->t);
        insn->imm = w->s;
        break;
    case 6:
        set(insn, OP_XSR, 0, 0, w->t);
        insn->imm = w->raw >> 8 & 0xff;
        break;
    case 8:
        set(insn, OP_SRC, w->r, w->s, w->t);
        break;
    case 9:
        if (w->s == 0) set(insn, OP_SRL, w->r, 0, w->t);
        break;
    case 10:
        if (w->t == 0) set(insn, OP_SLL, w->r, w->s, 0);
        break;
    case 11:
        if (w->s == 0) set(insn, OP_SRA, w->r, 0, w->t);
        break;
    case 12:
        set(insn, OP_MUL16U, w->r, w->s, w->t);
        break;
    case 13:
        set(insn, OP_MUL16S, w->r, w->s, w->t);
        break;
    default:
        break;
    }
}

static void decode_rst2(insn_t *insn, const word_t *w) {
    static const uint8_t op[16] = {OP_ANDB, OP_ANDBC, OP_ORB,   OP_ORBC,  OP_XORB, 0,       0,       0,
                                   OP_MULL, 0,        OP_MULUH, OP_MULSH, OP_QUOU, OP_QUOS, OP_REMU, OP_REMS};
    if (op[w->op2]) set(insn, op[w->op2], w->r, w->s, w->t);
}

static void decode_rst3(insn_t *insn, const word_t *w) {
    static const uint8_t op[16] = {[4] = OP_MIN,    [5] = OP_MAX,     [6] = OP_MINU,    [7] = OP_MAXU,  [8] = OP_MOVEQZ,
                                   [9] = OP_MOVNEZ, [10] = OP_MOVLTZ, [11] = OP_MOVGEZ, [12] = OP_MOVF, [13] = OP_MOVT};
    switch (w->op2) {
    case 0:
        set(insn, OP_RSR, w->t, 0, 0);
        insn->imm = w->raw >> 8 & 0xff;
        break;
    case 1:
        set(insn, OP_WSR, 0, 0, w->t);
        insn->imm = w->raw >> 8 & 0xff;
        break;
    case 2:
    case 3:
        set(insn, w->op2 == 2 ? OP_SEXT : OP_CLAMPS, w->r, w->s, 0);
        insn->imm = w->t + 7;
        break;
    case 14:
        set(insn, OP_RUR, w->r, 0, 0);
        insn->imm = w->s << 4 | w->t;
        break;
    case 15:
        set(insn, OP_WUR, 0, 0, w->t);
        insn->imm = w->raw >> 8 & 0xff;
        break;
    default:
        set(insn, op[w->op2], w->r, w->s, w->t);
        break;
    }
}

static void decode_fp0(insn_t *insn, const word_t *w) {
    static const uint8_t op[15] = {OP_ADD_S,   OP_SUB_S,   OP_MUL_S,   0,           OP_MADD_S,
                                   OP_MSUB_S,  OP_MADDN_S, OP_DIVN_S,  OP_ROUND_S,  OP_TRUNC_S,
                                   OP_FLOOR_S, OP_CEIL_S,  OP_FLOAT_S, OP_UFLOAT_S, OP_UTRUNC_S};
    static const uint8_t op1[16] = {OP_MOV_S,    OP_ABS_S,    0,           OP_CONST_S,  OP_RFR,      OP_WFR,
                                    OP_NEG_S,    OP_DIV0_S,   OP_RECIP0_S, OP_SQRT0_S,  OP_RSQRT0_S, OP_NEXP01_S,
                                    OP_MKSADJ_S, OP_MKDADJ_S, OP_ADDEXP_S, OP_ADDEXPM_S};
    if (w->op2 == 15) {
        if (!op1[w->t]) return;
        set(insn, op1[w->t], w->r, w->s, 0);
        insn->imm = w->s;
    } else if (op[w->op2]) {
        set(insn, op[w->op2], w->r, w->s, w->t);
        insn->imm = w->t;
    }
}

static void decode_fp1(insn_t *insn, const word_t *w) {
    static const uint8_t op[16] = {0,        OP_UN_S,     OP_OEQ_S,    OP_UEQ_S,    OP_OLT_S,    OP_ULT_S,  OP_OLE_S,
                                   OP_ULE_S, OP_MOVEQZ_S, OP_MOVNEZ_S, OP_MOVLTZ_S, OP_MOVGEZ_S, OP_MOVF_S, OP_MOVT_S};
    if (op[w->op2]) set(insn, op[w->op2], w->r, w->s, w->t);
}

static void decode_qrst(insn_t *insn, const word_t *w) {
    switch (w->op1) {
    case 0:
        decode_rst0(insn, w);
        break;
    case 1:
        decode_rst1(insn, w);
        break;
    case 2:
        decode_rst2(insn, w);
        break;
    case 3:
        decode_rst3(insn, w);
        break;
    case 4:
    case 5:
        set(insn, OP_EXTUI, w->r, 0, w->t);
        insn->imm = w->s | (w->op1 & 1) << 4;
        insn->aux = w->op2 + 1; /* width */
        break;
    case 8: { /* LSCX */
        static const uint8_t op[16] = {[0] = OP_LSX, [1] = OP_LSXP, [4] = OP_SSX, [5] = OP_SSXP};
        if (op[w->op2]) set(insn, op[w->op2], w->r, w->s, w->t);
        break;
    }
    case 9: /* LSC4 */
        if (w->op2 == 0)
            set(insn, OP_L32E, w->t, w->s, 0);
        else if (w->op2 == 4)
            set(insn, OP_S32E, 0, w->s, w->t);
        else if (w->op2 == 5)
            set(insn, OP_S32NB, 0, w->s, w->t);
        insn->imm = w->op2 == 5 ? w->r << 2 : (int32_t)(w->r | 0xfffffff0u) * 4;
        break;
    case 10:
        decode_fp0(insn, w);
        break;
    case 11:
        decode_fp1(insn, w);
        break;
    default:
        break;
    }
}

static void decode_lsai(insn_t *insn, const word_t *w) {
    uint32_t imm8 = w->raw >> 16 & 0xff;
    switch (w->r) {
    case 0:
        set(insn, OP_L8UI, w->t, w->s, 0), insn->imm = imm8;
        break;
    case 1:
        set(insn, OP_L16UI, w->t, w->s, 0), insn->imm = imm8 << 1;
        break;
    case 2:
        set(insn, OP_L32I, w->t, w->s, 0), insn->imm = imm8 << 2;
        break;
    case 4:
        set(insn, OP_S8I, 0, w->s, w->t), insn->imm = imm8;
        break;
    case 5:
        set(insn, OP_S16I, 0, w->s, w->t), insn->imm = imm8 << 1;
        break;
    case 6:
        set(insn, OP_S32I, 0, w->s, w->t), insn->imm = imm8 << 2;
        break;
    case 7: /* CACHE: prefetch, write back, invalidate; the caches of the model need no help */
        set(insn, OP_CACHE, 0, w->s, w->t);
        insn->imm = imm8 << 2;
        break;
    case 9:
        set(insn, OP_L16SI, w->t, w->s, 0), insn->imm = imm8 << 1;
        break;
    case 10:
        set(insn, OP_MOVI, w->t, 0, 0);
        insn->imm = sign_extend(w->s << 8 | imm8, 12);
        break;
    case 11:
        set(insn, OP_L32AI, w->t, w->s, 0), insn->imm = imm8 << 2;
        break;
    case 12:
        set(insn, OP_ADDI, w->t, w->s, 0), insn->imm = sign_extend(imm8, 8);
        break;
    case 13:
        set(insn, OP_ADDMI, w->t, w->s, 0), insn->imm = sign_extend(imm8, 8) * 256;
        break;
    case 14:
        set(insn, OP_S32C1I, 0, w->s, w->t), insn->imm = imm8 << 2;
        break;
    case 15:
        set(insn, OP_S32RI, 0, w->s, w->t), insn->imm = imm8 << 2;
        break;
    default:
        break;
    }
}

static void decode_si(insn_t *insn, const word_t *w) {
    unsigned n = w->t & 3, m = w->t >> 2;
    uint32_t target8 = insn->pc + 4 + (uint32_t)sign_extend(w->raw >> 16 & 0xff, 8);
    switch (n) {
    case 0:
        set(insn, OP_J, 0, 0, 0);
        insn->imm = (int32_t)(insn->pc + 4 + (uint32_t)sign_extend(w->raw >> 6 & 0x3ffff, 18));
        return;
    case 1: {
        static const uint8_t op[4] = {OP_BEQZ, OP_BNEZ, OP_BLTZ, OP_BGEZ};
        set(insn, op[m], 0, w->s, 0);
        insn->imm = (int32_t)(insn->pc + 4 + (uint32_t)sign_extend(w->raw >> 12 & 0xfff, 12));
        return;
    }
    case 2: {
        static const uint8_t op[4] = {OP_BEQI, OP_BNEI, OP_BLTI, OP_BGEI};
        set(insn, op[m], 0, w->s, 0);
        insn->aux = b4const[w->r];
        break;
    }
    default:
        if (m == 0) {
            set(insn, OP_ENTRY, 0, w->s, 0);
            insn->imm = (w->raw >> 12 & 0xfff) << 3;
            return;
        }
        if (m == 1) {
            static const uint8_t op[16] = {
                [0] = OP_BF, [1] = OP_BT, [8] = OP_LOOP, [9] = OP_LOOPNEZ, [10] = OP_LOOPGTZ};
            if (!op[w->r]) return;
            set(insn, op[w->r], 0, w->s, 0);
            if (w->r >= 8) target8 = insn->pc + 4 + (w->raw >> 16 & 0xff);
            break;
        }
        set(insn, m == 2 ? OP_BLTUI : OP_BGEUI, 0, w->s, 0);
        insn->aux = b4constu[w->r];
        break;
    }
    insn->imm = (int32_t)target8;
}

static void decode_b(insn_t *insn, const word_t *w) {
    static const uint8_t op[16] = {OP_BNONE, OP_BEQ, OP_BLT, OP_BLTU, OP_BALL,  OP_BBC, OP_BBCI, OP_BBCI,
                                   OP_BANY,  OP_BNE, OP_BGE, OP_BGEU, OP_BNALL, OP_BBS, OP_BBSI, OP_BBSI};
    set(insn, op[w->r], 0, w->s, w->t);
    if (insn->opid == OP_BBCI || insn->opid == OP_BBSI) {
        insn->t = 0;
        insn->aux = w->t | (w->r & 1) << 4;
    }
    insn->imm = (int32_t)(insn->pc + 4 + (uint32_t)sign_extend(w->raw >> 16 & 0xff, 8));
}

static void decode_narrow(insn_t *insn, const word_t *w, unsigned op0) {
    switch (op0) {
    case 8:
        set(insn, OP_L32I, w->t, w->s, 0), insn->imm = w->r << 2;
        break;
    case 9:
        set(insn, OP_S32I, 0, w->s, w->t), insn->imm = w->r << 2;
        break;
    case 10:
        set(insn, OP_ADD, w->r, w->s, w->t);
        break;
    case 11:
        set(insn, OP_ADDI, w->r, w->s, 0), insn->imm = w->t ? w->t : -1;
        break;
    case 12:
        if (w->t & 8) {
            set(insn, w->t & 4 ? OP_BNEZ : OP_BEQZ, 0, w->s, 0);
            insn->imm = (int32_t)(insn->pc + 4 + (w->r | (w->t & 3) << 4));
        } else {
            uint32_t imm7 = w->r | (w->t & 7) << 4;
            set(insn, OP_MOVI, w->s, 0, 0);
            insn->imm = imm7 >= 96 ? (int32_t)imm7 - 128 : (int32_t)imm7; /* -32..95 */
        }
        break;
    default:
        if (w->r == 0) {
            set(insn, OP_MOV, w->t, w->s, 0);
        } else if (w->r == 15) {
            if (w->t == 0 && w->s == 0)
                set(insn, OP_RET, 0, 0, 0);
            else if (w->t == 1 && w->s == 0)
                set(insn, OP_RETW, 0, 0, 0);
            else if (w->t == 2)
                set(insn, OP_BREAK, 0, 0, 0), insn->imm = w->s;
            else if (w->t == 3 && w->s == 0)
                set(insn, OP_NOP, 0, 0, 0);
            else if (w->t == 6 && w->s == 0)
                set(insn, OP_ILL, 0, 0, 0);
        }
        break;
    }
}

void decode_fields(const uint8_t *bytes, insn_t *insn) {
    unsigned op0 = bytes[0] & 15;
    unsigned length = op0 >= 14 ? 4 : op0 >= 8 ? 2 : 3;
    word_t w;
    w.raw = bytes[0] | (uint32_t)bytes[1] << 8 | (length > 2 ? (uint32_t)bytes[2] << 16 : 0);
    w.t = w.raw >> 4 & 15;
    w.s = w.raw >> 8 & 15;
    w.r = w.raw >> 12 & 15;
    w.op1 = w.raw >> 16 & 15;
    w.op2 = w.raw >> 20 & 15;
    insn->next = (int16_t)(length * INSN_STRIDE);
    insn->r = insn->s = insn->t = 0;
    insn->imm = 0;
    insn->aux = 0;
    unknown(insn);
    switch (op0) {
    case 0:
        decode_qrst(insn, &w);
        break;
    case 1:
        set(insn, OP_L32R, w.t, 0, 0);
        insn->imm = (int32_t)(((insn->pc + 3) & ~3u) + (((w.raw >> 8 & 0xffff) | 0xffff0000u) << 2));
        break;
    case 2:
        decode_lsai(insn, &w);
        break;
    case 3: { /* LSCI */
        static const uint8_t op[16] = {[0] = OP_LSI, [4] = OP_SSI, [8] = OP_LSIP, [12] = OP_SSIP};
        if (op[w.r]) set(insn, op[w.r], w.t, w.s, 0), insn->imm = (w.raw >> 16 & 0xff) << 2;
        break;
    }
    case 4:
        break; /* MAC16 (not in this core) and PIE */
    case 5: {  /* CALLN */
        static const uint8_t op[4] = {OP_CALL0, OP_CALL4, OP_CALL8, OP_CALL12};
        set(insn, op[w.t & 3], 0, 0, 0);
        insn->imm = (int32_t)((insn->pc & ~3u) + 4 + ((uint32_t)sign_extend(w.raw >> 6 & 0x3ffff, 18) << 2));
        break;
    }
    case 6:
        decode_si(insn, &w);
        break;
    case 7:
        decode_b(insn, &w);
        break;
    case 14:
    case 15:
        break;
    default:
        decode_narrow(insn, &w, op0);
        break;
    }
}
