// SPDX-License-Identifier: Apache-2.0
// Parts of the native port: its line (pty, TCP connection, inherited stream) and its counter.
#ifndef TVIT_NATIVE_H
#define TVIT_NATIVE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "app/server.h"

typedef struct {
    int fd;             // -1: no connection
    int listener;       // -1: none
    int ends_with_peer; // the process exits when the other side hangs up
    int after_fault;    // reads wait, because nobody calls idle any more
} native_line;

// These return 0, or -1 with errno. The first two print where to connect to on stdout.
int native_line_open_pty(native_line *line);
int native_line_listen(native_line *line, uint16_t tcp_port);
void native_line_prepare(native_line *line); // non-blocking

size_t native_line_read(native_line *line, uint8_t *bytes, size_t capacity);
void native_line_write(native_line *line, const uint8_t *bytes, size_t count);
void native_line_wait(native_line *line);

typedef struct {
    int instructions; // 1: user instructions of the calling thread (perf), 0: nanoseconds of CLOCK_MONOTONIC
    int fd;
} native_counter;

int native_counter_open(native_counter *counter); // 0, or -1 with errno
uint64_t native_counter_read(const native_counter *counter);
void native_describe(char *text, size_t bytes, const native_counter *counter);

#endif
