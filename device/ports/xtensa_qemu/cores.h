// SPDX-License-Identifier: Apache-2.0
// The second core of a machine with two: parked until the first fork, then it waits for work in a word of memory. No
// lock and no queue: every word has one writer.
#ifndef XTENSA_QEMU_CORES_H
#define XTENSA_QEMU_CORES_H

#include <stdint.h>

#include "tvit/kernels.h"
#include "tvit/runtime.h"

// How many cores the machine has, at most TVIT_MAX_CORES.
uint32_t cores_present(void);

// For tvit_init(): `wanted` cores (1 or 2), or as many as there are. Call it once, on core 0; the second core starts
// with the first fork, that is with the first call of run().
const tvit_cores *cores_init(uint32_t wanted);

// The second core's frame while it has no work: below it its stack is unused. 0 before its start, where all of it is.
uintptr_t cores_idle_frame(void);

#endif
