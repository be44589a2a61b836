# SPDX-License-Identifier: Apache-2.0
"""Writing results: a file is the old one or the whole new one, and what is no file is left in its place."""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file under; it takes the place of `path` when the block ends without an exception.

    Folders in front of it are made. A device or pipe (`/dev/null`, `>(jq .)`) is written to, never replaced by a file.

    Raises:
        OSError: it cannot be written; the old file is still there.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part{os.getpid()}-{threading.get_ident()}")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is complete, as `replacing` does.

    Raises:
        OSError: it cannot be written; the old file is still there.
    """
    with replacing(path) as part:
        part.write_bytes(content)


def output_file(text: str) -> Path:
    """A file to write, as argument of an option: told before minutes of work, not after.

    Raises:
        argparse.ArgumentTypeError: it is a folder.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, name a file")
    return path


def output_folder(text: str) -> Path:
    """A folder to write into, as argument of an option; it is made when something is written.

    Raises:
        argparse.ArgumentTypeError: it is a file.
    """
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file, name a folder")
    return path
