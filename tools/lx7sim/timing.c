/* SPDX-License-Identifier: Apache-2.0 */
/* Stall accounting, and the careful path that exec.c takes before an instruction that may have to wait. */
#include "core.h"

#include <stdlib.h>
#include <string.h>

extra_t *insn_extra(cpu_t *cpu, insn_t *ip) {
    if (unlikely(!ip->extra)) {
        if (cpu->n_extra == cpu->max_extra) {
            uint32_t max = cpu->max_extra ? cpu->max_extra * 2 : 1024;
            extra_t *grown = realloc(cpu->extra, max * sizeof *grown);
            if (!grown) abort();
            cpu->extra = grown;
            cpu->max_extra = max;
        }
        memset(&cpu->extra[cpu->n_extra], 0, sizeof *cpu->extra);
        ip->extra = ++cpu->n_extra;
    }
    return &cpu->extra[ip->extra - 1];
}

void extra_clear(cpu_t *cpu) {
    for (uint32_t i = 0; i < cpu->n_extra; i++)
        free(cpu->extra[i].past);
    cpu->n_extra = 0;
}

void book_stall(cpu_t *cpu, insn_t *ip, uint64_t n, lx7_stall_t cause) {
    insn_extra(cpu, ip)->stall[cause] += n;
}

/* Waits for the operands of ip; returns the cause of the longest wait, LX7_STALL_COUNT for none. */
static unsigned wait_for_operands(cpu_t *cpu, insn_t *ip, uint64_t *waited) {
    uint64_t need = cpu->cyc;
    unsigned cause = LX7_STALL_COUNT;
    const uint8_t *src = ip->src;
    unsigned n = 4;
    if (ip->opid == OP_PIE) {
        src = ip->pie->use;
        n = ip->pie->n_use;
    }
    for (unsigned i = 0; i < n; i++) {
        unsigned resource = src[i] & (RES_COUNT - 1);
        uint64_t at = cpu->ready[resource] - (src[i] >> 7);
        if (at > need && cpu->ready[resource]) {
            need = at;
            cause = cpu->why[resource];
        }
    }
    *waited = need - cpu->cyc;
    if (*waited) {
        book_stall(cpu, ip, *waited, cause);
        cpu->cyc = need;
    }
    return cause;
}

int attention(cpu_t *cpu, insn_t *ip) {
    uint64_t waited;
    if (unlikely(ip->flags & INSN_UNDECODED || ip->opid == OP_PAGE_END)) return 0; /* comes again once decoded */
    if (unlikely(cpu->pend == PEND_ALWAYS) && cpu->win_safe < 4 && ip->quad >= cpu->win_safe) {
        window_overflow(cpu, ip->pc);
        return ATTENTION_REDIRECT;
    }
    unsigned cause = wait_for_operands(cpu, ip, &waited);
    if (unlikely(cpu->sim->trace != NULL)) {
        lx7_event_t event = {
            .pc = ip->pc, .core = cpu->index, .cycle = cpu->cyc, .waited = (uint32_t)waited, .cause = cause};
        if (cpu->sim->trace(cpu->sim->trace_context, &event)) {
            cpu->stop = LX7_STOP_BREAK;
            cpu->target = ip->pc;
            return ATTENTION_STOP;
        }
    }
    return 0;
}

void update_attention(cpu_t *cpu) {
    if (cpu->win_safe < 4 || cpu->sim->trace) {
        cpu->pend = PEND_ALWAYS;
    } else if (cpu->pend == PEND_ALWAYS) {
        cpu->pend = 0;
        for (int i = 0; i < RES_COUNT; i++)
            if (cpu->ready[i] > cpu->pend) cpu->pend = cpu->ready[i];
    }
}
