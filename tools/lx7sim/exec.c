/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interpreter: one label per instruction, threaded by computed gotos. Everything that is not hot is a
 * function op_... elsewhere, called through L_call.
 */
#include "core.h"

/* The copies of cpu->cyc, pend and lend_ip in local variables go out before a call that may use them, and come back. */
#define OUT() (cpu->cyc = cyc, cpu->pend = pend, cpu->ip = ip)
#define IN() (cyc = cpu->cyc, pend = cpu->pend, lend = cpu->lend_ip)

#define DISPATCH()                                                                                                     \
    do {                                                                                                               \
        if (cyc < pend && (unlikely(pend == PEND_ALWAYS) || !operands_ready(cpu, ip, cyc))) goto careful;              \
        goto * ip->op;                                                                                                 \
    } while (0)

#define NEXT()                                                                                                         \
    do {                                                                                                               \
        ip->count++;                                                                                                   \
        cyc++;                                                                                                         \
        ip = (insn_t *)((char *)ip + ip->next);                                                                        \
        if (unlikely(ip == lend)) goto loop_end;                                                                       \
        DISPATCH();                                                                                                    \
    } while (0)

/* The result in resource can be read from cycle cyc + ip->lat on. */
#define RESULT(resource, cause)                                                                                        \
    do {                                                                                                               \
        uint64_t at = cyc + ip->lat;                                                                                   \
        cpu->ready[resource] = at;                                                                                     \
        cpu->why[resource] = (cause);                                                                                  \
        if (at > pend) pend = at;                                                                                      \
    } while (0)

#define BRANCH_IF(condition)                                                                                           \
    do {                                                                                                               \
        if (condition) goto taken;                                                                                     \
        NEXT();                                                                                                        \
    } while (0)

#define LOAD(type, address)                                                                                            \
    do {                                                                                                               \
        uint32_t at_ = (address);                                                                                      \
        if (likely(!(ptab[at_ >> 12] & PF_LOAD_SLOW) && (at_ & 15) <= 16 - sizeof(type))) {                            \
            a[ip->r] = (uint32_t)(int32_t) * (const type *)(mem + at_);                                                \
        } else {                                                                                                       \
            OUT();                                                                                                     \
            uint32_t value_ = slow_load(cpu, ip, at_, sizeof(type));                                                   \
            IN();                                                                                                      \
            if (unlikely(cpu->fault)) goto redirect;                                                                   \
            a[ip->r] = (uint32_t)(int32_t)(type)value_;                                                                \
        }                                                                                                              \
        RESULT(ip->r, LX7_STALL_LOAD);                                                                                 \
        NEXT();                                                                                                        \
    } while (0)

#define STORE(type)                                                                                                    \
    do {                                                                                                               \
        uint32_t at_ = a[ip->s] + (uint32_t)ip->imm;                                                                   \
        if (likely(!(ptab[at_ >> 12] & PF_STORE_SLOW) && (at_ & 15) <= 16 - sizeof(type))) {                           \
            *(type *)(mem + at_) = (type)a[ip->t];                                                                     \
        } else {                                                                                                       \
            OUT();                                                                                                     \
            slow_store(cpu, ip, at_, sizeof(type), a[ip->t]);                                                          \
            IN();                                                                                                      \
            if (unlikely(cpu->fault)) goto redirect;                                                                   \
        }                                                                                                              \
        NEXT();                                                                                                        \
    } while (0)

#define SYNC_COST(n)                                                                                                   \
    do {                                                                                                               \
        uint64_t n_ = (uint64_t)(n);                                                                                   \
        if (n_) book_stall(cpu, ip, n_, LX7_STALL_SYNC), cyc += n_;                                                    \
        NEXT();                                                                                                        \
    } while (0)

typedef uint32_t __attribute__((may_alias, aligned(1))) u32;
typedef uint16_t __attribute__((may_alias, aligned(1))) u16;
typedef int16_t __attribute__((may_alias, aligned(1))) s16;
typedef uint8_t u8;

static inline bool operands_ready(const cpu_t *cpu, const insn_t *ip, uint64_t cyc) {
    const uint64_t *ready = cpu->ready;
    uint8_t s0 = ip->src[0], s1 = ip->src[1], s2 = ip->src[2], s3 = ip->src[3];
    return !((ready[s0 & 63] > cyc + (s0 >> 7)) | (ready[s1 & 63] > cyc + (s1 >> 7)) |
             (ready[s2 & 63] > cyc + (s2 >> 7)) | (ready[s3 & 63] > cyc + (s3 >> 7)));
}

/* A taken transfer reaches ip: decode, split fetch, instruction cache. */
static void arrive(cpu_t *cpu, insn_t *ip) {
    if (ip->flags & INSN_UNDECODED) decode_insn(cpu, ip);
    if (ip->flags & INSN_SPLIT) {
        uint64_t n = (uint64_t)cpu->sim->timing.transfer_target_crosses_fetch_word;
        book_stall(cpu, ip, n, LX7_STALL_FETCH);
        cpu->cyc += n;
    }
    if (ip->flags & INSN_CACHED) cache_fetch(cpu, ip, ip->pc, cpu->sim->ptab[ip->pc >> 12] & PF_CLASS);
}

/* A line of cached code starts within ip, or right at it. */
static void enter_line(cpu_t *cpu, insn_t *ip) {
    uint32_t line = (uint32_t)cpu->sim->timing.icache_line;
    uint32_t last = ip->pc + (uint32_t)ip->next / INSN_STRIDE - 1;
    cache_fetch(cpu, ip, last & ~(line - 1), cpu->sim->ptab[last >> 12] & PF_CLASS);
}

/* Waits of a PIE instruction, whose operands are not in ip->src. */
static uint64_t pie_wait(cpu_t *cpu, insn_t *ip, uint64_t cyc) {
    const pie_op_t *op = ip->pie;
    uint64_t need = cyc;
    unsigned cause = LX7_STALL_PIE;
    for (unsigned i = 0; i < op->n_use; i++) {
        unsigned resource = op->use[i] & 63;
        uint64_t at = cpu->ready[resource];
        if (at > need + (op->use[i] >> 7)) {
            need = at - (op->use[i] >> 7);
            cause = cpu->why[resource];
        }
    }
    if (need != cyc) book_stall(cpu, ip, need - cyc, cause);
    return need;
}

static void unknown_instruction(cpu_t *cpu, insn_t *ip) {
    const uint8_t *bytes = cpu->sim->mem + ip->pc;
    if (ip->imm) {
        raise_address(cpu, ip, ip->pc, 1, "instruction fetch from");
        return;
    }
    unsigned n = (bytes[0] & 15) >= 14 ? 4 : (bytes[0] & 15) >= 8 ? 2 : 3;
    stop_error(
        cpu, "unknown instruction at %08x: bytes %02x %02x %.*s%.*s", ip->pc, bytes[0], bytes[1], n > 2 ? 3 : 0,
        (char[]){"0123456789abcdef"[bytes[2] >> 4], "0123456789abcdef"[bytes[2] & 15], ' ', 0}, n > 3 ? 2 : 0,
        (char[]){"0123456789abcdef"[n > 3 ? bytes[3] >> 4 : 0], "0123456789abcdef"[n > 3 ? bytes[3] & 15 : 0], 0});
    cpu->fault = true;
}

void exec(cpu_t *cpu, const void *const **labels) {
    static const void *const label_table[OP_COUNT] = {
#define I(id, mnemonic, operands, class_id) [OP_##id] = &&L_##id,
#define C(id, mnemonic, operands, class_id) [OP_##id] = &&L_call,
#include "ops.def"
#undef I
#undef C
    };
    static action_t (*const function_table[OP_COUNT])(cpu_t *, insn_t *) = {
#define I(id, mnemonic, operands, class_id)
#define C(id, mnemonic, operands, class_id) [OP_##id] = op_##id,
#include "ops.def"
#undef I
#undef C
    };
    if (!cpu) {
        *labels = label_table;
        return;
    }
    uint32_t *const a = cpu->a;
    uint8_t *const mem = cpu->sim->mem;
    const uint8_t *const ptab = cpu->sim->ptab;
    insn_t *ip = code_lookup(cpu, cpu->target), *lend;
    uint64_t cyc, pend;
    IN();
    DISPATCH();

careful:
    OUT();
    switch (attention(cpu, ip)) {
    case 0:
        cyc = cpu->cyc;
        goto * ip->op;
    case ATTENTION_STOP:
        return;
    default:
        goto redirect;
    }

redirect: /* an exception or a stop instead of this instruction */
    IN();
    cpu->fault = false;
    if (cpu->stop) {
        cpu->target = ip->pc;
        return;
    }
    ip = code_lookup(cpu, cpu->target);
    goto arrived;

taken_register: /* target in cpu->target */
    ip->taken++;
    ip->count++;
    cyc += 1u + ip->lat;
    ip = code_lookup(cpu, cpu->target);
    goto arrived;

taken:
    ip->taken++;
    ip->count++;
    cyc += 1u + ip->lat;
    ip = likely(ip->rel) ? (insn_t *)((char *)ip + ip->rel) : code_lookup(cpu, (uint32_t)ip->imm);
arrived:
    if (ip->flags) {
        OUT();
        arrive(cpu, ip);
        IN();
    }
leave:
    if (unlikely(cyc >= cpu->until)) {
        OUT();
        cpu->target = ip->pc;
        return;
    }
    DISPATCH();

loop_end: /* fell through to LEND */
    if (cpu->lcount) {
        insn_t *last = ip;
        cpu->lcount--;
        ip = cpu->lbeg_ip;
        const timing_t *timing = &cpu->sim->timing;
        uint64_t n = (uint64_t)(cpu->loop_small ? timing->loop_back : timing->loop_back_unbuffered);
        if (unlikely(n)) {
            book_stall(cpu, last, n, LX7_STALL_LOOP);
            cyc += n;
        }
        if (unlikely(!cpu->loop_small)) goto arrived; /* fetched again, as after any transfer */
        goto leave;
    }
    DISPATCH();

L_call : {
    OUT();
    action_t action = function_table[ip->opid](cpu, ip);
    IN();
    switch (action) {
    case ACT_NEXT:
        if (ip->lat > 1 && ip->dst != RES_NONE) RESULT(ip->dst, ip->cause);
        ip->count++;
        cyc++;
        ip = (insn_t *)((char *)ip + ip->next);
        if (unlikely(ip == lend)) goto loop_end;
        goto leave;
    case ACT_TAKEN:
        goto taken_register;
    case ACT_RETARGET:
        ip->count++;
        cyc++;
        ip = code_lookup(cpu, cpu->target);
        goto arrived;
    default:
        goto redirect;
    }
}

L_DECODE:
    OUT();
    decode_insn(cpu, ip);
    IN();
    DISPATCH();
L_PAGE_END:
    ip = code_lookup(cpu, ip->pc);
    if (unlikely(ip == lend)) goto loop_end;
    DISPATCH();
L_LINE:
    OUT();
    enter_line(cpu, ip);
    IN();
    goto *label_table[ip->opid];
L_UNKNOWN:
    OUT();
    unknown_instruction(cpu, ip);
    goto redirect;

L_PIE : {
    pie_op_t *op = ip->pie;
    if (unlikely(!(cpu->cpenable & 8))) {
        OUT();
        raise_exception(cpu, ip->pc, CAUSE_COPROCESSOR0 + 3);
        goto redirect;
    }
    if (cyc < pend) cyc = pie_wait(cpu, ip, cyc);
    OUT();
    if (unlikely(op->execute(&op->insn, &cpu->pie, &cpu->pie_core) != PIE_OK)) goto redirect;
    cyc = cpu->cyc;
    for (unsigned i = 0; i < op->n_def; i++) {
        uint64_t at = cyc + op->def_lat[i];
        cpu->ready[op->def[i]] = at;
        cpu->why[op->def[i]] = op->def_why[i];
        if (at > pend) pend = at;
    }
    NEXT();
}

#include "exec_core.inc"
}
