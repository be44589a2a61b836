/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For the assembly sources of this folder: the instructions, and one way to begin and end a function in both ABIs.
 *
 * Arguments arrive in a2 ... a7 in the windowed and in the call0 ABI; a function may use a2 ... a15 after kernel_enter.
 * kernel_return must be reached with a1 as kernel_enter left it. Define TVIT_ASSEMBLER_HAS_PIE where the assembler
 * knows the instructions of the ESP32-S3 (Espressif's does).
 */
#ifndef TVIT_PIE_ASSEMBLER_H
#define TVIT_PIE_ASSEMBLER_H

/* clang-format off */
#ifndef TVIT_ASSEMBLER_HAS_PIE
#include "pie.inc"
#endif

.macro kernel_function name:req
    .global \name
    .type \name, @function
    .balign 16
\name:
.endm

.macro kernel_enter
#ifdef __XTENSA_WINDOWED_ABI__
    entry a1, 32
#else
    addi a1, a1, -32
    s32i a0, a1, 0
    s32i a12, a1, 4
    s32i a13, a1, 8
    s32i a14, a1, 12
    s32i a15, a1, 16
#endif
.endm

.macro kernel_return
#ifdef __XTENSA_WINDOWED_ABI__
    retw
#else
    l32i a0, a1, 0
    l32i a12, a1, 4
    l32i a13, a1, 8
    l32i a14, a1, 12
    l32i a15, a1, 16
    addi a1, a1, 32
    ret
#endif
.endm
/* clang-format on */

#endif
