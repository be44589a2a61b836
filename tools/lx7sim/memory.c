/* SPDX-License-Identifier: Apache-2.0 */
/* The memory map of kc705-nommu in one flat 4 GB reservation, and every access that is not plain SRAM. */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the simulator needs a little-endian host");

#define PAGES (1u << 20)

static const struct {
    uint32_t base, size;
    uint8_t flags;
} machine_map[] = {
    {RAM_BASE, RAM_SIZE, LX7_REGION_SRAM},
    {ROM_BASE, ROM_SIZE, LX7_REGION_SRAM},
    {IRAM_BASE, IRAM_SIZE, LX7_REGION_SRAM},
    {DRAM_BASE, DRAM_SIZE, LX7_REGION_SRAM},
    {IO_BASE, FLASH_SIZE, LX7_REGION_FLASH | PF_READ_ONLY},
    {IO_CACHED, FLASH_SIZE, LX7_REGION_FLASH | PF_READ_ONLY},
    {IO_BASE + FLASH_SIZE, IO_SIZE - FLASH_SIZE, LX7_REGION_DEVICE | PF_DEVICE},
    {IO_CACHED + FLASH_SIZE, IO_SIZE - FLASH_SIZE, LX7_REGION_DEVICE | PF_DEVICE},
};

static void set_page(lx7_sim_t *sim, uint32_t page, uint8_t flags) {
    if (stale_watched(sim, page)) flags |= PF_STORE_SLOW;
    if (sim->timing.sram_conflict) flags |= PF_LOAD_SLOW | PF_STORE_SLOW;
    sim->ptab[page] = flags;
    uint8_t *host = sim->mem + ((uint64_t)page << PAGE_BITS);
    sim->load_pages[page] = flags & PF_LOAD_SLOW ? NULL : host;
    sim->store_pages[page] = flags & PF_STORE_SLOW ? NULL : host;
}

static uint8_t slow_flags(uint8_t flags) {
    bool sram = (flags & PF_CLASS) == LX7_REGION_SRAM && flags & PF_MAPPED;
    flags &= (uint8_t) ~(PF_LOAD_SLOW | PF_STORE_SLOW);
    if (!sram) flags |= PF_LOAD_SLOW | PF_STORE_SLOW;
    if (flags & (PF_CODE | PF_READ_ONLY)) flags |= PF_STORE_SLOW;
    return flags;
}

void memory_update_page(lx7_sim_t *sim, uint32_t page) {
    set_page(sim, page, slow_flags(sim->ptab[page]));
}

int memory_init(lx7_sim_t *sim) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    sim->mem = mmap(NULL, (1ull << 32) + 4096, PROT_NONE, flags, -1, 0);
    sim->ptab = calloc(PAGES, 1);
    sim->load_pages = calloc(PAGES, sizeof *sim->load_pages);
    sim->store_pages = calloc(PAGES, sizeof *sim->store_pages);
    sim->flash_fd = -1;
    if (sim->mem == MAP_FAILED || !sim->ptab || !sim->load_pages || !sim->store_pages) return -1;
    for (uint32_t page = 0; page < PAGES; page++)
        sim->ptab[page] = PF_LOAD_SLOW | PF_STORE_SLOW;
    for (size_t i = 0; i < sizeof machine_map / sizeof *machine_map; i++) {
        uint32_t first = machine_map[i].base >> PAGE_BITS, n = machine_map[i].size >> PAGE_BITS;
        if (!(machine_map[i].flags & (PF_DEVICE | PF_READ_ONLY)) &&
            mprotect(sim->mem + machine_map[i].base, machine_map[i].size, PROT_READ | PROT_WRITE))
            return -1;
        for (uint32_t page = first; page < first + n; page++)
            set_page(sim, page, slow_flags(machine_map[i].flags | PF_MAPPED));
    }
    return memory_load_flash(sim, NULL);
}

void memory_free(lx7_sim_t *sim) {
    if (sim->mem != MAP_FAILED) munmap(sim->mem, (1ull << 32) + 4096);
    if (sim->flash_fd >= 0) close(sim->flash_fd);
    free(sim->ptab);
    free(sim->load_pages);
    free(sim->store_pages);
}

/* Timing classes of the configuration on top of the machine's map. */
void memory_map_regions(lx7_sim_t *sim) {
    for (size_t i = 0; i < sizeof machine_map / sizeof *machine_map; i++)
        for (uint32_t k = 0; k < machine_map[i].size >> PAGE_BITS; k++)
            memory_update_page(sim, (machine_map[i].base >> PAGE_BITS) + k);
    for (int i = 0; i < sim->n_regions; i++) {
        const region_t *region = &sim->region[i];
        uint64_t end = region->start + region->size;
        for (uint64_t address = region->start; address < end; address += PAGE_BYTES) {
            uint32_t page = (uint32_t)(address >> PAGE_BITS);
            uint8_t flags = sim->ptab[page];
            if (!(flags & PF_MAPPED) || flags & PF_DEVICE) continue;
            set_page(sim, page, slow_flags((uint8_t)((flags & ~PF_CLASS) | region->class_id)));
        }
    }
}

/* Both flash windows show the same file, private to the simulator; past its end they read 0xff. */
int memory_load_flash(lx7_sim_t *sim, const char *path) {
    int fd = memfd_create("lx7sim-flash", MFD_CLOEXEC);
    if (fd < 0) return set_error(sim, "no memory for the flash: %s", strerror(errno));
    uint64_t size = 0;
    if (path) {
        static uint8_t block[1 << 16];
        int in = open(path, O_RDONLY | O_CLOEXEC);
        struct stat st;
        if (in < 0 || fstat(in, &st)) {
            close(fd);
            if (in >= 0) close(in);
            return set_error(sim, "%s: %s", path, strerror(errno));
        }
        if (st.st_size > (off_t)FLASH_SIZE) {
            close(fd);
            close(in);
            return set_error(sim, "%s: %lld bytes, but the flash has %u", path, (long long)st.st_size, FLASH_SIZE);
        }
        ssize_t n;
        while ((n = read(in, block, sizeof block)) > 0) {
            if (write(fd, block, (size_t)n) != n) n = -1;
            if (n < 0) break;
            size += (uint64_t)n;
        }
        close(in);
        if (n < 0) {
            close(fd);
            return set_error(sim, "%s: %s", path, strerror(errno));
        }
    }
    uint64_t padded = (size + 0xffff) & ~0xffffull; /* erased up to the end of the 64 KB block, as flashing leaves it */
    if (padded > size) {
        static uint8_t erased[1 << 16];
        memset(erased, 0xff, sizeof erased);
        if (write(fd, erased, padded - size) != (ssize_t)(padded - size)) padded = size;
    }
    if (ftruncate(fd, FLASH_SIZE) ||
        mmap(sim->mem + IO_BASE, FLASH_SIZE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ||
        mmap(sim->mem + IO_CACHED, FLASH_SIZE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        close(fd);
        return set_error(sim, "cannot map the flash: %s", strerror(errno));
    }
    if (sim->flash_fd >= 0) close(sim->flash_fd);
    sim->flash_fd = fd;
    sim->flash_size = padded;
    return 0;
}

bool memory_mapped(const lx7_sim_t *sim, uint32_t address, uint64_t size) {
    for (uint64_t page = address >> PAGE_BITS; page <= (address + size - 1) >> PAGE_BITS; page++)
        if (page >= PAGES || !(sim->ptab[page] & PF_MAPPED)) return false;
    return true;
}

void memory_mark_code(lx7_sim_t *sim, uint32_t address) {
    uint32_t page = address >> PAGE_BITS;
    uint8_t flags = sim->ptab[page];
    if (flags & PF_MAPPED && !(flags & PF_CODE)) set_page(sim, page, slow_flags(flags | PF_CODE));
}

/* Whether the block of an SRAM address is also the one that the core fetches from while ip issues: sequential fetch
 * takes one word at a time, when ip uses the present one up, and none inside a loop that is in the loop buffer. */
static bool fetches_from_block(const cpu_t *cpu, const insn_t *ip, uint32_t address) {
    const timing_t *timing = &cpu->sim->timing;
    uint32_t word = (uint32_t)timing->fetch_word_bytes, block = (uint32_t)timing->sram_block_bytes;
    uint32_t end = ip->pc % word + (uint32_t)ip->next / INSN_STRIDE, next = (ip->pc / word + 1) * word;
    if (end < word || ip->flags & INSN_CACHED) return false;
    if (cpu->lcount && cpu->loop_small && ip->pc - cpu->lbeg < cpu->lend - cpu->lbeg) return false;
    return next / block == address / block;
}

/* Finds the timing class, checks the map and charges the time; false after a failed access. */
static bool charge(cpu_t *cpu, insn_t *ip, uint32_t address, uint32_t size, bool store) {
    lx7_sim_t *sim = cpu->sim;
    const timing_t *timing = &sim->timing;
    uint8_t flags = sim->ptab[address >> 12], last = sim->ptab[(address + size - 1) >> 12];
    if (unlikely(!(flags & last & PF_MAPPED) || (store && (flags | last) & PF_READ_ONLY))) {
        raise_address(cpu, ip, address, size, store ? "store to" : "load from");
        return false;
    }
    lx7_region_class_t class_id = flags & PF_CLASS;
    if (class_id != LX7_REGION_SRAM) insn_extra(cpu, ip)->access[class_id]++;
    if ((address & 15) + size > 16 && timing->memory_unaligned_crossing) {
        book_stall(cpu, ip, (uint64_t)timing->memory_unaligned_crossing, LX7_STALL_UNALIGNED);
        cpu->cyc += (uint64_t)timing->memory_unaligned_crossing;
    }
    if (class_id == LX7_REGION_SRAM && timing->sram_conflict && fetches_from_block(cpu, ip, address)) {
        book_stall(cpu, ip, (uint64_t)timing->sram_conflict, LX7_STALL_SRAM);
        cpu->cyc += (uint64_t)timing->sram_conflict;
    }
    if (flags & PF_DEVICE) {
        uint64_t n = (uint64_t)(store ? timing->memory_device_store : timing->memory_device_load);
        book_stall(cpu, ip, n, LX7_STALL_DEVICE);
        cpu->cyc += n;
    } else if (class_id != LX7_REGION_SRAM) {
        cache_data(cpu, ip, address, size, class_id, store);
    }
    return true;
}

uint32_t slow_load(cpu_t *cpu, insn_t *ip, uint32_t address, uint32_t size) {
    if (!charge(cpu, ip, address, size, false)) return 0;
    if (cpu->sim->ptab[address >> 12] & PF_DEVICE) return device_read(cpu, address, size);
    uint32_t value = 0;
    memcpy(&value, cpu->sim->mem + address, size);
    return value;
}

void slow_store(cpu_t *cpu, insn_t *ip, uint32_t address, uint32_t size, uint32_t value) {
    lx7_sim_t *sim = cpu->sim;
    if (!charge(cpu, ip, address, size, true)) return;
    if (sim->ptab[address >> 12] & PF_DEVICE) {
        device_write(cpu, address, size, value);
        return;
    }
    stale_before_store(sim, address, size);
    memcpy(sim->mem + address, &value, size);
    if ((sim->ptab[address >> 12] | sim->ptab[(address + size - 1) >> 12]) & PF_CODE) code_drop(sim, address, size);
}

/* ---- the PIE model's way to memory ----------------------------------------------------------------------- */

static bool pie_load(void *context, uint32_t address, void *data, uint32_t size) {
    cpu_t *cpu = context;
    if (!charge(cpu, cpu->ip, address, size, false)) return false;
    if (cpu->sim->ptab[address >> 12] & PF_DEVICE) {
        uint32_t value = device_read(cpu, address, size < 4 ? size : 4);
        memset(data, 0, size);
        memcpy(data, &value, size < 4 ? size : 4);
    } else {
        memcpy(data, cpu->sim->mem + address, size);
    }
    return true;
}

static bool pie_store(void *context, uint32_t address, const void *data, uint32_t size) {
    cpu_t *cpu = context;
    lx7_sim_t *sim = cpu->sim;
    if (!charge(cpu, cpu->ip, address, size, true)) return false;
    if (sim->ptab[address >> 12] & PF_DEVICE) {
        uint32_t value = 0;
        memcpy(&value, data, size < 4 ? size : 4);
        device_write(cpu, address, size < 4 ? size : 4, value);
        return true;
    }
    stale_before_store(sim, address, size);
    memcpy(sim->mem + address, data, size);
    if (sim->ptab[address >> 12] & PF_CODE) code_drop(sim, address, size);
    return true;
}

static void pie_misaligned(void *context, const pie_insn_t *insn, uint32_t address, uint32_t size) {
    cpu_t *cpu = context;
    if (cpu->ip->warned & WARNED_MISALIGNED) return;
    cpu->ip->warned |= WARNED_MISALIGNED;
    set_error(cpu->sim, "warning: %s at %08x: address %08x is not a multiple of %u; the chip clears the low bits",
              pie_opcode_info(insn->opcode)->mnemonic, cpu->ip->pc, address, size);
    if (cpu->sim->warn) cpu->sim->warn(cpu->sim->warn_context, cpu->sim->message);
}

void memory_init_pie_bus(cpu_t *cpu) {
    cpu->pie_core = (pie_core_t){
        .ar = cpu->a,
        .ar_mask = 15,
        .sar = &cpu->sar,
        .fr = cpu->f,
        .bus = {.load_pages = (uint8_t *const *)cpu->sim->load_pages,
                .store_pages = (uint8_t *const *)cpu->sim->store_pages,
                .page_shift = PAGE_BITS,
                .load = pie_load,
                .store = pie_store,
                .misaligned = pie_misaligned,
                .context = cpu},
    };
}
