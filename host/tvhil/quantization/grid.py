# SPDX-License-Identifier: Apache-2.0
"""The grid of numbers that device/CONTRACT.md can express: real scales to integer constants.

Every function takes numpy arrays or torch tensors (float64, of one kind) and returns the same kind, computed by the
same IEEE operations, so a model that trains in torch and a model that is converted see one grid. Nothing here
synchronizes with an accelerator. Integers come back as float64 holding whole numbers.
"""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import numpy as np

from tvhil.packing.format import LANE_LIMIT

# A numpy array or a torch tensor of float64.
Array = Any

GAIN_MAX = 127
SHIFT_MAX = 31
I8_LIMIT = 127
I16_LIMIT = 32767
PIXEL_MAX = 128
SUM_LIMIT = 4128  # sum of attention probabilities, CONTRACT.md section 6
Z_MIN = 127  # the smallest sum of attention probabilities: the largest of a row is at least 127 or their sum is
PER_TOKEN_UNIT = 2.0**19  # CONTRACT.md section 3: p drops 4 bits and the multiplier 15
# The largest g * 2^score_shift of section 6, so that exp_multiplier stays below 2^15.
SCORE_UNIT_MAX = 0.99996
# LayerNorm keeps A below its limit of 2^30 for every row whose standard deviation is at least this many stream units.
SIGMA_MIN = 1.0


def _module(x: Array) -> Any:
    """The module that x computes with: numpy, or torch if x is a tensor."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(x, torch.Tensor) else np


def _array(values: list[float], like: Array) -> Array:
    if _module(like) is np:
        return np.array(values, np.float64)
    return like.new_tensor(values)


def _powers(first: int, last: int, like: Array) -> Array:
    """2^first … 2^last, exact."""
    return _array([2.0**i for i in range(first, last + 1)], like)


def _pick(table: Array, index: Array) -> Array:
    """`table[index]` for whole numbers of any shape, without reading a number back from an accelerator."""
    if _module(table) is np:
        return np.take(table, index)
    return table.gather(0, index.long().reshape(-1)).reshape(index.shape)


def _double(x: Array) -> Array:
    return np.asarray(x, np.float64) if _module(x) is np else x.double()


def round_half_up(x: Array) -> Array:
    """Rounding to nearest as the contract does it: a floor with half a unit added."""
    return _module(x).floor(x + 0.5)


class ChannelGrid(NamedTuple):
    """Channel records of `[N]` rows; `sign` multiplies the trits (-1 flips a row, 0 empties it)."""

    sign: Array
    gain: Array
    shift: Array
    bias: Array


def gain_and_shift(scale: Array, bias: Array, nnz: Array, xmax: int, limit: int | Array = I16_LIMIT) -> ChannelGrid:
    """The channel records nearest to real scales and biases that the proof of CONTRACT.md, section 1, allows.

    Among all pairs whose rows cannot leave a 20-bit lane (`gain * xmax * nnz + |bias| < 2^19`), the gain and shift
    nearest to the scale; among equals the largest shift, which has the finest bias. A row that comes out nearer
    to nothing than to its best gain, and a row without trits, keeps its bias alone.

    Args:
        scale: `[N]`, output units a unit of the accumulator (section 2), or for per-token inputs
            `weight scale * input scale / (127 * output scale) * 2^19` (section 3). May be negative or zero.
        bias: `[N]` in output units.
        nnz: `[N]`, non-zero trits.
        xmax: the largest input magnitude, 127, or 128 for pixels.
        limit: clamp of the output, scalar or `[N]`. A bias that saturates every output is cut to where it still does.

    Returns:
        sign -1, 0 or 1; gain 1 … 127; shift 0 … 31; bias with the rounding half included.
    """
    xp = _module(scale)
    scale, bias, nnz = _double(scale), _double(bias), _double(nnz)
    magnitude, reach = abs(scale), xmax * nnz
    saturated = magnitude * reach + (limit + 1.0)
    bias = xp.minimum(xp.maximum(bias, -saturated), saturated)

    units = _powers(0, SHIFT_MAX, scale)
    unit = xp.flip(units, (0,))[:, None]  # the largest shift first: argmin takes the first of equals
    room = LANE_LIMIT - 1 - abs(_bias_integer(bias, unit))
    gain = xp.minimum(xp.round(magnitude * unit), xp.floor(room / xp.clip(reach, 1, None)))
    gain = xp.clip(gain, None, GAIN_MAX)
    error = abs(gain / unit - magnitude)
    error = xp.where(gain >= 1, error, _array([math.inf], scale))
    best = xp.argmin(error, 0)
    rows = _indices(scale)
    kept = (error[best, rows] < magnitude) & (nnz > 0)
    shift = xp.where(kept, SHIFT_MAX - best, 0)
    gain = xp.where(kept, gain[best, rows], _array([1.0], scale))
    sign = xp.where(kept, xp.sign(scale), _array([0.0], scale))
    # Without trits the output is the rounded bias, whatever the shift.
    cut = xp.minimum(xp.maximum(bias, _double(0 * bias - limit)), _double(0 * bias + limit))
    bias = _bias_integer(xp.where(kept, bias, cut), _pick(units, shift))
    return ChannelGrid(sign, gain, _double(shift), bias)


def _bias_integer(bias: Array, unit: Array) -> Array:
    """The bias in units of 2^-shift, with the half that makes the shift round; `unit` is 2^shift."""
    return round_half_up(bias * unit) + _module(unit).floor(unit / 2)


def _indices(x: Array) -> Array:
    return np.arange(len(x)) if _module(x) is np else _module(x).arange(len(x), device=x.device)


class LayerNormGrid(NamedTuple):
    """Constants of CONTRACT.md, section 5, as scalars."""

    c: Array
    beta_unit: Array
    epsilon: Array
    shift: Array


def layernorm_constants(
    gamma_scale: Array, beta_scale: Array, stream_scale: Array, out_scale: Array, channels: int, eps: float
) -> LayerNormGrid:
    """Constants of a ternary LayerNorm.

    The shift is the largest that keeps `u` within its range and A below its limit for rows with a standard deviation
    of `SIGMA_MIN` stream units or more.

    Args:
        gamma_scale, beta_scale: real value of a trit of gamma and beta.
        stream_scale: real value of a unit of the input.
        out_scale: real value of a unit of the output.
        channels: `N`.
        eps: of the real LayerNorm.
    """
    xp = _module(stream_scale)
    ratio, beta_ratio = abs(_double(gamma_scale / out_scale)), _double(beta_scale / out_scale)
    powers = _powers(1, 24, ratio)
    # One unit of slack for the roundings of C and beta_unit and for the packer's integer arithmetic.
    root = math.isqrt(channels - 1) + 1
    in_range = (root * ratio + abs(beta_ratio) + 1) * powers + root + 2 < 2.0**30
    precise = ratio * 2.0**15 * powers <= (2.0**30 - 1) * SIGMA_MIN
    shift = xp.clip((in_range & precise).sum(), 1, None)
    unit = _pick(powers, shift - 1)
    return LayerNormGrid(
        c=xp.clip(xp.round(ratio * 2.0**15 * unit * channels), 1, None),
        beta_unit=xp.round(beta_ratio * unit),
        epsilon=xp.clip(xp.round(eps * (channels / _double(stream_scale)) ** 2), 1, 2.0**53),
        shift=_double(shift),
    )


class AttentionGrid(NamedTuple):
    """Constants of CONTRACT.md, section 6, as scalars."""

    score_shift: Array
    exp_multiplier: Array
    out_multiplier: Array
    out_shift: Array


def max_score_scale(head_dim: int) -> float:
    """The largest product of the scales of q and k whose scores the contract expresses."""
    return SCORE_UNIT_MAX * math.sqrt(head_dim) / (1024 * math.log2(math.e))


def attention_constants(score_scale: Array, v_scale: Array, out_scale: Array, head_dim: int) -> AttentionGrid:
    """Constants of the attention.

    Args:
        score_scale: scale of q times scale of k, at most `max_score_scale(head_dim)`.
        v_scale, out_scale: real value of a unit of v and of the output.
        head_dim: `h`.
    """
    xp = _module(score_scale)
    g = _double(score_scale) * (1024 * math.log2(math.e) / math.sqrt(head_dim))
    powers = _powers(0, 15, g)
    score_shift = xp.clip((g * powers <= SCORE_UNIT_MAX).sum() - 1, 0, None)
    exp_multiplier = xp.clip(xp.round(g * _pick(powers, score_shift) * 2.0**15), 1, I16_LIMIT)
    ratio = 16 * _double(v_scale) / _double(out_scale)
    powers = _powers(1, 24, g)
    out_shift = xp.clip((xp.round(ratio * powers) <= Z_MIN * I16_LIMIT).sum(), 1, None)
    out_multiplier = xp.clip(xp.round(ratio * _pick(powers, out_shift - 1)), 1, 2.0**28 - 1)
    return AttentionGrid(_double(score_shift), exp_multiplier, out_multiplier, _double(out_shift))


def q_limit(head_dim: int) -> int:
    """The clamp of q that keeps its products with k in 20-bit lanes (CONTRACT.md, section 6)."""
    return min(I8_LIMIT, (LANE_LIMIT - 1) // (I8_LIMIT * head_dim))


def gelu_table(in_scale: Array, out_scale: Array, limit: int) -> Array:
    """GELU (the exact one, with erf) on the int8 grid: `[256]`, entry `y + 128` for y in -127 … 127, entry 0 is 0.

    Args:
        in_scale: real value of a unit of y.
        out_scale: real value of a unit of the table.
        limit: 127, or 32767 for per-token scales.
    """
    xp = _module(in_scale)
    y = _array([0.0, *range(-127, 128)], in_scale) * _double(in_scale)
    erf = _array([math.erf(v) for v in (y / math.sqrt(2)).tolist()], y) if xp is np else xp.special.erf(y / 2**0.5)
    gelu = y * 0.5 * (1 + erf)
    return xp.clip(round_half_up(gelu / _double(out_scale)), -limit, limit)


def position_multiplier(largest: Array, stream_scale: Array) -> Array:
    """The multiplier 1 … 255 of an int8 position embedding of a given largest magnitude (CONTRACT.md, section 4)."""
    xp = _module(largest)
    return xp.clip(xp.ceil(_double(largest) / (I8_LIMIT * _double(stream_scale))), 1, 255)
