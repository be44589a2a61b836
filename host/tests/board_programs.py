# SPDX-License-Identifier: Apache-2.0
"""Bare-metal test programs on an emulated board, and a small model to flash."""

from __future__ import annotations

import functools
import shutil
import time
from pathlib import Path

import pytest

from tvhil.boards import load_board
from tvhil.boards.build import build_program
from tvhil.boards.start import start_program
from tvhil.packing import pack_vit, read_model
from tvhil.packing.random_vit import random_vit
from tvhil.runtime import device_dir

EMULATED = "qemu-xtensa"
PORT_LIBRARY = (
    "start.S",
    "arithmetic.S",
    "arithmetic.c",
    "boot_parameters.c",
    "counter.c",
    "external_registers.S",
    "faults.c",
    "memory.c",
    "uart.c",
)
_PATIENCE = 60.0


def missing_tools(board_name: str = EMULATED) -> str:
    """Why an emulated board cannot run here; empty when it can."""
    board = load_board(board_name)
    assert board.firmware is not None and board.start is not None
    programs = {board.firmware.compiler: board.firmware.package, board.start.command[0]: board.start.package}
    missing = {name: package for name, package in programs.items() if not shutil.which(name)}
    return "" if not missing else f"{', '.join(missing)} not installed: apt-get install {' '.join(missing.values())}"


@pytest.fixture(scope="session")
def emulated():
    """The emulated board, or a skip that tells what to install."""
    reason = missing_tools()
    if reason:
        pytest.skip(reason)
    return load_board(EMULATED)


@functools.cache
def small_model():
    """A model that runs in milliseconds on an emulator."""
    return read_model(pack_vit(random_vit(11, embed_dim=48, heads=3, depth=2, mlp_dim=100)))


class Program:
    """A bare-metal program that prints lines: it runs while the context is open."""

    def __init__(self, board, name: str, flash: Path, sources=(), flags=()) -> None:
        port = device_dir() / "ports" / "xtensa_qemu"
        files = [*(port / one for one in PORT_LIBRARY), port / "tests" / f"{name}.c", *sources]
        self._running = start_program(board, build_program(board, name, files, extra_flags=flags).path, flash)
        self._rest = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._running.close()

    def send(self, data: bytes) -> None:
        self._running.transport.write(data)

    def lines(self, until: str):
        """The lines up to the one that says `until`."""
        found = []
        deadline = time.monotonic() + _PATIENCE
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                if line.decode() == until:
                    return found
                found.append(line.decode())
            assert time.monotonic() < deadline, found[-5:]
            self._rest += self._running.transport.read(1.0)
