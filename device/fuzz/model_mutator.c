// SPDX-License-Identifier: Apache-2.0
#include "model_mutator.h"

#include <stdlib.h>
#include <string.h>

#include "app/crc32.h"
#include "app/framing.h"
#include "tvit/runtime.h"

enum { TAGS = 7 };
static const char tags[TAGS][5] = {"MODL", "TENS", "OPER", "PLAN", "NAME", "DATA", "META"};
static const uint32_t record_bytes[TAGS] = {
    sizeof(tvit_model_record), sizeof(tvit_tensor), sizeof(tvit_operator), sizeof(uint32_t), 1, 16, 1};

typedef struct {
    uint8_t *file;
    size_t bytes, most;
    uint64_t state;
} mutation;

static uint32_t draw(mutation *m, uint32_t below) {
    m->state = m->state * 6364136223846793005u + 1442695040888963407u;
    return below ? (uint32_t)(m->state >> 33) % below : 0;
}

static uint32_t sections_in(const uint8_t *file, size_t bytes) {
    if (bytes < sizeof(tvit_header)) return 0;
    const uint32_t told = tvit_get_u32(file + offsetof(tvit_header, section_count));
    const uint32_t room = (uint32_t)((bytes - sizeof(tvit_header)) / sizeof(tvit_section));
    const uint32_t count = told < room ? told : room;
    return count < TVIT_MAX_SECTIONS ? count : TVIT_MAX_SECTIONS;
}

// Entry `index` of the table; 0 where it reaches outside the file.
static int read_section(const uint8_t *file, size_t bytes, uint32_t index, tvit_section *section) {
    memcpy(section, file + sizeof(tvit_header) + index * sizeof *section, sizeof *section);
    return section->offset <= bytes && section->bytes <= bytes - section->offset;
}

static void write_section(uint8_t *file, uint32_t index, const tvit_section *section) {
    memcpy(file + sizeof(tvit_header) + index * sizeof *section, section, sizeof *section);
}

static int tag_of(const tvit_section *section) {
    for (int i = 0; i < TAGS; i++)
        if (!memcmp(section->tag, tags[i], 4)) return i;
    return TAGS - 1;
}

static int find_section(const uint8_t *file, size_t bytes, const char *tag, tvit_section *section) {
    for (uint32_t i = 0; i < sections_in(file, bytes); i++)
        if (read_section(file, bytes, i, section) && !memcmp(section->tag, tag, 4)) return (int)i;
    return -1;
}

static void seal_header(uint8_t *file, size_t bytes) {
    if (bytes < sizeof(tvit_header)) return;
    tvit_put_u32(file + offsetof(tvit_header, header_crc), tvit_crc32(0, file, offsetof(tvit_header, header_crc)));
}

static void seal_table(uint8_t *file, size_t bytes) {
    const uint32_t count = sections_in(file, bytes);
    if (bytes < sizeof(tvit_header)) return;
    tvit_put_u32(file + offsetof(tvit_header, table_crc),
                 tvit_crc32(0, file + sizeof(tvit_header), count * sizeof(tvit_section)));
    seal_header(file, bytes);
}

void model_seal(uint8_t *file, size_t bytes) {
    if (bytes < sizeof(tvit_header)) return;
    for (uint32_t i = 0; i < sections_in(file, bytes); i++) {
        tvit_section section;
        if (!read_section(file, bytes, i, &section)) continue;
        section.crc = tvit_crc32(0, file + section.offset, section.bytes);
        write_section(file, i, &section);
    }
    tvit_put_u32(file + offsetof(tvit_header, file_bytes), (uint32_t)bytes);
    seal_table(file, bytes);
}

int model_replan(uint8_t *file, size_t bytes, uint32_t fast_bytes) {
    uint32_t *offsets = malloc(TVIT_MAX_TENSORS * sizeof *offsets);
    tvit_plan_scratch *scratches = malloc(TVIT_MAX_OPERATORS * sizeof *scratches);
    void *copy = aligned_alloc(TVIT_ALIGN, (bytes / TVIT_ALIGN + 1) * TVIT_ALIGN);
    if (!offsets || !scratches || !copy) abort();
    memcpy(copy, file, bytes);
    tvit_model model;
    tvit_plan_result result;
    int done = 0;
    if (tvit_load_unplanned(&model, copy, bytes, NULL) == TVIT_OK &&
        (fast_bytes ? tvit_plan_split(&model, fast_bytes, &result, offsets, scratches)
                    : tvit_plan(&model, &result, offsets, scratches)) == TVIT_OK) {
        uint8_t *plan = file + ((const uint8_t *)model.plan - (const uint8_t *)copy);
        const uint32_t offset_bytes = model.tensor_count * (uint32_t)sizeof *offsets;
        const tvit_plan_record record = {result.arena_bytes, result.scratch_bytes, {0, 0}};
        memcpy(plan, &record, sizeof record);
        memcpy(plan + sizeof record, offsets, offset_bytes);
        memcpy(plan + sizeof record + offset_bytes, scratches, model.operator_count * sizeof *scratches);
        model_seal(file, bytes);
        done = 1;
    }
    free(copy);
    free(offsets);
    free(scratches);
    return done;
}

// --- the mutations -----------------------------------------------------------------------------------------------

static uint32_t awkward(mutation *m, uint32_t old) {
    static const uint32_t values[] = {0,     1,        2,        3,          4,          15,         16,
                                      17,    63,       64,       127,        128,        255,        256,
                                      2048,  2049,     4096,     4097,       32767,      32768,      65535,
                                      65536, 1u << 20, 1u << 28, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff};
    switch (draw(m, 5)) {
    case 0:
        return old ^ 1u << draw(m, 32);
    case 1:
        return old + draw(m, 33) - 16;
    case 2:
        return draw(m, 300);
    case 3:
        return draw(m, 2) ? old * 2 : old / 2;
    default:
        return values[draw(m, sizeof values / sizeof values[0])];
    }
}

static void change_value(mutation *m, uint8_t *content, uint32_t bytes) {
    const uint32_t width = 1u << draw(m, 3);
    if (bytes < width) return;
    const uint32_t at = draw(m, bytes / width) * width, from = draw(m, bytes / width) * width;
    uint32_t value = 0;
    if (draw(m, 8) == 0) {
        memmove(content + at, content + from, width); // of another field
        return;
    }
    memcpy(&value, content + at, width);
    value = awkward(m, value);
    memcpy(content + at, &value, width);
}

// A field of a record; of an operator more often those that its kind uses.
static void change_field(mutation *m, const tvit_section *section) {
    uint8_t *content = m->file + section->offset;
    const uint32_t each = record_bytes[tag_of(section)], records = section->bytes / each;
    if (!records) return;
    if (each < 16) {
        change_value(m, content, section->bytes);
        return;
    }
    const uint32_t used = each == sizeof(tvit_operator) ? 52 : each == sizeof(tvit_model_record) ? 32 : each;
    change_value(m, content + draw(m, records) * each, draw(m, 4) ? used : each);
}

static void copy_record(mutation *m, const tvit_section *section) {
    const uint32_t each = record_bytes[tag_of(section)], records = section->bytes / each;
    if (!records) return;
    uint8_t *content = m->file + section->offset;
    memmove(content + draw(m, records) * each, content + draw(m, records) * each, each);
}

// Rewrite the file with `count` bytes taken out of a section at `at`, or put in there; sections are laid out anew.
static void resize_section(mutation *m, uint32_t index, uint32_t at, uint32_t count, int put_in) {
    const uint32_t sections = sections_in(m->file, m->bytes);
    const size_t start = sizeof(tvit_header) + sections * sizeof(tvit_section);
    uint8_t *made = calloc(1, m->most + TVIT_ALIGN);
    if (!made) abort();
    memcpy(made, m->file, start);
    size_t end = (start + TVIT_ALIGN - 1) / TVIT_ALIGN * TVIT_ALIGN;
    for (uint32_t i = 0; i < sections; i++) {
        tvit_section section;
        const int whole = read_section(m->file, m->bytes, i, &section);
        const uint8_t *content = m->file + section.offset;
        const uint32_t head = i == index ? at : section.bytes, taken = i == index && !put_in ? count : 0;
        const uint32_t added = i == index && put_in ? count : 0, bytes = section.bytes - taken + added;
        const uint32_t each = record_bytes[tag_of(&section)];
        if (!whole || end + bytes > m->most) {
            free(made);
            return;
        }
        memcpy(made + end, content, head);
        for (uint32_t j = 0; j < added; j++) // like what lies there, so that a record is put in doubled
            made[end + head + j] = head + j < section.bytes ? content[head + j] : 0;
        memcpy(made + end + head + added, content + head + taken, section.bytes - head - taken);
        if (i == index && section.count && each > 1) section.count = section.count + added / each - taken / each;
        section.offset = (uint32_t)end;
        section.bytes = bytes;
        write_section(made, i, &section);
        end = (end + bytes + TVIT_ALIGN - 1) / TVIT_ALIGN * TVIT_ALIGN;
    }
    if (end <= m->most) {
        memcpy(m->file, made, end);
        m->bytes = end;
    }
    free(made);
}

static void add_or_remove(mutation *m, uint32_t index, const tvit_section *section) {
    const int tag = tag_of(section), put_in = (int)draw(m, 2);
    const uint32_t each = record_bytes[tag], records = section->bytes / each, at = draw(m, records + 1) * each;
    const uint32_t count = each * (each < 4 ? 1 + draw(m, 40) : 1);
    if (!put_in && (at > section->bytes || section->bytes - at < count)) return;
    resize_section(m, index, at, count, put_in);
    tvit_section plan; // an offset a tensor, a scratch an operator
    const uint32_t share = tag == 1 ? sizeof(uint32_t) : tag == 2 ? sizeof(tvit_plan_scratch) : 0;
    const int found = share ? find_section(m->file, m->bytes, "PLAN", &plan) : -1;
    if (found >= 0 && plan.bytes >= share)
        resize_section(m, (uint32_t)found, plan.bytes - (put_in ? 0 : share), share, put_in);
}

static void change_framing(mutation *m) {
    const uint32_t sections = sections_in(m->file, m->bytes);
    uint8_t *table = m->file + sizeof(tvit_header);
    uint8_t swap[sizeof(tvit_section)];
    switch (draw(m, 4)) {
    case 0:
        change_value(m, m->file, sizeof(tvit_header));
        break;
    case 1:
        change_value(m, table, sections * (uint32_t)sizeof(tvit_section));
        break;
    case 2:
        if (sections < 2) break;
        uint8_t *a = table + draw(m, sections) * sizeof swap, *b = table + draw(m, sections) * sizeof swap;
        memcpy(swap, a, sizeof swap);
        memmove(a, b, sizeof swap);
        memcpy(b, swap, sizeof swap);
        break;
    default: // shorter or longer
        if (draw(m, 2) && m->bytes + TVIT_ALIGN <= m->most) {
            memset(m->file + m->bytes, (int)draw(m, 256), TVIT_ALIGN);
            m->bytes += draw(m, 4) ? TVIT_ALIGN : 1 + draw(m, TVIT_ALIGN);
        } else {
            m->bytes -= draw(m, 2) ? draw(m, (uint32_t)m->bytes) : TVIT_ALIGN;
        }
    }
}

static void change(mutation *m) {
    // MODL, TENS, OPER and PLAN have the most rules.
    static const uint8_t favoured[] = {0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 4, 5, 5, 5, 6};
    tvit_section section;
    const char *tag = tags[favoured[draw(m, sizeof favoured)]];
    const int index = find_section(m->file, m->bytes, tag, &section);
    if (m->bytes <= sizeof(tvit_header) + TVIT_ALIGN) {
        change_value(m, m->file, (uint32_t)m->bytes);
        return;
    }
    const uint32_t kind = draw(m, 16);
    if (index < 0 || kind == 0)
        change_framing(m);
    else if (kind == 1)
        copy_record(m, &section);
    else if (kind == 2)
        add_or_remove(m, (uint32_t)index, &section);
    else
        change_field(m, &section);
}

size_t model_mutate(uint8_t *file, size_t bytes, size_t most, uint32_t seed) {
    mutation m = {file, bytes, most, seed};
    draw(&m, 1);
    const uint32_t edits = 1 + draw(&m, 3), finish = draw(&m, 16);
    for (uint32_t i = 0; i < edits; i++)
        change(&m);
    if (finish == 0) return m.bytes; // with whatever checksums there were
    if (finish == 1) {
        seal_table(file, m.bytes); // a wrong CRC of a section, or a wrong size
        return m.bytes;
    }
    if (finish == 2) {
        seal_header(file, m.bytes);
        return m.bytes;
    }
    model_seal(file, m.bytes);
    if (finish > 5) model_replan(file, m.bytes, 0);
    return m.bytes;
}
