#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fit a board's cost model: run small random models on it, read each operator's counter, solve for the coefficients.

    tools/calibrate_cost_model.py --board qemu-xtensa        # print the fit, write [cost] into boards/qemu-xtensa.toml
    tools/calibrate_cost_model.py --board native --dry-run   # print only
    tools/calibrate_cost_model.py --board lx7sim --kernels pie   # the ESP32-S3: writes [cost] into boards/esp32s3.toml

The models vary in everything that the amounts of work depend on (width, tokens, heads, patch, codec, scale mode), and
none of them is a model that people run, so `tvhil predict` is tested on models that are not in the fit.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from tvhil.boards import Board, load_board
from tvhil.errors import TvhilError, UsageError
from tvhil.evaluation.session import open_device
from tvhil.packing import TvitModel, pack_vit, read_model
from tvhil.packing.format import LANE_LIMIT, ScaleMode
from tvhil.packing.integer_vit import IntegerBlock, IntegerLinear, IntegerViT
from tvhil.packing.random_vit import random_vit
from tvhil.packing.schedule import Schedule
from tvhil.packing.trits import Codec
from tvhil.prediction.flash_reads import CacheShape
from tvhil.prediction.latency import CORES, FLASH, RUN, CostModel, run_features
from tvhil.prediction.pie_work import SMALLEST_EXP_MULTIPLIER, Features, total
from tvhil.prediction.work import KERNELS, OperatorWork, model_work

IMAGES = 2
SHARED = ("forks", "barriers", "waits")

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


_ALL = (Codec.GAPS, Codec.BASE3, Codec.TWO_BIT)
_GAPS, _BASE3, _TWO_BIT = (Codec.GAPS,), (Codec.BASE3,), (Codec.TWO_BIT,)
_WHOLE, _HEADS = Schedule(), Schedule(heads_split=True)
_PIECES = Schedule(heads_split=True, mlp_passes=2, fc1_chunks=2, fc1_groups=2)

# The same with (height, width), then the codecs and how the encoder is cut.
_PIE_SHAPES: tuple[
    tuple[tuple[int, int], int, int, int, int, int, int, int, int, bool, tuple[Codec, ...], Schedule], ...
] = (
    ((16, 16), 1, 4, 32, 1, 2, 64, 10, 1, False, _ALL, _WHOLE),
    ((32, 32), 3, 4, 64, 1, 4, 256, 100, 1, False, _ALL, _WHOLE),  # 65 tokens, heads of 16
    ((224, 224), 3, 16, 96, 1, 2, 384, 200, 1, False, _ALL, _WHOLE),  # 197 tokens, heads of 48
    ((112, 112), 3, 16, 256, 1, 4, 640, 1000, 1, False, _ALL, _HEADS),  # 50 tokens, heads of 64
    ((176, 176), 3, 16, 128, 1, 2, 512, 40, 2, False, _GAPS, _PIECES),  # 123 tokens, heads of 64
    ((28, 28), 1, 7, 56, 1, 2, 144, 21, 1, True, _BASE3, _WHOLE),  # no pixel, position or key by vectors
    ((48, 40), 3, 8, 60, 1, 3, 100, 7, 1, False, _GAPS, _WHOLE),  # heads of 20
    ((64, 64), 3, 8, 32, 1, 1, 1900, 5, 0, True, _BASE3 + _TWO_BIT, _WHOLE),  # rows that do not become instructions
    ((16, 16), 3, 8, 16, 1, 1, 7000, 5, 1, False, _BASE3 + _TWO_BIT, _WHOLE),
    ((48, 48), 3, 8, 32, 1, 1, 3600, 5, 1, False, _GAPS, _WHOLE),
    ((64, 64), 3, 8, 96, 1, 3, 2000, 5, 0, True, _BASE3 + _TWO_BIT, _WHOLE),
    ((32, 32), 3, 8, 64, 2, 2, 1700, 5, 1, False, _BASE3 + _TWO_BIT, _WHOLE),
    ((96, 96), 3, 16, 64, 1, 1, 3200, 5, 1, False, _GAPS, _WHOLE),
    ((48, 48), 3, 16, 576, 1, 6, 600, 50, 1, False, _ALL, _WHOLE),  # 10 tokens, heads of 96
    ((144, 144), 3, 8, 48, 1, 1, 96, 30, 0, True, _GAPS, _WHOLE),  # 324 tokens
    ((16, 16), 3, 8, 1664, 1, 26, 32, 5, 1, False, _BASE3, _WHOLE),
    ((24, 24), 1, 8, 32, 1, 2, 16, 3, 0, True, _GAPS, _WHOLE),  # 9 tokens
    # Attention: blocks of many and of few queries, all kinds of heads.
    ((96, 96), 1, 8, 64, 1, 1, 16, 3, 0, True, _GAPS, _WHOLE),  # 144 tokens
    ((104, 104), 1, 8, 64, 1, 4, 16, 3, 0, True, _GAPS, _WHOLE),  # 169
    ((64, 64), 1, 8, 64, 1, 1, 16, 3, 1, False, _GAPS, _WHOLE),  # 65
    ((40, 40), 1, 8, 96, 1, 2, 16, 3, 0, True, _GAPS, _WHOLE),  # 25
    ((56, 56), 1, 8, 80, 1, 1, 16, 3, 1, False, _GAPS, _WHOLE),  # 50
    ((16, 16), 1, 8, 128, 1, 2, 16, 3, 1, False, _GAPS, _WHOLE),  # 5
    ((16, 16), 1, 8, 40, 1, 2, 16, 3, 2, False, _GAPS, _WHOLE),  # 6
    ((120, 120), 1, 8, 64, 1, 2, 16, 3, 1, False, _GAPS, _HEADS),  # 226
    ((88, 88), 1, 8, 40, 1, 2, 16, 3, 0, True, _GAPS, _WHOLE),  # 121
    ((24, 24), 1, 8, 64, 2, 1, 16, 3, 1, False, _GAPS, _WHOLE),  # 10
    ((88, 88), 1, 8, 128, 1, 2, 16, 3, 1, False, _GAPS, _HEADS),  # 122
    ((224, 224), 3, 16, 192, 1, 3, 768, 100, 1, False, _GAPS, _PIECES),
)


@dataclass(frozen=True)
class Measurement:
    """One operator (or the rest of a run) on the board: its work, and what it cost."""

    work: OperatorWork
    cost: float


@dataclass(frozen=True)
class Errors:
    """Relative errors of a fit: of the sum, root mean square and largest of the single ones, of how many."""

    total: float
    rms: float
    worst: float
    count: int


def portable_models(seed: int) -> Iterator[TvitModel]:
    """Every shape with both scale modes, and the codecs in turn."""
    for i, (size, channels, patch, width, depth, heads, mlp, classes, prefix, pool) in enumerate(_SHAPES):
        for mode in ScaleMode:
            vit = random_vit(
                seed + i, image_size=(size, size), channels=channels, patch_size=patch, embed_dim=width, depth=depth,
                heads=heads, mlp_dim=mlp, classes=classes, prefix_tokens=prefix, mean_pool=pool, scale_mode=mode,
                name=f"calibration_{i}_{mode.name.lower()}",
            )  # fmt: skip
            yield read_model(pack_vit(vit, codec=Codec((2 * i + mode) % 3)))


def pie_models(seed: int) -> Iterator[TvitModel]:
    """Every shape with each codec it names, whole or cut into pieces, then those of the portable kernels."""
    for i, (size, channels, patch, width, depth, heads, mlp, classes, prefix, pool, codecs, cuts) in enumerate(
        _PIE_SHAPES
    ):
        vit = random_vit(
            seed + i, image_size=size, channels=channels, patch_size=patch, embed_dim=width, depth=depth, heads=heads,
            mlp_dim=mlp, classes=classes, prefix_tokens=prefix, mean_pool=pool, name=f"calibration_{i}",
        )  # fmt: skip
        vit = _varied(vit, i, np.random.default_rng(seed + i))
        for codec in codecs:
            yield read_model(pack_vit(vit, codec, schedule=cuts))
    for i, (size, channels, patch, width, depth, heads, mlp, classes, prefix, pool) in enumerate(_SHAPES):
        vit = random_vit(
            seed + i, image_size=(size, size), channels=channels, patch_size=patch, embed_dim=width, depth=depth,
            heads=heads, mlp_dim=mlp, classes=classes, prefix_tokens=prefix, mean_pool=pool,
            scale_mode=ScaleMode.PER_TOKEN, name=f"calibration_{i}_per_token",
        )  # fmt: skip
        yield read_model(pack_vit(vit, codec=Codec(i % 3)))


def _varied(vit: IntegerViT, i: int, rng: np.random.Generator) -> IntegerViT:
    """Other shares of trits that are not 0 and other limits and factors than those that are drawn."""
    share = (1.0, 0.8, 0.65)[i % 3]

    def thinned(m: IntegerLinear) -> IntegerLinear:
        trits = m.trits * (rng.random(m.trits.shape) < share)
        most = LANE_LIMIT - 1 - m.gain * 128 * np.count_nonzero(trits, axis=1)
        return replace(m, trits=trits, bias=np.clip(m.bias, -most, most))

    def block(b: IntegerBlock) -> IntegerBlock:
        clamped = replace(b.attention, exp_multiplier=SMALLEST_EXP_MULTIPLIER // 2) if i % 4 == 3 else b.attention
        matrices = {name: thinned(getattr(b, name)) for name in ("q", "k", "v", "proj", "fc1", "fc2")}
        # Queries so short that scores always fit the lanes: else single blocks go a slow way, as the image has it.
        return replace(b, **matrices, attention=clamped, q_limit=min(b.q_limit, 4096 * vit.heads // vit.embed_dim))

    norm = replace(vit.norm, shift=6, c=vit.norm.c >> 9) if i % 5 == 4 else vit.norm
    return replace(vit, blocks=tuple(map(block, vit.blocks)), patch_embed=thinned(vit.patch_embed), norm=norm)


def measure(
    board: Board, models: Iterable[TvitModel], kernels: str, seed: int, cache: CacheShape | None = None
) -> tuple[str, list[list[Measurement]]]:
    """Unit of the board's counter, and of each model every operator and the rest: a mean over a few random images.

    The first image is not counted: it finds other things in the caches than the next ones.
    """
    cores = board.start.cores if board.start is not None else 1
    found, unit = list[list[Measurement]](), ""
    for model in models:
        images = np.random.default_rng(seed).integers(0, 256, (1 + IMAGES, *model.info.input_shape), np.uint8)
        with open_device(board, model) as device:
            unit = device.facts().unit or ""
            runs = [device.run(image) for image in images][1:]
        layers = np.mean([run.layers for run in runs], axis=0)
        total = float(np.mean([run.latency for run in runs]))
        work = model_work(model, kernels, cores, cache)
        rows = [Measurement(one, float(cost)) for one, cost in zip(work, layers, strict=True)]
        rest = OperatorWork(model.name, RUN, ((run_features(model),),))
        found.append([*rows, Measurement(rest, total - float(layers.sum()))])
        print(f"{model.name}, {cores} core{'s' * (cores > 1)}: {total:,.0f} {unit}", file=sys.stderr)
    return unit, found


def fit(measurements: Iterable[Measurement], line_cost: bool = False) -> dict[str, dict[str, float]]:
    """Non-negative least squares of what operators on one core cost, for each kind.

    Relative errors count where amounts explain costs to the cycle. Where they do not, since small operators hit or miss
    lines of flash, an error counts as its square over the cost: between relative ones, by which the fit of the large
    operators, which decide, would be left to chance, and absolute ones, by which that of the small ones would be.

    Args:
        measurements: of one core.
        line_cost: of kernels that read lines of flash; fit what one costs, too, to the linear operators, which read
            most of them.
    """
    power = 0.5 if line_cost else 1.0
    by_kind: dict[str, list[tuple[Features, float, int]]] = defaultdict(list)
    for measurement in measurements:
        if measurement.cost > 0:
            work = measurement.work
            lines = sum(sum(phase) for phase in work.lines)
            by_kind[work.table].append((total(phase[0] for phase in work.phases), measurement.cost, lines))
    coefficients: dict[str, dict[str, float]] = {}
    a_line = 0.0
    if line_cost:
        rows = [({**features, "lines": lines}, cost) for features, cost, lines in by_kind["linear"]]
        a_line = _solve(rows, power)["lines"]
        coefficients[FLASH] = {"lines": a_line}
    for kind, found in by_kind.items():
        coefficients[kind] = _solve([(features, cost - lines * a_line) for features, cost, lines in found], power)
    return coefficients


def _solve(rows: Sequence[tuple[Features, float]], power: float) -> dict[str, float]:
    """Coefficients; errors are divided by the cost to that power."""
    names = sorted({name for features, _ in rows for name in features})
    costs = np.array([cost for _, cost in rows])
    weights = costs**-power
    matrix = np.array([[features.get(name, 0) for name in names] for features, _ in rows]) * weights[:, None]
    scale = np.maximum(matrix.max(axis=0), 1e-30)
    solution, _ = nnls(matrix / scale, costs * weights, maxiter=100 * len(names))
    return {name: float(f"{c:.6g}") for name, c in zip(names, solution / scale, strict=True)}


def fit_cores(measurements: Iterable[Measurement], one_core: CostModel) -> dict[str, float]:
    """What sharing costs beyond the busiest core's part, from operators on two cores."""
    rows, rest = [], []
    for measurement in measurements:
        most, shared = one_core.busiest(measurement.work)
        if shared:
            weight = 1 / np.sqrt(measurement.cost)
            rows.append([shared[name] * weight for name in SHARED])
            rest.append((measurement.cost - most) * weight)
    solution, _ = nnls(np.array(rows), np.array(rest))
    return {name: float(f"{c:.6g}") for name, c in zip(SHARED, solution, strict=True)}


def errors(measurements: Iterable[Measurement], cost: CostModel) -> dict[str, Errors]:
    """How far a cost model is off, for each kind of operator."""
    by_kind: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for m in measurements:
        if m.cost > 0:
            by_kind[m.work.kind].append((cost.operator_cost(m.work), m.cost))
    out = {}
    for kind, pairs in by_kind.items():
        predicted, measured = np.array(pairs).T
        relative = predicted / measured - 1
        rms = float(np.sqrt((relative**2).mean()))
        out[kind] = Errors(
            float(predicted.sum() / measured.sum() - 1), rms, float(np.abs(relative).max()), len(relative)
        )
    return out


def cost_table(cost: CostModel, notes: Sequence[str]) -> str:
    """The `[cost]` table as text, under some lines of comment."""
    lines = [
        *(f"# {note}".rstrip() for note in notes),
        "[cost]",
        f'unit = "{cost.unit}"',
        f'kernels = "{cost.kernels}"',
        *([f"mhz = {cost.mhz:g}"] if cost.mhz else []),
    ]
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


def calibrate_portable(board: Board, seed: int) -> tuple[CostModel, list[str]]:
    """Fit the portable kernels; and the errors, as text."""
    unit, found = measure(board, portable_models(seed), "portable", seed)
    rows = [m for model in found for m in model]
    cost = CostModel(unit, "portable", fit(rows))
    return cost, error_lines(rows, cost, "")


def calibrate_pie(board: Board, seed: int) -> tuple[CostModel, list[str]]:
    """Fit the PIE kernels: one core first, then what it costs to share."""
    if board.cycle_model is None:
        raise UsageError(f"{board.name} has no cycle model; PIE kernels are fitted to lx7sim")
    parameters = tomllib.loads(board.cycle_model.read_text())
    timing, mhz = parameters["dcache"], parameters["clock"]["cpu_mhz"]
    cache = CacheShape(timing["size"], timing["line"], timing["ways"])
    models = list(pie_models(seed))
    static = [model for model in models if model.info.scale_mode is ScaleMode.STATIC]
    unit, alone = measure(with_cores(board, 1), models, "pie", seed, cache)
    rows = [m for model in alone for m in model]
    coefficients = fit(rows, line_cost=True)
    coefficients[FLASH] |= {
        "cache_bytes": cache.bytes, "cache_line_bytes": cache.line_bytes, "cache_ways": cache.ways,
    }  # fmt: skip
    one = CostModel(unit, "pie", coefficients)
    text = error_lines(rows, one, "one core")
    _, together = measure(with_cores(board, 2), static, "pie", seed, cache)
    shared = [m for model in together for m in model]
    both = CostModel(unit, "pie", {**coefficients, CORES: fit_cores(shared, one)}, mhz)
    return both, [*text, *error_lines(shared, both, "two cores"), *_model_lines(alone, together, both)]


def _model_lines(alone: list[list[Measurement]], together: list[list[Measurement]], cost: CostModel) -> list[str]:
    """Errors of whole models."""
    out = []
    for title, models in (("one core", alone), ("two cores", together)):
        found = [sum(cost.operator_cost(m.work) for m in rows) / sum(m.cost for m in rows) - 1 for rows in models]
        rms = float(np.sqrt(np.mean(np.square(found))))
        out.append(f"{title:10}{'whole models':22}{'':>9}{rms:>9.2%}{max(map(abs, found)):>9.2%}{len(found):>7}")
    return out


def error_lines(measurements: Iterable[Measurement], cost: CostModel, title: str) -> list[str]:
    """One line a kind of operator."""
    return [
        f"{title:10}{kind:22}{e.total:>+9.2%}{e.rms:>9.2%}{e.worst:>9.2%}{e.count:>7}"
        for kind, e in errors(measurements, cost).items()
    ]


def with_cores(board: Board, cores: int) -> Board:
    """The board with another number of cores."""
    return replace(board, start=replace(board.start, cores=cores)) if board.start is not None else board


def main() -> int:
    """Measure, fit, report, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", required=True, help="name of a board file in boards/")
    parser.add_argument("--kernels", default="portable", choices=list(KERNELS), help="kernels that its firmware uses")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="do not write the board file")
    options = parser.parse_args()
    try:
        board = load_board(options.board)
        fitted = calibrate_pie if options.kernels == "pie" else calibrate_portable
        cost, found = fitted(board, options.seed)
    except TvhilError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    text = [f"{'':32}{'sum':>9}{'rms':>9}{'worst':>9}{'count':>7}", *found]
    print("\n".join(text))
    given = f"--board {options.board} --kernels {options.kernels} --seed {options.seed}"
    note = [f"Fitted: tools/calibrate_cost_model.py {given}"]
    # A board that is the simulation of another one is measured in its place.
    target = load_board(board.stands_for) if board.stands_for else board
    if options.kernels == "pie":
        note += [f"lx7sim of commit {commit()}; relative errors of the operators and models of the fit:", *text]
    table = cost_table(cost, note)
    if options.dry_run:
        print(table, end="")
    else:
        path = Path(target.path)
        path.write_text(replace_cost_table(path.read_text(), table))
        print(f"wrote {path}", file=sys.stderr)
    return 0


def commit() -> str:
    """The commit of this tree."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
