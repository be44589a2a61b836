// SPDX-License-Identifier: Apache-2.0
#include "faults.h"

#include <stdio.h>
#include <string.h>

#include "app/crc32.h"
#include "esp_attr.h"
#include "esp_cpu.h"
#include "esp_private/panic_internal.h"
#include "esp_system.h"
#include "line.h"
#include "xtensa_context.h"

enum { RECORD_MAGIC = 0x54564650, TEXT_BYTES = 64 };
#define NO_OPERATOR 0xffffffffu

// Survives every reset but the loss of power, hence the checksum.
typedef struct {
    uint32_t magic, of_instruction; // 1: an exception, with cause and address; 0: of a watchdog, by abort()
    uint32_t cause, core, pc, address, operator_index;
    char text[TEXT_BYTES];
    uint32_t crc; // of what is in front of it
} fault_record;

static RTC_NOINIT_ATTR fault_record kept;
static fault_record last; // of the run before this one; magic 0: none
static const tvit_server *watched;

static uint32_t record_crc(const fault_record *record) {
    return tvit_crc32(0, record, offsetof(fault_record, crc));
}

void faults_watch(const tvit_server *server) {
    watched = server;
    if (kept.magic == RECORD_MAGIC && kept.crc == record_crc(&kept)) last = kept;
    kept.magic = 0;
    last.text[TEXT_BYTES - 1] = 0;
}

void __real_esp_panic_handler(panic_info_t *info);
void __wrap_esp_panic_handler(panic_info_t *info);

// The panic handler of ESP-IDF passes through here on its way to the restart; interrupts are off, the other core
// stands.
void __wrap_esp_panic_handler(panic_info_t *info) {
    const XtExcFrame *frame = info->frame;
    const char *text = g_panic_abort ? g_panic_abort_details : info->reason;
    if (!text) text = "a task gives no sign of life"; // an abort by the task watchdog has no details
    memset(&kept, 0, sizeof kept);
    kept.magic = RECORD_MAGIC;
    kept.of_instruction = frame && !g_panic_abort && !info->pseudo_excause;
    kept.core = (uint32_t)info->core;
    kept.pc = info->addr ? (uint32_t)(uintptr_t)info->addr : frame ? (uint32_t)frame->pc : 0;
    if (kept.of_instruction) {
        kept.cause = (uint32_t)frame->exccause;
        kept.address = (uint32_t)frame->excvaddr;
    }
    kept.operator_index = watched && watched->running ? watched->operators_run : NO_OPERATOR;
    for (size_t i = 0; text[i] && i < TEXT_BYTES - 1; i++)
        kept.text[i] = text[i];
    kept.crc = record_crc(&kept);
    __real_esp_panic_handler(info);
}

static const char *reset_text(esp_reset_reason_t reason) {
    switch (reason) {
    case ESP_RST_POWERON:
        return "power-on";
    case ESP_RST_EXT:
        return "reset pin";
    case ESP_RST_SW:
        return "reset";
    case ESP_RST_PANIC:
        return "panic";
    case ESP_RST_INT_WDT:
        return "interrupt watchdog";
    case ESP_RST_TASK_WDT:
        return "task watchdog";
    case ESP_RST_WDT:
        return "watchdog";
    case ESP_RST_BROWNOUT:
        return "brown-out: the supply is too weak";
    case ESP_RST_USB:
        return "reset over USB";
    case ESP_RST_JTAG:
        return "reset over JTAG";
    case ESP_RST_PWR_GLITCH:
        return "glitch of the supply";
    case ESP_RST_CPU_LOCKUP:
        return "lock-up of a core";
    default:
        return "unknown";
    }
}

const char *faults_boot_reason(void) {
    static char text[192]; // the longest of each part: 165
    const char *reason = reset_text(esp_reset_reason());
    if (last.magic != RECORD_MAGIC) return reason;
    size_t at = (size_t)snprintf(text, sizeof text, "%s: %s, core %lu, pc 0x%08lx", reason, last.text,
                                 (unsigned long)last.core, (unsigned long)last.pc);
    if (last.of_instruction)
        at += (size_t)snprintf(text + at, sizeof text - at, ", address 0x%08lx", (unsigned long)last.address);
    if (last.operator_index != NO_OPERATOR)
        snprintf(text + at, sizeof text - at, ", operator %lu", (unsigned long)last.operator_index);
    return text;
}

void faults_report(void) {
    static uint8_t packet[TVIT_LINK_PACKET_BYTES(TVIT_LINK_FAULT_BYTES + TEXT_BYTES)];
    static uint8_t frame[TVIT_LINK_FRAME_BYTES(TVIT_LINK_FAULT_BYTES + TEXT_BYTES)];
    if (last.magic != RECORD_MAGIC) return;
    uint8_t *p = packet + TVIT_LINK_HEADER_BYTES;
    const size_t length = strlen(last.text);
    tvit_put_u32(p, last.cause);
    tvit_put_u32(p + 4, last.core);
    tvit_put_u64(p + 8, last.pc);
    tvit_put_u64(p + 16, last.address);
    tvit_put_u32(p + 24, last.operator_index);
    tvit_put_u32(p + 28, 0);
    memcpy(p + TVIT_LINK_FAULT_BYTES, last.text, length);
    line_write(NULL, frame, tvit_frame_encode(packet, TVIT_LINK_FAULT, 0, 0, TVIT_LINK_FAULT_BYTES + length, frame));
}
