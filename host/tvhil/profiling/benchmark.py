# SPDX-License-Identifier: Apache-2.0
"""Kernels alone and whole models on a board, and the comparison of two such measurements.

Kernels are measured as operators of small models with the shapes of DeiT's blocks, by the board's own counter around
each operator: so every board can do it, silicon included. What is no operator of its own follows from two measurements:
decoding a matrix costs what an operator costs at zero rows, and GELU what the operator with the table costs more than
the one without.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvhil import __version__
from tvhil.errors import InputError, MismatchError, UsageError
from tvhil.evaluation.report import Summary, fill_layers, layer_rows
from tvhil.packing import pack_vit, read_model
from tvhil.packing.format import OpKind
from tvhil.packing.planner import plan
from tvhil.packing.random_vit import random_vit
from tvhil.packing.reader import Operator, TvitModel
from tvhil.packing.trits import Codec
from tvhil.prediction import Predictor
from tvhil.profiling.macs import operator_macs
from tvhil.profiling.published import PUBLISHED

if TYPE_CHECKING:
    from tvhil.boards import Board
    from tvhil.evaluation.device import Device, DeviceFacts
    from tvhil.models import ViTConfig
    from tvhil.prediction.latency import CostModel

SCHEMA = "tvhil.bench/1"
SILICON = "esp32s3"  # the board that `published` is about
Json = dict[str, Any]
Open = Callable[[TvitModel], AbstractContextManager["Device"]]
Notice = Callable[[str], None]

_SEED = 2
# Rows of the models that decoding is computed from: multiples of 16, for kernels that take 16 tokens at a time.
_FEW_ROWS, _MORE_ROWS = 16, 32


@dataclass(frozen=True)
class Width:
    """One size of DeiT, of which a block is measured."""

    name: str
    embed_dim: int
    heads: int
    mlp_dim: int


WIDTHS = (Width("deit_tiny", 192, 3, 768), Width("deit_small", 384, 6, 1536))


@dataclass(frozen=True)
class Measured:
    """One model on one board.

    Attributes:
        model: that ran.
        facts: what the board says of itself.
        latencies: of each image.
        layers: of each operator, the median over the images.
        bit_exact: images whose logits are the predicted ones.
    """

    model: TvitModel
    facts: DeviceFacts
    latencies: list[float]
    layers: list[float]
    bit_exact: int


def measure(open_device: Open, model: TvitModel, images: int, seed: int = _SEED) -> Measured:
    """Run a model on random images and check its logits: a wrong kernel is not worth measuring.

    Raises:
        MismatchError: the logits are not the predicted ones.
        InputError: the board does not count latency by operator.
    """
    rng = np.random.default_rng(seed)
    inputs = rng.integers(0, 256, (images, *model.info.input_shape), np.uint8)
    predicted = Predictor(model).run(inputs)
    latencies: list[float] = []
    layers: list[Sequence[float]] = []
    exact = 0
    with open_device(model) as device:
        facts = device.facts()
        for image, expected in zip(inputs, predicted, strict=True):
            run = device.run(image)
            if run.latency is None or run.layers is None:
                raise InputError(f"{model.name}: the board does not tell the latency of each operator")
            exact += bool(np.array_equal(run.output[0], expected))
            latencies.append(float(run.latency))
            layers.append(run.layers)
    if exact != images:
        raise MismatchError(
            f"{model.name}: {images - exact} of {images} images are not bit-exact; `tvhil run-eval` tells where"
        )
    medians = [float(value) for value in np.median(np.asarray(layers, np.float64), axis=0)]
    return Measured(model, facts, latencies, medians, exact)


# --- kernels -------------------------------------------------------------------------------------------------


def block_model(width: Width, codec: Codec, image_size: tuple[int, int], pool: bool) -> TvitModel:
    """One block of a DeiT with random weights; `pool`: without class token, so that tokens are a multiple of 16."""
    vit = random_vit(
        _SEED, image_size=image_size, channels=3, patch_size=16, embed_dim=width.embed_dim, depth=1, heads=width.heads,
        mlp_dim=width.mlp_dim, classes=1000, prefix_tokens=0 if pool else 1, mean_pool=pool,
        name=f"{width.name}_block",
    )  # fmt: skip
    return read_model(pack_vit(vit, codec))


def measure_kernels(
    open_device: Open,
    width: Width,
    images: int,
    size: int = 224,
    notice: Notice | None = None,
    codec: Codec = Codec.BASE3,
    decoding: bool = True,
) -> tuple[list[Json], DeviceFacts]:
    """Every kernel at the shapes of one width, and what the board says of itself.

    Args:
        open_device: opens the board with a model.
        width: size of DeiT.
        images: to run each model on.
        size: of the image, a multiple of 16.
        notice: told of what is being measured.
        codec: of the block's matrices.
        decoding: also measure what decoding costs, in each codec.

    Raises:
        InputError: the models do not fit the board.
    """

    def of(codec: Codec, image: tuple[int, int], pool: bool) -> Measured:
        model = block_model(width, codec, image, pool)
        if notice:
            notice(f"{width.name}: {codec.label}, {model.info.tokens} tokens")
        return measure(open_device, model, images)

    block = of(codec, (size, size), False)
    rows = [*operator_rows(block), _gelu(block, width)]
    for stored in Codec if decoding else ():
        few, more = (of(stored, (64, 4 * tokens), True) for tokens in (_FEW_ROWS, _MORE_ROWS))
        rows += _decoding(few, more, stored)
    return rows, block.facts


def put_beside(rows: Iterable[Json], others: Iterable[Json], name: str) -> None:
    """Put what the same kernels and shapes cost otherwise into `name` of each row: cost, mac_per_unit, and their ratio.

    `ratio` is that cost by the row's; None where a kernel was not measured otherwise, or is a difference itself.
    """
    found = {_kernel_and_shape(row): row for row in others if not row["derived"]}
    for row in rows:
        other = None if row["derived"] else found.get(_kernel_and_shape(row))
        row[name] = other and {
            "cost": other["cost"], "mac_per_unit": other["mac_per_unit"], "ratio": other["cost"] / row["cost"],
        }  # fmt: skip


def _kernel_and_shape(row: Json) -> tuple[Any, ...]:
    """What a kernel computes, however its matrix is stored."""
    return row["kernel"], *((key, value) for key, value in row["shape"].items() if key != "codec")


def operator_rows(measured: Measured) -> list[Json]:
    """One row for each different kernel and shape of a model; the mean where several operators are alike."""
    groups: dict[str, list[tuple[Operator, float]]] = {}
    for op, cost in zip(measured.model.operators, measured.layers, strict=True):
        name = " ".join([_kernel(measured.model, op), *(f"{k}={v}" for k, v in _shape(measured.model, op).items())])
        groups.setdefault(name, []).append((op, cost))
    rows = []
    for name, members in groups.items():
        op = members[0][0]
        cost = sum(cost for _, cost in members) / len(members)
        region = measured.model.output_region(op)
        values = region.rows * region.columns
        shape = _shape(measured.model, op)
        rows.append(
            _row(
                name, _kernel(measured.model, op), shape, cost, operator_macs(measured.model, op), values, len(members)
            )
        )
    return rows


def _kernel(model: TvitModel, op: Operator) -> str:
    if op.kind is not OpKind.LINEAR:
        return op.kind.name.lower()
    output = model.tensors[op.output]
    if op.has_table:
        return "linear_gelu"
    return "linear_add" if op.adds else f"linear_{output.dtype.name.lower()}"


def _shape(model: TvitModel, op: Operator) -> dict[str, Any]:
    if op.kind is OpKind.LINEAR:
        return {"rows": op["rows"], "k": op["k"], "n": op["n"], "codec": Codec(op["codec"]).label}
    if op.kind is OpKind.PATCH_EMBED:
        patches = model.info.tokens - model.info.prefix_tokens
        return {"patches": patches, "k": op["k"], "n": op["n"], "codec": Codec(op["codec"]).label}
    if op.kind is OpKind.ATTENTION:
        return {"tokens": model.info.tokens, "heads": op["heads"], "head_dim": op["head_dim"]}
    source = model.tensors[op.inputs[0]]
    return {"rows": op["rows"], "n": source.columns}


def _row(
    name: str, kernel: str, shape: Mapping[str, Any], cost: float, macs: int, values: int, operators: int = 1,
    derived: bool = False,
) -> Json:  # fmt: skip
    return {
        "id": name, "kernel": kernel, "shape": dict(shape), "cost": cost, "macs": macs, "values": values,
        "per_mac": cost / macs if macs else None, "mac_per_unit": macs / cost if macs and cost else None,
        "per_value": cost / values if values else None, "operators": operators, "derived": derived,
    }  # fmt: skip


def _gelu(block: Measured, width: Width) -> Json:
    """What the table costs: an output of fc1 against one of q, which has the same inputs and none."""
    cost = {op.name: c for op, c in zip(block.model.operators, block.layers, strict=True)}
    rows = block.model.info.tokens
    values = rows * width.mlp_dim
    extra = cost["blocks.0.mlp.fc1"] - cost["blocks.0.attn.q"] * width.mlp_dim / width.embed_dim
    shape = {"rows": rows, "n": width.mlp_dim}
    return _row(f"gelu rows={rows} n={width.mlp_dim}", "gelu", shape, extra, 0, values, derived=True)


def _decoding(few: Measured, more: Measured, codec: Codec) -> list[Json]:
    """What each different matrix of a block costs before its first row."""
    rows: dict[str, Json] = {}
    operators = zip(few.model.operators, few.layers, more.layers, strict=True)
    for op, a, b in operators:
        if op.kind is not OpKind.LINEAR or op["rows"] != _FEW_ROWS:
            continue
        slope = (b - a) / (_MORE_ROWS - _FEW_ROWS)
        shape = {"k": op["k"], "n": op["n"], "codec": codec.label}
        name = " ".join(["decode", *(f"{k}={v}" for k, v in shape.items())])
        rows.setdefault(name, _row(name, "decode", shape, a - _FEW_ROWS * slope, 0, op["n"] * op["k"], derived=True))
    return list(rows.values())


# --- models --------------------------------------------------------------------------------------------------


def untrained_model(
    name: str, config: ViTConfig, codec: Codec = Codec.BASE3, arena_bytes: int | None = None
) -> TvitModel:
    """An architecture with random weights, 58 % of them not 0: as fast as a trained one with that share.

    Args:
        name: of the architecture.
        config: its sizes.
        codec: how its trits are stored. In `gaps` the share of weights that are not 0 decides how fast it is.
        arena_bytes: what its schedule has to fit; None for every operator in one piece.

    Raises:
        NothingFitsError: no schedule does.
    """
    if config.image_size % config.patch_size:
        raise UsageError(f"{name}: its image is no multiple of its patches")
    vit = random_vit(
        _SEED, image_size=(config.image_size, config.image_size), channels=config.in_channels,
        patch_size=config.patch_size, embed_dim=config.embed_dim, depth=config.depth, heads=config.num_heads,
        mlp_dim=int(config.embed_dim * config.mlp_ratio), classes=config.num_classes,
        prefix_tokens=int(config.class_token) + int(config.distilled), mean_pool=config.pool == "avg",
        name=f"{name}_untrained",
    )  # fmt: skip
    return read_model(pack_vit(vit, codec) if arena_bytes is None else plan(vit, codec, arena_bytes)[0])


def put_model_beside(row: Json, measured: Measured, name: str) -> None:
    """Put what the same model costs otherwise into `name` of its row; `ratio` is that cost by the row's."""
    mean = sum(measured.latencies) / len(measured.latencies)
    macs = measured.model.info.macs
    row[name] = {"cost": mean, "mac_per_unit": macs / mean, "ratio": mean / row["latency"]["measured"]["mean"]}


def model_row(measured: Measured, facts: Json, cost: CostModel | None = None, cores: int = 1) -> Json:
    """The row of a whole model; `facts` is the `model` of a report, `cost` and `cores` are the board's."""
    model, summary = measured.model, Summary()
    summary.latencies.extend(measured.latencies)
    latency = summary.measured_latency or {}
    mean, macs = latency["mean"], model.info.macs
    prediction = cost.predict(model, cores) if cost is not None and cost.unit == measured.facts.unit else None
    layers = layer_rows([op.name for op in model.operators])
    fill_layers(layers, "measured", measured.layers)
    if prediction:
        fill_layers(layers, "predicted", [value for _, value in prediction.layers])
    return {
        "id": model.name, "model": facts, "signature": model.signature,
        "logits": {"bit_exact": measured.bit_exact, "images": len(measured.latencies)},
        "latency": {
            "unit": measured.facts.unit, "measured": latency,
            "predicted": prediction.total if prediction else None,
            "relative_error": prediction.total / mean - 1 if prediction else None,
            "layers": layers,
        },
        "macs": macs, "per_mac": mean / macs if macs else None, "mac_per_unit": macs / mean if mean else None,
    }  # fmt: skip


# --- the result ----------------------------------------------------------------------------------------------


def bench_report(
    board: Board, facts: DeviceFacts | None, kernels: list[Json], models: list[Json], complete: bool
) -> Json:
    """A bench as JSON; `complete` tells whether all that was asked for is in it.

    `measured_on` tells simulated figures from those of silicon, `published` are other projects' for the same chip.
    """
    chip = SILICON in (board.name, board.stands_for)
    return {
        "schema": SCHEMA,
        "tool_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "board": {
            "name": board.name, "kind": board.kind, "details": facts.details if facts else None,
            "build": facts.build if facts else None, "kernels": board.kernels, "stands_for": board.stands_for or None,
            "measured_on": "silicon" if board.kind == "silicon" else "simulated" if board.cycle_model else board.kind,
        },
        "latency": {"unit": facts.unit if facts else None},
        "parameters": parameters(board.cycle_model),
        "complete": complete,
        "kernels": kernels,
        "models": models,
        "published": [figure.to_json() for figure in PUBLISHED] if chip else [],
    }  # fmt: skip


def parameters(file: Path | None) -> Json | None:
    """The parameters of a cycle model and their hash, which no comment or order changes; None where there are none."""
    if file is None:
        return None
    values = tomllib.loads(file.read_text(encoding="utf-8"))
    text = json.dumps(values, sort_keys=True)
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "values": values}


def commit(folder: Path | None = None) -> Json | None:
    """The git commit that was measured, and whether files differ from it; None outside a checkout."""
    folder = folder or Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    name = git("rev-parse", "HEAD")
    return {"hash": name, "dirty": bool(git("status", "--porcelain"))} if name else None


def read_bench(path: Path) -> Json:
    """Read a bench's JSON.

    Raises:
        InputError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"{path}: no result of `tvhil bench` (schema {SCHEMA})")
    try:
        compare(content, content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: a damaged result of `tvhil bench` ({type(error).__name__}: {error})") from None
    return content


@dataclass(frozen=True)
class Comparison:
    """Two benches: (id, before, after) of what is in both, geometric mean of after / before, ids in one only."""

    rows: tuple[tuple[str, float, float], ...]
    mean_ratio: float | None
    missing: tuple[str, ...]


def check_comparable(before: Json, unit: str | None, cycle_model: Json | None) -> None:
    """Refuse to compare figures that mean different things.

    Args:
        before: a bench.
        unit: of the other one.
        cycle_model: the `parameters` of the other one.

    Raises:
        UsageError: another unit, or a cycle model with other parameters.
    """
    if before["latency"]["unit"] != unit:
        raise UsageError(f"one bench counts {before['latency']['unit']}, the other {unit}: they cannot be compared")
    if before["parameters"] and cycle_model and before["parameters"]["sha256"] != cycle_model["sha256"]:
        changed = ", ".join(changed_parameters(before["parameters"]["values"], cycle_model["values"]))
        raise UsageError(f"the cycle models differ ({changed}): measure both with the same parameters")


def compare(before: Json, after: Json) -> Comparison:
    """Ratios of what two benches both measured.

    Raises:
        UsageError: see `check_comparable`.
    """
    check_comparable(before, after["latency"]["unit"], after["parameters"])
    costs = [_costs(bench) for bench in (before, after)]
    both = [name for name in costs[1] if name in costs[0]]
    rows = tuple((name, costs[0][name], costs[1][name]) for name in both)
    logs = [math.log(b / a) for _, a, b in rows if a > 0 and b > 0]
    missing = tuple(sorted(costs[0].keys() ^ costs[1].keys()))
    return Comparison(rows, math.exp(sum(logs) / len(logs)) if logs else None, missing)


def _costs(bench: Json) -> dict[str, float]:
    kernels = {row["id"]: row["cost"] for row in bench["kernels"]}
    # Another model of the same name is another measurement.
    models = {f"{row['id']} {row['signature'][:8]}": row["latency"]["measured"]["mean"] for row in bench["models"]}
    return kernels | models


def changed_parameters(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[str]:
    """Dotted names of what differs between two parameter files."""
    for key in sorted({*before, *after}):
        a, b = before.get(key), after.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from (f"{key}.{name}" for name in changed_parameters(a, b))
        elif a != b:
            yield str(key)
