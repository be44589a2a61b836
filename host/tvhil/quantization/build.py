# SPDX-License-Identifier: Apache-2.0
"""Build a fake-quantized `VisionTransformer`: ternary layers and quantizers in the model's hooks, then wired up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import nn

from tvhil.models.config import ViTConfig
from tvhil.models.vision_transformer import Attention, Block, Layers, VisionTransformer
from tvhil.quantization.activations import (
    ActivationQuantizer,
    HeadQuantizer,
    PositionQuantizer,
    Shared,
    TokenQuantizer,
)
from tvhil.quantization.config import QuantizationConfig
from tvhil.quantization.grid import I8_LIMIT, I16_LIMIT, q_limit
from tvhil.quantization.layers import (
    FoldedLayerScale,
    IntegerAttentionCore,
    IntegerMeanPool,
    TableGelu,
    TernaryConv2d,
    TernaryLayerNorm,
    TernaryLinear,
)

# Inputs of linear layers: quantized per token in the second scale mode.
_LINEAR_INPUTS = ("norm1", "norm2", "norm", "fc_norm", "context", "gelu")


@dataclass(frozen=True)
class _Factory:
    """Makes the layers that `Layers` asks for."""

    model: ViTConfig
    quantization: QuantizationConfig

    def layers(self) -> Layers:
        return Layers(
            linear=self.linear,
            conv=self.conv,
            norm=self.norm,
            softmax=lambda _: nn.Identity(),
            gelu=lambda _: TableGelu(),
            activation=self.activation,
            attention=lambda _name, _heads, head_dim: IntegerAttentionCore(head_dim),
            layer_scale=lambda _name, channels, init: FoldedLayerScale(channels, init),
            pool=lambda _: IntegerMeanPool(),
        )

    def linear(self, name: str, in_features: int, out_features: int, *, bias: bool) -> nn.Module:
        if name in ("head", "head_dist") and "head" in self.quantization.full_precision:
            return nn.Linear(in_features, out_features, bias=bias)
        return TernaryLinear(in_features, out_features, self.quantization, bias=bias)

    def conv(self, name: str, in_channels: int, out_channels: int, *, kernel_size: int) -> nn.Module:  # noqa: ARG002
        if "patch_embed" in self.quantization.full_precision:
            return nn.Conv2d(in_channels, out_channels, kernel_size, stride=kernel_size)
        return TernaryConv2d(
            in_channels, out_channels, self.quantization, self.model.preprocessing, kernel_size=kernel_size
        )

    def norm(self, name: str, channels: int, *, eps: float) -> nn.Module:  # noqa: ARG002
        if "norm" in self.quantization.full_precision:
            return nn.LayerNorm(channels, eps=eps)
        return TernaryLayerNorm(channels, self.quantization, eps=eps)

    def activation(self, name: str, channels: int) -> nn.Module:
        learn, last = self.quantization.learn_scales, name.rpartition(".")[2]
        if last in _LINEAR_INPUTS:
            # A real LayerNorm leaves its output to the quantizer.
            produced = "norm" not in last or "norm" not in self.quantization.full_precision
            if self.quantization.per_token:
                return TokenQuantizer(learn=learn, produced=produced)
            return ActivationQuantizer(learn=learn, produced=produced)
        if last in ("q", "k"):
            limit = q_limit(self.model.head_dim) if last == "q" else I8_LIMIT
            return HeadQuantizer(channels, limit, learn=learn)
        if last in ("v", "fc1"):
            return ActivationQuantizer(learn=learn)
        if last == "embed":
            return ActivationQuantizer(I16_LIMIT, produced=False)
        if last == "head":
            return ActivationQuantizer(I16_LIMIT)
        if last in ("residual1", "residual2"):
            return Shared(saturate=True)
        if last in ("pool", "head_dist"):
            return Shared(saturate=False)
        if last == "pos_embed":
            return PositionQuantizer(0 if self.model.no_embed_class else self.model.num_prefix_tokens)
        return nn.Identity()


def build_quantized(config: ViTConfig, quantization: QuantizationConfig) -> VisionTransformer:
    """A freshly initialized fake-quantized model; its scales are 1 until it is calibrated or loaded.

    Its parameters have timm's names, with the activation scales beside them (`blocks.0.quant_norm1.scale`).
    """
    model = VisionTransformer(config, _Factory(config, quantization).layers())
    _wire(model)
    return model


def quantization_of(model: VisionTransformer) -> QuantizationConfig | None:
    """The options that a model was built with; None for an FP32 model."""
    for module in model.modules():
        if isinstance(module, TernaryLinear):
            return module.config
    return None


def blocks_of(model: VisionTransformer) -> list[Block]:
    """The encoder blocks."""
    return [cast(Block, block) for block in model.blocks]


def _wire(model: VisionTransformer) -> None:
    """Tell every layer whose grids it computes between: the data flow of CONTRACT.md, section 10."""
    stream = cast(ActivationQuantizer, model.quant_embed)
    if isinstance(model.patch_embed.proj, TernaryConv2d):
        model.patch_embed.proj.connect(None, (stream,))
    cast(PositionQuantizer, model.quant_pos_embed).connect(stream)
    for block in blocks_of(model):
        _wire_block(block, stream)
    if model.config.pool == "token":
        norm, quant_norm = model.norm, model.quant_norm
    else:
        norm, quant_norm = model.fc_norm, model.quant_fc_norm
        cast(IntegerMeanPool, model.pool).connect(stream)
        cast(Shared, model.quant_pool).share(stream)
    out, logits = cast(ActivationQuantizer, quant_norm), cast(ActivationQuantizer, model.quant_head)
    _wire_norm(norm, stream, out)
    if isinstance(model.head, TernaryLinear):
        model.head.connect(out, (logits,))
    if model.config.distilled:
        if isinstance(model.head_dist, TernaryLinear):
            model.head_dist.connect(out, (logits,))
        cast(Shared, model.quant_head_dist).share(logits)


def _wire_norm(norm: nn.Module, stream: ActivationQuantizer, out: ActivationQuantizer) -> None:
    """A LayerNorm in full precision needs no scales."""
    if isinstance(norm, TernaryLayerNorm):
        norm.connect(stream, out)


def _wire_block(block: Block, stream: ActivationQuantizer) -> None:
    attn: Attention = block.attn
    norm1, norm2, context, v, fc1, gelu = (
        cast(ActivationQuantizer, module)
        for module in (
            block.quant_norm1, block.quant_norm2, attn.quant_context, attn.quant_v, block.mlp.quant_fc1,
            block.mlp.quant_gelu,
        )
    )  # fmt: skip
    q, k = cast(HeadQuantizer, attn.quant_q), cast(HeadQuantizer, attn.quant_k)
    _wire_norm(block.norm1, stream, norm1)
    cast(TernaryLinear, attn.qkv).connect(norm1, (q, k, v))
    cast(IntegerAttentionCore, attn.core).connect(q, k, v, context)
    cast(TernaryLinear, attn.proj).connect(context, (stream,), block.ls1)
    _wire_norm(block.norm2, stream, norm2)
    cast(TernaryLinear, block.mlp.fc1).connect(norm2, (fc1,))
    cast(TableGelu, block.mlp.act).connect(fc1, gelu)
    cast(TernaryLinear, block.mlp.fc2).connect(gelu, (stream,), block.ls2)
    for tap in (block.quant_residual1, block.quant_residual2):
        cast(Shared, tap).share(stream)
