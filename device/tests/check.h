// SPDX-License-Identifier: Apache-2.0
// A test program: CHECK what must hold, RUN each test, return check_result() from main. Prints one line a test.
#ifndef TVIT_CHECK_H
#define TVIT_CHECK_H

#include <stdio.h>

static int check_failures, check_failed_tests;

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition) && check_failures++ < 5) {                                                                    \
            printf("# %s:%d: %s: ", __FILE__, __LINE__, #condition);                                                   \
            printf(__VA_ARGS__);                                                                                       \
            printf("\n");                                                                                              \
        }                                                                                                              \
    } while (0)

#define RUN(test)                                                                                                      \
    do {                                                                                                               \
        check_failures = 0;                                                                                            \
        test();                                                                                                        \
        printf("%s %s\n", check_failures ? "not ok" : "ok", #test);                                                    \
        fflush(stdout);                                                                                                \
        check_failed_tests += check_failures != 0;                                                                     \
    } while (0)

static inline int check_result(void) {
    return check_failed_tests != 0;
}

#endif
