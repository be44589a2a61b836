# SPDX-License-Identifier: Apache-2.0
"""Build the firmware of an ESP32: PlatformIO, or ESP-IDF's idf.py for who has it, once for each state of the sources.

Both get the board's name and the hash of the sources as the CMake variables TVIT_BOARD and TVIT_BUILD_ID. Everything
they make is kept in build/<board>/, nothing in device/. The three images that go into the flash are kept in
build/<board>/idf-<hash>/.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tvhil.boards.board import Board
from tvhil.boards.tools import keep_newest
from tvhil.errors import MissingToolError, TvhilError, UsageError
from tvhil.runtime import device_dir

Progress = Callable[[int, int, str], None]  # files done, files in all (0 unknown), the file at hand
BUILDERS = ("platformio", "idf")
_KEPT = 4  # images of other source states
_SOURCES = (
    "*.c", "*.h", "*.S", "*.inc", "*.ld", "*.lf", "*.csv", "*.cmake", "CMakeLists.txt", "Kconfig*", "sdkconfig.*",
    "*.yml", "platformio.ini",
)  # fmt: skip
_MADE = {".pio", "build", "managed_components", "sdkconfig.old"}  # by who builds in the source tree
_OTHERS = ("ports/native", "ports/xtensa_qemu", "tests", "fuzz", "pie_model")  # parts of device/ that are not in it


class IdfBuildError(TvhilError):
    """The firmware could not be built."""


@dataclass(frozen=True)
class IdfFirmware:
    """A built firmware.

    Attributes:
        bootloader, table, app: what goes into the flash: boot loader, partition table, application.
        build_id: hash of everything that went into it; the running firmware reports the same.
        fresh: it was built now, and not found from earlier.
    """

    bootloader: Path
    table: Path
    app: Path
    build_id: str
    fresh: bool = False


def project_dir(board: Board) -> Path:
    """The folder of the board's ESP-IDF project."""
    assert board.idf is not None
    return device_dir() / board.idf.project


def built_firmware(board: Board) -> IdfFirmware | None:
    """The firmware of the sources as they are, where it has been built here."""
    build_id = _digest(board)
    folder = board.build_dir / f"idf-{build_id}"
    firmware = _firmware(folder, build_id)
    return firmware if all(path.is_file() for path in _images(firmware)) else None


def build_idf(board: Board, progress: Progress | None = None, builder: str = "platformio") -> IdfFirmware:
    """Build the firmware unless it is there already.

    Args:
        board: with an `[idf]` table.
        progress: told of each compiled file.
        builder: 'platformio', or 'idf' where ESP-IDF is installed and its export.sh has been read.

    Raises:
        UsageError: an unknown builder.
        MissingToolError: it is not installed, or its toolchain is not.
        IdfBuildError: the reason in one line; the log is kept as build/<board>/build.log.
    """
    assert board.idf is not None
    if builder not in BUILDERS:
        raise UsageError(f"there is no builder {builder!r}; known: {', '.join(BUILDERS)}")
    if not (project_dir(board) / "CMakeLists.txt").is_file():
        raise IdfBuildError(f"{board.name}: {project_dir(board)} holds no ESP-IDF project (no CMakeLists.txt)")
    found = built_firmware(board)
    if found is not None:
        os.utime(found.app.parent)
        return found
    build_id = _digest(board)
    log = board.build_dir / "build.log"
    try:
        board.build_dir.mkdir(parents=True, exist_ok=True)
        command, outputs = (_platformio if builder == "platformio" else _idf)(board, build_id)
        for made in outputs:  # a setting that is there already goes before the defaults, which may have changed
            made.with_name("sdkconfig").unlink(missing_ok=True)
        code, lines = _run(command, _environment(board, build_id), log, progress)
        if code:
            raise _failure(board, lines, code, log)
        with tempfile.TemporaryDirectory(dir=board.build_dir, prefix=".keeping-") as scratch:
            firmware = _firmware(Path(scratch) / "images", build_id)
            firmware.app.parent.mkdir()
            for made, image in zip(outputs, _images(firmware), strict=True):
                if not made.is_file():
                    raise IdfBuildError(f"{board.name}: the build made no {made}; log: {log}")
                shutil.copyfile(made, image)
            map_file = outputs[2].with_suffix(".map")
            if builder == "idf" or map_file.is_file():
                _check_startup_code(board, map_file)
            home = board.build_dir / f"idf-{build_id}"
            shutil.rmtree(home, ignore_errors=True)
            firmware.app.parent.replace(home)
    except OSError as error:
        raise IdfBuildError(f"{board.name}: cannot build in {board.build_dir}: {error.strerror}") from None
    _forget_old(board)
    images = _firmware(home, build_id)
    return IdfFirmware(images.bootloader, images.table, images.app, build_id, fresh=True)


def _check_startup_code(board: Board, map_file: Path) -> None:
    """Refuse a firmware that can call what its first model overwrites, or that left no map to tell that from.

    That PlatformIO leaves one is not known; its builds are checked where it does.
    """
    from tvhil.boards.startup_code import startup_calls

    if not map_file.is_file():
        raise IdfBuildError(f"{board.name}: the build made no {map_file}, which tells what the firmware calls")
    if ways := startup_calls(map_file):
        raise IdfBuildError(
            f"{board.name}: the running firmware can call code that its first model overwrites: {ways[0]} "
            f"({len(ways)} such ways; components/tvit/arena.ld)"
        )


def _firmware(folder: Path, build_id: str) -> IdfFirmware:
    return IdfFirmware(folder / "bootloader.bin", folder / "partition-table.bin", folder / "tvhil.bin", build_id)


def _images(firmware: IdfFirmware) -> tuple[Path, Path, Path]:
    return firmware.bootloader, firmware.table, firmware.app


def _forget_old(board: Board) -> None:
    folders = sorted(board.build_dir.glob("idf-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in folders[_KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)
    keep_newest(board.build_dir, "model-*.tvit", 8)


def _digest(board: Board) -> str:
    """Hash of the sources and of what the board file says of the build."""
    device = device_dir()
    others = tuple(device / name for name in _OTHERS)
    files = sorted({path for pattern in _SOURCES for path in device.rglob(pattern) if path.is_file()})
    assert board.idf is not None
    assert board.flash is not None
    digest = hashlib.sha256(json.dumps([board.name, asdict(board.idf), asdict(board.flash)]).encode())
    for path in files:
        inside = path.relative_to(device)
        if not any(path.is_relative_to(other) for other in others) and not _MADE & {*inside.parts}:
            digest.update(f"\0{inside}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _environment(board: Board, build_id: str) -> dict[str, str]:
    return {
        **os.environ,
        "LC_ALL": "C",
        "TVIT_BUILD_ID": build_id,
        "PLATFORMIO_WORKSPACE_DIR": str(board.build_dir / "platformio"),
        "PLATFORMIO_BUILD_DIR": str(board.build_dir / "platformio" / "build"),
        "PLATFORMIO_SETTING_ENABLE_TELEMETRY": "No",
        "PLATFORMIO_NO_ANSI": "true",
    }


def _platformio(board: Board, _: str) -> tuple[list[str], tuple[Path, Path, Path]]:
    """Its command, and where it leaves boot loader, partition table, application."""
    assert board.idf is not None
    made = board.build_dir / "platformio" / "build" / board.idf.environment
    command = [sys.executable, "-m", "platformio", "run", "--project-dir", str(device_dir())]
    command += ["--environment", board.idf.environment]
    return command, (made / "bootloader.bin", made / "partitions.bin", made / "firmware.bin")


def _idf(board: Board, build_id: str) -> tuple[list[str], tuple[Path, Path, Path]]:
    """As `_platformio`."""
    assert board.idf is not None
    program = shutil.which("idf.py")
    if program is None:
        raise MissingToolError(
            "idf.py is not in the PATH: install ESP-IDF 5.5 or later and source its export.sh, or leave out --with idf"
        )
    made = board.build_dir / "idf"
    project = project_dir(board)
    defaults = ";".join(str(project / name) for name in board.idf.defaults)
    settings = {
        "TVIT_BOARD": board.name, "TVIT_BUILD_ID": build_id, "IDF_TARGET": board.idf.target,
        "SDKCONFIG": made / "sdkconfig", "SDKCONFIG_DEFAULTS": defaults,
    }  # fmt: skip
    command = [program, "-C", str(project), "-B", str(made), *(f"-D{key}={value}" for key, value in settings.items())]
    return [*command, "build"], (
        made / "bootloader" / "bootloader.bin",
        made / "partition_table" / "partition-table.bin",
        made / "tvhil.bin",
    )


def _run(
    command: Sequence[str], environment: dict[str, str], log: Path, progress: Progress | None
) -> tuple[int, list[str]]:
    lines: list[str] = []
    with log.open("w") as copy:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            for step, total, name in _steps(process.stdout, lines, copy.write):
                if progress is not None:
                    progress(step, total, name)
            return process.wait(), lines
        finally:  # also when we are interrupted
            process.terminate()
            process.wait()
            process.stdout.close()


def _steps(stream: Iterator[str], lines: list[str], keep: Callable[[str], object]) -> Iterator[tuple[int, int, str]]:
    """What the lines of ninja and PlatformIO tell of the way that is done."""
    done = 0
    for line in stream:
        keep(line)
        lines.append(line.rstrip())
        if match := re.match(r"\[(\d+)/(\d+)\] (.*)", line):
            yield int(match[1]), int(match[2]), Path(match[3].split(" ")[-1].strip()).name
        elif match := re.match(r"(?:Compiling|Archiving|Linking|Generating|Building) (\S+)", line):
            done += 1
            yield done, 0, Path(match[1]).name


# What a build's output tells of its failure: pattern, kind of error, what to say. The first that is found is the cause.
_FAILURES: tuple[tuple[str, type[TvhilError], str], ...] = (
    (
        r"No module named platformio",
        MissingToolError,
        "PlatformIO is not installed: pip install platformio; or build with --with idf",
    ),
    (
        r"only in an ESP-IDF shell environment|The following Python requirements are not satisfied",
        MissingToolError,
        "idf.py is there, its Python packages are not: run ESP-IDF's install.sh esp32s3 and source its export.sh",
    ),
    (r"No space left on device|Errno 28|ENOSPC", IdfBuildError, "the disk is full: free some GB and build again"),
    (
        r"InternetConnectionError|InternetIsOffline|HTTPClientError|Temporary failure in name resolution|"
        r"Name or service not known|ConnectionError|Connection refused|Network is unreachable|Could not resolve host|"
        r"Max retries exceeded|timed out",
        IdfBuildError,
        "no network: the first build downloads ESP-IDF and its compiler; connect and build again, what was downloaded "
        "is kept",
    ),
    (
        r"UnknownPackageError|Could not find the package|(?:xtensa-esp\S*-gcc|cmake|ninja)\S*: (?:command )?not found|"
        r"CMAKE_C_COMPILER.{0,200}not (?:found|able)|could not find program 'xtensa",
        MissingToolError,
        "the toolchain is missing or half installed (PlatformIO installs it by itself; ESP-IDF: install.sh esp32s3)",
    ),
    (r"app partition is too small|is too small for binary", IdfBuildError, "the firmware is larger than its partition"),
    (
        r"region `\S+' overflowed by \d+ bytes|The (?:arena does not fit|start-up code in the arena)[^\n(]*[^\n( .]",
        IdfBuildError,
        "the program does not fit into the chip's memory",
    ),
)


def _failure(board: Board, lines: Sequence[str], code: int, log: Path) -> TvhilError:
    text = "\n".join(lines)
    compiler = re.search(r"^(\S+?):(\d+):(?:\d+:)? (?:fatal )?error: (.*)$", text, re.MULTILINE)
    for pattern, kind, message in _FAILURES:
        match = re.search(pattern, text, re.DOTALL)
        if match and not (compiler and compiler.start() < match.start()):
            told = f" ({match[0]})" if re.search("overflowed|arena", match[0]) else ""
            return kind(f"{board.name}: {message}{told}; log: {log}")
    if compiler:
        return IdfBuildError(f"{board.name}: {compiler[1]}:{compiler[2]}: {compiler[3]}; log: {log}")
    last = next((line for line in reversed(lines) if re.search(r"error|undefined reference", line, re.IGNORECASE)), "")
    last = last or next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    return IdfBuildError(f"{board.name}: the build failed (exit {code}): {last.strip()}; log: {log}")
