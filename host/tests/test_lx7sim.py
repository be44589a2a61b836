# SPDX-License-Identifier: Apache-2.0
"""lx7sim as a tool: bad input, UART, flash, two cores, counters, and instructions that QEMU's cores lack."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lx7sim_assembler import VECTORS
from lx7sim_programs import (
    DE212,
    DE212_GROUPS,
    DE233_GROUPS,
    LX7SIM,
    SCRATCH,
    STACK,
    Machine,
    Program,
    need_qemu,
    run_qemu,
    words,
)
from test_lx7sim_timing import BY_NAME, pie, pie_tables

from tvhil.lx7sim import SOURCE, Simulator, SimulatorError, Stop, program

FLASH = 0x90000000
Body = Callable[[Program], None]


def build(folder: Path, body: Body, machine: Machine = LX7SIM) -> tuple[Path, list[str]]:
    p = Program(machine)
    body(p)
    path = folder / f"{machine.name}.elf"
    path.write_bytes(p.finish())
    return path, p.notes


def results(folder: Path, body: Body, **options: object) -> list[int]:
    """What a program records on the simulator."""
    elf, notes = build(folder, body)
    with Simulator(max_cycles=50_000_000, **options) as simulator:  # type: ignore[arg-type]
        simulator.load(elf)
        got = words(simulator.run_to_exit().decode())
    assert len(got) == len(notes)
    return got


def run_program(*arguments: object, stdin: bytes = b"", timeout: float = 20) -> subprocess.CompletedProcess[bytes]:
    command = [str(program()), *(str(argument) for argument in arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, check=False)


# --- bad input: one clear line, a non-zero exit code -----------------------------------------------------------------


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    result = run_program(path)
    assert result.returncode == 1
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"lx7sim: {path}: ")
    return lines[0].split(": ", 2)[2]


def test_files_that_are_no_programs_for_it_are_refused_with_what_is_wrong(tmp_path: Path) -> None:
    elf = bytearray(build(tmp_path, lambda p: p("nop"))[0].read_bytes())
    path = tmp_path / "bad.elf"
    assert refusal(path, b"") == "not an ELF file"
    assert refusal(path, b"#!/bin/sh\n" * 20) == "not an ELF file"
    for_arm = elf.copy()
    for_arm[18] = 40
    assert "another machine" in refusal(path, for_arm)
    big_endian = elf.copy()
    big_endian[5] = 2
    assert "big-endian" in refusal(path, big_endian)
    object_file = elf.copy()
    object_file[16] = 1
    assert "not an executable" in refusal(path, object_file)
    assert "cut off" in refusal(path, elf[:-100])
    no_segment = elf.copy()
    no_segment[52] = 0
    assert "missing .text section" in refusal(path, no_segment)
    elsewhere = elf.copy()
    elsewhere[24:28] = struct.pack("<I", 0x60F00000)
    assert "entry point 60f00000" in refusal(path, elsewhere)
    outside = elf.copy()
    outside[64:68] = struct.pack("<I", 0x20000000)
    assert "outside the RAM" in refusal(path, outside)
    assert run_program(tmp_path / "absent.elf").stderr.decode().count("\n") == 1
    assert run_program(tmp_path).stderr.decode() == f"lx7sim: {tmp_path}: Is a directory\n"


def test_wrong_options_are_told_with_exit_code_two() -> None:
    assert run_program().returncode == 2
    assert run_program("--cores", "many", "x.elf").returncode == 2
    assert run_program("--help").returncode == 0
    for cores in ("0", "3"):
        refused = run_program("--cores", cores, "x.elf")
        assert (refused.returncode, refused.stderr.decode()) == (2, f"lx7sim: cores must be 1 or 2, not {cores}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[latency]\nloda = 2\n", "3: unknown parameter"),
        ("[latency]\nload = two\n", "3: expected an integer"),
        ("[latency]\nload = 900\n", "3: latency.load = 900 is outside 1..255"),
        ("[latency]\nload = 2\n", "clock.cpu_mhz is not set"),
        ("nonsense\n", "2: expected key = value"),
        ('[[region]]\nclass = "dram"\n', "3: class is one of sram, flash, psram"),
        ("[[region]]\nstart = 0x123\n", "3: expected an address or size, a multiple of 4096"),
    ],
)
def test_a_wrong_configuration_is_refused_with_file_line_and_reason(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text("# a comment\n" + text)
    with pytest.raises(SimulatorError, match=re.escape(message)):
        Simulator(config=path)


def test_a_folder_as_configuration_is_refused_as_one(tmp_path: Path) -> None:
    refused = run_program("--config", str(tmp_path), "x.elf")
    assert (refused.returncode, refused.stderr.decode()) == (1, f"lx7sim: {tmp_path}: Is a directory\n")


def stopped(folder: Path, body: Body, *options: str) -> tuple[int, list[str]]:
    result = run_program(*options, "--uart", "none", build(folder, body)[0])
    return result.returncode, result.stderr.decode().splitlines()


def test_an_unknown_instruction_stops_with_its_address_and_bytes(tmp_path: Path) -> None:
    code, lines = stopped(tmp_path, lambda p: p.raw(bytes.fromhex("04 00 74")))  # MAC16
    assert (code, len(lines)) == (1, 1)
    assert re.fullmatch(r"lx7sim: unknown instruction at 6000[0-9a-f]{4}: bytes 04 00 74 ?", lines[0])


def load_from(address: int) -> Body:
    def body(p: Program) -> None:
        p.li(2, address)
        p("l32i", 3, 2, 0)

    return body


def store_to(address: int) -> Body:
    def body(p: Program) -> None:
        p.li(2, address)
        p("s32i", 3, 2, 0)

    return body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (load_from(0x10000000), "load from 10000000 (4 bytes)"),
        (store_to(0x20000000), "store to 20000000 (4 bytes)"),
        (store_to(0x6FFFFFFE), "store to 6ffffffe (4 bytes)"),
        (store_to(FLASH), "flash is read-only"),
    ],
)
def test_an_access_outside_the_memory_map_stops_with_address_and_place(
    tmp_path: Path, body: Body, message: str
) -> None:
    code, lines = stopped(tmp_path, body)
    assert (code, len(lines)) == (1, 1)
    assert message in lines[0]
    assert re.search(r"at pc 6000[0-9a-f]{4}", lines[0])


def test_a_jump_into_nothing_stops_with_the_address(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        p.li(2, 0x30000000)
        p("jx", 2)

    code, lines = stopped(tmp_path, body)
    assert code == 1
    assert "instruction fetch from 30000000" in lines[0]


def test_a_program_without_exception_vectors_stops_at_its_first_exception(tmp_path: Path) -> None:
    code, lines = stopped(tmp_path, lambda p: p("syscall"), "--max-cycles", "1000000")
    assert (code, len(lines)) == (1, 1)
    assert "in the double exception vector 60003fc0" in lines[0]
    assert re.search(r"the first was at 6000[0-9a-f]{4}", lines[0])


def test_the_first_exception_is_named_in_a_program_that_leaves_ps_as_the_reset_does(tmp_path: Path) -> None:
    """With PS.EXCM set an exception is a double one, and its address is in DEPC, not EPC1."""
    at: list[int] = []

    def body(p: Program) -> None:
        p.li(2, 0x1F)
        p("wsr", 2, "ps")
        p("rsync")
        p.li(2, 0x10000000)
        at.append(p.here)
        p("l32i", 3, 2, 0)

    code, lines = stopped(tmp_path, body, "--trap", "--max-cycles", "1000000")
    assert (code, len(lines)) == (1, 1)
    assert f"the first was at {at[-1]:08x}" in lines[0]


def test_the_registers_are_dumped_on_request(tmp_path: Path) -> None:
    code, lines = stopped(tmp_path, store_to(0x20000000), "--dump-registers", "--pie")
    assert code == 1
    assert "a2  20000000" in "\n".join(lines)
    assert any(line.startswith("q7") for line in lines)


def test_an_endless_loop_ends_at_max_cycles_with_exit_code_three(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        forever = p.label()
        p("j", forever)

    code, lines = stopped(tmp_path, body, "--max-cycles", "100000")
    assert code == 3
    assert lines == [f"lx7sim: stopped after 100000 cycles (max-cycles) at pc {lines[0][-8:]}"]


def test_a_misaligned_vector_access_warns_once_an_instruction_with_address_and_place(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        p.li(2, p.base + SCRATCH + 4)
        p("movi", 5, 3)
        again = p.label()
        pie(p, "ee.vld.128.ip", qu=1, **{"as": 2}, imm16=0)
        p("addi", 5, 5, -1)
        p("bnez", 5, again)
        p("addi", 2, 2, 4)
        pie(p, "ee.vst.128.ip", qu=1, **{"as": 2}, imm16=0)

    elf, _ = build(tmp_path, body)
    with Simulator(pie=True) as simulator:
        simulator.load(elf)
        simulator.run_to_exit()
        assert len(simulator.warnings) == 2
        simulator.reset()
        simulator.run_to_exit()
        assert simulator.warnings[:2] == simulator.warnings[2:], "a reset forgets what was told"
    assert "ee.vst.128.ip" in simulator.warnings[1]
    assert re.search(
        r"ee\.vld\.128\.ip at 6000[0-9a-f]{4}: address 60180004 is not a multiple of 16", simulator.warnings[0]
    )


MOVI_A4_7_NOP = int.from_bytes(bytes.fromhex("42 a0 07 f0"), "little")  # and the first byte of a nop


def patched_function(p: Program, after: str) -> None:
    """What is stored over: returns 1 in a4 as it stands; behind it the program goes on and records a4."""
    p.align(4)
    p.label("patched")
    p("movi", 4, 1)
    p("nop")
    p("ret")
    p.label(after)
    p.record(4, "a4")


def generated(*between: str, turns: int = 1, value: int = MOVI_A4_7_NOP) -> Callable[[Program], None]:
    """Stores an instruction over another one, executes `between`, and then what was stored."""

    def body(p: Program) -> None:
        after = p.new_label()
        p.li(2, "patched")
        p.li(3, value)
        p("movi", 5, turns)
        again = p.label()
        p("s32i", 3, 2, 0)
        for name in between:
            p(name)
        p("call0", "patched")
        p("addi", 5, 5, -1)
        p("bnez", 5, again)
        p("j", after)
        patched_function(p, after)

    return body


def warnings_of(tmp_path: Path, body: Callable[[Program], None]) -> list[str]:
    elf, notes = build(tmp_path, body)
    with Simulator(pie=True) as simulator:
        simulator.load(elf)
        assert words(simulator.run_to_exit().decode())[: len(notes)] == [7], "it executes what was stored"
        return simulator.warnings


def test_code_executed_without_isync_after_it_was_stored_warns_once_an_instruction(tmp_path: Path) -> None:
    (warning,) = warnings_of(tmp_path, generated(turns=5))
    assert re.fullmatch(
        r"warning: core 0 executes 6000[0-9a-f]{4} \(movi a4, 7\), stored since its last isync; "
        r"the chip may execute what was there before",
        warning,
    )
    assert len(warnings_of(tmp_path, generated("memw", "dsync", "rsync"))) == 1, "nothing else synchronizes the fetch"


def test_code_executed_after_isync_or_stored_with_the_bytes_it_had_does_not_warn(tmp_path: Path) -> None:
    assert warnings_of(tmp_path, generated("memw", "isync", turns=5)) == []

    def same_again(p: Program) -> None:
        generated("isync")(p)
        p("s32i", 3, 2, 0)
        p("call0", "patched")

    assert warnings_of(tmp_path, same_again) == []

    def data_beside_code(p: Program) -> None:
        p("movi", 4, 7)
        p.li(2, "data")
        p("s32i", 4, 2, 0)
        after = p.new_label()
        p("j", after)
        p.align(4)
        p.label("data")
        p.raw(bytes(4))
        p.label(after)
        p.record(4, "a4")

    assert warnings_of(tmp_path, data_beside_code) == []


def test_code_generated_by_vector_stores_into_fresh_memory_warns_without_isync(tmp_path: Path) -> None:
    def body(synchronize: bool) -> Callable[[Program], None]:
        def emit(p: Program) -> None:
            after = p.new_label()
            p.li(2, "source")
            p.li(3, p.base + SCRATCH + 0x4000)
            p.li(6, p.base + SCRATCH + 0x4000)
            pie(p, "ee.vld.128.ip", qu=1, **{"as": 2}, imm16=16)
            pie(p, "ee.vst.128.ip", qu=1, **{"as": 3}, imm16=16)
            if synchronize:
                p("isync")
            p("callx0", 6)
            p("j", after)
            p.align(16)
            p.label("source")
            p("movi", 4, 7)
            p("ret")
            p.align(16)
            p.label(after)
            p.record(4, "a4")

        return emit

    assert len(warnings_of(tmp_path, body(synchronize=False))) == 2, "movi and ret"
    assert warnings_of(tmp_path, body(synchronize=True)) == []


def test_code_written_by_the_host_needs_no_isync(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        p.li(2, "patched")
        after = p.new_label()
        p("s32i", 2, 2, 12)  # the page has been stored into
        p("nsau", 3, 3)
        p("j", "patched")
        p.align(4)
        p.label("patched")
        p("movi", 4, 1)
        p("nop")
        p("j", after)
        p.raw(bytes(8))
        p.label(after)
        p.record(4, "a4")

    elf, notes = build(tmp_path, body)
    with Simulator() as simulator:
        simulator.load(elf)
        simulator.trace(lambda event: simulator.disassemble(event.pc)[0].startswith("nsau"))
        assert simulator.run() == Stop.BREAK
        simulator.trace(None)
        simulator.write_memory(simulator.register("a2"), MOVI_A4_7_NOP.to_bytes(4, "little"))
        assert words(simulator.run_to_exit().decode())[: len(notes)] == [7]
        assert simulator.warnings == []


# --- instructions that no QEMU core of the distribution has ----------------------------------------------------------


def test_high_halves_of_products_are_exact(tmp_path: Path) -> None:
    values = (0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x12345678, 0xDEADBEEF)
    pairs = [(a, b) for a in values for b in values]

    def body(p: Program) -> None:
        for a, b in pairs:
            p.li(3, a)
            p.li(4, b)
            for name in ("muluh", "mulsh"):
                p(name, 5, 3, 4)
                p.record(5, name)

    def signed(a: int) -> int:
        return a - (a >> 31 << 32)

    expected = [x for a, b in pairs for x in (a * b >> 32, (signed(a) * signed(b) >> 32) & 0xFFFFFFFF)]
    assert results(tmp_path, body) == expected


def test_unaligned_scalar_accesses_work_in_hardware(tmp_path: Path) -> None:
    data = bytes(range(0x80, 0xC0))

    def body(p: Program) -> None:
        p.li(2, p.base + SCRATCH)
        for i in range(0, 64, 4):
            p.li(3, int.from_bytes(data[i : i + 4], "little"))
            p("s32i", 3, 2, i)
        for offset in range(20):
            p.li(2, p.base + SCRATCH + offset)
            p("l32i", 3, 2, 0)
            p.record(3, "l32i")
            p("l16ui", 3, 2, 0)
            p.record(3, "l16ui")
            p("l16si", 3, 2, 0)
            p.record(3, "l16si")
        p.li(2, p.base + SCRATCH + 13)
        p.li(3, 0x11223344)
        p("s32i", 3, 2, 0)
        p("s16i", 3, 2, 16)
        p.li(2, p.base + SCRATCH)
        for offset in (12, 16, 28):
            p("l32i", 3, 2, offset)
            p.record(3, "after the stores")

    got = results(tmp_path, body)
    expected = []
    for i in range(20):
        half = int.from_bytes(data[i : i + 2], "little")
        expected += [int.from_bytes(data[i : i + 4], "little"), half, half | 0xFFFF0000]
    memory = bytearray(data)
    memory[13:17] = struct.pack("<I", 0x11223344)
    memory[29:31] = struct.pack("<H", 0x3344)
    expected += [int.from_bytes(memory[i : i + 4], "little") for i in (12, 16, 28)]
    assert got == expected


def test_reciprocals_and_their_roots_converge_from_their_estimates(tmp_path: Path) -> None:
    """libgcc's sequences: two Newton-Raphson steps from RECIP0, RSQRT0."""
    values = [1.0, 3.0, 0.1, 1234.5, 7e-20, 1e30]

    def bits(value: float) -> int:
        return int(struct.unpack("<I", struct.pack("<f", value))[0])

    def body(p: Program) -> None:
        for value in values:
            p.li(3, bits(value))
            p("wfr", 1, 3)
            p("recip0.s", 0, 1)
            for _ in range(2):
                p("const.s", 2, 1)
                p("msub.s", 2, 1, 0)
                p("maddn.s", 0, 0, 2)
            p("rfr", 4, 0)
            p.record(4, "reciprocal")
            p("rsqrt0.s", 0, 1)
            for _ in range(2):
                p("mul.s", 2, 1, 0)
                p("const.s", 3, 3)
                p("mul.s", 4, 3, 0)
                p("const.s", 5, 1)
                p("msub.s", 5, 2, 0)
                p("maddn.s", 0, 4, 5)
            p("rfr", 4, 0)
            p.record(4, "reciprocal root")

    got = [struct.unpack("<f", struct.pack("<I", word))[0] for word in results(tmp_path, body)]
    for value, reciprocal, root in zip(values, got[::2], got[1::2], strict=True):
        assert abs(reciprocal * value - 1) < 2**-22
        assert abs(root * root * value - 1) < 2**-21


def test_maddn_rounds_to_nearest_in_any_mode_and_raises_no_flag(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        p("movi", 3, 2)  # round up
        p("wur", 3, 232)
        p("movi", 3, 0)
        p("wur", 3, 233)
        p.li(3, 0x3F800001)
        p("wfr", 1, 3)
        p("const.s", 2, 0)
        p("maddn.s", 2, 1, 1)
        p("rfr", 4, 2)
        p.record(4, "maddn.s")
        p("rur", 4, 233)
        p.record(4, "flags")
        p("const.s", 2, 0)
        p("madd.s", 2, 1, 1)
        p("rfr", 4, 2)
        p.record(4, "madd.s")
        p("rur", 4, 233)
        p.record(4, "flags")

    assert results(tmp_path, body) == [0x3F800002, 0, 0x3F800003, 0x80]


def test_every_simulated_instruction_is_executed_by_the_programs_of_cases(tmp_path: Path) -> None:
    listed = set(re.findall(r'^[IC]\(\w+, "([^"]+)"', (SOURCE / "ops.def").read_text(), re.M)) - {"pie"}
    elsewhere = {  # executed by the tests of this file, or without effect to compare
        *(
            "muluh",
            "mulsh",
            "recip0.s",
            "rsqrt0.s",
            "rer",
            "wer",
            "simcall",
            "break",
            "cache",
            "wtlb",
            "itlb",
            "rtlb",
            "s32nb",
        ),
    }
    executed = set()
    for name, group in (DE212_GROUPS | DE233_GROUPS).items():
        elf = tmp_path / f"{name}.elf"
        p = Program(LX7SIM)
        group(p)
        elf.write_bytes(p.finish())
        with Simulator(trap=True, max_cycles=50_000_000) as simulator:
            simulator.load(elf)
            simulator.run_to_exit()
            for pc in simulator.pcs()["pc"]:
                executed.add(simulator.disassemble(int(pc))[0].split(" ")[0].removesuffix(".n"))
    assert listed - executed == elsewhere


def test_break_enters_the_debug_exception_below_its_level_and_is_nothing_above(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        def vector() -> None:
            p.record_special("epc6", "epc6 - filled in below")
            p("rsr", 11, "epc6")
            p("addi", 11, 11, 3)
            p("wsr", 11, "epc6")
            p("rfi", 6)

        p.vector(0x280, vector)
        p("break", 1, 15)
        p("rsil", 3, 6)
        p("break", 1, 15)
        p("rsil", 3, 0)

    assert len(results(tmp_path, body)) == 1


def test_caches_and_regions_can_be_handled_without_effect(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        p.li(2, p.base + SCRATCH)
        p("movi", 3, 5)
        p.raw(bytes.fromhex("42 72 00"))  # dhwb a2, 0
        p.raw((0x506000 | 2 << 8 | 3 << 4).to_bytes(3, "little"))  # witlb a3, a2
        p.raw((0x504000 | 2 << 8).to_bytes(3, "little"))  # iitlb a2
        p.raw((0x507000 | 2 << 8 | 4 << 4).to_bytes(3, "little"))  # ritlb1 a4, a2
        p("extui", 4, 4, 0, 4)
        p.record(4, "attribute")
        p.raw(bytes.fromhex("00 51 00"))  # simcall: a no-op
        p.raw((0x590000 | 2 << 8 | 3 << 4 | 1 << 12).to_bytes(3, "little"))  # s32nb a3, a2, 4
        p("l32i", 4, 2, 4)
        p.record(4, "s32nb")

    assert results(tmp_path, body) == [5, 5]


def test_random_bytes_as_code_stop_or_loop_but_never_break_the_simulator(tmp_path: Path) -> None:
    generator = random.Random(7)
    for trap in (False, True):
        for _ in range(15):
            code = generator.randbytes(400)
            elf, _ = build(tmp_path, lambda p, code=code: p.raw(code))  # type: ignore[misc]
            with Simulator(pie=True, trap=trap, max_cycles=20_000) as simulator:
                simulator.load(elf)
                stop = simulator.run(1_000_000)
                assert stop in (Stop.ERROR, Stop.MAX_CYCLES, Stop.IDLE, Stop.EXIT)
                rows = simulator.pcs()
                assert int(rows["count"].sum() + rows["stall"].sum()) == simulator.totals().cycles
                for pc in rows["pc"]:
                    simulator.disassemble(int(pc))


# --- PIE -------------------------------------------------------------------------------------------------------------


def vector_work(p: Program) -> None:
    """Loads, adds, shifts by SAR, stores; then recorded from memory."""
    p.li(2, p.base + SCRATCH)
    for i in range(8):
        p.li(3, 0x01020304 * (i + 1))
        p("s32i", 3, 2, 4 * i)
    p("ssai", 4)
    p("mov", 4, 2)
    pie(p, "ee.vld.128.ip", qu=0, **{"as": 4}, imm16=16)
    pie(p, "ee.vld.128.ip", qu=1, **{"as": 4}, imm16=16)
    pie(p, "ee.vadds.s8", qz=2, qx=0, qy=1)
    pie(p, "ee.vsl.32", qz=3, qs0=2)
    pie(p, "ee.vst.128.ip", qu=3, **{"as": 4}, imm16=-16)
    p.record_relative(4, "address after the post-increments")
    for i in range(4):
        p("l32i", 3, 2, 32 + 4 * i)
        p.record(3, f"word {i}")


def test_vector_instructions_share_registers_sar_and_memory_with_the_core(tmp_path: Path) -> None:
    def sum8(a: int, b: int) -> int:
        lanes = [((a >> s & 255) ^ 128) - 128 + ((b >> s & 255) ^ 128) - 128 for s in (0, 8, 16, 24)]
        return sum((max(-128, min(127, lane)) & 255) << 8 * i for i, lane in enumerate(lanes))

    first, second = ([0x01020304 * (i + 1) for i in range(k, k + 4)] for k in (0, 4))
    shifted = [sum8(a, b) << 4 & 0xFFFFFFFF for a, b in zip(first, second, strict=True)]
    assert results(tmp_path, vector_work, pie=True) == [SCRATCH + 16, *shifted]


def test_vector_instructions_see_the_rotated_register_window(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        p("movi", 3, 1)
        p("wsr", 3, "windowstart")
        p.li(2, p.base + SCRATCH)
        p("mov", 6, 2)
        p("rotw", 1)  # a6 is now a2
        pie(p, "ee.vld.128.ip", qu=0, **{"as": 2}, imm16=32)
        p("rotw", -1)
        p.record_relative(6, "post-incremented in the rotated window")

    assert results(tmp_path, body, pie=True) == [SCRATCH + 32]


@pytest.mark.parametrize(("pie_on", "cause"), [(False, 0), (True, 35)])
def test_vector_instructions_raise_an_exception_when_absent_or_disabled(
    tmp_path: Path, pie_on: bool, cause: int
) -> None:
    def body(p: Program) -> None:
        def vector() -> None:
            p("rsr", 10, "epc1")
            p("addi", 10, 10, 3)
            p("wsr", 10, "epc1")
            p("rfe")

        p.vector(0x300, vector)
        p("movi", 3, 0xF7 - 0x100)
        p("wsr", 3, "cpenable")
        p("movi", 3, 99)
        p("wsr", 3, "exccause")
        pie(p, "ee.zero.qacc")
        p.record_special("exccause", "cause")

    assert results(tmp_path, body, pie=pie_on) == [cause]


def test_code_that_is_overwritten_is_decoded_again(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        p.li(2, "patched")
        p("movi", 5, 2)
        again = p.label()
        p.align(4) if len(p.image) % 4 == 0 else None
        p("j", "patched_entry")
        p.align(4)
        p.label("patched")
        p.label("patched_entry")
        p("movi", 4, 1)
        p("nop")
        p.record(4, "first")
        p.li(3, int.from_bytes(bytes.fromhex("42 a0 07 f0"), "little"))  # movi a4, 7
        p("s32i", 3, 2, 0)
        p.notes.append("second")
        p("addi", 5, 5, -1)
        p("bnez", 5, again)

    elf, notes = build(tmp_path, body)
    with Simulator() as simulator:
        simulator.load(elf)
        assert words(simulator.run_to_exit().decode())[: len(notes)] == [1, 7]


def test_counters_stay_with_the_instructions_that_were_executed_before_code_was_overwritten(tmp_path: Path) -> None:
    """A multiply-accumulate runs 5 times, then a load in its place 3 times."""
    mac = pie_tables.encode(BY_NAME["ee.vmulas.s8.accx"], {"qx": 0, "qy": 1})

    def body(p: Program) -> None:
        p.li(2, "patched")
        p.li(3, p.base + SCRATCH)
        p.li(6, int.from_bytes(bytes.fromhex("42 23 00 f0"), "little"))  # l32i a4, a3, 0; the no-operation stays
        for turns in (5, 3):
            p("movi", 5, turns)
            again = p.label()
            p("call0", "patched")
            p("addi", 5, 5, -1)
            p("bnez", 5, again)
            p("s32i", 6, 2, 0)
            p("isync")
        after = p.new_label()
        p("j", after)
        p.align(4)
        p.label("patched")
        p.raw(mac)
        p("nop")
        p("ret")
        p.label(after)

    elf, _ = build(tmp_path, body)
    with Simulator(pie=True) as simulator:
        simulator.load(elf)
        simulator.run_to_exit()
        rows, totals = simulator.pcs(), simulator.totals()
        row = rows[rows["mac"] > 0]
        assert row["count"].tolist() == [8]
        assert row["mac"].tolist() == [5 * 16]
        assert row["access"].tolist() == [[3, 0, 0, 0]]
        assert row["bytes"].tolist() == [[12, 0, 0, 0]]
        assert totals.mac == 5 * 16
        assert int(rows["count"].sum() + rows["stall"].sum()) == totals.cycles
        simulator.clear_counters()
        assert len(simulator.pcs()) == 0


# --- flash, UART, boot -----------------------------------------------------------------------------------------------


def test_flash_shows_the_file_in_both_windows_and_is_erased_behind_it(tmp_path: Path) -> None:
    image = tmp_path / "flash.bin"
    image.write_bytes(struct.pack("<II", 0xCAFEF00D, 0x12345678))

    def body(p: Program) -> None:
        for base in (FLASH, 0x70000000):
            p.li(2, base)
            for offset in (0, 4, 8):
                p("l32i", 3, 2, offset)
                p.record(3, "flash")

    assert results(tmp_path, body, flash=image) == [0xCAFEF00D, 0x12345678, 0xFFFFFFFF] * 2
    with pytest.raises(SimulatorError, match="No such file"):
        Simulator(flash=tmp_path / "absent.bin")


def echo(p: Program) -> None:
    """Returns every byte plus one until a zero comes."""
    p.li(2, LX7SIM.uart)
    wait, done = p.label(), p.new_label()
    p("l32i", 3, 2, 20)
    p("bbci", 3, 0, wait)
    p("l32i", 3, 2, 0)
    p("beqz", 3, done)
    p("addi", 3, 3, 1)
    p("s32i", 3, 2, 0)
    p("j", wait)
    p.label(done)


def test_a_program_that_waits_for_input_is_idle_until_it_comes(tmp_path: Path) -> None:
    elf, _ = build(tmp_path, echo)
    with Simulator() as simulator:
        simulator.load(elf)
        assert simulator.run(100_000_000) == Stop.IDLE
        assert simulator.totals().cycles < 1_000_000
        simulator.send(b"HAL")
        assert simulator.run(100_000_000) == Stop.IDLE
        assert simulator.receive() == b"IBM"
        simulator.send(b"\0")
        assert simulator.run() == Stop.EXIT


def test_the_program_talks_over_its_standard_streams(tmp_path: Path) -> None:
    elf, _ = build(tmp_path, echo)
    result = run_program(elf, stdin=b"HAL\0")
    assert (result.returncode, result.stdout) == (0, b"IBM")
    assert run_program(elf, stdin=b"HAL").stdout == b"IBM", "the end of input ends a program that waits for more"


def started(elf: Path, uart: str) -> tuple[subprocess.Popen[bytes], str]:
    process = subprocess.Popen([str(program()), "--uart", uart, str(elf)], stderr=subprocess.PIPE)
    assert process.stderr is not None
    return process, process.stderr.readline().decode()


def test_the_program_talks_over_a_pty(tmp_path: Path) -> None:
    elf, _ = build(tmp_path, echo)
    process, line = started(elf, "pty")
    try:
        port = os.open(line.split()[-1], os.O_RDWR | os.O_NOCTTY)
        os.write(port, b"HAL\n\r\x11")
        received = b""
        while len(received) < 6:
            received += os.read(port, 100)
        assert received == b"IBM\x0b\x0e\x12"
        os.write(port, b"\0")
        assert process.wait(10) == 0
        os.close(port)
    finally:
        process.kill()
        process.wait()


def test_the_program_talks_over_a_tcp_socket(tmp_path: Path) -> None:
    elf, _ = build(tmp_path, echo)
    process, line = started(elf, "tcp:0")
    try:
        number = int(re.findall(r"port (\d+)", line)[0])
        with socket.create_connection(("127.0.0.1", number), timeout=10) as connection:
            connection.sendall(b"HAL")
            assert connection.recv(3, socket.MSG_WAITALL) == b"IBM"
            connection.sendall(b"\0")
            assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


def test_a_uart_interrupt_wakes_a_sleeping_core(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        def vector() -> None:
            p.li(10, LX7SIM.uart)
            p("l32i", 9, 10, 0)
            p("rfe")

        p.vector(0x300, vector)
        p.li(2, LX7SIM.uart)
        p("movi", 3, 1)
        p("s32i", 3, 2, 4)
        p("wsr", 3, "intenable")
        p("waiti", 0)
        p.record(9, "received")

    elf, _ = build(tmp_path, body)
    with Simulator() as simulator:
        simulator.load(elf)
        assert simulator.run() == Stop.IDLE
        simulator.send(b"Q")
        assert simulator.run() == Stop.EXIT
        assert words(simulator.receive().decode()) == [ord("Q")]
        assert simulator.totals().interrupts == 1


def test_a_board_reset_loads_the_program_again_and_keeps_other_memory_and_time(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        p.li(2, p.base + SCRATCH)
        p("l32i", 3, 2, 0)
        p("addi", 3, 3, 1)
        p("s32i", 3, 2, 0)
        p.record(3, "boots")

    elf, _ = build(tmp_path, body)
    with Simulator() as simulator:
        simulator.load(elf)
        assert words(simulator.run_to_exit().decode()) == [1]
        before = simulator.totals().instructions
        simulator.reboot()
        assert words(simulator.run_to_exit().decode()) == [2]
        assert simulator.totals().instructions == 2 * before


def test_the_command_line_is_in_the_boot_parameters(tmp_path: Path) -> None:
    text = "board=lx7sim x"

    def body(p: Program) -> None:
        for i in range(4):  # behind the first tag, the memory tag and the header of the command line
            p("l32i", 3, 11, 24 + 4 * i)
            p.record(3, "text")

    p = Program(LX7SIM)
    p.image = p.image[: p.labels["start"] - p.base]
    p("mov", 11, 2)
    p.li(15, p.base + 0x100000)
    p.li(13, p.base)
    body(p)
    elf = tmp_path / "boot.elf"
    elf.write_bytes(p.finish())
    with Simulator(command_line=text) as simulator:
        simulator.load(elf)
        got = words(simulator.run_to_exit().decode())
    assert struct.pack("<4I", *got).split(b"\0")[0].decode() == text
    with pytest.raises(SimulatorError, match="longer than 255"):
        Simulator(command_line="x" * 256)


# --- two cores -------------------------------------------------------------------------------------------------------

CORES = 2
ROUNDS = 300


def start_core1(p: Program) -> None:
    """Stores the reset code of core 1, which jumps to the label core1, and releases it."""
    p.li(2, 0x400003FC)
    p.li(3, "core1")
    p("s32i", 3, 2, 0)
    p.li(3, 0xA0FFFF21)  # l32r a2, 0x400003fc; jx a2
    p("s32i", 3, 2, 4)
    p.li(3, 0x00000002)
    p("s32i", 3, 2, 8)
    p("memw")
    p.li(3, 0x200)  # MPSCORE: no core stalled
    p("movi", 4, 0)
    p("wer", 4, 3)


def two_cores(p: Program) -> None:
    """Core 0 starts core 1 through the MX distributor; both add to one counter under a lock built on S32C1I."""
    p.li(2, p.base + SCRATCH)
    p("movi", 3, 0)
    for offset in (0, 4, 8, 12):
        p("s32i", 3, 2, offset)
    start_core1(p)
    work = p.new_label()
    p("j", work)
    p.align(4)
    p.label("core1")
    p.li(13, p.base)
    p.li(2, 0)
    p("wsr", 2, "ps")
    p.label(work)
    p.li(3, 0x15)
    p("wsr", 3, "atomctl")
    p.li(2, p.base + SCRATCH)
    p.li(5, ROUNDS)
    again, spin = p.label(), p.new_label()
    p.label(spin)
    p("movi", 3, 0)
    p("wsr", 3, "scompare1")
    p("movi", 4, 1)
    p("s32c1i", 4, 2, 0)  # the lock
    p("bnez", 4, spin)
    p("l32i", 6, 2, 4)
    for _ in range(8):
        p("nop")
    p("addi", 6, 6, 1)
    p("s32i", 6, 2, 4)
    p("memw")
    p("movi", 4, 0)
    p("s32ri", 4, 2, 0)
    p("addi", 5, 5, -1)
    p("bnez", 5, again)
    p("rsr", 3, "prid")
    other = p.new_label()
    p("bnez", 3, other)
    wait = p.label()
    p("l32i", 3, 2, 8)
    p("beqz", 3, wait)
    p("l32i", 3, 2, 4)
    p.record(3, "the counter both cores have added to")
    p("l32i", 3, 2, 12)
    p.record(3, "the identity register of core 1")
    p("movi", 3, 0x1A0 - 0x200)
    p("addmi", 3, 3, 0x200)
    p("rer", 4, 3)
    p.record(4, "SYSCFGID of core 0")
    after = p.new_label()
    p("j", after)
    p.label(other)
    p("s32i", 3, 2, 12)
    p("memw")
    p("movi", 4, 1)
    p("s32i", 4, 2, 8)
    forever = p.label()
    p("waiti", 15)
    p("j", forever)
    p.label(after)


EXPECTED = [CORES * ROUNDS, 1, 1 << 18]


def test_two_cores_share_memory_and_a_lock(tmp_path: Path) -> None:
    assert results(tmp_path, two_cores, cores=2) == EXPECTED


def test_code_stored_by_the_other_core_warns_where_it_is_executed_without_isync(tmp_path: Path) -> None:
    def body(synchronize: bool) -> Callable[[Program], None]:
        def emit(p: Program) -> None:
            start_core1(p)
            after = p.new_label()
            p.li(2, "patched")
            p.li(3, MOVI_A4_7_NOP)
            p("s32i", 3, 2, 0)
            p("memw")
            p("isync")  # synchronizes this core only
            p.li(5, p.base + SCRATCH)
            p("s32i", 2, 5, 0)
            wait = p.label()
            p("l32i", 4, 5, 4)
            p("beqz", 4, wait)
            p("j", after)
            p.align(4)
            p.label("core1")
            p.li(5, p.base + SCRATCH)
            poll = p.label()
            p("l32i", 2, 5, 0)
            p("beqz", 2, poll)
            if synchronize:
                p("isync")
            p("callx0", 2)
            p("s32i", 4, 5, 4)
            forever = p.label()
            p("j", forever)
            patched_function(p, after)

        return emit

    for synchronize in (False, True):
        elf, _ = build(tmp_path, body(synchronize))
        with Simulator(cores=CORES) as simulator:
            simulator.load(elf)
            assert words(simulator.run_to_exit().decode()) == [7]
            assert [line[:24] for line in simulator.warnings] == ([] if synchronize else ["warning: core 1 executes"])


@pytest.mark.emulator
def test_the_two_core_program_runs_alike_on_qemu(tmp_path: Path) -> None:
    need_qemu()
    elf, _ = build(tmp_path, two_cores, DE212)
    assert words(run_qemu(elf, DE212, "-smp", "2")) == EXPECTED


def test_two_runs_of_two_cores_are_equal_to_the_cycle(tmp_path: Path) -> None:
    elf, _ = build(tmp_path, two_cores)

    def run() -> list[object]:
        with Simulator(cores=2) as simulator:
            simulator.load(elf)
            simulator.run_to_exit()
            for core in range(2):
                rows = simulator.pcs(core)
                assert int(rows["count"].sum() + rows["stall"].sum()) == simulator.totals(core).cycles
            return [simulator.totals(core) for core in range(2)] + [simulator.pcs(core).tobytes() for core in range(2)]

    assert run() == run()


def test_an_interrupt_from_the_other_core_wakes_it(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        def vector() -> None:  # core 1: acknowledge and tell
            p.li(10, 0x101)  # MIPICAUSE of core 1
            p("movi", 11, 1)
            p("wer", 11, 10)
            p.li(10, p.base + SCRATCH)
            p("s32i", 11, 10, 4)
            p("rfe")

        p.vector(0x300, vector)
        p.li(2, 0x400003FC)
        p.li(3, "sleeper")
        p("s32i", 3, 2, 0)
        p.li(3, 0xA0FFFF21)
        p("s32i", 3, 2, 4)
        p.li(3, 0x00000002)
        p("s32i", 3, 2, 8)
        p.li(2, p.base + SCRATCH)
        p("movi", 4, 0)
        p("s32i", 4, 2, 0)
        p("s32i", 4, 2, 4)
        p.li(3, 0x200)
        p("wer", 4, 3)
        ready = p.label()
        p("l32i", 4, 2, 0)
        p("beqz", 4, ready)
        p.li(3, 0x140)  # MIPISET 0
        p("movi", 4, 2)  # to core 1
        p("wer", 4, 3)
        woken = p.label()
        p("l32i", 4, 2, 4)
        p("beqz", 4, woken)
        p.record(4, "core 1 was interrupted")
        after = p.new_label()
        p("j", after)
        p.align(4)
        p.label("sleeper")
        p.li(2, p.base + VECTORS)
        p("wsr", 2, "vecbase")
        p("movi", 2, 0)
        p("wsr", 2, "ps")
        p("movi", 2, 1)
        p("wsr", 2, "intenable")
        p.li(3, p.base + SCRATCH)
        p("s32i", 2, 3, 0)
        forever = p.label()
        p("waiti", 0)
        p("j", forever)
        p.label(after)

    assert results(tmp_path, body, cores=2) == [1]


def test_two_cores_that_stream_through_the_cache_wait_for_the_bus(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        p.li(2, 0x400003FC)
        p.li(3, "other")
        p("s32i", 3, 2, 0)
        p.li(3, 0xA0FFFF21)
        p("s32i", 3, 2, 4)
        p.li(3, 0x00000002)
        p("s32i", 3, 2, 8)
        p.li(3, 0x200)
        p("movi", 4, 0)
        p("wer", 4, 3)
        p.li(2, 0x68000000)
        stream = p.new_label()
        p("j", stream)
        p.align(4)
        p.label("other")
        p("movi", 2, 0)
        p("wsr", 2, "ps")  # loops do not loop while PS.EXCM is set, as after reset
        p.li(2, 0x69000000)
        p.label(stream)
        end = p.new_label()
        p("movi", 3, 400)
        p("loop", 3, end)
        p("l32i", 4, 2, 0)
        p("addi", 2, 2, 64)
        p.label(end)
        p("rsr", 3, "prid")
        forever = p.new_label()
        p("beqz", 3, forever)
        p("waiti", 15)
        p.label(forever)

    elf, _ = build(tmp_path, body)
    waits = []
    for cores in (1, 2):
        with Simulator(cores=cores, trap=True) as simulator:
            simulator.load(elf)
            simulator.run_to_exit()
            waits.append(simulator.totals().stall["bus"])
    assert waits[0] == 0
    assert waits[1] > 100 * 100


# --- counters and traces ---------------------------------------------------------------------------------------------


def test_the_json_file_holds_totals_parameters_and_the_rows_of_every_address(tmp_path: Path) -> None:
    elf, _ = build(tmp_path, vector_work)
    path = tmp_path / "out.json"
    result = run_program("--pie", "--uart", "none", "--json", path, "--pcs", "--summary", elf)
    assert result.returncode == 0
    data = json.loads(path.read_text())
    core = data["cores"][0]
    assert data["stop"] == "exit"
    assert data["parameters"]["clock.cpu_mhz"] == 240
    assert core["cycles"] == core["instructions"] + sum(core["stall"].values())
    assert core["instructions"] == sum(row["count"] for row in core["pcs"])
    assert b"M instructions/s" in result.stderr
    assert run_program("--pie", "--json", tmp_path / "no" / "folder", "--uart", "none", elf).returncode == 1


def test_memory_traffic_is_counted_by_region_and_width(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        p.li(2, FLASH)
        p.li(4, 0x68000000)
        for _ in range(3):
            p("l8ui", 3, 2, 0)
            p("s16i", 3, 4, 0)
        pie(p, "ee.vld.128.ip", qu=0, **{"as": 2}, imm16=16)

    elf, _ = build(tmp_path, body)
    with Simulator(pie=True) as simulator:
        simulator.load(elf)
        simulator.run_to_exit()
        totals = simulator.totals()
    assert (totals.access["flash"], totals.bytes["flash"]) == (4, 3 + 16)
    assert (totals.access["psram"], totals.bytes["psram"]) == (3, 6)


def test_a_trace_shows_each_instruction_with_its_cycle_and_why_it_waited(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        p.li(2, p.base + SCRATCH)
        p("nop")
        p("l32i", 3, 2, 0)
        p("add", 4, 3, 3)

    elf, _ = build(tmp_path, body)
    result = run_program("--trace", "30", "--uart", "none", elf)
    lines = [line for line in result.stderr.decode().splitlines() if "a4, a3, a3" in line]
    assert lines[0].endswith("waited 1: load")
    with Simulator() as simulator:
        simulator.load(elf)
        events = []
        simulator.trace(lambda event: events.append(event) or len(events) >= 10)  # type: ignore[func-returns-value]
        assert simulator.run() == Stop.BREAK
        simulator.trace(None)
        assert simulator.run() == Stop.EXIT
    cycles = [event.cycle for event in events]
    assert cycles == sorted(cycles)


def test_tracing_changes_no_cycle(tmp_path: Path) -> None:
    elf, _ = build(tmp_path, two_cores)
    cycles = []
    for traced in (False, True):
        with Simulator(cores=2) as simulator:
            simulator.load(elf)
            if traced:
                simulator.trace(lambda _event: False)
            simulator.run_to_exit()
            cycles.append([simulator.totals(core).cycles for core in range(2)])
    assert cycles[0] == cycles[1]


def test_counters_can_be_cleared_between_runs(tmp_path: Path) -> None:
    elf, _ = build(tmp_path, echo)
    with Simulator() as simulator:
        simulator.load(elf)
        simulator.run()
        simulator.clear_counters()
        assert simulator.totals().instructions == 0
        simulator.send(b"A")
        simulator.run()
        totals, rows = simulator.totals(), simulator.pcs()
    assert totals.cycles == int(rows["count"].sum() + rows["stall"].sum()) > 0


def test_an_interrupted_run_ends_cleanly_and_still_writes_its_results(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        forever = p.label()
        p("j", forever)

    path = tmp_path / "out.json"
    process = subprocess.Popen([str(program()), "--uart", "none", "--json", str(path), str(build(tmp_path, body)[0])])
    time.sleep(0.2)
    process.terminate()
    assert process.wait(10) == 0
    assert json.loads(path.read_text())["cores"][0]["instructions"] > 0


def test_windowed_recursion_overflows_the_registers_into_the_stack(tmp_path: Path) -> None:
    elf = tmp_path / "windows.elf"
    p = Program(LX7SIM)
    DE212_GROUPS["windows"](p)
    elf.write_bytes(p.finish())
    assert STACK > SCRATCH
    with Simulator(trap=True) as simulator:
        simulator.load(elf)
        simulator.run_to_exit()
        totals = simulator.totals()
    assert totals.window_overflows == totals.window_underflows > 50
