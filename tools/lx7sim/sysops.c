/* SPDX-License-Identifier: Apache-2.0 */
/* Special registers, exceptions on purpose, division, atomics, booleans (ISA manual, chapter 5 and 6). */
#include "core.h"

enum {
    SR_LBEG = 0,
    SR_LEND = 1,
    SR_LCOUNT = 2,
    SR_SAR = 3,
    SR_BR = 4,
    SR_WINDOWBASE = 72,
    SR_WINDOWSTART = 73,
    SR_INTERRUPT = 226,
    SR_INTCLEAR = 227,
    SR_INTENABLE = 228,
    SR_PS = 230,
    SR_CCOUNT = 234,
    SR_PRID = 235,
    SR_CCOMPARE = 240,
    SR_CPENABLE = 224,
    UR_THREADPTR = 231,
    UR_FCR = 232,
    UR_FSR = 233
};

#define SOFTWARE_MASK 0x880u
#define EDGE_MASK 0x003f8000u

static const char *const sr_names[256] = {
    [0] = "lbeg",        [1] = "lend",        [2] = "lcount",      [3] = "sar",           [4] = "br",
    [5] = "litbase",     [12] = "scompare1",  [72] = "windowbase", [73] = "windowstart",  [96] = "ibreakenable",
    [97] = "memctl",     [99] = "atomctl",    [104] = "ddr",       [128] = "ibreaka0",    [129] = "ibreaka1",
    [144] = "dbreaka0",  [145] = "dbreaka1",  [160] = "dbreakc0",  [161] = "dbreakc1",    [176] = "configid0",
    [177] = "epc1",      [178] = "epc2",      [179] = "epc3",      [180] = "epc4",        [181] = "epc5",
    [182] = "epc6",      [183] = "epc7",      [192] = "depc",      [194] = "eps2",        [195] = "eps3",
    [196] = "eps4",      [197] = "eps5",      [198] = "eps6",      [199] = "eps7",        [208] = "configid1",
    [209] = "excsave1",  [210] = "excsave2",  [211] = "excsave3",  [212] = "excsave4",    [213] = "excsave5",
    [214] = "excsave6",  [215] = "excsave7",  [224] = "cpenable",  [226] = "interrupt",   [227] = "intclear",
    [228] = "intenable", [230] = "ps",        [231] = "vecbase",   [232] = "exccause",    [233] = "debugcause",
    [234] = "ccount",    [235] = "prid",      [236] = "icount",    [237] = "icountlevel", [238] = "excvaddr",
    [240] = "ccompare0", [241] = "ccompare1", [242] = "ccompare2", [244] = "misc0",       [245] = "misc1",
    [246] = "misc2",     [247] = "misc3",
};

const char *special_register_name(unsigned number) {
    return sr_names[number & 255];
}

/* Where a register lives that needs no more than storing; NULL for the others. */
uint32_t *special_register(cpu_t *cpu, unsigned number) {
    switch (number) {
    case SR_LBEG:
        return &cpu->lbeg;
    case SR_LEND:
        return &cpu->lend;
    case SR_LCOUNT:
        return &cpu->lcount;
    case SR_SAR:
        return &cpu->sar;
    case SR_BR:
        return &cpu->b;
    case 5:
        return &cpu->litbase;
    case 12:
        return &cpu->scompare1;
    case SR_WINDOWBASE:
        return &cpu->wb;
    case SR_WINDOWSTART:
        return &cpu->ws;
    case 96:
        return &cpu->ibreakenable;
    case 97:
        return &cpu->memctl;
    case 99:
        return &cpu->atomctl;
    case 104:
        return &cpu->ddr;
    case 192:
        return &cpu->depc;
    case SR_CPENABLE:
        return &cpu->cpenable;
    case SR_INTERRUPT:
        return &cpu->intset;
    case SR_INTENABLE:
        return &cpu->intenable;
    case SR_PS:
        return &cpu->ps;
    case 231:
        return &cpu->vecbase;
    case 232:
        return &cpu->exccause;
    case 233:
        return &cpu->debugcause;
    case 236:
        return &cpu->icount;
    case 237:
        return &cpu->icountlevel;
    case 238:
        return &cpu->excvaddr;
    default:
        break;
    }
    if (number - 128 < 2) return &cpu->ibreaka[number - 128];
    if (number - 144 < 2) return &cpu->dbreaka[number - 144];
    if (number - 160 < 2) return &cpu->dbreakc[number - 160];
    if (number - 177 < 7) return &cpu->epc[number - 176];
    if (number - 194 < 6) return &cpu->eps[number - 192];
    if (number - 209 < 7) return &cpu->excsave[number - 208];
    if (number - SR_CCOMPARE < N_TIMER) return &cpu->ccompare[number - SR_CCOMPARE];
    if (number - 244 < 4) return &cpu->misc[number - 244];
    return NULL;
}

static uint32_t read_sr(cpu_t *cpu, unsigned number) {
    if (number == SR_CCOUNT) return read_ccount(cpu);
    if (number == SR_PRID) return cpu->index;
    const uint32_t *value = special_register(cpu, number);
    return value ? *value : 0; /* INTCLEAR, CONFIGID */
}

static void write_sr(cpu_t *cpu, unsigned number, uint32_t value) {
    uint32_t *place = special_register(cpu, number);
    switch (number) {
    case SR_SAR:
        value &= 63;
        break;
    case SR_BR:
        value &= 0xffff;
        break;
    case SR_WINDOWBASE:
        rotate_window(cpu, value);
        return;
    case SR_WINDOWSTART:
        cpu->ws = value & 0xffff;
        update_window(cpu);
        return;
    case SR_INTERRUPT:
        cpu->intset |= value & SOFTWARE_MASK;
        if (interrupt_pending(cpu)) cpu->until = 0;
        return;
    case SR_INTCLEAR:
        cpu->intset &= ~(value & (SOFTWARE_MASK | EDGE_MASK));
        return;
    case SR_PS:
        value &= PS_WOE | PS_CALLINC | PS_OWB | PS_UM | PS_EXCM | PS_INTLEVEL;
        break;
    case SR_CCOUNT:
        cpu->ccount_base += (uint64_t)(int64_t)(int32_t)(value - read_ccount(cpu));
        for (unsigned i = 0; i < N_TIMER; i++)
            if (cpu->timer[i] != UINT64_MAX) set_timer(cpu, i);
        return;
    case SR_CPENABLE:
        value &= 0xff;
        break;
    default:
        break;
    }
    if (place) *place = value;
    switch (number) {
    case SR_LBEG:
    case SR_LEND:
        update_loop(cpu);
        break;
    case SR_PS:
        update_loop(cpu);
        update_window(cpu);
        if (interrupt_pending(cpu)) cpu->until = 0;
        break;
    case SR_INTENABLE:
        if (interrupt_pending(cpu)) cpu->until = 0;
        break;
    default:
        if (number - SR_CCOMPARE < N_TIMER) set_timer(cpu, number - SR_CCOMPARE);
        break;
    }
}

action_t op_RSR(cpu_t *cpu, insn_t *ip) {
    cpu->a[ip->r] = read_sr(cpu, (unsigned)ip->imm);
    return ACT_NEXT;
}

action_t op_WSR(cpu_t *cpu, insn_t *ip) {
    write_sr(cpu, (unsigned)ip->imm, cpu->a[ip->t]);
    return ACT_NEXT;
}

action_t op_XSR(cpu_t *cpu, insn_t *ip) {
    uint32_t old = read_sr(cpu, (unsigned)ip->imm);
    write_sr(cpu, (unsigned)ip->imm, cpu->a[ip->t]);
    cpu->a[ip->t] = old;
    return ACT_NEXT;
}

static bool coprocessor_disabled(cpu_t *cpu, const insn_t *ip) {
    if (ip->imm == UR_THREADPTR || cpu->cpenable & 1) return false;
    raise_exception(cpu, ip->pc, CAUSE_COPROCESSOR0);
    return true;
}

action_t op_RUR(cpu_t *cpu, insn_t *ip) {
    if (coprocessor_disabled(cpu, ip)) return ACT_REDIRECT;
    if (ip->imm == UR_FSR) fpu_collect_flags(cpu);
    cpu->a[ip->r] = ip->imm == UR_FCR ? cpu->fcr : ip->imm == UR_FSR ? cpu->fsr : cpu->threadptr;
    return ACT_NEXT;
}

action_t op_WUR(cpu_t *cpu, insn_t *ip) {
    if (coprocessor_disabled(cpu, ip)) return ACT_REDIRECT;
    if (ip->imm == UR_FCR)
        cpu->fcr = cpu->a[ip->t] & 0x7f;
    else if (ip->imm == UR_FSR)
        fpu_set_flags(cpu, cpu->a[ip->t] & 0xf80);
    else
        cpu->threadptr = cpu->a[ip->t];
    return ACT_NEXT;
}

action_t op_RER(cpu_t *cpu, insn_t *ip) {
    cpu->a[ip->r] = mx_read(cpu, cpu->a[ip->s]);
    return ACT_NEXT;
}

action_t op_WER(cpu_t *cpu, insn_t *ip) {
    mx_write(cpu, cpu->a[ip->s], cpu->a[ip->t]);
    return ACT_NEXT;
}

/* ---- exceptions and interrupt level ----------------------------------------------------------------------- */

action_t op_RSIL(cpu_t *cpu, insn_t *ip) {
    uint32_t old = cpu->ps;
    cpu->ps = (old & ~PS_INTLEVEL) | (uint32_t)ip->imm;
    cpu->a[ip->r] = old;
    if (interrupt_pending(cpu)) cpu->until = 0;
    return ACT_NEXT;
}

action_t op_WAITI(cpu_t *cpu, insn_t *ip) {
    cpu->ps = (cpu->ps & ~PS_INTLEVEL) | (uint32_t)ip->imm;
    cpu->sleeping = !interrupt_pending(cpu);
    cpu->until = 0;
    return ACT_NEXT;
}

static action_t go_back(cpu_t *cpu, uint32_t target) {
    cpu->target = target;
    update_loop(cpu);
    update_window(cpu);
    if (interrupt_pending(cpu)) cpu->until = 0;
    return ACT_TAKEN;
}

action_t op_RFE(cpu_t *cpu, insn_t *ip) {
    (void)ip;
    cpu->ps &= ~PS_EXCM;
    return go_back(cpu, cpu->epc[1]);
}

action_t op_RFDE(cpu_t *cpu, insn_t *ip) {
    (void)ip;
    return go_back(cpu, cpu->depc);
}

action_t op_RFI(cpu_t *cpu, insn_t *ip) {
    unsigned level = (unsigned)ip->imm;
    if (level > N_LEVEL) return op_ILL(cpu, ip);
    cpu->ps = cpu->eps[level];
    return go_back(cpu, cpu->epc[level]);
}

action_t op_SYSCALL(cpu_t *cpu, insn_t *ip) {
    raise_exception(cpu, ip->pc, CAUSE_SYSCALL);
    return ACT_REDIRECT;
}

action_t op_SIMCALL(cpu_t *cpu, insn_t *ip) { /* no semihosting: a no-op on cores this recent */
    (void)cpu, (void)ip;
    return ACT_NEXT;
}

/* No debugger: BREAK is a no-op when masked, and the debug exception below DEBUGLEVEL, as on the chip. */
action_t op_BREAK(cpu_t *cpu, insn_t *ip) {
    unsigned level = cpu->ps & PS_INTLEVEL;
    if (cpu->ps & PS_EXCM && level < EXCM_LEVEL) level = EXCM_LEVEL;
    if (level >= DEBUG_LEVEL) return ACT_NEXT;
    cpu->debugcause = ip->next == 2 * INSN_STRIDE ? 16 : 8;
    cpu->epc[DEBUG_LEVEL] = ip->pc;
    cpu->eps[DEBUG_LEVEL] = cpu->ps;
    cpu->ps = (cpu->ps & ~PS_INTLEVEL) | PS_EXCM | DEBUG_LEVEL;
    cpu->exceptions++;
    go_back(cpu, cpu->vecbase + 0x280);
    return ACT_REDIRECT;
}

action_t op_ILL(cpu_t *cpu, insn_t *ip) {
    raise_exception(cpu, ip->pc, CAUSE_ILLEGAL);
    return ACT_REDIRECT;
}

/* Region protection: eight attributes a side, kept but not enforced. */
action_t op_TLBW(cpu_t *cpu, insn_t *ip) {
    (ip->aux ? cpu->dtlb : cpu->itlb)[cpu->a[ip->s] >> 29] = cpu->a[ip->t] & 15;
    return ACT_NEXT;
}

action_t op_TLBI(cpu_t *cpu, insn_t *ip) {
    (void)cpu, (void)ip;
    return ACT_NEXT;
}

action_t op_TLBR(cpu_t *cpu, insn_t *ip) {
    uint32_t region = cpu->a[ip->s] & 0xe0000000;
    cpu->a[ip->r] = ip->imm ? region | (ip->aux ? cpu->dtlb : cpu->itlb)[region >> 29] : region;
    return ACT_NEXT;
}

/* ---- division -------------------------------------------------------------------------------------------- */

static bool divides(cpu_t *cpu, insn_t *ip) {
    if (cpu->a[ip->t]) {
        cpu->ready[RES_DIV_UNIT] = cpu->cyc + ip->lat;
        cpu->why[RES_DIV_UNIT] = LX7_STALL_DIV;
        return true;
    }
    raise_exception(cpu, ip->pc, CAUSE_DIVIDE);
    return false;
}

static bool divide_overflows(const cpu_t *cpu, const insn_t *ip) {
    return cpu->a[ip->s] == 0x80000000 && cpu->a[ip->t] == 0xffffffff;
}

action_t op_QUOU(cpu_t *cpu, insn_t *ip) {
    if (!divides(cpu, ip)) return ACT_REDIRECT;
    cpu->a[ip->r] = cpu->a[ip->s] / cpu->a[ip->t];
    return ACT_NEXT;
}

action_t op_QUOS(cpu_t *cpu, insn_t *ip) {
    if (!divides(cpu, ip)) return ACT_REDIRECT;
    cpu->a[ip->r] =
        divide_overflows(cpu, ip) ? 0x80000000 : (uint32_t)((int32_t)cpu->a[ip->s] / (int32_t)cpu->a[ip->t]);
    return ACT_NEXT;
}

action_t op_REMU(cpu_t *cpu, insn_t *ip) {
    if (!divides(cpu, ip)) return ACT_REDIRECT;
    cpu->a[ip->r] = cpu->a[ip->s] % cpu->a[ip->t];
    return ACT_NEXT;
}

action_t op_REMS(cpu_t *cpu, insn_t *ip) {
    if (!divides(cpu, ip)) return ACT_REDIRECT;
    cpu->a[ip->r] = divide_overflows(cpu, ip) ? 0 : (uint32_t)((int32_t)cpu->a[ip->s] % (int32_t)cpu->a[ip->t]);
    return ACT_NEXT;
}

/* ---- atomics, booleans ------------------------------------------------------------------------------------- */

enum { CAUSE_ALIGNMENT = 9 };

action_t op_S32C1I(cpu_t *cpu, insn_t *ip) {
    uint32_t address = cpu->a[ip->s] + (uint32_t)ip->imm;
    uint64_t n = (uint64_t)cpu->sim->timing.sync_s32c1i;
    if (address & 3) {
        cpu->excvaddr = address;
        raise_exception(cpu, ip->pc, CAUSE_ALIGNMENT);
        return ACT_REDIRECT;
    }
    uint32_t old = slow_load(cpu, ip, address, 4);
    if (cpu->fault) return ACT_REDIRECT;
    if (old == cpu->scompare1) slow_store(cpu, ip, address, 4, cpu->a[ip->t]);
    if (cpu->fault) return ACT_REDIRECT;
    cpu->a[ip->t] = old;
    if (n) {
        book_stall(cpu, ip, n, LX7_STALL_SYNC);
        cpu->cyc += n;
    }
    return ACT_NEXT;
}

static action_t set_boolean(cpu_t *cpu, unsigned bit, uint32_t value) {
    cpu->b = (cpu->b & ~(1u << bit)) | (value & 1) << bit;
    return ACT_NEXT;
}

#define BS (cpu->b >> ip->s)
#define BT (cpu->b >> ip->t)
action_t op_ANDB(cpu_t *cpu, insn_t *ip) {
    return set_boolean(cpu, ip->r, BS & BT);
}
action_t op_ANDBC(cpu_t *cpu, insn_t *ip) {
    return set_boolean(cpu, ip->r, BS & ~BT);
}
action_t op_ORB(cpu_t *cpu, insn_t *ip) {
    return set_boolean(cpu, ip->r, BS | BT);
}
action_t op_ORBC(cpu_t *cpu, insn_t *ip) {
    return set_boolean(cpu, ip->r, BS | ~BT);
}
action_t op_XORB(cpu_t *cpu, insn_t *ip) {
    return set_boolean(cpu, ip->r, BS ^ BT);
}
action_t op_ANY4(cpu_t *cpu, insn_t *ip) {
    return set_boolean(cpu, ip->r, (BS & 15) != 0);
}
action_t op_ALL4(cpu_t *cpu, insn_t *ip) {
    return set_boolean(cpu, ip->r, (BS & 15) == 15);
}
action_t op_ANY8(cpu_t *cpu, insn_t *ip) {
    return set_boolean(cpu, ip->r, (BS & 255) != 0);
}
action_t op_ALL8(cpu_t *cpu, insn_t *ip) {
    return set_boolean(cpu, ip->r, (BS & 255) == 255);
}
