# SPDX-License-Identifier: Apache-2.0
"""The curves of a training run, from the CSV log beside its checkpoint or from a packed model."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvhil.errors import InputError

STEPS = ("step", "epoch")  # columns to count by; the first that a log has is taken
PHASE = "phase"  # column with the name of a phase; counting begins anew in each
_MOST_ROWS = 1_000_000
_MOST_POINTS = 500  # of a curve
_LARGEST = 1e100  # of a value in metadata; JSON knows integers that no float can hold


@dataclass(frozen=True)
class TrainingLog:
    """Curves of one run.

    Attributes:
        file: the log, or the model that brings it along.
        unit: 'step' or 'epoch'.
        steps: place of every row, over all phases.
        curves: values by column; NaN where a row has none.
    """

    file: Path
    unit: str
    steps: tuple[float, ...]
    curves: dict[str, tuple[float, ...]]

    def points(self, column: str) -> list[tuple[float, float]]:
        """(step, value) of the rows that have one, at most a few hundred."""
        pairs = [(x, y) for x, y in zip(self.steps, self.curves.get(column, ()), strict=False) if math.isfinite(y)]
        stride = max(1, math.ceil(len(pairs) / _MOST_POINTS))
        return pairs[::stride] + (pairs[-1:] if len(pairs) % stride != 1 and stride > 1 else [])


def find_logs(checkpoint: Path) -> list[Path]:
    """CSV logs beside a checkpoint: the one of its own name, otherwise every CSV file with the columns of a log."""
    own = checkpoint.with_suffix(".csv")
    if own.is_file():
        return [own]
    try:
        return [file for file in sorted(checkpoint.parent.glob("*.csv")) if _is_log(file)]
    except OSError:
        return []


def read_log(file: Path) -> TrainingLog:
    """Read a log: a header with `step` or `epoch`, then a row for each; other columns of numbers are curves.

    A last line that is torn, as an interrupted run leaves it, is left out.

    Raises:
        InputError: unreadable, or without such a column.
    """
    try:
        with file.open(newline="", encoding="utf-8", errors="replace") as stream:
            reader = csv.reader(stream)
            header = [name.strip() for name in next(reader, [])]
            rows = [row for row, _ in zip(reader, range(_MOST_ROWS), strict=False)]
    except (OSError, csv.Error) as error:
        raise InputError(f"cannot read the training log {file}: {error}") from None
    unit = next((name for name in STEPS if name in header), None)
    if unit is None:
        raise InputError(f"the training log {file} has no column {' or '.join(STEPS)}; it has {', '.join(header[:8])}")
    steps, columns = list[float](), {name: list[float]() for name in header if name and name != unit}
    phase, before = None, 0.0
    for row in rows:
        values = dict(zip(header, row, strict=False))
        step = _number(values.get(unit, ""))
        if len(row) < len(header) or not math.isfinite(step):
            continue
        if values.get(PHASE) != phase:
            phase, before = values.get(PHASE), max(steps, default=0.0)
        steps.append(before + step)
        for name, column in columns.items():
            column.append(_number(values.get(name, "")))
    curves = {name: tuple(column) for name, column in columns.items() if any(map(math.isfinite, column))}
    return TrainingLog(file, unit, tuple(steps), curves)


def model_log(file: Path, meta: Mapping[str, Any]) -> TrainingLog | None:
    """The log that a packed model brings along: `recipe.log` of its metadata; None where it has none.

    That is {"columns": names, PHASE: rows, ...}: lists of numbers, one after the other; counting begins anew in each
    phase. Metadata are free, so what does not look like this is no log.
    """
    recipe = meta.get("recipe")
    log = recipe.get("log") if isinstance(recipe, Mapping) else None
    columns = log.get("columns") if isinstance(log, Mapping) else None
    if not isinstance(log, Mapping) or not isinstance(columns, list):
        return None
    if not all(isinstance(name, str) for name in columns) or len(set(columns)) < len(columns):
        return None
    unit = next((name for name in STEPS if name in columns), None)
    if unit is None:
        return None
    at = columns.index(unit)
    steps, curves = list[float](), {name: list[float]() for name in columns if name != unit}
    for phase in (rows for name, rows in log.items() if name != "columns"):
        before = max(steps, default=0.0)
        for row in phase if isinstance(phase, list) else []:
            numbers = row if isinstance(row, list) and len(row) == len(columns) else []
            if not numbers or not all(isinstance(value, int | float) for value in numbers):
                return None
            if not abs(numbers[at]) < _LARGEST or any(abs(value) > _LARGEST for value in numbers):
                return None
            steps.append(before + numbers[at])
            for name, value in zip(columns, numbers, strict=True):
                if name != unit:
                    curves[name].append(float(value))
    return TrainingLog(file, unit, tuple(steps), {name: tuple(c) for name, c in curves.items()}) if steps else None


def _is_log(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            header = {name.strip() for name in stream.readline(4096).split(",")}
    except OSError:
        return False
    return "loss" in header and not header.isdisjoint(STEPS)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
