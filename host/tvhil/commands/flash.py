# SPDX-License-Identifier: Apache-2.0
"""Put firmware and model on a board. For an emulator that is the flash image it boots, kept under build/. A model that
does not fit is refused before anything is written, with the numbers."""

from __future__ import annotations

import argparse
from typing import Any

from tvhil.commands.common import add_json, add_model, add_signature, building, emit, facts_table, open_model
from tvhil.errors import ExitCode

EXAMPLES = """\
examples:
  tvhil flash --board qemu-xtensa --model m.tvit
  tvhil flash --board qemu-xtensa --model m.tvit --dry-run     what would be written where
  tvhil flash --board qemu-xtensa --model m.tvit --require-signature lab.pub
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil flash`."""
    parser.add_argument("--board", required=True, help="name of a board (see `tvhil boards`)")
    add_model(parser)
    add_signature(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, write nothing")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Flash a board."""
    from tvhil.boards import flash, load_board
    from tvhil.prediction.memory import check_fit

    board = load_board(options.board)
    model, file = open_model(options.model, options.require_signature, board.trusted_key_files)
    check_fit(model, board.limits, board.name)
    result: dict[str, Any] = {
        "board": board.name,
        "dry_run": options.dry_run,
        "firmware": None,
        "flash": None,
        "model": str(file),
        "model_bytes": model.file_bytes,
        "model_sha256": model.sha256,
        "flash_bytes": board.memory.flash,
        "written": False,
    }
    if not options.dry_run:
        with building() as progress:
            image = flash(board, model, progress=progress)
        result |= {"firmware": str(image.firmware.path), "flash": str(image.flash), "written": image.fresh}
    room = "" if board.memory.flash is None else f" of {board.memory.flash:,}"
    state = "would be written" if options.dry_run else ("written" if result["written"] else "already there")
    rows = [
        ("firmware", result["firmware"]),
        ("flash image", result["flash"]),
        ("model", f"{model.name}, {model.file_bytes:,} bytes{room}, SHA-256 {model.sha256}"),
        ("state", state),
    ]
    emit(options, result, [facts_table(f"Flash of {board.name}", rows)])
    return ExitCode.OK
