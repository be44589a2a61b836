// SPDX-License-Identifier: Apache-2.0
// Frames in, frames out: session, barriers and dispatch. What each request does is in the other files of this folder.
#include "server_internal.h"

#include <string.h>

static void put_text(uint8_t *payload, size_t *at, const char *text) {
    while (text && *text && *at < TVIT_LINK_MAX_PAYLOAD)
        payload[(*at)++] = (uint8_t)*text++;
}

void tvit_send(tvit_server *server, uint8_t type, uint8_t session, uint16_t sequence, size_t bytes) {
    const size_t length = tvit_frame_encode(server->packet, type, session, sequence, bytes, server->line);
    server->port->write(server->port->user, server->line, length);
}

void tvit_answer(tvit_server *server, const tvit_frame *request, size_t bytes) {
    tvit_send(server, (uint8_t)(request->type | TVIT_LINK_ANSWER), request->session, request->sequence, bytes);
}

void tvit_answer_error(tvit_server *server, const tvit_frame *request, uint32_t code) {
    static const char *const texts[] = {
        [TVIT_LINK_E_VERSION] = "another version of the protocol",
        [TVIT_LINK_E_SESSION] = "no such session",
        [TVIT_LINK_E_TYPE] = "unknown request",
        [TVIT_LINK_E_LENGTH] = "wrong length of the request",
        [TVIT_LINK_E_ARGUMENT] = "unknown region, flag or kind",
        [TVIT_LINK_E_RANGE] = "outside the region",
        [TVIT_LINK_E_NO_MODEL] = "no model on the board",
        [TVIT_LINK_E_NOT_SUPPORTED] = "not offered by this board",
        [TVIT_LINK_E_IMAGE_CRC] = "the arena does not hold the image to run",
        [TVIT_LINK_E_BUSY] = "a run is under way",
        [TVIT_LINK_E_STALE] = "late duplicate",
    };
    uint8_t *p = tvit_payload(server);
    uint32_t index = TVIT_NO_INDEX;
    const char *text;
    memset(p, 0, TVIT_LINK_ERROR_BYTES);
    if (code >= TVIT_LINK_E_RUNTIME) {
        const tvit_status status = (tvit_status)(code - TVIT_LINK_E_RUNTIME);
        text = tvit_status_text(status);
        if (server->model_error.status == status) {
            index = server->model_error.index;
            memcpy(p + 4, server->model_error.section, 4);
            if (server->model_error.reason) text = server->model_error.reason;
        }
    } else {
        text = texts[code];
        if (code == TVIT_LINK_E_VERSION) index = TVIT_LINK_VERSION;
    }
    tvit_put_u16(p, code);
    tvit_put_u32(p + 8, index);
    size_t at = TVIT_LINK_ERROR_BYTES;
    put_text(p, &at, text);
    tvit_send(server, TVIT_LINK_ERROR, request->session, request->sequence, at);
}

void tvit_send_progress(tvit_server *server, uint16_t sequence) {
    uint8_t *p = tvit_payload(server);
    tvit_put_u32(p, server->operators_run);
    tvit_put_u32(p + 4, server->model.operator_count);
    tvit_send(server, TVIT_LINK_PROGRESS, server->session, sequence, TVIT_LINK_PROGRESS_BYTES);
}

static void handle_hello(tvit_server *server, const tvit_frame *frame) {
    const uint8_t *in = frame->payload;
    if (frame->bytes < TVIT_LINK_HELLO_BYTES) {
        tvit_answer_error(server, frame, TVIT_LINK_E_LENGTH);
        return;
    }
    if (tvit_get_u32(in) != TVIT_LINK_MAGIC || frame->session == 0) {
        tvit_answer_error(server, frame, TVIT_LINK_E_ARGUMENT);
        return;
    }
    if (tvit_get_u16(in + 4) != TVIT_LINK_VERSION) {
        tvit_answer_error(server, frame, TVIT_LINK_E_VERSION);
        return;
    }
    const uint32_t nonce = tvit_get_u32(in + 8);
    if (frame->session != server->session || nonce != server->nonce) {
        if (server->running) { // answered when the run has ended
            server->abandoned = 1;
            server->hello_session = frame->session;
            server->hello_sequence = frame->sequence;
            memcpy(server->hello_payload, in, TVIT_LINK_HELLO_BYTES);
            return;
        }
        server->session = frame->session;
        server->nonce = nonce;
        server->have_barrier = 0;
    }
    const tvit_port *port = server->port;
    uint8_t *p = tvit_payload(server);
    tvit_put_u32(p, TVIT_LINK_MAGIC);
    tvit_put_u16(p + 4, TVIT_LINK_VERSION);
    tvit_put_u16(p + 6, TVIT_VERSION);
    tvit_put_u32(p + 8, nonce);
    tvit_put_u32(p + 12,
                 (port->model_ram_bytes ? TVIT_LINK_CAP_MODEL_RAM : 0) | (port->reset ? TVIT_LINK_CAP_RESET : 0) |
                     (port->trace_capacity ? TVIT_LINK_CAP_TRACE : 0) |
                     (port->test_faults ? TVIT_LINK_CAP_TEST_FAULT : 0) | (port->set_baud ? TVIT_LINK_CAP_BAUD : 0));
    tvit_put_u32(p + 16, TVIT_LINK_MAX_PAYLOAD);
    tvit_put_u32(p + 20, port->window_bytes);
    tvit_put_u32(p + 24, 0);
    tvit_answer(server, frame, TVIT_LINK_HELLO_ANSWER_BYTES);
}

static void set_barrier(tvit_server *server, const tvit_frame *frame) {
    server->have_barrier = server->barrier_repeatable = 1;
    server->barrier_number = frame->sequence & TVIT_LINK_NUMBER_MASK;
    server->barrier_error = 0;
    server->barrier_bytes = 0;
}

static void handle_model_load(tvit_server *server, const tvit_frame *frame, int repeated) {
    const uint32_t source = tvit_get_u32(frame->payload), bytes = tvit_get_u32(frame->payload + 4);
    if (source > TVIT_LINK_MODEL_RAM) {
        tvit_answer_error(server, frame, TVIT_LINK_E_ARGUMENT);
        return;
    }
    if (source == TVIT_LINK_MODEL_RAM && server->port->model_ram_bytes == 0) {
        tvit_answer_error(server, frame, TVIT_LINK_E_NOT_SUPPORTED);
        return;
    }
    if (source == TVIT_LINK_MODEL_RAM && bytes > server->port->model_ram_bytes) {
        tvit_answer_error(server, frame, TVIT_LINK_E_RANGE);
        return;
    }
    if (!repeated) {
        set_barrier(server, frame);
        if (source == TVIT_LINK_MODEL_RAM)
            tvit_use_ram_model(server, bytes);
        else
            tvit_use_flash_model(server);
    }
    const uint32_t missing = tvit_model_missing(server);
    if (missing)
        tvit_answer_error(server, frame, missing);
    else
        tvit_answer(server, frame, 0);
}

static void handle_reset(tvit_server *server, const tvit_frame *frame) {
    if (tvit_get_u32(frame->payload) != TVIT_LINK_RESET_KEY) {
        tvit_answer_error(server, frame, TVIT_LINK_E_ARGUMENT);
    } else if (!server->port->reset) {
        tvit_answer_error(server, frame, TVIT_LINK_E_NOT_SUPPORTED);
    } else {
        tvit_answer(server, frame, 0);
        server->port->reset(server->port->user);
    }
}

static void handle_test_fault(tvit_server *server, const tvit_frame *frame) {
    const uint32_t kind = tvit_get_u32(frame->payload);
    if (!server->port->test_faults) {
        tvit_answer_error(server, frame, TVIT_LINK_E_NOT_SUPPORTED);
    } else if (kind == TVIT_LINK_TEST_INVALID_LOAD) {
        tvit_answer(server, frame, 0);
        (void)*(volatile const uint32_t *)server->port->invalid_address;
    } else if (kind == TVIT_LINK_TEST_HANG) {
        tvit_answer(server, frame, 0);
        for (volatile uint32_t stay = 1; stay;) {
        }
    } else {
        tvit_answer_error(server, frame, TVIT_LINK_E_ARGUMENT);
    }
}

// A rate is on trial until the host, which has heard an answer at it, asks for it once more (PROTOCOL.md, section 7).
static void handle_set_baud(tvit_server *server, const tvit_frame *frame) {
    enum { SLOWEST = 9600 };
    const tvit_port *port = server->port;
    const uint32_t baud = tvit_get_u32(frame->payload);
    if (!port->set_baud) {
        tvit_answer_error(server, frame, TVIT_LINK_E_NOT_SUPPORTED);
    } else if (baud < SLOWEST || baud > port->most_baud) {
        tvit_answer_error(server, frame, TVIT_LINK_E_ARGUMENT);
    } else if (baud == server->baud) {
        server->baud_before = 0;
        tvit_answer(server, frame, 0);
    } else {
        tvit_answer(server, frame, 0);
        if (!server->baud_before) server->baud_before = server->baud;
        server->baud = baud;
        server->trial_bytes = 0;
        port->set_baud(port->user, baud);
    }
}

static void count_trial(tvit_server *server) {
    if (!server->baud_before) return;
    server->trial_bytes += server->input_bytes;
    if (server->trial_bytes <= TVIT_LINK_BAUD_TRIAL) return;
    server->baud = server->baud_before;
    server->baud_before = 0;
    server->port->set_baud(server->port->user, server->baud);
    memset(&server->decoder, 0, sizeof server->decoder);
    server->input_at = server->input_bytes; // it was noise
}

// Length of a request's payload: at least `least`, at most `most`. Type 0 and types without an entry are unknown.
static const struct {
    uint16_t least, most;
} lengths[] = {
    [TVIT_LINK_HELLO] = {0, TVIT_LINK_MAX_PAYLOAD},
    [TVIT_LINK_INFO] = {0, 0},
    [TVIT_LINK_MODEL_INFO] = {0, 0},
    [TVIT_LINK_MEMORY] = {4, 4},
    [TVIT_LINK_WRITE] = {TVIT_LINK_WRITE_BYTES, TVIT_LINK_MAX_PAYLOAD},
    [TVIT_LINK_READ] = {TVIT_LINK_READ_BYTES, TVIT_LINK_READ_BYTES},
    [TVIT_LINK_CHECKSUM] = {TVIT_LINK_READ_BYTES, TVIT_LINK_READ_BYTES},
    [TVIT_LINK_RUN] = {TVIT_LINK_RUN_BYTES, TVIT_LINK_RUN_BYTES},
    [TVIT_LINK_ECHO] = {0, TVIT_LINK_MAX_PAYLOAD},
    [TVIT_LINK_MODEL_LOAD] = {8, 8},
    [TVIT_LINK_RESET] = {4, 4},
    [TVIT_LINK_TEST_FAULT] = {4, 4},
    [TVIT_LINK_SET_BAUD] = {4, 4},
};

// Answers for the request where that is all there is to do: a late duplicate, or a barrier that has been done.
static int answered_by_barrier(tvit_server *server, const tvit_frame *frame, int *repeated) {
    *repeated = 0;
    if (!server->have_barrier) return 0;
    const uint16_t number = frame->sequence & TVIT_LINK_NUMBER_MASK;
    const int16_t age = (int16_t)(uint16_t)(number - server->barrier_number); // 16 a request
    if (age > 0x4000) { // before the numbers wrap around, forget the barrier, but not what is late
        server->barrier_number = (uint16_t)(number - 0x2000u);
        server->barrier_repeatable = 0;
        return 0;
    }
    const int repaint = frame->type == TVIT_LINK_MEMORY && tvit_get_u32(frame->payload) & TVIT_LINK_MEMORY_REPAINT;
    const int barrier = frame->type == TVIT_LINK_RUN || frame->type == TVIT_LINK_MODEL_LOAD || repaint;
    if (age > 0 || (!barrier && frame->type != TVIT_LINK_WRITE)) return 0;
    if (age < 0 || !barrier || !server->barrier_repeatable) {
        tvit_answer_error(server, frame, TVIT_LINK_E_STALE);
        return 1;
    }
    *repeated = 1;
    if (frame->type != TVIT_LINK_RUN) return 0;
    if (server->running) {
        tvit_send_progress(server, frame->sequence);
    } else if (server->barrier_error) {
        tvit_answer_error(server, frame, server->barrier_error);
    } else {
        memcpy(tvit_payload(server), server->barrier_answer, server->barrier_bytes);
        tvit_answer(server, frame, server->barrier_bytes);
    }
    return 1;
}

void tvit_dispatch(tvit_server *server, const tvit_frame *frame) {
    if (frame->type >= TVIT_LINK_ERROR) return; // our own words, echoed
    if (frame->type == 0 || frame->type >= sizeof lengths / sizeof lengths[0]) {
        tvit_answer_error(server, frame, TVIT_LINK_E_TYPE);
        return;
    }
    if (frame->type == TVIT_LINK_HELLO) {
        handle_hello(server, frame);
        return;
    }
    if (server->session == 0 || frame->session != server->session) {
        tvit_answer_error(server, frame, TVIT_LINK_E_SESSION);
        return;
    }
    if (frame->bytes < lengths[frame->type].least || frame->bytes > lengths[frame->type].most) {
        tvit_answer_error(server, frame, TVIT_LINK_E_LENGTH);
        return;
    }
    int repeated;
    if (answered_by_barrier(server, frame, &repeated)) return;
    if (server->running) {
        tvit_answer_error(server, frame, TVIT_LINK_E_BUSY);
        return;
    }
    switch ((tvit_link_request)frame->type) {
    case TVIT_LINK_HELLO:
        break; // above
    case TVIT_LINK_INFO:
        tvit_handle_info(server, frame);
        break;
    case TVIT_LINK_MODEL_INFO:
        tvit_handle_model_info(server, frame);
        break;
    case TVIT_LINK_MEMORY:
        if (tvit_get_u32(frame->payload) & TVIT_LINK_MEMORY_REPAINT && !repeated) set_barrier(server, frame);
        tvit_handle_memory(server, frame, repeated);
        break;
    case TVIT_LINK_WRITE:
        tvit_handle_write(server, frame);
        break;
    case TVIT_LINK_READ:
        tvit_handle_read(server, frame);
        break;
    case TVIT_LINK_CHECKSUM:
        tvit_handle_checksum(server, frame);
        break;
    case TVIT_LINK_RUN:
        set_barrier(server, frame);
        tvit_handle_run(server, frame);
        break;
    case TVIT_LINK_ECHO:
        memcpy(tvit_payload(server), frame->payload, frame->bytes);
        tvit_answer(server, frame, frame->bytes);
        break;
    case TVIT_LINK_MODEL_LOAD:
        handle_model_load(server, frame, repeated);
        break;
    case TVIT_LINK_RESET:
        handle_reset(server, frame);
        break;
    case TVIT_LINK_TEST_FAULT:
        handle_test_fault(server, frame);
        break;
    case TVIT_LINK_SET_BAUD:
        handle_set_baud(server, frame);
        break;
    }
}

void tvit_server_start(tvit_server *server, const tvit_port *port) {
    memset(server, 0, sizeof *server);
    server->port = port;
    server->baud = port->baud;
    tvit_paint_stack(server);
    tvit_use_flash_model(server);
    uint8_t *p = tvit_payload(server);
    tvit_put_u16(p, TVIT_LINK_VERSION);
    tvit_put_u16(p + 2, TVIT_VERSION);
    size_t at = TVIT_LINK_BOOT_BYTES;
    put_text(p, &at, port->boot_reason);
    tvit_send(server, TVIT_LINK_BOOT, 0, 0, at);
}

int tvit_server_poll(tvit_server *server) {
    const tvit_port *port = server->port;
    int any = 0;
    while (!server->abandoned) {
        if (server->input_at == server->input_bytes) {
            server->input_at = 0;
            server->input_bytes = (uint32_t)port->read(port->user, server->input, sizeof server->input);
            if (server->input_bytes == 0) break;
            count_trial(server);
            if (server->input_at == server->input_bytes) continue;
        }
        any = 1;
        tvit_frame frame;
        const tvit_frame_status status = tvit_frame_decode(&server->decoder, server->input[server->input_at++], &frame);
        if (status == TVIT_FRAME_GOOD) {
            tvit_dispatch(server, &frame);
        } else if (status == TVIT_FRAME_BAD) {
            tvit_send(server, TVIT_LINK_NAK, server->session, 0, 0);
        }
        if (server->abandoned && !server->running) {
            const tvit_frame hello = {TVIT_LINK_HELLO, server->hello_session, server->hello_sequence,
                                      TVIT_LINK_HELLO_BYTES, server->hello_payload};
            server->abandoned = 0;
            tvit_dispatch(server, &hello);
        }
    }
    return any;
}

void tvit_server_run(tvit_server *server, const tvit_port *port) {
    tvit_server_start(server, port);
    for (;;) {
        if (!tvit_server_poll(server) && port->idle) port->idle(port->user);
    }
}

void tvit_server_log(tvit_server *server, const char *text) {
    size_t at = 0;
    put_text(tvit_payload(server), &at, text);
    tvit_send(server, TVIT_LINK_LOG, server->session, 0, at);
}

static void send_fault(tvit_server *server, const tvit_fault *fault, uint16_t sequence) {
    uint8_t *p = tvit_payload(server);
    tvit_put_u32(p, fault->cause);
    tvit_put_u32(p + 4, fault->core);
    tvit_put_u64(p + 8, fault->pc);
    tvit_put_u64(p + 16, fault->address);
    tvit_put_u32(p + 24, server->running ? server->operators_run : TVIT_NO_INDEX);
    tvit_put_u32(p + 28, 0);
    size_t at = TVIT_LINK_FAULT_BYTES;
    put_text(p, &at, fault->text);
    tvit_send(server, TVIT_LINK_FAULT, server->session, sequence, at);
}

void tvit_server_fault(tvit_server *server, const tvit_fault *fault) {
    const tvit_port *port = server->port;
    tvit_frame frame;
    memset(&server->decoder, 0, sizeof server->decoder);
    send_fault(server, fault, 0);
    for (;;) {
        server->input_at = 0;
        server->input_bytes = (uint32_t)port->read(port->user, server->input, sizeof server->input);
        for (; server->input_at < server->input_bytes; server->input_at++) {
            const tvit_frame_status status =
                tvit_frame_decode(&server->decoder, server->input[server->input_at], &frame);
            if (status == TVIT_FRAME_NONE) continue;
            if (status == TVIT_FRAME_GOOD && frame.type == TVIT_LINK_RESET && frame.bytes == 4 && port->reset &&
                tvit_get_u32(frame.payload) == TVIT_LINK_RESET_KEY) {
                tvit_answer(server, &frame, 0);
                port->reset(port->user);
            }
            send_fault(server, fault, status == TVIT_FRAME_GOOD ? frame.sequence : 0);
        }
    }
}
