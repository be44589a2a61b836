// SPDX-License-Identifier: Apache-2.0
// The link server that all ports share (PROTOCOL.md). Static memory only: everything is in tvit_server.
#ifndef TVIT_SERVER_H
#define TVIT_SERVER_H

#include "framing.h"
#include "port.h"

typedef struct {
    uint32_t cause;       // as the machine numbers it: EXCCAUSE, signal number
    uint32_t core;
    uint64_t pc, address; // of the instruction, and what it accessed
    const char *text;     // "LoadProhibited"
} tvit_fault;

typedef struct {
    const tvit_port *port;
    tvit_frame_decoder decoder;
    uint8_t packet[TVIT_LINK_PACKET_BYTES(TVIT_LINK_MAX_PAYLOAD)]; // an answer being built
    uint8_t line[TVIT_LINK_FRAME_BYTES(TVIT_LINK_MAX_PAYLOAD)];    // and as it goes out
    uint8_t input[64];
    uint32_t input_at, input_bytes;

    uint8_t session; // 0: none
    uint32_t nonce;

    tvit_model model;
    tvit_error model_error;
    uint8_t have_model;
    uint32_t active_bytes; // of the model in use
    tvit_context context;
    uint32_t painted_bytes; // of the arena

    // The last run, kept so that a repeated RUN is answered without running again.
    uint8_t have_run, running, abandoned;
    uint16_t run_sequence;
    uint8_t run_answer[TVIT_LINK_RUN_ANSWER_BYTES];
    uint32_t run_error; // 0, or the error that the run was answered with
    uint32_t run_flags, progress_every, trace_first, trace_count;
    uint32_t operators_run;
    uint64_t operator_start, observed;
    tvit_frame pending; // a HELLO that arrived during a run
    uint8_t have_pending;
} tvit_server;

// Prepare, load the port's model, announce the board (BOOT).
void tvit_server_start(tvit_server *server, const tvit_port *port);

// Handle the bytes that have arrived. Returns 0 when there were none.
int tvit_server_poll(tvit_server *server);

// Start, then poll forever.
_Noreturn void tvit_server_run(tvit_server *server, const tvit_port *port);

// Say something to the host's log. Not for use inside interrupts.
void tvit_server_log(tvit_server *server, const char *text);

// For a fault handler: report the fault, and again to everything the host sends, until it sends RESET. Needs the port's
// read and write only; works with whatever state the server was interrupted in.
_Noreturn void tvit_server_fault(tvit_server *server, const tvit_fault *fault);

#endif
