// SPDX-License-Identifier: Apache-2.0
// The firmware of qemu-xtensa-pie with vector instructions behind each operator of an inference.

#define port_extend extend_with_report
#include "ports/xtensa_qemu/pie/pie_report.c"
#undef port_extend

void execute_vectors(void); // pie_board.S
void port_extend(tvit_port *port, tvit_server *its_server);

static void execute_and_report(void *user) {
    execute_vectors();
    report(user);
}

void port_extend(tvit_port *port, tvit_server *its_server) {
    extend_with_report(port, its_server);
    port->keep_alive = execute_and_report;
}
