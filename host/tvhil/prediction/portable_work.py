# SPDX-License-Identifier: Apache-2.0
"""Amounts of work of the portable kernels, as their loops count them (device/include/tvit/kernels.h)."""

from __future__ import annotations

from collections.abc import Callable

from tvhil.packing.format import OpKind
from tvhil.packing.reader import Operator, TvitModel
from tvhil.packing.trits import Codec

Features = dict[str, float]

_GROUP_CHANNELS = 8  # output channels that the portable kernels decode and compute at a time
_LANE_TERMS = 128  # inputs that tvit_ternary_dot_portable sums in 16-bit halves before it widens them
_QUERIES = 4  # queries that the portable attention computes at a time


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def dot_features(calls: int, terms: int) -> Features:
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


def _patch_embed(model: TvitModel, op: Operator) -> Features:
    info, n = model.info, op["n"]
    patches = info.tokens - info.prefix_tokens
    calls = patches * _ceil_div(n, _GROUP_CHANNELS)
    return {
        **_weights_features(model, op),
        **dot_features(calls * info.patch_size, info.patch_size * info.image_channels),
        "rows": calls,
        "outputs": patches * n,
        "prefix_values": info.prefix_tokens * n,
    }


def _linear(model: TvitModel, op: Operator) -> Features:
    source, output = model.tensors[op.inputs[0]], model.tensors[op.output]
    rows, n = op["rows"], op["n"]
    calls = rows * _ceil_div(n, _GROUP_CHANNELS)
    kind = "i16_add" if op.adds else "i16_set"
    if output.dtype.name == "I8":
        kind = "table" if op.has_table and not output.per_token else "i8"
    features = {
        **_weights_features(model, op),
        **dot_features(calls, op["k"]),
        f"rows_{kind}": calls,
        f"outputs_{kind}": rows * n,
    }
    if source.per_token:
        features |= {"scaled_rows": calls, "scaled_outputs": rows * n}
    if op.has_table and output.per_token:
        features |= {"quantized_rows": rows, "quantized_outputs": rows * n}
    return features


def _layernorm(model: TvitModel, op: Operator) -> Features:
    n, rows = model.tensors[op.inputs[0]].columns, op["rows"]
    features: Features = {"operators": 1, "rows": rows, "quads": rows * _ceil_div(n, 4), "values": rows * n}
    if model.tensors[op.output].per_token:
        features |= {"quantized_rows": rows, "quantized_values": rows * n}
    return features


def _attention(model: TvitModel, op: Operator) -> Features:
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


def _mean_pool(model: TvitModel, op: Operator) -> Features:
    n = model.tensors[op.output].columns
    return {"operators": 1, "outputs": n, "values": op["rows"] * n}


PORTABLE: dict[OpKind, Callable[[TvitModel, Operator], Features]] = {
    OpKind.PATCH_EMBED: _patch_embed,
    OpKind.LAYERNORM: _layernorm,
    OpKind.LINEAR: _linear,
    OpKind.ATTENTION: _attention,
    OpKind.MEAN_POOL: _mean_pool,
}


def operator_features(model: TvitModel, op: Operator) -> Features:
    """Amounts of work of one operator."""
    return PORTABLE[op.kind](model, op)
