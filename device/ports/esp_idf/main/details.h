// SPDX-License-Identifier: Apache-2.0
// What the board tells people about itself: lines "key=value".
#ifndef ESP_IDF_DETAILS_H
#define ESP_IDF_DETAILS_H

#include <stddef.h>

// After memory_find(). why_portable: from probe_vector_kernels().
void details_write(char *text, size_t bytes, const char *why_portable);

#endif
