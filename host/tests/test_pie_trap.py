# SPDX-License-Identifier: Apache-2.0
"""Vector instructions on the emulated core without them: trapped, executed by the PIE model, continued."""

from __future__ import annotations

import dataclasses
import json
import struct

import numpy as np
import pytest
from board_programs import Program, emulated, small_model  # noqa: F401 - a fixture
from elftools.elf.elffile import ELFFile
from pie_model_library import BY_NAME, pie_tables, read_cases
from test_pie_model_xtensa import record

from tvhil.boards import build, flash, load_board, start
from tvhil.boards.build import build_program
from tvhil.cli import main
from tvhil.evaluation.link_device import LinkDevice
from tvhil.evaluation.session import open_device
from tvhil.prediction import Predictor
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
def codes(tmp_path_factory):
    """The folder of pie_codes.h."""
    folder = tmp_path_factory.mktemp("pie")
    lines = [f"#define {name} .byte {encoding(*code)}" for name, code in CODES.items()]
    lines.append(f"#define MATRIX_ROUND {matrix_round()}")
    (folder / "pie_codes.h").write_text("\n".join(lines) + "\n")
    return folder


def trap_sources():
    """The trap, the model, and the routines of the test programs."""
    device = device_dir()
    port = device / "ports" / "xtensa_qemu"
    sources = [*sorted((port / "pie").glob("pie_trap.*[cS]")), port / "tests" / "pie_loops.S"]
    return sources + sorted((device / "pie_model").glob("*.c"))


def trap_flags(codes):
    return ["-DPIE_DIRECT_MEMORY", f"-I{device_dir() / 'pie_model'}", f"-I{codes}"]


@pytest.fixture(scope="module")
def start_program(emulated, codes):  # noqa: F811
    """Starts the test program; the golden cases lie in its flash."""
    flash = codes / "flash.img"
    records = [record(case) for case in read_cases()]
    with flash.open("wb") as file:
        file.write(struct.pack("<4I", len(records), 0, 0, 0) + b"".join(records))
        file.truncate(emulated.memory.flash)
    return lambda: Program(emulated, "pie_test", flash, trap_sources(), trap_flags(codes))


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


# --- two cores --------------------------------------------------------------------------------------------------


@pytest.fixture
def two_cores(emulated, codes, tmp_path):  # noqa: F811
    """The program for two cores on a machine with two, each a thread of the host: they run at the same time."""
    flash = tmp_path / "flash.img"
    with flash.open("wb") as file:
        file.truncate(emulated.memory.flash)
    command = list(emulated.start.command)
    at = command.index("-icount")
    command[at : at + 2] = ["-accel", "tcg,thread=multi"]
    board = dataclasses.replace(emulated, start=dataclasses.replace(emulated.start, command=tuple(command), cores=2))
    sources = [*trap_sources(), device_dir() / "ports" / "xtensa_qemu" / "cores.S"]
    with Program(board, "pie_cores_test", flash, sources, trap_flags(codes)) as running:
        running.lines("ready")
        yield running


def test_two_cores_execute_vector_instructions_at_the_same_time_each_on_its_own_state(two_cores):
    first, second, *cores = ask(two_cores, b"b")
    assert [first[0], second[0]] == ["right", "right"], "the references' ACCX is that of plain C"
    assert first[1:] != second[1:]
    assert cores == [["core", "0", "0", "together", "own"], ["core", "1", "0", "together", "own"]]


def test_a_fault_of_the_second_core_is_that_of_its_instruction_while_the_first_is_emulating(two_cores):
    *_, [_, address], fault = ask(two_cores, b"f")
    assert fault == ["fault", "f", address, "10000000"]


# --- the board --------------------------------------------------------------------------------------------------


def test_the_board_with_the_trap_runs_the_digits_bit_exact_and_says_what_it_emulated(emulated, tmp_path, capfd):  # noqa: F811
    out = tmp_path / "r.json"
    assert main(["run-eval", "digits", "--board", "qemu-xtensa-pie", "--limit", "1", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["board"]["details"]["pie"] == "emulated"
    assert report["logits"]["bit_exact"] == report["dataset"]["images"] == 1
    assert "vector instructions emulated since the start: " in capfd.readouterr().err


VECTORS_AN_OPERATOR = 3
MISALIGNED_AN_OPERATOR = 2


@pytest.fixture(scope="module")
def vector_board(emulated, codes):  # noqa: F811
    """qemu-xtensa-pie with a firmware that executes vector instructions, aligned or not, behind each operator."""
    board = load_board("qemu-xtensa-pie")
    device = device_dir()
    files = sorted({file for pattern in board.firmware.sources for file in device.glob(pattern)})
    files.remove(device / "ports" / "xtensa_qemu" / "pie" / "pie_report.c")  # included by the test's file
    # On portable kernels, so that every vector instruction is the test's.
    pie = device / "kernels" / "pie"
    files = [file for file in files if file.parent != pie or file.name == "buffer_sizes.c"]
    cflags = tuple(flag for flag in board.firmware.cflags if flag != "-DTVIT_KERNELS_PIE")
    board = dataclasses.replace(board, firmware=dataclasses.replace(board.firmware, cflags=cflags))
    tests = device / "ports" / "xtensa_qemu" / "tests"
    files += [tests / "pie_board_test.c", tests / "pie_board.S"]
    return board, build_program(board, "pie_board_test", files, extra_flags=[f"-I{codes}"])


def elf_symbols(path):
    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        return {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}


def test_emulated_instructions_are_counted_and_misaligned_ones_logged_once_an_address(vector_board):
    board, firmware = vector_board
    model = small_model()
    operators = len(model.operators)
    images = np.random.default_rng(5).integers(0, 256, (2, *model.info.input_shape), np.uint8)
    said: list[str] = []
    with start(board, flash(board, model, firmware)) as running:
        client = running.connect(log=said.append)
        assert client.info().details == {"pie": "emulated"}
        device = LinkDevice(client, model)
        outputs = np.concatenate([device.run(image).output for image in images])
        details = client.info().details
    assert np.array_equal(outputs, Predictor(model).run(images))
    assert details == {
        "pie": "emulated",
        "pie_instructions_since_start": str(2 * operators * VECTORS_AN_OPERATOR),
        "pie_misaligned_since_start": str(2 * operators * MISALIGNED_AN_OPERATOR),
    }
    symbols = elf_symbols(firmware.path)
    data = symbols["pie_board_data"]
    expected = [
        f"misaligned vector access at pc 0x{symbols[name]:x}, address 0x{data + offset:x} of 16 bytes, core 0: "
        "rounded down, as the chip does"
        for name, offset in (("misaligned_load", 5), ("misaligned_store", 21))
    ]
    counted = (
        f"vector instructions emulated since the start: {operators * VECTORS_AN_OPERATOR}, "
        f"misaligned accesses: {operators * MISALIGNED_AN_OPERATOR}"
    )
    assert said == [*expected, counted]


def test_what_the_firmware_logs_is_told_to_people_in_one_line(vector_board, monkeypatch):
    board, firmware = vector_board
    monkeypatch.setattr("tvhil.evaluation.session.flash", lambda *_, **__: flash(board, small_model(), firmware))
    told: list[str] = []
    with open_device(board, small_model(), notice=told.append) as device:
        device.run(np.zeros(small_model().info.input_shape, np.uint8))
    assert [line.split(" at ")[0] for line in told[:2]] == ["qemu-xtensa-pie says: misaligned vector access"] * 2


def test_firmware_without_vector_kernels_does_not_contain_the_emulation(emulated):  # noqa: F811
    image = build(load_board("qemu-xtensa"))
    content = image.path.read_bytes()
    assert not any(name in content for name in (b"pie_trap", b"pie_execute", b"pie_decode")), "no symbol of either"
