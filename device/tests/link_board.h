// SPDX-License-Identifier: Apache-2.0
#ifndef LINK_BOARD_H
#define LINK_BOARD_H

#include "app/server.h"

typedef struct link_board link_board;

// A board with a copy of the model in its flash (0 bytes: none). The first output is its BOOT.
link_board *link_board_new(const uint8_t *model, uint32_t model_bytes, uint32_t arena_bytes, uint32_t model_ram_bytes,
                           uint32_t window_bytes);
void link_board_free(link_board *board);

// What the board offers, to be changed before a restart.
tvit_port *link_board_port(link_board *board);
void link_board_restart(link_board *board);
// A line with rates, from the next restart on; and the one it has now.
void link_board_offer_rates(link_board *board, uint32_t start, uint32_t most);
uint32_t link_board_baud(const link_board *board);
void link_board_log(link_board *board, const char *text);

// Handle bytes; returns how many bytes of output wait. link_board_drain fetches them all.
size_t link_board_feed(link_board *board, const uint8_t *bytes, size_t count);
// The same in the fault handler, which reports a fault first, until the bytes are used up or RESET ends it. The board
// restarts.
size_t link_board_fault(link_board *board, const uint8_t *bytes, size_t count);
void link_board_drain(link_board *board, uint8_t *bytes);

uint32_t link_board_resets(const link_board *board);
uint32_t link_board_operators(const link_board *board); // executed since the start
size_t link_decoder_size(void);

#endif
