// SPDX-License-Identifier: Apache-2.0
// Fork, join and barrier for two cores. Counters that only grow, each written by one core: forks by core 0, joins by
// core 1, arrivals by their own core. MEMW stands between data and the counter that announces them; volatile accesses
// bring their own (the compiler's -mserialize-volatile).
#include "cores.h"

#include "hardware.h"

// How often a core looks at a word before it sleeps until the other core's interrupt: some 10,000 cycles. An emulator
// that runs both cores on one thread goes on with the other one when this one sleeps, and only then.
enum { LOOKS = 1000 };
enum { CORES = TVIT_MAX_CORES };

_Static_assert(CORES == 2, "the other core is 1 - this one");

void cores_release_second(void); // cores.S
void cores_second(void);

static volatile uint32_t forks, joins, arrivals[CORES], sleeping[CORES];
static volatile uint32_t idle_frame;
static tvit_team_work fork_work;
static void *fork_argument;

static inline void memory_barrier(void) {
    __asm__ volatile("memw" ::: "memory");
}

static int reached(const volatile uint32_t *counter, uint32_t value) {
    return (int32_t)(*counter - value) >= 0;
}

static void wait_for(uint32_t core, const volatile uint32_t *counter, uint32_t value) {
    for (uint32_t i = 0; i < LOOKS; i++)
        if (reached(counter, value)) goto done;
    // From here on the other core sends an interrupt behind its counter, which is pending until it is cleared: it
    // cannot be missed between the last look and WAITI. The handler clears INTENABLE and returns behind WAITI.
    sleeping[core] = 1;
    while (!reached(counter, value)) {
        uint32_t ps;
        __asm__ volatile("rsil %0, 15\n"
                         "wsr.intenable %1\n"
                         "rsync\n"
                         "waiti 0"
                         : "=&a"(ps)
                         : "a"(1u << MX_IPI_INTERRUPT)
                         : "memory");
        write_external_register(MX_IPI_CAUSE + core, 1u);
    }
    sleeping[core] = 0;
done:
    memory_barrier();
}

static void wake(uint32_t core) {
    memory_barrier();
    if (sleeping[core]) write_external_register(MX_IPI_SET, 1u << core);
}

static void barrier(const tvit_team *team) {
    const uint32_t core = team->part, other = 1 - core, arrived = arrivals[core] + 1;
    memory_barrier();
    arrivals[core] = arrived;
    wake(other);
    wait_for(core, &arrivals[other], arrived);
}

static const tvit_team teams[CORES] = {{0, CORES, barrier}, {1, CORES, barrier}};

// What core 1 does for ever; on its own stack, from cores.S.
void cores_second(void) {
    idle_frame = (uint32_t)(uintptr_t)__builtin_frame_address(0);
    for (uint32_t work = 1;; work++) {
        wait_for(1, &forks, work);
        fork_work(fork_argument, &teams[1]);
        memory_barrier();
        joins = work;
        wake(0);
    }
}

static void run_on_both(void *user, tvit_team_work work, void *argument) {
    (void)user;
    const uint32_t count = forks + 1;
    fork_work = work;
    fork_argument = argument;
    memory_barrier();
    forks = count;
    if (count == 1) cores_release_second();
    wake(1);
    work(argument, &teams[0]);
    wait_for(0, &joins, count);
}

static void run_alone(void *user, tvit_team_work work, void *argument) {
    static const tvit_team alone = {0, 1, NULL};
    (void)user;
    work(argument, &alone);
}

static const tvit_cores one = {1, run_alone, NULL}, both = {CORES, run_on_both, NULL};

uint32_t cores_present(void) {
    const uint32_t found = (read_external_register(MX_SYSTEM_CONFIGURATION) >> 18) + 1;
    return found < CORES ? found : CORES;
}

const tvit_cores *cores_init(uint32_t wanted) {
    return wanted > 1 && cores_present() > 1 ? &both : &one;
}

uintptr_t cores_idle_frame(void) {
    return idle_frame;
}
