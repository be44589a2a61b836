// SPDX-License-Identifier: Apache-2.0
// What pie_board_test.c puts behind each operator: three vector instructions, two of them at misaligned addresses.

#include "pie_codes.h"

    .section .text.execute_vectors, "ax"
    .align 4
    .literal_position
    .global execute_vectors, misaligned_load, misaligned_store
// void execute_vectors(void)
execute_vectors:
    movi a2, pie_board_data + 5
    movi a3, pie_board_data + 21
    VZERO_Q0
misaligned_load:
    VLD_Q0_A2
misaligned_store:
    VST_Q0_A3
    ret

    .section .bss.pie_board_data, "aw", @nobits
    .align 16
    .global pie_board_data
pie_board_data:
    .space 48
