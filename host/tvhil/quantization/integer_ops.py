# SPDX-License-Identifier: Apache-2.0
"""The integer arithmetic of device/CONTRACT.md on torch tensors: what the fake-quantized layers compute forward.

Integers travel as whole numbers in floating point wherever that is exact, because training needs them there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tvhil.quantization.grid import I16_LIMIT, SUM_LIMIT, AttentionGrid, LayerNormGrid


def clamp(x: Tensor, limit: int | Tensor) -> Tensor:
    """Limit to `[-limit, limit]`."""
    if isinstance(limit, Tensor):
        return torch.minimum(torch.maximum(x, -limit), limit)
    return x.clamp(-limit, limit)


def isqrt(v: Tensor) -> Tensor:
    """The largest integer whose square is at most v; int64, 0 <= v < 2^62."""
    root = v.double().sqrt().long()
    root = root - (root * root > v).long()
    return root + ((root + 1) * (root + 1) <= v).long()


def layernorm(x: Tensor, gamma: Tensor, beta: Tensor, grid: LayerNormGrid, limit: int) -> Tensor:
    """Section 5: whole numbers `[..., N]` in int16 range to float64 whole numbers in `[-limit, limit]`.

    The products with A stay below 2^45, so float64 holds them exactly; the sums of a row are int64.
    """
    channels = x.shape[-1]
    x = x.double()
    s1 = x.sum(-1, keepdim=True).long()
    s2 = (x * x).sum(-1, keepdim=True).long()  # below 2^42
    v = channels * s2 - s1 * s1 + grid.epsilon.long()
    a = torch.div(grid.c.long(), isqrt(v), rounding_mode="floor").clamp_max(2**30 - 1)
    b = torch.div(s1 * a, channels, rounding_mode="floor")
    u = torch.floor((x * a.double() - b.double()) * 2.0**-15)
    unit = torch.exp2(grid.shift).round()
    return clamp(torch.floor((gamma.double() * u + (beta.double() * grid.beta_unit + unit / 2)) / unit), limit)


def exp2_q14(t: Tensor) -> Tensor:
    """Section 7: about `2^14 * 2^(-t / 1024)` for int32 `0 <= t <= 32767`."""
    f = (t & 1023) << 5
    h = 3803 + ((f * -661) >> 15)
    h = -11334 + ((f * h) >> 15)
    h = 16384 + ((f * h) >> 15)
    return h >> (t >> 10)


def probabilities(scores: Tensor, grid: AttentionGrid) -> Tensor:
    """Section 6 up to `p`: whole-number scores `[..., T]` to int32 0 … 127."""
    a = clamp(scores.int() >> grid.score_shift.int(), I16_LIMIT)
    t = ((a.amax(-1, keepdim=True) - a).clamp_max(I16_LIMIT) * grid.exp_multiplier.int()) >> 15
    e = exp2_q14(t)
    target = SUM_LIMIT - (scores.shape[-1] + 1) // 2
    r = torch.div(target << 19, e.sum(-1, keepdim=True, dtype=torch.int64), rounding_mode="floor")
    r = r.clamp_max(4079).int()
    delta = torch.div(1 << 18, r, rounding_mode="floor")
    return ((e + delta) * r) >> 19


def context(c: Tensor, z: Tensor, grid: AttentionGrid, limit: int) -> Tensor:
    """Section 6 from `c`: whole numbers `[..., T, h]` and the sums `z` int32 `[..., T, 1]` to int32."""
    z = z.long()
    w = torch.div(grid.out_multiplier.long() + torch.div(z, 2, rounding_mode="floor"), z, rounding_mode="floor")
    w = w.clamp_max(I16_LIMIT).int()
    half = torch.exp2(grid.out_shift - 1).round().int()
    return clamp(((c.int() >> 4) * w + half) >> grid.out_shift.int(), limit)


def quantize_rows(g: Tensor) -> tuple[Tensor, Tensor]:
    """Section 8: whole numbers `[..., N]` in int16 range to `x` (same shape) and `m` `[..., 1]`, both float64."""
    g = g.long()
    m = g.abs().amax(-1, keepdim=True).clamp_min(1)
    x = (g * torch.div(127 << 20, m, rounding_mode="floor") + (1 << 19)) >> 20
    return x.double(), m.double()
