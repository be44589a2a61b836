// SPDX-License-Identifier: Apache-2.0
// Rounds, drawn memory, comparison and report. Boot options: `operator=`, `seed=`, `rounds=`, `first=` (to repeat one
// round: rounds are drawn one by one) and `parts=` (1, 2).
#include "twins.h"

#include "ports/xtensa_qemu/boot_parameters.h"
#include "ports/xtensa_qemu/cores.h"
#include "ports/xtensa_qemu/tests/print.h"
#include "tests/draw.h"

enum { POOL_BYTES = 24 << 20, GUARD_BYTES = 64, NOTES = 16, TAKEN = 64, REPORTS = 8 };

static const struct {
    const char *name;
    void (*round)(void);
} operators[] = {
    {"linear", twins_linear},       {"attention", twins_attention},     {"layernorm", twins_layernorm},
    {"mean_pool", twins_mean_pool}, {"patch_embed", twins_patch_embed},
};

static uint8_t pool[POOL_BYTES] __attribute__((aligned(64), section(".noinit")));
static uint32_t pool_used;
static uint8_t *guards[TAKEN];
static struct {
    const char *name;
    uint32_t value;
} notes[NOTES];
static uint32_t taken_count, note_count;

static const char *operator_name;
static uint32_t round_number, parts;
static uint32_t differing_rounds, compared; // compared: elements
static int differs, absent;
static const tvit_cores *cores;

static void print_number(const char *before, int32_t value) {
    char digits[12], *at = digits + sizeof digits - 1;
    uint32_t rest = value < 0 ? 0u - (uint32_t)value : (uint32_t)value;
    *at = 0;
    do
        *--at = (char)('0' + rest % 10);
    while (rest /= 10);
    if (value < 0) *--at = '-';
    print(before);
    print(at);
}

// True for the first difference of a round, after the line up to the place of the difference.
static int report(const char *what) {
    if (differs) return 0;
    differs = 1;
    if (++differing_rounds > REPORTS) return 0;
    print(operator_name);
    print_number(" round ", (int32_t)round_number);
    print_number(" parts ", (int32_t)parts);
    print(" (");
    for (uint32_t i = 0; i < note_count; i++) {
        print(i ? ", " : "");
        print(notes[i].name);
        print_number(" ", (int32_t)notes[i].value);
    }
    print("): ");
    print(what);
    return 1;
}

// --- drawing -----------------------------------------------------------------------------------------------------

static void fill(uint8_t *bytes, size_t count) {
    size_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const uint32_t word = draw();
        memcpy(bytes + i, &word, 4);
    }
    for (; i < count; i++)
        bytes[i] = (uint8_t)draw();
}

void *twins_take(size_t bytes) {
    uint8_t *at = pool + pool_used;
    pool_used += (uint32_t)((bytes + GUARD_BYTES + 15) & ~(size_t)15);
    if (pool_used > POOL_BYTES || taken_count == TAKEN) {
        print("the drawn operator does not fit into the pool\nend\n");
        for (;;)
            uart_wait();
    }
    fill(at, bytes);
    memset(at + bytes, 0xa5, GUARD_BYTES);
    guards[taken_count++] = at + bytes;
    return at;
}

void *twins_copy(const void *bytes, size_t count) {
    void *copy = twins_take(count);
    memcpy(copy, bytes, count);
    return copy;
}

uint32_t twins_draw(void) {
    return draw();
}

int32_t twins_signed(int32_t low, int32_t high) {
    return draw_between(low, high);
}

int twins_one_in(uint32_t chances) {
    return draw() % chances == 0;
}

uint32_t twins_between(uint32_t low, uint32_t high) {
    return low + draw() % (high - low + 1);
}

static void draw_values(void *values, size_t count, uint32_t element_bytes, int32_t limit) {
    const uint32_t kind = draw() % 8, small = twins_between(1, (uint32_t)limit < 40 ? (uint32_t)limit : 40);
    const int32_t extreme = draw() % 2 ? limit : -limit, bound = kind == 2 ? (int32_t)small : limit;
    const uint32_t span = 2 * (uint32_t)bound + 1;
    for (size_t i = 0; i < count; i++) {
        const uint32_t drawn = draw();
        const int32_t value = kind == 0   ? extreme
                              : kind == 1 ? (drawn >> 16 & 1 ? limit : -limit)
                                          : (int32_t)((drawn >> 16) * span >> 16) - bound;
        if (element_bytes == 1)
            ((int8_t *)values)[i] = (int8_t)value;
        else
            ((int16_t *)values)[i] = (int16_t)value;
    }
}

int8_t *twins_draw_i8(size_t count) {
    int8_t *values = twins_take(count);
    draw_values(values, count, 1, 127);
    return values;
}

int16_t *twins_draw_i16(size_t count) {
    int16_t *values = twins_take(2 * count);
    draw_values(values, count, 2, 32767);
    return values;
}

// --- layouts -----------------------------------------------------------------------------------------------------

#define PADDED(rows) (((rows) + TVIT_BLOCK_TOKENS - 1) & ~(TVIT_BLOCK_TOKENS - 1))

static size_t block_index(uint32_t row, uint32_t column, uint32_t columns) {
    return (size_t)(row / TVIT_BLOCK_TOKENS * columns + column) * TVIT_BLOCK_TOKENS + row % TVIT_BLOCK_TOKENS;
}

static int32_t element(const void *values, size_t at, uint32_t element_bytes) {
    return element_bytes == 1 ? ((const int8_t *)values)[at] : ((const int16_t *)values)[at];
}

static void to_blocks(const twins_tensor *tensor) {
    const uint32_t bytes = tensor->element_bytes;
    const uint8_t *from = tensor->values;
    for (uint32_t row = 0; row < tensor->rows; row++)
        for (uint32_t column = 0; column < tensor->columns; column++, from += bytes)
            memcpy(tensor->blocks + block_index(row, column, tensor->columns) * bytes, from, bytes);
}

twins_tensor twins_draw_tensor(uint32_t rows, uint32_t columns, uint32_t element_bytes, int32_t limit) {
    const size_t count = (size_t)rows * columns, padded = (size_t)PADDED(rows) * columns;
    twins_tensor tensor = {NULL, NULL, rows, columns, element_bytes};
    tensor.values = twins_take(count * element_bytes);
    tensor.blocks = twins_take(padded * element_bytes);
    draw_values(tensor.values, count, element_bytes, limit);
    to_blocks(&tensor);
    return tensor;
}

void *twins_row_at(const twins_tensor *tensor, uint32_t row, uint32_t column) {
    return tensor->values + ((size_t)row * tensor->columns + column) * tensor->element_bytes;
}

void *twins_block_at(const twins_tensor *tensor, uint32_t row, uint32_t column) {
    return tensor->blocks + block_index(row, column, tensor->columns) * tensor->element_bytes;
}

// --- comparing ---------------------------------------------------------------------------------------------------

void twins_note(const char *name, uint32_t value) {
    if (note_count == NOTES) return;
    notes[note_count].name = name;
    notes[note_count++].value = value;
}

void twins_compare(const char *what, const twins_tensor *tensor, uint32_t first_row, uint32_t rows,
                   uint32_t first_column, uint32_t columns) {
    compared += rows * columns;
    for (uint32_t row = first_row; row < first_row + rows; row++)
        for (uint32_t column = first_column; column < first_column + columns; column++) {
            const size_t at = (size_t)row * tensor->columns + column;
            const int32_t right = element(tensor->values, at, tensor->element_bytes);
            const int32_t found =
                element(tensor->blocks, block_index(row, column, tensor->columns), tensor->element_bytes);
            if (right == found || !report(what)) continue;
            print_number(": token ", (int32_t)row);
            print_number(", channel ", (int32_t)column);
            print_number(": expected ", right);
            print_number(", got ", found);
            print("\n");
        }
}

void twins_compare_written(const char *what, const twins_tensor *tensor, uint32_t first_row, uint32_t rows) {
    const uint32_t behind = PADDED(first_row + rows);
    twins_compare(what, tensor, 0, first_row + rows, 0, tensor->columns);
    if (behind < tensor->rows) twins_compare(what, tensor, behind, tensor->rows - behind, 0, tensor->columns);
}

void twins_compare_bytes(const char *what, const void *expected, const void *got, uint32_t bytes) {
    compared += bytes;
    for (uint32_t i = 0; i < bytes; i++) {
        const uint8_t right = ((const uint8_t *)expected)[i], found = ((const uint8_t *)got)[i];
        if (right == found || !report(what)) continue;
        print_number(": byte ", (int32_t)i);
        print_number(": expected ", right);
        print_number(", got ", found);
        print("\n");
    }
}

static void check_memory(void) {
    for (uint32_t i = 0; i < taken_count; i++)
        for (uint32_t at = 0; at < GUARD_BYTES; at++)
            if (guards[i][at] != 0xa5 && report("written behind its end")) {
                print_number(": memory ", (int32_t)i);
                print_number(", byte ", (int32_t)at);
                print("\n");
            }
}

// --- rounds ------------------------------------------------------------------------------------------------------

void twins_absent(void) {
    absent = 1;
}

void twins_run(void (*work)(void *argument, const tvit_team *team), void *argument) {
    cores->run(cores->user, work, argument);
}

static void run_rounds(void (*one)(void), uint32_t first, uint32_t rounds, uint32_t seed) {
    for (round_number = first; round_number < first + rounds; round_number++) {
        draw_state = (seed * 0x9e3779b9u ^ round_number * 0x85ebca6bu) | 1;
        for (uint32_t i = 0; i < 16; i++) // neighbouring seeds differ in a few bits only
            draw();
        pool_used = taken_count = note_count = 0;
        differs = 0;
        one();
        check_memory();
        if (absent) {
            print("absent ");
            print(operator_name);
            print("\n");
            return;
        }
    }
    print("done ");
    print(operator_name);
    print_number(" rounds ", (int32_t)rounds);
    print_number(" parts ", (int32_t)parts);
    print_number(" different ", (int32_t)differing_rounds);
    print_number(" compared ", (int32_t)compared);
    print("\n");
}

static uint32_t option(const char *line, const char *key, uint32_t otherwise) {
    char text[12];
    const char *c = boot_option(line, key, text, sizeof text);
    if (!c) return otherwise;
    uint32_t value = 0;
    for (; *c >= '0' && *c <= '9'; c++)
        value = value * 10 + (uint32_t)(*c - '0');
    return value;
}

void port_main(uint32_t boot_parameters) {
    uart_init();
    const char *line = boot_command_line(boot_parameters);
    char name[16];
    const char *wanted = boot_option(line, "operator", name, sizeof name);
    parts = option(line, "parts", 1);
    cores = cores_init(parts);
    print("ready\n"); // what came before was lost
    if (cores->cores != parts) print("the machine has fewer cores\n");
    for (uint32_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        operator_name = operators[i].name;
        if (!wanted || strlen(wanted) != strlen(operator_name) || memcmp(wanted, operator_name, strlen(wanted)))
            continue;
        run_rounds(operators[i].round, option(line, "first", 0), option(line, "rounds", 1), option(line, "seed", 1));
    }
    finish();
}
