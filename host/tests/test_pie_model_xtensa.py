# SPDX-License-Identifier: Apache-2.0
"""The golden cases on an emulated Xtensa core, with the model compiled as a trap handler contains it."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from pie_model_library import BUFFER, COMPARED, MODEL, Case, Machine, read_cases

COMPILER = "xtensa-lx106-elf-gcc"
FLAGS = ["-std=gnu11", "-ffreestanding", "-nostdlib", "-O2", "-Wall", "-Wextra", "-Werror", "-mlongcalls"]


def record(case: Case) -> bytes:
    """golden_case_t of xtensa_main.c."""
    pointers = sum(1 << n for n in case.pointers)
    memory = [bytes(m[BUFFER : BUFFER + 512]) for m in (case.memory_before, case.memory_after)]
    between = bytes(Machine.fr.offset - COMPARED)
    registers = [state[0] + between + state[1] for state in (case.before, case.after)]
    header = struct.pack("<4sIII", case.code.ljust(4, b"\0"), len(case.code), BUFFER, pointers)
    return b"".join([header, *registers, *memory])


@pytest.mark.emulator
def test_all_golden_semantics_cases_hold_on_an_xtensa_core(tmp_path: Path) -> None:
    for program in (COMPILER, "qemu-system-xtensa"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed (make setup)")
    records = [record(case) for case in read_cases()]
    cases = tmp_path / "cases.bin"
    cases.write_bytes(b"".join(records))
    elf = tmp_path / "cases.elf"
    tests = MODEL / "tests"
    sources = [*sorted(MODEL.glob("*.c")), tests / "xtensa_main.c", tests / "xtensa_start.S"]
    defines = ["-DPIE_DIRECT_MEMORY", f'-DCASES_FILE="{cases}"', f"-DCASE_SIZE={len(records[0])}"]
    command = [COMPILER, *FLAGS, *defines, f"-I{MODEL}", "-T", tests / "xtensa.ld", *sources, "-o", elf]
    subprocess.run([str(argument) for argument in command], check=True)
    qemu = ["qemu-system-xtensa", "-M", "kc705-nommu", "-nographic", "-monitor", "none", "-serial", "none"]
    result = subprocess.run(
        [*qemu, "-semihosting", "-kernel", str(elf)], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout.split("\n")[-3:-1] == [f"cases {len(records):08x}", "failures 00000000"], (
        result.stdout + result.stderr
    )
    assert (result.returncode, len(records)) == (0, 4654)
