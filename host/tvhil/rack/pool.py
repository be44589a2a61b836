# SPDX-License-Identifier: Apache-2.0
"""The boards of a rack: from ports, a number of emulators, or a board pool file.

A board pool file is TOML, one `[[board]]` a board:

    [[board]]
    board = "lx7sim"
    port = "socket://lab:4000"  # or rfc2217://host:port, /dev/ttyACM0; an emulator of this machine needs none

    [[board]]
    board = "qemu-xtensa"
    name = "spare"              # how reports call it (default: its port, or the board's name)
    instances = 2               # of an emulator

A labgrid environment (.yaml) is a board pool, too: see `labgrid_driver`.
"""

from __future__ import annotations

import difflib
import importlib.util
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvhil.boards import Board, load_board
from tvhil.errors import InputError, MissingToolError, UsageError

_KEYS = {"board": str, "name": str, "port": str, "instances": int}
_MOST_INSTANCES = 64


@dataclass(frozen=True)
class Slot:
    """A place in a rack.

    Attributes:
        name: how messages and reports call it; unique in the rack.
        board: which one it is.
        port: serial device or URL; None for a board that is started here.
    """

    name: str
    board: Board
    port: str | None = None


def instances(board: Board, count: int, name: str | None = None) -> list[Slot]:
    """So many emulators, or processes, of one board.

    Raises:
        UsageError: a board on a port cannot be started, or the number is none.
    """
    if board.start is None:
        raise UsageError(f"{board.name} is on a port: name each one with --port, or in a pool file")
    if not 1 <= count <= _MOST_INSTANCES:
        raise UsageError(f"a rack has 1 to {_MOST_INSTANCES} instances of an emulator, not {count}")
    name = name or board.name
    return [Slot(name if count == 1 else f"{name}-{i + 1}", board) for i in range(count)]


def ports(board: Board, urls: Sequence[str]) -> list[Slot]:
    """One board on each port.

    Raises:
        UsageError: a port is named twice.
    """
    return _unique([Slot(url, board, url) for url in urls], "--port")


def read_pool(path: Path) -> list[Slot]:
    """The boards of a board pool file, or of a labgrid environment.

    Raises:
        InputError: the file is missing or malformed; the message names the entry.
        UsageError: it names a board that there is not.
        MissingToolError: labgrid is not installed, for an environment of it.
        BoardError: labgrid cannot give us its boards.
    """
    if path.suffix in (".yaml", ".yml"):
        if importlib.util.find_spec("labgrid") is None:
            raise MissingToolError(f"{path} is an environment of labgrid, which is not installed: pip install labgrid")
        from tvhil.rack.labgrid_driver import environment_slots

        return environment_slots(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no board pool file {path}") from None
    except (ValueError, RecursionError) as error:  # tomllib's own, of a number, of the encoding, of nesting
        raise InputError(f"{path}: {error}") from None
    entries = content.pop("board", None)
    if content or not isinstance(entries, list) or not entries or not all(isinstance(one, dict) for one in entries):
        raise InputError(f"{path}: expected [[board]] tables and nothing else")
    return _unique([slot for i, entry in enumerate(entries, 1) for slot in _slots(f"{path}: board {i}", entry)], path)


def _slots(place: str, entry: dict[str, Any]) -> list[Slot]:
    for key, value in entry.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_KEYS)}"
            raise InputError(f"{place}: unknown key {key!r}; {hint}")
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            raise InputError(f"{place}: {key} must be a {'text' if _KEYS[key] is str else 'number'}")
    if "board" not in entry:
        raise InputError(f"{place}: which one? board = NAME is missing")
    board, port = load_board(entry["board"]), entry.get("port")
    if port is None:
        try:
            return instances(board, entry.get("instances", 1), entry.get("name"))
        except UsageError as error:
            raise InputError(f"{place}: {error}") from None
    if "instances" in entry:
        raise InputError(f"{place}: a board on a port has no instances")
    return [Slot(entry.get("name", port), board, port)]


def _unique(slots: list[Slot], place: object) -> list[Slot]:
    for what, values in (("name", [s.name for s in slots]), ("port", [s.port for s in slots if s.port])):
        value, count = Counter(values).most_common(1)[0] if values else ("", 0)
        if count > 1:
            raise UsageError(f"{place}: the {what} {value!r} is there {count} times; it must be one board's")
    return slots
