// SPDX-License-Identifier: Apache-2.0
// Linear operators (CONTRACT.md, sections 2 and 3). Eight channels are decoded once and used for all rows.
#include "arithmetic.h"
#include "ternary.h"

static void store_i8(int8_t *out, const int32_t *y, uint32_t count, int32_t limit) {
    for (uint32_t c = 0; c < count; c++)
        out[c] = (int8_t)tvit_clamp(y[c], limit);
}

static void store_table(int8_t *out, const int32_t *y, uint32_t count, int32_t limit, const int8_t *table) {
    for (uint32_t c = 0; c < count; c++)
        out[c] = table[tvit_clamp(y[c], limit) + 128];
}

static void store_i16(int16_t *out, const int32_t *y, uint32_t count) {
    for (uint32_t c = 0; c < count; c++)
        out[c] = (int16_t)tvit_clamp(y[c], 32767);
}

static void add_i16(int16_t *out, const int32_t *y, uint32_t count) {
    for (uint32_t c = 0; c < count; c++)
        out[c] = (int16_t)tvit_clamp(out[c] + tvit_clamp(y[c], 32767), 32767);
}

static void store(const tvit_linear_args *args, size_t at, const int32_t *y, uint32_t count) {
    switch (args->kind) {
    case TVIT_LINEAR_I8:
    case TVIT_LINEAR_TABLE_PER_TOKEN:
        store_i8((int8_t *)args->output + at, y, count, args->limit);
        break;
    case TVIT_LINEAR_TABLE:
        store_table((int8_t *)args->output + at, y, count, args->limit, args->table);
        break;
    case TVIT_LINEAR_I16_SET:
        store_i16((int16_t *)args->output + at, y, count);
        break;
    case TVIT_LINEAR_I16_ADD:
        add_i16((int16_t *)args->output + at, y, count);
        break;
    }
}

// The row holds indices of the table; its values are quantized in place (section 8), so no row of int16 is needed.
static uint16_t quantize_through_table(int8_t *row, uint32_t n, const int16_t *table) {
    int32_t m = 1;
    for (uint32_t i = 0; i < n; i++) {
        int32_t g = table[row[i] + 128];
        if (g < 0) g = -g;
        if (g > m) m = g;
    }
    int32_t r = (127 << 20) / m;
    for (uint32_t i = 0; i < n; i++)
        row[i] = (int8_t)((table[row[i] + 128] * r + (1 << 19)) >> 20);
    return (uint16_t)m;
}

void tvit_linear_portable(const tvit_linear_args *args, void *scratch) {
    uint32_t k = args->weights.k, n = args->weights.n, columns = args->output_columns;
    tvit_channel_group group;
    for (uint32_t first = 0; first < n; first += TVIT_GROUP_CHANNELS) {
        tvit_channel_group_decode(&group, &args->weights, first, scratch);
        for (uint32_t row = 0; row < args->rows; row++) {
            int32_t y[TVIT_GROUP_CHANNELS];
            for (uint32_t c = 0; c < TVIT_GROUP_CHANNELS; c++)
                y[c] = group.start[c];
            tvit_ternary_dot_portable(y, (const int32_t(*)[4])group.pairs,
                                      (const uint8_t *)args->input + (size_t)row * k, k, 0x80);
            if (args->input_multipliers) {
                int32_t m = args->input_multipliers[row];
                for (uint32_t c = 0; c < group.count; c++) {
                    int32_t p = (group.gain[c] * y[c]) >> 4;
                    y[c] = (((p * m) >> 15) + group.bias[c]) >> group.shift[c];
                }
            } else {
                for (uint32_t c = 0; c < group.count; c++)
                    y[c] = (group.gain[c] * y[c] + group.bias[c]) >> group.shift[c];
            }
            store(args, (size_t)row * columns + first, y, group.count);
        }
    }
    if (args->kind != TVIT_LINEAR_TABLE_PER_TOKEN) return;
    for (uint32_t row = 0; row < args->rows; row++)
        args->output_multipliers[row] =
            quantize_through_table((int8_t *)args->output + (size_t)row * columns, n, args->table);
}

size_t tvit_linear_buffer_size_portable(const tvit_linear_args *args) {
    return tvit_channel_group_bytes(&args->weights);
}
