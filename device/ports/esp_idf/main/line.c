// SPDX-License-Identifier: Apache-2.0
#include "line.h"

#include <string.h>

#include "app/framing.h"
#include "driver/uart.h"
#include "driver/uart_select.h"
#include "driver/usb_serial_jtag.h"
#include "driver/usb_serial_jtag_select.h"
#include "esp_rom_sys.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"
#include "sdkconfig.h"
#include "soc/interrupts.h"
#include "soc/soc.h"
#include "soc/uart_reg.h"

enum { UART = UART_NUM_0 };
enum { RECEIVE_BYTES = LINE_WINDOW_BYTES + 256, SEND_BYTES = 1024, SEND_PART = 512 };
enum { PATIENCE_TICKS = pdMS_TO_TICKS(200), WAIT_TICKS = pdMS_TO_TICKS(1000) };
enum { HELLO_BYTES = TVIT_LINK_FRAME_BYTES(TVIT_LINK_HELLO_BYTES) };

typedef struct {
    const char *name;
    size_t (*read)(uint8_t *bytes, size_t capacity);
    void (*write)(const uint8_t *bytes, size_t count);
    uint8_t recent[HELLO_BYTES]; // what has come since the last zero
    size_t count;                // HELLO_BYTES + 1: too much for a HELLO
} line;

static TaskHandle_t server_task;

static size_t read_uart(uint8_t *bytes, size_t capacity) {
    const int got = uart_read_bytes(UART, bytes, capacity, 0);
    return got > 0 ? (size_t)got : 0;
}

static void write_uart(const uint8_t *bytes, size_t count) {
    uart_write_bytes(UART, bytes, count);
}

static size_t read_usb(uint8_t *bytes, size_t capacity) {
    const int got = usb_serial_jtag_read_bytes(bytes, capacity, 0);
    return got > 0 ? (size_t)got : 0;
}

// When nobody takes the bytes, they are gone, as on any other line; and waiting for it once is enough.
static void write_usb(const uint8_t *bytes, size_t count) {
    static TickType_t patience = PATIENCE_TICKS;
    while (count) {
        const size_t part = count < SEND_PART ? count : SEND_PART;
        if (usb_serial_jtag_write_bytes(bytes, part, patience) <= 0) {
            patience = 0;
            return;
        }
        patience = PATIENCE_TICKS;
        bytes += part;
        count -= part;
    }
}

static line lines[] = {
    {.name = "usb", .read = read_usb, .write = write_usb},
    {.name = "uart0", .read = read_uart, .write = write_uart},
};
enum { LINES = sizeof lines / sizeof lines[0] };
static line *active; // NULL before the first HELLO
enum { UART_LINE = 1 };

// Both are called by the drivers' interrupts, on the core of the server.
static void wake_for_uart(uart_port_t uart, uart_select_notif_t event, BaseType_t *woken) {
    (void)uart;
    if (event == UART_SELECT_READ_NOTIF) vTaskNotifyGiveFromISR(server_task, woken);
}

static void wake_for_usb(usj_select_notif_t event, BaseType_t *woken) {
    if (event == USJ_SELECT_READ_NOTIF) vTaskNotifyGiveFromISR(server_task, woken);
}

// The boot ROM leaves the interrupt of UART0 enabled, as number 5, and a host may be sending already. ESP-IDF maps it
// elsewhere and switches it off then, which on the chip is all there is to do. Espressif's QEMU of 2026 takes an
// interrupt back from the number that its source is mapped to at that moment: 5 would stay pending, with nothing to
// answer, and the driver, which gets that number again, would never leave its handler.
static void take_back_interrupt_of_rom(void) {
    enum { OF_ROM = 5 };
    esp_rom_route_intr_matrix(0, ETS_UART0_INTR_SOURCE, OF_ROM);
    REG_WRITE(UART_INT_ENA_REG(UART), 0);
    esp_rom_route_intr_matrix(0, ETS_UART0_INTR_SOURCE, ETS_INVALID_INUM);
}

esp_err_t line_open(void) {
    server_task = xTaskGetCurrentTaskHandle();
    const uart_config_t settings = {
        .baud_rate = LINE_BAUD,
        .data_bits = UART_DATA_8_BITS,
        .parity = UART_PARITY_DISABLE,
        .stop_bits = UART_STOP_BITS_1,
        .flow_ctrl = UART_HW_FLOWCTRL_DISABLE,
        .source_clk = UART_SCLK_XTAL, // 40 MHz: 2 and 5 Mbaud are whole divisors of it
    };
    usb_serial_jtag_driver_config_t usb = {.tx_buffer_size = SEND_BYTES, .rx_buffer_size = RECEIVE_BYTES};
    take_back_interrupt_of_rom();
    esp_err_t error = uart_driver_install(UART, RECEIVE_BYTES, 0, 0, NULL, 0);
    if (!error) error = uart_param_config(UART, &settings);
    if (!error) error = usb_serial_jtag_driver_install(&usb);
    if (error) return error;
    uart_set_select_notif_callback(UART, wake_for_uart);
    usb_serial_jtag_set_select_notif_callback(wake_for_usb);
    return ESP_OK;
}

static int is_hello(const uint8_t *bytes, size_t count) {
    static tvit_frame_decoder decoder;
    tvit_frame frame;
    tvit_frame_status status = TVIT_FRAME_NONE;
    memset(&decoder, 0, sizeof decoder);
    tvit_frame_decode(&decoder, 0, &frame);
    for (size_t i = 0; i < count && status == TVIT_FRAME_NONE; i++)
        status = tvit_frame_decode(&decoder, bytes[i], &frame);
    return status == TVIT_FRAME_GOOD && frame.type == TVIT_LINK_HELLO && frame.bytes >= TVIT_LINK_HELLO_BYTES &&
           tvit_get_u32(frame.payload) == TVIT_LINK_MAGIC;
}

// Look for a HELLO on a line that is not the active one. Returns how many bytes of it are in `bytes`, and what is
// behind them stays in the driver.
static size_t listen(line *l, uint8_t *bytes, size_t capacity) {
    uint8_t byte;
    while (l->read(&byte, 1)) {
        if (l->count < HELLO_BYTES) l->recent[l->count] = byte;
        if (l->count <= HELLO_BYTES) l->count++;
        if (byte) continue;
        const size_t count = l->count;
        l->count = 0;
        if (count <= 1 || count > HELLO_BYTES || count + 1 > capacity || !is_hello(l->recent, count)) continue;
        active = l;
        bytes[0] = 0; // ends what the other line left half
        memcpy(bytes + 1, l->recent, count);
        return count + 1;
    }
    return 0;
}

size_t line_read(void *user, uint8_t *bytes, size_t capacity) {
    (void)user;
    for (line *l = lines; l < lines + LINES; l++) {
        const size_t got = l == active ? 0 : listen(l, bytes, capacity);
        if (got) return got;
    }
    return active ? active->read(bytes, capacity) : 0;
}

void line_write(void *user, const uint8_t *bytes, size_t count) {
    (void)user;
    for (line *l = lines; l < lines + LINES; l++)
        if (!active || l == active) l->write(bytes, count);
}

void line_set_baud(void *user, uint32_t baud) {
    (void)user;
    if (active != &lines[UART_LINE]) return;
    uart_wait_tx_done(UART, PATIENCE_TICKS);
    uart_set_baudrate(UART, baud);
}

void line_wait(void) {
    ulTaskNotifyTake(pdTRUE, WAIT_TICKS);
}

void line_drain(void) {
    uart_wait_tx_done(UART, PATIENCE_TICKS);
    usb_serial_jtag_wait_tx_done(PATIENCE_TICKS);
}

const char *line_name(void) {
    return active ? active->name : "none";
}
