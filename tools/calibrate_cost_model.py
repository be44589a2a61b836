#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fit a board's cost model: run small random models on it, read each operator's counter, solve for the coefficients.

    tools/calibrate_cost_model.py --board qemu-xtensa        # print the fit, write [cost] into boards/qemu-xtensa.toml
    tools/calibrate_cost_model.py --board native --dry-run   # print only

The models vary in everything that the amounts of work depend on (width, tokens, heads, patch, codec, scale mode), and
none of them is a model that people run, so `tvhil predict` is tested on models that are not in the fit.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from tvhil.boards import load_board
from tvhil.errors import TvhilError
from tvhil.evaluation.session import open_device
from tvhil.packing import TvitModel, pack_vit, read_model
from tvhil.packing.format import ScaleMode
from tvhil.packing.random_vit import random_vit
from tvhil.packing.trits import Codec
from tvhil.prediction.latency import KERNELS, RUN, CostModel, kind_of, operator_features, run_features

IMAGES = 3

# image_size, channels, patch_size, embed_dim, depth, heads, mlp_dim, classes, prefix_tokens, mean_pool
_SHAPES: tuple[tuple[int, int, int, int, int, int, int, int, int, bool], ...] = (
    (16, 1, 4, 32, 1, 2, 64, 10, 1, False),
    (32, 3, 4, 48, 2, 3, 100, 37, 2, False),
    (24, 3, 8, 96, 1, 4, 200, 100, 1, False),
    (48, 3, 16, 128, 1, 2, 512, 1000, 1, False),
    (32, 1, 2, 40, 1, 5, 90, 3, 0, True),
    (28, 1, 7, 72, 2, 1, 144, 21, 1, True),
    (64, 3, 8, 64, 1, 1, 256, 11, 2, False),
    (96, 3, 16, 160, 1, 5, 640, 250, 1, False),
    (40, 3, 20, 24, 3, 3, 33, 5, 1, False),
    (80, 3, 8, 56, 1, 7, 120, 17, 0, True),
)


@dataclass(frozen=True)
class Measurement:
    """One operator (or the rest of a run) on the board: its kind, its amounts of work, and what it cost."""

    kind: str
    features: Mapping[str, float]
    cost: float


def calibration_models(seed: int) -> Iterable[TvitModel]:
    """Every shape with both scale modes, and the codecs in turn."""
    for i, (size, channels, patch, width, depth, heads, mlp, classes, prefix, pool) in enumerate(_SHAPES):
        for mode in ScaleMode:
            vit = random_vit(
                seed + i, image_size=(size, size), channels=channels, patch_size=patch, embed_dim=width, depth=depth,
                heads=heads, mlp_dim=mlp, classes=classes, prefix_tokens=prefix, mean_pool=pool, scale_mode=mode,
                name=f"calibration_{i}_{mode.name.lower()}",
            )  # fmt: skip
            yield read_model(pack_vit(vit, codec=Codec((2 * i + mode) % 3)))


def measure(board_name: str, models: Iterable[TvitModel], kernels: str, seed: int) -> tuple[str, list[Measurement]]:
    """Unit of the board's counter, and the mean of every operator over a few random images."""
    board = load_board(board_name)
    rng = np.random.default_rng(seed)
    found: list[Measurement] = []
    unit = ""
    for model in models:
        images = rng.integers(0, 256, (IMAGES, *model.info.input_shape), np.uint8)
        with open_device(board, model) as device:
            unit = device.facts().unit or ""
            runs = [device.run(image) for image in images]
        layers = np.mean([run.layers for run in runs], axis=0)
        total = float(np.mean([run.latency for run in runs]))
        for op, cost in zip(model.operators, layers, strict=True):
            found.append(Measurement(kind_of(op), operator_features(model, op, kernels), float(cost)))
        found.append(Measurement(RUN, run_features(model), total - float(layers.sum())))
        print(f"{model.name}: {total:,.0f} {unit}", file=sys.stderr)
    return unit, found


def fit(measurements: Iterable[Measurement]) -> dict[str, dict[str, float]]:
    """Non-negative least squares of the relative errors, for each kind."""
    by_kind: dict[str, list[Measurement]] = defaultdict(list)
    for measurement in measurements:
        if measurement.cost > 0:
            by_kind[measurement.kind].append(measurement)
    coefficients = {}
    for kind, rows in by_kind.items():
        names = sorted({name for row in rows for name in row.features})
        matrix = np.array([[row.features.get(name, 0) / row.cost for name in names] for row in rows])
        scale = np.maximum(matrix.max(axis=0), 1e-30)
        solution, _ = nnls(matrix / scale, np.ones(len(rows)), maxiter=100 * len(names))
        coefficients[kind] = {name: float(f"{c:.6g}") for name, c in zip(names, solution / scale, strict=True)}
    return coefficients


def errors(measurements: Iterable[Measurement], cost: CostModel) -> dict[str, tuple[float, float, float]]:
    """For each kind: relative error of the sum, root mean square and largest of the single ones."""
    by_kind: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for m in measurements:
        if m.cost > 0:
            by_kind[m.kind].append((cost.cost(m.kind, dict(m.features)), m.cost))
    out = {}
    for kind, pairs in by_kind.items():
        predicted, measured = np.array(pairs).T
        relative = predicted / measured - 1
        out[kind] = (
            float(predicted.sum() / measured.sum() - 1),
            float(np.sqrt((relative**2).mean())),
            float(np.abs(relative).max()),
        )
    return out


def cost_table(cost: CostModel, note: str) -> str:
    """The `[cost]` table as text."""
    lines = [f"# {note}", "[cost]", f'unit = "{cost.unit}"', f'kernels = "{cost.kernels}"']
    for kind, coefficients in cost.coefficients.items():
        lines += ["", f"[cost.{kind}]", *(f"{name} = {value:.6g}" for name, value in coefficients.items())]
    return "\n".join(lines) + "\n"


def replace_cost_table(text: str, table: str) -> str:
    """A board file with its `[cost]` tables (and the comment above) taken out, and the new ones at its end."""
    segments: list[list[str]] = [[]]
    for line in text.splitlines(keepends=True):
        if line.startswith("["):
            comment: list[str] = []
            while segments[-1] and segments[-1][-1].startswith("#"):
                comment.insert(0, segments[-1].pop())
            segments.append(comment)
        segments[-1].append(line)
    kept = [segment for segment in segments if not any(re.match(r"\[cost[].]", line) for line in segment)]
    return "".join(line for segment in kept for line in segment).rstrip("\n") + "\n\n" + table


def main() -> int:
    """Measure, fit, report, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", required=True, help="name of a board file in boards/")
    parser.add_argument("--kernels", default="portable", choices=list(KERNELS), help="kernels that its firmware uses")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="do not write the board file")
    options = parser.parse_args()
    try:
        unit, measurements = measure(options.board, calibration_models(options.seed), options.kernels, options.seed)
    except TvhilError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    cost = CostModel(unit, options.kernels, fit(measurements))
    print(f"{'kind':14}{'sum':>9}{'rms':>9}{'worst':>9}")
    for kind, figures in errors(measurements, cost).items():
        print(f"{kind:14}" + "".join(f"{value:>+9.2%}" for value in figures))
    board: Any = load_board(options.board)
    given = f"--board {options.board} --kernels {options.kernels} --seed {options.seed}"
    note = f"Fitted: tools/calibrate_cost_model.py {given}"
    table = cost_table(cost, note)
    if options.dry_run:
        print(table, end="")
    else:
        path = Path(board.path)
        path.write_text(replace_cost_table(path.read_text(), table))
        print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
