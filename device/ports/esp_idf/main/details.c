// SPDX-License-Identifier: Apache-2.0
#include "details.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

#include "esp_chip_info.h"
#include "esp_heap_caps.h"
#include "esp_idf_version.h"
#include "esp_mac.h"
#include "memory.h"
#include "sdkconfig.h"

#if CONFIG_SPIRAM_MODE_OCT
#define PSRAM_MODE "octal"
#elif CONFIG_SPIRAM
#define PSRAM_MODE "quad"
#endif
#if CONFIG_ESPTOOLPY_OCT_FLASH
#define FLASH_MODE "octal"
#elif CONFIG_ESPTOOLPY_FLASHMODE_QIO
#define FLASH_MODE "qio" // CONFIG_ESPTOOLPY_FLASHMODE is what the image's header says, and the ROM starts with dio
#else
#define FLASH_MODE CONFIG_ESPTOOLPY_FLASHMODE
#endif

static char *end_of_text, *limit;
static char *last_line; // the one that changes
static size_t least_free_heap;

__attribute__((format(printf, 1, 2))) static void add(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const int length = vsnprintf(end_of_text, (size_t)(limit - end_of_text), format, arguments);
    va_end(arguments);
    if (length > 0) end_of_text += length < limit - end_of_text ? length : limit - end_of_text - 1;
}

void details_write(char *text, size_t bytes, const char *why_portable) {
    end_of_text = text;
    limit = text + bytes;
    esp_chip_info_t chip;
    esp_chip_info(&chip);
    add("chip=ESP32-S3 revision v%d.%d\n", chip.revision / 100, chip.revision % 100);
    uint8_t mac[6];
    if (esp_efuse_mac_get_default(mac) == ESP_OK)
        add("mac=%02x:%02x:%02x:%02x:%02x:%02x\n", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
    if (memory_found.flash)
        add("flash=%lu MB %s %s\n", (unsigned long)(memory_found.flash >> 20), FLASH_MODE, CONFIG_ESPTOOLPY_FLASHFREQ);
#if CONFIG_SPIRAM
    if (memory_found.psram)
        add("psram=%lu MB %s %d MHz\n", (unsigned long)(memory_found.psram >> 20), PSRAM_MODE, CONFIG_SPIRAM_SPEED);
    else
        add("psram=none found\n");
    if (memory_found.psram_arena) add("arena_in_psram=%lu\n", (unsigned long)memory_found.psram_arena);
#else
    add("psram=not used\n");
#endif
    add("icache=%d KB, %d ways, lines of %d\n", CONFIG_ESP32S3_INSTRUCTION_CACHE_SIZE / 1024,
        CONFIG_ESP32S3_ICACHE_ASSOCIATED_WAYS, CONFIG_ESP32S3_INSTRUCTION_CACHE_LINE_SIZE);
    add("dcache=%d KB, %d ways, lines of %d\n", CONFIG_ESP32S3_DATA_CACHE_SIZE / 1024,
        CONFIG_ESP32S3_DCACHE_ASSOCIATED_WAYS, CONFIG_ESP32S3_DATA_CACHE_LINE_SIZE);
    add("free_sram_before_arena=%lu\n", (unsigned long)memory_found.free_before_arena);
    if (memory_found.model_error) add("model_error=%s\n", memory_found.model_error);
    if (why_portable) add("portable_kernels_because=%s\n", why_portable);
    add("idf=%s\ncompiler=gcc %s\n", esp_get_idf_version(), __VERSION__);
    last_line = end_of_text;
    least_free_heap = SIZE_MAX;
    details_refresh();
}

void details_refresh(void) {
    const size_t bytes = heap_caps_get_minimum_free_size(MALLOC_CAP_INTERNAL | MALLOC_CAP_8BIT);
    if (bytes >= least_free_heap) return;
    least_free_heap = bytes;
    end_of_text = last_line;
    add("least_free_heap=%lu\n", (unsigned long)bytes);
}
