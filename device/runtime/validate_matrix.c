// SPDX-License-Identifier: Apache-2.0
// Ternary matrices against format and contract: data inside DATA, well-formed trits, and each channel's proof
// obligation (CONTRACT.md, section 1).
#include "internal.h"

#define LANE_LIMIT (1u << 19)
#define MALFORMED 0x80u // a bit that no count of trits has

static const char outside[] = "data outside DATA or misaligned";
static const char malformed[] = "malformed trits";

// Whether a channel can leave its 20-bit accumulator, which holds at most `terms` products at once.
static int can_overflow(uint32_t record, uint32_t terms, uint32_t xmax) {
    int32_t bias = TVIT_CHANNEL_BIAS(record);
    uint32_t gain = (uint32_t)TVIT_CHANNEL_GAIN(record), magnitude = (uint32_t)(bias < 0 ? -bias : bias);
    return gain < 1 || (uint64_t)gain * xmax * terms + magnitude >= LANE_LIMIT;
}

// --- 2bit and base3 ----------------------------------------------------------------------------------------------

void tvit_count_nonzero(tvit_nonzero_table *table) {
    for (uint32_t code = 0; code < 256; code++) {
        uint32_t rest = code, count = 0;
        for (int i = 0; i < 5; i++, rest /= 3)
            count += rest % 3 != 1;
        table->of[TVIT_CODEC_BASE3][code] = code <= 242 ? (uint8_t)count : MALFORMED;
        count = 0;
        for (rest = code; rest; rest >>= 2)
            count += rest & 1;
        table->of[TVIT_CODEC_2BIT][code] = code >> 1 & ~code & 0x55 ? MALFORMED : (uint8_t)count;
    }
}

// Reads a tile's bytes once; a byte may hold the end of one channel and the start of the next.
typedef struct {
    const uint8_t *next;
    const uint8_t *nonzero;
    uint32_t base3, per_byte;
    uint32_t code, left; // trits of the current byte that are not yet counted
    uint32_t seen;       // the table's entries of all bytes so far, or-ed
} trit_counter;

static void load_byte(trit_counter *t) {
    t->code = *t->next++;
    t->left = t->per_byte;
    t->seen |= t->nonzero[t->code];
}

static uint32_t count_single(trit_counter *t, uint32_t trits) {
    uint32_t count = 0;
    for (; trits; trits--, t->left--) {
        if (t->base3) {
            count += t->code % 3 != 1;
            t->code /= 3;
        } else {
            count += t->code & 1;
            t->code >>= 2;
        }
    }
    return count;
}

// Non-zero trits among the next `trits`.
static uint32_t count_trits(trit_counter *t, uint32_t trits) {
    uint32_t head = t->left < trits ? t->left : trits, count = count_single(t, head);
    trits -= head;
    uint32_t whole = trits / t->per_byte, seen = t->seen;
    trits -= whole * t->per_byte;
    const uint8_t *next = t->next;
    for (const uint8_t *end = next + whole; next != end; next++) {
        uint32_t entry = t->nonzero[*next];
        seen |= entry;
        count += entry;
    }
    t->next = next;
    t->seen = seen;
    if (trits) {
        load_byte(t);
        count += count_single(t, trits);
    }
    return count;
}

static const char *check_tiles(const tvit_ternary_matrix *m, uint32_t bytes, const tvit_nonzero_table *table,
                               uint32_t xmax, int *overflow) {
    const uint8_t *tile = m->trits;
    if (tvit_matrix_bytes(m->codec, m->n, m->k) > bytes) return outside;
    for (uint32_t first = 0; first < m->n; first += TVIT_TILE_CHANNELS) {
        uint32_t count = m->n - first < TVIT_TILE_CHANNELS ? m->n - first : TVIT_TILE_CHANNELS;
        trit_counter t = {.next = tile, .nonzero = table->of[m->codec], .base3 = m->codec == TVIT_CODEC_BASE3};
        t.per_byte = t.base3 ? 5 : 4;
        tile += tvit_tile_bytes(m->codec, count, m->k);
        for (uint32_t i = 0; i < count; i++)
            *overflow |= can_overflow(m->channels[first + i], count_trits(&t, m->k), xmax);
        // The unused trits of the last byte are 0, the padding behind it is zero bytes.
        int padded = count_single(&t, t.left) != 0;
        while (t.next != tile)
            padded |= *t.next++;
        if (t.seen & MALFORMED || padded) return malformed;
    }
    return NULL;
}

// --- gaps --------------------------------------------------------------------------------------------------------

// A row's instructions, one after the other.
typedef struct {
    uint32_t position;     // of the instruction
    uint32_t next, behind; // steps to the next position, and from there to the one behind it
    int32_t value;         // of the trit at position, from the instructions before this one
    uint32_t nonzero;      // trits at the positions before
    uint32_t most, bad;
} row_reader;

static inline void finish_trit(row_reader *r) {
    uint32_t magnitude = (uint32_t)(r->value < 0 ? -r->value : r->value);
    r->bad |= magnitude > 1;
    r->nonzero += magnitude;
    r->value = 0;
}

static inline void add_product(row_reader *r, uint32_t code) {
    r->value += code & 8 ? -1 : 1;
    uint32_t held = r->nonzero + (uint32_t)(r->value < 0 ? -r->value : r->value);
    if (held > r->most) r->most = held;
}

// All but the last instruction. Most are the only one at their position: a trit, whatever its sign.
static inline void read_instruction(row_reader *r, uint32_t code) {
    if (r->next && !r->value) {
        r->nonzero++;
    } else {
        add_product(r, code);
        if (r->next) finish_trit(r);
    }
    r->position += r->next;
    r->next = r->behind;
    r->behind = code & 7;
}

static uint32_t code_at(const uint8_t *codes, uint32_t i) {
    return codes[i / 2] >> (i % 2 * 4) & 15;
}

// The most products that the row's accumulator holds at once, or UINT32_MAX where the row is malformed.
static uint32_t terms_of_row(uint32_t header, const uint8_t *codes, uint32_t k) {
    uint32_t count = TVIT_GAPS_INSTRUCTIONS(header), last = count - 1;
    row_reader r = {.position = TVIT_GAPS_POSITION(header),
                    .next = TVIT_GAPS_FIRST_GAP(header),
                    .behind = TVIT_GAPS_SECOND_GAP(header)};
    const uint8_t *end = codes + last / 2;
    for (const uint8_t *pair = codes; pair != end; pair++) {
        read_instruction(&r, *pair & 15u);
        read_instruction(&r, *pair >> 4);
    }
    if (last % 2) read_instruction(&r, *end & 15u);
    add_product(&r, code_at(codes, last));
    finish_trit(&r);
    for (uint32_t i = count - TVIT_GAPS_MIN_INSTRUCTIONS; i < count; i++)
        r.bad |= code_at(codes, i) & 7;
    if (count % 2) r.bad |= *end >> 4;
    if (r.bad || r.position >= k) return UINT32_MAX;
    return r.nonzero > r.most ? r.nonzero : r.most;
}

static const char *check_gaps(const tvit_ternary_matrix *m, uint32_t bytes, uint32_t xmax, int *overflow) {
    const uint32_t *tile_at = (const uint32_t *)m->trits;
    uint32_t tiles = (m->n + TVIT_TILE_CHANNELS - 1) / TVIT_TILE_CHANNELS, at = 4 * tiles;
    if (at > bytes) return outside;
    for (uint32_t tile = 0; tile < tiles; tile++) {
        uint32_t first = tile * TVIT_TILE_CHANNELS;
        uint32_t count = m->n - first < TVIT_TILE_CHANNELS ? m->n - first : TVIT_TILE_CHANNELS;
        if (tile_at[tile] != at) return malformed;
        if (4 * count > bytes - at) return outside;
        const uint32_t *headers = (const uint32_t *)(m->trits + at);
        at += 4 * count;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t instructions = TVIT_GAPS_INSTRUCTIONS(headers[i]), size = (instructions + 1) / 2;
            if (instructions < TVIT_GAPS_MIN_INSTRUCTIONS || TVIT_GAPS_RESERVED(headers[i])) return malformed;
            if (size > bytes - at) return outside;
            uint32_t terms = terms_of_row(headers[i], m->trits + at, m->k);
            if (terms == UINT32_MAX) return malformed;
            *overflow |= can_overflow(m->channels[first + i], terms, xmax);
            at += size;
        }
        for (; at % 4; at++) {
            if (at == bytes) return outside;
            if (m->trits[at]) return malformed;
        }
    }
    if (TVIT_GAPS_PADDING > bytes - at) return outside;
    for (uint32_t i = 0; i < TVIT_GAPS_PADDING; i++)
        if (m->trits[at + i]) return malformed;
    return NULL;
}

// --- all codecs --------------------------------------------------------------------------------------------------

// The parameters of PATCH_EMBED and LINEAR begin alike: k, n, codec, trits_at, channels_at.
_Static_assert(offsetof(tvit_patch_embed_params, channels_at) == 16 && offsetof(tvit_linear_params, channels_at) == 16,
               "k, n, codec, trits_at, channels_at");
#define MATRIX_PARAMS 5

// Whether an operator of the same kind has been checked with the same matrix.
static int is_checked(const tvit_model *model, uint32_t index) {
    const tvit_operator *mine = &model->operators[index];
    for (uint32_t i = index; i > 0; i--) {
        const tvit_operator *op = &model->operators[i - 1];
        uint32_t differs = op->kind ^ mine->kind;
        for (uint32_t j = 0; j < MATRIX_PARAMS; j++)
            differs |= op->param.raw[j] ^ mine->param.raw[j];
        if (!differs) return 1;
    }
    return 0;
}

tvit_status tvit_check_matrix(const tvit_model *model, uint32_t index, const tvit_nonzero_table *table, uint32_t xmax,
                              tvit_error *error) {
    const tvit_linear_params *p = &model->operators[index].param.linear; // or PATCH_EMBED's
    const char *reason = NULL;
    int overflow = 0;
    uint32_t most_inputs = p->codec == TVIT_CODEC_GAPS ? TVIT_GAPS_MAX_K : 65536;
    uint32_t bytes = model->data_bytes;
    if (is_checked(model, index)) return TVIT_OK;
    if (p->n < 1 || p->n > 65536 || p->k < 1 || p->k > most_inputs)
        reason = "matrix dimensions";
    else if (p->codec > TVIT_CODEC_GAPS)
        reason = "unknown codec";
    else if (p->trits_at % TVIT_ALIGN || p->trits_at > bytes || p->channels_at % TVIT_ALIGN ||
             (uint64_t)p->channels_at + 4 * p->n > bytes)
        reason = outside;
    if (!reason) {
        tvit_ternary_matrix matrix = {model->data + p->trits_at, (const uint32_t *)(model->data + p->channels_at), p->k,
                                      p->n, p->codec};
        reason = p->codec == TVIT_CODEC_GAPS ? check_gaps(&matrix, bytes - p->trits_at, xmax, &overflow)
                                             : check_tiles(&matrix, bytes - p->trits_at, table, xmax, &overflow);
    }
    if (reason) return tvit_refuse(error, TVIT_BAD_PARAMETER, "OPER", index, reason);
    if (overflow)
        return tvit_refuse(error, TVIT_BAD_CHANNEL, "DATA", index, "a channel can leave its 20-bit accumulator");
    return TVIT_OK;
}
