// SPDX-License-Identifier: Apache-2.0
#ifndef TVIT_CRC32_H
#define TVIT_CRC32_H

#include <stddef.h>
#include <stdint.h>

// zlib's CRC-32 (reflected polynomial 0xEDB88320). Start with 0; pass the result back in to continue.
uint32_t tvit_crc32(uint32_t crc, const void *data, size_t bytes);

#endif
