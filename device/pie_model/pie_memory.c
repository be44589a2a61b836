/* SPDX-License-Identifier: Apache-2.0 */
/* Loads, stores and moves of the vector registers, fast GPIO. TRM sections 1.6.1 to 1.6.3 and 1.6.9. */
#include "pie_internal.h"

/* What a post-increment adds to as. */
#define IP (uint32_t) insn->imm
#define XP *pie_ar(core, insn->ad)

/* ---- whole vectors and halves --------------------------------------------------------------------------- */

#define LOAD_VECTOR(function, increment)                                                                               \
    PIE_INSTRUCTION(function) {                                                                                        \
        uint32_t *as = pie_ar(core, insn->as);                                                                         \
        if (!pie_load(insn, core, *as, &state->q[insn->qu], 16)) return PIE_LOAD_ERROR;                                \
        *as += increment;                                                                                              \
        return PIE_OK;                                                                                                 \
    }
LOAD_VECTOR(ee_vld_128_ip, IP)
LOAD_VECTOR(ee_vld_128_xp, XP)

#define STORE_VECTOR(function, increment)                                                                              \
    PIE_INSTRUCTION(function) {                                                                                        \
        uint32_t *as = pie_ar(core, insn->as);                                                                         \
        if (!pie_store(insn, core, *as, &state->q[insn->qu], 16)) return PIE_STORE_ERROR;                              \
        *as += increment;                                                                                              \
        return PIE_OK;                                                                                                 \
    }
STORE_VECTOR(ee_vst_128_ip, IP)
STORE_VECTOR(ee_vst_128_xp, XP)

/* The register form of the toolchain's spills: an offset, no increment. */
PIE_INSTRUCTION(ld_qr) {
    uint32_t address = *pie_ar(core, insn->as) + (uint32_t)insn->imm;
    return pie_load(insn, core, address, &state->q[insn->qu], 16) ? PIE_OK : PIE_LOAD_ERROR;
}

PIE_INSTRUCTION(st_qr) {
    uint32_t address = *pie_ar(core, insn->as) + (uint32_t)insn->imm;
    return pie_store(insn, core, address, &state->q[insn->qu], 16) ? PIE_OK : PIE_STORE_ERROR;
}

#define LOAD_HALF(function, half, increment)                                                                           \
    PIE_INSTRUCTION(function) {                                                                                        \
        uint32_t *as = pie_ar(core, insn->as);                                                                         \
        if (!pie_load(insn, core, *as, &state->q[insn->qu].u64[half], 8)) return PIE_LOAD_ERROR;                       \
        *as += increment;                                                                                              \
        return PIE_OK;                                                                                                 \
    }
LOAD_HALF(ee_vld_l_64_ip, 0, IP)
LOAD_HALF(ee_vld_l_64_xp, 0, XP)
LOAD_HALF(ee_vld_h_64_ip, 1, IP)
LOAD_HALF(ee_vld_h_64_xp, 1, XP)

#define STORE_HALF(function, half, increment)                                                                          \
    PIE_INSTRUCTION(function) {                                                                                        \
        uint32_t *as = pie_ar(core, insn->as);                                                                         \
        if (!pie_store(insn, core, *as, &state->q[insn->qu].u64[half], 8)) return PIE_STORE_ERROR;                     \
        *as += increment;                                                                                              \
        return PIE_OK;                                                                                                 \
    }
STORE_HALF(ee_vst_l_64_ip, 0, IP)
STORE_HALF(ee_vst_l_64_xp, 0, XP)
STORE_HALF(ee_vst_h_64_ip, 1, IP)
STORE_HALF(ee_vst_h_64_xp, 1, XP)

/* Loads the aligned vector and remembers in SAR_BYTE how far the pointer is from it. */
#define LOAD_USAR(function, increment)                                                                                 \
    PIE_INSTRUCTION(function) {                                                                                        \
        uint32_t *as = pie_ar(core, insn->as);                                                                         \
        if (!pie_load_unaligned(insn, core, *as, &state->q[insn->qu], 16)) return PIE_LOAD_ERROR;                      \
        state->sar_byte = *as & 15;                                                                                    \
        *as += increment;                                                                                              \
        return PIE_OK;                                                                                                 \
    }
LOAD_USAR(ee_ld_128_usar_ip, IP)
LOAD_USAR(ee_ld_128_usar_xp, XP)

/* ---- broadcasts ----------------------------------------------------------------------------------------- */

#define LOAD_BROADCAST(function, type, lanes, increment)                                                               \
    PIE_INSTRUCTION(function) {                                                                                        \
        uint32_t *as = pie_ar(core, insn->as);                                                                         \
        type##_t value;                                                                                                \
        if (!pie_load(insn, core, *as, &value, sizeof value)) return PIE_LOAD_ERROR;                                   \
        for (unsigned i = 0; i < 16 / sizeof value; i++)                                                               \
            state->q[insn->qu].lanes[i] = value;                                                                       \
        *as += increment;                                                                                              \
        return PIE_OK;                                                                                                 \
    }
LOAD_BROADCAST(ee_vldbc_8, uint8, u8, 0)
LOAD_BROADCAST(ee_vldbc_8_ip, uint8, u8, IP)
LOAD_BROADCAST(ee_vldbc_8_xp, uint8, u8, XP)
LOAD_BROADCAST(ee_vldbc_16, uint16, u16, 0)
LOAD_BROADCAST(ee_vldbc_16_ip, uint16, u16, IP)
LOAD_BROADCAST(ee_vldbc_16_xp, uint16, u16, XP)
LOAD_BROADCAST(ee_vldbc_32, uint32, u32, 0)
LOAD_BROADCAST(ee_vldbc_32_ip, uint32, u32, IP)
LOAD_BROADCAST(ee_vldbc_32_xp, uint32, u32, XP)

/* Eight halfwords, each doubled: the low four to qu, the high four to qu1. */
PIE_INSTRUCTION(ee_vldhbc_16_incp) {
    uint32_t *as = pie_ar(core, insn->as);
    pie_q_t data;
    if (!pie_load(insn, core, *as, &data, 16)) return PIE_LOAD_ERROR;
    for (int i = 0; i < 8; i++) {
        state->q[insn->qu].u16[i] = data.u16[i / 2];
        state->q[insn->qu1].u16[i] = data.u16[4 + i / 2];
    }
    *as += 16;
    return PIE_OK;
}

/* ---- indexed by a lane of qs0 --------------------------------------------------------------------------- */

PIE_INSTRUCTION(ee_ldxq_32) {
    uint32_t address = *pie_ar(core, insn->as) + 4 * (uint32_t)(int32_t)state->q[insn->qs0].s16[insn->sel];
    uint32_t value;
    if (!pie_load(insn, core, address, &value, 4)) return PIE_LOAD_ERROR;
    state->q[insn->qu].u32[insn->lane] = value;
    return PIE_OK;
}

PIE_INSTRUCTION(ee_stxq_32) {
    uint32_t address = *pie_ar(core, insn->as) + 4 * (uint32_t)(int32_t)state->q[insn->qs0].s16[insn->sel];
    return pie_store(insn, core, address, &state->q[insn->qu].u32[insn->lane], 4) ? PIE_OK : PIE_STORE_ERROR;
}

/* ---- FPU registers: f0 from the lowest address ---------------------------------------------------------- */

#define LOAD_FLOATS(function, count, increment)                                                                        \
    PIE_INSTRUCTION(function) {                                                                                        \
        PIE_UNUSED(state);                                                                                             \
        uint32_t *as = pie_ar(core, insn->as), values[count];                                                          \
        if (!pie_load(insn, core, *as, values, sizeof values)) return PIE_LOAD_ERROR;                                  \
        for (int i = 0; i < count; i++)                                                                                \
            core->fr[insn->f[i]] = values[i];                                                                          \
        *as += increment;                                                                                              \
        return PIE_OK;                                                                                                 \
    }
LOAD_FLOATS(ee_ldf_64_ip, 2, IP)
LOAD_FLOATS(ee_ldf_64_xp, 2, XP)
LOAD_FLOATS(ee_ldf_128_ip, 4, IP)
LOAD_FLOATS(ee_ldf_128_xp, 4, XP)

#define STORE_FLOATS(function, count, increment)                                                                       \
    PIE_INSTRUCTION(function) {                                                                                        \
        PIE_UNUSED(state);                                                                                             \
        uint32_t *as = pie_ar(core, insn->as), values[count];                                                          \
        for (int i = 0; i < count; i++)                                                                                \
            values[i] = core->fr[insn->f[i]];                                                                          \
        if (!pie_store(insn, core, *as, values, sizeof values)) return PIE_STORE_ERROR;                                \
        *as += increment;                                                                                              \
        return PIE_OK;                                                                                                 \
    }
STORE_FLOATS(ee_stf_64_ip, 2, IP)
STORE_FLOATS(ee_stf_64_xp, 2, XP)
STORE_FLOATS(ee_stf_128_ip, 4, IP)
STORE_FLOATS(ee_stf_128_xp, 4, XP)

/* ---- UA_STATE ------------------------------------------------------------------------------------------- */

PIE_INSTRUCTION(ee_ld_ua_state_ip) {
    uint32_t *as = pie_ar(core, insn->as);
    if (!pie_load(insn, core, *as, &state->ua_state, 16)) return PIE_LOAD_ERROR;
    *as += IP;
    return PIE_OK;
}

PIE_INSTRUCTION(ee_st_ua_state_ip) {
    uint32_t *as = pie_ar(core, insn->as);
    if (!pie_store(insn, core, *as, &state->ua_state, 16)) return PIE_STORE_ERROR;
    *as += IP;
    return PIE_OK;
}

/* ---- moves ---------------------------------------------------------------------------------------------- */

PIE_INSTRUCTION(mv_qr) {
    PIE_UNUSED(core);
    state->q[insn->qu] = state->q[insn->qs0];
    return PIE_OK;
}

PIE_INSTRUCTION(ee_zero_q) {
    PIE_UNUSED(core);
    memset(&state->q[insn->qz], 0, sizeof state->q[0]);
    return PIE_OK;
}

PIE_INSTRUCTION(ee_movi_32_a) {
    *pie_ar(core, insn->at) = state->q[insn->qs0].u32[insn->lane];
    return PIE_OK;
}

PIE_INSTRUCTION(ee_movi_32_q) {
    state->q[insn->qu].u32[insn->lane] = *pie_ar(core, insn->as);
    return PIE_OK;
}

/* ---- fast GPIO ------------------------------------------------------------------------------------------ */

PIE_INSTRUCTION(ee_get_gpio_in) {
    PIE_UNUSED(state);
    *pie_ar(core, insn->at) = core->gpio_in;
    return PIE_OK;
}

PIE_INSTRUCTION(ee_wr_mask_gpio_out) {
    uint32_t value = *pie_ar(core, insn->as), mask = *pie_ar(core, insn->ax);
    state->gpio_out = (uint8_t)((state->gpio_out & ~mask) | (value & mask));
    return PIE_OK;
}

PIE_INSTRUCTION(ee_set_bit_gpio_out) {
    PIE_UNUSED(core);
    state->gpio_out = (uint8_t)(state->gpio_out | insn->imm);
    return PIE_OK;
}

PIE_INSTRUCTION(ee_clr_bit_gpio_out) {
    PIE_UNUSED(core);
    state->gpio_out = (uint8_t)(state->gpio_out & ~insn->imm);
    return PIE_OK;
}
