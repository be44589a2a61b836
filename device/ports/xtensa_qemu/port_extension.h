// SPDX-License-Identifier: Apache-2.0
// For what a build adds to the port, such as pie/. A build without it pays one empty call at its start.
#ifndef XTENSA_QEMU_PORT_EXTENSION_H
#define XTENSA_QEMU_PORT_EXTENSION_H

#include "app/port.h"
#include "app/server.h"

// Called before the server starts. May change the port's hooks, and keep both pointers to log through the server.
void port_extend(tvit_port *port, tvit_server *server);

#endif
