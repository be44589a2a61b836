/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Single-precision coprocessor (ISA manual, chapter 4.3.11; the instructions of XCHAL_HAVE_DFPU_SINGLE_ONLY). The
 * host's IEEE 754 arithmetic does the work: rounding mode and flags map one to one; what a NaN result is made of does
 * not, and is chosen here (the later operand's NaN, quieted; 0x7fc00000 when no operand is one).
 *
 * Division and square root: the sequences of DIV0/SQRT0, NEXP01, MADDN, MKDADJ/MKSADJ, ADDEXP(M), DIVN give the
 * correctly rounded result on the chip. What their intermediate registers hold is not published; here MKDADJ and
 * MKSADJ compute quotient and root, ADDEXPM moves them on, ADDEXP and DIVN change nothing, so that the sequences
 * end with the right value and flags. RECIP0 and RSQRT0 give eight correct bits for Newton-Raphson.
 *
 * Built with -frounding-math: operands pass through opaque() so that nothing is computed in the wrong mode.
 */
#include "core.h"

#include <fenv.h>
#include <math.h>
#include <string.h>

#define DEFAULT_NAN 0x7fc00000u
#define FSR_SHIFT 7

static float opaque(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    __asm__ volatile("" : "+x"(value));
    return value;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    __asm__ volatile("" : "+x"(value));
    memcpy(&bits, &value, 4);
    return bits;
}

static bool is_nan(uint32_t bits) {
    return (bits & 0x7fffffff) > 0x7f800000;
}

/* ---- flags: the host's sticky flags are those of the core that ran last; collect before anything else ------------ */

void fpu_collect_flags(cpu_t *cpu) {
    int raised = fetestexcept(FE_ALL_EXCEPT);
    uint32_t flags = (raised & FE_INEXACT ? 1u : 0) | (raised & FE_UNDERFLOW ? 2u : 0) |
                     (raised & FE_OVERFLOW ? 4u : 0) | (raised & FE_DIVBYZERO ? 8u : 0) |
                     (raised & FE_INVALID ? 16u : 0);
    if (raised) feclearexcept(FE_ALL_EXCEPT);
    cpu->fsr |= flags << FSR_SHIFT;
}

void fpu_set_flags(cpu_t *cpu, uint32_t fsr) {
    feclearexcept(FE_ALL_EXCEPT);
    cpu->fsr = fsr;
}

static void raise_invalid(void) {
    feraiseexcept(FE_INVALID);
}

#define NEED_FPU()                                                                                                     \
    do {                                                                                                               \
        if (unlikely(!(cpu->cpenable & 1))) {                                                                          \
            raise_exception(cpu, ip->pc, CAUSE_COPROCESSOR0);                                                          \
            return ACT_REDIRECT;                                                                                       \
        }                                                                                                              \
        cpu->fpu_used = true;                                                                                          \
    } while (0)

static const int host_mode[4] = {FE_TONEAREST, FE_TOWARDZERO, FE_UPWARD, FE_DOWNWARD};

#define WITH_ROUNDING(mode, statement)                                                                                 \
    do {                                                                                                               \
        unsigned mode_ = (mode)&3;                                                                                     \
        if (unlikely(mode_)) fesetround(host_mode[mode_]);                                                             \
        statement;                                                                                                     \
        if (unlikely(mode_)) fesetround(FE_TONEAREST);                                                                 \
    } while (0)

/* ---- arithmetic ------------------------------------------------------------------------------------------ */

static uint32_t pick_nan(uint32_t a, uint32_t b) {
    return is_nan(b) ? b | 0x00400000 : is_nan(a) ? a | 0x00400000 : DEFAULT_NAN;
}

typedef enum { BINARY_ADD, BINARY_SUB, BINARY_MUL, BINARY_DIV } binary_t;

static uint32_t binary(const cpu_t *cpu, binary_t op, uint32_t a, uint32_t b) {
    float x = opaque(a), y = opaque(b), z = 0;
    WITH_ROUNDING(cpu->fcr, {
        switch (op) {
        case BINARY_ADD:
            z = x + y;
            break;
        case BINARY_SUB:
            z = x - y;
            break;
        case BINARY_MUL:
            z = x * y;
            break;
        default:
            z = x / y;
            break;
        }
        __asm__ volatile("" : "+x"(z));
    });
    uint32_t result = bits_of(z);
    return unlikely(is_nan(result)) ? pick_nan(a, b) : result;
}

/* c + a * b, rounded once. */
static uint32_t fused(unsigned mode, uint32_t a, uint32_t b, uint32_t c) {
    float x = opaque(a), y = opaque(b), z = opaque(c);
    WITH_ROUNDING(mode, {
        z = fmaf(x, y, z);
        __asm__ volatile("" : "+x"(z));
    });
    uint32_t result = bits_of(z);
    if (likely(!is_nan(result))) return result;
    return is_nan(c) ? c | 0x00400000 : pick_nan(a, b);
}

action_t op_ADD_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    cpu->f[ip->r] = binary(cpu, BINARY_ADD, cpu->f[ip->s], cpu->f[ip->t]);
    return ACT_NEXT;
}

action_t op_SUB_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    cpu->f[ip->r] = binary(cpu, BINARY_SUB, cpu->f[ip->s], cpu->f[ip->t]);
    return ACT_NEXT;
}

action_t op_MUL_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    cpu->f[ip->r] = binary(cpu, BINARY_MUL, cpu->f[ip->s], cpu->f[ip->t]);
    return ACT_NEXT;
}

action_t op_MADD_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    cpu->f[ip->r] = fused(cpu->fcr, cpu->f[ip->s], cpu->f[ip->t], cpu->f[ip->r]);
    return ACT_NEXT;
}

action_t op_MSUB_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    uint32_t a = cpu->f[ip->s];
    cpu->f[ip->r] = fused(cpu->fcr, is_nan(a) ? a : a ^ 0x80000000, cpu->f[ip->t], cpu->f[ip->r]);
    return ACT_NEXT;
}

/* Round to nearest whatever FCR says, no flags. */
action_t op_MADDN_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    fenv_t saved;
    fegetenv(&saved);
    cpu->f[ip->r] = fused(0, cpu->f[ip->s], cpu->f[ip->t], cpu->f[ip->r]);
    fesetenv(&saved);
    return ACT_NEXT;
}

action_t op_MOV_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    cpu->f[ip->r] = cpu->f[ip->s];
    return ACT_NEXT;
}

action_t op_ABS_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    cpu->f[ip->r] = cpu->f[ip->s] & 0x7fffffff;
    return ACT_NEXT;
}

action_t op_NEG_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    cpu->f[ip->r] = cpu->f[ip->s] ^ 0x80000000;
    return ACT_NEXT;
}

action_t op_CONST_S(cpu_t *cpu, insn_t *ip) {
    static const uint32_t constant[4] = {0, 0x3f800000, 0x40000000, 0x3f000000}; /* 0, 1, 2, 0.5 */
    NEED_FPU();
    cpu->f[ip->r] = constant[ip->imm & 3];
    return ACT_NEXT;
}

action_t op_RFR(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    cpu->a[ip->r] = cpu->f[ip->s];
    return ACT_NEXT;
}

action_t op_WFR(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    cpu->f[ip->r] = cpu->a[ip->s];
    return ACT_NEXT;
}

/* ---- division and square root ----------------------------------------------------------------------------- */

action_t op_MKDADJ_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    cpu->f[ip->r] = binary(cpu, BINARY_DIV, cpu->f[ip->s], cpu->f[ip->r]);
    return ACT_NEXT;
}

action_t op_MKSADJ_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    uint32_t a = cpu->f[ip->s];
    float x = opaque(a), z = 0;
    WITH_ROUNDING(cpu->fcr, {
        z = sqrtf(x);
        __asm__ volatile("" : "+x"(z));
    });
    uint32_t result = bits_of(z);
    cpu->f[ip->r] = is_nan(result) ? pick_nan(a, a) : result;
    return ACT_NEXT;
}

action_t op_ADDEXPM_S(cpu_t *cpu, insn_t *ip) {
    return op_MOV_S(cpu, ip);
}

action_t op_ADDEXP_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    return ACT_NEXT;
}

action_t op_DIVN_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    return ACT_NEXT;
}

action_t op_NEXP01_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    return ACT_NEXT;
}

/* A value with eight significant bits; no flags. */
static uint32_t estimate(uint32_t bits, bool root) {
    fenv_t saved;
    fegetenv(&saved);
    float x = opaque(bits), z = root ? 1.0f / sqrtf(x) : 1.0f / x;
    uint32_t result = bits_of(z);
    fesetenv(&saved);
    if (is_nan(result)) return is_nan(bits) ? bits | 0x00400000 : DEFAULT_NAN;
    if ((result & 0x7f800000) == 0x7f800000) return result;
    return (result + 0x8000) & 0xffff0000;
}

action_t op_RECIP0_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    if ((cpu->f[ip->s] & 0x7fffffff) == 0) feraiseexcept(FE_DIVBYZERO);
    cpu->f[ip->r] = estimate(cpu->f[ip->s], false);
    return ACT_NEXT;
}

action_t op_RSQRT0_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    if ((cpu->f[ip->s] & 0x7fffffff) == 0)
        feraiseexcept(FE_DIVBYZERO);
    else if (cpu->f[ip->s] >> 31 && !is_nan(cpu->f[ip->s]))
        raise_invalid();
    cpu->f[ip->r] = estimate(cpu->f[ip->s], true);
    return ACT_NEXT;
}

/* Only ever used inside the sequences, whose results do not depend on them here. */
action_t op_DIV0_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    return ACT_NEXT;
}

action_t op_SQRT0_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    return ACT_NEXT;
}

/* ---- conversion ------------------------------------------------------------------------------------------- */

/* FR[s] * 2^imm to an integer; a double holds the product exactly. */
static uint32_t to_integer(const cpu_t *cpu, const insn_t *ip, int mode, bool is_unsigned) {
    uint32_t bits = cpu->f[ip->s];
    if (is_nan(bits)) {
        raise_invalid();
        return is_unsigned ? 0xffffffff : 0x7fffffff;
    }
    double scaled = ldexp((double)opaque(bits), ip->imm), rounded;
    switch (mode) {
    case FE_TONEAREST:
        rounded = nearbyint(scaled);
        break;
    case FE_UPWARD:
        rounded = ceil(scaled);
        break;
    case FE_DOWNWARD:
        rounded = floor(scaled);
        break;
    default:
        rounded = trunc(scaled);
        break;
    }
    bool negative = bits >> 31, out_of_range;
    uint32_t result;
    if (is_unsigned && !negative) {
        out_of_range = rounded > 4294967295.0;
        result = out_of_range ? 0xffffffff : (uint32_t)rounded;
    } else {
        out_of_range = rounded > 2147483647.0 || rounded < -2147483648.0;
        result = rounded > 2147483647.0    ? 0x7fffffff
                 : rounded < -2147483648.0 ? 0x80000000
                                           : (uint32_t)(int32_t)rounded;
        if (is_unsigned && result) out_of_range = true;
    }
    feclearexcept(FE_INEXACT); /* the steps above may have raised it; collected flags are safe in cpu->fsr */
    if (out_of_range)
        raise_invalid();
    else if (rounded != scaled)
        feraiseexcept(FE_INEXACT);
    return result;
}

#define TO_INTEGER(id, mode, is_unsigned)                                                                              \
    action_t op_##id(cpu_t *cpu, insn_t *ip) {                                                                         \
        NEED_FPU();                                                                                                    \
        fpu_collect_flags(cpu);                                                                                        \
        cpu->a[ip->r] = to_integer(cpu, ip, mode, is_unsigned);                                                        \
        return ACT_NEXT;                                                                                               \
    }
TO_INTEGER(ROUND_S, FE_TONEAREST, false)
TO_INTEGER(TRUNC_S, FE_TOWARDZERO, false)
TO_INTEGER(FLOOR_S, FE_DOWNWARD, false)
TO_INTEGER(CEIL_S, FE_UPWARD, false)
TO_INTEGER(UTRUNC_S, FE_TOWARDZERO, true)

/* AR[s] * 2^-imm, rounded once: the scaling is exact. */
static uint32_t from_integer(const cpu_t *cpu, const insn_t *ip, double value) {
    float result = 0;
    WITH_ROUNDING(cpu->fcr, {
        __asm__ volatile("" : "+x"(value));
        result = (float)value;
        __asm__ volatile("" : "+x"(result));
    });
    return bits_of(ldexpf(result, -ip->imm));
}

action_t op_FLOAT_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    cpu->f[ip->r] = from_integer(cpu, ip, (double)(int32_t)cpu->a[ip->s]);
    return ACT_NEXT;
}

action_t op_UFLOAT_S(cpu_t *cpu, insn_t *ip) {
    NEED_FPU();
    cpu->f[ip->r] = from_integer(cpu, ip, (double)cpu->a[ip->s]);
    return ACT_NEXT;
}

/* ---- comparison, conditional moves ---------------------------------------------------------------------------- */

static bool is_signaling(uint32_t bits) {
    return is_nan(bits) && !(bits & 0x00400000);
}

/* Quiet comparisons raise invalid only for signaling NaNs, OLT and OLE for every NaN. */
#define COMPARE(id, condition, quiet)                                                                                  \
    action_t op_##id(cpu_t *cpu, insn_t *ip) {                                                                         \
        NEED_FPU();                                                                                                    \
        uint32_t s = cpu->f[ip->s], t = cpu->f[ip->t];                                                                 \
        bool unordered = is_nan(s) || is_nan(t);                                                                       \
        float x = opaque(unordered ? 0 : s), y = opaque(unordered ? 0 : t);                                            \
        if (unordered && (!(quiet) || is_signaling(s) || is_signaling(t))) raise_invalid();                            \
        (void)x, (void)y;                                                                                              \
        cpu->b = (cpu->b & ~(1u << ip->r)) | (uint32_t)(condition) << ip->r;                                           \
        return ACT_NEXT;                                                                                               \
    }
COMPARE(UN_S, unordered, true)
COMPARE(OEQ_S, !unordered && x == y, true)
COMPARE(UEQ_S, unordered || x == y, true)
COMPARE(OLT_S, !unordered && x < y, false)
COMPARE(ULT_S, unordered || x < y, true)
COMPARE(OLE_S, !unordered && x <= y, false)
COMPARE(ULE_S, unordered || x <= y, true)

#define MOVE_IF(id, condition)                                                                                         \
    action_t op_##id(cpu_t *cpu, insn_t *ip) {                                                                         \
        NEED_FPU();                                                                                                    \
        if (condition) cpu->f[ip->r] = cpu->f[ip->s];                                                                  \
        return ACT_NEXT;                                                                                               \
    }
MOVE_IF(MOVEQZ_S, cpu->a[ip->t] == 0)
MOVE_IF(MOVNEZ_S, cpu->a[ip->t] != 0)
MOVE_IF(MOVLTZ_S, (int32_t)cpu->a[ip->t] < 0)
MOVE_IF(MOVGEZ_S, (int32_t)cpu->a[ip->t] >= 0)
MOVE_IF(MOVF_S, !(cpu->b >> ip->t & 1))
MOVE_IF(MOVT_S, cpu->b >> ip->t & 1)

/* ---- loads and stores ----------------------------------------------------------------------------------------- */

static action_t load(cpu_t *cpu, insn_t *ip, uint32_t address, bool update, uint32_t updated) {
    NEED_FPU();
    uint32_t value = slow_load(cpu, ip, address, 4);
    if (cpu->fault) return ACT_REDIRECT;
    cpu->f[ip->r] = value;
    if (update) cpu->a[ip->s] = updated;
    return ACT_NEXT;
}

static action_t store(cpu_t *cpu, insn_t *ip, uint32_t address, bool update, uint32_t updated) {
    NEED_FPU();
    slow_store(cpu, ip, address, 4, cpu->f[ip->r]);
    if (cpu->fault) return ACT_REDIRECT;
    if (update) cpu->a[ip->s] = updated;
    return ACT_NEXT;
}

action_t op_LSI(cpu_t *cpu, insn_t *ip) {
    return load(cpu, ip, cpu->a[ip->s] + (uint32_t)ip->imm, false, 0);
}
action_t op_LSIP(cpu_t *cpu, insn_t *ip) {
    return load(cpu, ip, cpu->a[ip->s], true, cpu->a[ip->s] + (uint32_t)ip->imm);
}
action_t op_LSX(cpu_t *cpu, insn_t *ip) {
    return load(cpu, ip, cpu->a[ip->s] + cpu->a[ip->t], false, 0);
}
action_t op_LSXP(cpu_t *cpu, insn_t *ip) {
    return load(cpu, ip, cpu->a[ip->s], true, cpu->a[ip->s] + cpu->a[ip->t]);
}
action_t op_SSI(cpu_t *cpu, insn_t *ip) {
    return store(cpu, ip, cpu->a[ip->s] + (uint32_t)ip->imm, false, 0);
}
action_t op_SSIP(cpu_t *cpu, insn_t *ip) {
    return store(cpu, ip, cpu->a[ip->s], true, cpu->a[ip->s] + (uint32_t)ip->imm);
}
action_t op_SSX(cpu_t *cpu, insn_t *ip) {
    return store(cpu, ip, cpu->a[ip->s] + cpu->a[ip->t], false, 0);
}
action_t op_SSXP(cpu_t *cpu, insn_t *ip) {
    return store(cpu, ip, cpu->a[ip->s], true, cpu->a[ip->s] + cpu->a[ip->t]);
}
