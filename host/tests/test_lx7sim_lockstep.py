# SPDX-License-Identifier: Apache-2.0
"""lx7sim and the distribution's QEMU in step: the same instructions in the same order, and as many of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from lx7sim_programs import DE212, DE212_GROUPS, LX7SIM, Program, need_qemu, run_qemu

from tvhil.lx7sim import INSTRUCTION_CLOCK, SOURCE, Simulator

PROGRAMS = SOURCE / "programs"
SHIFT = 7  # -icount: 2^7 ns an instruction, 5.12 ticks of de212's 40 MHz
TICKS_PER_INSTRUCTION = (1 << SHIFT) * 40e6 / 1e9


def compile_program(source: str, folder: Path, rounds: int) -> Path:
    compiler = shutil.which("xtensa-lx106-elf-gcc")
    if not compiler:
        pytest.skip("xtensa-lx106-elf-gcc is not installed (apt-get install gcc-xtensa-lx106)")
    elf = folder / f"{source}.elf"
    command = [compiler, "-O2", "-nostdlib", "-ffreestanding", "-mlongcalls", f"-DROUNDS={rounds}", f"-I{PROGRAMS}"]
    files = [str(PROGRAMS / "start.S"), str(PROGRAMS / f"{source}.c"), "-lgcc"]
    link = ["-T", str(PROGRAMS / "link.ld"), "-Wl,--no-warn-rwx-segments"]
    subprocess.run([*command, *link, *files, "-o", str(elf)], check=True)
    return elf


def qemu_addresses(elf: Path, log: Path) -> list[int]:
    """Every instruction address QEMU executes, one instruction a translation block."""
    run_qemu(elf, DE212, "-singlestep", "-d", "exec,nochain", "-D", str(log))
    return [int(address, 16) for address in re.findall(r"^Trace \d+: \S+ \[\w+/(\w+)/", log.read_text(), re.M)]


def simulated_addresses(elf: Path) -> list[int]:
    addresses: list[int] = []
    with Simulator(trap=True) as simulator:
        simulator.trace(lambda event: addresses.append(event.pc))
        simulator.load(elf)
        simulator.run_to_exit()
    return addresses


def from_entry(addresses: list[int], entry: int) -> list[int]:
    """Without the boot code, which lies elsewhere."""
    return addresses[addresses.index(entry) :]


def assert_same(ours: list[int], theirs: list[int]) -> None:
    assert abs(len(ours) - len(theirs)) <= 2, "either may spin a turn before the reset that ends the program"
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    assert first is None, f"step {first}: lx7sim {ours[first]:08x}, QEMU {theirs[first]:08x}"  # type: ignore[index]


@pytest.mark.emulator
def test_a_c_program_takes_the_same_path_instruction_by_instruction(tmp_path: Path) -> None:
    need_qemu()
    elf = compile_program("lockstep", tmp_path, rounds=1)
    ours, theirs = simulated_addresses(elf), qemu_addresses(elf, tmp_path / "log")
    entry = ours[4]
    assert len(ours) > 10_000
    assert_same(from_entry(ours, entry), from_entry(theirs, entry))


@pytest.mark.emulator
@pytest.mark.parametrize("group", ["loops", "branches", "interrupts"])
def test_a_program_of_cases_takes_the_same_path_instruction_by_instruction(group: str, tmp_path: Path) -> None:
    need_qemu()
    program = Program(LX7SIM)
    DE212_GROUPS[group](program)
    entry = program.labels["start"]
    elf = tmp_path / "program.elf"
    elf.write_bytes(program.finish())
    ours, theirs = from_entry(simulated_addresses(elf), entry), from_entry(qemu_addresses(elf, tmp_path / "log"), entry)
    if group == "interrupts":  # how long WAITI waits is not the point: compare up to it
        end = program.labels["waits"]
        ours, theirs = ours[: ours.index(end)], theirs[: theirs.index(end)]
    assert_same(ours, theirs)


@pytest.mark.emulator
def test_a_c_program_executes_as_many_instructions(tmp_path: Path) -> None:
    """Between two readings of CCOUNT; QEMU's advances by a fixed time an instruction under -icount."""
    need_qemu()
    elf = compile_program("lockstep", tmp_path, rounds=100)
    theirs = run_qemu(elf, DE212, "-icount", f"shift={SHIFT}").strip()
    with Simulator(parameters=INSTRUCTION_CLOCK) as simulator:
        simulator.load(elf)
        ours = simulator.run_to_exit().decode().strip()
        totals = simulator.totals()
    assert totals.cycles == totals.instructions
    assert ours[:8] == theirs[:8], "the checksums differ"
    counted = int(ours[16:], 16) - int(ours[8:16], 16)
    ticks = (int(theirs[16:], 16) - int(theirs[8:16], 16)) % 2**32
    assert counted > 1_000_000
    assert counted == round(ticks / TICKS_PER_INSTRUCTION)
    assert abs(ticks - counted * TICKS_PER_INSTRUCTION) < 1


@pytest.mark.emulator
def test_the_bench_program_prints_the_same_checksum(tmp_path: Path) -> None:
    need_qemu()
    elf = compile_program("bench", tmp_path, rounds=3)
    with Simulator() as simulator:
        simulator.load(elf)
        assert simulator.run_to_exit().decode() == run_qemu(elf, DE212)
