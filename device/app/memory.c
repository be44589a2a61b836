// SPDX-License-Identifier: Apache-2.0
// High-water marks by painting, and the memory report.
#include "server_internal.h"

#include <string.h>

#define STACK_PAINT 0xa5a5a5a5u
#define STACK_MARGIN 1024u // below the painting function's frame: for what it calls, red zones, an interrupt
#define SECOND_MARGIN 256u // the same of a core that only waits
#define ARENA_GUARD 65536u // painted behind the planned arena, so that a write there is seen
#define ARENA_ALIGN 16u

// A word that differs from place to place, so that data is not taken for paint.
static uint32_t arena_paint(uint32_t word) {
    return word * 0x9e3779b1u ^ 0xa5a5a5a5u;
}

void tvit_paint_arena(tvit_server *server) {
    const uint32_t planned = (uint32_t)tvit_arena_bytes(&server->model);
    const uint32_t room = (uint32_t)server->context.arena_bytes & ~(ARENA_ALIGN - 1u);
    server->observed_arena = room - planned < ARENA_GUARD ? room : planned + ARENA_GUARD;
    uint32_t *words = (uint32_t *)(void *)server->context.arena;
    for (uint32_t i = 0; i < server->observed_arena / 4; i++)
        words[i] = arena_paint(i);
}

static uint32_t arena_used(const tvit_server *server) {
    const uint32_t *words = (const uint32_t *)(const void *)server->context.arena;
    uint32_t i = server->observed_arena / 4;
    while (i > 0 && words[i - 1] == arena_paint(i - 1))
        i--;
    return (i * 4 + ARENA_ALIGN - 1u) & ~(ARENA_ALIGN - 1u);
}

// From the low end up to `end`.
static void paint(uint8_t *low, uintptr_t end) {
    volatile uint32_t *word = (volatile uint32_t *)(((uintptr_t)low + 3) & ~(uintptr_t)3);
    while ((uintptr_t)word + 4 <= end)
        *word++ = STACK_PAINT;
}

void tvit_paint_stack(tvit_server *server) {
    const tvit_port *port = server->port;
    const uintptr_t low = (uintptr_t)port->stack_low, high = (uintptr_t)port->stack_high;
    const uintptr_t here = (uintptr_t)__builtin_frame_address(0);
    if (port->second_stack_low) {
        const uintptr_t frame = port->second_frame ? port->second_frame(port->user) : 0;
        paint(port->second_stack_low, frame ? frame - SECOND_MARGIN : (uintptr_t)port->second_stack_high);
    }
    if (!low || here < low || here > high) return; // not this thread's stack
    paint(port->stack_low, here - STACK_MARGIN);
}

static uint32_t stack_used(const uint8_t *low, const uint8_t *high) {
    if (!high) return 0;
    const volatile uint32_t *word = (const volatile uint32_t *)(((uintptr_t)low + 3) & ~(uintptr_t)3);
    while ((uintptr_t)word < (uintptr_t)high && *word == STACK_PAINT)
        word++;
    return (uint32_t)((uintptr_t)high - (uintptr_t)word);
}

void tvit_handle_memory(tvit_server *server, const tvit_frame *frame, int repeated) {
    const tvit_port *port = server->port;
    const uint32_t flags = tvit_get_u32(frame->payload);
    if (flags & ~TVIT_LINK_MEMORY_REPAINT) {
        tvit_answer_error(server, frame, TVIT_LINK_E_ARGUMENT);
        return;
    }
    const int model = server->have_model;
    const uint32_t report[TVIT_LINK_MEMORY_BYTES / 4] = {
        model ? (uint32_t)server->context.arena_bytes : port->arena_bytes,
        model ? (uint32_t)tvit_arena_bytes(&server->model) : 0,
        model ? arena_used(server) : 0,
        model ? server->observed_arena : 0,
        (uint32_t)((uintptr_t)port->stack_high - (uintptr_t)port->stack_low),
        stack_used(port->stack_low, port->stack_high),
        port->static_bytes,
        port->code_bytes,
        port->heap_bytes,
        port->heap_used ? port->heap_used(port->user) : 0,
        server->model_bytes,
        (uint32_t)sizeof *server,
        (uint32_t)(port->second_stack_high - port->second_stack_low),
        stack_used(port->second_stack_low, port->second_stack_high),
    };
    if (flags & TVIT_LINK_MEMORY_REPAINT && !repeated) {
        if (model) tvit_paint_arena(server);
        tvit_paint_stack(server);
    }
    uint8_t *p = tvit_payload(server);
    for (uint32_t i = 0; i < TVIT_LINK_MEMORY_BYTES / 4; i++)
        tvit_put_u32(p + 4 * i, report[i]);
    tvit_answer(server, frame, TVIT_LINK_MEMORY_BYTES);
}
