// SPDX-License-Identifier: Apache-2.0
// Validate a model file and point into it. Every offset and count is checked before it is used, in 64 bits where 32
// could wrap. The order of the checks is the Python reader's (host/tvhil/packing/reader.py), so both give the same
// code.
#include "../app/crc32.h"
#include "internal.h"

enum { MODL, TENS, OPER, PLAN, NAME, DATA, META, SECTIONS };

static const char tags[SECTIONS][5] = {"MODL", "TENS", "OPER", "PLAN", "NAME", "DATA", "META"};

#define MAX_SIDE (1u << 20)     // rows or columns of a tensor
#define MAX_ELEMENTS (1u << 28) // of a tensor

static int tag_index(const char tag[4]) {
    for (int i = 0; i < SECTIONS; i++)
        if (tag[0] == tags[i][0] && tag[1] == tags[i][1] && tag[2] == tags[i][2] && tag[3] == tags[i][3]) return i;
    return -1;
}

static tvit_status check_header(const tvit_header *header, size_t bytes, tvit_error *error) {
    if (bytes < sizeof *header) return tvit_refuse(error, TVIT_BAD_SIZE, "", TVIT_NO_INDEX, "too short for a header");
    if (header->magic != TVIT_MAGIC)
        return tvit_refuse(error, TVIT_BAD_MAGIC, "", TVIT_NO_INDEX, "this is no .tvit file");
    if (tvit_crc32(0, header, offsetof(tvit_header, header_crc)) != header->header_crc)
        return tvit_refuse(error, TVIT_BAD_CRC, "", 0, "the header's CRC-32 does not match");
    if (header->version != TVIT_VERSION)
        return tvit_refuse(error, TVIT_BAD_VERSION, "", TVIT_NO_INDEX, "another version of the format");
    if (header->header_bytes != sizeof *header || header->reserved[0] || header->reserved[1])
        return tvit_refuse(error, TVIT_BAD_SECTION, "", TVIT_NO_INDEX, "a header field is out of range");
    if (header->file_bytes != bytes || bytes % TVIT_ALIGN)
        return tvit_refuse(error, TVIT_BAD_SIZE, "", TVIT_NO_INDEX, "the file's size is not the announced one");
    uint32_t count = header->section_count;
    if (count < 5 || count > TVIT_MAX_SECTIONS || sizeof *header + count * sizeof(tvit_section) > bytes)
        return tvit_refuse(error, TVIT_BAD_SECTION, "", TVIT_NO_INDEX, "section count out of range");
    if (tvit_crc32(0, header + 1, count * sizeof(tvit_section)) != header->table_crc)
        return tvit_refuse(error, TVIT_BAD_CRC, "", 1, "the section table's CRC-32 does not match");
    return TVIT_OK;
}

// found[i]: the table entry of tags[i].
static tvit_status check_sections(const tvit_header *header, const tvit_section *found[SECTIONS], tvit_error *error) {
    const uint8_t *file = (const uint8_t *)header;
    const tvit_section *table = (const tvit_section *)(header + 1);
    uint32_t end = (uint32_t)(sizeof *header + header->section_count * sizeof *table);
    for (int i = 0; i < SECTIONS; i++)
        found[i] = NULL;
    for (uint32_t i = 0; i < header->section_count; i++) {
        const tvit_section *s = &table[i];
        int tag = tag_index(s->tag);
        if (tag < 0 || found[tag])
            return tvit_refuse(error, TVIT_BAD_SECTION, "", i, "the section is unknown or repeated");
        if (s->offset % TVIT_ALIGN || s->offset < end || s->offset > header->file_bytes ||
            s->bytes > header->file_bytes - s->offset || s->reserved[0] || s->reserved[1] || s->reserved[2])
            return tvit_refuse(error, TVIT_BAD_SECTION, tags[tag], TVIT_NO_INDEX, "the section is misplaced");
        if (tvit_crc32(0, file + s->offset, s->bytes) != s->crc)
            return tvit_refuse(error, TVIT_BAD_CRC, tags[tag], 2 + i, "the section's CRC-32 does not match");
        end = s->offset + s->bytes;
        found[tag] = s;
    }
    for (int i = 0; i < SECTIONS; i++)
        if (!found[i]) return tvit_refuse(error, TVIT_BAD_SECTION, tags[i], TVIT_NO_INDEX, "the section is missing");
    return TVIT_OK;
}

static tvit_status check_count(const tvit_section *s, uint32_t most, uint32_t record_bytes, tvit_error *error) {
    if (s->count >= 1 && s->count <= most && s->bytes == (uint64_t)s->count * record_bytes) return TVIT_OK;
    return tvit_refuse(error, TVIT_BAD_SECTION, tags[tag_index(s->tag)], TVIT_NO_INDEX,
                       "the number of records does not match the size");
}

static tvit_status check_info(const tvit_model *model, tvit_error *error) {
    const tvit_model_record *info = model->info;
    const char *reason = NULL;
    if (info->scale_mode > TVIT_SCALE_PER_TOKEN)
        reason = "unknown scale mode";
    else if (info->name[sizeof info->name - 1])
        reason = "the name is not terminated";
    else if (info->reserved0 || info->reserved1[0] || info->reserved1[1] || info->reserved1[2])
        reason = "a reserved field is not zero";
    return reason ? tvit_refuse(error, TVIT_BAD_MODEL, "MODL", TVIT_NO_INDEX, reason) : TVIT_OK;
}

static int name_is_bad(const tvit_model *model, uint32_t name) {
    uint32_t bytes = model->names_bytes;
    return bytes == 0 || model->names[0] || model->names[bytes - 1] || name >= bytes;
}

static tvit_status check_tensors(const tvit_model *model, tvit_error *error) {
    for (uint32_t i = 0; i < model->tensor_count; i++) {
        const tvit_tensor *t = &model->tensors[i];
        if (name_is_bad(model, t->name)) return tvit_refuse(error, TVIT_BAD_NAME, "TENS", i, "a name outside NAME");
        if (t->dtype > TVIT_I16 || t->flags > TVIT_TENSOR_PER_TOKEN)
            return tvit_refuse(error, TVIT_BAD_TENSOR, "TENS", i, "unknown type or flags");
        if (t->rows < 1 || t->rows > MAX_SIDE || t->columns < 1 || t->columns > MAX_SIDE ||
            (uint64_t)t->rows * t->columns > MAX_ELEMENTS)
            return tvit_refuse(error, TVIT_BAD_TENSOR, "TENS", i, "rows or columns out of range");
        if (t->flags && t->dtype != TVIT_I8)
            return tvit_refuse(error, TVIT_BAD_TENSOR, "TENS", i, "only int8 tensors have per-token scales");
    }
    return TVIT_OK;
}

// Records by themselves; validate.c looks at what they mean.
static tvit_status check_operator_records(const tvit_model *model, tvit_error *error) {
    static const uint8_t params[] = {[TVIT_OP_PATCH_EMBED] = 8,
                                     [TVIT_OP_LAYERNORM] = 9,
                                     [TVIT_OP_LINEAR] = 11,
                                     [TVIT_OP_ATTENTION] = 10,
                                     [TVIT_OP_MEAN_POOL] = 2};
    for (uint32_t i = 0; i < model->operator_count; i++) {
        const tvit_operator *op = &model->operators[i];
        if (name_is_bad(model, op->name)) return tvit_refuse(error, TVIT_BAD_NAME, "OPER", i, "a name outside NAME");
        if (op->kind < TVIT_OP_PATCH_EMBED || op->kind > TVIT_OP_MEAN_POOL)
            return tvit_refuse(error, TVIT_BAD_OPERATOR, "OPER", i, "unknown operator");
        if (op->flags & ~(TVIT_OP_ADD | TVIT_OP_TABLE) || (op->flags && op->kind != TVIT_OP_LINEAR))
            return tvit_refuse(error, TVIT_BAD_OPERATOR, "OPER", i, "unknown flags");
        uint32_t used = op->kind == TVIT_OP_ATTENTION ? 3 : 1;
        int bad = op->output >= model->tensor_count;
        for (uint32_t j = 0; j < 3; j++)
            bad |= j < used ? op->input[j] >= model->tensor_count : op->input[j] != TVIT_NO_TENSOR;
        if (bad) return tvit_refuse(error, TVIT_BAD_OPERATOR, "OPER", i, "a tensor that does not exist");
        for (uint32_t j = params[op->kind]; j < 12; j++)
            if (op->param.raw[j])
                return tvit_refuse(error, TVIT_BAD_PARAMETER, "OPER", i, "an unused parameter is not zero");
    }
    return TVIT_OK;
}

static int tensor_is(const tvit_tensor *t, uint32_t dtype, uint32_t rows, uint32_t columns) {
    return t->dtype == dtype && t->rows == rows && t->columns == columns;
}

static tvit_status check_geometry(const tvit_model *model, tvit_error *error) {
    const tvit_model_record *info = model->info;
    const char *reason = NULL;
    uint32_t size = info->patch_size;
    if (size == 0 || info->image_channels == 0) {
        reason = "a patch of no pixels";
    } else if (info->image_height % size || info->image_width % size) {
        reason = "the image is no whole number of patches";
    } else {
        uint32_t patches = info->image_height / size * (info->image_width / size);
        if (patches == 0 || info->tokens != patches + info->prefix_tokens)
            reason = "the tokens do not match the patches";
        else if (info->tokens > 2048 || info->embed_dim < 1 || info->embed_dim > 4096)
            reason = "more than 2048 tokens or a width above 4096";
        else if (info->stream >= model->tensor_count || info->logits >= model->tensor_count)
            reason = "the stream or the logits do not exist";
        else if (!tensor_is(&model->tensors[0], TVIT_U8, info->image_height,
                            (uint32_t)info->image_width * info->image_channels))
            reason = "tensor 0 is not the image";
        else if (!tensor_is(&model->tensors[info->stream], TVIT_I16, info->tokens, info->embed_dim))
            reason = "the stream's shape";
        else if (!tensor_is(&model->tensors[info->logits], TVIT_I16, 1, info->classes))
            reason = "the logits' shape";
    }
    return reason ? tvit_refuse(error, TVIT_BAD_MODEL, "MODL", TVIT_NO_INDEX, reason) : TVIT_OK;
}

static void point_into(tvit_model *model, const uint8_t *file, const tvit_section *const found[SECTIONS]) {
    model->file = file;
    model->header = (const tvit_header *)file;
    model->info = (const tvit_model_record *)(file + found[MODL]->offset);
    model->tensors = (const tvit_tensor *)(file + found[TENS]->offset);
    model->operators = (const tvit_operator *)(file + found[OPER]->offset);
    model->plan = (const tvit_plan_record *)(file + found[PLAN]->offset);
    model->tensor_offsets = (const uint32_t *)(file + found[PLAN]->offset + sizeof(tvit_plan_record));
    model->scratches = (const tvit_plan_scratch *)(model->tensor_offsets + found[TENS]->count);
    model->names = (const char *)(file + found[NAME]->offset);
    model->data = file + found[DATA]->offset;
    model->meta = (const char *)(file + found[META]->offset);
    model->tensor_count = found[TENS]->count;
    model->operator_count = found[OPER]->count;
    model->names_bytes = found[NAME]->bytes;
    model->data_bytes = found[DATA]->bytes;
    model->meta_bytes = found[META]->bytes;
}

tvit_status tvit_load_unplanned(tvit_model *model, const void *file, size_t bytes, tvit_error *error) {
    const tvit_section *found[SECTIONS];
    tvit_status status;
    tvit_refuse(error, TVIT_OK, "", TVIT_NO_INDEX, "");
    if (!model || !file) return tvit_refuse(error, TVIT_BAD_ARGUMENT, "", TVIT_NO_INDEX, "no file");
    if ((uintptr_t)file % TVIT_ALIGN)
        return tvit_refuse(error, TVIT_MISALIGNED, "", TVIT_NO_INDEX, "the file is not 16-byte aligned");
    if ((status = check_header(file, bytes, error))) return status;
    if ((status = check_sections(file, found, error))) return status;
    if ((status = check_count(found[MODL], 1, sizeof(tvit_model_record), error))) return status;
    point_into(model, file, found);
    if ((status = check_info(model, error))) return status;
    if ((status = check_count(found[TENS], TVIT_MAX_TENSORS, sizeof(tvit_tensor), error))) return status;
    if ((status = check_tensors(model, error))) return status;
    if ((status = check_count(found[OPER], TVIT_MAX_OPERATORS, sizeof(tvit_operator), error))) return status;
    if ((status = check_operator_records(model, error))) return status;
    if ((status = check_geometry(model, error))) return status;
    if ((status = tvit_validate_operators(model, error))) return status;
    if (found[PLAN]->count != 1 || found[PLAN]->bytes != sizeof(tvit_plan_record) +
                                                             model->tensor_count * sizeof(uint32_t) +
                                                             model->operator_count * sizeof(tvit_plan_scratch))
        return tvit_refuse(error, TVIT_BAD_SECTION, "PLAN", TVIT_NO_INDEX,
                           "its size does not match the tensors and operators");
    return TVIT_OK;
}

tvit_status tvit_load(tvit_model *model, const void *file, size_t bytes, tvit_error *error) {
    tvit_status status = tvit_load_unplanned(model, file, bytes, error);
    return status ? status : tvit_validate_plan(model, error);
}
