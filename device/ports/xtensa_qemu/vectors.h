// SPDX-License-Identifier: Apache-2.0
// Vector offsets of the de212 core, and the layout of the frame a fault leaves; for C and the assembler.
#ifndef XTENSA_QEMU_VECTORS_H
#define XTENSA_QEMU_VECTORS_H

#define VECTOR_WINDOW 0x000
#define VECTOR_LEVEL2 0x180
#define VECTOR_LEVEL3 0x1c0
#define VECTOR_LEVEL4 0x200
#define VECTOR_LEVEL5 0x240
#define VECTOR_DEBUG 0x280
#define VECTOR_NMI 0x2c0
#define VECTOR_KERNEL 0x300
#define VECTOR_USER 0x340
#define VECTOR_DOUBLE 0x3c0

#define PS_UM 0x20
#define PS_EXCM 0x10

#define CAUSE_LEVEL1_INTERRUPT 4 // EXCCAUSE
#define CAUSE_ALIGNMENT 9

// Byte offsets in a fault frame.
#define FAULT_A0 0 // a0 .. a15
#define FAULT_VECTOR 64
#define FAULT_EPC 68
#define FAULT_CAUSE 72
#define FAULT_ADDRESS 76
#define FAULT_DEPC 80
#define FAULT_PS 84
#define FAULT_EPC6 88
#define FAULT_EPC7 92
#define FAULT_BUSY 96
#define FAULT_FRAME_BYTES 100

#endif
