# SPDX-License-Identifier: Apache-2.0
"""Compile and link the firmware of a board, once for each state of its sources."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tvhil.boards.board import Board, load_board
from tvhil.boards.idf_build import build_idf
from tvhil.boards.tools import find_program, keep_newest
from tvhil.errors import TvhilError, UsageError
from tvhil.runtime import device_dir

Progress = Callable[[int, int, str], None]  # files done, files in all (0 unknown), the file at hand
_JOBS = 2
_KEPT = 8  # firmware images of other source states


class FirmwareError(TvhilError):
    """The firmware does not compile or link."""


@dataclass(frozen=True)
class FirmwareImage:
    """A built firmware.

    Attributes:
        path: the ELF file or program.
        build_id: hash of everything that went into it; the running firmware reports the same.
        fresh: it was built now, and not found from earlier.
    """

    path: Path
    build_id: str
    fresh: bool = False


def build(board: Board, progress: Progress | None = None, builder: str = "platformio") -> FirmwareImage:
    """Build the firmware of a board into `build/<board>/` unless it is there already.

    Args:
        board: which one.
        progress: told after each compiled file.
        builder: of a project of ESP-IDF, as `idf_build.build_idf` takes it.

    Raises:
        UsageError: the board's firmware is not built from here.
        MissingToolError: its compiler is not installed.
        FirmwareError, IdfBuildError: the first error of compiler or linker.
    """
    if board.idf is not None:
        made = build_idf(board, progress, builder)
        return FirmwareImage(made.app, made.build_id, made.fresh)
    if board.firmware_of:
        board = load_board(board.path.parent / f"{board.firmware_of}.toml")
    if board.firmware is None:
        raise UsageError(no_firmware(board))
    device = device_dir()
    sources = _match(device, board.firmware.sources, board)
    return build_program(board, "firmware", sources, progress)


def no_firmware(board: Board) -> str:
    """Why a board cannot be built, flashed or started from here."""
    return (
        f"{board.name}: building and flashing this board is not there yet: this tree has no firmware for it "
        "(`tvhil predict` and `tvhil plan` take it; a board that runs already is named with --port)"
    )


def build_program(
    board: Board,
    name: str,
    sources: Iterable[Path],
    progress: Progress | None = None,
    extra_flags: Sequence[str] = (),
) -> FirmwareImage:
    """Build any program for a board with the flags of its firmware: tests and bare-metal tools.

    Args:
        board: which one.
        name: of the program in the build directory.
        sources: its files.
        progress: told after each compiled file.
        extra_flags: for the compiler, after those of the board.
    """
    firmware = board.firmware
    assert firmware is not None
    device = device_dir()
    sources = list(sources)
    compiler = find_program(firmware.compiler, firmware.package, f"building for {board.name}")
    cflags = [board.expand(flag, device=device) for flag in firmware.cflags] + list(extra_flags)
    cflags += [f"-I{device / include}" for include in firmware.includes]
    ldflags = [board.expand(flag, device=device) for flag in firmware.ldflags]
    build_id = _digest(device, [compiler, *cflags, *ldflags, *firmware.libraries], sources)
    image = board.build_dir / f"{name}-{build_id}{'' if board.kind == 'native' else '.elf'}"
    if image.is_file():
        image.touch()
        return FirmwareImage(image, build_id)
    cflags.append(f'-DTVIT_BUILD_ID="{build_id}"')
    try:
        board.build_dir.mkdir(parents=True, exist_ok=True)
        # Built aside and moved: two processes may build at the same time.
        with tempfile.TemporaryDirectory(dir=board.build_dir, prefix=".building-") as scratch:
            objects = _compile(compiler, cflags, sources, device, Path(scratch), progress)
            output = Path(scratch) / image.name
            _run([compiler, *ldflags, *map(str, objects), *firmware.libraries, "-o", str(output)], "linking")
            output.replace(image)
    except OSError as error:
        raise FirmwareError(f"{board.name}: cannot build in {board.build_dir}: {error}") from None
    keep_newest(board.build_dir, f"{name}-*{image.suffix}", _KEPT)
    return FirmwareImage(image, build_id, fresh=True)


def _match(device: Path, patterns: Iterable[str], board: Board) -> list[Path]:
    found: list[Path] = []
    for pattern in patterns:
        files = sorted(device.glob(pattern))
        if not files:
            raise FirmwareError(f"{board.path}: no file in {device} matches {pattern!r}")
        found += (file for file in files if file not in found)
    return found


def _digest(device: Path, command: Sequence[str], sources: Iterable[Path]) -> str:
    digest = hashlib.sha256(json.dumps([text.replace(str(device), "") for text in command]).encode())
    headers = (path for pattern in ("*.h", "*.ld", "*.inc") for path in device.rglob(pattern))
    for path in [*sources, *sorted(headers)]:
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(
    compiler: str,
    cflags: Sequence[str],
    sources: Sequence[Path],
    device: Path,
    scratch: Path,
    progress: Progress | None,
) -> list[Path]:
    def one(index: int) -> Path:
        source = sources[index]
        output = scratch / f"{index:03}-{source.name}.o"
        flags = cflags if source.suffix == ".c" else [flag for flag in cflags if not flag.startswith("-std=")]
        label = str(source.relative_to(device)) if source.is_relative_to(device) else source.name
        _run([compiler, *flags, "-c", str(source), "-o", str(output)], label)
        return output

    objects = []
    with ThreadPoolExecutor(_JOBS) as pool:
        for done, output in enumerate(pool.map(one, range(len(sources))), 1):
            objects.append(output)
            if progress is not None:
                progress(done, len(sources), sources[done - 1].name)
    return objects


def _run(command: Sequence[str], what: str) -> None:
    plain = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=plain)
    if done.returncode:
        lines = done.stderr.splitlines()
        first = next(
            (line for line in lines if "error" in line.lower() or "undefined" in line), lines[0] if lines else ""
        )
        raise FirmwareError(f"{what} failed (exit {done.returncode}): {first.strip() or 'no message'}")
