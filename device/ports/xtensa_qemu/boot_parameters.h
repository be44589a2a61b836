// SPDX-License-Identifier: Apache-2.0
// What the loader tells the program: the tag list that Linux for Xtensa defines, of which QEMU fills in `-append TEXT`.
#ifndef XTENSA_QEMU_BOOT_PARAMETERS_H
#define XTENSA_QEMU_BOOT_PARAMETERS_H

#include <stddef.h>
#include <stdint.h>

// The command line in the list at `address` (register a2 at reset), "" where there is no list.
const char *boot_command_line(uint32_t address);

// The value of `key` in a line of "key=value" words; copied to value (capacity bytes, cut and terminated). NULL when
// absent.
const char *boot_option(const char *line, const char *key, char *value, size_t capacity);

#endif
