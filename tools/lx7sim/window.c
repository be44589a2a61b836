/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Register windows (ISA manual, chapter 4.7.1) and zero-overhead loops (4.3.2). cpu->a is a copy of the sixteen visible
 * registers; rotating writes it back to the file of 64 and fetches the new ones.
 */
#include "core.h"

#include <string.h>

enum { QUADS = N_AR / 4 };

static const uint16_t overflow_vector[3] = {0x000, 0x080, 0x100};
static const uint16_t underflow_vector[3] = {0x040, 0x0c0, 0x140};

static bool window_bit(const cpu_t *cpu, uint32_t base) {
    return cpu->ws >> (base & (QUADS - 1)) & 1;
}

void save_window(cpu_t *cpu) {
    for (unsigned i = 0; i < 4; i++)
        memcpy(&cpu->ar[(cpu->wb + i) % QUADS * 4], &cpu->a[i * 4], 16);
}

void load_window(cpu_t *cpu) {
    for (unsigned i = 0; i < 4; i++)
        memcpy(&cpu->a[i * 4], &cpu->ar[(cpu->wb + i) % QUADS * 4], 16);
}

/* Results still on their way to address registers have arrived by the time a rotation has been fetched. */
void rotate_window(cpu_t *cpu, uint32_t new_base) {
    save_window(cpu);
    cpu->wb = new_base & (QUADS - 1);
    load_window(cpu);
    memset(&cpu->ready[RES_A], 0, 16 * sizeof *cpu->ready);
    update_window(cpu);
}

void update_window(cpu_t *cpu) {
    cpu->win_safe = 4;
    if ((cpu->ps & (PS_WOE | PS_EXCM)) == PS_WOE)
        for (unsigned i = 3; i >= 1; i--)
            if (window_bit(cpu, cpu->wb + i)) cpu->win_safe = (uint8_t)i;
    update_attention(cpu);
}

/* Leaves for a window vector at pc, with the window at new_base. */
static void window_exception(cpu_t *cpu, uint32_t pc, uint32_t new_base, uint32_t vector) {
    uint64_t n = (uint64_t)cpu->sim->timing.transfer_exception;
    uint32_t old = cpu->wb;
    cpu->ps = (cpu->ps & ~PS_OWB) | old << PS_OWB_SHIFT | PS_EXCM;
    rotate_window(cpu, new_base);
    cpu->epc[1] = pc;
    cpu->target = cpu->vecbase + vector;
    book_stall(cpu, cpu->ip, n, LX7_STALL_EXCEPTION);
    cpu->cyc += n;
    update_loop(cpu);
}

void window_overflow(cpu_t *cpu, uint32_t pc) {
    uint32_t n = 1, size = 1;
    while (n < 3 && !window_bit(cpu, cpu->wb + n))
        n++;
    while (size < 3 && !window_bit(cpu, cpu->wb + n + size))
        size++;
    cpu->overflows++;
    window_exception(cpu, pc, cpu->wb + n, overflow_vector[size - 1]);
}

static bool windows_on(const cpu_t *cpu) {
    return (cpu->ps & (PS_WOE | PS_EXCM)) == PS_WOE;
}

static action_t illegal(cpu_t *cpu, const insn_t *ip) {
    raise_exception(cpu, ip->pc, CAUSE_ILLEGAL);
    return ACT_REDIRECT;
}

static action_t call_windowed(cpu_t *cpu, insn_t *ip, uint32_t n, uint32_t target) {
    cpu->target = target;
    cpu->ps = (cpu->ps & ~PS_CALLINC) | n << PS_CALLINC_SHIFT;
    cpu->a[n * 4] = n << 30 | ((ip->pc + 3) & 0x3fffffff);
    return ACT_TAKEN;
}

action_t op_CALL4(cpu_t *cpu, insn_t *ip) {
    return call_windowed(cpu, ip, 1, (uint32_t)ip->imm);
}
action_t op_CALL8(cpu_t *cpu, insn_t *ip) {
    return call_windowed(cpu, ip, 2, (uint32_t)ip->imm);
}
action_t op_CALL12(cpu_t *cpu, insn_t *ip) {
    return call_windowed(cpu, ip, 3, (uint32_t)ip->imm);
}
action_t op_CALLX4(cpu_t *cpu, insn_t *ip) {
    return call_windowed(cpu, ip, 1, cpu->a[ip->s]);
}
action_t op_CALLX8(cpu_t *cpu, insn_t *ip) {
    return call_windowed(cpu, ip, 2, cpu->a[ip->s]);
}
action_t op_CALLX12(cpu_t *cpu, insn_t *ip) {
    return call_windowed(cpu, ip, 3, cpu->a[ip->s]);
}

action_t op_ENTRY(cpu_t *cpu, insn_t *ip) {
    uint32_t n = (cpu->ps & PS_CALLINC) >> PS_CALLINC_SHIFT;
    if (ip->s > 3 || !windows_on(cpu)) return illegal(cpu, ip);
    if (n >= cpu->win_safe) {
        window_overflow(cpu, ip->pc);
        return ACT_REDIRECT;
    }
    if (ip->lat) {
        book_stall(cpu, ip, ip->lat, LX7_STALL_BRANCH);
        cpu->cyc += ip->lat;
    }
    cpu->a[n << 2 | ip->s] = cpu->a[ip->s] - (uint32_t)ip->imm;
    cpu->ws |= 1u << ((cpu->wb + n) & (QUADS - 1));
    rotate_window(cpu, cpu->wb + n);
    return ACT_NEXT;
}

action_t op_RETW(cpu_t *cpu, insn_t *ip) {
    uint32_t n = cpu->a[0] >> 30, m = 0;
    while (m < 3 && !window_bit(cpu, cpu->wb - m - 1))
        m++;
    m = m < 3 ? m + 1 : 0;
    if (!windows_on(cpu) || n == 0 || (m != 0 && m != n)) return illegal(cpu, ip);
    if (!window_bit(cpu, cpu->wb - n)) {
        cpu->underflows++;
        window_exception(cpu, ip->pc, cpu->wb - n, underflow_vector[n - 1]);
        return ACT_REDIRECT;
    }
    cpu->target = (ip->pc & 0xc0000000) | (cpu->a[0] & 0x3fffffff);
    cpu->ws &= ~(1u << cpu->wb);
    rotate_window(cpu, cpu->wb - n);
    return ACT_TAKEN;
}

action_t op_MOVSP(cpu_t *cpu, insn_t *ip) {
    if (!window_bit(cpu, cpu->wb - 1) && !window_bit(cpu, cpu->wb - 2) && !window_bit(cpu, cpu->wb - 3)) {
        raise_exception(cpu, ip->pc, CAUSE_ALLOCA);
        return ACT_REDIRECT;
    }
    cpu->a[ip->r] = cpu->a[ip->s];
    return ACT_NEXT;
}

action_t op_ROTW(cpu_t *cpu, insn_t *ip) {
    rotate_window(cpu, cpu->wb + (uint32_t)ip->imm);
    return ACT_NEXT;
}

static action_t return_from_window(cpu_t *cpu, bool overflow) {
    uint32_t bit = 1u << cpu->wb;
    cpu->ps &= ~PS_EXCM;
    cpu->ws = overflow ? cpu->ws & ~bit : cpu->ws | bit;
    cpu->target = cpu->epc[1];
    rotate_window(cpu, (cpu->ps & PS_OWB) >> PS_OWB_SHIFT);
    update_loop(cpu);
    if (interrupt_pending(cpu)) cpu->until = 0;
    return ACT_TAKEN;
}

action_t op_RFWO(cpu_t *cpu, insn_t *ip) {
    (void)ip;
    return return_from_window(cpu, true);
}

action_t op_RFWU(cpu_t *cpu, insn_t *ip) {
    (void)ip;
    return return_from_window(cpu, false);
}

/* ---- loops ----------------------------------------------------------------------------------------------- */

void update_loop(cpu_t *cpu) {
    cpu->lend_ip = NULL;
    if (cpu->ps & PS_EXCM || !cpu->lend) return;
    cpu->lend_ip = code_lookup(cpu, cpu->lend);
    cpu->lbeg_ip = code_lookup(cpu, cpu->lbeg);
    cpu->loop_small = cpu->lend - cpu->lbeg <= (uint32_t)cpu->sim->timing.loop_buffer_bytes;
}

static action_t loop(cpu_t *cpu, insn_t *ip, bool enter) {
    uint64_t n = (uint64_t)cpu->sim->timing.loop_setup;
    cpu->lbeg = ip->pc + 3;
    cpu->lend = (uint32_t)ip->imm;
    cpu->lcount = cpu->a[ip->s] - 1;
    update_loop(cpu);
    if (!enter) {
        cpu->target = cpu->lend;
        return ACT_TAKEN;
    }
    if (n) {
        book_stall(cpu, ip, n, LX7_STALL_LOOP);
        cpu->cyc += n;
    }
    return ACT_NEXT;
}

action_t op_LOOP(cpu_t *cpu, insn_t *ip) {
    return loop(cpu, ip, true);
}
action_t op_LOOPNEZ(cpu_t *cpu, insn_t *ip) {
    return loop(cpu, ip, cpu->a[ip->s] != 0);
}
action_t op_LOOPGTZ(cpu_t *cpu, insn_t *ip) {
    return loop(cpu, ip, (int32_t)cpu->a[ip->s] > 0);
}
