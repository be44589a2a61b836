# SPDX-License-Identifier: Apache-2.0
"""The training log: `log.csv`, one row every so many steps and one for each evaluation; TensorBoard on request."""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvhil.errors import MissingToolError


@dataclass(frozen=True)
class Row:
    """One line of the log.

    Attributes:
        phase: its name.
        step: optimizer steps of the phase that are done.
        epoch: the same in passes over the training images.
        loss: mean since the row before; None in rows of evaluations.
        train_top1: share of augmented training images classified as their (first) label says.
        learning_rate: share of its largest value.
        test_top1: of the weights as they are.
        ema_top1: of their moving average.
        images_per_second: since the row before.
        seconds: since the run began, interruptions left out.
    """

    phase: str
    step: int
    epoch: float
    loss: float | None = None
    train_top1: float | None = None
    learning_rate: float | None = None
    test_top1: float | None = None
    ema_top1: float | None = None
    images_per_second: float | None = None
    seconds: float | None = None


_COLUMNS = [f.name for f in dataclasses.fields(Row)]


class Log:
    """Appends rows; a resumed run drops those after its checkpoint.

    Args:
        folder: where `log.csv` lies.
        keep: rows of phases before, and up to this step of the phase, are kept: names of finished phases, the phase
            that goes on, its step. None begins anew.
        tensorboard: write event files too.

    Raises:
        MissingToolError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, keep: tuple[list[str], str, int] | None, *, tensorboard: bool = False) -> None:
        self.path = folder / "log.csv"
        rows = [] if keep is None else [row for row in read_log(self.path) if _kept(row, *keep)]
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise MissingToolError("--tensorboard needs tensorboard: pip install tensorboard") from None
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, row: Row) -> None:
        """Append a row; it is on disk when this returns."""
        values = {name: _short(value) for name, value in dataclasses.asdict(row).items()}
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, _COLUMNS).writerow(values)
        if self._board is not None:
            for name in ("loss", "train_top1", "learning_rate", "test_top1", "ema_top1"):
                if getattr(row, name) is not None:
                    self._board.add_scalar(f"{row.phase}/{name}", getattr(row, name), row.step)


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a log; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", errors="replace") as file:
        return [row for row in csv.DictReader(file) if None not in row and None not in row.values()]


def _kept(row: dict[str, str], finished: list[str], phase: str, step: int) -> bool:
    if row.get("phase") in finished:
        return True
    return row.get("phase") == phase and row.get("step", "").isdigit() and int(row["step"]) <= step


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
