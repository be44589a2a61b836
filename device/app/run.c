// SPDX-License-Identifier: Apache-2.0
// RUN: one inference, with progress, counters and checksums of each operator's output.
#include "server_internal.h"

#include <string.h>

static uint32_t output_crc(const tvit_context *context, uint32_t operator_index) {
    const tvit_region output = tvit_operator_output(context->model, operator_index);
    return tvit_region_crc(context, &output);
}

static int observe(void *user, const tvit_context *context, uint32_t operator_index) {
    tvit_server *server = user;
    const tvit_port *port = server->port;
    const uint64_t end = port->counter(port->user);
    if (server->run_flags && operator_index >= server->trace_first && server->trace_count < port->trace_capacity) {
        tvit_link_trace *record = &port->trace[server->trace_count++];
        record->counter = server->run_flags & TVIT_LINK_RUN_TRACE_COUNTERS ? end - server->operator_start : 0;
        record->crc = server->run_flags & TVIT_LINK_RUN_TRACE_CRC ? output_crc(context, operator_index) : 0;
        record->operator_index = operator_index;
    }
    server->operators_run = operator_index + 1;
    if (port->keep_alive) port->keep_alive(port->user);
    if (server->progress_every && server->operators_run % server->progress_every == 0)
        tvit_send_progress(server, server->run_sequence);
    tvit_server_poll(server);
    server->operator_start = port->counter(port->user);
    server->observed += server->operator_start - end;
    return server->abandoned;
}

static void fail(tvit_server *server, const tvit_frame *frame, uint32_t code) {
    server->barrier_error = code;
    tvit_answer_error(server, frame, code);
}

void tvit_handle_run(tvit_server *server, const tvit_frame *request) {
    const tvit_port *port = server->port;
    const tvit_frame frame = *request; // its payload is gone once the run polls the line
    const uint8_t *in = frame.payload;
    const uint32_t flags = tvit_get_u16(in), last = tvit_get_u32(in + 4), image_crc = tvit_get_u32(in + 12);
    const uint32_t missing = tvit_model_missing(server);
    if (missing) {
        fail(server, &frame, missing);
        return;
    }
    if (flags & ~(uint32_t)(TVIT_LINK_RUN_TRACE_COUNTERS | TVIT_LINK_RUN_TRACE_CRC)) {
        fail(server, &frame, TVIT_LINK_E_ARGUMENT);
        return;
    }
    if (flags && !port->trace_capacity) {
        fail(server, &frame, TVIT_LINK_E_NOT_SUPPORTED);
        return;
    }
    if (last != TVIT_LINK_ALL && last >= server->model.operator_count) {
        fail(server, &frame, TVIT_LINK_E_RANGE);
        return;
    }
    server->run_flags = flags;
    server->progress_every = tvit_get_u16(in + 2);
    server->trace_first = tvit_get_u32(in + 8);
    server->trace_count = server->operators_run = 0;
    if (tvit_image_crc(&server->context) != image_crc) {
        fail(server, &frame, TVIT_LINK_E_IMAGE_CRC);
        return;
    }

    server->running = 1;
    server->run_sequence = frame.sequence;
    tvit_send_progress(server, frame.sequence);
    server->observed = 0;
    const uint64_t start = port->counter(port->user);
    server->operator_start = start;
    const tvit_status status = tvit_run(&server->context, last, observe, server);
    const uint64_t ticks = port->counter(port->user) - start - server->observed;
    server->running = 0;
    if (status != TVIT_OK) {
        fail(server, &frame, TVIT_LINK_E_RUNTIME + (uint32_t)status);
        return;
    }
    const uint16_t output = server->model.operators[server->operators_run - 1].output;
    uint8_t *p = server->barrier_answer;
    tvit_put_u64(p, ticks);
    tvit_put_u32(p + 8, server->operators_run);
    tvit_put_u32(p + 12, server->trace_count);
    tvit_put_u32(p + 16, output_crc(&server->context, server->operators_run - 1));
    tvit_put_u16(p + 20, output);
    tvit_put_u16(p + 22, (uint32_t)status);
    server->barrier_bytes = TVIT_LINK_RUN_ANSWER_BYTES;
    memcpy(tvit_payload(server), p, TVIT_LINK_RUN_ANSWER_BYTES);
    tvit_answer(server, &frame, TVIT_LINK_RUN_ANSWER_BYTES);
}
