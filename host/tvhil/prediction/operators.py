# SPDX-License-Identifier: Apache-2.0
"""The operators of device/CONTRACT.md in numpy, batched, exact.

Matrix products run in float32: every partial sum is an integer below 2^24 in magnitude, so BLAS may add in any
order and the result is exact. Shapes: `B` images, `T` tokens, `D` width, `K` inputs, `N` outputs, `H` heads, `h` head
dimension. int8 and int16 activations are kept in their own types between operators.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

A_MAX = (1 << 30) - 1
R_MAX = 4079
SUM_LIMIT = 4128


def clamp(values: Array, limit: int) -> Array:
    """Limit to `[-limit, limit]`."""
    return np.clip(values, -limit, limit)


class LinearKernel:
    """Linear operators, sections 2 to 4: weights prepared once, then `accumulate` and an epilogue.

    Args:
        trits: int8 `[N][K]`.
        gain, shift, bias: `[N]`.
    """

    def __init__(self, trits: Array, gain: Array, shift: Array, bias: Array) -> None:
        self.weights = np.ascontiguousarray((trits * gain[:, None].astype(np.int32)).T.astype(np.float32))
        self.bias = bias.astype(np.float32)
        self.scale = np.ldexp(np.float32(1), -shift.astype(np.int32)).astype(np.float32)
        self.bias_int, self.shift = bias.astype(np.int32), shift.astype(np.int32)

    def static(self, x: Array, limit: int) -> Array:
        """`clamp((gain * acc + bias) >> shift, limit)` as float32 integers; x: `[…][K]`."""
        y = x.astype(np.float32) @ self.weights
        y += self.bias
        y *= self.scale
        np.floor(y, out=y)
        return np.clip(y, -limit, limit, out=y)

    def per_token(self, x: Array, multiplier: Array, limit: int) -> Array:
        """Section 3: `clamp(((((gain * acc) >> 4) * m >> 15) + bias) >> shift, limit)`; multiplier: `[…]`."""
        acc = (x.astype(np.float32) @ self.weights).astype(np.int32)
        y = (((acc >> 4) * multiplier[..., None].astype(np.int32)) >> 15) + self.bias_int
        return clamp(y >> self.shift, limit)


def image_to_patches(images: Array, patch: int) -> Array:
    """uint8 `[B][H][W][C]` to `pixel - 128` as float32 `[B][patches][P*P*C]` in the order `[py][px][c]`."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, (h // patch) * (w // patch), patch * patch * c).astype(np.float32) - 128


def isqrt(v: Array) -> Array:
    """The largest integer whose square is at most v, for 0 <= v < 2^62."""
    root: Array = np.sqrt(v.astype(np.float64)).astype(np.int64)
    root -= root * root > v
    root += (root + 1) * (root + 1) <= v
    return root


def layernorm(
    x: Array, gamma: Array, beta: Array, c: int, beta_unit: int, epsilon: int, shift: int, limit: int
) -> Array:
    """Section 5; x: int16 `[…][N]`, gamma and beta: trits `[N]`; int64 result in `[-limit, limit]`."""
    n = x.shape[-1]
    x = x.astype(np.int64)
    s1 = x.sum(-1, keepdims=True)
    v = n * np.einsum("...i,...i->...", x, x)[..., None] - s1 * s1 + epsilon
    a = np.minimum(c // isqrt(v), A_MAX)
    u = (x * a - s1 * a // n) >> 15
    return clamp((gamma * u + (beta * beta_unit + (1 << (shift - 1)))) >> shift, limit)


def exp2_q14(t: Array) -> Array:
    """Section 7: about `2^14 * 2^(-t / 1024)` for integers `0 <= t <= 32767`."""
    t = t.astype(np.int32)
    f = (t & 1023) << 5
    h = 3803 + ((f * -661) >> 15)
    h = -11334 + ((f * h) >> 15)
    h = 16384 + ((f * h) >> 15)
    return h >> (t >> 10)


EXP2_Q14 = exp2_q14(np.arange(32768)).astype(np.int32)


def softmax_probabilities(scores: Array, score_shift: int, exp_multiplier: int) -> Array:
    """Section 6 up to `p`: integer scores `[…][T]` (exact in float32 or int) to int32 0 … 127."""
    tokens = scores.shape[-1]
    a = clamp(scores.astype(np.int32) >> score_shift, 32767)
    t = (np.minimum(a.max(-1, keepdims=True) - a, 32767) * exp_multiplier) >> 15
    e: Array = EXP2_Q14[t]
    total = e.sum(-1, keepdims=True, dtype=np.int64)
    target = SUM_LIMIT - (tokens + 1) // 2
    r = np.minimum((target << 19) // total, R_MAX).astype(np.int32)
    delta = (1 << 18) // r
    p: Array = ((e + delta) * r) >> 19
    return p


def attention(
    q: Array, k: Array, v: Array, heads: int, score_shift: int, exp_multiplier: int, out_multiplier: int,
    out_shift: int, limit: int,
) -> Array:  # fmt: skip
    """Section 6; q, k, v: int8 `[B][T][D]`; int32 result `[B][T][D]` in `[-limit, limit]`."""
    b, tokens, d = q.shape
    split = [x.astype(np.float32).reshape(b, tokens, heads, d // heads).transpose(0, 2, 1, 3) for x in (q, k, v)]
    p = softmax_probabilities(split[0] @ split[1].transpose(0, 1, 3, 2), score_shift, exp_multiplier)
    z = p.sum(-1, keepdims=True)
    acc = (p.astype(np.float32) @ split[2]).astype(np.int32)
    w = np.minimum((out_multiplier + z // 2) // z, 32767).astype(np.int32)
    o = clamp(((acc >> 4) * w + (1 << (out_shift - 1))) >> out_shift, limit)
    return o.transpose(0, 2, 1, 3).reshape(b, tokens, d)


def quantize_rows(g: Array) -> tuple[Array, Array]:
    """Section 8: int16 rows `[…][N]` to int8 rows and their u16 multipliers `[…]`."""
    g = g.astype(np.int64)
    m = np.maximum(np.abs(g).max(-1), 1)
    r = (127 << 20) // m
    x = (g * r[..., None] + (1 << 19)) >> 20
    return x.astype(np.int8), m.astype(np.uint16)


def mean_pool(x: Array) -> Array:
    """Section 9: int16 `[…][T][N]` to int16 `[…][1][N]`."""
    count = x.shape[-2]
    return clamp((x.sum(-2, keepdims=True, dtype=np.int64) + (count >> 1)) // count, 32767).astype(np.int16)
