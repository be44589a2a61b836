# SPDX-License-Identifier: Apache-2.0
"""Boards: their files, building and flashing their firmware, starting them.

>>> board = load_board("qemu-xtensa")
>>> with start(board, flash(board, "m.tvit")) as running:
...     print(running.connect().info())
"""

from tvhil.boards.board import Board, BoardFileError, Counter, Firmware, Memory, Start, list_boards, load_board
from tvhil.boards.build import FirmwareImage, build
from tvhil.boards.doctor import Fact, board_facts
from tvhil.boards.flash import BootImage, flash
from tvhil.boards.start import RunningBoard, start

__all__ = [
    "Board",
    "BoardFileError",
    "BootImage",
    "Counter",
    "Fact",
    "Firmware",
    "FirmwareImage",
    "Memory",
    "RunningBoard",
    "Start",
    "board_facts",
    "build",
    "flash",
    "list_boards",
    "load_board",
    "start",
]
