// SPDX-License-Identifier: Apache-2.0
#include "native.h"

#include <linux/perf_event.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

int native_counter_open(native_counter *counter) {
    if (!counter->instructions) return 0;
    struct perf_event_attr attributes = {
        .type = PERF_TYPE_HARDWARE,
        .size = sizeof attributes,
        .config = PERF_COUNT_HW_INSTRUCTIONS,
        .exclude_kernel = 1,
        .exclude_hv = 1,
    };
    counter->fd = (int)syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0);
    return counter->fd < 0 ? -1 : 0;
}

uint64_t native_counter_read(const native_counter *counter) {
    if (counter->instructions) {
        uint64_t value = 0;
        return read(counter->fd, &value, sizeof value) == sizeof value ? value : 0;
    }
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void native_describe(char *text, size_t bytes, const native_counter *counter) {
    struct utsname machine;
    uname(&machine);
#if defined(__SANITIZE_ADDRESS__)
    const char *sanitizers = "address,undefined";
#else
    const char *sanitizers = "none";
#endif
    snprintf(text, bytes, "machine=%s\ncounter=%s\nsanitizers=%s\n", machine.machine,
             counter->instructions ? "perf user instructions" : "CLOCK_MONOTONIC", sanitizers);
}
