# SPDX-License-Identifier: Apache-2.0
"""The simulated instructions against the distribution's QEMU: identical registers and memory, case by case."""

from __future__ import annotations

from pathlib import Path

import pytest
from lx7sim_programs import (
    DE212,
    DE212_GROUPS,
    DE233,
    DE233_GROUPS,
    LX7SIM,
    Machine,
    Program,
    run_lx7sim,
    run_qemu,
    words,
)


def build(machine: Machine, group: str, folder: Path) -> tuple[Path, list[str]]:
    program = Program(machine)
    (DE212_GROUPS | DE233_GROUPS)[group](program)
    path = folder / f"{group}-{machine.name}.elf"
    path.write_bytes(program.finish())
    return path, program.notes


def compare(group: str, machine: Machine, folder: Path) -> None:
    reference, notes = build(machine, group, folder)
    expected = words(run_qemu(reference, machine))
    assert len(expected) == len(notes), f"QEMU recorded {len(expected)} of {len(notes)} results"
    program, _ = build(LX7SIM, group, folder)
    got = run_lx7sim(program)
    assert len(got) == len(notes), f"lx7sim recorded {len(got)} of {len(notes)} results"
    wrong = [f"{note}: {a:08x}, QEMU {b:08x}" for note, a, b in zip(notes, got, expected, strict=True) if a != b]
    assert not wrong, f"{len(wrong)} of {len(notes)} differ:\n" + "\n".join(wrong[:20])


@pytest.mark.emulator
@pytest.mark.parametrize("group", DE212_GROUPS)
def test_an_instruction_group_leaves_the_registers_and_memory_that_qemu_de212_leaves(
    group: str, tmp_path: Path
) -> None:
    compare(group, DE212, tmp_path)


@pytest.mark.emulator
@pytest.mark.parametrize("group", DE233_GROUPS)
def test_an_instruction_group_leaves_the_registers_and_memory_that_qemu_de233_fpu_leaves(
    group: str, tmp_path: Path
) -> None:
    compare(group, DE233, tmp_path)
