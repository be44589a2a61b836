// SPDX-License-Identifier: Apache-2.0
// The worker on core 1: fork, join and barrier with the server's task on core 0.
#ifndef ESP_IDF_CORES_H
#define ESP_IDF_CORES_H

#include "app/port.h"

// Starts the worker's task and fills in the port's cores and second stack. To be called by the server's task.
void cores_start(tvit_port *port);

// The low end of a task's stack; NULL for the caller's.
uint8_t *task_stack_start(void *task);

#endif
