# SPDX-License-Identifier: Apache-2.0
"""List the boards: what each is, the memory it offers a model, and whether everything it needs is installed. A board is
a TOML file in boards/; the option --board of other commands takes its name, or the path of a file of one's own. With
--ports the serial ports of this machine, and which of them could be which board's."""

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
  tvhil boards --ports     serial ports, by their USB ids
  tvhil boards --json -    for machines
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil boards`."""
    parser.add_argument("--ports", action="store_true", help="list the serial ports instead")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """List the boards."""
    from tvhil.boards import BoardFileError, list_boards

    if options.ports:
        return _ports(options)
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


def _ports(options: argparse.Namespace) -> int:
    """List the serial ports."""
    from dataclasses import asdict

    from tvhil.boards import list_ports

    ports = list_ports()
    columns = ["port", "USB id", "serial number", "access", "could be", "what"]
    rows = [
        [
            port.device, port.usb_id, port.serial_number, "yes" if port.may_open else "no", ", ".join(port.boards),
            port.description,
        ]
        for port in ports
    ]  # fmt: skip
    emit(options, {"ports": [asdict(port) for port in ports]}, [list_table("Serial ports", columns, rows)])
    for port in ports:
        if port.boards and not port.may_open:
            notice(
                f"{port.device}: no permission to open it: sudo usermod --append --groups dialout $USER, then log out "
                "and in"
            )
    if not ports:
        notice("no serial port: plug a board in with a cable that carries data, not only power")
    return ExitCode.OK


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
