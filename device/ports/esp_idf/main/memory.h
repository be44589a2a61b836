// SPDX-License-Identifier: Apache-2.0
// Where the arena, the model, the trace and an uploaded model lie.
#ifndef ESP_IDF_MEMORY_H
#define ESP_IDF_MEMORY_H

#include "app/port.h"

// Map the model's partition; find the arena in internal SRAM (arena.ld) and, where there is PSRAM, room there for the
// trace, the arena of models that do not fit SRAM, and an uploaded model. Fills in the port. Ends the start of the
// system: afterwards the flash driver is gone.
void memory_find(tvit_port *port);

// For tvit_port: bytes of the internal heap in use, without the arena.
uint32_t memory_heap_used(void *user);

// What memory_find() saw.
typedef struct {
    uint32_t free_before_arena; // bytes of SRAM: the arena, and what of the heap is free
    uint32_t flash, psram;      // bytes of the chips, 0 for none
    uint32_t psram_arena;       // bytes of PSRAM for models that do not fit the arena
    const char *model_error;    // why there is no model mapped, or NULL
} memory_facts;
extern memory_facts memory_found;

#endif
