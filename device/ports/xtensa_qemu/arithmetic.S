// SPDX-License-Identifier: Apache-2.0
// Helpers that the compiler calls and Debian's libgcc for lx106 leaves out (the ESP8266 has them in ROM). Written for the
// 32-bit divide option, which de212 and the ESP32-S3 have and the assembler's core has not.

// An instruction of format RRR with op0 = 0: quou 0xc2, quos 0xd2, remu 0xe2, rems 0xf2; r, s, t are register numbers.
    .macro rrr op, r, s, t
    .byte \t << 4, \r << 4 | \s, \op
    .endm

    .macro function name
    .section .text.\name, "ax"
    .align 4
    .global \name
    .type \name, @function
\name:
    .endm

    function __udivsi3
    rrr 0xc2, 2, 2, 3
    ret

    function __divsi3
    rrr 0xd2, 2, 2, 3
    ret

    function __umodsi3
    rrr 0xe2, 2, 2, 3
    ret

    function __modsi3
    rrr 0xf2, 2, 2, 3
    ret

// a3:a2 = a2 * a3, unsigned: schoolbook on 16-bit halves.
    function __umulsidi3
    mov a4, a2
    mull a2, a4, a3
    extui a5, a4, 16, 16
    extui a6, a3, 16, 16
    mul16u a7, a4, a3
    extui a7, a7, 16, 16
    mul16u a8, a4, a6
    add a7, a7, a8
    mul16u a8, a5, a3
    mul16u a3, a5, a6
    add a8, a8, a7
    bgeu a8, a7, 1f
    movi a7, 1
    slli a7, a7, 16
    add a3, a3, a7
1:  extui a8, a8, 16, 16
    add a3, a3, a8
    ret

// a3:a2 = a3:a2 * a5:a4, modulo 2^64.
    function __muldi3
    mull a9, a2, a5
    mull a10, a3, a4
    add a9, a9, a10
    mov a3, a4
    mov a11, a0
    call0 __umulsidi3 // keeps a9 .. a11
    add a3, a3, a9
    mov a0, a11
    ret
