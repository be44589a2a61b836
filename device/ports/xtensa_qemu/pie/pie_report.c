// SPDX-License-Identifier: Apache-2.0
// Whether vector instructions are executed or emulated, and what the trap has seen, over the link: a LOG event for each
// instruction that accessed a misaligned address and one for the first inference, and counts in the details of INFO.

#include <string.h>

#include "../port_extension.h"
#include "pie_trap.h"

enum { DETAILS_BYTES = 160, LINE_BYTES = 160 };

static tvit_server *server;
static size_t (*port_read)(void *user, uint8_t *bytes, size_t capacity);
static char details[DETAILS_BYTES] = "pie=executed\n";
static uint32_t executed_shown, misaligned_shown; // in the details
static uint32_t logged[PIE_TRAP_CORES];           // places of misaligned accesses
static uint8_t first_inference_logged, emulated;

void pie_probe(void); // pie_probe.S

// Text with numbers in it, for lines that are known to fit.
static char *put_text(char *at, const char *text) {
    const size_t bytes = strlen(text);
    memcpy(at, text, bytes + 1);
    return at + bytes;
}

static char *put_number(char *at, uint32_t value, uint32_t base) {
    char digits[11], *first = digits + sizeof digits - 1;
    *first = 0;
    do
        *--first = "0123456789abcdef"[value % base];
    while (value /= base);
    return put_text(at, first);
}

static uint32_t executed(void) {
    uint32_t sum = 0;
    for (uint32_t core = 0; core < PIE_TRAP_CORES; core++)
        sum += pie_trap_cores[core].executed;
    return sum;
}

static uint32_t misaligned(void) {
    uint32_t sum = 0;
    for (uint32_t core = 0; core < PIE_TRAP_CORES; core++)
        sum += pie_trap_cores[core].misaligned;
    return sum;
}

static void log_places(uint32_t core) {
    const pie_trap_core *trap = &pie_trap_cores[core];
    while (logged[core] < pie_trap_places(trap)) {
        const pie_trap_place *place = &trap->places[logged[core]++];
        char line[LINE_BYTES], *at = put_text(line, "misaligned vector access at pc 0x");
        at = put_number(at, place->pc, 16);
        at = put_text(at, ", address 0x");
        at = put_number(at, place->address, 16);
        at = put_text(at, " of ");
        at = put_number(at, place->size, 10);
        at = put_text(at, " bytes, core ");
        at = put_number(at, core, 10);
        put_text(at, ": rounded down, as the chip does");
        tvit_server_log(server, line);
        if (logged[core] == PIE_TRAP_PLACES)
            tvit_server_log(server, "further misaligned vector accesses are counted, but not listed");
    }
}

// Behind each operator of an inference, when no frame is being built.
static void report(void *user) {
    (void)user;
    for (uint32_t core = 0; core < PIE_TRAP_CORES; core++)
        log_places(core);
    if (!emulated || first_inference_logged || server->operators_run < server->model.operator_count) return;
    first_inference_logged = 1;
    char line[LINE_BYTES], *at = put_text(line, "vector instructions emulated since the start: ");
    at = put_number(at, executed(), 10);
    at = put_text(at, ", misaligned accesses: ");
    put_number(at, misaligned(), 10);
    tvit_server_log(server, line);
}

// Details have to be up to date before a request for them is read. Before anything was emulated they name no counts: a
// host asks once, when it connects, and would take them for the result.
static size_t read_bytes(void *user, uint8_t *bytes, size_t capacity) {
    const uint32_t now = executed(), wrong = misaligned();
    if (now != executed_shown || wrong != misaligned_shown) {
        executed_shown = now;
        misaligned_shown = wrong;
        char *at = put_text(details, "pie=emulated\npie_instructions_since_start=");
        at = put_number(at, now, 10);
        at = put_text(at, "\npie_misaligned_since_start=");
        at = put_number(at, wrong, 10);
        put_text(at, "\n");
    }
    return port_read(user, bytes, capacity);
}

void port_extend(tvit_port *port, tvit_server *its_server) {
    server = its_server;
    port_read = port->read;
    port->read = read_bytes;
    port->keep_alive = report;
    port->details = details;
    pie_probe();
    if (!executed()) return; // by a core that has the instructions: there is nothing to report
    emulated = 1;
    pie_trap_cores[0].executed = 0;
    put_text(details, "pie=emulated\n");
}
