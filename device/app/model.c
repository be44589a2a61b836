// SPDX-License-Identifier: Apache-2.0
// Which model is in use.
#include "server_internal.h"

#include <string.h>

// In the arena where the model fits it; else in the external one, if there is one, but for its first bytes.
static tvit_status place(tvit_server *server) {
    const tvit_port *port = server->port;
    const tvit_status status = tvit_init(&server->context, &server->model, port->arena, port->arena_bytes);
    if (status != TVIT_ARENA_TOO_SMALL || !port->external_arena) return status;
    return tvit_init_split(&server->context, &server->model, port->external_arena, port->external_arena_bytes,
                           port->arena, port->arena_bytes);
}

static void use(tvit_server *server, const void *file, uint32_t bytes, tvit_link_model_source source) {
    memset(&server->model_error, 0, sizeof server->model_error);
    server->have_model = 0;
    server->model_bytes = 0;
    server->trace_count = 0;
    server->model_source = (uint8_t)source;
    server->model_error.index = TVIT_NO_INDEX;
    tvit_status status = tvit_load(&server->model, file, bytes, &server->model_error);
    if (status == TVIT_OK) {
        status = place(server);
        server->context.cores = server->port->cores;
        if (status != TVIT_OK) {
            memcpy(server->model_error.section, "PLAN", 5);
            server->model_error.index = TVIT_NO_INDEX;
            server->model_error.reason = NULL;
        }
    }
    server->model_error.status = status;
    if (status != TVIT_OK) return;
    server->have_model = 1;
    server->model_bytes = bytes;
    tvit_paint_arena(server);
}

void tvit_use_ram_model(tvit_server *server, uint32_t bytes) {
    use(server, server->port->model_ram, bytes, TVIT_LINK_MODEL_RAM);
}

void tvit_use_flash_model(tvit_server *server) {
    const tvit_port *port = server->port;
    const uint8_t *file = port->model;
    uint32_t bytes = port->model_bytes;
    server->have_model = 0;
    server->model_source = TVIT_LINK_MODEL_FLASH;
    memset(&server->model_error, 0, sizeof server->model_error);
    if (!file || bytes < sizeof(tvit_header)) {
        if (file && port->model_exact) use(server, file, bytes, TVIT_LINK_MODEL_FLASH); // a short file is told as such
        return;
    }
    if (!port->model_exact) {
        const uint32_t first = tvit_get_u32(file);
        if (first == 0 || first == 0xffffffffu) return; // never written, or erased
        const uint32_t told = tvit_get_u32(file + offsetof(tvit_header, file_bytes));
        if (first == TVIT_MAGIC && told < bytes) bytes = told;
    }
    use(server, file, bytes, TVIT_LINK_MODEL_FLASH);
}

uint32_t tvit_model_missing(const tvit_server *server) {
    if (server->have_model) return 0;
    if (server->model_error.status == TVIT_OK) return TVIT_LINK_E_NO_MODEL;
    return TVIT_LINK_E_RUNTIME + (uint32_t)server->model_error.status;
}
