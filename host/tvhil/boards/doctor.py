# SPDX-License-Identifier: Apache-2.0
"""What the boards need from this machine: found, or how to get it."""

from __future__ import annotations

from dataclasses import dataclass

from tvhil.boards.board import Board, list_boards
from tvhil.boards.tools import find_espressif_qemu, find_program, how_to_get, program_version
from tvhil.errors import MissingToolError


@dataclass(frozen=True)
class Fact:
    """One program.

    Attributes:
        name: of the program.
        found: its version, else its path; None when it is missing.
        needed_for: the boards that do not work without it.
        get: how to install it.
    """

    name: str
    found: str | None
    needed_for: str
    get: str


def board_facts(boards: list[Board] | None = None) -> list[Fact]:
    """Every program that a board is built or started with."""
    programs: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    known = list_boards() if boards is None else boards
    for board in known:
        if board.firmware is not None:
            compiler, package = board.firmware.compiler, board.firmware.package
            programs.setdefault((compiler, package, ("--version",)), []).append(board.name)
        if board.start is not None and board.start.package:
            key = (board.start.command[0], board.start.package, board.start.version)
            programs.setdefault(key, []).append(board.name)
    facts = _espressif_facts(known)
    for (name, package, version), users in programs.items():
        try:
            path = find_program(name, package, "")
            found: str | None = (program_version([path, *version]) if version else "") or path
        except MissingToolError:
            found = None
        facts.append(Fact(name, found, f"board {', '.join(users)}", how_to_get(package)))
    return facts


def _espressif_facts(boards: list[Board]) -> list[Fact]:
    """The QEMU of boards that need Espressif's."""
    facts = []
    for board in boards:
        if board.start is None or not board.start.machine:
            continue
        try:
            program = find_espressif_qemu(board.start.command[0], board.start.machine, board.name)
            found: str | None = program_version([program, *board.start.version]) or program
        except MissingToolError:
            found = None
        facts.append(
            Fact(
                f"{board.start.command[0]} (Espressif's)",
                found,
                f"board {board.name}",
                "idf_tools.py install qemu-xtensa",
            )
        )
    return facts
