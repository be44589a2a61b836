// SPDX-License-Identifier: Apache-2.0
// The four functions of the C library that tvit needs; the compiler comes without one (memory.c).
#ifndef XTENSA_QEMU_STRING_H
#define XTENSA_QEMU_STRING_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
int memcmp(const void *left, const void *right, size_t bytes);
size_t strlen(const char *text);

#endif
