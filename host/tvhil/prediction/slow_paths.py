# SPDX-License-Identifier: Apache-2.0
"""Operators that the PIE kernels compute some slower way, and what that costs.

Every shape runs: rows that are too long to become instructions are multiplied, pixels and positions that do not lie at
multiples of 16 are gathered one by one, heads whose dimension is no multiple of 16 have their keys copied, tokens are
padded to blocks of 16, and a model with per-token scales runs on the portable kernels. What it costs is the difference
to the same work on the usual way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tvhil.packing.format import BLOCK_TOKENS, OpKind, ScaleMode
from tvhil.packing.reader import Operator, TvitModel
from tvhil.packing.trits import TILE_CHANNELS
from tvhil.prediction import pie_work as pie
from tvhil.prediction.flash_reads import patches_of
from tvhil.prediction.latency import CostModel
from tvhil.prediction.pie_work import Phase
from tvhil.prediction.work import Matrices, OperatorWork, kind_of, pie_phases, rows_of


@dataclass(frozen=True)
class SlowPath:
    """One reason why layers take longer than they might.

    Attributes:
        what: the reason, for people.
        layers: names of the operators, each once, in order.
        cost: what it costs, in the unit of the cost model, of all of them.
        remedy: what would have to change.
    """

    what: str
    layers: tuple[str, ...]
    cost: float
    remedy: str


def slow_paths(model: TvitModel, cost: CostModel, cores: int) -> list[SlowPath]:
    """What of a model takes a slower way on PIE kernels, the dearest first; nothing for other kernels."""
    if cost.kernels != "pie":
        return []
    found: dict[tuple[str, str], dict[str, float]] = {}
    for op, what, remedy, extra in _reasons(model, cost, cores):
        layers = found.setdefault((what, remedy), {})
        layers[op.name] = layers.get(op.name, 0) + extra
    paths = [SlowPath(what, tuple(layers), sum(layers.values()), remedy) for (what, remedy), layers in found.items()]
    # Models of a few values may be faster without blocks of 16.
    return sorted((path for path in paths if path.cost > 0), key=lambda path: -path.cost)


_Reason = tuple[Operator, str, str, float]


def _reasons(model: TvitModel, cost: CostModel, cores: int) -> Iterator[_Reason]:
    matrices = Matrices(model)

    def of(op: Operator, phases: list[Phase]) -> float:
        # Without lines of flash, which are the same either way.
        lines = ((0.0,) * cores,) * len(phases)
        return cost.operator_cost(OperatorWork(op.name, kind_of(op), tuple(phases), lines))

    if model.info.scale_mode is ScaleMode.PER_TOKEN:
        for op, (_, measured) in zip(model.operators, cost.predict(model, cores).layers, strict=True):
            usual = of(op, pie_phases(model, op, cores, matrices))
            yield op, "scales a token: the portable kernels, on one core", "static scales", measured - usual
        return
    for op in model.operators:
        reasons = _WAYS[op.kind](model, op, cores, matrices) if op.kind in _WAYS else ()
        mine = of(op, pie_phases(model, op, cores, matrices))
        for what, remedy, phases in reasons:
            yield op, what, remedy, mine - of(op, phases)


_Way = tuple[str, str, list[Phase]]


def _linear(model: TvitModel, op: Operator, cores: int, matrices: Matrices) -> Iterator[_Way]:
    rows = rows_of(model, op, matrices)
    if not rows.streams(0, -(-rows.n // TILE_CHANNELS)).all():
        yield (
            "rows too long to become instructions", f"at most {pie.STREAM_MAX_K} inputs, or codec gaps and "
            f"{pie.STREAM_MAX_INSTRUCTIONS} instructions a row", pie.linear(replace(rows, streamed=True), cores),
        )  # fmt: skip
    if not rows.as_row and op["rows"] % BLOCK_TOKENS:
        unpadded = replace(rows, blocks=op["rows"] / BLOCK_TOKENS)
        yield "tokens padded to blocks of 16", "a multiple of 16 tokens", pie.linear(unpadded, cores)


def _patch_embed(model: TvitModel, op: Operator, cores: int, matrices: Matrices) -> Iterator[_Way]:
    shape, rows = patches_of(model), rows_of(model, op, matrices)
    if not (shape.pixels_by_vectors() and shape.positions_by_vectors(rows.n)):
        usual = pie.patch_embed(replace(shape, by_vectors=True), rows, cores)
        yield "pixels or positions gathered one by one", "lines of patches and columns of multiples of 16 bytes", usual


def _attention(model: TvitModel, op: Operator, cores: int, matrices: Matrices) -> Iterator[_Way]:
    del matrices
    tokens, heads, head_dim = model.info.tokens, op["heads"], op["head_dim"]
    strided = model.tensors[op.inputs[1]].columns != head_dim
    if head_dim % BLOCK_TOKENS:
        usual = pie.attention(tokens, heads, head_dim, cores, strided, op["exp_multiplier"], padded=False)
        yield "keys copied and padded, head by head", "head dimensions that are multiples of 16", usual
    if op["exp_multiplier"] < pie.SMALLEST_EXP_MULTIPLIER:
        usual = pie.attention(tokens, heads, head_dim, cores, strided)
        yield "scores clamped before the exponential", "another score shift in quantization", usual


def _layernorm(model: TvitModel, op: Operator, cores: int, matrices: Matrices) -> Iterator[_Way]:
    del matrices
    columns = model.tensors[op.inputs[0]].columns
    if any(
        "plain_values" in part for phase in pie.layernorm(columns, op["rows"], cores, op["shift"]) for part in phase
    ):
        usual = pie.layernorm(columns, op["rows"], cores)
        yield "LayerNorm one value at a time", "a shift of 8 or more, 3 channels or more for each core", usual


_WAYS = {
    OpKind.LINEAR: _linear,
    OpKind.PATCH_EMBED: _patch_embed,
    OpKind.ATTENTION: _attention,
    OpKind.LAYERNORM: _layernorm,
}
