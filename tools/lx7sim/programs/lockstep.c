/* SPDX-License-Identifier: Apache-2.0 */
/*
 * C work between two readings of CCOUNT: with one cycle an instruction their difference is the number of instructions.
 * Prints both readings, before any device access could differ between machines.
 */
#include "board.h"

enum { LENGTH = 64 };

static int32_t tree(int depth, int32_t value) {
    if (depth == 0) return value;
    return tree(depth - 1, value * 3 + 1) ^ tree(depth - 1, value + depth);
}

static uint32_t text_work(char *text) {
    uint32_t hash = 5381;
    for (int i = 0; i < LENGTH; i++)
        text[i] = (char)('a' + i * 7 % 26);
    for (int i = 0; i < LENGTH; i++)
        for (int k = i + 1; k < LENGTH; k++)
            if (text[k] < text[i]) {
                char t = text[i];
                text[i] = text[k];
                text[k] = t;
            }
    for (int i = 0; i < LENGTH; i++)
        hash = hash * 33 + (uint8_t)text[i];
    return hash;
}

int main(void) {
    char text[LENGTH];
    uint32_t start = cycle_count(), check = 0;
    for (int i = 1; i <= ROUNDS; i++) {
        check ^= (uint32_t)tree(6, i);
        check += text_work(text);
        check = check * 2654435761u ^ check >> 7;
    }
    uint32_t end = cycle_count();
    put_hex(check);
    put_hex(start);
    put_hex(end);
    put_string("\n");
    return 0;
}
