# SPDX-License-Identifier: Apache-2.0
"""Builds and runs the program that compares each PIE kernel with its portable twin (device/kernels/pie/tests).

One ELF file for both machines: lx7sim executes vector instructions, the distribution's QEMU traps them.

    python host/tests/pie_twins.py linear --rounds 200 --parts 2            # on lx7sim
    python host/tests/pie_twins.py linear --seed 3 --first 17 --rounds 1 --qemu         # repeats one round on QEMU
    python host/tests/pie_twins.py linear --kernels 'linear*' 'workspace*' buffer_sizes.c    # builds these kernels only
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tvhil.boards import load_board
from tvhil.boards.build import build_program
from tvhil.boards.start import start_program
from tvhil.errors import TvhilError
from tvhil.lx7sim import Simulator, Stop
from tvhil.runtime import device_dir

OPERATORS = ("linear", "attention", "layernorm", "mean_pool", "patch_embed")
PORT_FILES = ("arithmetic.S", "arithmetic.c", "boot_parameters.c", "cores.S", "cores.c", "external_registers.S")
PORT_FILES += ("faults.c", "memory.c", "start.S", "uart.c", "pie/pie_trap.S", "pie/pie_trap.c")
FLAGS = ("-DPIE_DIRECT_MEMORY", "-DTVIT_KERNELS_PIE")
_DONE = re.compile(r"done (\w+) rounds (\d+) parts (\d+) different (\d+) compared (\d+)")
_QEMU_PATIENCE = 300.0
_MOST_CYCLES = 20_000_000_000


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the rounds of one operator gave.

    Attributes:
        absent: the operator has no PIE kernel in this tree.
        different: rounds with a difference; `lines` has the first one of the first eight such rounds.
        compared: elements.
        cycles: of the whole program on lx7sim, 0 on QEMU.
    """

    absent: bool
    rounds: int
    different: int
    compared: int
    lines: tuple[str, ...]
    cycles: int = 0


def kernel_sources() -> list[Path]:
    """The PIE kernels that there are."""
    folder = device_dir() / "kernels" / "pie"
    return [path for path in sorted([*folder.glob("*.c"), *folder.glob("*.S")]) if path.name != "table.c"]


@functools.cache
def program(kernels: tuple[Path, ...] | None = None) -> Path:
    """The ELF file, built when its sources have changed.

    Args:
        kernels: instead of those of the tree.
    """
    device, board = device_dir(), load_board("qemu-xtensa")
    port = device / "ports" / "xtensa_qemu"
    sources = [port / name for name in PORT_FILES]
    sources += sorted((device / "kernels" / "pie" / "tests").glob("twins*.c"))
    chosen = list(kernels) if kernels is not None else kernel_sources()
    sources += sorted({*chosen, device / "kernels" / "pie" / "buffer_sizes.c"})  # part of every build
    sources += [*sorted((device / "kernels" / "portable").glob("*.c")), *sorted((device / "pie_model").glob("*.c"))]
    flags = [*FLAGS, f"-I{device / 'pie_model'}"]
    return build_program(board, "pie_twins", sources, extra_flags=flags).path


def command_line(operator: str, seed: int, rounds: int, parts: int, first: int = 0) -> str:
    """The boot options."""
    return f"operator={operator} seed={seed} rounds={rounds} first={first} parts={parts}"


def _outcome(lines: Sequence[str], operator: str, cycles: int = 0) -> Outcome:
    if f"absent {operator}" in lines:
        return Outcome(True, 0, 0, 0, ())
    done = next((match for line in lines if (match := _DONE.fullmatch(line))), None)
    if done is None:
        raise AssertionError("the program did not finish: " + " | ".join(lines[-6:]))
    rest = tuple(line for line in lines if line != done[0] and line not in ("ready", "end", ""))
    return Outcome(False, int(done[2]), int(done[4]), int(done[5]), rest, cycles)


def on_lx7sim(
    operator: str, *, seed: int = 1, rounds: int = 1, parts: int = 1, first: int = 0, elf: Path | None = None
) -> Outcome:
    """Run on the simulator; what it warns of (a misaligned access, a missing ISYNC) counts as a difference."""
    line = command_line(operator, seed, rounds, parts, first)
    with Simulator(cores=parts, pie=True, trap=True, command_line=line, max_cycles=_MOST_CYCLES) as simulator:
        simulator.load(elf or program())
        stop = simulator.run()
        if stop is not Stop.IDLE:
            raise AssertionError(f"{stop.name}: {simulator.message}")
        outcome = _outcome(simulator.receive().decode().splitlines(), operator, simulator.totals().cycles)
        warnings = tuple(simulator.warnings)
    return dataclasses.replace(outcome, lines=(*outcome.lines, *warnings), different=outcome.different + bool(warnings))


def on_qemu(
    operator: str,
    *,
    seed: int = 1,
    rounds: int = 1,
    parts: int = 1,
    first: int = 0,
    elf: Path | None = None,
    threads: bool = False,
) -> Outcome:
    """Run on the emulator without vector instructions: each of them traps.

    Args:
        threads: each core is a thread of the host, so that they run at the same time; else they take turns.
    """
    board = load_board("qemu-xtensa")
    assert board.start is not None
    command = list(board.start.command)
    command[command.index("-append") + 1] = command_line(operator, seed, rounds, parts, first)
    if threads:
        at = command.index("-icount")
        command[at : at + 2] = ["-accel", "tcg,thread=multi"]
    at = command.index("-drive")
    del command[at : at + 2]  # no flash: nothing of it is read
    command[command.index("-smp") + 1] = str(parts)
    board = dataclasses.replace(board, start=dataclasses.replace(board.start, command=tuple(command)))
    text = b""
    deadline = time.monotonic() + _QEMU_PATIENCE
    with start_program(board, elf or program(), Path("none")) as running:
        while not text.endswith(b"end\n"):
            if time.monotonic() > deadline:
                raise AssertionError(f"no end after {_QEMU_PATIENCE:.0f} s: {text[-300:]!r}")
            text += running.transport.read(1.0)
    return _outcome(text.decode().splitlines(), operator)


def main() -> int:
    """Run rounds from the command line; 1 when there was a difference."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("operators", nargs="*", choices=[[], *OPERATORS], default=[], help="all of them without it")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first round, to repeat one")
    parser.add_argument("--parts", type=int, default=1, choices=(1, 2))
    parser.add_argument("--qemu", action="store_true", help="trap every instruction instead of simulating it")
    parser.add_argument("--kernels", nargs="+", metavar="PATTERN", help="files of device/kernels/pie to build, not all")
    given = parser.parse_args()
    chosen = [path for path in kernel_sources() if any(path.match(pattern) for pattern in given.kernels or ["*"])]
    try:
        elf = program(tuple(chosen))
    except TvhilError as error:
        parser.error(f"{error} (name the kernels to build with --kernels)")
    wrong = 0
    for operator in given.operators or OPERATORS:
        start = time.monotonic()
        run = on_qemu if given.qemu else on_lx7sim
        found = run(operator, seed=given.seed, rounds=given.rounds, parts=given.parts, first=given.first, elf=elf)
        if found.absent:
            print(f"{operator}: no kernel yet")
            continue
        for line in found.lines:
            print(line)
        print(
            f"{operator}: {found.different} of {found.rounds} rounds differ, {found.compared:,} elements, "
            f"{found.cycles / 1e6:.1f} M cycles, {time.monotonic() - start:.1f} s"
        )
        wrong += found.different
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
