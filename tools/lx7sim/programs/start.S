/* SPDX-License-Identifier: Apache-2.0 */
/* Entry of the bare test programs (call0): stack, main(), board reset, which ends QEMU with -no-reboot and lx7sim. */
    .section .text
    .literal_position
    .global _start
    .align 4
_start:
    movi    a1, _stack_top
    call0   main
    .global board_reset
board_reset:
    movi    a2, 0x9d020010
    movi    a3, 0xdead
    s32i    a3, a2, 0
1:  j       1b
