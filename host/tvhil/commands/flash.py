# SPDX-License-Identifier: Apache-2.0
"""Put firmware and model on a board. For an emulator that is the flash image it boots, kept under build/. For a board
on a port esptool writes boot loader, partition table, firmware and model: only what differs from what is there, each
part verified. A model that does not fit is refused before anything is written, with the numbers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tvhil.commands.common import (
    add_json,
    add_model,
    add_signature,
    building,
    emit,
    facts_table,
    list_table,
    notice,
    open_model,
    stderr,
)
from tvhil.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from tvhil.boards import Board, FlashPart, FlashResult
    from tvhil.boards.esptool_flash import FlashProgress
    from tvhil.packing import TvitModel

EXAMPLES = """\
examples:
  tvhil flash --board qemu-xtensa --model m.tvit
  tvhil flash --board esp32s3 --model m.tvit                    the one board that is plugged in
  tvhil flash --board esp32s3 --port /dev/ttyACM0 --model-only --model m.tvit
  tvhil flash --board esp32s3 --port socket://lab:5555 --no-stub
  tvhil flash --board esp32s3 --dry-run                         what would be written where
  tvhil flash --board esp32s3 --dry-run --port /dev/ttyACM0     and what of it is there already
  tvhil flash --board qemu-xtensa --model m.tvit --require-signature lab.pub
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil flash`."""
    parser.add_argument("--board", required=True, help="name of a board (see `tvhil boards`)")
    add_model(parser)
    add_signature(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, write nothing")
    group = parser.add_argument_group("boards on a port")
    group.add_argument(
        "--port", help="serial device, socket:// or rfc2217:// URL, or serial number (see `tvhil boards --ports`)"
    )
    group.add_argument("--model-only", action="store_true", help="leave boot loader, partition table and firmware")
    group.add_argument("--baud", type=int, help="the only rate to try (default: those of the board file)")
    group.add_argument("--no-stub", action="store_true", help="let the boot ROM write, without esptool's own flasher")
    group.add_argument("--with", dest="builder", default="platformio", help="how to build: platformio (default) or idf")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Flash a board."""
    from tvhil.boards import load_board
    from tvhil.prediction.memory import check_fit

    board = load_board(options.board)
    model, file = open_model(options.model, options.require_signature, board.trusted_key_files)
    check_fit(model, board.limits, board.name)
    if board.idf is not None and board.start is None:
        return _flash_chip(options, board, model, file)
    for name in ("port", "model_only", "baud", "no_stub"):
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} is for boards on a port; {board.name} boots from a file")
    return _flash_file(options, board, model, file)


def _flash_file(options: argparse.Namespace, board: Board, model: TvitModel, file: Path) -> int:
    from tvhil.boards import flash

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


def _flash_chip(options: argparse.Namespace, board: Board, model: TvitModel, file: Path) -> int:
    from tvhil.boards import build_idf, built_firmware, find_port, flash_board, plan_flash

    if options.dry_run or options.model_only:
        firmware = built_firmware(board)
    else:
        find_port(board, options.port)  # before minutes of building
        with building() as built:
            firmware = build_idf(board, built, options.builder)
    parts = plan_flash(board, model, firmware, options.model_only)
    done: FlashResult | None = None
    if not options.dry_run or options.port is not None:
        with _writing([part for part in parts if part.path is not None]) as progress:
            done = flash_board(
                board, [part for part in parts if part.path is not None], find_port(board, options.port),
                baud=options.baud, stub=not options.no_stub, dry_run=options.dry_run, progress=progress, notice=notice,
            )  # fmt: skip
    rows = [_described(part, done, options.dry_run) for part in parts]
    assert board.flash is not None
    result = {
        "board": board.name,
        "dry_run": options.dry_run,
        "model": str(file),
        "model_bytes": model.file_bytes,
        "model_sha256": model.sha256,
        "flash_bytes": board.flash.size,
        "port": done.port if done else None,
        "chip": done.chip if done else None,
        "baud": done.baud if done else None,
        "seconds": done.seconds if done else None,
        "written": bool(done and done.written and not options.dry_run),
        "parts": rows,
    }
    where = f" on {done.port} ({done.chip}, {done.flash_bytes >> 20} MB)" if done else ""
    cells = [
        [f"{row['offset']:#x}", row["name"], row["bytes"] if row["file"] else "", row["room"], row["sha256"] or "",
         row["state"]] for row in rows
    ]  # fmt: skip
    columns = ["offset", "what", "bytes", "of", "SHA-256", "state"]
    emit(options, result, [list_table(f"Flash of {board.name}{where}", columns, cells)])
    if any(part.path is None for part in parts):
        builder = "" if options.builder == "platformio" else f" --with {options.builder}"
        notice(
            f"the firmware of these sources has not been built here: `tvhil build --board {board.name}{builder}`, then "
            "its sizes and hashes are known; `tvhil flash` without --dry-run builds it first"
        )
    return ExitCode.OK


def _described(part: FlashPart, done: FlashResult | None, dry_run: bool) -> dict[str, Any]:
    """One row of the result."""
    if part.path is None:
        state = "not built here"
    elif done is not None and part in done.unchanged:
        state = "already there"
    else:
        state = "would be written" if dry_run else "written"
    there = part.path is not None
    return {
        "name": part.name,
        "offset": part.offset,
        "bytes": len(part.content) if there else None,
        "room": part.room,
        "file": str(part.path) if there else None,
        "sha256": part.sha256 if there else None,
        "state": state,
    }


@contextmanager
def _writing(parts: Sequence[FlashPart]) -> Iterator[FlashProgress]:
    """Progress of writing: a bar for each part that is written, on a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = stderr()
    with Progress(
        "{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    ) as bars:  # fmt: skip
        tasks = {part.name: bars.add_task(part.name, total=len(part.content), visible=False) for part in parts}
        yield lambda part, done: bars.update(tasks[part.name], completed=done, visible=True)
