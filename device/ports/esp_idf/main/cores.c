// SPDX-License-Identifier: Apache-2.0
// Fork, join and barrier for two cores. Counters that only grow, each written by one core: forks by core 0, joins by
// core 1, arrivals by their own core. MEMW stands between data and the counter that announces them. The worker spins
// for a while after its last work and sleeps then, so that a run costs no task switch and an idle board no power.
#include "cores.h"

#include "esp_idf_version.h"
#include "esp_task_wdt.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"

enum { CORES = TVIT_MAX_CORES };
enum { WORKER_PRIORITY = 10, WORKER_STACK_BYTES = 2560 };
enum { LOOKS = 20000 };       // about a millisecond: longer than what the server does between two operators
enum { WAITING_BYTES = 768 }; // of the worker's stack below its frame while it sleeps or is interrupted
enum { ALIVE_TICKS = pdMS_TO_TICKS(1000) };

_Static_assert(CORES == 2, "the other core is 1 - this one");

static volatile uint32_t forks, joins, arrivals[CORES], sleeping;
static volatile uintptr_t idle_frame;
static tvit_team_work fork_work;
static void *fork_argument;
static TaskHandle_t worker;
// Not from the heap, which would give the slow memory of the RTC where SRAM is full, or nothing.
static StaticTask_t worker_task;
static StackType_t worker_stack[WORKER_STACK_BYTES] __attribute__((aligned(16)));

static inline void memory_barrier(void) {
    __asm__ volatile("memw" ::: "memory");
}

static inline int reached(const volatile uint32_t *counter, uint32_t value) {
    return (int32_t)(*counter - value) >= 0;
}

static void spin_until(const volatile uint32_t *counter, uint32_t value) {
    while (!reached(counter, value)) {
    }
    memory_barrier();
}

static void barrier(const tvit_team *team) {
    const uint32_t core = team->part, arrived = arrivals[core] + 1;
    memory_barrier();
    arrivals[core] = arrived;
    spin_until(&arrivals[1 - core], arrived);
}

static const tvit_team teams[CORES] = {{0, CORES, barrier}, {1, CORES, barrier}};

static void wait_for_work(uint32_t number) {
    for (uint32_t i = 0; i < LOOKS; i++)
        if (reached(&forks, number)) goto done;
    esp_task_wdt_reset();
    // Notifications count: one that comes between the last look and the call below ends that at once.
    sleeping = 1;
    memory_barrier();
    while (!reached(&forks, number)) {
        ulTaskNotifyTake(pdTRUE, ALIVE_TICKS);
        esp_task_wdt_reset();
    }
    sleeping = 0;
done:
    memory_barrier();
}

static void work(void *unused) {
    (void)unused;
    ESP_ERROR_CHECK(esp_task_wdt_add(NULL));
    idle_frame = (uintptr_t)__builtin_frame_address(0) - WAITING_BYTES;
    for (uint32_t number = 1;; number++) {
        wait_for_work(number);
        fork_work(fork_argument, &teams[1]);
        memory_barrier();
        joins = number;
        esp_task_wdt_reset();
    }
}

// If the worker hangs, so does the server, whom the watchdog then misses.
static void run_on_both(void *user, tvit_team_work team_work, void *argument) {
    (void)user;
    const uint32_t number = forks + 1;
    fork_work = team_work;
    fork_argument = argument;
    memory_barrier();
    forks = number;
    memory_barrier();
    if (sleeping) xTaskNotifyGive(worker);
    team_work(argument, &teams[0]);
    spin_until(&joins, number);
}

uint8_t *task_stack_start(void *task) {
#if ESP_IDF_VERSION_MAJOR < 6
    return pxTaskGetStackStart(task);
#else
    return (uint8_t *)xTaskGetStackStart(task);
#endif
}

static uintptr_t second_frame(void *user) {
    (void)user;
    return idle_frame;
}

static const tvit_cores both = {CORES, run_on_both, NULL};

void cores_start(tvit_port *port) {
    worker = xTaskCreateStaticPinnedToCore(work, "worker", WORKER_STACK_BYTES, NULL, WORKER_PRIORITY, worker_stack,
                                           &worker_task, 1);
    while (!idle_frame) // the stack is not painted before it is known how much of it is in use
        vTaskDelay(1);
    port->cores = &both;
    port->second_stack_low = task_stack_start(worker);
    port->second_stack_high = port->second_stack_low + WORKER_STACK_BYTES;
    port->second_frame = second_frame;
}
