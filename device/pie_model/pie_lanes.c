/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lane-wise arithmetic, comparison, multiplication, logic, shifts and zips. TRM sections 1.6.4 to 1.6.7.
 * The vector operands are copied before the result is written, so any of the registers may be the same.
 */
#include "pie_internal.h"

/* ---- two vectors to one, with and without a memory access ------------------------------------------------ */

typedef void lanes_fn(pie_q_t *z, pie_q_t x, pie_q_t y, unsigned sar);

/* z = f(x, y) */
PIE_INLINE pie_status_t plain(const pie_insn_t *insn, pie_state_t *state, pie_core_t *core, lanes_fn *f) {
    f(&state->q[insn->qz], state->q[insn->qx], state->q[insn->qy], pie_sar(core));
    return PIE_OK;
}

/* ... and loads qu, as += 16 */
PIE_INLINE pie_status_t with_load(const pie_insn_t *insn, pie_state_t *state, pie_core_t *core, lanes_fn *f) {
    uint32_t *as = pie_ar(core, insn->as);
    pie_q_t data;
    if (!pie_load(insn, core, *as, &data, 16)) return PIE_LOAD_ERROR;
    f(&state->q[insn->qz], state->q[insn->qx], state->q[insn->qy], pie_sar(core));
    state->q[insn->qu] = data;
    *as += 16;
    return PIE_OK;
}

/* ... and stores what qu held before, as += 16 */
PIE_INLINE pie_status_t with_store(const pie_insn_t *insn, pie_state_t *state, pie_core_t *core, lanes_fn *f) {
    uint32_t *as = pie_ar(core, insn->as);
    if (!pie_store(insn, core, *as, &state->q[insn->qu], 16)) return PIE_STORE_ERROR;
    f(&state->q[insn->qz], state->q[insn->qx], state->q[insn->qy], pie_sar(core));
    *as += 16;
    return PIE_OK;
}

#define PLAIN(function, f)                                                                                             \
    PIE_INSTRUCTION(function) {                                                                                        \
        return plain(insn, state, core, f);                                                                            \
    }
#define FUSED(function, f)                                                                                             \
    PIE_INSTRUCTION(function) {                                                                                        \
        return plain(insn, state, core, f);                                                                            \
    }                                                                                                                  \
    PIE_INSTRUCTION(function##_ld_incp) {                                                                              \
        return with_load(insn, state, core, f);                                                                        \
    }                                                                                                                  \
    PIE_INSTRUCTION(function##_st_incp) {                                                                              \
        return with_store(insn, state, core, f);                                                                       \
    }

/* Defines f(z, x, y, sar): expression gives lane i of the result, of a type wide enough, from a and b. */
#define LANES(f, lanes, wide, expression)                                                                              \
    PIE_INLINE void f(pie_q_t *z, pie_q_t x, pie_q_t y, unsigned sar) {                                                \
        PIE_UNUSED(sar);                                                                                               \
        for (unsigned i = 0; i < sizeof x.lanes / sizeof x.lanes[0]; i++) {                                            \
            wide a = x.lanes[i], b = y.lanes[i];                                                                       \
            z->lanes[i] = (__typeof__(x.lanes[0]))(expression);                                                        \
        }                                                                                                              \
    }

/* ---- saturating addition, subtraction; minimum, maximum; comparison --------------------------------------- */

#define CLAMP(value, low, high) ((value) < (low) ? (low) : (value) > (high) ? (high) : (value))

LANES(add_s8, s8, int16_t, CLAMP((int16_t)(a + b), INT8_MIN, INT8_MAX))
LANES(add_s16, s16, int, CLAMP(a + b, INT16_MIN, INT16_MAX))
LANES(add_s32, s32, int64_t, CLAMP(a + b, INT32_MIN, INT32_MAX))
LANES(sub_s8, s8, int16_t, CLAMP((int16_t)(a - b), INT8_MIN, INT8_MAX))
LANES(sub_s16, s16, int, CLAMP(a - b, INT16_MIN, INT16_MAX))
LANES(sub_s32, s32, int64_t, CLAMP(a - b, INT32_MIN, INT32_MAX))
FUSED(ee_vadds_s8, add_s8)
FUSED(ee_vadds_s16, add_s16)
FUSED(ee_vadds_s32, add_s32)
FUSED(ee_vsubs_s8, sub_s8)
FUSED(ee_vsubs_s16, sub_s16)
FUSED(ee_vsubs_s32, sub_s32)

LANES(max_s8, s8, int8_t, a > b ? a : b)
LANES(max_s16, s16, int16_t, a > b ? a : b)
LANES(max_s32, s32, int32_t, a > b ? a : b)
LANES(min_s8, s8, int8_t, a < b ? a : b)
LANES(min_s16, s16, int16_t, a < b ? a : b)
LANES(min_s32, s32, int32_t, a < b ? a : b)
FUSED(ee_vmax_s8, max_s8)
FUSED(ee_vmax_s16, max_s16)
FUSED(ee_vmax_s32, max_s32)
FUSED(ee_vmin_s8, min_s8)
FUSED(ee_vmin_s16, min_s16)
FUSED(ee_vmin_s32, min_s32)

LANES(eq_s8, s8, int8_t, -(a == b))
LANES(eq_s16, s16, int16_t, -(a == b))
LANES(eq_s32, s32, int32_t, -(a == b))
LANES(gt_s8, s8, int8_t, -(a > b))
LANES(gt_s16, s16, int16_t, -(a > b))
LANES(gt_s32, s32, int32_t, -(a > b))
LANES(lt_s8, s8, int8_t, -(a < b))
LANES(lt_s16, s16, int16_t, -(a < b))
LANES(lt_s32, s32, int32_t, -(a < b))
PLAIN(ee_vcmp_eq_s8, eq_s8)
PLAIN(ee_vcmp_eq_s16, eq_s16)
PLAIN(ee_vcmp_eq_s32, eq_s32)
PLAIN(ee_vcmp_gt_s8, gt_s8)
PLAIN(ee_vcmp_gt_s16, gt_s16)
PLAIN(ee_vcmp_gt_s32, gt_s32)
PLAIN(ee_vcmp_lt_s8, lt_s8)
PLAIN(ee_vcmp_lt_s16, lt_s16)
PLAIN(ee_vcmp_lt_s32, lt_s32)

/* ---- multiplication: the whole product shifted right by SAR, the low bits kept ----------------------------- */

/* Measured on a chip: SAR = 32 gives 0 for ee.vmul.s8, whatever the sign. The other widths and SAR 33 to 63 are
 * taken to do the same. */
LANES(mul_s8, s8, int, sar < 32 ? a * b >> sar : 0)
LANES(mul_s16, s16, int, sar < 32 ? a * b >> sar : 0)
LANES(mul_u8, u8, unsigned, sar < 32 ? a * b >> sar : 0)
LANES(mul_u16, u16, unsigned, sar < 32 ? a * b >> sar : 0)
FUSED(ee_vmul_s8, mul_s8)
FUSED(ee_vmul_s16, mul_s16)
FUSED(ee_vmul_u8, mul_u8)
FUSED(ee_vmul_u16, mul_u16)

/* One complex product: first * second, or conjugate(first) * second. Real lanes are even, imaginary ones odd. */
PIE_INLINE void complex_product(int16_t *z, const int16_t *x, const int16_t *y, bool conjugate, unsigned sar) {
    int32_t xr = x[0], xi = conjugate ? -x[1] : x[1], yr = y[0], yi = y[1];
    z[0] = (int16_t)(((int64_t)(xr * yr) - xi * yi) >> sar);
    z[1] = (int16_t)(((int64_t)(xr * yi) + xi * yr) >> sar);
}

/* Two complex products in the half of the vector that sel & 1 picks; sel & 2: conjugate of the first factor. */
PIE_INLINE void cmul(pie_q_t *z, pie_q_t x, pie_q_t y, unsigned sel, unsigned sar) {
    unsigned lane = 4 * (sel & 1);
    complex_product(&z->s16[lane], &x.s16[lane], &y.s16[lane], sel & 2, sar);
    complex_product(&z->s16[lane + 2], &x.s16[lane + 2], &y.s16[lane + 2], sel & 2, sar);
}

PIE_INSTRUCTION(ee_cmul_s16) {
    cmul(&state->q[insn->qz], state->q[insn->qx], state->q[insn->qy], insn->sel, pie_sar(core));
    return PIE_OK;
}

PIE_INSTRUCTION(ee_cmul_s16_ld_incp) {
    uint32_t *as = pie_ar(core, insn->as);
    pie_q_t data;
    if (!pie_load(insn, core, *as, &data, 16)) return PIE_LOAD_ERROR;
    cmul(&state->q[insn->qz], state->q[insn->qx], state->q[insn->qy], insn->sel, pie_sar(core));
    state->q[insn->qu] = data;
    *as += 16;
    return PIE_OK;
}

PIE_INSTRUCTION(ee_cmul_s16_st_incp) {
    uint32_t *as = pie_ar(core, insn->as);
    if (!pie_store(insn, core, *as, &state->q[insn->qu], 16)) return PIE_STORE_ERROR;
    cmul(&state->q[insn->qz], state->q[insn->qx], state->q[insn->qy], insn->sel, pie_sar(core));
    *as += 16;
    return PIE_OK;
}

/* ---- leaky rectifiers: lanes <= 0 become (lane * slope) >> shift, low bits kept ---------------------------- */

/* A product of 16 bits by 16 bits shifted by 31 is its sign, so are the shifts 32 to 63. */
LANES(prelu_s8, s8, int, a <= 0 ? a * b >> (sar & 31) : a)
LANES(prelu_s16, s16, int, a <= 0 ? a * b >> (sar < 32 ? sar : 31) : a)

PIE_INSTRUCTION(ee_vprelu_s8) {
    prelu_s8(&state->q[insn->qz], state->q[insn->qx], state->q[insn->qy], *pie_ar(core, insn->ay) & 31);
    return PIE_OK;
}

PIE_INSTRUCTION(ee_vprelu_s16) {
    prelu_s16(&state->q[insn->qz], state->q[insn->qx], state->q[insn->qy], *pie_ar(core, insn->ay) & 63);
    return PIE_OK;
}

PIE_INSTRUCTION(ee_vrelu_s8) {
    pie_q_t slope;
    for (int i = 0; i < 16; i++)
        slope.u8[i] = (uint8_t)*pie_ar(core, insn->ax);
    prelu_s8(&state->q[insn->qs0], state->q[insn->qs0], slope, *pie_ar(core, insn->ay) & 31);
    return PIE_OK;
}

PIE_INSTRUCTION(ee_vrelu_s16) {
    pie_q_t slope;
    for (int i = 0; i < 8; i++)
        slope.u16[i] = (uint16_t)*pie_ar(core, insn->ax);
    prelu_s16(&state->q[insn->qs0], state->q[insn->qs0], slope, *pie_ar(core, insn->ay) & 63);
    return PIE_OK;
}

/* ---- logic ---------------------------------------------------------------------------------------------- */

LANES(and_q, u32, uint32_t, a &b)
LANES(or_q, u32, uint32_t, a | b)
LANES(xor_q, u32, uint32_t, a ^ b)
PLAIN(ee_andq, and_q)
PLAIN(ee_orq, or_q)
PLAIN(ee_xorq, xor_q)

PIE_INSTRUCTION(ee_notq) {
    PIE_UNUSED(core);
    for (int i = 0; i < 4; i++)
        state->q[insn->qz].u32[i] = ~state->q[insn->qx].u32[i];
    return PIE_OK;
}

/* ---- shifts --------------------------------------------------------------------------------------------- */

/* SAR = 32 was measured on a chip: vsr gives 0 for negative lanes too, vsl the limit that has the lane's sign.
 * SAR 33 to 63 is taken to do the same. */
PIE_INSTRUCTION(ee_vsr_32) {
    unsigned sar = pie_sar(core);
    for (int i = 0; i < 4; i++)
        state->q[insn->qz].s32[i] = sar < 32 ? state->q[insn->qs0].s32[i] >> sar : 0;
    return PIE_OK;
}

PIE_INSTRUCTION(ee_vsl_32) {
    unsigned sar = pie_sar(core);
    for (int i = 0; i < 4; i++) {
        uint32_t lane = state->q[insn->qs0].u32[i];
        state->q[insn->qz].u32[i] = sar < 32 ? lane << sar : lane >> 31 ? 0x80000000u : 0x7fffffffu;
    }
    return PIE_OK;
}

/* {qs1, qs0} as one number of 32 bytes, shifted by whole bytes, zeros in. bytes: 1 .. 16 */
PIE_INLINE void shift_pair(const pie_insn_t *insn, pie_state_t *state, bool left, unsigned bytes) {
    uint8_t wide[64] = {0}, *pair = wide + 16;
    memcpy(pair, &state->q[insn->qs0], 16);
    memcpy(pair + 16, &state->q[insn->qs1], 16);
    const uint8_t *from = left ? pair - bytes : pair + bytes;
    memcpy(&state->q[insn->qs0], from, 16);
    memcpy(&state->q[insn->qs1], from + 16, 16);
}

PIE_INSTRUCTION(ee_slci_2q) {
    PIE_UNUSED(core);
    shift_pair(insn, state, true, insn->sar + 1u);
    return PIE_OK;
}

PIE_INSTRUCTION(ee_srci_2q) {
    PIE_UNUSED(core);
    shift_pair(insn, state, false, insn->sar + 1u);
    return PIE_OK;
}

PIE_INSTRUCTION(ee_slcxxp_2q) {
    uint32_t *as = pie_ar(core, insn->as);
    shift_pair(insn, state, true, (*as & 15) + 1);
    *as += *pie_ar(core, insn->ad);
    return PIE_OK;
}

PIE_INSTRUCTION(ee_srcxxp_2q) {
    uint32_t *as = pie_ar(core, insn->as);
    shift_pair(insn, state, false, (*as & 15) + 1);
    *as += *pie_ar(core, insn->ad);
    return PIE_OK;
}

PIE_INLINE pie_q_t source(const pie_insn_t *insn, const pie_state_t *state) {
    return pie_funnel(state->q[insn->qs0], state->q[insn->qs1], state->sar_byte);
}

PIE_INSTRUCTION(ee_src_q) {
    PIE_UNUSED(core);
    state->q[insn->qz] = source(insn, state);
    return PIE_OK;
}

PIE_INSTRUCTION(ee_src_q_qup) {
    PIE_UNUSED(core);
    pie_q_t result = source(insn, state);
    state->q[insn->qs0] = state->q[insn->qs1];
    state->q[insn->qz] = result;
    return PIE_OK;
}

#define SRC_LOAD(function, increment)                                                                                  \
    PIE_INSTRUCTION(function) {                                                                                        \
        uint32_t *as = pie_ar(core, insn->as);                                                                         \
        pie_q_t data;                                                                                                  \
        if (!pie_load_unaligned(insn, core, *as, &data, 16)) return PIE_LOAD_ERROR;                                    \
        state->q[insn->qs0] = source(insn, state);                                                                     \
        state->q[insn->qu] = data;                                                                                     \
        *as += increment;                                                                                              \
        return PIE_OK;                                                                                                 \
    }
SRC_LOAD(ee_src_q_ld_ip, (uint32_t)insn->imm)
SRC_LOAD(ee_src_q_ld_xp, *pie_ar(core, insn->ad))

PIE_INSTRUCTION(ee_srcq_128_st_incp) {
    uint32_t *as = pie_ar(core, insn->as);
    pie_q_t data = source(insn, state);
    if (!pie_store(insn, core, *as, &data, 16)) return PIE_STORE_ERROR;
    *as += 16;
    return PIE_OK;
}

/* ---- interleaving --------------------------------------------------------------------------------------- */

#define ZIPS(bits, lanes, count)                                                                                       \
    PIE_INSTRUCTION(ee_vzip_##bits) {                                                                                  \
        PIE_UNUSED(core);                                                                                              \
        pie_q_t a = state->q[insn->qs0], b = state->q[insn->qs1];                                                      \
        for (int i = 0; i < (count) / 2; i++) {                                                                        \
            state->q[insn->qs0].lanes[2 * i] = a.lanes[i];                                                             \
            state->q[insn->qs0].lanes[2 * i + 1] = b.lanes[i];                                                         \
            state->q[insn->qs1].lanes[2 * i] = a.lanes[(count) / 2 + i];                                               \
            state->q[insn->qs1].lanes[2 * i + 1] = b.lanes[(count) / 2 + i];                                           \
        }                                                                                                              \
        return PIE_OK;                                                                                                 \
    }                                                                                                                  \
    PIE_INSTRUCTION(ee_vunzip_##bits) {                                                                                \
        PIE_UNUSED(core);                                                                                              \
        pie_q_t a = state->q[insn->qs0], b = state->q[insn->qs1];                                                      \
        for (int i = 0; i < (count) / 2; i++) {                                                                        \
            state->q[insn->qs0].lanes[i] = a.lanes[2 * i];                                                             \
            state->q[insn->qs0].lanes[(count) / 2 + i] = b.lanes[2 * i];                                               \
            state->q[insn->qs1].lanes[i] = a.lanes[2 * i + 1];                                                         \
            state->q[insn->qs1].lanes[(count) / 2 + i] = b.lanes[2 * i + 1];                                           \
        }                                                                                                              \
        return PIE_OK;                                                                                                 \
    }
ZIPS(8, u8, 16)
ZIPS(16, u16, 8)
ZIPS(32, u32, 4)
