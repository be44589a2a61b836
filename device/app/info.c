// SPDX-License-Identifier: Apache-2.0
// INFO and MODEL_INFO.
#include "server_internal.h"

#include <string.h>

#ifndef TVIT_FIRMWARE_VERSION
#define TVIT_FIRMWARE_VERSION "0.1.0"
#endif
#ifndef TVIT_BUILD_ID // hash of the sources, given by the build
#define TVIT_BUILD_ID "unknown"
#endif

// Append a zero-terminated string, cut where the payload ends.
static void put_string(uint8_t *payload, size_t *at, const char *text) {
    while (text && *text && *at + 1 < TVIT_LINK_MAX_PAYLOAD)
        payload[(*at)++] = (uint8_t)*text++;
    if (*at < TVIT_LINK_MAX_PAYLOAD) payload[(*at)++] = 0;
}

void tvit_handle_info(tvit_server *server, const tvit_frame *frame) {
    enum { MEMORY_RECORD = 12, MOST_MEMORIES = 8 };
    _Static_assert(TVIT_LINK_INFO_BYTES + MEMORY_RECORD * MOST_MEMORIES <= TVIT_LINK_MIN_PAYLOAD, "records fit");
    const tvit_port *port = server->port;
    const uint32_t memories = port->memory_count < MOST_MEMORIES ? port->memory_count : MOST_MEMORIES;
    const uint32_t missing = tvit_model_missing(server);
    uint8_t *p = tvit_payload(server);
    tvit_put_u16(p, TVIT_VERSION);
    tvit_put_u16(p + 2, (uint32_t)port->counter_unit);
    tvit_put_u32(p + 4, port->clock_hz);
    tvit_put_u32(p + 8, port->counter_multiplier);
    tvit_put_u32(p + 12, port->counter_divisor);
    tvit_put_u32(p + 16, port->arena_bytes);
    tvit_put_u32(p + 20, port->model ? port->model_bytes : 0);
    tvit_put_u32(p + 24, port->model_ram_bytes);
    tvit_put_u32(p + 28, port->trace_capacity);
    tvit_put_u16(p + 32, missing == TVIT_LINK_E_NO_MODEL ? 0xffffu : missing ? missing - TVIT_LINK_E_RUNTIME : 0);
    tvit_put_u16(p + 34, memories);
    tvit_put_u16(p + 36, port->cores ? port->cores->cores : 1);
#ifdef TVIT_KERNELS_PIE
    tvit_put_u16(p + 38, 1u << tvit_kernels_portable.layout | 1u << tvit_kernels_pie.layout);
#else
    tvit_put_u16(p + 38, 1u << tvit_kernels_portable.layout);
#endif
    size_t at = TVIT_LINK_INFO_BYTES;
    for (uint32_t i = 0; i < memories; i++, at += MEMORY_RECORD) {
        tvit_put_u64(p + at, port->memories[i].base);
        tvit_put_u32(p + at + 8, port->memories[i].bytes);
    }
    put_string(p, &at, port->name);
    put_string(p, &at, port->board);
    put_string(p, &at, TVIT_FIRMWARE_VERSION);
    put_string(p, &at, TVIT_BUILD_ID);
    put_string(p, &at, port->details);
    for (uint32_t i = 0; i < memories; i++)
        put_string(p, &at, port->memories[i].name);
    tvit_answer(server, frame, at);
}

void tvit_handle_model_info(tvit_server *server, const tvit_frame *frame) {
    enum { KERNELS_NAME = 16 };
    const uint32_t missing = tvit_model_missing(server);
    if (missing) {
        tvit_answer_error(server, frame, missing);
        return;
    }
    const tvit_model *model = &server->model;
    const tvit_model_record *info = model->info;
    const uint16_t shape[] = {
        info->image_height, info->image_width,   info->image_channels, info->patch_size,
        info->tokens,       info->prefix_tokens, info->embed_dim,      info->depth,
        info->heads,        info->head_dim,      info->mlp_dim,        info->classes,
        info->scale_mode,   info->stream,        info->logits,         server->model_source,
    };
    uint8_t *p = tvit_payload(server);
    memcpy(p, model->header->signature, 32);
    memcpy(p + 32, info->name, 64);
    tvit_put_u32(p + 96, model->header->file_bytes);
    tvit_put_u32(p + 100, (uint32_t)tvit_arena_bytes(model));
    tvit_put_u32(p + 104, model->plan->scratch_bytes);
    tvit_put_u32(p + 108, model->tensor_count);
    tvit_put_u32(p + 112, model->operator_count);
    for (uint32_t i = 0; i < sizeof shape / sizeof shape[0]; i++)
        tvit_put_u16(p + 116 + 2 * i, shape[i]);
    tvit_put_u64(p + 148, info->parameters);
    tvit_put_u64(p + 156, info->macs);
    uint32_t scale;
    memcpy(&scale, &info->logit_scale, sizeof scale);
    tvit_put_u32(p + 164, scale);
    const tvit_kernel_table *kernels = tvit_kernels_for(model);
    const tvit_cores *cores = server->port->cores;
    const size_t name = strlen(kernels->name);
    tvit_put_u16(p + 168, kernels->layout);
    tvit_put_u16(p + 170, cores && kernels->parallel ? cores->cores : 1);
    memset(p + 172, 0, KERNELS_NAME);
    memcpy(p + 172, kernels->name, name < KERNELS_NAME ? name : KERNELS_NAME);
    tvit_answer(server, frame, TVIT_LINK_MODEL_INFO_BYTES);
}
