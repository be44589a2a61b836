# SPDX-License-Identifier: Apache-2.0
"""Vector instructions on the emulated core without them: trapped, executed by the PIE model, continued."""

from __future__ import annotations

import struct

import pytest
from board_programs import Program, emulated  # noqa: F401 - a fixture
from pie_model_library import BY_NAME, pie_tables, read_cases
from test_pie_model_xtensa import record

from tvhil.boards import build, load_board
from tvhil.runtime import device_dir

pytestmark = pytest.mark.emulator

# Macro of pie_loops.S: opcode and its operands in the order of the manual.
CODES = {
    "VLD_Q0_A2": ("ee.vld.128.ip", 0, 2, 16),
    "VST_Q0_A3": ("ee.vst.128.ip", 0, 3, 16),
    "VZERO_Q0": ("ee.zero.q", 0),
    "VMULAS_ACCX_Q0_Q0": ("ee.vmulas.s8.accx", 0, 0),
    "VMULAS_ACCX_LD_Q0_A2_Q0_Q0": ("ee.vmulas.s8.accx.ld.ip", 0, 2, 16, 0, 0),
}


def encoding(name, *operands):
    opcode = BY_NAME[name]
    code = pie_tables.encode(opcode, dict(zip(opcode.operands, operands, strict=True)))
    return ", ".join(f"0x{byte:02x}" for byte in code)


def matrix_round():
    """The inner loop of an int8 matrix product: a load of activations, sixteen MAC with the next weights' load."""
    macs = [encoding("ee.vsmulas.s8.qacc.ld.incp", 1 + (i + 2) % 6, 2, 1 + i % 6, 0, i) for i in range(16)]
    return ".byte " + ", ".join([encoding("ee.vld.128.ip", 0, 2, 16), *macs])


@pytest.fixture(scope="module")
def start_program(emulated, tmp_path_factory):  # noqa: F811
    """Starts the test program; the golden cases lie in its flash."""
    folder = tmp_path_factory.mktemp("pie")
    lines = [f"#define {name} .byte {encoding(*code)}" for name, code in CODES.items()]
    lines.append(f"#define MATRIX_ROUND {matrix_round()}")
    (folder / "pie_codes.h").write_text("\n".join(lines) + "\n")
    flash = folder / "flash.img"
    records = [record(case) for case in read_cases()]
    with flash.open("wb") as file:
        file.write(struct.pack("<4I", len(records), 0, 0, 0) + b"".join(records))
        file.truncate(emulated.memory.flash)
    device = device_dir()
    port = device / "ports" / "xtensa_qemu"
    sources = [*sorted((port / "pie").glob("pie_trap.*[cS]")), port / "tests" / "pie_loops.S"]
    sources += sorted((device / "pie_model").glob("*.c"))
    flags = ["-DPIE_DIRECT_MEMORY", f"-I{device / 'pie_model'}", f"-I{folder}"]
    return lambda: Program(emulated, "pie_test", flash, sources, flags)


@pytest.fixture
def program(start_program):
    with start_program() as running:
        running.lines("ready")
        yield running


def ask(program, part):
    program.send(part)
    return [line.split() for line in program.lines("end")]


def test_every_golden_case_holds_through_the_trap(program):
    count = f"{len(read_cases()):x}"
    assert ask(program, b"g") == [["golden", count, "0", count]]


def test_loops_branches_and_calls_go_on_behind_a_vector_instruction_with_interrupts_everywhere(program):
    rows = ask(program, b"l")
    assert [row[:3] for row in rows] == [["routine", f"{which:x}", "0"] for which in range(6)]
    assert all(int(taken, 16) > 200 for _, _, _, taken in rows), "interrupts hit every routine all along"


def test_a_vector_instruction_costs_a_few_hundred_instructions(program):
    [[_, executed, instructions]] = ask(program, b"c")
    executed, instructions = int(executed, 16), int(instructions, 16)
    assert executed == 17 * 5000
    assert instructions / executed < 500


def test_a_vector_load_from_nowhere_is_the_fault_of_that_instruction(program):
    [[_, address], fault] = ask(program, b"n")
    assert fault == ["fault", "f", address, "10000000"]


def test_an_instruction_that_is_nobodys_is_a_fault_at_its_address(program):
    [[_, address], fault] = ask(program, b"u")
    assert fault == ["fault", "0", address, fault[3]]


def test_firmware_without_vector_kernels_does_not_contain_the_emulation(emulated):  # noqa: F811
    image = build(load_board("qemu-xtensa"))
    assert b"pie_" not in image.path.read_bytes(), "no symbol of the model or the trap"
