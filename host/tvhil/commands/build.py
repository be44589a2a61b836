# SPDX-License-Identifier: Apache-2.0
"""Build the firmware of a board. It is kept under build/ by the hash of its sources, so a second build is free."""

from __future__ import annotations

import argparse

from tvhil.commands.common import add_json, building, emit, facts_table
from tvhil.errors import ExitCode

EXAMPLES = """\
examples:
  tvhil build --board qemu-xtensa
  tvhil build --board native --json b.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil build`."""
    parser.add_argument("--board", required=True, help="name of a board (see `tvhil boards`)")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Build a firmware."""
    from tvhil.boards import build, load_board

    board = load_board(options.board)
    with building() as progress:
        image = build(board, progress)
    result = {
        "board": board.name,
        "firmware": str(image.path),
        "bytes": image.path.stat().st_size,
        "build_id": image.build_id,
        "fresh": image.fresh,
    }
    rows = [
        ("firmware", image.path),
        ("file bytes", f"{result['bytes']:,}"),
        ("build id", image.build_id),
        ("state", "built now" if image.fresh else "up to date"),
    ]
    emit(options, result, [facts_table(f"Firmware of {board.name}", rows)])
    return ExitCode.OK
