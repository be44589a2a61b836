// SPDX-License-Identifier: Apache-2.0
// The link server as a function from bytes to bytes, for tests that drive it from Python or from a fuzzer.
#include "link_board.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

struct link_board {
    tvit_port port;
    tvit_server server;
    tvit_link_trace trace[TVIT_MAX_OPERATORS];
    const uint8_t *input;
    size_t input_bytes;
    uint8_t *output;
    size_t output_bytes, output_capacity;
    uint64_t ticks;
    uint32_t resets, runs, baud;
    int faulted; // the server is in tvit_server_fault, which only a restart leaves
    jmp_buf silence;
};

static size_t take(void *user, uint8_t *bytes, size_t capacity) {
    link_board *board = user;
    const size_t count = board->input_bytes < capacity ? board->input_bytes : capacity;
    if (!count && board->faulted) longjmp(board->silence, 1);
    if (!count) return 0;
    memcpy(bytes, board->input, count);
    board->input += count;
    board->input_bytes -= count;
    return count;
}

static void give(void *user, const uint8_t *bytes, size_t count) {
    link_board *board = user;
    if (board->output_bytes + count > board->output_capacity) {
        board->output_capacity = 2 * (board->output_bytes + count);
        board->output = realloc(board->output, board->output_capacity);
        if (!board->output) abort();
    }
    memcpy(board->output + board->output_bytes, bytes, count);
    board->output_bytes += count;
}

static uint64_t tick(void *user) {
    return ++((link_board *)user)->ticks;
}

static void reset(void *user) {
    link_board *board = user;
    board->resets++;
    board->baud = board->port.baud;
    board->port.boot_reason = "reset";
    if (board->faulted) longjmp(board->silence, 1);
    tvit_server_start(&board->server, &board->port);
}

static void alive(void *user) {
    ((link_board *)user)->runs++;
}

static void set_baud(void *user, uint32_t baud) {
    ((link_board *)user)->baud = baud;
}

static void *aligned(size_t bytes) {
    void *memory = bytes ? aligned_alloc(16, (bytes + 15) / 16 * 16) : NULL;
    if (bytes && !memory) abort();
    return memory;
}

link_board *link_board_new(const uint8_t *model, uint32_t model_bytes, uint32_t arena_bytes, uint32_t model_ram_bytes,
                           uint32_t window_bytes) {
    link_board *board = calloc(1, sizeof *board);
    if (!board) abort();
    void *flash = aligned(model_bytes);
    if (model_bytes) memcpy(flash, model, model_bytes);
    board->port = (tvit_port){
        .name = "test",
        .board = "test",
        .details = "key=value\n",
        .boot_reason = "power-on",
        .user = board,
        .read = take,
        .write = give,
        .counter = tick,
        .keep_alive = alive,
        .reset = reset,
        .counter_unit = TVIT_LINK_COUNTER_CYCLES,
        .counter_multiplier = 1,
        .counter_divisor = 1,
        .model = flash,
        .model_bytes = model_bytes,
        .model_exact = 1,
        .model_ram = aligned(model_ram_bytes),
        .model_ram_bytes = model_ram_bytes,
        .arena = aligned(arena_bytes),
        .arena_bytes = arena_bytes,
        .trace = board->trace,
        .trace_capacity = TVIT_MAX_OPERATORS,
        .window_bytes = window_bytes,
    };
    tvit_server_start(&board->server, &board->port);
    return board;
}

tvit_port *link_board_port(link_board *board) {
    return &board->port;
}

void link_board_restart(link_board *board) {
    tvit_server_start(&board->server, &board->port);
}

void link_board_offer_rates(link_board *board, uint32_t start, uint32_t most) {
    board->port.set_baud = set_baud;
    board->port.baud = board->baud = start;
    board->port.most_baud = most;
}
uint32_t link_board_baud(const link_board *board) {
    return board->baud;
}

void link_board_log(link_board *board, const char *text) {
    tvit_server_log(&board->server, text);
}

void link_board_free(link_board *board) {
    free((void *)(uintptr_t)board->port.model);
    free(board->port.model_ram);
    free(board->port.arena);
    free(board->output);
    free(board);
}

size_t link_board_feed(link_board *board, const uint8_t *bytes, size_t count) {
    board->input = bytes;
    board->input_bytes = count;
    while (tvit_server_poll(&board->server)) {
    }
    return board->output_bytes;
}

size_t link_board_fault(link_board *board, const uint8_t *bytes, size_t count) {
    const tvit_fault fault = {.cause = 28, .pc = 0x60001234, .address = 4, .text = "LoadProhibited"};
    board->input = bytes;
    board->input_bytes = count;
    board->faulted = 1;
    if (!setjmp(board->silence)) tvit_server_fault(&board->server, &fault);
    board->faulted = 0;
    tvit_server_start(&board->server, &board->port);
    return board->output_bytes;
}

void link_board_drain(link_board *board, uint8_t *bytes) {
    if (board->output_bytes) memcpy(bytes, board->output, board->output_bytes);
    board->output_bytes = 0;
}

uint32_t link_board_resets(const link_board *board) {
    return board->resets;
}
uint32_t link_board_operators(const link_board *board) {
    return board->runs;
}
size_t link_decoder_size(void) {
    return sizeof(tvit_frame_decoder);
}
