# SPDX-License-Identifier: Apache-2.0
"""Errors a user can cause and mend: one clear line each, and a documented exit code of the command.

The command line prints `str(error)` on stderr and exits with `error.exit_code`. Anything else that escapes is
a defect of tvhil and keeps its traceback.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Exit codes of every `tvhil` command."""

    OK = 0
    USAGE = 2  # the command line asks for something that does not exist or does not fit together
    BAD_INPUT = 3  # a file (model, checkpoint, dataset, board file) is missing, malformed or hostile
    MISSING_TOOL = 4  # a compiler, emulator or Python package is not installed
    BOARD = 5  # the board cannot be reached, stopped answering or reported a fault
    MISMATCH = 6  # the board computed something else than the host predicted
    NO_BOARD = 10  # no port that could be the board's
    SEVERAL_BOARDS = 11  # more than one
    WRONG_CHIP = 12  # a board of another kind is on the port
    FLASH_TOO_SMALL = 13  # the board's flash is smaller than what has to go into it
    NO_ANSWER = 14  # the port is there, nobody answers
    PORT_IN_USE = 15  # another program has it
    NO_PERMISSION = 16  # this user may not open it
    BOARD_LOST = 17  # the board was reset or unplugged, or stopped answering, in the middle
    BAD_FLASH = 18  # the flash does not hold what was written
    OLD_FIRMWARE = 19  # firmware of another version of tvhil
    INTERRUPTED = 130  # Ctrl-C


class TvhilError(Exception):
    """A failure told in one line: what is wrong and what to do about it."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_INPUT

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class UsageError(TvhilError):
    """An unknown name or options that do not fit together."""

    exit_code = ExitCode.USAGE


class InputError(TvhilError):
    """A file that is missing, malformed or not what was announced."""

    exit_code = ExitCode.BAD_INPUT


class CheckpointError(InputError):
    """A checkpoint that cannot be read or does not fit the model."""


class DatasetError(InputError):
    """A dataset, archive or image that cannot be read."""


class MissingToolError(TvhilError):
    """A program or package that has to be installed first; the message names it."""

    exit_code = ExitCode.MISSING_TOOL


class BoardError(TvhilError):
    """A board that cannot be reached, stopped answering or reported a fault."""

    exit_code = ExitCode.BOARD


class MismatchError(TvhilError):
    """A board that computed something else than predicted."""

    exit_code = ExitCode.MISMATCH


class NoBoardError(BoardError):
    """No port that could be the board's, or none of that name."""

    exit_code = ExitCode.NO_BOARD


class SeveralBoardsError(BoardError):
    """More than one port that could be the board's."""

    exit_code = ExitCode.SEVERAL_BOARDS


class WrongChipError(BoardError):
    """A board of another kind is on the port."""

    exit_code = ExitCode.WRONG_CHIP


class FlashTooSmallError(BoardError):
    """The board's flash is smaller than what has to go into it."""

    exit_code = ExitCode.FLASH_TOO_SMALL


class NoAnswerError(BoardError):
    """The port is there, nobody answers."""

    exit_code = ExitCode.NO_ANSWER


class PortInUseError(BoardError):
    """Another program has the port open."""

    exit_code = ExitCode.PORT_IN_USE


class NoPermissionError(BoardError):
    """This user may not open the port."""

    exit_code = ExitCode.NO_PERMISSION


class BoardLostError(BoardError):
    """The board was reset or unplugged, or stopped answering, in the middle."""

    exit_code = ExitCode.BOARD_LOST


class BadFlashError(BoardError):
    """The flash does not hold what was written into it."""

    exit_code = ExitCode.BAD_FLASH
