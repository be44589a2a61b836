# SPDX-License-Identifier: Apache-2.0
"""Ternary layers that train: forward the integers of device/CONTRACT.md, backward straight-through gradients.

Between layers travel real values on the grids of the activation quantizers; inside, each layer reads the integers
off, computes as the device does, and multiplies by its output's scale. Matrix products are exact in float32 (and in
TF32), since every partial sum is below 2^19 and every factor below 2^8.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple, ParamSpec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvhil.errors import UsageError
from tvhil.models.config import Preprocessing
from tvhil.packing.format import LANE_LIMIT
from tvhil.quantization import integer_ops
from tvhil.quantization.activations import ActivationQuantizer, HeadQuantizer, Quantizable, TokenQuantizer
from tvhil.quantization.config import QuantizationConfig
from tvhil.quantization.grid import (
    GAIN_MAX,
    I8_LIMIT,
    I16_LIMIT,
    PER_TOKEN_UNIT,
    PIXEL_MAX,
    AttentionGrid,
    ChannelGrid,
    LayerNormGrid,
    attention_constants,
    gain_and_shift,
    gelu_table,
    layernorm_constants,
    round_half_up,
)
from tvhil.quantization.ternarizers import (
    LearnedTernary,
    make_quantizer,
    straight_through,
    substitute,
    substitute_clamped,
    ternarizer,
)

P = ParamSpec("P")


def full_precision(forward: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Keep mixed precision out of a forward pass in integers: bfloat16 cannot hold their sums. TF32 can stay on."""

    @wraps(forward)
    def exact(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensors = [a for a in args if isinstance(a, Tensor)]
        real = isinstance(args[0], Quantizable) and args[0].real
        if real or not torch.is_autocast_enabled(tensors[0].device.type):
            return forward(*args, **kwargs)
        with torch.autocast(tensors[0].device.type, enabled=False):
            return forward(*(a.float() if isinstance(a, Tensor) else a for a in args), **kwargs)  # type: ignore[arg-type]

    return exact


class LinearIntegers(NamedTuple):
    """Trits `[N][K]` with their signs applied, and the channel records."""

    trits: Tensor
    grid: ChannelGrid


class FoldedLayerScale(nn.Module):
    """LayerScale whose gamma the linear layer before it multiplies into its scales and biases."""

    def __init__(self, channels: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        """The input, unchanged."""
        return x


class TernaryLinear(Quantizable):
    """A linear layer with ternary weights, a scale and a bias for each output channel (CONTRACT.md, sections 2, 3).

    `weight` and `bias` are the latent real parameters, by timm's names. `connect` tells which quantizers hold the
    scales of its input and of its output (several for qkv, whose channels they share out in order).
    """

    xmax = I8_LIMIT

    def __init__(self, in_features: int, out_features: int, config: QuantizationConfig, *, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.config = in_features, out_features, config
        _check_width(in_features, self.xmax)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.trunc_normal_(self.weight, std=0.02)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.rule = make_quantizer(config.ternarizer, out_features)
        self._input: tuple[ActivationQuantizer, ...] = ()
        self._outputs: tuple[ActivationQuantizer, ...] = ()
        self._layer_scale: tuple[FoldedLayerScale, ...] = ()

    def connect(
        self,
        source: ActivationQuantizer | None,
        outputs: tuple[ActivationQuantizer, ...],
        layer_scale: nn.Module | None = None,
    ) -> None:
        """Say what quantizes the input (None: it is an image) and the outputs, and what LayerScale follows."""
        self._input = () if source is None else (source,)
        self._outputs = outputs
        self._layer_scale = (layer_scale,) if isinstance(layer_scale, FoldedLayerScale) else ()

    def matrix(self) -> Tensor:
        """The latent weights as `[N][K]`."""
        return self.weight

    def start_rule(self) -> None:
        """Give a learned rule its first threshold and scale, from the weights."""
        if isinstance(self.rule, LearnedTernary):
            self.rule.start_from(self.matrix())

    def latent_bias(self, weight: Tensor) -> Tensor | None:  # noqa: ARG002
        """The real bias of the effective weights, before LayerScale."""
        return self.bias

    def effective(self) -> tuple[Tensor, Tensor | None]:
        """Real values of the ternary weights and of the bias, LayerScale included; differentiable."""
        weight = straight_through(self.matrix(), self.rule, clipped=self.config.clipped)
        bias = self.latent_bias(weight)
        for layer in self._layer_scale:
            weight = weight * layer.gamma[:, None]
            bias = None if bias is None else bias * layer.gamma
        return weight, bias

    def output_units(self) -> tuple[Tensor, Tensor]:
        """Scale and clamp of each output channel, both `[N]`; the scale is differentiable."""
        size = self.out_features // len(self._outputs)
        units = torch.cat([q.unit().expand(size) for q in self._outputs])
        limits = torch.cat([units.new_full((size,), q.limit) for q in self._outputs])
        return units, limits

    def input_unit(self) -> Tensor:
        """Real value of one unit of the input (per token: of a unit times a multiplier of 2^19)."""
        (source,) = self._input
        unit = source.unit().detach()
        return unit * (PER_TOKEN_UNIT / I8_LIMIT) if isinstance(source, TokenQuantizer) else unit

    def wide_outputs(self) -> list[ActivationQuantizer]:
        """The int16 ones of its output quantizers."""
        return [q for q in self._outputs if q.limit == I16_LIMIT]

    @torch.no_grad()
    def smallest_unit(self) -> float:
        """The smallest output unit for which every row's scale has a gain that fits its accumulator."""
        weight, _ = self.effective()
        reach = (weight != 0).sum(1) * self.xmax
        gain = torch.floor((LANE_LIMIT - I16_LIMIT) / reach.clamp_min(1)).clamp(1, GAIN_MAX)
        return float((weight.abs().amax(1) * self.input_unit() / gain).max())

    @torch.no_grad()
    def integers(self) -> LinearIntegers:
        """What the device gets."""
        trits, scale = self.rule(self.matrix())
        bias = self.latent_bias(trits * scale[:, None])
        if bias is None:
            bias = torch.zeros_like(scale)
        for layer in self._layer_scale:
            scale, bias = scale * layer.gamma, bias * layer.gamma
        units, limits = self.output_units()
        grid = gain_and_shift(
            scale.double() * self.input_unit().double() / units.double(),
            bias.double() / units.double(),
            (trits != 0).sum(1),
            self.xmax,
            limits.double(),
        )
        return LinearIntegers(trits * grid.sign[:, None].to(trits.dtype), grid)

    @full_precision
    def forward(self, x: Tensor) -> Tensor:
        """Real values `[..., K]` on the input's grid to real values `[..., N]` on the output's."""
        weight, bias = self.effective()
        if self.real:
            return F.linear(x, weight, bias)
        units, limits = self.output_units()
        if not self.config.grid:
            y = F.linear(x, weight, bias) / units
            return substitute_clamped(y, round_half_up(y.detach()), limits) * units
        trits, grid = self.integers()
        power = torch.exp2(grid.shift).round().to(x.dtype)  # 2^shift
        to_units = power / units
        ideal = weight * (to_units * self.input_unit())[:, None]
        weight = substitute(ideal, trits * grid.gain.to(x.dtype)[:, None])
        ideal = torch.zeros_like(units) if bias is None else bias * to_units
        bias = substitute(ideal, grid.bias)
        y = self.accumulate(x, weight, bias) / power
        return substitute_clamped(y, torch.floor(y.detach()), limits) * units

    def accumulate(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Gain times accumulator, rescaled by the row's multiplier for per-token inputs, plus bias."""
        (source,) = self._input
        if not isinstance(source, TokenQuantizer):
            return F.linear(source.integers(x), weight, bias)
        x, m = source.rows(x)
        acc = F.linear(x, weight)
        with torch.no_grad():
            exact = torch.floor(torch.floor(acc.double() / 16) * m / 2**15)
        return substitute(acc * (m / PER_TOKEN_UNIT).to(acc.dtype), exact) + bias


class TernaryConv2d(TernaryLinear):
    """The patch embedding: a convolution whose stride is its kernel, with ternary weights (CONTRACT.md, section 4).

    Takes normalized images `[B, C, S, S]`, goes back to `pixel - 128`, and computes on that. Mean and standard
    deviation are folded into weights and bias, so that the weights are ternarized as the device applies them.
    """

    xmax = PIXEL_MAX

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: QuantizationConfig,
        preprocessing: Preprocessing,
        *,
        kernel_size: int,
    ) -> None:
        super().__init__(in_channels * kernel_size**2, out_channels, config)
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(self.weight.detach().view(out_channels, in_channels, kernel_size, kernel_size))
        self.register_buffer("mean", torch.tensor(preprocessing.mean) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std) * 255, persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def matrix(self) -> Tensor:
        """Weights of `pixel - 128`, `[N][P * P * C]` in the order [py][px][c]."""
        return (self.weight.permute(0, 2, 3, 1) / self.std).flatten(1)

    def latent_bias(self, weight: Tensor) -> Tensor:
        """The bias for `pixel - 128`: what the ternary weights make of the mean pixel moves into it."""
        assert self.bias is not None
        mean_pixel = (PIXEL_MAX - self.mean).repeat(self.kernel_size**2)
        return self.bias + (weight * mean_pixel).sum(1)

    def input_unit(self) -> Tensor:
        """Pixels are integers."""
        return self.std.new_ones(())

    def patches(self, images: Tensor) -> Tensor:
        """Normalized images `[B, C, S, S]` to `pixel - 128`, `[B, S / P, S / P, K]`."""
        p = self.kernel_size
        pixels = (images.permute(0, 2, 3, 1) * self.std + self.mean).round().clamp(0, 255) - PIXEL_MAX
        b, h, w, c = pixels.shape
        pixels = pixels[:, : h // p * p, : w // p * p].reshape(b, h // p, p, w // p, p, c)
        return pixels.permute(0, 1, 3, 2, 4, 5).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images `[B, C, S, S]` to real values `[B, N, S / P, S / P]`."""
        return super().forward(self.patches(x)).permute(0, 3, 1, 2)

    def accumulate(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Gain times accumulator plus bias; the input is integers already."""
        return F.linear(x, weight, bias)


class LayerNormIntegers(NamedTuple):
    """Trits of gamma and beta `[N]`, and the constants."""

    gamma: Tensor
    beta: Tensor
    grid: LayerNormGrid


class TernaryLayerNorm(Quantizable):
    """Layer normalization with ternary gamma and beta, one scale for each vector (CONTRACT.md, section 5)."""

    def __init__(self, channels: int, config: QuantizationConfig, *, eps: float) -> None:
        super().__init__()
        self.channels, self.eps, self.config = channels, eps, config
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        # A vector is one row, whatever the matrices have; learned thresholds are for matrices.
        self._rule = ternarizer("twn" if config.learned else config.ternarizer)
        self._stream: tuple[ActivationQuantizer, ...] = ()
        self._output: tuple[ActivationQuantizer, ...] = ()

    def connect(self, stream: ActivationQuantizer, output: ActivationQuantizer) -> None:
        """Say what quantizes the input and the output."""
        self._stream, self._output = (stream,), (output,)

    @torch.no_grad()
    def integers(self) -> LayerNormIntegers:
        """What the device gets."""
        gamma, beta = self._rule(self.weight[None]), self._rule(self.bias[None])
        grid = layernorm_constants(
            gamma.scale[0], beta.scale[0], self._stream[0].unit(), self._output[0].unit(), self.channels, self.eps
        )
        return LayerNormIntegers(gamma.trits[0], beta.trits[0], grid)

    def forward(self, x: Tensor) -> Tensor:
        """Real values `[..., N]` on the stream's grid to real values on the output's."""
        gamma, beta = (
            straight_through(v[None], self._rule, clipped=self.config.clipped)[0] for v in (self.weight, self.bias)
        )
        ideal: Tensor = F.layer_norm(x, (self.channels,), gamma, beta, self.eps)
        if self.real:
            return ideal
        (stream,), (output,) = self._stream, self._output
        with torch.no_grad():
            exact = integer_ops.layernorm(stream.integers(x), *self.integers(), output.limit)
        return output.to_grid(ideal / output.unit(), exact)


class TableGelu(Quantizable):
    """GELU as a table over int8 (CONTRACT.md, section 2)."""

    def __init__(self) -> None:
        super().__init__()
        self._input: tuple[ActivationQuantizer, ...] = ()
        self._output: tuple[ActivationQuantizer, ...] = ()

    def connect(self, source: ActivationQuantizer, output: ActivationQuantizer) -> None:
        """Say what quantizes the input and the output."""
        self._input, self._output = (source,), (output,)

    @torch.no_grad()
    def table(self) -> Tensor:
        """The 256 entries, float64 whole numbers."""
        (source,), (output,) = self._input, self._output
        table: Tensor = gelu_table(source.unit().double(), output.unit().double(), output.limit)
        return table

    def forward(self, x: Tensor) -> Tensor:
        """Real values on the input's grid to real values on the output's."""
        ideal: Tensor = F.gelu(x)
        if self.real:
            return ideal
        (source,), (output,) = self._input, self._output
        with torch.no_grad():
            exact = self.table()[source.integers(x).long() + 128]
        return output.to_grid(ideal / output.unit(), exact)


class IntegerAttentionCore(Quantizable):
    """Scores, softmax and context as CONTRACT.md, section 6, has them; gradients are those of the real softmax."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self._qkv: tuple[HeadQuantizer, HeadQuantizer, ActivationQuantizer] | None = None
        self._output: tuple[ActivationQuantizer, ...] = ()

    def connect(self, q: HeadQuantizer, k: HeadQuantizer, v: ActivationQuantizer, output: ActivationQuantizer) -> None:
        """Say what quantizes the inputs and the output."""
        self._qkv, self._output = (q, k, v), (output,)

    def score_scale(self) -> Tensor:
        """Scale of q times scale of k, the profiles cancel."""
        assert self._qkv is not None
        q, k, _ = self._qkv
        return ActivationQuantizer.unit(q) * ActivationQuantizer.unit(k)

    @torch.no_grad()
    def integers(self) -> AttentionGrid:
        """What the device gets."""
        assert self._qkv is not None
        v, (output,) = self._qkv[2], self._output
        return attention_constants(self.score_scale(), v.unit(), output.unit(), self.head_dim)

    @full_precision
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Real values `[B, H, T, d]` each to the context `[B, H, T, d]`; on their grids unless in real arithmetic."""
        if self.real:
            real: Tensor = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1) @ v
            return real
        assert self._qkv is not None
        (output,), grid = self._output, self.integers()
        qi, ki = (self._head_integers(x, quantizer) for x, quantizer in zip((q, k), self._qkv[:2], strict=True))
        vi = self._qkv[2].integers(v)
        scores = qi @ ki.transpose(-2, -1)
        with torch.no_grad():
            p = integer_ops.probabilities(scores, grid)
            z = p.sum(-1, keepdim=True, dtype=torch.int32)
        if torch.is_grad_enabled() and scores.requires_grad:
            ideal = (scores * (self.score_scale() * self.head_dim**-0.5)).softmax(-1) * z
            c = substitute(ideal, p) @ vi
        else:
            c = p.to(vi.dtype) @ vi
        with torch.no_grad():
            exact = integer_ops.context(c, z, grid, output.limit)
        unit = output.unit()
        ideal = c * (self._qkv[2].unit() / (z * unit))
        if isinstance(output, TokenQuantizer):  # rows are whole tokens, all heads
            ideal, exact = (x.transpose(1, 2).flatten(2) for x in (ideal, exact))
            merged = output.to_grid(ideal, exact)
            return merged.view(*merged.shape[:2], *q.shape[1::2]).transpose(1, 2)
        return output.to_grid(ideal, exact)

    def _head_integers(self, x: Tensor, quantizer: HeadQuantizer) -> Tensor:
        unit = quantizer.unit().detach().view(x.shape[1], 1, -1)
        return substitute(x / unit, torch.round(x.detach() / unit))


class IntegerMeanPool(Quantizable):
    """The mean of tokens on the stream's grid (CONTRACT.md, section 9)."""

    def __init__(self) -> None:
        super().__init__()
        self._stream: tuple[ActivationQuantizer, ...] = ()

    def connect(self, stream: ActivationQuantizer) -> None:
        """Say what quantizes the residual stream."""
        self._stream = (stream,)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, D]`."""
        ideal = x.mean(dim=1)
        if self.real:
            return ideal
        (stream,) = self._stream
        with torch.no_grad():
            total, count = stream.integers(x).double().sum(1), x.shape[1]
            exact = torch.div(total + (count >> 1), count, rounding_mode="floor")
        return stream.to_grid(ideal / stream.unit(), exact)


def _check_width(inputs: int, xmax: int) -> None:
    """Refuse a layer so wide that a row of trits alone could leave its 20-bit accumulator."""
    if inputs * xmax >= LANE_LIMIT:
        most = (LANE_LIMIT - 1) // xmax
        raise UsageError(f"a ternary row of {inputs} inputs does not fit a 20-bit accumulator; at most {most} do")
