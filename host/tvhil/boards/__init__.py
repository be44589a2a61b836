# SPDX-License-Identifier: Apache-2.0
"""Boards: their files, building and flashing their firmware, starting them.

>>> board = load_board("qemu-xtensa")
>>> with start(board, flash(board, "m.tvit")) as running:
...     print(running.connect().info())
"""

from tvhil.boards.board import Board, BoardFileError, Counter, Firmware, Memory, Start, list_boards, load_board
from tvhil.boards.build import FirmwareImage, build
from tvhil.boards.doctor import Fact, board_facts
from tvhil.boards.esptool_flash import FlashResult, flash_board
from tvhil.boards.flash import BootImage, flash
from tvhil.boards.flash_plan import FlashPart, plan_flash
from tvhil.boards.idf_build import IdfBuildError, IdfFirmware, build_idf, built_firmware
from tvhil.boards.ports import Port, find_port, list_ports
from tvhil.boards.start import RunningBoard, start

__all__ = [
    "Board",
    "BoardFileError",
    "BootImage",
    "Counter",
    "Fact",
    "Firmware",
    "FirmwareImage",
    "FlashPart",
    "FlashResult",
    "IdfBuildError",
    "IdfFirmware",
    "Memory",
    "Port",
    "RunningBoard",
    "Start",
    "board_facts",
    "build",
    "build_idf",
    "built_firmware",
    "find_port",
    "flash",
    "flash_board",
    "list_boards",
    "list_ports",
    "load_board",
    "plan_flash",
    "start",
]
