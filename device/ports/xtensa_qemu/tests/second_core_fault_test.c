// SPDX-License-Identifier: Apache-2.0
// The firmware with a fault on the second core behind the third operator of an inference, while the first one waits.

#include "ports/xtensa_qemu/port_extension.h"

static const tvit_port *port_in_use;
static tvit_server *server;

uint32_t load_on_second_core(const volatile uint32_t *address);
uint32_t load_on_second_core(const volatile uint32_t *address) {
    return *address;
}

static void work(void *argument, const tvit_team *team) {
    if (team->part == 1) load_on_second_core(argument);
}

static void fail(void *user) {
    (void)user;
    if (server->operators_run == 3)
        port_in_use->cores->run(port_in_use->cores->user, work, (void *)port_in_use->invalid_address);
}

void port_extend(tvit_port *port, tvit_server *its_server) {
    port_in_use = port;
    server = its_server;
    port->keep_alive = fail;
}
