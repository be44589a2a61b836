// SPDX-License-Identifier: Apache-2.0
// The link server that all ports share (PROTOCOL.md). Static memory only: everything is in tvit_server.
#ifndef TVIT_SERVER_H
#define TVIT_SERVER_H

#include "framing.h"
#include "port.h"

typedef struct {
    uint32_t cause; // as the machine numbers it: EXCCAUSE, signal number
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

    uint32_t baud, baud_before; // rate of the line; and the one to go back to while it is on trial, 0 when it is not
    uint32_t trial_bytes;       // received on trial

    uint8_t session; // 0: none
    uint32_t nonce;

    // The model in use, or why there is none.
    tvit_model model;
    tvit_error model_error;
    uint8_t have_model, model_source; // tvit_link_model_source
    uint32_t model_bytes;
    tvit_context context;
    uint32_t observed_arena; // bytes of the arena that are painted

    // The last barrier request (PROTOCOL.md, section 3) and how a repeat of it is answered.
    uint8_t have_barrier, barrier_repeatable;
    uint16_t barrier_number; // without attempt bits
    uint32_t barrier_error;  // 0: barrier_answer
    uint32_t barrier_bytes;
    uint8_t barrier_answer[TVIT_LINK_RUN_ANSWER_BYTES];

    // The run that is under way, or was the last.
    uint8_t running, abandoned;
    uint16_t run_sequence;
    uint32_t run_flags, progress_every, trace_first, trace_count, operators_run;
    uint64_t operator_start, observed; // ticks; observed is what the server itself took during the run
    // A HELLO that arrived during a run and is answered after it.
    uint8_t hello_session, hello_payload[TVIT_LINK_HELLO_BYTES];
    uint16_t hello_sequence;
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
