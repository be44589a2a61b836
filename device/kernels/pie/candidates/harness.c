/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs one candidate over a whole linear operator: weights from flash, decode and epilogue included.
 *
 * Input and output: [tokens/16][K][16] where lanes are tokens (the last block is computed whole), [tokens][K] where
 * they are channels. Weights: two-bit codes, row after row for lanes on tokens, [N/16][K][16] for lanes on channels;
 * nibble codes for instruction streams.
 */
#include "harness.h"

#include <stdbool.h>

mailbox_t mailbox;

static int8_t tile[TILE * MAX_K + 64] __attribute__((aligned(16)));
static record_t records[TILE] __attribute__((aligned(16)));
static stream_record_t stream_records[MAX_SEGMENTS] __attribute__((aligned(16)));
static uint32_t qacc_scratch[12] __attribute__((aligned(16)));
static int8_t gains[TILE] __attribute__((aligned(16)));
static uint8_t generated[128 + 4 * (MAX_K + 64) + 256] __attribute__((aligned(16)));

extern const uint8_t stream_head_i8[], stream_head_i16_add[], stream_head_i8_table[], stream_heads_end[];

static uint32_t cycle_count(void) {
    uint32_t value;
    __asm__ volatile("rsr.ccount %0" : "=a"(value) : : "memory");
    return value;
}

/* One value in all eight 20-bit lanes of a half of QACC; returns the last word. */
static uint32_t broadcast(uint32_t *low, uint32_t bias) {
    uint32_t b = bias & 0xfffff;
    low[0] = b | b << 20;
    low[1] = b >> 12 | b << 8 | b << 28;
    low[2] = b >> 4 | b << 16;
    low[3] = b >> 16 | b << 4 | b << 24;
    return b >> 8 | b << 12;
}

/* Eight values. */
static void pack(record_t *record, uint32_t half, const uint32_t *channel) {
    uint32_t b[8], *low = record->qacc_low[half];
    for (uint32_t i = 0; i < 8; i++)
        b[i] = channel[i] >> 12;
    low[0] = b[0] | b[1] << 20;
    low[1] = b[1] >> 12 | b[2] << 8 | b[3] << 28;
    low[2] = b[3] >> 4 | b[4] << 16;
    low[3] = b[4] >> 16 | b[5] << 4 | b[6] << 24;
    record->qacc_high[half] = b[6] >> 8 | b[7] << 12;
}

static void set_gain(record_t *record, uint32_t channel) {
    record->shift = (int32_t)(channel & 31);
    record->gain = (int8_t)(channel >> 5 & 127);
    record->minus_gain = (int8_t)-record->gain;
}

static void token_lanes(mailbox_t *m, void (*kernel)(lanes_args_t *)) {
    const uint32_t *channels = (const uint32_t *)m->channels;
    const uint8_t *weights = (const uint8_t *)m->weights;
    for (uint32_t n = 0; n < m->n; n += TILE) {
        uint32_t start = cycle_count();
        for (uint32_t i = 0; i < TILE; i++) {
            uint32_t channel = channels[n + i];
            for (uint32_t half = 0; half < 2; half++)
                records[i].qacc_high[half] = broadcast(records[i].qacc_low[half], channel >> 12);
            set_gain(&records[i], channel);
            gains[i] = records[i].gain;
        }
        decode_args_t decode = {weights + n * (m->k / 4), tile, gains, TILE, m->k / CHUNK_TRITS, 0xc0};
        decode_2bit_rows(&decode);
        m->decode_cycles += cycle_count() - start;
        for (uint32_t block = 0; block * LANES < m->tokens; block++) {
            lanes_args_t args = {.stream = (const int8_t *)m->input + block * m->k * LANES,
                                 .scalars = tile,
                                 .out = (int8_t *)m->output + (block * m->n + n) * LANES,
                                 .records = records,
                                 .outputs = TILE,
                                 .k32 = m->k / 32,
                                 .out_step = LANES,
                                 .limit = (int8_t)m->limit,
                                 .minus_limit = (int8_t)-m->limit};
            uint32_t begin = cycle_count();
            kernel(&args);
            m->inner_cycles += cycle_count() - begin;
        }
    }
}

static void channel_lanes(mailbox_t *m, void (*kernel)(lanes_args_t *)) {
    const uint32_t *channels = (const uint32_t *)m->channels;
    const uint8_t *weights = (const uint8_t *)m->weights;
    for (uint32_t n = 0; n < m->n; n += TILE) {
        uint32_t start = cycle_count();
        pack(records, 0, channels + n);
        pack(records, 1, channels + n + 8);
        set_gain(records, channels[n]);
        for (uint32_t i = 0; i < TILE; i++)
            gains[i] = (int8_t)(channels[n + i] >> 5 & 127);
        decode_args_t decode = {weights + n * (m->k / 4), tile, gains, 1, m->k * TILE / CHUNK_TRITS, 0xc0};
        decode_2bit_tile(&decode);
        m->decode_cycles += cycle_count() - start;
        lanes_args_t args = {.stream = tile,
                             .scalars = (const int8_t *)m->input,
                             .out = (int8_t *)m->output + n,
                             .records = records,
                             .outputs = m->tokens,
                             .k32 = m->k / 32,
                             .out_step = m->n,
                             .limit = (int8_t)m->limit,
                             .minus_limit = (int8_t)-m->limit};
        uint32_t begin = cycle_count();
        kernel(&args);
        m->inner_cycles += cycle_count() - begin;
    }
}

/* The table with the clamp folded in, a word for each 8-bit result. */
static void widen_table(uint32_t *words, const uint8_t *table, int32_t limit) {
    for (int32_t y = -128; y < 128; y++)
        words[y + 128] = table[(y > limit ? limit : y < -limit ? -limit : y) + 128];
}

static void instruction_stream(mailbox_t *m) {
    static uint32_t words[256];
    bool add = m->candidate == INSTRUCTION_STREAM_ADD, table = m->candidate == INSTRUCTION_STREAM_TABLE;
    const uint8_t *head = add ? stream_head_i16_add : table ? stream_head_i8_table : stream_head_i8;
    const uint8_t *head_end = add ? stream_head_i8_table : table ? stream_heads_end : stream_head_i16_add;
    uint32_t head_bytes = (uint32_t)(head_end - head);
    uint32_t out_bytes = add ? 2 * LANES : LANES;
    uint8_t *buffer = generated + 128;
    if (table) widen_table(words, (const uint8_t *)m->table, (int32_t)m->limit);
    for (uint32_t i = 0; i < head_bytes; i++)
        buffer[i - head_bytes] = head[i];
    stream_args_t args = {.input = (const int8_t *)m->input,
                          .codes = (const uint8_t *)m->weights,
                          .out = (int8_t *)m->output,
                          .records = stream_records,
                          .buffer = buffer,
                          .blocks = (m->tokens + LANES - 1) / LANES,
                          .input_step = m->k * LANES,
                          .out_step = m->n * out_bytes - (add ? LANES : 0),
                          .channels = m->n,
                          .scratch = table ? words : qacc_scratch,
                          .q2 = add || table ? 0x8080 : (uint16_t)((256 - m->limit) * 0x101),
                          .q3 = add ? 0x8001 : (uint16_t)(m->limit * 0x101),
                          .channel_step = out_bytes,
                          .channel_words = (const uint32_t *)m->channels,
                          .headers = (const uint32_t *)m->headers};
    uint32_t begin = cycle_count();
    if (add)
        gemm_stream_i16_add(&args);
    else if (table)
        gemm_stream_i8_table(&args);
    else
        gemm_stream_i8(&args);
    m->inner_cycles += cycle_count() - begin;
}

/* Channel after channel: a header for each segment says where a channel ends. */
static void instruction_segments(mailbox_t *m) {
    extern const uint8_t segment_heads[];
    static uint8_t buffers[4 * SEGMENT_BUFFER] __attribute__((aligned(16)));
    static uint32_t sums[MAX_BLOCKS * QACC_BYTES / 4] __attribute__((aligned(16)));
    const uint32_t *channels = (const uint32_t *)m->channels;
    const uint32_t *headers = (const uint32_t *)m->headers;
    const uint8_t *codes = (const uint8_t *)m->weights;
    for (uint32_t kind = 0; kind < 4; kind++)
        for (uint32_t i = 0; i < SEGMENT_HEAD; i++)
            buffers[kind * SEGMENT_BUFFER + QACC_BYTES - SEGMENT_HEAD + i] = segment_heads[kind * SEGMENT_HEAD + i];
    for (uint32_t n = 0; n < m->n; n++) {
        uint32_t start = cycle_count(), bytes = 0, count = 0, kind;
        stream_record_t *record = stream_records;
        do {
            uint32_t channel = channels[n], header = *headers++;
            kind = header >> 28;
            if (!count) record->qacc_high = broadcast(record->qacc_low, channel >> 12);
            record->header = header;
            record->gain = (int8_t)(channel >> 5 & 127);
            record->minus_gain = (int8_t)-record->gain;
            record->shift = (uint8_t)(channel & 31);
            bytes += ((header & 0x3f) + 1) / 2;
            record++;
            count++;
        } while (kind < SEGMENT_LAST);
        m->decode_cycles += cycle_count() - start;
        stream_args_t args = {.input = (const int8_t *)m->input,
                              .codes = codes,
                              .out = (int8_t *)m->output + n * LANES,
                              .records = stream_records,
                              .buffer = buffers + QACC_BYTES,
                              .blocks = (m->tokens + LANES - 1) / LANES,
                              .input_step = m->k * LANES,
                              .out_step = m->n * LANES,
                              .channels = count,
                              .scratch = sums,
                              .q2 = (uint16_t)((256 - m->limit) * 0x101),
                              .q3 = (uint16_t)(m->limit * 0x101)};
        uint32_t begin = cycle_count();
        gemm_stream_segments_i8(&args);
        m->inner_cycles += cycle_count() - begin;
        codes += bytes;
    }
}

/* Row t0 + 3 t1 + 9 t2 + 27 t3 is the sum of (t - 1) times an input. */
static void build_group(int16_t table[TABLE_ROWS_OF_GROUP][TABLE_TOKENS], const int8_t *x) {
    int16_t *row = table[0];
    for (int32_t t3 = -1; t3 <= 1; t3++)
        for (int32_t t2 = -1; t2 <= 1; t2++)
            for (int32_t t1 = -1; t1 <= 1; t1++)
                for (int32_t t0 = -1; t0 <= 1; t0++)
                    for (uint32_t t = 0; t < TABLE_TOKENS; t++)
                        *row++ = (int16_t)(t0 * x[t] + t1 * x[TABLE_TOKENS + t] + t2 * x[2 * TABLE_TOKENS + t] +
                                           t3 * x[3 * TABLE_TOKENS + t]);
}

/*
 * Only the sums and the addresses are the candidate's; the table and the epilogue are plain C and not part of its
 * figures. Input [tokens/40][K][40], codes [K/32][N][8], output [tokens/40][N][40].
 */
static void row_table(mailbox_t *m) {
    static int16_t table[TABLE_GROUPS][TABLE_ROWS_OF_GROUP][TABLE_TOKENS] __attribute__((aligned(16)));
    static const int16_t *addresses[TABLE_GROUPS * 1536 + 16] __attribute__((aligned(16)));
    static const int16_t *groups[TABLE_GROUPS] __attribute__((aligned(16)));
    static int16_t sums[1536][TABLE_TOKENS] __attribute__((aligned(16)));
    const uint32_t *channels = (const uint32_t *)m->channels;
    const uint32_t inputs = 4 * TABLE_GROUPS;
    for (uint32_t g = 0; g < TABLE_GROUPS; g++)
        groups[g] = table[g][0];
    for (uint32_t block = 0; block * TABLE_TOKENS < m->tokens; block++) {
        const int8_t *x = (const int8_t *)m->input + block * m->k * TABLE_TOKENS;
        for (uint32_t n = 0; n < m->n; n++)
            for (uint32_t t = 0; t < TABLE_TOKENS; t++)
                sums[n][t] = 0;
        for (uint32_t k = 0; k < m->k; k += inputs) {
            for (uint32_t g = 0; g < TABLE_GROUPS; g++)
                build_group(table[g], x + (k + 4 * g) * TABLE_TOKENS);
            table_args_t args = {.codes = (const uint8_t *)m->weights + k / inputs * m->n * TABLE_GROUPS,
                                 .addresses = addresses,
                                 .groups = groups,
                                 .channels4 = m->n / 4,
                                 .sums = sums[0],
                                 .channels = m->n,
                                 .row_bytes = sizeof table[0][0]};
            uint32_t start = cycle_count();
            table_addresses(&args);
            uint32_t middle = cycle_count();
            table_sums(&args);
            m->inner_cycles += cycle_count() - middle;
            m->decode_cycles += middle - start;
        }
        int8_t *out = (int8_t *)m->output + block * m->n * TABLE_TOKENS;
        for (uint32_t n = 0; n < m->n; n++)
            for (uint32_t t = 0; t < TABLE_TOKENS; t++) {
                int32_t gain = (int32_t)(channels[n] >> 5 & 127), bias = (int32_t)channels[n] >> 12;
                int32_t y = (gain * sums[n][t] + bias) >> (channels[n] & 31), limit = (int32_t)m->limit;
                *out++ = (int8_t)(y > limit ? limit : y < -limit ? -limit : y);
            }
    }
}

int main(void) {
    mailbox_t *m = &mailbox;
    uint32_t start = cycle_count();
    switch (m->candidate) {
    case TOKEN_LANES:
        token_lanes(m, gemm_token_lanes);
        break;
    case TOKEN_LANES_192:
        token_lanes(m, gemm_token_lanes_192);
        break;
    case CHANNEL_LANES:
        channel_lanes(m, gemm_channel_lanes);
        break;
    case CHANNEL_LANES_192:
        channel_lanes(m, gemm_channel_lanes_192);
        break;
    case INSTRUCTION_STREAM:
    case INSTRUCTION_STREAM_ADD:
    case INSTRUCTION_STREAM_TABLE:
        instruction_stream(m);
        break;
    case INSTRUCTION_SEGMENTS:
        instruction_segments(m);
        break;
    case ROW_TABLE:
        row_table(m);
        break;
    }
    m->cycles = cycle_count() - start;
    return 0;
}
