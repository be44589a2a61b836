# SPDX-License-Identifier: Apache-2.0
"""The journal of an evaluation: an append-only JSON Lines file that survives being killed at any moment.

The first row is the header: what is evaluated (model, board, dataset, seed, limit). Every later row is one finished
image, or a note about the boards. Each row ends in the CRC-32 of its text, so a torn or damaged row is recognized. A
row that was cut off by a crash is dropped when the journal is resumed, and its image is run again.

What is promised: a row that `append` has written survives the end of the process, however it ends (it is with the
operating system), and after SYNC_SECONDS a power cut (fsync). A row that does not fit on the disk leaves nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tvhil.errors import InputError, UsageError

SCHEMA = "tvhil.journal/1"
# The operating system has every row at once; a power cut may cost the rows of so many seconds, which are run again.
SYNC_SECONDS = 2.0
_CRC_KEY = ',"crc":"'
_START = b'{"schema":"tvhil.journal/'
_CRC_TAIL = len(_CRC_KEY) + 8 + len('"}')


class JournalError(InputError):
    """A journal that is damaged, in use, or of another evaluation."""


def encode_row(row: Mapping[str, Any]) -> bytes:
    """One line: the row as JSON with a last key `crc`, eight hexadecimal digits over everything before it."""
    body = json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False)[:-1].encode()
    return b'%s%s%08x"}\n' % (body, _CRC_KEY.encode(), zlib.crc32(body))


def decode_row(line: bytes) -> dict[str, Any] | None:
    """The row without its CRC, or None where the line is not one that `encode_row` wrote."""
    text = line.removesuffix(b"\n")
    body, tail = text[:-_CRC_TAIL], text[-_CRC_TAIL:]
    if len(text) == len(line) or tail != b'%s%08x"}' % (_CRC_KEY.encode(), zlib.crc32(body)):
        return None
    try:
        row = json.loads(body + b"}")
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


class Journal:
    """An open journal, locked against a second process. Use `create` or `resume`.

    Attributes:
        path: the file.
        header: the first row.
    """

    def __init__(self, path: Path, descriptor: int, header: Mapping[str, Any]) -> None:
        self.path = path
        self.header = dict(header)
        self._descriptor = descriptor
        self._synced = time.monotonic()

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any], *, overwrite: bool = False) -> Journal:
        """Start a journal.

        Args:
            path: the file; its folder is made where needed.
            header: what is evaluated; `resume` refuses to continue when any of it has changed.
            overwrite: replace a journal that is already there.

        Raises:
            UsageError: the file holds rows and `overwrite` is off.
            JournalError: another process writes it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(path, os.O_CREAT)
        try:
            if os.fstat(descriptor).st_size and not overwrite:
                raise UsageError(
                    f"{path} already holds an evaluation: continue it with --resume, or start over with --overwrite"
                )
            os.ftruncate(descriptor, 0)
            journal = cls(path, descriptor, {"schema": SCHEMA, **header})
            journal._write(encode_row(journal.header))
        except BaseException:
            os.close(descriptor)
            raise
        return journal

    @classmethod
    def resume(cls, path: Path, header: Mapping[str, Any]) -> Journal:
        """Continue a journal; one that does not exist or lost its first row is created.

        Raises:
            JournalError: the journal is of another model, dataset, board, seed or limit (named), a row in its middle is
                damaged (its line is named), or another process writes it.
        """
        if not path.exists():
            return cls.create(path, header)
        descriptor = _open_locked(path)
        try:
            end, first = _scan(path)
            expected = {"schema": SCHEMA, **header}
            if first is None:
                os.ftruncate(descriptor, 0)
                journal = cls(path, descriptor, expected)
                journal._write(encode_row(expected))
                return journal
            _refuse_other_evaluation(path, first, expected)
            os.ftruncate(descriptor, end)
            return cls(path, descriptor, first)
        except BaseException:
            os.close(descriptor)
            raise

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row and hand it to the operating system before returning.

        Raises:
            OSError: the disk is full; what was written before is kept, and nothing of this row.
        """
        self._write(encode_row(row))
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._descriptor)
            self._synced = time.monotonic()

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows after the header, read from the file one by one."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                row = decode_row(line)
                if row is not None:
                    yield row

    def close(self) -> None:
        """Flush to the disk and unlock."""
        if self._descriptor >= 0:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        end = os.fstat(self._descriptor).st_size
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:
            # Whoever writes next, if space was freed, must not continue half a row.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, end)
            raise


def read_journal(path: Path) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """Header and rows of a journal, without locking it; a torn last row is left out.

    Raises:
        JournalError: no such file, no header, or a damaged row in the middle.
    """
    if not path.is_file():
        raise JournalError(f"there is no journal {path}")
    _, header = _scan(path)
    if header is None:
        raise JournalError(f"{path} is no journal of an evaluation: its first row is missing or damaged")
    return header, Journal(path, -1, header).rows()


def _open_locked(path: Path, flags: int = 0) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | flags, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _lock_holder(descriptor)
        os.close(descriptor)
        who = "another process" if holder is None else f"process {holder}"
        raise JournalError(f"{who} writes {path}: wait for it, or choose another journal") from None
    return descriptor


def _lock_holder(descriptor: int) -> int | None:
    """Process that holds the lock of a file, where the system tells (Linux: proc(5), /proc/locks)."""
    status = os.fstat(descriptor)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return None
    pids = [int(fields[4]) for fields in locks if fields[1:2] == ["FLOCK"] and fields[5:6] == [place]]
    return pids[0] if pids and pids[0] > 0 else None


def _scan(path: Path) -> tuple[int, dict[str, Any] | None]:
    """End of the last good row and the header; the header is None for an empty journal or a torn first row."""
    end, header, bad_line = 0, None, 0
    with path.open("rb") as file:
        if file.read(len(_START)) != _START[: path.stat().st_size]:
            raise JournalError(f"{path} is no journal of an evaluation: choose another file")
        file.seek(0)
        for number, line in enumerate(file, 1):
            if bad_line:
                raise JournalError(
                    f"line {bad_line} of {path} is damaged: delete that line, and --resume runs its image again"
                )
            row = decode_row(line)
            if row is None:
                bad_line = number
                continue
            end += len(line)
            if number == 1:
                header = row
    if header is not None and header.get("schema") != SCHEMA:
        raise JournalError(f"{path} has schema {header.get('schema')!r}, and this tvhil writes {SCHEMA!r}")
    return end, header


def _refuse_other_evaluation(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    # Both sides as JSON reads them back: tuples are lists.
    wanted = json.loads(json.dumps(dict(expected)))
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise JournalError(
                f"{path} is of another evaluation: its {key} is {_short(found.get(key))}, now it is "
                f"{_short(wanted.get(key))}. Choose another journal, or start over with --overwrite"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
