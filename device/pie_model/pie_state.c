/* SPDX-License-Identifier: Apache-2.0 */
/* The registers of the PIE: reset, QACC in its three forms, RUR and WUR. */
#include "pie_internal.h"

void pie_reset(pie_state_t *state) {
    memset(state, 0, sizeof *state);
    state->qacc_forms = PIE_FORM_20 | PIE_FORM_40 | PIE_FORM_RAW;
}

/* ---- QACC: lanes are packed without padding, lane 0 in the lowest bits of QACC_L ---------------------------- */

static void pack20(const int32_t lanes[16], uint8_t raw[2][20]) {
    for (int half = 0; half < 2; half++) {
        uint8_t *out = raw[half];
        for (int i = 0; i < 8; i += 2, out += 5) {
            uint32_t a = (uint32_t)lanes[8 * half + i], b = (uint32_t)lanes[8 * half + i + 1];
            out[0] = (uint8_t)a;
            out[1] = (uint8_t)(a >> 8);
            out[2] = (uint8_t)((a >> 16 & 15) | b << 4);
            out[3] = (uint8_t)(b >> 4);
            out[4] = (uint8_t)(b >> 12);
        }
    }
}

static void unpack20(uint8_t raw[2][20], int32_t lanes[16]) {
    for (int half = 0; half < 2; half++) {
        const uint8_t *in = raw[half];
        for (int i = 0; i < 8; i += 2, in += 5) {
            uint32_t a = in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16;
            uint32_t b = in[2] | (uint32_t)in[3] << 8 | (uint32_t)in[4] << 16;
            lanes[8 * half + i] = (int32_t)(a << 12) >> 12;
            lanes[8 * half + i + 1] = (int32_t)(b << 8) >> 12;
        }
    }
}

static void pack40(const int64_t lanes[8], uint8_t raw[2][20]) {
    for (int i = 0; i < 8; i++)
        memcpy(&raw[i / 4][i % 4 * 5], &lanes[i], 5);
}

static void unpack40(uint8_t raw[2][20], int64_t lanes[8]) {
    for (int i = 0; i < 8; i++) {
        int64_t lane = 0;
        memcpy(&lane, &raw[i / 4][i % 4 * 5], 5);
        lanes[i] = pie_extend40(lane);
    }
}

void pie_qacc_convert(pie_state_t *state, unsigned form) {
    if (!(state->qacc_forms & PIE_FORM_RAW)) {
        if (state->qacc_forms & PIE_FORM_20)
            pack20(state->qacc20, state->qacc_raw);
        else
            pack40(state->qacc40, state->qacc_raw);
    }
    if (form == PIE_FORM_20) unpack20(state->qacc_raw, state->qacc20);
    if (form == PIE_FORM_40) unpack40(state->qacc_raw, state->qacc40);
    state->qacc_forms = (uint8_t)(state->qacc_forms | PIE_FORM_RAW | form);
}

void pie_qacc_read(const pie_state_t *state, uint8_t low[20], uint8_t high[20]) {
    uint8_t raw[2][20];
    if (state->qacc_forms & PIE_FORM_RAW)
        memcpy(raw, state->qacc_raw, sizeof raw);
    else if (state->qacc_forms & PIE_FORM_20)
        pack20(state->qacc20, raw);
    else
        pack40(state->qacc40, raw);
    memcpy(low, raw[0], 20);
    memcpy(high, raw[1], 20);
}

void pie_qacc_write(pie_state_t *state, const uint8_t low[20], const uint8_t high[20]) {
    memcpy(state->qacc_raw[0], low, 20);
    memcpy(state->qacc_raw[1], high, 20);
    state->qacc_forms = PIE_FORM_RAW;
}

/* ---- user registers ------------------------------------------------------------------------------------- */

bool pie_read_user_register(const pie_state_t *state, unsigned number, uint32_t *value) {
    if (number >= PIE_UR_COUNT) return false;
    if (number == PIE_UR_ACCX_0)
        *value = (uint32_t)state->accx;
    else if (number == PIE_UR_ACCX_1)
        *value = (uint32_t)(state->accx >> 32) & 0xff;
    else if (number < PIE_UR_GPIO_OUT) {
        uint8_t raw[2][20];
        pie_qacc_read(state, raw[0], raw[1]);
        if (number < PIE_UR_QACC_L_0)
            memcpy(value, &raw[1][4 * (number - PIE_UR_QACC_H_0)], 4);
        else
            memcpy(value, &raw[0][4 * (number - PIE_UR_QACC_L_0)], 4);
    } else if (number == PIE_UR_GPIO_OUT)
        *value = state->gpio_out;
    else if (number == PIE_UR_SAR_BYTE)
        *value = state->sar_byte;
    else if (number == PIE_UR_FFT_BIT_WIDTH)
        *value = state->fft_bit_width;
    else
        *value = state->ua_state.u32[number - PIE_UR_UA_STATE_0];
    return true;
}

bool pie_write_user_register(pie_state_t *state, unsigned number, uint32_t value) {
    if (number >= PIE_UR_COUNT) return false;
    if (number == PIE_UR_ACCX_0)
        state->accx = (int64_t)(((uint64_t)state->accx & ~(uint64_t)0xffffffff) | value);
    else if (number == PIE_UR_ACCX_1)
        state->accx = pie_extend40((int64_t)((uint64_t)value << 32 | (uint32_t)state->accx));
    else if (number < PIE_UR_GPIO_OUT) {
        pie_qacc_need(state, PIE_FORM_RAW);
        if (number < PIE_UR_QACC_L_0)
            memcpy(&state->qacc_raw[1][4 * (number - PIE_UR_QACC_H_0)], &value, 4);
        else
            memcpy(&state->qacc_raw[0][4 * (number - PIE_UR_QACC_L_0)], &value, 4);
        state->qacc_forms = PIE_FORM_RAW;
    } else if (number == PIE_UR_GPIO_OUT)
        state->gpio_out = (uint8_t)value;
    else if (number == PIE_UR_SAR_BYTE)
        state->sar_byte = value & 15;
    else if (number == PIE_UR_FFT_BIT_WIDTH)
        state->fft_bit_width = value & 15;
    else
        state->ua_state.u32[number - PIE_UR_UA_STATE_0] = value;
    return true;
}

#define PIE_RUR(name, number)                                                                                          \
    PIE_INSTRUCTION(rur_##name) {                                                                                      \
        pie_read_user_register(state, number, pie_ar(core, insn->at));                                                 \
        return PIE_OK;                                                                                                 \
    }
#define PIE_WUR(name, number)                                                                                          \
    PIE_INSTRUCTION(wur_##name) {                                                                                      \
        pie_write_user_register(state, number, *pie_ar(core, insn->at));                                               \
        return PIE_OK;                                                                                                 \
    }
#define PIE_USER_REGISTER(name, number) PIE_RUR(name, number) PIE_WUR(name, number)

PIE_USER_REGISTER(accx_0, PIE_UR_ACCX_0)
PIE_USER_REGISTER(accx_1, PIE_UR_ACCX_1)
PIE_USER_REGISTER(qacc_h_0, PIE_UR_QACC_H_0)
PIE_USER_REGISTER(qacc_h_1, PIE_UR_QACC_H_0 + 1)
PIE_USER_REGISTER(qacc_h_2, PIE_UR_QACC_H_0 + 2)
PIE_USER_REGISTER(qacc_h_3, PIE_UR_QACC_H_0 + 3)
PIE_USER_REGISTER(qacc_h_4, PIE_UR_QACC_H_0 + 4)
PIE_USER_REGISTER(qacc_l_0, PIE_UR_QACC_L_0)
PIE_USER_REGISTER(qacc_l_1, PIE_UR_QACC_L_0 + 1)
PIE_USER_REGISTER(qacc_l_2, PIE_UR_QACC_L_0 + 2)
PIE_USER_REGISTER(qacc_l_3, PIE_UR_QACC_L_0 + 3)
PIE_USER_REGISTER(qacc_l_4, PIE_UR_QACC_L_0 + 4)
PIE_USER_REGISTER(gpio_out, PIE_UR_GPIO_OUT)
PIE_USER_REGISTER(sar_byte, PIE_UR_SAR_BYTE)
PIE_USER_REGISTER(fft_bit_width, PIE_UR_FFT_BIT_WIDTH)
PIE_USER_REGISTER(ua_state_0, PIE_UR_UA_STATE_0)
PIE_USER_REGISTER(ua_state_1, PIE_UR_UA_STATE_0 + 1)
PIE_USER_REGISTER(ua_state_2, PIE_UR_UA_STATE_0 + 2)
PIE_USER_REGISTER(ua_state_3, PIE_UR_UA_STATE_0 + 3)
