# SPDX-License-Identifier: Apache-2.0
"""Weights to integers: each quantizer maps `[N][K]` weights to levels and a scale for each row.

Every quantizer works per matrix (one threshold and scale, shared by all rows) or per channel (one for each row). Means
are taken in float64, so that the levels do not depend on the order of a machine's sums.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tvhil.errors import UsageError
from tvhil.quantization.integer_ops import clamp

# Weights beyond so many scales get no gradient when gradients are clipped.
CLIP_SCALES = 2.0


class Ternary(NamedTuple):
    """Levels `[N][K]` as whole numbers in the weights' dtype (-1, 0, 1 for all but 8 bits) and their scale `[N]`."""

    trits: Tensor
    scale: Tensor

    def values(self) -> Tensor:
        """The weights that they stand for."""
        return self.trits * self.scale[:, None]


class Ternarizer(Protocol):
    """Anything that maps weights `[N][K]` to levels and scales."""

    def __call__(self, weight: Tensor) -> Ternary: ...  # noqa: D102


class WeightQuantizer:
    """A rule without parameters of its own.

    Args:
        per_channel: a threshold and a scale for each row, not one for the matrix.
    """

    limit: ClassVar[int] = 1  # the largest level

    def __init__(self, *, per_channel: bool) -> None:
        self.per_channel = per_channel

    @abstractmethod
    def __call__(self, weight: Tensor) -> Ternary:
        """Levels and scales of `[N][K]` weights."""

    def mean(self, x: Tensor) -> Tensor:
        """Mean over each row, or over the matrix, `[N]` in float64."""
        rows = x.mean(1, dtype=torch.float64)
        return rows if self.per_channel else rows.mean().expand(len(x))

    def total(self, x: Tensor) -> Tensor:
        """Sum over each row, or over the matrix, `[N]` in float64."""
        rows = x.sum(1, dtype=torch.float64)
        return rows if self.per_channel else rows.sum().expand(len(x))


class Twn(WeightQuantizer):
    """Threshold ternary.

    `threshold = 0.7 * mean |w|`, `level = sign(w) where |w| > threshold`, `scale = mean |w| of those`: Ternary Weight
    Networks (Li et al., arXiv 1605.04711); per channel as in TerViT (arXiv 2201.08050).
    """

    def __call__(self, weight: Tensor) -> Ternary:
        """Levels and scales of `[N][K]` weights."""
        magnitude = weight.abs()
        kept = magnitude > (0.7 * self.mean(magnitude)).to(weight.dtype)[:, None]
        scale = self.total(magnitude * kept) / self.total(kept).clamp_min(1)
        return Ternary(weight.sign() * kept, scale.to(weight.dtype))


class Absmean(WeightQuantizer):
    """Rounded ternary.

    `scale = mean |w|`, `level = clamp(round(w / scale), -1, 1)`: BitNet b1.58 (arXiv 2402.17764) and ViT-1.58b (arXiv
    2406.18051), both per matrix.
    """

    def __call__(self, weight: Tensor) -> Ternary:
        """Levels and scales of `[N][K]` weights."""
        scale = self.mean(weight.abs()).to(weight.dtype)
        return Ternary(_rounded(weight, scale[:, None], self.limit), scale)


class Binary(WeightQuantizer):
    """1 bit: `level = sign(w)` with sign(0) = 1, `scale = mean |w|`.

    The least-squares scale of a sign matrix (XNOR-Net, Rastegari et al., arXiv 1603.05279).
    """

    def __call__(self, weight: Tensor) -> Ternary:
        """Levels and scales of `[N][K]` weights."""
        levels = torch.where(weight < 0, -1.0, 1.0).to(weight.dtype)
        return Ternary(levels, self.mean(weight.abs()).to(weight.dtype))


class EightBit(WeightQuantizer):
    """8 bits: `scale = max |w| / 127`, `level = round(w / scale)`, symmetric (Jacob et al., arXiv 1712.05877).

    For the first phase of progressive training (TerViT); the device has no kernels for it.
    """

    limit: ClassVar[int] = 127

    def __call__(self, weight: Tensor) -> Ternary:
        """Levels and scales of `[N][K]` weights."""
        largest = weight.abs().amax(1) if self.per_channel else weight.abs().max().expand(len(weight))
        scale = largest / self.limit
        return Ternary(_rounded(weight, scale[:, None], self.limit), scale)


class LearnedTernary(nn.Module):
    """Ternary with a learned threshold and a learned scale: one of each a matrix, or a row.

    `level = clamp(round(v), -1, 1)` with `v = w / (2 * threshold)`, `value = scale * level`. The scale has the exact
    gradient (Trained Ternary Quantization, Zhu et al., arXiv 1612.01064, with one scale for both signs); weight and
    threshold those of `scale * clamp(v, -1, 1)`, the straight-through rounding of LSQ (Esser et al., arXiv 1902.08153)
    with the scale set free, so they are clipped. The gradients of scale and threshold are divided by the square root of
    the number of weights that share them, as LSQ does.

    Args:
        rows: `N`.
        per_channel: a threshold and a scale for each row.
    """

    limit: ClassVar[int] = 1

    def __init__(self, rows: int, *, per_channel: bool) -> None:
        super().__init__()
        self.rows = rows
        self.scale = nn.Parameter(torch.ones(rows if per_channel else 1))
        self.threshold = nn.Parameter(torch.full((rows if per_channel else 1,), 0.5))

    @torch.no_grad()
    def start_from(self, weight: Tensor) -> None:
        """Threshold and scale of the TWN rule."""
        rule = Twn(per_channel=len(self.scale) > 1)
        self.threshold.copy_((0.7 * rule.mean(weight.abs()))[: len(self.threshold)])
        self.scale.copy_(rule(weight).scale[: len(self.scale)])

    @torch.no_grad()
    def forward(self, weight: Tensor) -> Ternary:
        """Levels and scales of `[N][K]` weights."""
        step = 2 * self._positive(self.threshold)
        return Ternary(_rounded(weight, step[:, None], 1), self.scale.expand(self.rows))

    def values(self, weight: Tensor) -> Tensor:
        """The quantized weights, differentiable in weights, scale and threshold."""
        shared = weight.numel() / len(self.scale)
        scale = _scale_gradient(self.scale, shared**-0.5).expand(self.rows)[:, None]
        threshold = _scale_gradient(self._positive(self.threshold), shared**-0.5).expand(self.rows)[:, None]
        v = weight / (2 * threshold)
        values: Tensor = scale * substitute_clamped(v, v.detach().round(), 1)
        return values

    @staticmethod
    def _positive(x: Tensor) -> Tensor:
        return x.abs().clamp_min(torch.finfo(x.dtype).tiny)


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x, with its gradient times a factor."""
    return x.detach() + (x - x.detach()) * factor


def _rounded(weight: Tensor, scale: Tensor, limit: int) -> Tensor:
    return (weight / scale.clamp_min(torch.finfo(weight.dtype).tiny)).round().clamp(-limit, limit)


twn = Twn(per_channel=True)
absmean = Absmean(per_channel=False)
absmean_channel = Absmean(per_channel=True)
binary = Binary(per_channel=True)

TERNARIZERS: dict[str, WeightQuantizer] = {
    "twn": twn,
    "twn_matrix": Twn(per_channel=False),
    "absmean": absmean,
    "absmean_channel": absmean_channel,
    "binary": binary,
    "binary_matrix": Binary(per_channel=False),
    "int8": EightBit(per_channel=True),
    "int8_matrix": EightBit(per_channel=False),
}
# Rules with parameters: every layer has its own (`make_quantizer`).
LEARNED = {"learned": True, "learned_matrix": False}  # whether per channel


def ternarizer(name: str) -> WeightQuantizer:
    """Look up a rule without parameters by name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in TERNARIZERS:
        raise UsageError(f"no ternarizer is called {name!r}; known: {', '.join((*TERNARIZERS, *LEARNED))}")
    return TERNARIZERS[name]


def make_quantizer(name: str, rows: int) -> WeightQuantizer | LearnedTernary:
    """The quantizer of a layer with `rows` output channels: shared where it has no parameters, else its own.

    Raises:
        UsageError: there is none of that name.
    """
    return LearnedTernary(rows, per_channel=LEARNED[name]) if name in LEARNED else ternarizer(name)


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


def straight_through(weight: Tensor, rule: Ternarizer, *, clipped: bool = False) -> Tensor:
    """The quantized weights `scale * level`, differentiable.

    A learned rule has gradients of its own. The others pass the gradient on to the weights as it is (Bengio et al.,
    arXiv 1308.3432) or, `clipped`, only where `|w| <= 2 * scale`, so that weights do not run away from their level
    (Hubara et al., arXiv 1602.02830, which clips at 1 with a scale of 1).
    """
    if isinstance(rule, LearnedTernary):
        return rule.values(weight)
    with torch.no_grad():
        quantized = rule(weight.detach())
        values = quantized.values()
    if not clipped:
        return substitute(weight, values)
    inside = weight.detach().abs() <= CLIP_SCALES * quantized.scale[:, None]
    return substitute(weight * inside, values)
