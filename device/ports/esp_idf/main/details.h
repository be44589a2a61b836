// SPDX-License-Identifier: Apache-2.0
// What the board tells people about itself: lines "key=value".
#ifndef ESP_IDF_DETAILS_H
#define ESP_IDF_DETAILS_H

#include <stddef.h>

// After memory_find(). why_portable: from probe_vector_kernels().
void details_write(char *text, size_t bytes, const char *why_portable);

// Bring up to date what changes: `least_free_heap`, the least that the internal heap ever had left, in bytes. After
// details_write().
void details_refresh(void);

#endif
