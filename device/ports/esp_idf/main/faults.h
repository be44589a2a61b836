// SPDX-License-Identifier: Apache-2.0
// Why the board was reset. A panic leaves its cause in RTC memory, restarts the board, and is reported afterwards.
#ifndef ESP_IDF_FAULTS_H
#define ESP_IDF_FAULTS_H

#include "app/server.h"

// The server whose state a report tells about. Also reads, once, what a panic before the reset has left.
void faults_watch(const tvit_server *server);

// "power-on", "reset", "brown-out", "task watchdog: ..." ...; for tvit_port.
const char *faults_boot_reason(void);

// Send the FAULT of a panic that caused the reset, if there was one.
void faults_report(void);

#endif
