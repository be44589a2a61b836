/* SPDX-License-Identifier: Apache-2.0 */
/* Reads esp32s3.toml: the subset of TOML with [tables], [[region]] and integer or string values. */
#include "core.h"

#include <ctype.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    size_t offset;
    int64_t low, high;
} parameters[] = {
#define PARAMETER(section, name, low, high) {#section "." #name, offsetof(timing_t, section##_##name), low, high},
#include "parameters.def"
#undef PARAMETER
};

enum { N_PARAMETERS = sizeof parameters / sizeof *parameters };

static int find(const char *name) {
    for (int i = 0; i < N_PARAMETERS; i++)
        if (!strcmp(parameters[i].name, name)) return i;
    return -1;
}

static int64_t *place(lx7_sim_t *sim, int i) {
    return (int64_t *)((char *)&sim->timing + parameters[i].offset);
}

const char *lx7_parameter_name(int i) {
    return i >= 0 && i < N_PARAMETERS ? parameters[i].name : NULL;
}

int lx7_set_parameter(lx7_sim_t *sim, const char *name, int64_t value) {
    int i = find(name);
    if (i < 0) return set_error(sim, "unknown parameter %s", name);
    if (value < parameters[i].low || value > parameters[i].high)
        return set_error(sim, "%s = %lld is outside %lld..%lld", name, (long long)value, (long long)parameters[i].low,
                         (long long)parameters[i].high);
    *place(sim, i) = value;
    return 0;
}

int lx7_get_parameter(const lx7_sim_t *sim, const char *name, int64_t *value) {
    int i = find(name);
    if (i < 0) return -1;
    *value = *place((lx7_sim_t *)sim, i);
    return 0;
}

static char *strip(char *text) {
    while (isspace((unsigned char)*text))
        text++;
    size_t n = strlen(text);
    while (n && isspace((unsigned char)text[n - 1]))
        text[--n] = 0;
    return text;
}

static void cut_comment(char *line) {
    bool quoted = false;
    for (; *line; line++) {
        if (*line == '"') quoted = !quoted;
        if (*line == '#' && !quoted) *line = 0;
        if (!*line) return;
    }
}

static bool parse_integer(const char *text, int64_t *value) {
    char digits[40], *end;
    size_t n = 0;
    for (; *text && n < sizeof digits - 1; text++)
        if (*text != '_') digits[n++] = *text;
    digits[n] = 0;
    errno = 0;
    *value = strtoll(digits, &end, 0);
    return n && !*end && !errno;
}

static const char *const class_names[LX7_REGION_CLASSES] = {"sram", "flash", "psram", "device"};

const char *lx7_region_name(lx7_region_class_t class_id) {
    return (unsigned)class_id < LX7_REGION_CLASSES ? class_names[class_id] : NULL;
}

/* One key of the current [[region]]; NULL or what is wrong with it. */
static const char *set_region(region_t *region, const char *key, char *value) {
    int64_t number;
    size_t n = strlen(value);
    if (!strcmp(key, "name") || !strcmp(key, "class")) {
        if (n < 2 || value[0] != '"' || value[n - 1] != '"') return "expected a string";
        value[n - 1] = 0;
        value++;
        if (key[0] == 'n') {
            snprintf(region->name, sizeof region->name, "%s", value);
            return NULL;
        }
        for (int i = 0; i < LX7_REGION_DEVICE; i++)
            if (!strcmp(value, class_names[i])) {
                region->class_id = (lx7_region_class_t)i;
                return NULL;
            }
        return "class is one of sram, flash, psram";
    }
    if (!parse_integer(value, &number) || number < 0 || number > 0x100000000ll || number & (PAGE_BYTES - 1))
        return "expected an address or size, a multiple of 4096";
    if (!strcmp(key, "start"))
        region->start = (uint32_t)number;
    else if (!strcmp(key, "size"))
        region->size = (uint64_t)number;
    else
        return "unknown key";
    return NULL;
}

int config_load(lx7_sim_t *sim, const char *path) {
    FILE *file = fopen(path, "r");
    char line[512], section[64] = "";
    bool seen[N_PARAMETERS] = {false};
    int number = 0;
    region_t *region = NULL;
    if (!file) return set_error(sim, "%s: %s", path, strerror(errno));
    sim->n_regions = 0;
    while (fgets(line, sizeof line, file)) {
        const char *wrong = NULL;
        number++;
        cut_comment(line);
        char *text = strip(line), *equals = strchr(text, '=');
        size_t n = strlen(text);
        if (!n) continue;
        if (!strcmp(text, "[[region]]")) {
            if (sim->n_regions == MAX_REGIONS) {
                wrong = "too many regions";
            } else {
                region = &sim->region[sim->n_regions++];
                memset(region, 0, sizeof *region);
            }
        } else if (text[0] == '[') {
            region = NULL;
            if (text[n - 1] != ']' || n > sizeof section) {
                wrong = "expected [section]";
            } else {
                text[n - 1] = 0;
                snprintf(section, sizeof section, "%s", text + 1);
            }
        } else if (!equals) {
            wrong = "expected key = value";
        } else {
            char name[160];
            int64_t value;
            *equals = 0;
            char *key = strip(text), *right = strip(equals + 1);
            if (region) {
                wrong = set_region(region, key, right);
            } else {
                snprintf(name, sizeof name, "%s.%s", section, key);
                int i = find(name);
                if (i < 0)
                    wrong = "unknown parameter";
                else if (!parse_integer(right, &value))
                    wrong = "expected an integer";
                else if (lx7_set_parameter(sim, name, value)) {
                    fclose(file);
                    char detail[200];
                    snprintf(detail, sizeof detail, "%.199s", sim->message);
                    return set_error(sim, "%s:%d: %s", path, number, detail);
                } else
                    seen[i] = true;
            }
        }
        if (wrong) {
            fclose(file);
            return set_error(sim, "%s:%d: %s", path, number, wrong);
        }
    }
    int failure = ferror(file) ? errno : 0; /* a folder opens, and cannot be read */
    fclose(file);
    if (failure) return set_error(sim, "%s: %s", path, strerror(failure));
    for (int i = 0; i < N_PARAMETERS; i++)
        if (!seen[i]) return set_error(sim, "%s: %s is not set", path, parameters[i].name);
    sim->configured = true;
    return 0;
}
