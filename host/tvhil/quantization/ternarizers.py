# SPDX-License-Identifier: Apache-2.0
"""Weights to trits: each rule maps `[N][K]` weights to trits and one scale a row, `weights ~ scale[n] * trits[n]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tvhil.errors import UsageError
from tvhil.quantization.integer_ops import clamp


class Ternary(NamedTuple):
    """Trits `[N][K]` (-1, 0, 1 in the weights' dtype) and their scale `[N]`."""

    trits: Tensor
    scale: Tensor

    def values(self) -> Tensor:
        """The weights that they stand for."""
        return self.trits * self.scale[:, None]


Ternarizer = Callable[[Tensor], Ternary]


def twn(weight: Tensor) -> Ternary:
    """Threshold ternary with a scale a row.

    `threshold = 0.7 * mean |w|`, `trit = sign(w) where |w| > threshold`, `scale = mean |w| of those`: Ternary Weight
    Networks (Li et al., arXiv 1605.04711), per output channel as in TerViT (arXiv 2201.08050).
    """
    magnitude = weight.abs()
    kept = magnitude > (0.7 * _mean(magnitude)).to(weight.dtype)[:, None]
    scale = (magnitude * kept).sum(1, dtype=torch.float64) / kept.sum(1).clamp_min(1)
    return Ternary(weight.sign() * kept, scale.to(weight.dtype))


def absmean(weight: Tensor) -> Ternary:
    """Rounded ternary with one scale for the matrix.

    `scale = mean |w|`, `trit = clamp(round(w / scale), -1, 1)`: BitNet b1.58 and ViT-1.58b (arXiv 2406.18051).
    """
    scale = _mean(weight.abs()).mean().to(weight.dtype)
    return Ternary(_rounded(weight, scale), scale.expand(len(weight)))


def absmean_channel(weight: Tensor) -> Ternary:
    """`absmean` with a scale for each row."""
    scale = _mean(weight.abs()).to(weight.dtype)
    return Ternary(_rounded(weight, scale[:, None]), scale)


def binary(weight: Tensor) -> Ternary:
    """1 bit: `trit = sign(w)` with sign(0) = 1, `scale = mean |w|` of the row.

    The least-squares scale of a sign matrix (XNOR-Net, arXiv 1603.05279).
    """
    return Ternary(torch.where(weight < 0, -1.0, 1.0).to(weight.dtype), _mean(weight.abs()).to(weight.dtype))


def _mean(magnitude: Tensor) -> Tensor:
    """Mean of each row in float64, so that the trits do not depend on the order of a machine's sums."""
    return magnitude.mean(1, dtype=torch.float64)


def _rounded(weight: Tensor, scale: Tensor) -> Tensor:
    return (weight / scale.clamp_min(torch.finfo(weight.dtype).tiny)).round().clamp(-1, 1)


TERNARIZERS: dict[str, Ternarizer] = {f.__name__: f for f in (twn, absmean, absmean_channel, binary)}


def ternarizer(name: str) -> Ternarizer:
    """Look a rule up by name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in TERNARIZERS:
        raise UsageError(f"no ternarizer is called {name!r}; known: {', '.join(TERNARIZERS)}")
    return TERNARIZERS[name]


class _Substitute(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, ideal: Tensor, exact: Tensor) -> Tensor:
        return exact.to(ideal.dtype, copy=True)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def substitute(ideal: Tensor, exact: Tensor) -> Tensor:
    """The value of `exact`, bit for bit, with the gradient of `ideal` (a straight-through estimator)."""
    if not (torch.is_grad_enabled() and ideal.requires_grad):
        return exact.to(ideal.dtype)
    out: Tensor = _Substitute.apply(ideal, exact.detach())  # type: ignore[no-untyped-call]
    return out


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ideal: Tensor, exact: Tensor, limit: Tensor | int) -> Tensor:
        ctx.save_for_backward(ideal.abs() <= limit)
        return clamp(exact.to(ideal.dtype), limit)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None


def substitute_clamped(ideal: Tensor, exact: Tensor, limit: Tensor | int) -> Tensor:
    """`exact` clamped to `[-limit, limit]`, with the gradient of `ideal` where that is inside, and 0 elsewhere."""
    if not (torch.is_grad_enabled() and ideal.requires_grad):
        return clamp(exact.to(ideal.dtype), limit)
    out: Tensor = _Clamp.apply(ideal, exact.detach(), limit)  # type: ignore[no-untyped-call]
    return out


def straight_through(weight: Tensor, rule: Ternarizer) -> Tensor:
    """The ternary weights `scale * trits` with the gradient of the weights themselves (Bengio et al., 1308.3432)."""
    with torch.no_grad():
        values = rule(weight.detach()).values()
    return substitute(weight, values)
