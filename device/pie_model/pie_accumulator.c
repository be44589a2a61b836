/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The accumulators: multiply-accumulate into ACCX and QACC, loading, storing and reading them out.
 * TRM sections 1.6.5 and 1.8. These are the instructions a kernel spends its time in, so QACC stays unpacked in
 * lanes between them.
 */
#include "pie_internal.h"

#define MIN20 (-(1 << 19))
#define MAX20 ((1 << 19) - 1)
#define MIN40 (-((int64_t)1 << 39))
#define MAX40 (((int64_t)1 << 39) - 1)
#define MASK20 0xfffffu
#define MASK40 0xffffffffffu
#define CLAMP(value, low, high) ((value) < (low) ? (low) : (value) > (high) ? (high) : (value))

/* ---- one accumulation ----------------------------------------------------------------------------------- */

typedef void mac_fn(pie_state_t *state, pie_q_t x, pie_q_t y);

/* ACCX: all products are summed, then added, then the sum saturates once. 2^39 and more count as negative for the
 * signed forms; the unsigned forms take ACCX as unsigned 40 bits. */
PIE_INLINE void accx_s8(pie_state_t *state, pie_q_t x, pie_q_t y) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i++)
        sum += x.s8[i] * y.s8[i];
    int64_t value = state->accx + sum;
    state->accx = CLAMP(value, MIN40, MAX40);
}

PIE_INLINE void accx_s16(pie_state_t *state, pie_q_t x, pie_q_t y) {
    int64_t value = state->accx;
    for (int i = 0; i < 8; i++)
        value += x.s16[i] * y.s16[i];
    state->accx = CLAMP(value, MIN40, MAX40);
}

PIE_INLINE void accx_add_unsigned(pie_state_t *state, uint64_t sum) {
    uint64_t value = ((uint64_t)state->accx & MASK40) + sum;
    state->accx = pie_extend40((int64_t)(value > MASK40 ? MASK40 : value));
}

PIE_INLINE void accx_u8(pie_state_t *state, pie_q_t x, pie_q_t y) {
    uint32_t sum = 0;
    for (int i = 0; i < 16; i++)
        sum += (uint32_t)x.u8[i] * y.u8[i];
    accx_add_unsigned(state, sum);
}

PIE_INLINE void accx_u16(pie_state_t *state, pie_q_t x, pie_q_t y) {
    uint64_t sum = 0;
    for (int i = 0; i < 8; i++)
        sum += (uint32_t)x.u16[i] * y.u16[i];
    accx_add_unsigned(state, sum);
}

/* QACC: lane i takes the product of lanes i and saturates by itself. */
PIE_INLINE void qacc_s8(pie_state_t *state, pie_q_t x, pie_q_t y) {
    pie_qacc_need(state, PIE_FORM_20);
    for (int i = 0; i < 16; i++) {
        int32_t lane = state->qacc20[i] + x.s8[i] * y.s8[i];
        state->qacc20[i] = CLAMP(lane, MIN20, MAX20);
    }
    state->qacc_forms = PIE_FORM_20;
}

PIE_INLINE void qacc_u8(pie_state_t *state, pie_q_t x, pie_q_t y) {
    pie_qacc_need(state, PIE_FORM_20);
    for (int i = 0; i < 16; i++) {
        uint32_t lane = ((uint32_t)state->qacc20[i] & MASK20) + (uint32_t)x.u8[i] * y.u8[i];
        lane = lane > MASK20 ? MASK20 : lane;
        state->qacc20[i] = (int32_t)(lane << 12) >> 12;
    }
    state->qacc_forms = PIE_FORM_20;
}

PIE_INLINE void qacc_s16(pie_state_t *state, pie_q_t x, pie_q_t y) {
    pie_qacc_need(state, PIE_FORM_40);
    for (int i = 0; i < 8; i++) {
        int64_t lane = state->qacc40[i] + x.s16[i] * y.s16[i];
        state->qacc40[i] = CLAMP(lane, MIN40, MAX40);
    }
    state->qacc_forms = PIE_FORM_40;
}

PIE_INLINE void qacc_u16(pie_state_t *state, pie_q_t x, pie_q_t y) {
    pie_qacc_need(state, PIE_FORM_40);
    for (int i = 0; i < 8; i++) {
        uint64_t lane = ((uint64_t)state->qacc40[i] & MASK40) + (uint32_t)x.u16[i] * y.u16[i];
        state->qacc40[i] = pie_extend40((int64_t)(lane > MASK40 ? MASK40 : lane));
    }
    state->qacc_forms = PIE_FORM_40;
}

/* ---- fused with a load; .qup also realigns: qs0 = {qs1, qs0} >> 8 * SAR_BYTE ------------------------------- */

PIE_INLINE pie_status_t mac(const pie_insn_t *insn, pie_state_t *state, mac_fn *f) {
    f(state, state->q[insn->qx], state->q[insn->qy]);
    return PIE_OK;
}

PIE_INLINE pie_status_t mac_load(const pie_insn_t *insn, pie_state_t *state, pie_core_t *core, mac_fn *f,
                                 uint32_t increment, bool qup) {
    uint32_t *as = pie_ar(core, insn->as);
    pie_q_t data;
    if (!pie_load_any(insn, core, *as, &data, 16, !qup)) return PIE_LOAD_ERROR;
    f(state, state->q[insn->qx], state->q[insn->qy]);
    if (qup) state->q[insn->qs0] = pie_funnel(state->q[insn->qs0], state->q[insn->qs1], state->sar_byte);
    state->q[insn->qu] = data;
    *as += increment;
    return PIE_OK;
}

/* The load broadcasts one element of size bytes, as += size. */
PIE_INLINE pie_status_t mac_broadcast(const pie_insn_t *insn, pie_state_t *state, pie_core_t *core, mac_fn *f,
                                      uint32_t size, bool qup) {
    uint32_t *as = pie_ar(core, insn->as);
    uint16_t element = 0;
    if (!pie_load(insn, core, *as, &element, size)) return PIE_LOAD_ERROR;
    if (size == 1) element = (uint16_t)(element * 0x101);
    f(state, state->q[insn->qx], state->q[insn->qy]);
    if (qup) state->q[insn->qs0] = pie_funnel(state->q[insn->qs0], state->q[insn->qs1], state->sar_byte);
    for (int i = 0; i < 8; i++)
        state->q[insn->qu].u16[i] = element;
    *as += size;
    return PIE_OK;
}

#define IP (uint32_t) insn->imm
#define XP *pie_ar(core, insn->ad)

#define MACS(function, f)                                                                                              \
    PIE_INSTRUCTION(function) {                                                                                        \
        PIE_UNUSED(core);                                                                                              \
        return mac(insn, state, f);                                                                                    \
    }                                                                                                                  \
    PIE_INSTRUCTION(function##_ld_ip) {                                                                                \
        return mac_load(insn, state, core, f, IP, false);                                                              \
    }                                                                                                                  \
    PIE_INSTRUCTION(function##_ld_xp) {                                                                                \
        return mac_load(insn, state, core, f, XP, false);                                                              \
    }                                                                                                                  \
    PIE_INSTRUCTION(function##_ld_ip_qup) {                                                                            \
        return mac_load(insn, state, core, f, IP, true);                                                               \
    }                                                                                                                  \
    PIE_INSTRUCTION(function##_ld_xp_qup) {                                                                            \
        return mac_load(insn, state, core, f, XP, true);                                                               \
    }
#define BROADCAST_MACS(function, f, size)                                                                              \
    PIE_INSTRUCTION(function##_ldbc_incp) {                                                                            \
        return mac_broadcast(insn, state, core, f, size, false);                                                       \
    }                                                                                                                  \
    PIE_INSTRUCTION(function##_ldbc_incp_qup) {                                                                        \
        return mac_broadcast(insn, state, core, f, size, true);                                                        \
    }

MACS(ee_vmulas_s8_accx, accx_s8)
MACS(ee_vmulas_s16_accx, accx_s16)
MACS(ee_vmulas_u8_accx, accx_u8)
MACS(ee_vmulas_u16_accx, accx_u16)
MACS(ee_vmulas_s8_qacc, qacc_s8)
MACS(ee_vmulas_s16_qacc, qacc_s16)
MACS(ee_vmulas_u8_qacc, qacc_u8)
MACS(ee_vmulas_u16_qacc, qacc_u16)
BROADCAST_MACS(ee_vmulas_s8_qacc, qacc_s8, 1)
BROADCAST_MACS(ee_vmulas_s16_qacc, qacc_s16, 2)
BROADCAST_MACS(ee_vmulas_u8_qacc, qacc_u8, 1)
BROADCAST_MACS(ee_vmulas_u16_qacc, qacc_u16, 2)

/* ---- every lane of qx times one lane of qy ---------------------------------------------------------------- */

PIE_INLINE void scalar_mac_s8(const pie_insn_t *insn, pie_state_t *state) {
    pie_q_t x = state->q[insn->qx];
    int32_t scalar = state->q[insn->qy].s8[insn->sel];
    pie_qacc_need(state, PIE_FORM_20);
    for (int i = 0; i < 16; i++) {
        int32_t lane = state->qacc20[i] + (int16_t)(x.s8[i] * scalar);
        state->qacc20[i] = CLAMP(lane, MIN20, MAX20);
    }
    state->qacc_forms = PIE_FORM_20;
}

PIE_INLINE void scalar_mac_s16(const pie_insn_t *insn, pie_state_t *state) {
    pie_q_t y;
    for (int i = 0; i < 8; i++)
        y.s16[i] = state->q[insn->qy].s16[insn->sel];
    qacc_s16(state, state->q[insn->qx], y);
}

#define SCALAR_MACS(function, f)                                                                                       \
    PIE_INSTRUCTION(function) {                                                                                        \
        PIE_UNUSED(core);                                                                                              \
        f(insn, state);                                                                                                \
        return PIE_OK;                                                                                                 \
    }                                                                                                                  \
    PIE_INSTRUCTION(function##_ld_incp) {                                                                              \
        uint32_t *as = pie_ar(core, insn->as);                                                                         \
        pie_q_t data;                                                                                                  \
        if (!pie_load(insn, core, *as, &data, 16)) return PIE_LOAD_ERROR;                                              \
        f(insn, state);                                                                                                \
        state->q[insn->qu] = data;                                                                                     \
        *as += 16;                                                                                                     \
        return PIE_OK;                                                                                                 \
    }
SCALAR_MACS(ee_vsmulas_s8_qacc, scalar_mac_s8)
SCALAR_MACS(ee_vsmulas_s16_qacc, scalar_mac_s16)

/* ---- clearing and setting ------------------------------------------------------------------------------- */

PIE_INSTRUCTION(ee_zero_accx) {
    PIE_UNUSED(insn);
    PIE_UNUSED(core);
    state->accx = 0;
    return PIE_OK;
}

PIE_INSTRUCTION(ee_zero_qacc) {
    PIE_UNUSED(insn);
    PIE_UNUSED(core);
    memset(state->qacc20, 0, sizeof state->qacc20);
    memset(state->qacc40, 0, sizeof state->qacc40);
    memset(state->qacc_raw, 0, sizeof state->qacc_raw);
    state->qacc_forms = PIE_FORM_20 | PIE_FORM_40 | PIE_FORM_RAW;
    return PIE_OK;
}

/* Sixteen bytes, or eight halfwords, extended to the lanes. */
#define EXTEND(name, lanes, form, accumulator)                                                                         \
    PIE_INLINE void name(pie_state_t *state, pie_q_t value) {                                                          \
        for (unsigned i = 0; i < sizeof value.lanes / sizeof value.lanes[0]; i++)                                      \
            state->accumulator[i] = value.lanes[i];                                                                    \
        state->qacc_forms = form;                                                                                      \
    }
EXTEND(extend_s8, s8, PIE_FORM_20, qacc20)
EXTEND(extend_u8, u8, PIE_FORM_20, qacc20)
EXTEND(extend_s16, s16, PIE_FORM_40, qacc40)
EXTEND(extend_u16, u16, PIE_FORM_40, qacc40)

#define SETTERS(type)                                                                                                  \
    PIE_INSTRUCTION(ee_mov_##type##_qacc) {                                                                            \
        PIE_UNUSED(core);                                                                                              \
        extend_##type(state, state->q[insn->qs0]);                                                                     \
        return PIE_OK;                                                                                                 \
    }                                                                                                                  \
    LOAD_EXTEND(type, ip, IP)                                                                                          \
    LOAD_EXTEND(type, xp, XP)
#define LOAD_EXTEND(type, mode, increment)                                                                             \
    PIE_INSTRUCTION(ee_ldqa_##type##_128_##mode) {                                                                     \
        uint32_t *as = pie_ar(core, insn->as);                                                                         \
        pie_q_t data;                                                                                                  \
        if (!pie_load(insn, core, *as, &data, 16)) return PIE_LOAD_ERROR;                                              \
        extend_##type(state, data);                                                                                    \
        *as += increment;                                                                                              \
        return PIE_OK;                                                                                                 \
    }
SETTERS(s8)
SETTERS(u8)
SETTERS(s16)
SETTERS(u16)

/* ---- raw loads and stores ------------------------------------------------------------------------------- */

/* offset, size: the part of the 20 bytes; half: 0 QACC_L, 1 QACC_H */
#define RAW_ACCESS(name, half, offset, size)                                                                           \
    PIE_INSTRUCTION(ee_ld_##name) {                                                                                    \
        uint32_t *as = pie_ar(core, insn->as), data[(size) / 4];                                                       \
        if (!pie_load(insn, core, *as, data, size)) return PIE_LOAD_ERROR;                                             \
        pie_qacc_need(state, PIE_FORM_RAW);                                                                            \
        memcpy(&state->qacc_raw[half][offset], data, size);                                                            \
        state->qacc_forms = PIE_FORM_RAW;                                                                              \
        *as += IP;                                                                                                     \
        return PIE_OK;                                                                                                 \
    }                                                                                                                  \
    PIE_INSTRUCTION(ee_st_##name) {                                                                                    \
        uint32_t *as = pie_ar(core, insn->as);                                                                         \
        pie_qacc_need(state, PIE_FORM_RAW);                                                                            \
        if (!pie_store(insn, core, *as, &state->qacc_raw[half][offset], size)) return PIE_STORE_ERROR;                 \
        *as += IP;                                                                                                     \
        return PIE_OK;                                                                                                 \
    }
RAW_ACCESS(qacc_l_l_128_ip, 0, 0, 16)
RAW_ACCESS(qacc_l_h_32_ip, 0, 16, 4)
RAW_ACCESS(qacc_h_l_128_ip, 1, 0, 16)
RAW_ACCESS(qacc_h_h_32_ip, 1, 16, 4)

PIE_INSTRUCTION(ee_ld_accx_ip) {
    uint32_t *as = pie_ar(core, insn->as);
    int64_t value;
    if (!pie_load(insn, core, *as, &value, 8)) return PIE_LOAD_ERROR;
    state->accx = pie_extend40(value);
    *as += IP;
    return PIE_OK;
}

PIE_INSTRUCTION(ee_st_accx_ip) {
    uint32_t *as = pie_ar(core, insn->as);
    uint64_t value = (uint64_t)state->accx & MASK40;
    if (!pie_store(insn, core, *as, &value, 8)) return PIE_STORE_ERROR;
    *as += IP;
    return PIE_OK;
}

/* ---- reading out: the accumulator itself is shifted, unsaturated; the result saturates -------------------- */

PIE_INSTRUCTION(ee_srcmb_s8_qacc) {
    unsigned shift = *pie_ar(core, insn->as) & 31;
    pie_q_t result;
    pie_qacc_need(state, PIE_FORM_20);
    for (int i = 0; i < 16; i++) {
        int32_t lane = state->qacc20[i] >> shift;
        state->qacc20[i] = lane;
        result.s8[i] = (int8_t)CLAMP(lane, INT8_MIN, INT8_MAX);
    }
    state->q[insn->qu] = result;
    state->qacc_forms = PIE_FORM_20;
    return PIE_OK;
}

PIE_INSTRUCTION(ee_srcmb_s16_qacc) {
    unsigned shift = *pie_ar(core, insn->as) & 63;
    pie_q_t result;
    pie_qacc_need(state, PIE_FORM_40);
    for (int i = 0; i < 8; i++) {
        int64_t lane = state->qacc40[i] >> shift;
        state->qacc40[i] = lane;
        result.s16[i] = (int16_t)CLAMP(lane, INT16_MIN, INT16_MAX);
    }
    state->q[insn->qu] = result;
    state->qacc_forms = PIE_FORM_40;
    return PIE_OK;
}

PIE_INSTRUCTION(ee_srs_accx) {
    int64_t value = state->accx >> (*pie_ar(core, insn->as) & 63);
    state->accx = value;
    *pie_ar(core, insn->at) = (uint32_t)CLAMP(value, INT32_MIN, INT32_MAX);
    return PIE_OK;
}
