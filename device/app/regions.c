// SPDX-License-Identifier: Apache-2.0
// READ, WRITE and CHECKSUM.
#include "server_internal.h"

#include <string.h>

#include "crc32.h"

enum { CRC_PART = 128 };
#define NO_TENSOR 0xffffffffu

typedef struct {
    uint8_t *data;
    uint32_t bytes;
    uint32_t tensor; // whose values these are
} span;

// Copy bytes of a region; values of a tensor come as rows, whatever the layout in the arena.
static void copy(const tvit_server *server, const span *from, uint32_t offset, uint32_t bytes, uint8_t *out) {
    if (from->tensor != NO_TENSOR)
        tvit_read_tensor(&server->context, from->tensor, offset, bytes, out);
    else if (bytes)
        memcpy(out, from->data + offset, bytes);
}

static uint32_t crc_of_values(const tvit_context *context, uint32_t crc, uint32_t tensor, uint32_t offset,
                              uint32_t bytes) {
    uint8_t part[CRC_PART];
    for (uint32_t count; bytes; offset += count, bytes -= count) {
        count = bytes < sizeof part ? bytes : (uint32_t)sizeof part;
        tvit_read_tensor(context, tensor, offset, count, part);
        crc = tvit_crc32(crc, part, count);
    }
    return crc;
}

uint32_t tvit_region_crc(const tvit_context *context, const tvit_region *region) {
    const tvit_tensor *t = &context->model->tensors[region->tensor];
    const uint16_t *multipliers = tvit_tensor_multipliers(context, region->tensor);
    const uint32_t line = tvit_tensor_value_bytes(t) / t->rows, element = line / t->columns;
    const uint32_t first = region->column * element, bytes = region->columns * element;
    uint32_t crc = 0;
    if (region->columns == t->columns)
        crc = crc_of_values(context, crc, region->tensor, region->row * line, region->rows * line);
    else
        for (uint32_t row = region->row; row < region->row + region->rows; row++)
            crc = crc_of_values(context, crc, region->tensor, row * line + first, bytes);
    return multipliers ? tvit_crc32(crc, multipliers + region->row, region->rows * 2u) : crc;
}

uint32_t tvit_image_crc(const tvit_context *context) {
    return tvit_crc32(0, tvit_tensor_data(context, 0), tvit_tensor_value_bytes(&context->model->tensors[0]));
}

// The memory of a region, or an error.
static uint32_t find(tvit_server *server, uint8_t region, uint16_t id, span *found) {
    const tvit_port *port = server->port;
    const int tensor = region == TVIT_LINK_REGION_TENSOR || region == TVIT_LINK_REGION_MULTIPLIERS;
    if (!tensor && id != 0) return TVIT_LINK_E_RANGE;
    if (tensor || region == TVIT_LINK_REGION_MODEL) {
        const uint32_t missing = tvit_model_missing(server);
        if (missing) return missing;
    }
    switch (region) {
    case TVIT_LINK_REGION_TENSOR:
    case TVIT_LINK_REGION_MULTIPLIERS:
        if (id >= server->model.tensor_count) return TVIT_LINK_E_RANGE;
        if (region == TVIT_LINK_REGION_TENSOR) {
            found->data = tvit_tensor_data(&server->context, id);
            found->bytes = tvit_tensor_value_bytes(&server->model.tensors[id]);
            found->tensor = id;
        } else {
            found->data = (uint8_t *)tvit_tensor_multipliers(&server->context, id);
            found->bytes = found->data ? server->model.tensors[id].rows * 2u : 0;
        }
        return 0;
    case TVIT_LINK_REGION_TRACE:
        if (!port->trace_capacity) return TVIT_LINK_E_NOT_SUPPORTED;
        found->data = (uint8_t *)port->trace;
        found->bytes = server->trace_count * TVIT_LINK_TRACE_BYTES;
        return 0;
    case TVIT_LINK_REGION_MODEL:
        found->data = (uint8_t *)(uintptr_t)server->model.file; // read only: WRITE refuses this region
        found->bytes = server->model_bytes;
        return 0;
    case TVIT_LINK_REGION_MODEL_RAM:
        if (!port->model_ram_bytes) return TVIT_LINK_E_NOT_SUPPORTED;
        found->data = port->model_ram;
        found->bytes = port->model_ram_bytes;
        return 0;
    default:
        return TVIT_LINK_E_ARGUMENT;
    }
}

void tvit_handle_write(tvit_server *server, const tvit_frame *frame) {
    const uint8_t region = frame->payload[0];
    const uint16_t id = tvit_get_u16(frame->payload + 2);
    const uint32_t offset = tvit_get_u32(frame->payload + 4);
    const uint32_t bytes = frame->bytes - TVIT_LINK_WRITE_BYTES;
    span to = {NULL, 0, NO_TENSOR};
    uint32_t error = find(server, region, id, &to);
    if (!error && region != TVIT_LINK_REGION_MODEL_RAM && (region != TVIT_LINK_REGION_TENSOR || id != 0))
        error = TVIT_LINK_E_ARGUMENT;
    if (!error && (offset > to.bytes || bytes > to.bytes - offset)) error = TVIT_LINK_E_RANGE;
    if (error) {
        tvit_answer_error(server, frame, error);
        return;
    }
    if (region == TVIT_LINK_REGION_MODEL_RAM && server->model_source == TVIT_LINK_MODEL_RAM) {
        server->have_model = 0;
        server->model_error.status = TVIT_OK;
    }
    memcpy(to.data + offset, frame->payload + TVIT_LINK_WRITE_BYTES, bytes);
    tvit_answer(server, frame, 0);
}

void tvit_handle_read(tvit_server *server, const tvit_frame *frame) {
    const uint32_t offset = tvit_get_u32(frame->payload + 4), bytes = tvit_get_u32(frame->payload + 8);
    span from = {NULL, 0, NO_TENSOR};
    uint32_t error = find(server, frame->payload[0], tvit_get_u16(frame->payload + 2), &from);
    if (!error && (offset > from.bytes || bytes > from.bytes - offset || bytes > TVIT_LINK_MAX_PAYLOAD))
        error = TVIT_LINK_E_RANGE;
    if (error) {
        tvit_answer_error(server, frame, error);
        return;
    }
    copy(server, &from, offset, bytes, tvit_payload(server));
    tvit_answer(server, frame, bytes);
}

void tvit_handle_checksum(tvit_server *server, const tvit_frame *frame) {
    const uint32_t offset = tvit_get_u32(frame->payload + 4);
    uint32_t bytes = tvit_get_u32(frame->payload + 8);
    span from = {NULL, 0, NO_TENSOR};
    uint32_t error = find(server, frame->payload[0], tvit_get_u16(frame->payload + 2), &from);
    if (!error && bytes == TVIT_LINK_ALL && offset <= from.bytes) bytes = from.bytes - offset;
    if (!error && (offset > from.bytes || bytes > from.bytes - offset)) error = TVIT_LINK_E_RANGE;
    if (error) {
        tvit_answer_error(server, frame, error);
        return;
    }
    uint32_t crc = 0;
    if (from.tensor != NO_TENSOR)
        crc = crc_of_values(&server->context, 0, from.tensor, offset, bytes);
    else if (bytes)
        crc = tvit_crc32(0, from.data + offset, bytes);
    uint8_t *p = tvit_payload(server);
    tvit_put_u32(p, crc);
    tvit_put_u32(p + 4, bytes);
    tvit_put_u32(p + 8, from.bytes);
    tvit_answer(server, frame, TVIT_LINK_CHECKSUM_ANSWER_BYTES);
}
