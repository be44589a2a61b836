# SPDX-License-Identifier: Apache-2.0
"""Quantizers of activations: they own the scales, watch a calibration, and turn real values into units and back.

A fake-quantized tensor holds real values that are whole multiples of its scale (per token: of the row's multiplier
times it), so the integers can be read off by rounding, which float32 does without error up to 2^22.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tvhil.quantization.grid import I8_LIMIT, I16_LIMIT
from tvhil.quantization.integer_ops import clamp, quantize_rows
from tvhil.quantization.ternarizers import substitute, substitute_clamped

# Room above the largest value seen in calibration: 16-bit tensors must not saturate, and have the bits to spare.
I16_HEADROOM = 2.0
TOKEN_HEADROOM = 1.25  # rows that are quantized again need their bits for the multiplier
_SAMPLES = 1 << 15  # values kept a calibration batch
_PERCENTILE = 0.9999


class Quantizable(nn.Module):
    """A module with two ways to compute: `real` arithmetic, or the integers of the contract."""

    real: bool = False


@contextmanager
def real_arithmetic(model: nn.Module) -> Iterator[None]:
    """Inside, weights are ternary but nothing else is quantized."""
    modules = [m for m in model.modules() if isinstance(m, Quantizable)]
    before = [m.real for m in modules]
    for m in modules:
        m.real = True
    try:
        yield
    finally:
        for m, value in zip(modules, before, strict=True):
            m.real = value


@contextmanager
def calibrating(model: nn.Module, method: str) -> Iterator[None]:
    """Inside, every quantizer watches what passes; afterwards its scale is set."""
    quantizers = [m for m in model.modules() if isinstance(m, ActivationQuantizer)]
    for q in quantizers:
        q.seen = []
    try:
        with torch.no_grad(), real_arithmetic(model):
            yield
        for q in quantizers:
            q.set_scale(method)
    finally:
        for q in quantizers:
            q.seen = None


class ActivationQuantizer(Quantizable):
    """Symmetric quantization with one static scale: `unit = round(x / scale)` in `[-limit, limit]`.

    `scale` is a parameter; it trains (LSQ, Esser et al., arXiv 1902.08153: its gradient passes through
    division, rounding and clamp) when `learn` is set.

    Args:
        limit: 127 for int8 (less for q), 32767 for int16.
        learn: train the scale.
        produced: the tensor is already quantized by the layer that makes it, so it passes unchanged.
    """

    headroom = I16_HEADROOM

    def __init__(self, limit: int = I8_LIMIT, *, learn: bool = False, produced: bool = True) -> None:
        super().__init__()
        self.limit, self.produced = limit, produced
        self.scale = nn.Parameter(torch.ones(()), requires_grad=learn)
        self.seen: list[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Real values to real values on the grid."""
        if self.seen is not None:
            self.watch(x)
        if self.real or self.produced:
            return x
        return self.to_grid(x / self.unit(), torch.round(x.detach() / self.unit().detach()))

    def unit(self) -> Tensor:
        """Real value of one unit, positive, broadcastable to `[..., channels]`."""
        return self.scale.abs().clamp_min(1e-30)

    def to_grid(self, ideal: Tensor, exact: Tensor) -> Tensor:
        """Real values of the integers `exact` (clamped), with the gradient of `ideal`, both in units."""
        return substitute_clamped(ideal, exact, self.limit) * self.unit()

    def integers(self, x: Tensor) -> Tensor:
        """Units of a tensor that is on the grid, as whole numbers in floating point, differentiable in x."""
        unit = self.unit().detach()
        return substitute(x / unit, torch.round(x.detach() / unit))

    def watch(self, x: Tensor) -> None:
        """Keep what the calibration needs of x: its largest magnitude, and a regular sample."""
        flat = x.detach().abs().flatten().float()
        assert self.seen is not None
        self.seen.append(torch.cat([flat.max()[None], flat[:: max(1, len(flat) // _SAMPLES)]]))

    def set_scale(self, method: str) -> None:
        """Choose the scale from what was seen; unchanged if nothing was."""
        if self.seen:
            scale = find_scale(torch.cat(self.seen), self.limit, method, self.headroom)
            self.scale.data.copy_(_brief(torch.tensor(scale)))


class HeadQuantizer(ActivationQuantizer):
    """`ActivationQuantizer` of q or k, `[B, H, T, d]`, with a fixed `profile` of relative scales, `[H * d]`.

    The profiles of q and k are reciprocal, so each product q[i] * k[i] has the same unit and the device never sees
    them; they give every channel of both the same share of its int8 range.
    """

    def __init__(self, channels: int, limit: int = I8_LIMIT, *, learn: bool = False) -> None:
        super().__init__(limit, learn=learn)
        self.register_buffer("profile", torch.ones(channels))
        self.profile: Tensor

    def unit(self) -> Tensor:
        """Real value of one unit of each channel, `[H * d]`."""
        return super().unit() * self.profile

    def watch(self, x: Tensor) -> None:
        """Keep magnitudes by channel, `[tokens, H * d]`."""
        assert self.seen is not None
        self.seen.append(x.detach().abs().float().permute(0, 2, 1, 3).flatten(2).flatten(0, 1))

    def set_scale(self, method: str) -> None:
        """Done for q and k together: `balance`."""

    def balance(self, k: HeadQuantizer, largest: float, method: str) -> None:
        """Choose scales and profiles of q (self) and k from what both saw; `largest` bounds the product of scales."""
        if not self.seen or not k.seen:
            return
        seen_q, seen_k = torch.cat(self.seen), torch.cat(k.seen)
        peak_q, peak_k = (s.amax(0).clamp_min(1e-6 * float(s.max()) + 1e-30) for s in (seen_q, seen_k))
        profile = (peak_q / peak_k).sqrt()
        profile = _brief(profile / profile.log().mean().exp())
        self.profile.copy_(profile)
        k.profile.copy_(1 / profile)
        for quantizer, seen in ((self, seen_q), (k, seen_k)):
            values = (seen / quantizer.profile).flatten()
            values = torch.cat([values.max()[None], values[:: max(1, len(values) // _SAMPLES)]])
            quantizer.scale.data.copy_(_brief(torch.tensor(find_scale(values, quantizer.limit, method))))
        excess = float(self.scale * k.scale) / largest
        if excess > 1:
            self.scale.data /= excess**0.5 * (1 + 1e-6)
            k.scale.data /= excess**0.5 * (1 + 1e-6)


class TokenQuantizer(ActivationQuantizer):
    """Two steps for per-token scales: int16 with a static scale, then each row to int8 by its absmax.

    A row of the quantized tensor is `x * m / 127 * scale` with int8 `x` and the multiplier `m` (CONTRACT.md,
    section 8).
    """

    headroom = TOKEN_HEADROOM

    def __init__(self, *, learn: bool = False, produced: bool = True) -> None:
        super().__init__(I16_LIMIT, learn=learn, produced=produced)

    def to_grid(self, ideal: Tensor, exact: Tensor) -> Tensor:
        """Real values of int16 rows `exact` after they were quantized, with the gradient of `ideal`."""
        with torch.no_grad():
            x, m = quantize_rows(clamp(exact, self.limit))
            exact = x * m / I8_LIMIT
        return substitute(clamp(ideal, self.limit), exact) * self.unit()

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Int8 units (differentiable in x) and float64 multipliers `[..., 1]` of a tensor that is on the grid."""
        unit = self.unit().detach()
        m = torch.round(x.detach().double().abs().amax(-1, keepdim=True) / unit).clamp_min(1)
        scaled = x * (I8_LIMIT / (m * unit)).to(x.dtype)
        return substitute(scaled, torch.round(scaled.detach())), m


def _brief(scale: Tensor) -> Tensor:
    """Scales with 8 significant bits, up to 0.2 % away: they hardly ever depend on the order of a machine's sums."""
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp((mantissa * 256).round() / 256, exponent)


def find_scale(magnitudes: Tensor, limit: int, method: str, headroom: float = I16_HEADROOM) -> float:
    """The scale for a sample of magnitudes (the first values of which are maxima).

    int16 tensors take their largest value with headroom; int8 ones as `method` says (`QuantizationConfig`).
    """
    largest = float(magnitudes.max())
    if largest == 0:
        return 1.0 / limit
    if limit == I16_LIMIT:
        return largest * headroom / limit
    if method == "absmax":
        return largest / limit
    if method == "percentile":
        return max(float(magnitudes.double().quantile(_PERCENTILE)), largest * 1e-3) / limit
    candidates = torch.linspace(0.2, 1.0, 41) * (largest / limit)
    errors = [float(((magnitudes / s).round().clamp_max(limit) * s - magnitudes).square().mean()) for s in candidates]
    return float(candidates[int(torch.tensor(errors).argmin())])


class Shared(Quantizable):
    """A hook on a tensor that another quantizer's scale holds for: the residual stream, the second head.

    Args:
        saturate: clamp sums to the limit, as the residual additions do.
    """

    def __init__(self, *, saturate: bool) -> None:
        super().__init__()
        self.saturate = saturate
        self._target: tuple[ActivationQuantizer, ...] = ()

    def share(self, target: ActivationQuantizer) -> None:
        """Use this quantizer (a tuple keeps it from being registered, and saved, twice)."""
        self._target = (target,)

    def forward(self, x: Tensor) -> Tensor:
        """Real values to real values on the target's grid."""
        (target,) = self._target
        if target.seen is not None:
            target.watch(x)
        if self.real or not self.saturate:
            return x
        unit = target.unit()
        return target.to_grid(x / unit, torch.round(x.detach() / unit.detach()))


class PositionQuantizer(Quantizable):
    """int8 position embedding with an integer multiplier of the stream's unit (CONTRACT.md, section 4).

    The first `prefix` rows belong to prefix tokens; they stay real, for the stream rounds their sum.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self._stream: tuple[ActivationQuantizer, ...] = ()

    def connect(self, stream: ActivationQuantizer) -> None:
        """Say what quantizes the residual stream."""
        self._stream = (stream,)

    def integers(self, pos_embed: Tensor) -> tuple[Tensor, Tensor]:
        """int8 units of the patches' rows of `[1, rows, D]`, as whole numbers, and the multiplier."""
        from tvhil.quantization.grid import position_multiplier

        with torch.no_grad():
            patches = pos_embed[:, self.prefix :].double()
            unit = self._stream[0].unit().double()
            multiplier = position_multiplier(patches.abs().max(), unit)
            return clamp(torch.round(patches / (unit * multiplier)), I8_LIMIT), multiplier

    def forward(self, pos_embed: Tensor) -> Tensor:
        """Real values to real values on the grid."""
        if self.real:
            return pos_embed
        values, multiplier = self.integers(pos_embed)
        exact = (values * multiplier * self._stream[0].unit().double()).to(pos_embed.dtype)
        patches = substitute(pos_embed[:, self.prefix :], exact)
        return torch.cat([pos_embed[:, : self.prefix], patches], dim=1)
