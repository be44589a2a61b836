/* SPDX-License-Identifier: Apache-2.0 */
/* Loads the segments of a 32-bit little-endian Xtensa ELF file at their physical addresses. */
#include "core.h"

#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MACHINE_XTENSA = 94 };

static uint8_t *read_file(lx7_sim_t *sim, const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    uint8_t *data = NULL;
    long n = -1;
    if (file && !fseek(file, 0, SEEK_END)) n = ftell(file);
    if (n >= 0 && !fseek(file, 0, SEEK_SET)) data = malloc((size_t)n + 1);
    if (!data || fread(data, 1, (size_t)n, file) != (size_t)n) {
        set_error(sim, "%s: %s", path, errno ? strerror(errno) : "cannot be read");
        free(data);
        data = NULL;
    }
    if (file) fclose(file);
    *size = n < 0 ? 0 : (size_t)n;
    return data;
}

static const char *check_header(const Elf32_Ehdr *header, size_t size) {
    if (size < sizeof *header || memcmp(header->e_ident, ELFMAG, SELFMAG)) return "not an ELF file";
    if (header->e_ident[EI_CLASS] != ELFCLASS32 || header->e_machine != MACHINE_XTENSA) return "an ELF file for another machine, not for Xtensa";
    if (header->e_ident[EI_DATA] != ELFDATA2LSB) return "a big-endian ELF file; the ESP32-S3 is little-endian";
    if (header->e_type != ET_EXEC) return "not an executable ELF file (link it first)";
    if (header->e_phnum == 0) return "has no program headers: nothing to load";
    if (header->e_phentsize != sizeof(Elf32_Phdr) || header->e_phoff > size ||
        (size - header->e_phoff) / sizeof(Elf32_Phdr) < header->e_phnum)
        return "its program headers are outside the file (truncated?)";
    return NULL;
}

int elf_load(lx7_sim_t *sim, const char *path, bool clear) {
    size_t size;
    errno = 0;
    uint8_t *file = read_file(sim, path, &size);
    if (!file) return -1;
    Elf32_Ehdr header = {0};
    if (size >= sizeof header) memcpy(&header, file, sizeof header);
    const char *wrong = check_header(&header, size);
    if (wrong) {
        free(file);
        return set_error(sim, "%s: %s", path, wrong);
    }
    int loaded = 0, entry_found = 0;
    for (unsigned i = 0; i < header.e_phnum; i++) {
        Elf32_Phdr segment;
        memcpy(&segment, file + header.e_phoff + i * sizeof segment, sizeof segment);
        if (segment.p_type != PT_LOAD || segment.p_memsz == 0) continue;
        if (segment.p_filesz > segment.p_memsz || segment.p_offset > size || size - segment.p_offset < segment.p_filesz) {
            free(file);
            return set_error(sim, "%s: segment %u is cut off (file truncated?)", path, i);
        }
        uint64_t end = (uint64_t)segment.p_paddr + segment.p_memsz;
        bool inside = end <= 1ull << 32 && memory_mapped(sim, segment.p_paddr, segment.p_memsz);
        for (uint64_t at = segment.p_paddr; inside && at < end; at += PAGE_BYTES)
            inside = !(sim->ptab[at >> PAGE_BITS] & (PF_READ_ONLY | PF_DEVICE));
        if (!inside) {
            free(file);
            return set_error(sim, "%s: segment %u at %08x..%08llx is outside the RAM of the memory map", path, i,
                             segment.p_paddr, (unsigned long long)end);
        }
        memcpy(sim->mem + segment.p_paddr, file + segment.p_offset, segment.p_filesz);
        if (clear) memset(sim->mem + segment.p_paddr + segment.p_filesz, 0, segment.p_memsz - segment.p_filesz);
        entry_found |= header.e_entry - segment.p_vaddr < segment.p_memsz;
        loaded++;
    }
    free(file);
    if (!loaded) return set_error(sim, "%s: no loadable segment (missing .text section?)", path);
    if (!entry_found) return set_error(sim, "%s: entry point %08x is in no loaded segment (missing section?)", path, header.e_entry);
    sim->entry = header.e_entry;
    return 0;
}
