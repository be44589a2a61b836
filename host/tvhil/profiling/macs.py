# SPDX-License-Identifier: Apache-2.0
"""Multiply-accumulates of an operator: what a model asks for, however a kernel does it."""

from __future__ import annotations

from tvhil.packing.format import OpKind
from tvhil.packing.reader import Operator, TvitModel


def operator_macs(model: TvitModel, op: Operator) -> int:
    """Multiply-accumulates of one operator; the sum over a model is its `info.macs`.

    LayerNorm and pooling count as none; attention counts both products, `2 * tokens^2 * embed_dim`.
    """
    if op.kind is OpKind.PATCH_EMBED:
        return (model.info.tokens - model.info.prefix_tokens) * op["n"] * op["k"]
    if op.kind is OpKind.LINEAR:
        return op["rows"] * op["n"] * op["k"]
    if op.kind is OpKind.ATTENTION:
        return 2 * model.info.tokens**2 * op["heads"] * op["head_dim"]
    return 0
