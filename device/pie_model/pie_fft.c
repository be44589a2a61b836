/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FFT instructions. TRM section 1.6.8 and 1.8.7 to 1.8.15. Only ee.fft.r2bf, ee.fft.vst and ee.fft.cmul.s16.ld.xp
 * (sel 0 to 5) are compared with results of an emulator; the others are implemented from text.
 */
#include "pie_internal.h"

/* Complex numbers are pairs of 16-bit lanes, the real part first. */

/* x * y, or x * conjugate(y). Sums of two products have 33 bits. */
PIE_INLINE void product(int16_t *z, const int16_t *x, const int16_t *y, bool conjugate, unsigned sar) {
    int32_t xr = x[0], xi = x[1], yr = y[0], yi = conjugate ? -y[1] : y[1];
    z[0] = (int16_t)(((int64_t)(xr * yr) - xi * yi) >> sar);
    z[1] = (int16_t)(((int64_t)(xi * yr) + xr * yi) >> sar);
}

/* ---- multiplication of one pair ---------------------------------------------------------------------------- */

/* sel 0 to 5: pair sel / 2 of qz, even sel with the conjugate of qy. 6 and 7 leave qz as it is (unverified). */
PIE_INSTRUCTION(ee_fft_cmul_s16_ld_xp) {
    uint32_t *as = pie_ar(core, insn->as);
    pie_q_t data, x = state->q[insn->qx], y = state->q[insn->qy];
    if (!pie_load(insn, core, *as, &data, 16)) return PIE_LOAD_ERROR;
    if (insn->sel < 6) {
        unsigned lane = insn->sel & 6u;
        product(&state->q[insn->qz].s16[lane], &x.s16[lane], &y.s16[lane], !(insn->sel & 1), pie_sar(core));
    }
    state->q[insn->qu] = data;
    *as += *pie_ar(core, insn->ad);
    return PIE_OK;
}

/*
 * Stores the product of one pair as the last pair of a vector whose other pairs come from qx, shifted right by sar,
 * and qv. The manual defines sel 6 and 7 and upd 0 to 2; other sel take their pair as in the load form, upd 3 is
 * taken like 2.
 */
PIE_INSTRUCTION(ee_fft_cmul_s16_st_xp) {
    uint32_t *as = pie_ar(core, insn->as);
    pie_q_t x = state->q[insn->qx], y = state->q[insn->qy], v = state->q[insn->qu], data = v;
    unsigned lane = insn->sel & 6u;
    product(&data.s16[6], &x.s16[lane], &y.s16[lane], !(insn->sel & 1), pie_sar(core));
    if (insn->upd == 1) /* before the last stage of radix 2: x0 x1 v2 product */
        for (int i = 0; i < 4; i++)
            data.s16[i] = (int16_t)(x.s16[i] >> insn->sar);
    if (insn->upd >= 2) /* last stage: x0 v2 x1 product */
        for (int i = 0; i < 2; i++) {
            data.s16[i] = (int16_t)(x.s16[i] >> insn->sar);
            data.s16[2 + i] = v.s16[4 + i];
            data.s16[4 + i] = (int16_t)(x.s16[2 + i] >> insn->sar);
        }
    if (!pie_store(insn, core, *as, &data, 16)) return PIE_STORE_ERROR;
    *as += *pie_ar(core, insn->ad);
    return PIE_OK;
}

/* ---- radix-2 butterflies --------------------------------------------------------------------------------- */

/* Sums in the low half of the result, differences in the high half. sel 0: pairs 0 1 with 2 3; 1: 0 2 with 1 3. */
PIE_INLINE pie_q_t butterfly(pie_q_t in, unsigned sel) {
    static const uint8_t first[2][4] = {{0, 1, 2, 3}, {0, 1, 4, 5}}, second[2][4] = {{4, 5, 6, 7}, {2, 3, 6, 7}};
    pie_q_t out;
    for (int i = 0; i < 4; i++) {
        int a = in.s16[first[sel][i]], b = in.s16[second[sel][i]];
        out.s16[i] = (int16_t)(a + b);
        out.s16[4 + i] = (int16_t)(a - b);
    }
    return out;
}

PIE_INSTRUCTION(ee_fft_r2bf_s16) {
    PIE_UNUSED(core);
    pie_q_t x = state->q[insn->qx], y = state->q[insn->qy];
    state->q[insn->qz] = butterfly(x, insn->sel);
    state->q[insn->qz1] = butterfly(y, insn->sel);
    return PIE_OK;
}

/* Stores (x + y) >> sar, qz = x - y. */
PIE_INSTRUCTION(ee_fft_r2bf_s16_st_incp) {
    uint32_t *as = pie_ar(core, insn->as);
    pie_q_t x = state->q[insn->qx], y = state->q[insn->qy], sum;
    for (int i = 0; i < 8; i++)
        sum.s16[i] = (int16_t)((x.s16[i] + y.s16[i]) >> insn->sar);
    if (!pie_store(insn, core, *as, &sum, 16)) return PIE_STORE_ERROR;
    for (int i = 0; i < 8; i++)
        state->q[insn->qz].s16[i] = (int16_t)(x.s16[i] - y.s16[i]);
    *as += 16;
    return PIE_OK;
}

/* ---- the real FFT's last pass: add, multiply, subtract ----------------------------------------------------- */

typedef struct ams {
    int16_t sum[2];        /* pair of qz */
    int16_t difference[2]; /* pair of qz1 */
} ams_t;

/* For one pair of lanes: with s = (xr + yr, xi - yi) and t = (xr - yr, xi + yi) times m (sel 0) or its conjugate
 * (sel 1) shifted right by SAR: sum = s + t, difference = (sr - tr, ti - si). */
PIE_INLINE ams_t add_multiply_subtract(const pie_insn_t *insn, const pie_state_t *state, unsigned lane, unsigned sar) {
    const int16_t *x = &state->q[insn->qx].s16[lane], *y = &state->q[insn->qy].s16[lane];
    const int16_t *m = &state->q[insn->qm].s16[lane];
    int32_t dr = x[0] - y[0], di = x[1] + y[1], mr = m[0], mi = insn->sel ? -m[1] : m[1]; /* 17 by 16 bits */
    int32_t sr = (int16_t)(x[0] + y[0]), si = (int16_t)(x[1] - y[1]);
    int32_t tr = (int16_t)(((int64_t)(dr * mr) - di * mi) >> sar);
    int32_t ti = (int16_t)(((int64_t)(dr * mi) + di * mr) >> sar);
    return (ams_t){{(int16_t)(sr + tr), (int16_t)(si + ti)}, {(int16_t)(sr - tr), (int16_t)(ti - si)}};
}

PIE_INLINE void put_ams(const pie_insn_t *insn, pie_state_t *state, unsigned lane, const ams_t *result) {
    memcpy(&state->q[insn->qz].s16[lane], result->sum, 4);
    memcpy(&state->q[insn->qz1].s16[lane], result->difference, 4);
}

/* Pair 0; loads through UA_STATE: qu = {memory, UA_STATE} >> 8 * SAR_BYTE, UA_STATE = memory. */
PIE_INSTRUCTION(ee_fft_ams_s16_ld_incp_uaup) {
    uint32_t *as = pie_ar(core, insn->as);
    pie_q_t data;
    if (!pie_load_unaligned(insn, core, *as, &data, 16)) return PIE_LOAD_ERROR;
    ams_t result = add_multiply_subtract(insn, state, 0, pie_sar(core));
    put_ams(insn, state, 0, &result);
    state->q[insn->qu] = pie_funnel(state->ua_state, data, state->sar_byte);
    state->ua_state = data;
    *as += 16;
    return PIE_OK;
}

/* Pair 1; loads qu. */
PIE_INSTRUCTION(ee_fft_ams_s16_ld_incp) {
    uint32_t *as = pie_ar(core, insn->as);
    pie_q_t data;
    if (!pie_load(insn, core, *as, &data, 16)) return PIE_LOAD_ERROR;
    ams_t result = add_multiply_subtract(insn, state, 2, pie_sar(core));
    put_ams(insn, state, 2, &result);
    state->q[insn->qu] = data;
    *as += 16;
    return PIE_OK;
}

/* Pair 2; loads qu with its words reversed, as -= 16. */
PIE_INSTRUCTION(ee_fft_ams_s16_ld_r32_decp) {
    uint32_t *as = pie_ar(core, insn->as);
    pie_q_t data;
    if (!pie_load(insn, core, *as, &data, 16)) return PIE_LOAD_ERROR;
    ams_t result = add_multiply_subtract(insn, state, 4, pie_sar(core));
    put_ams(insn, state, 4, &result);
    for (int i = 0; i < 4; i++)
        state->q[insn->qu].u32[i] = data.u32[3 - i];
    *as -= 16;
    return PIE_OK;
}

/*
 * Pair 3; stores {qv pairs 2 1 0, at}, each lane shifted right by one when sel is 0; the sums go to at, the
 * differences to qz1.
 */
PIE_INSTRUCTION(ee_fft_ams_s16_st_incp) {
    uint32_t *as = pie_ar(core, insn->as), *at = pie_ar(core, insn->at);
    pie_q_t data;
    data.u32[0] = *at;
    memcpy(&data.u32[1], &state->q[insn->qu], 12);
    if (!insn->sel)
        for (int i = 0; i < 8; i++)
            data.s16[i] = (int16_t)(data.s16[i] >> 1);
    if (!pie_store(insn, core, *as, &data, 16)) return PIE_STORE_ERROR;
    ams_t result = add_multiply_subtract(insn, state, 6, pie_sar(core));
    memcpy(&state->q[insn->qz1].s16[6], result.difference, 4);
    *as += 16;
    memcpy(at, result.sum, 4);
    return PIE_OK;
}

/* ---- reordering ------------------------------------------------------------------------------------------ */

/* Stores the words of qv in reverse order, each halfword shifted right by sar, as -= 16. */
PIE_INSTRUCTION(ee_fft_vst_r32_decp) {
    uint32_t *as = pie_ar(core, insn->as);
    pie_q_t v = state->q[insn->qu], data;
    for (int i = 0; i < 8; i++)
        data.s16[i] = (int16_t)(v.s16[(3 - i / 2) * 2 + i % 2] >> insn->sar);
    if (!pie_store(insn, core, *as, &data, 16)) return PIE_STORE_ERROR;
    *as -= 16;
    return PIE_OK;
}

/*
 * Lane i: the larger of the counter as + i and the reverse of its low FFT_BIT_WIDTH bits, as += 8. The texts
 * disagree on the width (ESP-DL: FFT_BIT_WIDTH + 3); here it is the register's value.
 */
PIE_INSTRUCTION(ee_bitrev) {
    uint32_t *as = pie_ar(core, insn->as), mask = (1u << state->fft_bit_width) - 1;
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t counter = (*as + i) & mask, reverse = 0;
        for (unsigned bit = 0; bit < state->fft_bit_width; bit++)
            if (counter >> bit & 1) reverse |= 1u << (state->fft_bit_width - 1u - bit);
        state->q[insn->qz].u16[i] = (uint16_t)(counter > reverse ? counter : reverse);
    }
    *as += 8;
    return PIE_OK;
}
