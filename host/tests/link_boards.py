# SPDX-License-Identifier: Apache-2.0
"""Boards for the tests of the link: the C server in this process behind a simulated line, and the native process."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from collections import deque
from pathlib import Path

from tvhil.link.faults import Corrupter
from tvhil.link.transports import Transport
from tvhil.packing.random_vit import random_vit
from tvhil.packing.writer import pack_vit
from tvhil.runtime import device_dir, find_compiler, plan_memory

SANITIZE = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
_LIBRARY = ("runtime/*.c", "kernels/portable/*.c", "kernels/pie/buffer_sizes.c", "app/*.c")


def build(name: str, patterns: tuple[str, ...], flags: tuple[str, ...] = ("-O2",)) -> Path:
    """Compile C sources of device/ into build/tests/, once for each state of the sources."""
    device = device_dir()
    sources = sorted(path for pattern in patterns for path in device.glob(pattern))
    watched = sources + sorted(
        path
        for folder in ("include", *_LIBRARY, "tests", "ports/native")
        for path in (device / folder.split("*")[0]).rglob("*.h")
    )
    command = [find_compiler(), "-std=c11", "-Wall", "-Wextra", "-Werror", *flags]
    command += [f"-I{device / 'include'}", f"-I{device}", *map(str, sources), "-lpthread"]
    digest = hashlib.sha256(" ".join(command).encode() + b"".join(path.read_bytes() for path in watched))
    folder = device.parent / "build" / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{name}-{digest.hexdigest()[:16]}"
    if not output.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / name
            done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            made.replace(output)
    return output


@functools.cache
def native_board(sanitized: bool = False) -> Path:
    """The native port as a program."""
    flags = SANITIZE if sanitized else ("-O2",)
    return build("tvit-native", (*_LIBRARY, "ports/native/*.c"), flags)


@functools.cache
def server_library() -> ctypes.CDLL:
    """The link server and device/tests/link_board.c as a shared library."""
    library = ctypes.CDLL(str(build("link-board", (*_LIBRARY, "tests/link_board.c"), ("-O2", "-fPIC", "-shared"))))
    library.link_board_new.restype = ctypes.c_void_p
    library.link_board_new.argtypes = [ctypes.c_char_p, *[ctypes.c_uint32] * 4]
    library.link_board_free.argtypes = [ctypes.c_void_p]
    library.link_board_feed.restype = ctypes.c_size_t
    library.link_board_feed.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    library.link_board_drain.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.link_decoder_size.restype = ctypes.c_size_t
    for name in ("link_board_resets", "link_board_operators"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    return library


class ServerBoard:
    """The C server with a model in its flash."""

    def __init__(self, model: bytes = b"", arena: int = 1 << 20, model_ram: int = 1 << 20, window: int = 8192) -> None:
        self._library = server_library()
        self._board = self._library.link_board_new(model, len(model), arena, model_ram, window)
        self.boot = self.feed(b"")

    def __del__(self) -> None:
        self._library.link_board_free(self._board)

    def feed(self, data: bytes) -> bytes:
        """What the board sends when it gets these bytes."""
        waiting = self._library.link_board_feed(self._board, data, len(data))
        buffer = ctypes.create_string_buffer(waiting + 1)
        self._library.link_board_drain(self._board, buffer)
        return buffer.raw[:waiting]

    @property
    def resets(self) -> int:
        """Times that RESET was carried out."""
        return self._library.link_board_resets(self._board)

    @property
    def operators(self) -> int:
        """Operators executed since the start."""
        return self._library.link_board_operators(self._board)


class SimulatedLine(Transport):
    """A full-duplex serial line of a given speed on a clock that only its bytes and waiting move.

    Attributes:
        outward_bytes, inward_bytes: what the line carried.
        seconds_per_byte: 0, a line of unknown speed, unless a test says it.
    """

    def __init__(
        self,
        board: ServerBoard,
        baud: int = 1_000_000,
        outward: Corrupter | None = None,
        inward: Corrupter | None = None,
    ) -> None:
        self.name = "simulated line"
        self.board = board
        self.outward = outward or Corrupter(0, 0)
        self.inward = inward or Corrupter(0, 0)
        self._byte = 10 / baud
        self._now = 0.0
        self._out: deque[tuple[float, bytes]] = deque()
        self._in: deque[tuple[float, bytes]] = deque()
        self._out_free = self._in_free = 0.0
        self.outward_bytes = self.inward_bytes = 0

    def _send(self, queue: deque[tuple[float, bytes]], data: bytes, start: float) -> float:
        """Queue the bytes with the times at which they have arrived, a frame at a time."""
        for part in _frames(data):
            if part:
                start += len(part) * self._byte
                queue.append((start, part))
        return start

    def write(self, data: bytes) -> None:
        data = self.outward.apply(data)
        self.outward_bytes += len(data)
        self._out_free = self._send(self._out, data, max(self._now, self._out_free))

    def read(self, timeout: float) -> bytes:
        deadline = self._now + max(timeout, 0.0)
        if held := self.outward.release():
            self._out_free = self._send(self._out, held, max(self._now, self._out_free))
        if held := self.inward.release():
            self._in_free = self._send(self._in, held, max(self._now, self._in_free))
        while True:
            out = self._out[0][0] if self._out else float("inf")
            into = self._in[0][0] if self._in else float("inf")
            if min(out, into) > deadline:
                self._now = deadline
                return b""
            if into <= out:
                self._now, data = self._in.popleft()
                return data
            self._now, data = self._out.popleft()
            answer = self.inward.apply(self.board.feed(data))
            self.inward_bytes += len(answer)
            self._in_free = self._send(self._in, answer, max(self._now, self._in_free))

    def close(self) -> None:
        pass

    def clock(self) -> float:
        return self._now


def _frames(data: bytes) -> list[bytes]:
    *ended, rest = data.split(b"\0")
    return [part + b"\0" for part in ended] + [rest]


@functools.cache
def tiny_model(seed: int = 3, **options: int) -> bytes:
    """A drawn model with the memory plan that the device makes."""
    return pack_vit(random_vit(seed, **options), planner=plan_memory)


def environment() -> dict[str, str]:
    """For sanitized programs: their findings end them, and stay apart from what they report over the link."""
    return {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1"}
