/* SPDX-License-Identifier: Apache-2.0 */
/* Start of the test program: a stack, main, the exit of semihosting. */
    .text
    .global _start
    .align  4
_start:
    movi    a1, stack_top
    movi    a0, main
    callx0  a0
    mov     a3, a2
    movi    a2, 1               /* exit */
    .byte   0x00, 0x51, 0x00    /* simcall */
1:  j       1b

    .section .rodata
    .global cases
    .align  16
cases:
    .incbin CASES_FILE
cases_end:
    .global case_count
    .align  4
case_count:
    .word   (cases_end - cases) / CASE_SIZE

    .bss
    .align  16
    .space  65536
stack_top:
