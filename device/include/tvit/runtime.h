// SPDX-License-Identifier: Apache-2.0
// Load a model in place, run it in an arena of one or two memories. No allocation, no libc beyond
// memcpy/memset/memcmp/strlen.
#ifndef TVIT_RUNTIME_H
#define TVIT_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#include "tvit/format.h"
#include "tvit/kernels.h"

// Codes are part of the link protocol and equal in host/tvhil/packing/format.py; append only.
typedef enum {
    TVIT_OK = 0,
    TVIT_BAD_MAGIC = 1,
    TVIT_BAD_VERSION = 2,
    TVIT_BAD_SIZE = 3,     // shorter or longer than file_bytes, or not a multiple of 16
    TVIT_BAD_CRC = 4,      // index: 0 header, 1 section table, 2 + n section n
    TVIT_BAD_SECTION = 5,  // unknown, missing, repeated, overlapping, misaligned, escaping, count against size
    TVIT_BAD_NAME = 6,     // a name offset outside NAME, or NAME not terminated
    TVIT_BAD_MODEL = 7,    // MODL: a field outside its range or against the tensors
    TVIT_BAD_TENSOR = 8,   // TENS: index is the tensor
    TVIT_BAD_OPERATOR = 9, // OPER: index is the operator: unknown kind, wrong tensor type or shape, read before written
    TVIT_BAD_PARAMETER = 10, // OPER: a constant outside the contract's range, data outside DATA, malformed trits
    TVIT_BAD_CHANNEL = 11,   // DATA: a channel whose proof obligation fails; index is the operator
    TVIT_BAD_PLAN = 12,      // PLAN: outside the arena, misaligned, or overlapping; index is the tensor
    TVIT_ARENA_TOO_SMALL = 13,
    TVIT_MISALIGNED = 14, // the file or the arena is not 16-byte aligned
    TVIT_BAD_ARGUMENT = 15,
    TVIT_STOPPED = 16, // the observer asked to stop
} tvit_status;

// What was refused, for a message such as "OPER 17 (blocks.1.attn.proj): ...".
typedef struct {
    tvit_status status;
    char section[5];    // tag of the section, "" for the header
    uint32_t index;     // record in that section, 0xffffffff when it does not apply
    const char *reason; // static text
} tvit_error;

// Pointers into the file; valid while the file stays mapped.
typedef struct {
    const uint8_t *file;
    const tvit_header *header;
    const tvit_model_record *info;
    const tvit_tensor *tensors;
    const tvit_operator *operators;
    const tvit_plan_record *plan;
    const uint32_t *tensor_offsets;     // in the arena, one a tensor
    const tvit_plan_scratch *scratches; // in the arena, one an operator
    const char *names;
    const uint8_t *data;
    const char *meta; // JSON, not terminated
    uint32_t tensor_count, operator_count, names_bytes, data_bytes, meta_bytes;
} tvit_model;

// Validate a whole file (FORMAT.md, "What a reader refuses") and point into it.
// file: 16-byte aligned, `bytes` readable bytes. error may be NULL. Reads nothing outside the file, whatever it holds.
tvit_status tvit_load(tvit_model *model, const void *file, size_t bytes, tvit_error *error);

// The same for a file whose PLAN is not computed yet: its values are not checked, and the model can only be planned.
tvit_status tvit_load_unplanned(tvit_model *model, const void *file, size_t bytes, tvit_error *error);

const char *tvit_status_text(tvit_status status);

// The kernels that run this model in this build: the portable ones, or, in a build with TVIT_KERNELS_PIE, the PIE ones
// where the model has static scales.
const tvit_kernel_table *tvit_kernels_for(const tvit_model *model);

// Memory of one tensor in the arena, per-token multipliers included. In models with static scales the rows of int8 and
// int16 tensors, all but the logits, are rounded up to TVIT_BLOCK_TOKENS, whatever the build's layout.
size_t tvit_tensor_bytes(const tvit_model *model, uint32_t tensor);

// Scratch of one operator: as the kernels of this build want it, and as the plan reserves it. The plan is made for the
// PIE kernels where the model has static scales, for the portable ones otherwise. 0 for an operator that does not
// exist.
size_t tvit_operator_scratch_bytes(const tvit_model *model, uint32_t operator_index);
size_t tvit_planned_scratch_bytes(const tvit_model *model, uint32_t operator_index);

// The image may share bytes with the tensor that PATCH_EMBED writes, where nothing reads the image later and
//     image offset >= output offset + tvit_image_lead(model).
// The lead is the most that the output is ahead of the image, in bytes: over the blocks b of 16 tokens, the output's
// blocks 0 ... b less the image's rows of patches that are read completely when block b is gathered; rounded up to 16.
// 0xffffffff, nothing may overlap, where no operator qualifies and in models with per-token scales, whose kernels
// work in rows.
uint32_t tvit_image_lead(const tvit_model *model);

// The memory plan: liveness from the operator list; several orders of first fit, of which the one with the smallest
// arena is kept. Needs MODL, TENS and OPER only, so the packer calls it on a file whose PLAN is still zero.
// offsets: tensor_count entries; scratches: operator_count entries.
typedef struct {
    uint32_t arena_bytes, scratch_bytes; // as in tvit_plan_record
} tvit_plan_result;
tvit_status tvit_plan(const tvit_model *model, tvit_plan_result *result, uint32_t *offsets,
                      tvit_plan_scratch *scratches);

// The same for tvit_init_split(): one order of first fit, in which the first fast_bytes go to what has its bytes
// read most often, such as the inputs of linear operators, of which every output channel reads all.
tvit_status tvit_plan_split(const tvit_model *model, uint32_t fast_bytes, tvit_plan_result *result, uint32_t *offsets,
                            tvit_plan_scratch *scratches);

// The arena that this build needs: plan->arena_bytes, and behind it the most that an operator has there, namely its
// scratch where its kernel wants more than planned, and a copy of the image where the plan lets PATCH_EMBED overwrite
// it and the kernel works in rows.
size_t tvit_arena_bytes(const tvit_model *model);

// --- running -----------------------------------------------------------------------------------------------------

// What a team does: called once a part, at the same time on all cores.
typedef void (*tvit_team_work)(void *argument, const tvit_team *team);

// The cores of a machine. run() calls work(argument, team) on each of them, team.parts being `cores`, and returns when
// all have returned.
typedef struct {
    uint32_t cores; // 1 ... TVIT_MAX_CORES
    void (*run)(void *user, tvit_team_work work, void *argument);
    void *user;
} tvit_cores;

typedef struct tvit_context tvit_context;

// Called after each operator. Returning non-zero stops the run with TVIT_STOPPED.
typedef int (*tvit_observer)(void *user, const tvit_context *context, uint32_t operator_index);

struct tvit_context {
    const tvit_model *model;
    uint8_t *arena;
    size_t arena_bytes;
    uint8_t *fast;           // what lies in the arena's first fast_bytes as a whole lies here; NULL: in the arena, too
    size_t fast_bytes;       // 0 where there is none
    const tvit_cores *cores; // NULL: one core; set it between tvit_init and tvit_run
};

// arena: 16-byte aligned, at least tvit_arena_bytes(). Leaves cores NULL.
tvit_status tvit_init(tvit_context *context, const tvit_model *model, void *arena, size_t arena_bytes);

// For an arena in slow memory, the first bytes of which are in fast memory: a tensor or an operator's scratch that the
// plan puts into the first `fast_bytes` as a whole lies at the same offset from `fast`, all others in the arena. Any
// plan will do; that of tvit_plan_split() puts there what is read most. Both memories are 16-byte aligned and do not
// overlap; `arena` is as large as for tvit_init(). Results do not depend on where anything lies. Leaves cores NULL.
tvit_status tvit_init_split(tvit_context *context, const tvit_model *model, void *arena, size_t arena_bytes, void *fast,
                            size_t fast_bytes);

// Where a tensor's values begin, in the layout of tvit_kernels_for(model); NULL for a bad id. Tensor 0 is the image to
// fill before tvit_run, always row-major, as are the logits.
void *tvit_tensor_data(const tvit_context *context, uint32_t tensor);
// Per-token multipliers, `rows` u16; NULL where the tensor has none.
uint16_t *tvit_tensor_multipliers(const tvit_context *context, uint32_t tensor);

// Bytes of a tensor's values as row-major rows without padding: rows * columns * size of the dtype.
uint32_t tvit_tensor_value_bytes(const tvit_tensor *tensor);
// Copy bytes offset ... offset + bytes - 1 of that form, whatever the layout; they must lie within it.
void tvit_read_tensor(const tvit_context *context, uint32_t tensor, uint32_t offset, uint32_t bytes, void *out);

// The part of a tensor that an operator writes.
typedef struct {
    uint32_t tensor, row, rows, column, columns;
} tvit_region;
tvit_region tvit_operator_output(const tvit_model *model, uint32_t operator_index);

// Run the operators 0 .. last (inclusive; 0xffffffff for all). observer may be NULL. With several cores and kernels
// that share work each operator is one fork and join; the result does not depend on it.
tvit_status tvit_run(tvit_context *context, uint32_t last, tvit_observer observer, void *user);

#endif
