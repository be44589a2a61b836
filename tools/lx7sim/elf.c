/* SPDX-License-Identifier: Apache-2.0 */
/* Loads the segments of a 32-bit little-endian Xtensa ELF file at their physical addresses. */
#include "core.h"

#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MACHINE_XTENSA = 94 };

static uint8_t *read_file(lx7_sim_t *sim, const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    uint8_t *data = NULL;
    long n = -1;
    struct stat facts;
    if (file && !fstat(fileno(file), &facts) && S_ISDIR(facts.st_mode))
        errno = EISDIR; // opens, and is LONG_MAX bytes long
    else if (file && !fseek(file, 0, SEEK_END))
        n = ftell(file);
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
    if (header->e_ident[EI_CLASS] != ELFCLASS32 || header->e_machine != MACHINE_XTENSA)
        return "an ELF file for another machine, not for Xtensa";
    if (header->e_ident[EI_DATA] != ELFDATA2LSB) return "a big-endian ELF file; the ESP32-S3 is little-endian";
    if (header->e_type != ET_EXEC) return "not an executable ELF file (link it first)";
    if (header->e_phnum == 0) return "has no program headers: nothing to load";
    if (header->e_phentsize != sizeof(Elf32_Phdr) || header->e_phoff > size ||
        (size - header->e_phoff) / sizeof(Elf32_Phdr) < header->e_phnum)
        return "its program headers are outside the file (truncated?)";
    return NULL;
}

typedef enum { CHECK, PLACE, PLACE_AND_CLEAR } action_on_segment_t;

static int segment_load(lx7_sim_t *sim, const char *path, unsigned index, const Elf32_Phdr *segment,
                        action_on_segment_t action) {
    uint64_t end = (uint64_t)segment->p_paddr + segment->p_memsz;
    if (action != CHECK) {
        uint32_t size = action == PLACE_AND_CLEAR ? segment->p_memsz : segment->p_filesz;
        memcpy(sim->mem + segment->p_paddr, sim->elf + segment->p_offset, segment->p_filesz);
        memset(sim->mem + segment->p_paddr + segment->p_filesz, 0, size - segment->p_filesz);
        code_drop(sim, segment->p_paddr, size);
        return 0;
    }
    if (segment->p_filesz > segment->p_memsz || segment->p_offset > sim->elf_size ||
        sim->elf_size - segment->p_offset < segment->p_filesz)
        return set_error(sim, "%s: segment %u is cut off (file truncated?)", path, index);
    bool inside = end <= 1ull << 32 && memory_mapped(sim, segment->p_paddr, segment->p_memsz);
    for (uint64_t at = segment->p_paddr; inside && at < end; at += PAGE_BYTES)
        inside = !(sim->ptab[at >> PAGE_BITS] & (PF_READ_ONLY | PF_DEVICE));
    if (!inside)
        return set_error(sim, "%s: segment %u at %08x..%08llx is outside the RAM of the memory map", path, index,
                         segment->p_paddr, (unsigned long long)end);
    return 0;
}

static int each_segment(lx7_sim_t *sim, const char *path, action_on_segment_t action) {
    Elf32_Ehdr header;
    int loaded = 0;
    bool entry_found = false;
    memcpy(&header, sim->elf, sizeof header);
    for (unsigned i = 0; i < header.e_phnum; i++) {
        Elf32_Phdr segment;
        memcpy(&segment, sim->elf + header.e_phoff + i * sizeof segment, sizeof segment);
        if (segment.p_type != PT_LOAD || segment.p_memsz == 0) continue;
        if (segment_load(sim, path, i, &segment, action)) return -1;
        entry_found |= header.e_entry - segment.p_vaddr < segment.p_memsz;
        loaded++;
    }
    if (!loaded) return set_error(sim, "%s: no loadable segment (missing .text section?)", path);
    if (!entry_found)
        return set_error(sim, "%s: entry point %08x is in no loaded segment (missing section?)", path, header.e_entry);
    sim->entry = header.e_entry;
    return 0;
}

/* The file stays in memory, for elf_place(). */
int elf_load(lx7_sim_t *sim, const char *path) {
    errno = 0;
    free(sim->elf);
    sim->elf = read_file(sim, path, &sim->elf_size);
    if (!sim->elf) return -1;
    Elf32_Ehdr header = {0};
    if (sim->elf_size >= sizeof header) memcpy(&header, sim->elf, sizeof header);
    const char *wrong = check_header(&header, sim->elf_size);
    return wrong ? set_error(sim, "%s: %s", path, wrong) : each_segment(sim, path, CHECK);
}

void elf_place(lx7_sim_t *sim, bool clear) {
    each_segment(sim, "", clear ? PLACE_AND_CLEAR : PLACE);
}
