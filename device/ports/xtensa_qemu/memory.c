// SPDX-License-Identifier: Apache-2.0
// memcpy and relatives for a core that takes an exception on an unaligned word.

#include <stdint.h>
#include <string.h>

// Otherwise the compiler recognizes these loops as memcpy and memset, and calls them.
#pragma GCC optimize("no-tree-loop-distribute-patterns")

typedef uint32_t __attribute__((may_alias)) word;

// From low to high addresses: right for any overlap with out below in.
static void copy_forward(uint8_t *out, const uint8_t *in, size_t bytes) {
    if ((((uintptr_t)out ^ (uintptr_t)in) & 3) == 0) {
        for (; bytes && ((uintptr_t)out & 3); bytes--)
            *out++ = *in++;
        for (; bytes >= 16; bytes -= 16, out += 16, in += 16) {
            const word *source = (const word *)in;
            word *target = (word *)out;
            const word a = source[0], b = source[1], c = source[2], d = source[3];
            target[0] = a;
            target[1] = b;
            target[2] = c;
            target[3] = d;
        }
        for (; bytes >= 4; bytes -= 4, out += 4, in += 4)
            *(word *)out = *(const word *)in;
    }
    for (; bytes; bytes--)
        *out++ = *in++;
}

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
    copy_forward(to, from, bytes);
    return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
    uint8_t *out = to;
    const uint8_t *in = from;
    if (out <= in || out >= in + bytes)
        copy_forward(out, in, bytes);
    else
        while (bytes--)
            out[bytes] = in[bytes];
    return to;
}

void *memset(void *to, int value, size_t bytes) {
    uint8_t *out = to;
    const uint32_t pattern = (uint8_t)value * 0x01010101u;
    for (; bytes && ((uintptr_t)out & 3); bytes--)
        *out++ = (uint8_t)value;
    for (; bytes >= 16; bytes -= 16, out += 16) {
        word *target = (word *)out;
        target[0] = pattern;
        target[1] = pattern;
        target[2] = pattern;
        target[3] = pattern;
    }
    for (; bytes >= 4; bytes -= 4, out += 4)
        *(word *)out = pattern;
    for (; bytes; bytes--)
        *out++ = (uint8_t)value;
    return to;
}

int memcmp(const void *left, const void *right, size_t bytes) {
    const uint8_t *a = left, *b = right;
    for (; bytes && *a == *b; bytes--)
        a++, b++;
    return bytes ? *a - *b : 0;
}

size_t strlen(const char *text) {
    const char *end = text;
    while (*end)
        end++;
    return (size_t)(end - text);
}
