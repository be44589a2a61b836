// SPDX-License-Identifier: Apache-2.0
// The operators. Each has a portable implementation (suffix _portable, kernels/portable/<op>.c); SIMD twins share the
// stem (suffix _pie, kernels/pie/). CONTRACT.md defines every result to the bit, so twins agree exactly.
// tvit_kernel_table names the kernels that go together.
//
// Activations are i8 or i16 tensors of tokens (rows) by columns, in the layout of the kernel table:
//
//   TVIT_LAYOUT_ROWS          row-major without padding, "[rows][columns]" below.
//   TVIT_LAYOUT_TOKEN_BLOCKS  [rows / 16][columns][16]: element (t, c) is number t/16 * columns*16 + c*16 + t%16, for
//                             i8 and for i16. Rows are padded to 16. Lanes behind the last row hold anything, may be
//                             read and written, and never influence a result.
//
// The image and the logits are row-major without padding in both. A pointer to an activation already points at the
// first row and column an operator works on: row-major + row * columns + column elements, in token blocks + row *
// columns + column * 16, where rows are multiples of 16 (but for input_lane below). `*_columns` is the number of
// columns of the tensor it points into, the distance of two rows, or of two blocks divided by 16.
//
// `scratch` is 16-byte aligned and as large as the operator's *_buffer_size; it holds nothing between calls and may be
// NULL where that size is 0. Arguments were validated when the model was loaded (FORMAT.md, "What a reader refuses"):
// kernels do not check them again.
#ifndef TVIT_KERNELS_H
#define TVIT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "tvit/format.h"

#define TVIT_BLOCK_TOKENS 16u
#define TVIT_MAX_CORES 2u

typedef enum { TVIT_LAYOUT_ROWS = 0, TVIT_LAYOUT_TOKEN_BLOCKS = 1 } tvit_layout;

// Who else works on this operator. Every part calls the kernel with the same arguments and the same scratch and takes
// its share of the work by `part` and `parts` alone; the result does not depend on `parts`.
typedef struct tvit_team {
    uint32_t part, parts;                          // part < parts <= TVIT_MAX_CORES
    void (*barrier)(const struct tvit_team *team); // returns when every part has called it; not called where parts == 1
} tvit_team;

// A ternary matrix as it lies in the model file.
typedef struct {
    const uint8_t *trits;     // tiles of 16 channels (FORMAT.md, "Trits"), 16-byte aligned
    const uint32_t *channels; // [n] channel records: bias << 12 | gain << 5 | shift
    uint32_t k;               // inputs, 1 ... 65536; at most 4095 for TVIT_CODEC_GAPS
    uint32_t n;               // output channels, 1 ... 65536
    uint32_t codec;           // tvit_codec
} tvit_ternary_matrix;

// Bytes of one tile of `channels` rows of `k` trits, and of a whole [n][k] matrix, padding included.
// Below 2^31 for channels <= 16, k and n <= 65536. Not for TVIT_CODEC_GAPS, whose size depends on its trits.
uint32_t tvit_tile_bytes(uint32_t codec, uint32_t channels, uint32_t k);
uint32_t tvit_matrix_bytes(uint32_t codec, uint32_t n, uint32_t k);

// --- patch embedding (CONTRACT.md, section 4) --------------------------------------------------------------------

// In token blocks the image may overlap the output as tvit_image_lead() allows it (runtime.h): a kernel computes the
// blocks in increasing order and finishes reading the patches of a block before it writes the block, prefix tokens
// and all 16 lanes of the last block included. In rows they do not overlap: the runtime copies the image before.
typedef struct {
    tvit_ternary_matrix weights; // k = patch_size * patch_size * image_channels
    const uint8_t *image;        // [image_height][image_width][image_channels]
    uint32_t image_height;       // a multiple of patch_size
    uint32_t image_width;        // a multiple of patch_size
    uint32_t image_channels;     // 1 or more
    uint32_t patch_size;         // 1 or more
    const int8_t *position;      // [patches][n], -127 ... 127
    int32_t position_multiplier; // 1 ... 255
    const int16_t *prefix;       // [prefix_tokens][n], -32767 ... 32767
    uint32_t prefix_tokens;      // 0 or more
    int16_t *output;             // [prefix_tokens + patches][n], -32767 ... 32767
} tvit_patch_embed_args;

// --- LayerNorm (section 5) ---------------------------------------------------------------------------------------

typedef struct {
    const int16_t *input;         // [rows][n], -32767 ... 32767
    const uint8_t *gamma_beta;    // four bits a channel, even ones low: (gamma + 1) * 3 + beta + 1
    uint32_t rows, n;             // n 1 ... 4096
    uint64_t c;                   // 1 ... 2^52 - 1
    uint64_t epsilon;             // 1 ... 2^54 - 1
    int32_t beta_unit;            // sqrt(n) * c / (n * 2^15) + |beta_unit| + 2^shift < 2^30
    uint32_t shift;               // 1 ... 24
    int8_t *output;               // [rows][n], -127 ... 127
    uint32_t per_token;           // 1: the rows are quantized (section 8), 0: static scales
    uint16_t *output_multipliers; // [rows], 1 ... 32767, where per_token
} tvit_layernorm_args;

// --- linear (sections 2 and 3) -----------------------------------------------------------------------------------

typedef enum {
    TVIT_LINEAR_I8,              // clamp(y, limit)
    TVIT_LINEAR_TABLE,           // int8_t table[clamp(y, limit) + 128]
    TVIT_LINEAR_TABLE_PER_TOKEN, // int16_t table[clamp(y, limit) + 128], then the row is quantized
    TVIT_LINEAR_I16_SET,         // clamp(y, 32767)
    TVIT_LINEAR_I16_ADD,         // clamp(old + clamp(y, 32767), 32767)
} tvit_linear_output;

typedef struct {
    tvit_ternary_matrix weights;
    const int8_t *input;               // [rows][k], -127 ... 127
    const uint16_t *input_multipliers; // [rows], 1 ... 32767; NULL for static scales
    uint32_t rows;
    tvit_linear_output kind;
    int32_t limit;                // 1 ... 127 where the output is int8
    const void *table;            // 256 entries; NULL where kind has none
    void *output;                 // [rows][n] of [..][output_columns], int8_t or int16_t as kind says
    uint16_t *output_multipliers; // [rows], 1 ... 32767, for TVIT_LINEAR_TABLE_PER_TOKEN; NULL otherwise
    uint32_t output_columns;      // of the output tensor, n or more
    uint32_t input_lane;          // token blocks: lane of the first row, `input` points to its block; else 0
    uint32_t output_is_row;       // 1: the output is one row-major row of int16, the logits, and rows is 1
} tvit_linear_args;

// --- attention (sections 6 and 7) --------------------------------------------------------------------------------

// The output may be the same memory as q: the same tensor and columns. What lies in k's columns afterwards, all tokens,
// is not defined: kernels may use them as memory of their own.
typedef struct {
    const int8_t *q; // [tokens][heads * head_dim] of [tokens][q_columns], -127 ... 127
    int8_t *k;       // likewise
    const int8_t *v; // likewise
    uint32_t q_columns, k_columns, v_columns, output_columns; // of the tensors, heads * head_dim or more
    uint32_t tokens;                                          // 1 ... 2048
    uint32_t heads, head_dim;
    uint32_t score_shift;         // 0 ... 15
    int32_t exp_multiplier;       // 1 ... 32767
    uint32_t out_multiplier;      // 1 ... 2^28 - 1
    uint32_t out_shift;           // 1 ... 24
    int8_t *output;               // [tokens][heads * head_dim] of [tokens][output_columns], -127 ... 127
    uint32_t per_token;           // 1: the rows are quantized (section 8), 0: static scales
    uint16_t *output_multipliers; // [tokens], 1 ... 32767, where per_token
} tvit_attention_args;

// --- mean pooling (section 9) ------------------------------------------------------------------------------------

typedef struct {
    const int16_t *input; // [rows][n], -32767 ... 32767
    uint32_t rows;        // 1 ... 65535
    uint32_t n;
    int16_t *output;     // [n], -32767 ... 32767; in token blocks [n][16], of which lane 0 is the result
    uint32_t input_lane; // token blocks: lane of the first row, `input` points to its block; else 0
} tvit_mean_pool_args;

// --- the portable implementations --------------------------------------------------------------------------------

// Counts of work are for cost models: they follow from the shapes alone, but for a branch or two where a value is
// clamped. G = n rounded up to 8, the channels that are decoded and computed together.
//
// Trits decoded by codec: 2bit and base3 all n*k; gaps G/8 * 4 * k words cleared and every instruction once, and the
// headers of the channels before the group in its tile.
//
// Work: n*k trits decoded by codec, (G-n)/2 * k words cleared; patches * G/8 * patch_size dot products over
// patch_size * image_channels terms (see below), patches * n outputs, prefix_tokens * n copies. Scratch: 16 * k bytes.
void tvit_patch_embed_portable(const tvit_patch_embed_args *args, void *scratch);
size_t tvit_patch_embed_buffer_size_portable(const tvit_patch_embed_args *args);

// Work: rows (a square root and a division of fixed length, four hardware-sized divisions), rows * n/4 groups of
// squares, rows * n outputs; per token two more passes over rows * n. Scratch: 2 * n bytes per token, else none.
void tvit_layernorm_portable(const tvit_layernorm_args *args, void *scratch);
size_t tvit_layernorm_buffer_size_portable(const tvit_layernorm_args *args);

// Work: n*k trits decoded by codec, (G-n)/2 * k words cleared; rows * G/8 dot products over k terms, rows * n outputs
// by kind; per-token tables two more passes over rows * n. Scratch: 16 * k bytes.
void tvit_linear_portable(const tvit_linear_args *args, void *scratch);
size_t tvit_linear_buffer_size_portable(const tvit_linear_args *args);

// Work, for each head and each four queries (the last group computes four, too): 4 * head_dim queries widened; for each
// key head_dim/4 steps of 16 multiply-accumulates and head_dim%4 of 4, 4 scores, 4 exponentials, 4 probabilities, and
// head_dim/2 steps of 8 multiply-accumulates and head_dim%2 of 4; 4 * head_dim outputs, 12 divisions.
// Scratch: 8 * tokens + 8 * head_dim bytes, each rounded up to 16, and 8 * heads * head_dim per token.
void tvit_attention_portable(const tvit_attention_args *args, void *scratch);
size_t tvit_attention_buffer_size_portable(const tvit_attention_args *args);

// Work: rows * n additions, n divisions. No scratch.
void tvit_mean_pool_portable(const tvit_mean_pool_args *args, void *scratch);
size_t tvit_mean_pool_buffer_size_portable(const tvit_mean_pool_args *args);

// Decode `count` channels from `first` on (a multiple of 8; count 1 ... 8) of a matrix to pairs of channels:
// pairs[i][j] = trit[first + 2j][i] + trit[first + 2j + 1][i] * 65536 as one signed number, i < k, j < 4. Channels
// behind `count` are 0. sums[c] is the sum of the trits of channel first + c.
void tvit_trits_decode_portable(const tvit_ternary_matrix *matrix, uint32_t first, uint32_t count, int32_t (*pairs)[4],
                                int32_t sums[8]);

// Work: count/128 calls of the inner loop (rounded up), in each terms/4 steps of 32 multiply-accumulates and terms%4 of
// 8, 8 sums widened.
//
// sums[c] += sum over i < count of trit[c][i] * (x[i] ^ flip), as unsigned bytes, for the 8 channels of `pairs`. With
// flip = 0x80 and sums starting at -128 times the channel's trit sum, this is the dot product with int8 x; with flip =
// 0 and the same start, with pixels x - 128.
void tvit_ternary_dot_portable(int32_t sums[8], const int32_t (*pairs)[4], const uint8_t *x, uint32_t count,
                               uint32_t flip);

// 2^14 * 2^(-t / 1024) within 2, for 0 <= t <= 32767 (section 7).
int32_t tvit_exp2_q14_portable(int32_t t);

// The softmax of one query (section 6): scores a[0], a[stride], ... (-32767 ... 32767, `highest` their maximum) become
// probabilities 0 ... 127. Returns their sum, 1 ... 4128. tokens: 1 ... 2048.
int32_t tvit_softmax_portable(int16_t *a, uint32_t stride, uint32_t tokens, int32_t highest, int32_t exp_multiplier);

// Quantize a row of n values -32767 ... 32767 to int8 (section 8); returns its multiplier, 1 ... 32767.
uint16_t tvit_token_quantize_portable(int8_t *output, const int16_t *input, uint32_t n);

// --- dispatch ----------------------------------------------------------------------------------------------------

// The kernels that go together. Buffer sizes use the shapes in args only, never its pointers, and hold for every number
// of cores.
typedef struct {
    const char *name; // "portable", "pie"
    tvit_layout layout;
    uint32_t parallel; // 1: kernels share the work by their team; 0: they are called once, with a team of one
    void (*patch_embed)(const tvit_patch_embed_args *args, void *scratch, const tvit_team *team);
    size_t (*patch_embed_buffer_size)(const tvit_patch_embed_args *args);
    void (*layernorm)(const tvit_layernorm_args *args, void *scratch, const tvit_team *team);
    size_t (*layernorm_buffer_size)(const tvit_layernorm_args *args);
    void (*linear)(const tvit_linear_args *args, void *scratch, const tvit_team *team);
    size_t (*linear_buffer_size)(const tvit_linear_args *args);
    void (*attention)(const tvit_attention_args *args, void *scratch, const tvit_team *team);
    size_t (*attention_buffer_size)(const tvit_attention_args *args);
    void (*mean_pool)(const tvit_mean_pool_args *args, void *scratch, const tvit_team *team);
    size_t (*mean_pool_buffer_size)(const tvit_mean_pool_args *args);
} tvit_kernel_table;

// Row-major, one core, every model (runtime/dispatch.c).
extern const tvit_kernel_table tvit_kernels_portable;

#ifdef TVIT_KERNELS_PIE
// Token blocks, models with static scales (kernels/pie/table.c). tvit_kernels_for() chooses (runtime.h).
extern const tvit_kernel_table tvit_kernels_pie;
#endif

#endif
