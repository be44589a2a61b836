// SPDX-License-Identifier: Apache-2.0
// The loader: what it accepts, and one refusal for each rule of FORMAT.md, with status, section and record.
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "draw.h"
#include "piece_model.h"
#include "small_model.h"

#define NONE 0xffffffffu

static small_model good, good_gaps, good_pieces, good_per_token;

static void expect(const small_model *m, uint32_t bytes, tvit_status status, const char *section, uint32_t index,
                   const char *what) {
    tvit_model model;
    tvit_error error;
    tvit_status got = tvit_load(&model, m->file, bytes, &error);
    CHECK(got == status, "%s: status %d (%s %u: %s), expected %d", what, (int)got, error.section, error.index,
          error.reason, (int)status);
    CHECK(error.status == got, "%s: the error says %d", what, (int)error.status);
    if (!status) return;
    CHECK(strcmp(error.section, section) == 0, "%s: section %s", what, error.section);
    CHECK(error.index == index, "%s: index %u", what, error.index);
    CHECK(error.reason[0], "%s: no reason", what);
}

// Change one thing in a copy, seal it, and expect a refusal.
#define REFUSE(change, status, section, index) REFUSE_OF(good, change, status, section, index)
#define REFUSE_OF(model, change, status, section, index)                                                               \
    do {                                                                                                               \
        small_model m = small_model_copy(&(model));                                                                    \
        change;                                                                                                        \
        small_model_seal(&m);                                                                                          \
        expect(&m, m.bytes, status, section, index, #change);                                                          \
        small_model_free(&m);                                                                                          \
    } while (0)

// The same without repairing the CRCs.
#define REFUSE_UNSEALED(change, status, section, index)                                                                \
    do {                                                                                                               \
        small_model m = small_model_copy(&good);                                                                       \
        change;                                                                                                        \
        expect(&m, m.bytes, status, section, index, #change);                                                          \
        small_model_free(&m);                                                                                          \
    } while (0)

static void test_complete_models_are_accepted(void) {
    for (int per_token = 0; per_token < 2; per_token++)
        for (uint32_t codec = 0; codec < 3; codec++) {
            small_model m = small_model_make(per_token, codec);
            expect(&m, m.bytes, TVIT_OK, "", NONE, "a complete model");
            tvit_model model;
            CHECK(tvit_load(&model, m.file, m.bytes, NULL) == TVIT_OK, "without an error to fill in");
            CHECK(model.tensor_count == TENSORS && model.operator_count == OPERATORS, "counts");
            CHECK(strcmp(model.names + model.operators[ATTN].name, "attn") == 0, "names");
            small_model_free(&m);
            m = piece_model_make(per_token, codec); // here: in pieces or not
            expect(&m, m.bytes, TVIT_OK, "", NONE, "a model in pieces");
            small_model_free(&m);
        }
}

static void test_wrong_files_are_refused_before_anything_is_read(void) {
    tvit_model model;
    tvit_error error;
    CHECK(tvit_load(NULL, good.file, good.bytes, &error) == TVIT_BAD_ARGUMENT, "no model");
    CHECK(tvit_load(&model, NULL, 100, &error) == TVIT_BAD_ARGUMENT, "no file");
    CHECK(tvit_load(&model, good.file + 8, good.bytes - 8, &error) == TVIT_MISALIGNED, "misaligned");
    REFUSE_UNSEALED(m.header->magic++, TVIT_BAD_MAGIC, "", NONE);
    REFUSE(m.header->version = 1, TVIT_BAD_VERSION, "", NONE);
    REFUSE(m.header->version = 3, TVIT_BAD_VERSION, "", NONE);
    REFUSE(m.header->header_bytes = 60, TVIT_BAD_SECTION, "", NONE);
    REFUSE(m.header->reserved[1] = 1, TVIT_BAD_SECTION, "", NONE);
    REFUSE(m.header->file_bytes += 16, TVIT_BAD_SIZE, "", NONE);
    REFUSE(m.header->file_bytes = 0, TVIT_BAD_SIZE, "", NONE);
    REFUSE(m.header->section_count = 4, TVIT_BAD_SECTION, "", NONE);
    REFUSE(m.header->section_count = 17, TVIT_BAD_SECTION, "", NONE);
    REFUSE(m.header->section_count = NONE, TVIT_BAD_SECTION, "", NONE);
}

static void test_a_truncated_file_is_refused_at_every_length(void) {
    for (uint32_t bytes = 0; bytes < good.bytes; bytes++) {
        void *file = NULL;
        if (posix_memalign(&file, 16, bytes ? bytes : 1)) abort(); // the sanitizer sees a byte too many
        memcpy(file, good.file, bytes);
        tvit_model model;
        tvit_error error;
        CHECK(tvit_load(&model, file, bytes, &error) == TVIT_BAD_SIZE, "%u bytes: %s", bytes, error.reason);
        free(file);
    }
}

static void test_a_flipped_bit_is_refused_with_its_section(void) {
    REFUSE_UNSEALED(m.header->signature[3] ^= 1, TVIT_BAD_CRC, "", 0);
    REFUSE_UNSEALED(m.sections[2].count ^= 1, TVIT_BAD_CRC, "", 1);
    REFUSE_UNSEALED(m.info->depth ^= 1, TVIT_BAD_CRC, "MODL", 2 + MODL);
    REFUSE_UNSEALED(m.tensors[1].rows ^= 1, TVIT_BAD_CRC, "TENS", 2 + TENS);
    REFUSE_UNSEALED(m.operators[1].kind ^= 1, TVIT_BAD_CRC, "OPER", 2 + OPER);
    REFUSE_UNSEALED(m.offsets[3] ^= 16, TVIT_BAD_CRC, "PLAN", 2 + PLAN);
    REFUSE_UNSEALED(m.names[5] ^= 1, TVIT_BAD_CRC, "NAME", 2 + NAME);
    REFUSE_UNSEALED(m.data[77] ^= 1, TVIT_BAD_CRC, "DATA", 2 + DATA);
}

static void test_malformed_sections_are_refused(void) {
    REFUSE(m.sections[META].tag[0] = 'Q', TVIT_BAD_SECTION, "", META);
    REFUSE(memcpy(m.sections[META].tag, "DATA", 4), TVIT_BAD_SECTION, "", META);
    REFUSE(m.header->section_count = 6, TVIT_BAD_CRC, "", 1);
    REFUSE(m.sections[OPER].offset += 8, TVIT_BAD_SECTION, "OPER", NONE);
    REFUSE(m.sections[OPER].offset = m.sections[TENS].offset, TVIT_BAD_SECTION, "OPER", NONE);
    REFUSE(m.sections[MODL].offset = 0, TVIT_BAD_SECTION, "MODL", NONE);
    REFUSE(m.sections[META].offset = 0xfffffff0u, TVIT_BAD_SECTION, "META", NONE);
    REFUSE(m.sections[META].bytes = 0xffffffffu, TVIT_BAD_SECTION, "META", NONE);
    REFUSE(m.sections[META].bytes = 17, TVIT_BAD_SECTION, "META", NONE);
    REFUSE(m.sections[DATA].reserved[1] = 1, TVIT_BAD_SECTION, "DATA", NONE);
    REFUSE(m.sections[MODL].count = 2, TVIT_BAD_SECTION, "MODL", NONE);
    REFUSE(m.sections[TENS].count--, TVIT_BAD_SECTION, "TENS", NONE);
    REFUSE(m.sections[TENS].count = 0, TVIT_BAD_SECTION, "TENS", NONE);
    REFUSE(m.sections[OPER].count = 0x04000000u, TVIT_BAD_SECTION, "OPER", NONE); // times 64 wraps to 0
    REFUSE(m.sections[PLAN].bytes -= 4, TVIT_BAD_SECTION, "PLAN", NONE);
    REFUSE(m.sections[PLAN].count = 0, TVIT_BAD_SECTION, "PLAN", NONE);
}

static void test_names_outside_their_section_are_refused(void) {
    REFUSE(m.tensors[2].name = m.sections[NAME].bytes, TVIT_BAD_NAME, "TENS", 2);
    REFUSE(m.operators[3].name = 0xffffffffu, TVIT_BAD_NAME, "OPER", 3);
    REFUSE(m.names[m.sections[NAME].bytes - 1] = 'x', TVIT_BAD_NAME, "TENS", 0);
    REFUSE(m.names[0] = 'x', TVIT_BAD_NAME, "TENS", 0);
    REFUSE(m.sections[NAME].bytes = 0, TVIT_BAD_NAME, "TENS", 0);
}

static void test_malformed_model_records_are_refused(void) {
    REFUSE(m.info->scale_mode = 2, TVIT_BAD_MODEL, "MODL", NONE);
    REFUSE(memset(m.info->name, 'a', 64), TVIT_BAD_MODEL, "MODL", NONE);
    REFUSE(m.info->reserved0 = 1, TVIT_BAD_MODEL, "MODL", NONE);
    REFUSE(m.info->reserved1[2] = 1, TVIT_BAD_MODEL, "MODL", NONE);
    REFUSE(m.info->patch_size = 0, TVIT_BAD_MODEL, "MODL", NONE);
    REFUSE(m.info->patch_size = 3, TVIT_BAD_MODEL, "MODL", NONE);
    REFUSE(m.info->image_channels = 0, TVIT_BAD_MODEL, "MODL", NONE);
    REFUSE(m.info->image_height = 0, TVIT_BAD_MODEL, "MODL", NONE);
    REFUSE(m.info->image_width = 6, TVIT_BAD_MODEL, "MODL", NONE);
    REFUSE(m.info->tokens = 4, TVIT_BAD_MODEL, "MODL", NONE);
    REFUSE(m.info->prefix_tokens = 65535, TVIT_BAD_MODEL, "MODL", NONE);
    REFUSE(m.info->embed_dim = 0, TVIT_BAD_MODEL, "MODL", NONE);
    REFUSE(m.info->stream = TENSORS, TVIT_BAD_MODEL, "MODL", NONE);
    REFUSE(m.info->logits = 65535, TVIT_BAD_MODEL, "MODL", NONE);
    REFUSE(m.info->logits = POOLED, TVIT_BAD_MODEL, "MODL", NONE);
    REFUSE(m.info->classes = 4, TVIT_BAD_MODEL, "MODL", NONE);
}

static void test_malformed_tensors_are_refused(void) {
    REFUSE(m.tensors[X].dtype = 3, TVIT_BAD_TENSOR, "TENS", X);
    REFUSE(m.tensors[X].flags = 2, TVIT_BAD_TENSOR, "TENS", X);
    REFUSE(m.tensors[STREAM].flags = 1, TVIT_BAD_TENSOR, "TENS", STREAM);
    REFUSE(m.tensors[H].rows = 0, TVIT_BAD_TENSOR, "TENS", H);
    REFUSE(m.tensors[H].columns = 0, TVIT_BAD_TENSOR, "TENS", H);
    REFUSE(m.tensors[H].rows = 0x80000000u, TVIT_BAD_TENSOR, "TENS", H);
    REFUSE((m.tensors[H].rows = 1u << 20, m.tensors[H].columns = 1u << 20), TVIT_BAD_TENSOR, "TENS", H);
}

static void test_operators_that_do_not_fit_their_tensors_are_refused(void) {
    REFUSE(m.operators[Q].kind = 0, TVIT_BAD_OPERATOR, "OPER", Q);
    REFUSE(m.operators[Q].kind = 6, TVIT_BAD_OPERATOR, "OPER", Q);
    REFUSE(m.operators[Q].flags = 4, TVIT_BAD_OPERATOR, "OPER", Q);
    REFUSE(m.operators[NORM1].flags = 1, TVIT_BAD_OPERATOR, "OPER", NORM1);
    REFUSE(m.operators[Q].output = TENSORS, TVIT_BAD_OPERATOR, "OPER", Q);
    REFUSE(m.operators[Q].input[0] = TVIT_NO_TENSOR, TVIT_BAD_OPERATOR, "OPER", Q);
    REFUSE(m.operators[Q].input[1] = X, TVIT_BAD_OPERATOR, "OPER", Q);
    REFUSE(m.operators[Q].input[0] = X2, TVIT_BAD_OPERATOR, "OPER", Q); // not written yet
    REFUSE(m.operators[EMBED].output = X, TVIT_BAD_OPERATOR, "OPER", EMBED);
    REFUSE(m.operators[Q].output = X, TVIT_BAD_OPERATOR, "OPER", Q);       // its own input
    REFUSE(m.operators[Q].output = LOGITS, TVIT_BAD_PARAMETER, "OPER", Q); // of fewer rows
    REFUSE(m.operators[Q].flags = TVIT_OP_ADD, TVIT_BAD_OPERATOR, "OPER", Q);
    REFUSE(m.operators[HEAD].flags = TVIT_OP_ADD, TVIT_BAD_OPERATOR, "OPER", HEAD); // to nothing
    REFUSE(m.operators[PROJ].flags = TVIT_OP_TABLE | TVIT_OP_ADD, TVIT_BAD_OPERATOR, "OPER", PROJ);
    REFUSE(m.operators[ATTN].output = H, TVIT_BAD_OPERATOR, "OPER", PROJ); // nobody wrote what it reads
    REFUSE(m.operators[ATTN].output = NORMED, TVIT_BAD_OPERATOR, "OPER", ATTN);
    REFUSE(m.operators[POOL].output = LOGITS, TVIT_BAD_OPERATOR, "OPER", POOL);
    REFUSE(m.operators[NORM].input[0] = LOGITS, TVIT_BAD_OPERATOR, "OPER", NORM);
    REFUSE(m.operators[ATTN].input[2] = STREAM, TVIT_BAD_OPERATOR, "OPER", ATTN);
    REFUSE(m.operators[POOL].output = STREAM, TVIT_BAD_OPERATOR, "OPER", POOL);
    REFUSE(m.operators[HEAD].kind = TVIT_OP_MEAN_POOL, TVIT_BAD_PARAMETER, "OPER", HEAD); // unused params not zero
    // Nothing writes the logits.
    REFUSE((m.info->logits = POOLED, m.info->classes = SMALL_DIM, m.operators[POOL] = m.operators[NORM1],
            m.operators[POOL].output = X, m.operators[NORM] = m.operators[POOL], m.operators[HEAD] = m.operators[POOL]),
           TVIT_BAD_OPERATOR, "OPER", NONE);
    REFUSE((m.tensors[X].flags = 1), TVIT_BAD_OPERATOR, "OPER", NORM1); // per-token output in a static model
    REFUSE((m.tensors[H].flags = 1), TVIT_BAD_PARAMETER, "OPER", FC1);  // the table has int8 entries
}

static void test_constants_outside_the_contract_are_refused(void) {
    REFUSE(m.operators[EMBED].param.patch_embed.position_multiplier = 0, TVIT_BAD_PARAMETER, "OPER", EMBED);
    REFUSE(m.operators[EMBED].param.patch_embed.position_multiplier = 256, TVIT_BAD_PARAMETER, "OPER", EMBED);
    REFUSE(m.operators[NORM1].param.layernorm.rows = 4, TVIT_BAD_PARAMETER, "OPER", NORM1);
    REFUSE(m.operators[NORM1].param.layernorm.first_row = 0xffffffffu, TVIT_BAD_PARAMETER, "OPER", NORM1);
    REFUSE(m.operators[NORM1].param.layernorm.shift = 0, TVIT_BAD_PARAMETER, "OPER", NORM1);
    REFUSE(m.operators[NORM1].param.layernorm.shift = 25, TVIT_BAD_PARAMETER, "OPER", NORM1);
    REFUSE(m.operators[NORM1].param.layernorm.epsilon_low = 0, TVIT_BAD_PARAMETER, "OPER", NORM1);
    REFUSE(m.operators[NORM1].param.layernorm.epsilon_high = 1u << 22, TVIT_BAD_PARAMETER, "OPER", NORM1);
    REFUSE(m.operators[NORM1].param.layernorm.c_high = 1u << 20, TVIT_BAD_PARAMETER, "OPER", NORM1);
    REFUSE(m.operators[NORM1].param.layernorm.c_high = 0xffffffffu, TVIT_BAD_PARAMETER, "OPER", NORM1);
    REFUSE(m.operators[NORM1].param.layernorm.beta_unit = INT32_MIN, TVIT_BAD_PARAMETER, "OPER", NORM1);
    REFUSE(m.operators[NORM1].param.raw[9] = 1, TVIT_BAD_PARAMETER, "OPER", NORM1);
    REFUSE(m.operators[Q].param.linear.rows = 0, TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE(m.operators[Q].param.linear.limit = 0, TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE(m.operators[Q].param.linear.limit = 128, TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE(m.operators[PROJ].param.linear.limit = 127, TVIT_BAD_PARAMETER, "OPER", PROJ);
    REFUSE(m.operators[Q].param.linear.codec = 2, TVIT_BAD_PARAMETER, "OPER", Q); // the trits are none of gaps
    REFUSE(m.operators[Q].param.linear.codec = 3, TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE(m.operators[Q].param.linear.table_at = 16, TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE(m.operators[ATTN].param.attention.heads = 3, TVIT_BAD_PARAMETER, "OPER", ATTN); // times 3
    REFUSE(m.operators[ATTN].param.attention.heads = 0, TVIT_BAD_PARAMETER, "OPER", ATTN);
    REFUSE((m.operators[ATTN].param.attention.heads = 0x80000002u, m.operators[ATTN].param.attention.head_dim = 3),
           TVIT_BAD_PARAMETER, "OPER", ATTN); // wraps to 6
    REFUSE(m.operators[ATTN].param.attention.score_shift = 16, TVIT_BAD_PARAMETER, "OPER", ATTN);
    REFUSE(m.operators[ATTN].param.attention.exp_multiplier = 0, TVIT_BAD_PARAMETER, "OPER", ATTN);
    REFUSE(m.operators[ATTN].param.attention.exp_multiplier = 32768, TVIT_BAD_PARAMETER, "OPER", ATTN);
    REFUSE(m.operators[ATTN].param.attention.out_multiplier = 1u << 28, TVIT_BAD_PARAMETER, "OPER", ATTN);
    REFUSE(m.operators[ATTN].param.attention.out_shift = 0, TVIT_BAD_PARAMETER, "OPER", ATTN);
    REFUSE(m.operators[POOL].param.mean_pool.rows = 3, TVIT_BAD_PARAMETER, "OPER", POOL);
}

static void test_data_outside_its_section_is_refused(void) {
    uint32_t bytes = good.sections[DATA].bytes, behind = (bytes + 15) & ~15u;
    REFUSE(m.operators[Q].param.linear.trits_at += 8, TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE(m.operators[Q].param.linear.trits_at = behind, TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE(m.operators[Q].param.linear.trits_at = 0xfffffff0u, TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE(m.operators[Q].param.linear.channels_at = behind - 16, TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE(m.operators[Q].param.linear.channels_at = 0xfffffff0u, TVIT_BAD_PARAMETER, "OPER", Q); // + 24 wraps
    REFUSE(m.operators[FC1].param.linear.table_at = behind - 240, TVIT_BAD_PARAMETER, "OPER", FC1);
    REFUSE(m.operators[NORM1].param.layernorm.gamma_beta_at = behind, TVIT_BAD_PARAMETER, "OPER", NORM1);
    REFUSE(m.operators[EMBED].param.patch_embed.position_at = 0xfffffff0u, TVIT_BAD_PARAMETER, "OPER", EMBED);
    REFUSE(m.operators[EMBED].param.patch_embed.prefix_at = behind, TVIT_BAD_PARAMETER, "OPER", EMBED);
}

static void test_malformed_data_is_refused(void) {
    const tvit_linear_params *q = &good.operators[Q].param.linear;
    const tvit_patch_embed_params *e = &good.operators[EMBED].param.patch_embed;
    REFUSE(m.data[q->trits_at] = 243, TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE(m.data[q->trits_at + 7] = 0, TVIT_BAD_PARAMETER, "OPER", Q); // 36 trits: four of the last byte are unused
    REFUSE(m.data[e->trits_at + 6] = 1, TVIT_BAD_PARAMETER, "OPER", EMBED); // 24 trits: five bytes and three of padding
    REFUSE(m.data[good.operators[NORM1].param.layernorm.gamma_beta_at] = 9, TVIT_BAD_PARAMETER, "OPER", NORM1);
    REFUSE(m.data[good.operators[NORM1].param.layernorm.gamma_beta_at] = 0x90, TVIT_BAD_PARAMETER, "OPER", NORM1);
    REFUSE(m.data[good.operators[FC1].param.linear.table_at] = 1, TVIT_BAD_PARAMETER, "OPER", FC1);
    REFUSE(m.data[good.operators[FC1].param.linear.table_at + 9] = 128, TVIT_BAD_PARAMETER, "OPER", FC1);
    REFUSE(m.data[e->position_at + 11] = 128, TVIT_BAD_PARAMETER, "OPER", EMBED);
    REFUSE(memcpy(m.data + e->prefix_at + 2, "\0\x80", 2), TVIT_BAD_PARAMETER, "OPER", EMBED);
}

static void test_a_malformed_2bit_code_is_refused(void) {
    small_model m = small_model_make(0, TVIT_CODEC_2BIT);
    m.data[m.operators[K].param.linear.trits_at + 3] = 0x20;
    small_model_seal(&m);
    expect(&m, m.bytes, TVIT_BAD_PARAMETER, "OPER", K, "a code of 2");
    small_model_free(&m);
}

static void set_channel(small_model *m, int op, uint32_t channel, uint32_t record) {
    memcpy(m->data + m->operators[op].param.linear.channels_at + 4 * channel, &record, 4);
}

static void test_a_channel_that_can_overflow_its_lane_is_refused(void) {
    REFUSE(set_channel(&m, Q, 5, 0), TVIT_BAD_CHANNEL, "DATA", Q);                    // gain 0
    REFUSE(set_channel(&m, Q, 0, 0x80000000u | 1 << 5), TVIT_BAD_CHANNEL, "DATA", Q); // bias -2^19
    // The bound is exact: a row of zeros leaves all of the lane to the bias.
    small_model m = small_model_copy(&good);
    m.data[m.operators[Q].param.linear.trits_at] = 121; // five times 0
    m.data[m.operators[Q].param.linear.trits_at + 1] =
        (uint8_t)(m.data[m.operators[Q].param.linear.trits_at + 1] / 3 * 3 + 1);
    set_channel(&m, Q, 0, ((1u << 19) - 1) << 12 | 127 << 5);
    small_model_seal(&m);
    expect(&m, m.bytes, TVIT_OK, "", NONE, "a bias of 2^19 - 1 behind zeros");
    m.data[m.operators[Q].param.linear.trits_at] = 122; // one trit: 127 * 127 + |bias|
    set_channel(&m, Q, 0, ((1u << 19) - 1 - 127 * 127) << 12 | 127 << 5);
    small_model_seal(&m);
    expect(&m, m.bytes, TVIT_OK, "", NONE, "one below the limit");
    set_channel(&m, Q, 0, ((1u << 19) - 127 * 127) << 12 | 127 << 5);
    small_model_seal(&m);
    expect(&m, m.bytes, TVIT_BAD_CHANNEL, "DATA", Q, "at the limit");
    small_model_free(&m);
}

static void test_pieces_outside_their_tensors_are_refused(void) {
    REFUSE_OF(good_pieces, m.operators[P_FC2_1].param.linear.output_row = 32, TVIT_BAD_PARAMETER, "OPER", P_FC2_1);
    REFUSE_OF(good_pieces, m.operators[P_FC2_1].param.linear.output_row = 0xfffffff0u, TVIT_BAD_PARAMETER, "OPER",
              P_FC2_1);
    REFUSE_OF(good_pieces, m.operators[P_FC2_1].param.linear.output_row = 8, TVIT_BAD_PARAMETER, "OPER", P_FC2_1);
    REFUSE_OF(good_pieces, m.operators[P_FC2_1].param.linear.first_row = 8, TVIT_BAD_PARAMETER, "OPER", P_FC2_1);
    REFUSE_OF(good_pieces, m.operators[P_FC2_0].param.linear.rows = 17, TVIT_BAD_PARAMETER, "OPER", P_FC2_0);
    REFUSE_OF(good_pieces, m.operators[P_NORM2_1].param.layernorm.first_row = 15, TVIT_BAD_PARAMETER, "OPER",
              P_NORM2_1);
    REFUSE_OF(good_pieces, m.operators[P_NORM2_0].output = P_NORMED, TVIT_BAD_OPERATOR, "OPER", P_NORM2_0);
    REFUSE_OF(good_pieces, m.operators[P_FC1_01].param.linear.output_column = 10, TVIT_BAD_PARAMETER, "OPER", P_FC1_01);
    REFUSE_OF(good_pieces, m.operators[P_FC1_01].param.linear.output_column = NONE, TVIT_BAD_PARAMETER, "OPER",
              P_FC1_01);
    REFUSE_OF(good_pieces, m.operators[P_HEAD1].param.linear.output_row = 1, TVIT_BAD_PARAMETER, "OPER", P_HEAD1);
    REFUSE_OF(good_pieces, m.operators[P_ATTN1].param.attention.q_column = 4, TVIT_BAD_PARAMETER, "OPER", P_ATTN1);
    REFUSE_OF(good_pieces, m.operators[P_ATTN1].param.attention.k_column = NONE, TVIT_BAD_PARAMETER, "OPER", P_ATTN1);
    REFUSE_OF(good_pieces, m.operators[P_ATTN1].param.attention.v_column = 1, TVIT_BAD_PARAMETER, "OPER", P_ATTN1);
    REFUSE_OF(good_pieces, m.operators[P_ATTN1].param.attention.output_column = 4, TVIT_BAD_PARAMETER, "OPER", P_ATTN1);
}

static void test_pieces_of_models_with_per_token_scales_are_refused(void) {
    REFUSE_OF(good_per_token, m.operators[Q].param.linear.output_row = 16, TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE_OF(good_per_token, m.operators[Q].param.linear.output_column = 1, TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE_OF(good_per_token, m.operators[Q].output = H, TVIT_BAD_OPERATOR, "OPER", Q);
    REFUSE_OF(good_per_token, m.operators[NORM1].param.layernorm.rows = 2, TVIT_BAD_OPERATOR, "OPER", NORM1);
    REFUSE_OF(good_per_token, m.operators[ATTN].param.attention.q_column = 1, TVIT_BAD_PARAMETER, "OPER", ATTN);
    REFUSE_OF(good_per_token, m.operators[ATTN].param.attention.heads = 1, TVIT_BAD_PARAMETER, "OPER", ATTN);
}

static void test_an_attention_that_uses_the_same_columns_twice_is_refused(void) {
    REFUSE_OF(good_pieces, m.operators[P_ATTN0].param.attention.k_column = 0, TVIT_BAD_OPERATOR, "OPER", P_ATTN0);
    REFUSE_OF(good_pieces, m.operators[P_ATTN0].param.attention.k_column = 2, TVIT_BAD_OPERATOR, "OPER", P_ATTN0);
    REFUSE_OF(good_pieces, m.operators[P_ATTN0].param.attention.output_column = 1, TVIT_BAD_OPERATOR, "OPER", P_ATTN0);
    REFUSE_OF(good_pieces, m.operators[P_ATTN0].param.attention.output_column = 3, TVIT_BAD_OPERATOR, "OPER", P_ATTN0);
    REFUSE(m.operators[ATTN].input[1] = Q_OUT, TVIT_BAD_OPERATOR, "OPER", ATTN);
    REFUSE(m.operators[ATTN].input[2] = K_OUT, TVIT_BAD_OPERATOR, "OPER", ATTN);
    REFUSE(m.operators[ATTN].output = V_OUT, TVIT_BAD_OPERATOR, "OPER", ATTN);
}

static void test_rows_and_columns_that_were_not_written_are_not_read(void) {
    REFUSE_OF(good_pieces, m.operators[P_FC1_01].param.linear.output_column = 8, TVIT_BAD_OPERATOR, "OPER", P_FC2_0);
    REFUSE_OF(good_pieces, m.operators[P_FC1_01] = m.operators[P_FC1_00], TVIT_BAD_OPERATOR, "OPER", P_FC2_0);
    REFUSE_OF(good_pieces, m.operators[P_NORM1].param.layernorm.rows = 16, TVIT_BAD_OPERATOR, "OPER", P_Q0);
    REFUSE_OF(good_pieces, m.operators[P_V0].param.linear.rows = 16, TVIT_BAD_OPERATOR, "OPER", P_ATTN0);
    REFUSE_OF(good_pieces, m.operators[P_HEAD1].param.linear.output_column = 1, TVIT_BAD_OPERATOR, "OPER", NONE);
    // Behind a last row that ends no block, the block is spoilt.
    REFUSE_OF(good_pieces, m.operators[P_FC1_10].param.linear.rows = 16, TVIT_BAD_OPERATOR, "OPER", P_FC1_10);
    REFUSE_OF(good_pieces, m.operators[P_PROJ].param.linear.rows = 15, TVIT_BAD_OPERATOR, "OPER", P_NORM2_0);
    REFUSE_OF(good_pieces, m.operators[P_PROJ].param.linear.rows = 5, TVIT_BAD_OPERATOR, "OPER", P_NORM2_0);
    // An attention uses its keys up.
    REFUSE_OF(good_pieces, m.operators[P_Q1] = m.operators[P_V1], TVIT_BAD_OPERATOR, "OPER", P_ATTN1);
    REFUSE_OF(good_pieces, m.operators[P_K1] = m.operators[P_V1], TVIT_BAD_OPERATOR, "OPER", P_ATTN1);
    REFUSE_OF(good_pieces,
              (m.operators[P_Q1] = m.operators[P_V1], m.operators[P_ATTN1] = m.operators[P_ATTN0],
               m.operators[P_ATTN1].param.attention.k_column = 3),
              TVIT_BAD_OPERATOR, "OPER", P_ATTN1);
    REFUSE_OF(good_per_token, m.operators[PROJ].input[0] = K_OUT, TVIT_BAD_OPERATOR, "OPER", PROJ);
}

static void test_malformed_gaps_are_refused(void) {
    const tvit_linear_params *q = &good_gaps.operators[Q].param.linear; // one tile: offset, six headers, codes
    const uint32_t header = q->trits_at + 4, codes = header + 4 * SMALL_DIM;
    uint32_t first, end = codes;
    memcpy(&first, good_gaps.data + header, 4);
    for (uint32_t i = 0; i < SMALL_DIM; i++) {
        uint32_t word;
        memcpy(&word, good_gaps.data + header + 4 * i, 4);
        end += (TVIT_GAPS_INSTRUCTIONS(word) + 1) / 2;
    }
    REFUSE_OF(good_gaps, m.data[q->trits_at] = 8, TVIT_BAD_PARAMETER, "OPER", Q);        // tiles lie close
    REFUSE_OF(good_gaps, m.data[q->trits_at + 3] = 0x80, TVIT_BAD_PARAMETER, "OPER", Q); // or outside
    REFUSE_OF(good_gaps, m.data[header + 3] |= 0x08, TVIT_BAD_PARAMETER, "OPER", Q);     // a reserved bit
    REFUSE_OF(good_gaps, m.data[header + 3] |= 0x80, TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE_OF(good_gaps, m.data[header] = 2, TVIT_BAD_PARAMETER, "OPER", Q); // too few instructions
    REFUSE_OF(good_gaps, m.data[header] = 0, TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE_OF(good_gaps, (m.data[header] = 0xff, m.data[header + 1] |= 15), TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE_OF(good_gaps, m.data[header + 1] |= 0xf0, TVIT_BAD_PARAMETER, "OPER", Q); // from input 15 on
    REFUSE_OF(good_gaps, m.data[codes] |= 7, TVIT_BAD_PARAMETER, "OPER", Q);         // input 7 or above
    for (uint32_t i = 0; i < TVIT_GAPS_PADDING; i++)
        REFUSE_OF(good_gaps, m.data[((end + 3) & ~3u) + i] = 1, TVIT_BAD_PARAMETER, "OPER", Q);
    REFUSE_OF(good_gaps, m.operators[Q].param.linear.k = 4096, TVIT_BAD_OPERATOR, "OPER", Q); // not the input's width
}

static void test_plans_that_do_not_hold_are_refused(void) {
    REFUSE(m.plan->reserved[0] = 1, TVIT_BAD_PLAN, "PLAN", NONE);
    REFUSE(m.plan->reserved[1] = 1, TVIT_BAD_PLAN, "PLAN", NONE);
    REFUSE(m.plan->scratch_bytes += 16, TVIT_BAD_PLAN, "PLAN", NONE);
    REFUSE(m.plan->scratch_bytes = 0, TVIT_BAD_PLAN, "PLAN", NONE);
    REFUSE(m.plan->arena_bytes = 0, TVIT_BAD_PLAN, "PLAN", NONE);
    REFUSE(m.plan->arena_bytes += 8, TVIT_BAD_PLAN, "PLAN", NONE);
    REFUSE(m.scratches[ATTN].offset += 4, TVIT_BAD_PLAN, "PLAN", NONE);
    REFUSE(m.scratches[ATTN].offset = 0xfffffff0u, TVIT_BAD_PLAN, "PLAN", NONE);
    REFUSE((m.scratches[ATTN].bytes = 0xffffffffu, m.plan->scratch_bytes = 0xffffffffu), TVIT_BAD_PLAN, "PLAN", NONE);
    REFUSE(m.scratches[HEAD].offset = m.plan->arena_bytes + 16, TVIT_BAD_PLAN, "PLAN", NONE); // though of 0 bytes
    REFUSE(m.offsets[STREAM] = m.scratches[ATTN].offset, TVIT_BAD_PLAN, "PLAN", STREAM);
    REFUSE(m.offsets[X] += 4, TVIT_BAD_PLAN, "PLAN", X);
    REFUSE(m.offsets[X] = m.plan->arena_bytes, TVIT_BAD_PLAN, "PLAN", X);
    REFUSE(m.offsets[X] = 0xfffffff0u, TVIT_BAD_PLAN, "PLAN", X);
    REFUSE(m.offsets[V_OUT] = m.scratches[ATTN].offset, TVIT_BAD_PLAN, "PLAN", V_OUT);
    REFUSE(m.offsets[X] = m.offsets[STREAM], TVIT_BAD_PLAN, "PLAN", X);
    REFUSE(m.offsets[V_OUT] = m.offsets[Q_OUT], TVIT_BAD_PLAN, "PLAN", V_OUT);
    REFUSE(m.offsets[STREAM] = m.offsets[IMAGE], TVIT_BAD_PLAN, "PLAN", STREAM);
    REFUSE_OF(good_per_token, m.offsets[STREAM] = m.offsets[IMAGE], TVIT_BAD_PLAN, "PLAN", STREAM);
}

// Whatever a file holds: no access outside it, and a model that is accepted can be run.
static void test_damaged_files_are_refused_or_run_cleanly(void) {
    const small_model *models[] = {&good, &good_gaps, &good_pieces};
    int accepted = 0;
    for (int round = 0; round < 24000; round++) {
        small_model m = small_model_copy(models[round % 3]);
        for (int flips = draw_between(1, 3); flips; flips--) {
            // Anywhere behind the header, or at the records only.
            uint32_t end = draw() % 2 ? m.bytes : models[round % 3]->sections[NAME].offset;
            uint32_t at = 64 + draw() % (end - 64);
            m.file[at] = (uint8_t)(draw() % 2 ? m.file[at] ^ 1u << draw() % 8 : draw());
        }
        small_model_seal(&m);
        tvit_model model;
        tvit_error error;
        if (tvit_load(&model, m.file, m.bytes, &error) == TVIT_OK && tvit_arena_bytes(&model) < 1u << 20) {
            accepted++;
            void *arena = NULL;
            tvit_context context;
            if (posix_memalign(&arena, 16, tvit_arena_bytes(&model))) abort();
            memset(arena, 0x7f, tvit_arena_bytes(&model));
            CHECK(tvit_init(&context, &model, arena, tvit_arena_bytes(&model)) == TVIT_OK, "init");
            CHECK(tvit_run(&context, NONE, NULL, NULL) == TVIT_OK, "run");
            free(arena);
        }
        small_model_free(&m);
    }
    CHECK(accepted > 100 && accepted < 23000, "%d of 24000 accepted", accepted);
}

int main(void) {
    good = small_model_make(0, TVIT_CODEC_BASE3);
    good_gaps = small_model_make(0, TVIT_CODEC_GAPS);
    good_per_token = small_model_make(1, TVIT_CODEC_BASE3);
    good_pieces = piece_model_make(1, TVIT_CODEC_GAPS);
    RUN(test_complete_models_are_accepted);
    RUN(test_wrong_files_are_refused_before_anything_is_read);
    RUN(test_a_truncated_file_is_refused_at_every_length);
    RUN(test_a_flipped_bit_is_refused_with_its_section);
    RUN(test_malformed_sections_are_refused);
    RUN(test_names_outside_their_section_are_refused);
    RUN(test_malformed_model_records_are_refused);
    RUN(test_malformed_tensors_are_refused);
    RUN(test_operators_that_do_not_fit_their_tensors_are_refused);
    RUN(test_constants_outside_the_contract_are_refused);
    RUN(test_data_outside_its_section_is_refused);
    RUN(test_malformed_data_is_refused);
    RUN(test_a_malformed_2bit_code_is_refused);
    RUN(test_malformed_gaps_are_refused);
    RUN(test_a_channel_that_can_overflow_its_lane_is_refused);
    RUN(test_pieces_outside_their_tensors_are_refused);
    RUN(test_pieces_of_models_with_per_token_scales_are_refused);
    RUN(test_an_attention_that_uses_the_same_columns_twice_is_refused);
    RUN(test_rows_and_columns_that_were_not_written_are_not_read);
    RUN(test_plans_that_do_not_hold_are_refused);
    RUN(test_damaged_files_are_refused_or_run_cleanly);
    small_model_free(&good);
    small_model_free(&good_gaps);
    small_model_free(&good_per_token);
    small_model_free(&good_pieces);
    return check_result();
}
