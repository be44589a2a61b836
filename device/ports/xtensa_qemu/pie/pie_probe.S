// SPDX-License-Identifier: Apache-2.0
// One vector instruction, to see whether the core executes it or traps.

#include "kernels/pie/assembler.h"

    .section .text.pie_probe, "ax"
    .align 4
    .global pie_probe
pie_probe:
    ee.zero.q q0
    ret
