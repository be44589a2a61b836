// SPDX-License-Identifier: Apache-2.0
#include "reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t clamp(int64_t v, int64_t limit) {
    return v > limit ? limit : v < -limit ? -limit : v;
}

// Rounded towards minus infinity, for b > 0.
static int64_t floor_divide(int64_t a, int64_t b) {
    return a / b - (a % b < 0);
}

static uint32_t encode_tiles(uint32_t codec, uint32_t n, uint32_t k, const int8_t *trits, uint8_t *bytes) {
    uint32_t per_byte = codec == TVIT_CODEC_2BIT ? 4 : 5;
    memset(bytes, 0, tvit_matrix_bytes(codec, n, k));
    for (uint32_t first = 0; first < n; first += 16) {
        uint32_t count = n - first < 16 ? n - first : 16, total = count * k;
        for (uint32_t at = 0; at < total; at += per_byte) {
            uint32_t code = 0;
            for (uint32_t i = per_byte; i-- > 0;) {
                int trit = at + i < total ? trits[first * k + at + i] : 0;
                code = codec == TVIT_CODEC_2BIT ? code << 2 | (trit & 3) : code * 3 + (uint32_t)(trit + 1);
            }
            bytes[at / per_byte] = (uint8_t)code;
        }
        bytes += tvit_tile_bytes(codec, count, k);
    }
    return tvit_matrix_bytes(codec, n, k);
}

// The instructions of a row of the codec gaps.
typedef struct {
    uint32_t position[4096], minus[4096], count;
} instructions;

static void add_instruction(instructions *row, uint32_t position, uint32_t minus) {
    if (row->count == 4095) abort();
    row->position[row->count] = position;
    row->minus[row->count++] = minus;
}

static void add_pair(instructions *row, uint32_t position, uint32_t first_minus) {
    add_instruction(row, position, first_minus);
    add_instruction(row, position, !first_minus);
}

static void find_instructions(instructions *row, const int8_t *trits, uint32_t k) {
    uint32_t at = 0, minus = 1;
    row->count = 0;
    for (uint32_t i = 0; i < k; i++) {
        if (!trits[i]) continue;
        for (uint32_t most; i - at > (most = row->count < 3 ? 31 : 7); add_pair(row, at, 0))
            at += most;
        at = i;
        minus = trits[i] < 0;
        add_instruction(row, i, minus);
    }
    while (row->count < 3) // the first of a pair takes back what is there
        add_pair(row, at, !minus);
}

static uint32_t encode_gaps(uint32_t n, uint32_t k, const int8_t *trits, uint8_t *bytes) {
    instructions *row = malloc(sizeof *row);
    uint32_t tiles = (n + 15) / 16, at = 4 * tiles, header_at = 0;
    for (uint32_t o = 0; o < n; o++) {
        if (o % 16 == 0) {
            for (; at % 4; at++)
                bytes[at] = 0;
            memcpy(bytes + o / 16 * 4, &at, 4);
            header_at = at;
            at += 4 * (n - o < 16 ? n - o : 16);
        }
        find_instructions(row, trits + o * k, k);
        const uint32_t *p = row->position;
        uint32_t header = row->count | p[0] << 12 | (p[1] - p[0]) << 17 | (p[2] - p[1]) << 22;
        memcpy(bytes + header_at + o % 16 * 4, &header, 4);
        for (uint32_t i = 0; i < row->count; i++) {
            uint32_t code = row->minus[i] << 3 | (i + 3 < row->count ? p[i + 3] - p[i + 2] : 0);
            bytes[at + i / 2] = (uint8_t)(i % 2 ? bytes[at + i / 2] | code << 4 : code);
        }
        at += (row->count + 1) / 2;
    }
    for (uint32_t end = ((at + 3) & ~3u) + 32; at < end; at++)
        bytes[at] = 0;
    free(row);
    return at;
}

uint32_t reference_encode(uint32_t codec, uint32_t n, uint32_t k, const int8_t *trits, uint8_t *bytes) {
    return codec == TVIT_CODEC_GAPS ? encode_gaps(n, k, trits, bytes) : encode_tiles(codec, n, k, trits, bytes);
}

uint32_t reference_matrix_room(uint32_t n, uint32_t k) {
    return (n + 15) / 16 * 4 + n * (4 + (k + 8) / 2) + n + 36; // every position, and bridges only where there are none
}

static int64_t accumulate(const int8_t *trits, uint32_t k, const int64_t *x) {
    int64_t acc = 0;
    for (uint32_t i = 0; i < k; i++)
        acc += trits[i] * x[i];
    return acc;
}

void reference_patch_embed(const tvit_patch_embed_args *args, const int8_t *trits) {
    uint32_t k = args->weights.k, n = args->weights.n, p = args->patch_size, c = args->image_channels;
    uint32_t columns = args->image_width / p, patches = args->image_height / p * columns;
    int64_t *x = malloc(k * sizeof *x);
    for (uint32_t i = 0; i < args->prefix_tokens * n; i++)
        args->output[i] = args->prefix[i];
    for (uint32_t patch = 0; patch < patches; patch++) {
        uint32_t i = 0;
        for (uint32_t py = 0; py < p; py++)
            for (uint32_t px = 0; px < p; px++)
                for (uint32_t ch = 0; ch < c; ch++) {
                    uint32_t row = patch / columns * p + py, column = patch % columns * p + px;
                    x[i++] = (int64_t)args->image[(row * args->image_width + column) * c + ch] - 128;
                }
        for (uint32_t o = 0; o < n; o++) {
            uint32_t record = args->weights.channels[o];
            int64_t acc = accumulate(trits + o * k, k, x);
            int64_t y = (TVIT_CHANNEL_GAIN(record) * acc + TVIT_CHANNEL_BIAS(record)) >> TVIT_CHANNEL_SHIFT(record);
            int64_t position = (int64_t)args->position[patch * n + o] * args->position_multiplier;
            args->output[(args->prefix_tokens + patch) * n + o] = (int16_t)clamp(clamp(y, 32767) + position, 32767);
        }
    }
    free(x);
}

static int64_t isqrt(int64_t v) {
    int64_t d = (int64_t)sqrt((double)v);
    while (d * d > v)
        d--;
    while ((d + 1) * (d + 1) <= v)
        d++;
    return d;
}

void reference_layernorm(const tvit_layernorm_args *args) {
    int64_t n = args->n;
    int16_t *wide = malloc(args->n * sizeof *wide);
    for (uint32_t row = 0; row < args->rows; row++) {
        const int16_t *x = args->input + row * n;
        int64_t s1 = 0, s2 = 0;
        for (int64_t i = 0; i < n; i++) {
            s1 += x[i];
            s2 += x[i] * x[i];
        }
        int64_t d = isqrt(n * s2 - s1 * s1 + (int64_t)args->epsilon);
        int64_t a = (int64_t)args->c / d;
        if (a > (1 << 30) - 1) a = (1 << 30) - 1;
        int64_t b = floor_divide(s1 * a, n);
        for (int64_t i = 0; i < n; i++) {
            int64_t u = (x[i] * a - b) >> 15;
            int code = args->gamma_beta[i / 2] >> (i % 2 ? 4 : 0) & 15, gamma = code / 3 - 1, beta = code % 3 - 1;
            int64_t y =
                (gamma * u + (int64_t)beta * args->beta_unit + ((int64_t)1 << (args->shift - 1))) >> args->shift;
            if (args->per_token)
                wide[i] = (int16_t)clamp(y, 32767);
            else
                args->output[row * n + i] = (int8_t)clamp(y, 127);
        }
        if (args->per_token)
            args->output_multipliers[row] = reference_token_quantize(args->output + row * n, wide, args->n);
    }
    free(wide);
}

void reference_linear(const tvit_linear_args *args, const int8_t *trits) {
    uint32_t k = args->weights.k, n = args->weights.n;
    int64_t *x = malloc(k * sizeof *x);
    int16_t *wide = malloc(n * sizeof *wide);
    for (uint32_t row = 0; row < args->rows; row++) {
        for (uint32_t i = 0; i < k; i++)
            x[i] = args->input[row * k + i];
        for (uint32_t o = 0; o < n; o++) {
            uint32_t record = args->weights.channels[o], at = row * args->output_columns + o;
            int64_t acc = TVIT_CHANNEL_GAIN(record) * accumulate(trits + o * k, k, x), bias = TVIT_CHANNEL_BIAS(record);
            if (args->input_multipliers) acc = ((acc >> 4) * args->input_multipliers[row]) >> 15;
            int64_t y = (acc + bias) >> TVIT_CHANNEL_SHIFT(record);
            int8_t *i8 = args->output;
            int16_t *i16 = args->output;
            switch (args->kind) {
            case TVIT_LINEAR_I8:
                i8[at] = (int8_t)clamp(y, args->limit);
                break;
            case TVIT_LINEAR_TABLE:
                i8[at] = ((const int8_t *)args->table)[clamp(y, args->limit) + 128];
                break;
            case TVIT_LINEAR_TABLE_PER_TOKEN:
                wide[o] = ((const int16_t *)args->table)[clamp(y, args->limit) + 128];
                break;
            case TVIT_LINEAR_I16_SET:
                i16[at] = (int16_t)clamp(y, 32767);
                break;
            case TVIT_LINEAR_I16_ADD:
                i16[at] = (int16_t)clamp(i16[at] + clamp(y, 32767), 32767);
                break;
            }
        }
        if (args->kind == TVIT_LINEAR_TABLE_PER_TOKEN)
            args->output_multipliers[row] =
                reference_token_quantize((int8_t *)args->output + row * args->output_columns, wide, n);
    }
    free(x);
    free(wide);
}

static int64_t exp2_q14(int64_t t) {
    int64_t f = (t & 1023) << 5, h = 3803 + ((f * -661) >> 15);
    h = -11334 + ((f * h) >> 15);
    h = 16384 + ((f * h) >> 15);
    return h >> (t >> 10);
}

int64_t reference_softmax(int64_t *a, uint32_t tokens, int32_t exp_multiplier) {
    int64_t highest = -32767, sum = 0, z = 0;
    for (uint32_t j = 0; j < tokens; j++)
        if (a[j] > highest) highest = a[j];
    for (uint32_t j = 0; j < tokens; j++) {
        int64_t distance = highest - a[j] < 32767 ? highest - a[j] : 32767;
        a[j] = exp2_q14((distance * exp_multiplier) >> 15);
        sum += a[j];
    }
    int64_t target = 4128 - (tokens + 1) / 2, r = (target << 19) / sum;
    if (r > 4079) r = 4079;
    for (uint32_t j = 0; j < tokens; j++) {
        a[j] = ((a[j] + (1 << 18) / r) * r) >> 19;
        z += a[j];
    }
    return z;
}

void reference_attention(const tvit_attention_args *args) {
    uint32_t tokens = args->tokens, h = args->head_dim, width = args->heads * h;
    int64_t *a = malloc(tokens * sizeof *a), limit = args->per_token ? 32767 : 127;
    int16_t *wide = malloc(width * sizeof *wide);
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t head = 0; head < args->heads; head++) {
            for (uint32_t j = 0; j < tokens; j++) {
                int64_t s = 0;
                for (uint32_t d = 0; d < h; d++)
                    s += args->q[t * args->q_columns + head * h + d] * args->k[j * args->k_columns + head * h + d];
                a[j] = clamp(s >> args->score_shift, 32767);
            }
            int64_t z = reference_softmax(a, tokens, args->exp_multiplier);
            int64_t w = (args->out_multiplier + z / 2) / z;
            if (w > 32767) w = 32767;
            for (uint32_t d = 0; d < h; d++) {
                int64_t c = 0;
                for (uint32_t j = 0; j < tokens; j++)
                    c += a[j] * args->v[j * args->v_columns + head * h + d];
                int64_t o = ((c >> 4) * w + ((int64_t)1 << (args->out_shift - 1))) >> args->out_shift;
                wide[head * h + d] = (int16_t)clamp(o, limit);
            }
        }
        if (args->per_token)
            args->output_multipliers[t] =
                reference_token_quantize(args->output + t * args->output_columns, wide, width);
        else
            for (uint32_t i = 0; i < width; i++)
                args->output[t * args->output_columns + i] = (int8_t)wide[i];
    }
    free(a);
    free(wide);
}

void reference_mean_pool(const tvit_mean_pool_args *args) {
    for (uint32_t i = 0; i < args->n; i++) {
        int64_t sum = 0;
        for (uint32_t row = 0; row < args->rows; row++)
            sum += args->input[row * args->n + i];
        args->output[i] = (int16_t)clamp(floor_divide(sum + (args->rows >> 1), args->rows), 32767);
    }
}

uint16_t reference_token_quantize(int8_t *output, const int16_t *input, uint32_t n) {
    int64_t m = 1;
    for (uint32_t i = 0; i < n; i++)
        if (llabs(input[i]) > m) m = llabs(input[i]);
    for (uint32_t i = 0; i < n; i++)
        output[i] = (int8_t)((input[i] * ((127ll << 20) / m) + (1 << 19)) >> 20);
    return (uint16_t)m;
}
