# SPDX-License-Identifier: Apache-2.0
"""Put a model where an emulator boots it from: the file that is its flash. (`esptool_flash` writes that of a chip.)"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tvhil.boards.board import Board
from tvhil.boards.build import FirmwareImage, Progress, build, no_firmware
from tvhil.boards.flash_plan import flash_image, plan_flash
from tvhil.boards.idf_build import built_firmware
from tvhil.boards.tools import keep_newest
from tvhil.errors import InputError, UsageError
from tvhil.files import replacing
from tvhil.packing.reader import TvitModel, read_model
from tvhil.prediction.memory import check_fit

_KEPT = 16  # flash images of other models


@dataclass(frozen=True)
class BootImage:
    """What a board boots.

    Attributes:
        firmware: the program.
        flash: the flash image; the model at its start, or in its partition where the board has any.
        model: what is in it.
        fresh: it was written now, and not found from earlier.
    """

    firmware: FirmwareImage
    flash: Path
    model: TvitModel
    fresh: bool


def flash(
    board: Board,
    model: TvitModel | Path | str | bytes,
    firmware: FirmwareImage | None = None,
    progress: Progress | None = None,
) -> BootImage:
    """Build the firmware where that is due, and write the board's flash image into `build/<board>/`.

    Args:
        board: which one.
        model: a `.tvit` file.
        firmware: one built earlier.
        progress: as `build` takes it.

    Raises:
        InputError: the model is malformed, or too big for the board, with the numbers; nothing is written then.
        MissingToolError, FirmwareError: as `build`.
    """
    model = model if isinstance(model, TvitModel) else read_model(model)
    check_fit(model, board.limits, board.name)
    if board.firmware is None and board.idf is None:
        raise UsageError(no_firmware(board))
    if board.start is None:
        raise UsageError(f"{board.name} is not started from a file: write its flash with `tvhil flash`")
    firmware = firmware or build(board, progress)
    if board.idf is not None:
        content = flash_image(board, plan_flash(board, model, built_firmware(board)))
        size = len(content)
    else:
        content = model.file
        size = board.memory.flash if board.start.pad_flash and board.memory.flash else model.file_bytes
    path = board.build_dir / f"flash-{model.sha256[:32]}.img"
    fresh = not _holds(path, content, size)
    if fresh:
        _write(path, content, size)
        keep_newest(board.build_dir, "flash-*.img", _KEPT)  # one that an emulator has open stays readable for it
    else:
        path.touch()
    return BootImage(firmware, path, model, fresh)


def _holds(path: Path, content: bytes, size: int) -> bool:
    try:
        if path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            return file.read(len(content)) == content
    except OSError:
        return False


def _write(path: Path, content: bytes, size: int) -> None:
    """Write the image so that nobody sees half of it. What follows the model is a hole in the file."""
    try:
        with replacing(path) as part, part.open("wb") as file:
            file.write(content)
            file.truncate(size)
    except OSError as error:
        raise InputError(f"{path}: the flash image cannot be written: {error.strerror}") from None
