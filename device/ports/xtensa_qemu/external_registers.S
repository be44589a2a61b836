// SPDX-License-Identifier: Apache-2.0
// Access to the external registers, where the interrupt distributor is (formats RER and WER of the ISA manual).

    .section .text.external_registers, "ax"
    .align 4
// uint32_t read_external_register(uint32_t address)
    .global read_external_register
read_external_register:
    .byte 0x20, 0x62, 0x40 // rer a2, a2
    ret

    .align 4
// void write_external_register(uint32_t address, uint32_t value)
    .global write_external_register
write_external_register:
    .byte 0x30, 0x72, 0x40 // wer a3, a2
    ret
