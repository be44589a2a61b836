# SPDX-License-Identifier: Apache-2.0
"""Build the firmware of a board. It is kept under build/ by the hash of its sources, so a second build is free. That of
an ESP32 is a project of ESP-IDF: PlatformIO builds it, and downloads what that needs the first time, or idf.py does.
The log of the last such build is build/<board>/build.log."""

from __future__ import annotations

import argparse

from tvhil.commands.common import add_json, building, emit, facts_table
from tvhil.errors import ExitCode

EXAMPLES = """\
examples:
  tvhil build --board qemu-xtensa
  tvhil build --board native --json b.json
  tvhil build --board esp32s3                  with PlatformIO
  tvhil build --board esp32s3 --with idf       with the ESP-IDF whose export.sh you have sourced
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil build`."""
    parser.add_argument("--board", required=True, help="name of a board (see `tvhil boards`)")
    parser.add_argument(
        "--with",
        dest="builder",
        default="platformio",
        metavar="BUILDER",
        help="of an ESP32: platformio (default), idf",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Build a firmware."""
    from tvhil.boards import build, load_board

    board = load_board(options.board)
    with building() as progress:
        image = build(board, progress, options.builder)
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
