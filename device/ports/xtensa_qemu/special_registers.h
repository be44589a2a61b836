// SPDX-License-Identifier: Apache-2.0
// Special registers that the assembler's core lacks, for .S files: rsr and wsr by number (format RSR of the ISA
// manual).
#ifndef XTENSA_QEMU_SPECIAL_REGISTERS_H
#define XTENSA_QEMU_SPECIAL_REGISTERS_H

#define SR_LBEG 0
#define SR_LEND 1
#define SR_LCOUNT 2
#define SR_EPC6 182
#define SR_EPC7 183

.macro rsr_raw register, number.byte \register << 4, \number,
    0x03.endm

        .macro wsr_raw register,
    number.byte \register << 4, \number, 0x13.endm

#endif
