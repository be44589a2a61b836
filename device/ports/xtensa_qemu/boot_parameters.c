// SPDX-License-Identifier: Apache-2.0
#include "boot_parameters.h"

#include <string.h>

#include "hardware.h"

enum { TAG_COMMAND_LINE = 0x1001, TAG_FIRST = 0x7b0b, TAG_LAST = 0x7e0b };
enum { TAGS_AT_MOST = 16 };

typedef struct {
    uint16_t tag, bytes; // bytes: of the data that follow
} boot_tag;

extern uint8_t __ram_end[];

static int readable(uint32_t address) {
    return address - SYSROM_BASE < SYSROM_BYTES - 256 || (address >= RAM_BASE && address < (uintptr_t)__ram_end - 256);
}

const char *boot_command_line(uint32_t address) {
    if (address % 4 != 0 || !readable(address)) return "";
    const boot_tag *tag = (const boot_tag *)(uintptr_t)address;
    if (tag->tag != TAG_FIRST) return "";
    for (int i = 0; i < TAGS_AT_MOST && tag->tag != TAG_LAST && readable((uint32_t)(uintptr_t)tag); i++) {
        const char *data = (const char *)(tag + 1);
        if (tag->tag == TAG_COMMAND_LINE && tag->bytes && !data[tag->bytes - 1]) return data;
        tag = (const boot_tag *)(data + tag->bytes);
    }
    return "";
}

const char *boot_option(const char *line, const char *key, char *value, size_t capacity) {
    const size_t key_bytes = strlen(key);
    while (*line) {
        const char *word = line;
        while (*line && *line != ' ')
            line++;
        if ((size_t)(line - word) > key_bytes && word[key_bytes] == '=' && !memcmp(word, key, key_bytes)) {
            word += key_bytes + 1;
            size_t bytes = (size_t)(line - word);
            if (bytes >= capacity) bytes = capacity - 1;
            memcpy(value, word, bytes);
            value[bytes] = 0;
            return value;
        }
        while (*line == ' ')
            line++;
    }
    return NULL;
}
