// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include "esp_heap_caps.h"
#include "esp_partition.h"
#include "sdkconfig.h"
#include "soc/soc.h"
#if CONFIG_SPIRAM
#include "esp_psram.h"
#endif

enum { INTERNAL = MALLOC_CAP_INTERNAL | MALLOC_CAP_8BIT };
enum { MODEL_SUBTYPE = 0x40 }; // partitions/*.csv
enum { TRACE_RECORDS = 256, TRACE_RECORDS_PSRAM = TVIT_MAX_OPERATORS };
enum { PSRAM_SPARE = 64 * 1024 };
enum { SRAM_SPARE = 4096 }; // beside the other blocks, for what is allocated behind the arena

memory_facts memory_found;

static tvit_port_memory memories[3];
static uint32_t arena_bytes;

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
    port->trace = heap_caps_malloc(TRACE_RECORDS_PSRAM * sizeof(tvit_link_trace), MALLOC_CAP_SPIRAM | MALLOC_CAP_8BIT);
    port->trace_capacity = port->trace ? TRACE_RECORDS_PSRAM : 0;
    const size_t largest = heap_caps_get_largest_free_block(MALLOC_CAP_SPIRAM);
    const uint32_t bytes = largest > PSRAM_SPARE ? (uint32_t)(largest - PSRAM_SPARE) & ~0xffffu : 0;
    port->model_ram = bytes ? heap_caps_aligned_alloc(TVIT_ALIGN, bytes, MALLOC_CAP_SPIRAM) : NULL;
    port->model_ram_bytes = port->model_ram ? bytes : 0;
    memories[2] = (tvit_port_memory){"psram", (uint64_t)(uintptr_t)port->model_ram, memory_found.psram};
    port->memory_count = 3;
#endif
    (void)port;
}

void memory_find(tvit_port *port) {
    port->memories = memories;
    port->memory_count = 2;
    map_model(port);
    use_psram(port);

    memory_found.free_before_arena = (uint32_t)heap_caps_get_free_size(INTERNAL);
    uint32_t bytes = (uint32_t)heap_caps_get_largest_free_block(INTERNAL) & ~(TVIT_ALIGN - 1u);
    bytes = bytes > SRAM_SPARE ? bytes - SRAM_SPARE : 0;
    while (bytes && !(port->arena = heap_caps_aligned_alloc(TVIT_ALIGN, bytes, INTERNAL)))
        bytes -= TVIT_ALIGN; // the allocator's own words
    port->arena_bytes = arena_bytes = bytes;
    if (!port->trace) {
        port->trace = heap_caps_malloc(TRACE_RECORDS * sizeof(tvit_link_trace), INTERNAL);
        port->trace_capacity = port->trace ? TRACE_RECORDS : 0;
    }

    memories[0] = (tvit_port_memory){"sram", SOC_DRAM_LOW, SOC_DIRAM_DRAM_HIGH - SOC_DRAM_LOW};
    memories[1] = (tvit_port_memory){"flash", (uint64_t)(uintptr_t)port->model, port->model_bytes};
    port->static_bytes = (uint32_t)(&_bss_end - &_data_start);
    port->code_bytes = (uint32_t)(&_iram_text_end - &_iram_start) + (uint32_t)(&_text_end - &_text_start) +
                       (uint32_t)(&_rodata_end - &_rodata_start);
    port->heap_bytes = (uint32_t)heap_caps_get_total_size(INTERNAL) - bytes;
}

uint32_t memory_heap_used(void *user) {
    (void)user;
    return (uint32_t)(heap_caps_get_total_size(INTERNAL) - heap_caps_get_free_size(INTERNAL)) - arena_bytes;
}
