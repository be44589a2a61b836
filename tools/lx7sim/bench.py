#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How many instructions a second lx7sim simulates on this machine, with the cycle model on.

Runs a C program (sieve, sort, matrix product, CRC; needs xtensa-lx106-elf-gcc) and a loop of PIE multiply-accumulates.
The best of several runs counts: other work on the machine only slows it down.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "host"), str(HERE.parents[1] / "host" / "tests")]

from lx7sim_programs import LX7SIM, SCRATCH, Program  # noqa: E402
from test_lx7sim_timing import pie  # noqa: E402

from tvhil.lx7sim import Simulator  # noqa: E402


def c_program(folder: Path) -> Path | None:
    """The C program, or None without its compiler."""
    compiler = shutil.which("xtensa-lx106-elf-gcc")
    if not compiler:
        return None
    elf, source = folder / "bench.elf", HERE / "programs"
    options = ["-O2", "-nostdlib", "-ffreestanding", "-mlongcalls", "-DROUNDS=200", f"-I{source}"]
    link = ["-T", str(source / "link.ld"), "-Wl,--no-warn-rwx-segments"]
    files = [str(source / "start.S"), str(source / "bench.c"), "-lgcc", "-o", str(elf)]
    subprocess.run([compiler, *options, *link, *files], check=True)
    return elf


def vector_program(folder: Path) -> Path:
    """256 int8 multiply-accumulates in 17 instructions, over and over."""
    p = Program(LX7SIM)
    p.li(10, 10000)
    outer, end = p.label(), p.new_label()
    p.li(2, p.base + SCRATCH)
    p.li(3, p.base + SCRATCH + 0x8000)
    p("movi", 11, 100)
    p.align_code(1)
    p("loop", 11, end)
    for i in range(15):
        pie(p, "ee.vsmulas.s8.qacc.ld.incp", qu=1 + i % 2, **{"as": 2}, qx=1 + i % 2, qy=0, sel=i)
    pie(p, "ee.vsmulas.s8.qacc.ld.incp", qu=0, **{"as": 3}, qx=2, qy=0, sel=15)
    pie(p, "ee.vld.128.ip", qu=2, **{"as": 2}, imm16=16)
    p.label(end)
    p("addi", 10, 10, -1)
    p("bnez", 10, outer)
    elf = folder / "vector.elf"
    elf.write_bytes(p.finish())
    return elf


def measure(elf: Path, runs: int) -> dict[str, float]:
    """Instructions, cycles and the best rate."""
    best = 0.0
    for _ in range(runs):
        with Simulator(pie=True) as simulator:
            simulator.load(elf)
            start = time.process_time()
            simulator.run_to_exit()
            seconds = time.process_time() - start
            totals = simulator.totals()
        best = max(best, totals.instructions / seconds / 1e6)
    return {
        "instructions": totals.instructions,
        "cycles": totals.cycles,
        "million_instructions_per_second": round(best, 1),
    }


def main() -> int:
    """Prints one line a program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs of each program, the best counts (3)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = {"c": c_program(folder), "pie": vector_program(folder)}
        figures = {title: measure(elf, arguments.runs) for title, elf in programs.items() if elf is not None}
    for title, figure in figures.items():
        print(f"{title:4} {figure['million_instructions_per_second']:7.1f} M instructions/s of CPU time")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
