# SPDX-License-Identifier: Apache-2.0
"""Writing results: a file is the old one or the whole new one, and what is no file is left in its place."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is complete. Folders in front of it are made.

    A device or pipe (`/dev/null`, `>(jq .)`) is written to, never replaced by a file.

    Raises:
        OSError: it cannot be written; the old file is still there.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path = path.resolve()  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def output_file(text: str) -> Path:
    """A file to write, as argument of an option: told before minutes of work, not after.

    Raises:
        argparse.ArgumentTypeError: it is a folder.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, name a file")
    return path
