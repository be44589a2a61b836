// SPDX-License-Identifier: Apache-2.0
// The model file's layout; FORMAT.md describes it, host/tvhil/packing/format.py mirrors it.
#ifndef TVIT_FORMAT_H
#define TVIT_FORMAT_H

#include <stdint.h>

#define TVIT_MAGIC 0x54495654u // "TVIT", little-endian
#define TVIT_VERSION 2u
#define TVIT_ALIGN 16u
#define TVIT_MAX_SECTIONS 16u
#define TVIT_MAX_TENSORS 1024u
#define TVIT_MAX_OPERATORS 1024u
#define TVIT_NO_TENSOR 0xffffu
#define TVIT_TILE_CHANNELS 16u

typedef struct {
    uint32_t magic;
    uint16_t version;
    uint16_t header_bytes;
    uint32_t file_bytes;
    uint32_t section_count;
    uint8_t signature[32]; // SHA-256 of bytes 64 .. file_bytes-1
    uint32_t table_crc;
    uint32_t reserved[2];
    uint32_t header_crc; // of bytes 0 .. 59
} tvit_header;

typedef struct {
    char tag[4];
    uint32_t offset; // from the start of the file, a multiple of 16
    uint32_t bytes;
    uint32_t crc;
    uint32_t count;
    uint32_t reserved[3];
} tvit_section;

typedef enum { TVIT_SCALE_STATIC = 0, TVIT_SCALE_PER_TOKEN = 1 } tvit_scale_mode;

typedef struct {
    uint16_t image_height, image_width, image_channels, patch_size;
    uint16_t tokens, prefix_tokens, embed_dim, depth;
    uint16_t heads, head_dim, mlp_dim, classes;
    uint16_t scale_mode;     // tvit_scale_mode
    uint16_t stream, logits; // tensor ids
    uint16_t reserved0;
    uint64_t parameters;
    uint64_t macs;
    float logit_scale;
    uint32_t reserved1[3];
    char name[64];
} tvit_model_record;

typedef enum { TVIT_U8 = 0, TVIT_I8 = 1, TVIT_I16 = 2 } tvit_dtype;

#define TVIT_TENSOR_PER_TOKEN 1u // u16 multiplier a row behind the values, at the next multiple of 16

typedef struct {
    uint32_t name; // offset into NAME
    uint16_t dtype;
    uint16_t flags;
    uint32_t rows, columns;
} tvit_tensor;

typedef enum {
    TVIT_OP_PATCH_EMBED = 1,
    TVIT_OP_LAYERNORM = 2,
    TVIT_OP_LINEAR = 3,
    TVIT_OP_ATTENTION = 4,
    TVIT_OP_MEAN_POOL = 5,
} tvit_op_kind;

#define TVIT_OP_ADD 1u
#define TVIT_OP_TABLE 2u

typedef enum { TVIT_CODEC_2BIT = 0, TVIT_CODEC_BASE3 = 1, TVIT_CODEC_GAPS = 2 } tvit_codec;

// A row of the codec `gaps` (FORMAT.md, "Gaps"): its header, and four bits an instruction.
#define TVIT_GAPS_MAX_K 4095u
#define TVIT_GAPS_MIN_INSTRUCTIONS 3u
#define TVIT_GAPS_PADDING 32u // zero bytes behind the last tile: decoders read ahead
#define TVIT_GAPS_INSTRUCTIONS(header) ((header)&4095u)
#define TVIT_GAPS_POSITION(header) ((header) >> 12 & 31u)   // of the first instruction
#define TVIT_GAPS_FIRST_GAP(header) ((header) >> 17 & 31u)  // from the first to the second
#define TVIT_GAPS_SECOND_GAP(header) ((header) >> 22 & 31u) // from the second to the third
#define TVIT_GAPS_RESERVED(header) ((header) >> 27)

// Fields named *_at are offsets into the DATA section.
typedef struct {
    uint32_t k, n, codec, trits_at, channels_at, position_at, position_multiplier, prefix_at;
} tvit_patch_embed_params;

typedef struct {
    uint32_t first_row, rows, gamma_beta_at, c_low, c_high; // gamma_beta: four bits a channel
    int32_t beta_unit;
    uint32_t epsilon_low, epsilon_high, shift;
} tvit_layernorm_params;

typedef struct {
    uint32_t k, n, codec, trits_at, channels_at, limit, table_at, first_row, rows, output_row, output_column;
} tvit_linear_params;

typedef struct {
    uint32_t heads, head_dim, score_shift, exp_multiplier, out_multiplier, out_shift;
    uint32_t q_column, k_column, v_column, output_column; // of head 0; head i is at + i * head_dim
} tvit_attention_params;

typedef struct {
    uint32_t first_row, rows;
} tvit_mean_pool_params;

typedef struct {
    uint16_t kind;  // tvit_op_kind
    uint16_t flags; // TVIT_OP_*
    uint32_t name;  // offset into NAME
    uint16_t input[3];
    uint16_t output;
    union {
        uint32_t raw[12];
        tvit_patch_embed_params patch_embed;
        tvit_layernorm_params layernorm;
        tvit_linear_params linear;
        tvit_attention_params attention;
        tvit_mean_pool_params mean_pool;
    } param;
} tvit_operator;

// PLAN: this record, a u32 offset a tensor, a tvit_plan_scratch an operator.
typedef struct {
    uint32_t arena_bytes;   // a multiple of 16
    uint32_t scratch_bytes; // of the operator that has most
    uint32_t reserved[2];
} tvit_plan_record;

typedef struct {
    uint32_t offset, bytes; // offset a multiple of 16; used by this operator only
} tvit_plan_scratch;

// One output channel of a linear operator (CONTRACT.md, section 1).
#define TVIT_CHANNEL_BIAS(record) ((int32_t)(record) >> 12)
#define TVIT_CHANNEL_GAIN(record) ((int32_t)((record) >> 5 & 127u))
#define TVIT_CHANNEL_SHIFT(record) ((record)&31u)

_Static_assert(sizeof(tvit_header) == 64, "header");
_Static_assert(sizeof(tvit_section) == 32, "section table entry");
_Static_assert(sizeof(tvit_model_record) == 128, "model record");
_Static_assert(sizeof(tvit_tensor) == 16, "tensor record");
_Static_assert(sizeof(tvit_operator) == 64, "operator record");
_Static_assert(sizeof(tvit_plan_record) == 16, "plan record");
_Static_assert(sizeof(tvit_plan_scratch) == 8, "scratch of an operator");

#endif
