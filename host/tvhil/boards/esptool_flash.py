# SPDX-License-Identifier: Apache-2.0
"""Write the flash of an ESP32 with esptool.

esptool is run as a program and never imported: its licence is the GPL, this project's is Apache-2.0. One run looks at
chip and flash, one compares what is there, one writes what differs, and esptool verifies each part by the MD5 that the
chip computes of its flash. What it printed is kept in build/<board>/flash.log.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tvhil.boards.board import Board
from tvhil.boards.flash_plan import FlashPart
from tvhil.errors import (
    BadFlashError,
    BoardError,
    BoardLostError,
    FlashTooSmallError,
    MissingToolError,
    NoAnswerError,
    NoBoardError,
    NoPermissionError,
    PortInUseError,
    UsageError,
    WrongChipError,
)
from tvhil.files import write_whole

FlashProgress = Callable[[FlashPart, int], None]  # the part at hand, bytes of it that are written
_PATIENCE = 40.0  # seconds without a word from esptool
_PATIENCE_PER_MB = 12.0  # more of them: the ROM erases a whole part first, and sums it up afterwards
_CONNECT_ATTEMPTS = 5
# Seconds that esptool waits for one answer on a line over the network. Its 3 are too few for an emulated UART: the boot
# ROM in Espressif's QEMU takes 1 KB, a block, in 3.7 s.
_NETWORK_TIMEOUT = 30


@dataclass(frozen=True)
class FlashResult:
    """What was done.

    Attributes:
        port: where.
        chip: as esptool calls it.
        flash_bytes: of the chip.
        baud: rate that worked.
        written: parts that were written.
        unchanged: parts that the flash held already.
        seconds: in all.
    """

    port: str
    chip: str
    flash_bytes: int
    baud: int
    written: tuple[FlashPart, ...]
    unchanged: tuple[FlashPart, ...]
    seconds: float


@dataclass(frozen=True)
class _Attempt:
    baud: int
    stub: bool


class _LineError(BoardLostError):
    """Something that a lower baud rate, or doing without the stub, may mend."""


def flash_board(
    board: Board,
    parts: Sequence[FlashPart],
    port: str,
    *,
    baud: int | None = None,
    stub: bool = True,
    dry_run: bool = False,
    progress: FlashProgress | None = None,
    notice: Callable[[str], None] | None = None,
) -> FlashResult:
    """Write what differs between the parts and the flash of a board, and start the board.

    Args:
        board: which one; its chip and its flash's size are checked before anything is written.
        parts: all of them built.
        port: serial device, `socket://` or `rfc2217://` URL.
        baud: the only rate to try; by default those of the board file, from the highest.
        stub: let esptool load its own flasher; without it only the boot ROM works, slowly.
        dry_run: compare, write nothing; `written` is what would be.
        progress: told of every step of writing.
        notice: told in one line of a slower try.

    Raises:
        MissingToolError: esptool is not installed.
        BoardError: one of its kinds, each with an exit code of its own.
    """
    driver = _Esptool(board, port, progress)
    rates = (baud,) if baud is not None else board.serial.flash_rates
    attempts = [_Attempt(rate, stub) for rate in rates]
    if stub and baud is None:
        attempts.append(_Attempt(115200, False))
    for attempt, following in zip(attempts, [*attempts[1:], None], strict=True):
        try:
            return driver.flash(parts, attempt, dry_run)
        except _LineError as error:
            if following is None:
                raise
            if notice is not None:
                how = f"{following.baud} baud" + ("" if following.stub else " and the boot ROM alone")
                notice(f"{error}; trying again with {how}")
    raise AssertionError("unreachable")


class _Esptool:
    """Runs esptool for one board on one port."""

    def __init__(self, board: Board, port: str, progress: FlashProgress | None) -> None:
        self._board, self._progress = board, progress
        self._port = re.sub("^tcp://", "socket://", port)
        self._log_path = board.build_dir / "flash.log"
        board.build_dir.mkdir(parents=True, exist_ok=True)
        self._log_path.unlink(missing_ok=True)

    def flash(self, parts: Sequence[FlashPart], attempt: _Attempt, dry_run: bool) -> FlashResult:
        begin = time.monotonic()
        chip, size = self._look(attempt, parts)
        unchanged = self._compare(attempt, parts)
        changed = [part for part in parts if part not in unchanged]
        if changed and not dry_run:
            self._write(attempt, changed)
        else:
            self._run(attempt, "hard-reset", ["read-mac"], parts)
        return FlashResult(
            self._port, chip, size, attempt.baud, tuple(changed), tuple(unchanged), time.monotonic() - begin
        )

    def _look(self, attempt: _Attempt, parts: Sequence[FlashPart]) -> tuple[str, int]:
        """Chip and size of its flash; both are the board's."""
        assert self._board.idf is not None
        lines = self._run(attempt, "no-reset", ["flash-id"], parts)
        text = "\n".join(lines)
        chip = _found(r"^Connected to (\S+) on", text)
        if chip.lower().replace("-", "") != self._board.idf.target:
            raise WrongChipError(
                f"{self._port}: this is an {chip or 'unknown chip'}, {self._board.name} has an "
                f"{self._board.idf.target.upper().replace('ESP32', 'ESP32-')}: nothing was written"
            )
        number, unit = (_found(r"^Detected flash size: (\d+)[KM]B", text), _found(r"flash size: \d+([KM])B", text))
        size = int(number or 0) << {"K": 10, "M": 20, "": 0}[unit]
        if size == 0:
            raise BadFlashError(f"{self._port}: the board's flash does not answer: is its module damaged?")
        last = max(parts, key=lambda part: part.offset + len(part.content))
        end = last.offset + len(last.content)
        if end > size:
            raise FlashTooSmallError(
                f"{self._port}: the board has {size >> 20} MB of flash, the {last.name} ends at {end:,} bytes: "
                f"take a smaller model, or a board with more flash; nothing was written"
            )
        return chip, size

    def _compare(self, attempt: _Attempt, parts: Sequence[FlashPart]) -> list[FlashPart]:
        """The parts that the flash holds already, by the MD5 of its content."""
        lines = self._run(attempt, "no-reset", ["verify-flash", *_places(parts)], parts, may_fail="Verification failed")
        verdicts = [line for line in lines if re.match(r"Verification (successful|failed) \(digest", line)]
        if len(verdicts) != len(parts):
            raise _LineError(f"{self._port}: esptool compared {len(verdicts)} of {len(parts)} parts")
        return [part for part, verdict in zip(parts, verdicts, strict=True) if "successful" in verdict]

    def _write(self, attempt: _Attempt, parts: Sequence[FlashPart]) -> None:
        by_path = {str(part.path): part for part in parts}
        current = parts[0]

        def read(line: str) -> None:
            nonlocal current
            path = _found(r"^Writing '(.*)' at 0x", line)
            current = by_path.get(path, current)
            at = _found(r"^Writing at (0x[0-9a-f]+) ", line)
            if at and self._progress is not None:
                self._progress(current, min(int(at, 16) - current.offset, len(current.content)))

        # The boot loader says in its header how its flash is to be read: it is written as it was built.
        kept = ["--flash-mode", "keep", "--flash-freq", "keep", "--flash-size", "keep"]
        lines = self._run(attempt, "hard-reset", ["write-flash", *kept, *_places(parts)], parts, read)
        verified = sum(line.startswith("Hash of data verified") for line in lines)
        if verified != len(parts):
            raise _LineError(f"{self._port}: esptool verified {verified} of {len(parts)} parts")

    def _run(
        self,
        attempt: _Attempt,
        after: str,
        command: Sequence[str],
        parts: Sequence[FlashPart],
        read: Callable[[str], None] | None = None,
        may_fail: str | None = None,
    ) -> list[str]:
        """Lines that esptool printed.

        Raises:
            BoardError: it failed, unless with a message that begins with `may_fail`.
        """
        arguments = [sys.executable, "-m", "esptool", "--port", self._port, "--baud", str(attempt.baud)]
        arguments += ["--connect-attempts", str(_CONNECT_ATTEMPTS), "--after", after]
        arguments += [] if attempt.stub else ["--no-stub"]
        patience = _PATIENCE + _PATIENCE_PER_MB * max((len(part.content) for part in parts), default=0) / (1 << 20)
        code, lines = _listen([*arguments, *command], self._environment(), patience, self._log_path, read)
        if code == 0 or (may_fail and any(re.match(f".*error.*: {may_fail}", line) for line in lines)):
            return lines
        raise self._failure(code, lines, command[0], patience)

    def _environment(self) -> dict[str, str]:
        """For esptool; a configuration of the user's own goes before ours."""
        environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
        if "://" in self._port and "ESPTOOL_CFGFILE" not in environment:
            settings = self._board.build_dir / "esptool.cfg"
            write_whole(settings, f"[esptool]\ntimeout = {_NETWORK_TIMEOUT}\n".encode())
            environment["ESPTOOL_CFGFILE"] = str(settings)
        return environment

    def _failure(self, code: int | None, lines: Sequence[str], command: str, patience: float) -> BoardError:
        """Why esptool failed, in one line; `code` is None where it fell silent."""
        text, port = "\n".join(lines), self._port
        if "No module named esptool" in text:
            raise MissingToolError("esptool is not installed: pip install esptool")
        there = "://" in port or os.path.exists(port)  # noqa: PTH110 -- COM3 is no path
        if not there and (command != "flash-id" or "Connected to" in text):
            return BoardLostError(f"{port}: the board was unplugged; plug it in and flash again")
        for pattern, kind, message in _CANNOT_OPEN:
            if re.search(pattern, text):
                return kind(f"{port}: {message}")
        if "protocol" in text and "not known" in text:
            raise UsageError(
                f"{port}: no such kind of port; known are a device, socket://HOST:PORT, rfc2217://HOST:PORT"
            )
        if "Connected to" not in text:
            if "Wrong boot mode" in text:
                return NoAnswerError(
                    f"{port}: the board starts its firmware instead of the loader: hold BOOT, press RESET, flash again"
                )
            return NoAnswerError(
                f"{port}: no chip answers: hold BOOT, press RESET, flash again; or the cable only charges, or the port "
                "is another device's"
            )
        if "MD5 of file does not match" in text or "flash region is empty" in text:
            where = re.findall(r"^Wrote .* at (0x[0-9a-f]+)", text, re.MULTILINE)
            return BadFlashError(f"{port}: the flash at {where[-1] if where else '?'} does not hold what was written")
        doing = {"write-flash": "while writing", "verify-flash": "while comparing"}.get(command, "at the start")
        if code is None:
            return _LineError(f"{port}: the board fell silent {doing} (for {patience:.0f} s)")
        return _LineError(
            f"{port}: the board was lost {doing}: it was reset, or the line is bad (cable, hub, power supply); "
            f"log: {self._log_path}"
        )


_CANNOT_OPEN: tuple[tuple[str, type[BoardError], str], ...] = (
    (
        r"Errno 13|Permission denied",
        NoPermissionError,
        "no permission to open it: sudo usermod --append --groups dialout $USER, then log out and in",
    ),
    (
        r"Errno 11\b|Errno 16|exclusively lock|Access is denied",
        PortInUseError,
        "another program has it open (a serial monitor? another tvhil?): close it and flash again",
    ),
    (
        r"Errno 2\b|FileNotFoundError",
        NoBoardError,
        "there is no such port: plug the board in with a cable that carries data; `tvhil boards --ports` lists them",
    ),
    (r"Errno 111|Connection refused|Errno -[23]|Name or service", NoBoardError, "nobody listens there"),
    (r"Could not open|Could not configure", NoBoardError, "it is no serial port"),
)


def _listen(
    command: Sequence[str],
    environment: Mapping[str, str],
    patience: float,
    log: Path,
    read: Callable[[str], None] | None,
) -> tuple[int | None, list[str]]:
    """Run a program and read its lines as they come; its exit code is None where it said nothing for too long."""
    lines: list[str] = []
    with log.open("a") as copy:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            for line in _lines(process.stdout, patience):
                if line is None:
                    return None, lines
                copy.write(line + "\n")
                lines.append(line)
                if read is not None:
                    read(line)
            return process.wait(), lines
        finally:  # also when we are interrupted
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
            process.kill()
            process.wait()
            process.stdout.close()


def _lines(stream: IO[bytes], patience: float) -> Iterator[str | None]:
    """Lines of a stream, None when nothing has come for `patience` seconds."""
    rest = b""
    while True:
        ready, _, _ = select.select([stream], [], [], patience)
        if not ready:
            yield None
            return
        data = os.read(stream.fileno(), 65536)
        *whole, rest = re.split(rb"[\r\n]+", rest + data)
        yield from (line.decode("utf-8", "replace").rstrip() for line in whole if line.strip())
        if not data:
            if rest.strip():
                yield rest.decode("utf-8", "replace").rstrip()
            return


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else ""


def _places(parts: Sequence[FlashPart]) -> list[str]:
    return [text for part in parts for text in (hex(part.offset), str(part.path))]
