/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Interrupt inputs. One core: the UART drives external interrupt 0 directly. Two cores: the MX interrupt distributor
 * of Xtensa multiprocessors stands between, its registers reached by RER and WER: routing (MIROUT), inter-processor
 * interrupts (MIPISET, MIPICAUSE, MIPIPART), run-stall (MPSCORE), as Linux's xtensa-mx driver uses them.
 */
#include "core.h"

#include <string.h>

enum {
    MIROUT = 0x000,
    MIPICAUSE = 0x100,
    MIPISET = 0x140,
    MIENG = 0x180,
    MIENGSET = 0x184,
    MIASG = 0x188,
    MIASGSET = 0x18c,
    MIPIPART = 0x190,
    SYSCFGID = 0x1a0,
    MPSCORE = 0x200,
    CCON = 0x220
};

/* Interrupt number of each external input pin of core de212. */
static const uint8_t pin_interrupt[] = {0, 1, 2, 3, 4, 5, 8, 9, 12, 14, 15, 16, 17, 18, 19, 20, 21};

static void set_pin(cpu_t *cpu, unsigned pin, bool active) {
    if (pin < sizeof pin_interrupt) set_interrupt_line(cpu, pin_interrupt[pin], active);
}

/* The three inter-processor groups go to pins 0..2 as MIPIPART says, the distributed interrupts to the pins above. */
static uint32_t pins_of(const lx7_sim_t *sim, int core) {
    const mx_t *mx = &sim->mx;
    uint32_t cause = mx->mipicause[core], part = mx->mipipart, ipi = 0, routed = 0;
    ipi |= (cause & 1) << (part & 3);
    ipi |= (uint32_t)((cause & 0x000e) != 0) << (part >> 2 & 3);
    ipi |= (uint32_t)((cause & 0x00f0) != 0) << (part >> 4 & 3);
    ipi |= (uint32_t)((cause & 0xff00) != 0) << (part >> 6 & 3);
    for (unsigned i = 0; i < 32; i++)
        routed |= (mx->mirout[i] >> core & 1) << i;
    return (ipi & 7) | (((mx->ext_irq & mx->mieng) | mx->miasg) & routed) << 2;
}

static void update(lx7_sim_t *sim) {
    for (int core = 0; core < sim->cores; core++) {
        uint32_t pins = pins_of(sim, core), changed = pins ^ sim->mx.lines[core];
        sim->mx.lines[core] = pins;
        for (; changed; changed &= changed - 1) {
            unsigned pin = (unsigned)__builtin_ctz(changed);
            set_pin(sim->cpu[core], pin, pins >> pin & 1);
        }
    }
}

void external_irq(lx7_sim_t *sim, unsigned number, bool active) {
    if (sim->cores == 1) {
        set_pin(sim->cpu[0], number, active);
        return;
    }
    uint32_t mask = 1u << (number + 1); /* input 0 of the distributor is not connected */
    sim->mx.ext_irq = active ? sim->mx.ext_irq | mask : sim->mx.ext_irq & ~mask;
    update(sim);
}

void mx_reset(lx7_sim_t *sim) {
    mx_t *mx = &sim->mx;
    memset(mx, 0, sizeof *mx);
    mx->mieng = ~0u;
    for (unsigned i = 0; i < 32; i++)
        mx->mirout[i] = 1; /* everything to core 0 */
    mx->runstall = (1u << sim->cores) - 2;
    for (int core = 0; core < sim->cores; core++)
        sim->cpu[core]->stalled = core != 0;
}

uint32_t mx_read(cpu_t *cpu, uint32_t offset) {
    const lx7_sim_t *sim = cpu->sim;
    const mx_t *mx = &sim->mx;
    if (sim->cores == 1) return 0;
    if (offset < MIROUT + 32) return mx->mirout[offset - MIROUT];
    if (offset - MIPICAUSE < (uint32_t)sim->cores) return mx->mipicause[offset - MIPICAUSE];
    switch (offset) {
    case MIENG:
        return mx->mieng;
    case MIASG:
        return mx->miasg;
    case MIPIPART:
        return mx->mipipart;
    case SYSCFGID:
        return (uint32_t)(sim->cores - 1) << 18 | cpu->index;
    case MPSCORE:
        return mx->runstall;
    case CCON:
        return mx->ccon[cpu->index];
    default:
        return 0;
    }
}

void mx_write(cpu_t *cpu, uint32_t offset, uint32_t value) {
    lx7_sim_t *sim = cpu->sim;
    mx_t *mx = &sim->mx;
    if (sim->cores == 1) return;
    if (offset < MIROUT + 32)
        mx->mirout[offset - MIROUT] = value;
    else if (offset - MIPICAUSE < (uint32_t)sim->cores)
        mx->mipicause[offset - MIPICAUSE] &= ~value;
    else if (offset - MIPISET < 16) {
        for (int core = 0; core < sim->cores; core++)
            if (value >> core & 1) mx->mipicause[core] |= 1u << (offset - MIPISET);
    } else {
        switch (offset) {
        case MIENG:
            mx->mieng &= ~value;
            break;
        case MIENGSET:
            mx->mieng |= value;
            break;
        case MIASG:
            mx->miasg &= ~value;
            break;
        case MIASGSET:
            mx->miasg |= value;
            break;
        case MIPIPART:
            mx->mipipart = value;
            break;
        case MPSCORE:
            mx->runstall = value;
            for (int core = 0; core < sim->cores; core++) {
                if (sim->cpu[core]->stalled && !(value >> core & 1)) stale_synchronize(sim->cpu[core]);
                sim->cpu[core]->stalled = value >> core & 1;
            }
            sim->rearranged = true;
            cpu->until = 0;
            break;
        case CCON:
            mx->ccon[cpu->index] = value & 1;
            break;
        default:
            break;
        }
    }
    update(sim);
}
