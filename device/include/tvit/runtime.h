// SPDX-License-Identifier: Apache-2.0
// Load a model in place, run it in one arena. No allocation, no libc beyond memcpy/memset/memcmp/strlen.
#ifndef TVIT_RUNTIME_H
#define TVIT_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#include "tvit/format.h"

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
    TVIT_BAD_PLAN = 12,      // PLAN: outside the arena, overlap, or scratch too small for this build
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
    const uint32_t *tensor_offsets; // in the arena, one a tensor
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

// Memory of one tensor in the arena, per-token multipliers included.
size_t tvit_tensor_bytes(const tvit_tensor *tensor);

// Scratch of one operator: the largest over the operators is the plan's scratch. Asks the kernel's own *_buffer_size.
size_t tvit_operator_scratch_bytes(const tvit_model *model, uint32_t operator_index);

// The memory plan: liveness from the operator list, first fit by decreasing size. Needs MODL, TENS and OPER only, so
// the packer calls it on a file whose PLAN is still zero. offsets: tensor_count entries.
typedef struct {
    uint32_t arena_bytes, scratch_offset, scratch_bytes;
} tvit_plan_result;
tvit_status tvit_plan(const tvit_model *model, tvit_plan_result *result, uint32_t *offsets);

typedef struct tvit_context tvit_context;

// Called after each operator. Returning non-zero stops the run with TVIT_STOPPED.
typedef int (*tvit_observer)(void *user, const tvit_context *context, uint32_t operator_index);

struct tvit_context {
    const tvit_model *model;
    uint8_t *arena;
    size_t arena_bytes;
};

// arena: 16-byte aligned, at least plan->arena_bytes.
tvit_status tvit_init(tvit_context *context, const tvit_model *model, void *arena, size_t arena_bytes);

// Tensor values, `rows * columns` of its dtype; NULL for a bad id. Tensor 0 is the image to fill before tvit_run.
void *tvit_tensor_data(const tvit_context *context, uint32_t tensor);
// Per-token multipliers, `rows` u16; NULL where the tensor has none.
uint16_t *tvit_tensor_multipliers(const tvit_context *context, uint32_t tensor);

// Run the operators 0 .. last (inclusive; 0xffffffff for all). observer may be NULL.
tvit_status tvit_run(tvit_context *context, uint32_t last, tvit_observer observer, void *user);

#endif
