// SPDX-License-Identifier: Apache-2.0
// Shared by the files of the server, not by ports.
#ifndef TVIT_SERVER_INTERNAL_H
#define TVIT_SERVER_INTERNAL_H

#include "server.h"

#define TVIT_NO_INDEX 0xffffffffu

// Where to build the payload of a frame, TVIT_LINK_MAX_PAYLOAD bytes.
static inline uint8_t *tvit_payload(tvit_server *server) {
    return server->packet + TVIT_LINK_HEADER_BYTES;
}

// Send what lies in tvit_payload().
void tvit_send(tvit_server *server, uint8_t type, uint8_t session, uint16_t sequence, size_t bytes);

// Answer a request with what lies in tvit_payload(), or with an error.
void tvit_answer(tvit_server *server, const tvit_frame *request, size_t bytes);
void tvit_answer_error(tvit_server *server, const tvit_frame *request, uint32_t code);

void tvit_send_progress(tvit_server *server, uint16_t sequence);

// A frame whose session is that of the server, or a HELLO.
void tvit_dispatch(tvit_server *server, const tvit_frame *frame);

// model.c: the model in use. Both leave have_model and model_error telling the outcome.
void tvit_use_flash_model(tvit_server *server);
void tvit_use_ram_model(tvit_server *server, uint32_t bytes);
// The error a request that needs a model is answered with; 0 when there is one.
uint32_t tvit_model_missing(const tvit_server *server);

// memory.c
void tvit_paint_stack(tvit_server *server);
void tvit_paint_arena(tvit_server *server);
void tvit_handle_memory(tvit_server *server, const tvit_frame *frame, int repeated);

// regions.c
void tvit_handle_write(tvit_server *server, const tvit_frame *frame);
void tvit_handle_read(tvit_server *server, const tvit_frame *frame);
void tvit_handle_checksum(tvit_server *server, const tvit_frame *frame);
// CRC-32 of values, row by row, and then of the rows' multipliers where there are any; of the image.
uint32_t tvit_region_crc(const tvit_context *context, const tvit_region *region);
uint32_t tvit_image_crc(const tvit_context *context);

// info.c
void tvit_handle_info(tvit_server *server, const tvit_frame *frame);
void tvit_handle_model_info(tvit_server *server, const tvit_frame *frame);

// run.c
void tvit_handle_run(tvit_server *server, const tvit_frame *frame);

#endif
