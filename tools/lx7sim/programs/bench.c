/* SPDX-License-Identifier: Apache-2.0 */
/* Work for the speed measurement: sieve, sort, integer matrix product, CRC; prints a checksum. */
#include "board.h"

enum { PRIMES = 8192, SORTED = 1024, SIDE = 24 };

static uint8_t composite[PRIMES];
static uint32_t values[SORTED];
static int8_t a[SIDE][SIDE], b[SIDE][SIDE];
static int32_t product[SIDE][SIDE];

static uint32_t sieve(void) {
    uint32_t count = 0;
    for (int i = 0; i < PRIMES; i++)
        composite[i] = 0;
    for (int i = 2; i < PRIMES; i++) {
        if (composite[i]) continue;
        count++;
        for (int k = 2 * i; k < PRIMES; k += i)
            composite[k] = 1;
    }
    return count;
}

static void sort(uint32_t *v, int low, int high) {
    while (low < high) {
        uint32_t pivot = v[(low + high) / 2];
        int i = low, k = high;
        while (i <= k) {
            while (v[i] < pivot)
                i++;
            while (v[k] > pivot)
                k--;
            if (i <= k) {
                uint32_t t = v[i];
                v[i++] = v[k];
                v[k--] = t;
            }
        }
        sort(v, low, k);
        low = i;
    }
}

static uint32_t crc32(const uint8_t *data, int n) {
    uint32_t crc = ~0u;
    for (int i = 0; i < n; i++) {
        crc ^= data[i];
        for (int k = 0; k < 8; k++)
            crc = crc & 1 ? crc >> 1 ^ 0xedb88320 : crc >> 1;
    }
    return ~crc;
}

int main(void) {
    uint32_t state = 1, check = 0;
    for (int round = 0; round < ROUNDS; round++) {
        check += sieve();
        for (int i = 0; i < SORTED; i++)
            values[i] = state = state * 1664525 + 1013904223;
        sort(values, 0, SORTED - 1);
        for (int i = 0; i < SIDE; i++)
            for (int k = 0; k < SIDE; k++) {
                a[i][k] = (int8_t)(values[i * SIDE + k] >> 8);
                b[i][k] = (int8_t)(values[k * SIDE + i] >> 16);
            }
        for (int i = 0; i < SIDE; i++)
            for (int k = 0; k < SIDE; k++) {
                int32_t sum = 0;
                for (int m = 0; m < SIDE; m++)
                    sum += a[i][m] * b[m][k];
                product[i][k] = sum;
            }
        check = crc32((const uint8_t *)product, sizeof product) ^ (check << 1 | check >> 31);
    }
    put_string("check ");
    put_hex(check);
    put_string("\n");
    return 0;
}
