# SPDX-License-Identifier: Apache-2.0
"""List the boards: what each is, the memory it offers a model, and whether everything it needs is installed. A board is
a TOML file in boards/; the option --board of other commands takes its name, or the path of a file of one's own."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tvhil.commands.common import add_json, emit, list_table, notice
from tvhil.errors import ExitCode

if TYPE_CHECKING:
    from tvhil.boards import Board

EXAMPLES = """\
examples:
  tvhil boards             every board; exit code 3 and a line for each file in boards/ that is malformed
  tvhil boards --json -    for machines
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil boards`."""
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """List the boards."""
    from tvhil.boards import BoardFileError, list_boards

    malformed: list[BoardFileError] = []
    found = [_describe(board) for board in list_boards(malformed)]
    columns = ["name", "kind", "arena", "flash", "latency in", "cost model", "ready", "what"]
    rows = [
        [
            b["name"], b["kind"], _bytes(b["memory"]["arena"]), _bytes(b["memory"]["flash"]), b["latency_unit"],
            "yes" if b["cost_model"] else "no", "yes" if not b["missing"] else f"needs {', '.join(b['missing'])}",
            b["summary"],
        ]
        for b in found
    ]  # fmt: skip
    table = list_table("Boards", columns, rows)
    emit(options, {"boards": found, "malformed": [str(error) for error in malformed]}, [table])
    for error in malformed:
        notice(str(error))
    return ExitCode.BAD_INPUT if malformed else ExitCode.OK


def _describe(board: Board) -> dict[str, Any]:
    from dataclasses import asdict

    from tvhil.boards import board_facts

    return {
        "name": board.name,
        "kind": board.kind,
        "summary": board.summary,
        "file": str(board.path),
        "memory": asdict(board.memory),
        "latency_unit": board.counter.unit,
        "cost_model": board.cost is not None,
        "missing": [fact.name for fact in board_facts([board]) if fact.found is None],
    }


def _bytes(value: int | None) -> str:
    return "as the machine" if value is None else f"{value:,}"
