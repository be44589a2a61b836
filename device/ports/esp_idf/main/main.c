// SPDX-License-Identifier: Apache-2.0
// The machine as the link server sees it. The main task, pinned to core 0, becomes the server; cores.c has the task of
// core 1. These two are the only ones that use vector instructions, each on its own core, so that FreeRTOS never has to
// save the vector registers: it does so lazily, when another task of the same core uses them.
#include <string.h>

#include "app/port.h"
#include "app/server.h"
#include "cores.h"
#include "details.h"
#include "esp_cpu.h"
#include "esp_rom_sys.h"
#include "esp_system.h"
#include "esp_task_wdt.h"
#include "faults.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"
#include "line.h"
#include "memory.h"
#include "probe.h"
#include "sdkconfig.h"

enum { SERVER_PRIORITY = 10 };

static tvit_server server;
static char details[768];

// CCOUNT wraps after 17.9 s at 240 MHz; it is read more often than that, and by the server's task alone.
static uint64_t read_counter(void *user) {
    static uint32_t last;
    static uint64_t ticks;
    (void)user;
    const uint32_t now = esp_cpu_get_cycle_count();
    ticks += now - last;
    last = now;
    return ticks;
}

// Each task tells for itself that it is alive: this one after every operator, the worker after its share of one, both
// every second while they wait. An operator that never ends therefore resets the board, which says so when it is back.
static void keep_alive(void *user) {
    (void)user;
    esp_task_wdt_reset();
}

static void idle(void *user) {
    (void)user;
    details_refresh();
    line_wait();
    esp_task_wdt_reset();
}

static void reset(void *user) {
    (void)user;
    line_drain();
    esp_restart();
}

static tvit_port port = {
    .name = "esp_idf",
    .board = TVIT_BOARD,
    .details = details,
    .read = line_read,
    .write = line_write,
    .idle = idle,
    .counter = read_counter,
    .keep_alive = keep_alive,
    .reset = reset,
    .set_baud = line_set_baud,
    .baud = LINE_BAUD,
    .most_baud = LINE_MOST_BAUD,
    .heap_used = memory_heap_used,
    .counter_unit = TVIT_LINK_COUNTER_CYCLES,
    .counter_multiplier = 1,
    .counter_divisor = 1,
    .window_bytes = LINE_WINDOW_BYTES,
    .test_faults = 1,
    .invalid_address = 0x10000000, // nothing is there
};

void app_main(void) {
    vTaskPrioritySet(NULL, SERVER_PRIORITY);
    ESP_ERROR_CHECK(esp_task_wdt_add(NULL));
    faults_watch(&server);
    memory_find(&port); // first: it ends what ESP-IDF needs for the start only, and the lines take that memory
    ESP_ERROR_CHECK(line_open());
    port.clock_hz = esp_rom_get_cpu_ticks_per_us() * 1000000u;
    port.boot_reason = faults_boot_reason();
    port.stack_low = task_stack_start(NULL);
    port.stack_high = port.stack_low + CONFIG_ESP_MAIN_TASK_STACK_SIZE;
    cores_start(&port);
    details_write(details, sizeof details, probe_vector_kernels());
    faults_report();
    tvit_server_run(&server, &port);
}
