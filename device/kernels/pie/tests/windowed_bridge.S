// SPDX-License-Identifier: Apache-2.0
// Lets call0 code call the assembly of linear operators built for the windowed ABI, whose functions a test has renamed:
// the compiler here makes call0 code only, the ESP32-S3's makes windowed code. For a simulator: no window ever overflows.

    .text
    .align 4
    .literal_position

    .macro bridge name
    .global \name
    .type \name, @function
    .align 4
\name:
    addi a1, a1, -32
    s32i a0, a1, 0
    s32i a12, a1, 4
    s32i a13, a1, 8
    s32i a14, a1, 12
    s32i a15, a1, 16
    rsr.ps a8
    movi a9, 0x40000 // PS.WOE
    or a8, a8, a9
    wsr.ps a8
    rsync
    mov a10, a2
    mov a11, a3
    mov a12, a4
    mov a13, a5
    mov a14, a6
    movi a8, windowed_\name
    .byte 0xe0, 0x08, 0x00 // callx8 a8
    mov a2, a10
    l32i a0, a1, 0
    l32i a12, a1, 4
    l32i a13, a1, 8
    l32i a14, a1, 12
    l32i a15, a1, 16
    addi a1, a1, 32
    ret
    .endm

    bridge tvit_pie_records
    bridge tvit_stream_i8_pie
    bridge tvit_stream_i8_127_pie
    bridge tvit_stream_table_pie
    bridge tvit_stream_i16_add_pie
    bridge tvit_stream_i16_set_pie
    bridge tvit_lanes_i8_pie
    bridge tvit_lanes_table_pie
    bridge tvit_lanes_i16_add_pie
    bridge tvit_lanes_i16_set_pie
    bridge tvit_lanes_none_pie
    bridge tvit_trits_decode_pie
    bridge tvit_gain_pie
