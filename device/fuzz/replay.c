// SPDX-License-Identifier: Apache-2.0
// A fuzz target as a plain program: runs the files and folders that it is given, any compiler, no libFuzzer.
// Prints the number of inputs; a finding ends it with a signal or the sanitizer's report.
#include <dirent.h>
#include <errno.h>
#include <string.h>

#include "fuzz.h"

static unsigned long inputs;

static void replay_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        fprintf(stderr, "cannot read %s: %s\n", path, strerror(errno));
        exit(2);
    }
    fseek(file, 0, SEEK_END);
    const long bytes = ftell(file);
    rewind(file);
    uint8_t *data = malloc(bytes > 0 ? (size_t)bytes : 1); // exactly sized: a byte too many is seen
    if (!data || fread(data, 1, (size_t)bytes, file) != (size_t)bytes) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(2);
    }
    fclose(file);
    fprintf(stderr, "%s\n", path); // the last one named is the one that failed
    LLVMFuzzerTestOneInput(data, (size_t)bytes);
    free(data);
    inputs++;
}

static void replay(const char *path) {
    DIR *folder = opendir(path);
    if (!folder) {
        replay_file(path);
        return;
    }
    for (const struct dirent *entry; (entry = readdir(folder));) {
        char name[4096];
        if (entry->d_name[0] == '.') continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        replay(name);
    }
    closedir(folder);
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        replay(argv[i]);
    printf("%lu\n", inputs);
    return 0;
}
