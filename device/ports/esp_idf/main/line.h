// SPDX-License-Identifier: Apache-2.0
// Two lines to the host, USB-Serial-JTAG and UART0. The link runs over the one on which the last valid HELLO arrived;
// before the first one, what the board says goes to both.
#ifndef ESP_IDF_LINE_H
#define ESP_IDF_LINE_H

#include <stddef.h>
#include <stdint.h>

#include "esp_err.h"

enum { LINE_BAUD = 115200, LINE_MOST_BAUD = 5000000 }; // of UART0: at the start, and what the chip can
enum { LINE_WINDOW_BYTES = 2048 }; // what the host may send ahead: less than the drivers' buffers hold

esp_err_t line_open(void);

// For tvit_port. The first argument is not used.
size_t line_read(void *user, uint8_t *bytes, size_t capacity);
void line_write(void *user, const uint8_t *bytes, size_t count);

// For tvit_port: the rate of UART0. USB has none, and its link does not change that of UART0.
void line_set_baud(void *user, uint32_t baud);

// Until a byte arrives, at most a second.
void line_wait(void);

// Until what was written has left, or nobody takes it.
void line_drain(void);

// "usb", "uart0" or "none".
const char *line_name(void);

#endif
