// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <string.h>

#include "esp_attr.h"
#include "esp_flash.h"
#include "esp_heap_caps.h"
#include "esp_partition.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"
#include "heap_memory_layout.h"
#include "sdkconfig.h"
#include "soc/soc.h"
#if CONFIG_SPIRAM
#include "esp_psram.h"
#endif

enum { INTERNAL = MALLOC_CAP_INTERNAL | MALLOC_CAP_8BIT }; // SRAM and the fast memory of the RTC
enum { MODEL_SUBTYPE = 0x40 };                             // partitions/*.csv
enum { TRACE_RECORDS = 256, TRACE_RECORDS_PSRAM = TVIT_MAX_OPERATORS };
enum { PSRAM_ARENA = 0x200000 }; // memory.psram_arena of boards/esp32s3.toml
enum { PSRAM_SPARE = 64 * 1024 };

memory_facts memory_found;

static tvit_port_memory memories[3];

// From arena.ld; the heap leaves this range alone.
extern uint8_t tvit_arena[], tvit_arena_startup_data_end[], tvit_arena_end[];
SOC_RESERVE_MEMORY_REGION((intptr_t)tvit_arena, (intptr_t)tvit_arena_end, arena);

// For a board without PSRAM. The slow memory of the RTC is good enough for 16 bytes an operator.
static RTC_NOINIT_ATTR tvit_link_trace trace[TRACE_RECORDS];

// From the linker script of ESP-IDF.
extern uint8_t _data_start, _bss_end, _iram_start, _iram_text_end, _text_start, _text_end, _rodata_start, _rodata_end;

static void map_model(tvit_port *port) {
    const esp_partition_t *partition =
        esp_partition_find_first(ESP_PARTITION_TYPE_DATA, (esp_partition_subtype_t)MODEL_SUBTYPE, "model");
    if (!partition) {
        memory_found.model_error = "no partition \"model\" in the partition table";
        return;
    }
    const void *model;
    esp_partition_mmap_handle_t handle;
    const esp_err_t error = esp_partition_mmap(partition, 0, partition->size, ESP_PARTITION_MMAP_DATA, &model, &handle);
    if (error) {
        memory_found.model_error = esp_err_to_name(error);
        return;
    }
    port->model = model;
    port->model_bytes = partition->size;
}

static void use_psram(tvit_port *port) {
#if CONFIG_SPIRAM
    if (!esp_psram_is_initialized()) return;
    memory_found.psram = (uint32_t)esp_psram_get_size();
    void *records = heap_caps_malloc(TRACE_RECORDS_PSRAM * sizeof(tvit_link_trace), MALLOC_CAP_SPIRAM);
    if (records) {
        port->trace = records;
        port->trace_capacity = TRACE_RECORDS_PSRAM;
    }
    port->external_arena = heap_caps_aligned_alloc(CONFIG_ESP32S3_DATA_CACHE_LINE_SIZE, PSRAM_ARENA, MALLOC_CAP_SPIRAM);
    port->external_arena_bytes = port->external_arena ? PSRAM_ARENA : 0;
    memory_found.psram_arena = port->external_arena_bytes;
    const size_t largest = heap_caps_get_largest_free_block(MALLOC_CAP_SPIRAM);
    const uint32_t bytes = largest > PSRAM_SPARE ? (uint32_t)(largest - PSRAM_SPARE) & ~0xffffu : 0;
    port->model_ram = bytes ? heap_caps_aligned_alloc(TVIT_ALIGN, bytes, MALLOC_CAP_SPIRAM) : NULL;
    port->model_ram_bytes = port->model_ram ? bytes : 0;
    memories[2] = (tvit_port_memory){"psram", (uint64_t)(uintptr_t)port->model_ram, memory_found.psram};
    port->memory_count = 3;
#endif
    (void)port;
}

// The tasks that run a function on the other core. ESP-IDF wants them for the flash driver and while it starts up, and
// both are over: their stacks are the lines' buffers from here on.
static void end_ipc_tasks(void) {
    static const char *const names[] = {"ipc0", "ipc1"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const TaskHandle_t task = xTaskGetHandle(names[i]);
        if (task) vTaskDelete(task);
    }
    vTaskDelay(2); // the idle tasks free what was still running
}

void memory_find(tvit_port *port) {
    port->memories = memories;
    port->memory_count = 2;
    port->trace = trace;
    port->trace_capacity = TRACE_RECORDS;
    map_model(port);
    use_psram(port);
    esp_flash_get_physical_size(NULL, &memory_found.flash);
    // From here on, nothing may call what arena.ld puts into the arena, nor esp_ipc_call(). Zeros are the instruction
    // ILL: a call that is overlooked panics at once, with its place, and not only after a model has overwritten it.
    end_ipc_tasks();
    memset(tvit_arena, 0, (size_t)(tvit_arena_startup_data_end - tvit_arena));

    port->arena = tvit_arena;
    port->arena_bytes = (uint32_t)(tvit_arena_end - tvit_arena);
    memory_found.free_before_arena = port->arena_bytes + (uint32_t)heap_caps_get_free_size(MALLOC_CAP_DMA);

    memories[0] = (tvit_port_memory){"sram", SOC_DRAM_LOW, SOC_DIRAM_DRAM_HIGH - SOC_DRAM_LOW};
    memories[1] = (tvit_port_memory){"flash", (uint64_t)(uintptr_t)port->model, port->model_bytes};
    port->static_bytes = (uint32_t)(&_bss_end - &_data_start);
    port->code_bytes = (uint32_t)(&_iram_text_end - &_iram_start) + (uint32_t)(&_text_end - &_text_start) +
                       (uint32_t)(&_rodata_end - &_rodata_start);
    port->heap_bytes = (uint32_t)heap_caps_get_total_size(INTERNAL);
}

uint32_t memory_heap_used(void *user) {
    (void)user;
    return (uint32_t)(heap_caps_get_total_size(INTERNAL) - heap_caps_get_free_size(INTERNAL));
}
