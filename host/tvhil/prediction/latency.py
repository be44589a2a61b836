# SPDX-License-Identifier: Apache-2.0
"""Latency from a cost model: a linear form over amounts of work, for each kind of operator.

What one operator does follows from its shape, and from the number of its non-zero trits where only these are stored
(device/CONTRACT.md has no work that depends on activations), so its cost is `sum of coefficient * amount`. The amounts
are counted here from the model file, as the kernels' loops count them (device/include/tvit/kernels.h); the
coefficients, in the board's unit, are in the `[cost]` table of the board file and are fitted to measurements by
tools/calibrate_cost_model.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tvhil.errors import InputError
from tvhil.packing.format import OpKind
from tvhil.packing.reader import Operator, TvitModel
from tvhil.packing.trits import Codec

Features = dict[str, float]
UNITS = ("cycles", "instructions", "seconds")
# Amounts of the loop around the operators; the other tables of a cost model are named by `kind_of`.
RUN = "run"

_GROUP_CHANNELS = 8  # output channels that the portable kernels decode and compute at a time
_LANE_TERMS = 128  # inputs that tvit_ternary_dot_portable sums in 16-bit halves before it widens them
_QUERIES = 4  # queries that the portable attention computes at a time


def kind_of(op: Operator) -> str:
    """The name of an operator's table in a cost model: its kind in lower case."""
    return op.kind.name.lower()


def operator_features(model: TvitModel, op: Operator, kernels: str = "portable") -> Features:
    """Amounts of work of one operator.

    Args:
        model: that the operator belongs to.
        op: the operator.
        kernels: which implementation counts them, a key of `KERNELS`.

    Raises:
        InputError: unknown kernels.
    """
    if kernels not in KERNELS:
        raise InputError(f"the cost model is for kernels {kernels!r}; known: {', '.join(KERNELS)}")
    return KERNELS[kernels][op.kind](model, op)


def run_features(model: TvitModel) -> Features:
    """Amounts of work outside the operators."""
    return {"inferences": 1, "operators": len(model.operators)}


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _dot_features(calls: int, terms: int) -> Features:
    """`calls` of tvit_ternary_dot_portable over `terms` inputs each."""
    chunks = [_LANE_TERMS] * (terms // _LANE_TERMS) + ([terms % _LANE_TERMS] if terms % _LANE_TERMS else [])
    return {
        "dots": calls,
        "dot_chunks": calls * len(chunks),
        "dot_quads": calls * sum(chunk // 4 for chunk in chunks),
        "dot_singles": calls * sum(chunk % 4 for chunk in chunks),
    }


def _weights_features(model: TvitModel, op: Operator) -> Features:
    """Decoding a ternary matrix, group by group."""
    n, k = op["n"], op["k"]
    groups = _ceil_div(n, _GROUP_CHANNELS)
    if Codec(op["codec"]) is Codec.GAPS:
        return {"operators": 1, "groups": groups, "instructions": model.instructions(op), "cleared_inputs": groups * k}
    return {
        "operators": 1,
        "groups": groups,
        f"trits_{Codec(op['codec']).label}": n * k,
        "absent_trits": (-n % _GROUP_CHANNELS) // 2 * k,
    }


def _portable_patch_embed(model: TvitModel, op: Operator) -> Features:
    info, n = model.info, op["n"]
    patches = info.tokens - info.prefix_tokens
    calls = patches * _ceil_div(n, _GROUP_CHANNELS)
    return {
        **_weights_features(model, op),
        **_dot_features(calls * info.patch_size, info.patch_size * info.image_channels),
        "rows": calls,
        "outputs": patches * n,
        "prefix_values": info.prefix_tokens * n,
    }


def _portable_linear(model: TvitModel, op: Operator) -> Features:
    source, output = model.tensors[op.inputs[0]], model.tensors[op.output]
    rows, n = op["rows"], op["n"]
    calls = rows * _ceil_div(n, _GROUP_CHANNELS)
    kind = "i16_add" if op.adds else "i16_set"
    if output.dtype.name == "I8":
        kind = "table" if op.has_table and not output.per_token else "i8"
    features = {
        **_weights_features(model, op),
        **_dot_features(calls, op["k"]),
        f"rows_{kind}": calls,
        f"outputs_{kind}": rows * n,
    }
    if source.per_token:
        features |= {"scaled_rows": calls, "scaled_outputs": rows * n}
    if op.has_table and output.per_token:
        features |= {"quantized_rows": rows, "quantized_outputs": rows * n}
    return features


def _portable_layernorm(model: TvitModel, op: Operator) -> Features:
    n, rows = model.tensors[op.inputs[0]].columns, op["rows"]
    features: Features = {"operators": 1, "rows": rows, "quads": rows * _ceil_div(n, 4), "values": rows * n}
    if model.tensors[op.output].per_token:
        features |= {"quantized_rows": rows, "quantized_values": rows * n}
    return features


def _portable_attention(model: TvitModel, op: Operator) -> Features:
    tokens, heads, head_dim = model.info.tokens, op["heads"], op["head_dim"]
    groups = heads * _ceil_div(tokens, _QUERIES)
    features: Features = {
        "operators": 1,
        "groups": groups,
        "group_dims": groups * head_dim,
        "group_keys": groups * tokens,
        "score_quads": groups * tokens * (head_dim // 4),
        "score_singles": groups * tokens * (head_dim % 4),
        "value_pairs": groups * tokens * (head_dim // 2),
        "value_singles": groups * tokens * (head_dim % 2),
        "outputs": tokens * heads * head_dim,
    }
    if model.tensors[op.output].per_token:
        features |= {"quantized_rows": tokens, "quantized_values": tokens * heads * head_dim}
    return features


def _portable_mean_pool(model: TvitModel, op: Operator) -> Features:
    n = model.tensors[op.output].columns
    return {"operators": 1, "outputs": n, "values": op["rows"] * n}


_Counter = Callable[[TvitModel, Operator], Features]

KERNELS: dict[str, dict[OpKind, _Counter]] = {
    "portable": {
        OpKind.PATCH_EMBED: _portable_patch_embed,
        OpKind.LAYERNORM: _portable_layernorm,
        OpKind.LINEAR: _portable_linear,
        OpKind.ATTENTION: _portable_attention,
        OpKind.MEAN_POOL: _portable_mean_pool,
    },
}


@dataclass(frozen=True)
class LatencyPrediction:
    """What the cost model says of one inference.

    Attributes:
        unit: 'cycles', 'instructions' or 'seconds'.
        total: of one inference.
        layers: (operator name, prediction) in execution order.
    """

    unit: str
    total: float
    layers: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class CostModel:
    """Coefficients of a board, as its file's `[cost]` table has them.

    Attributes:
        unit: 'cycles', 'instructions' or 'seconds'.
        kernels: the implementation that the amounts of work are counted for.
        coefficients: for each kind of operator (and `RUN`), cost of one unit of each amount.
    """

    unit: str
    kernels: str
    coefficients: Mapping[str, Mapping[str, float]]

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> CostModel:
        """Read a `[cost]` table: `unit`, `kernels`, and a sub-table of coefficients a kind of operator.

        Raises:
            InputError: it is malformed.
        """
        values = dict(table)
        unit, kernels = values.pop("unit", None), values.pop("kernels", None)
        if unit not in UNITS or kernels not in KERNELS:
            raise InputError(f"[cost]: unit {unit!r} or kernels {kernels!r} is unknown")
        for kind, coefficients in values.items():
            numbers = isinstance(coefficients, dict) and all(
                isinstance(value, int | float) and not isinstance(value, bool) for value in coefficients.values()
            )
            if not numbers:
                raise InputError(f"[cost.{kind}] must hold numbers only")
        return cls(unit, kernels, values)

    def cost(self, kind: str, features: Features) -> float:
        """Cost of some work.

        Raises:
            InputError: the board's cost model has no coefficient for it.
        """
        coefficients = self.coefficients.get(kind, {})
        for name, amount in features.items():
            if amount and name not in coefficients:
                raise InputError(
                    f"the board's cost model has no coefficient [cost.{kind}] {name}: "
                    "measure it with tools/calibrate_cost_model.py"
                )
        return sum(coefficients[name] * amount for name, amount in features.items() if amount)

    def predict(self, model: TvitModel) -> LatencyPrediction:
        """Latency of one inference, in total and for each operator."""
        layers = tuple(
            (op.name, self.cost(kind_of(op), operator_features(model, op, self.kernels))) for op in model.operators
        )
        total = sum(cost for _, cost in layers) + self.cost(RUN, run_features(model))
        return LatencyPrediction(self.unit, total, layers)
