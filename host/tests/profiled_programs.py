# SPDX-License-Identifier: Apache-2.0
"""Small bare-metal programs with known loops and calls, assembled and compiled at test time, run on lx7sim."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tvhil.lx7sim import Simulator
from tvhil.profiling.program import Program

COMPILER = "xtensa-lx106-elf-gcc"
FLAGS = ("-g", "-O1", "-nostdlib", "-ffreestanding", "-mlongcalls", "-Wl,-Ttext=0x60001000", "-e", "_start")

# LOOP as, end (lx106 has none): RRI8 with op0 = 6, t = 7, r = 8; the body of imm8 + 1 bytes follows. In the body write
# _addi for addi, which keeps the assembler from taking the two-byte form.
_PROLOGUE = """\
    .macro loop_raw register, bytes
    .byte 0x76, 0x80 | \\register, \\bytes - 1
    .endm
    .macro function name
    .align 4
    .global \\name
    .type \\name, @function
\\name:
    .endm
    .macro done name
    .size \\name, . - \\name
    .endm
    .text
    .literal_position
    function _start
    movi a1, 0x60400000
    movi a2, 0x20 // PS.UM; with PS.EXCM, as after reset, loops do not loop
    wsr.ps a2
    rsync
    movi a0, 0
    call0 main
    movi a2, 0x9d020010
    movi a3, 0xdead
    s32i a3, a2, 0
1:  j 1b
    done _start
"""


def build(folder: Path, assembler: str = "", c: str = "") -> Path:
    """Assemble and compile a program whose `main` is in one of the sources; skips where there is no compiler."""
    if not shutil.which(COMPILER):
        pytest.skip(f"{COMPILER} is not installed: apt-get install gcc-xtensa-lx106")
    (folder / "program.S").write_text(_PROLOGUE + assembler)
    (folder / "program.c").write_text(c)
    elf = folder / "program.elf"
    sources = [str(folder / name) for name in ("program.S", "program.c")]
    subprocess.run([COMPILER, *FLAGS, *sources, "-o", str(elf)], check=True)
    return elf


def finished(elf: Path, **options) -> tuple[Simulator, Program]:
    """The program after it has run to its end."""
    simulator = Simulator(**options)
    simulator.load(elf)
    simulator.run_to_exit()
    return simulator, Program(elf)
