# SPDX-License-Identifier: Apache-2.0
"""Say what is installed, what is missing, what that is needed for, and how to get it. The exit code is 4 when
something is missing that the commands without extras need."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from tvhil.commands.common import add_json, emit, list_table, notice
from tvhil.errors import ExitCode

if TYPE_CHECKING:
    from tvhil.boards import BoardFileError

EXAMPLES = """\
examples:
  tvhil doctor                  a table
  tvhil doctor --json d.json    for machines
"""


@dataclass(frozen=True)
class Check:
    """One thing that tvhil uses.

    Attributes:
        name: of the program or package.
        found: its version or place; None when it is missing.
        needed_for: what does not work without it.
        required: whether the commands without extras need it.
        get: how to install it.
    """

    name: str
    found: str | None
    needed_for: str
    required: bool
    get: str


# Package, what for, extra that holds it ("" for none).
_PACKAGES = (
    ("numpy", "packing, prediction", ""),
    ("pillow", "datasets", ""),
    ("pyserial", "boards on a serial port", ""),
    ("rich", "tables and progress", ""),
    ("esptool", "flashing an ESP32", ""),
    ("platformio", "building for an ESP32", ""),
    ("torch", "models, quantization, training", "train"),
    ("safetensors", "checkpoints", "train"),
    ("scikit-learn", "making the embedded dataset", "train"),
    ("pytest", "tests", "dev"),
    ("hypothesis", "tests", "dev"),
    ("ruff", "lint", "dev"),
    ("mypy", "lint", "dev"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil doctor`."""
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Check the installation."""
    malformed: list[BoardFileError] = []
    checks = [_python(), *map(_package, *zip(*_PACKAGES, strict=True)), *_programs(malformed)]
    rows = [
        [c.name, "ok" if c.found else ("MISSING" if c.required else "missing"), c.found or c.get, c.needed_for]
        for c in checks
    ]
    table = list_table("Installation", ["what", "state", "version, place or how to get it", "needed for"], rows)
    missing = [check for check in checks if check.required and not check.found]
    emit(options, {"checks": [asdict(check) for check in checks], "ok": not missing}, [table])
    for check in missing:
        notice(f"{check.name} is missing ({check.needed_for}): {check.get}")
    for error in malformed:
        notice(str(error))
    return ExitCode.MISSING_TOOL if missing else ExitCode.BAD_INPUT if malformed else ExitCode.OK


def _python() -> Check:
    return Check("python", sys.version.split()[0], "everything", True, "")


def _package(name: str, needed_for: str, extra: str) -> Check:
    try:
        found: str | None = metadata.version(name)
    except metadata.PackageNotFoundError:
        found = None
    target = f"'tvhil[{extra}]'" if extra else name
    return Check(name, found, needed_for, not extra, f"pip install {target}")


def _programs(malformed: list[BoardFileError]) -> list[Check]:
    """What the boards are built and started with; a board that cannot work is no defect of the installation."""
    from tvhil.boards import board_facts, list_boards

    facts = board_facts(list_boards(malformed))
    return [Check(fact.name, fact.found, fact.needed_for, False, fact.get) for fact in facts]
