# SPDX-License-Identifier: Apache-2.0
"""ViT, DeiT and DeiT-III in torch, with timm's parameter names; one class for FP32 and quantized models.

Shapes in the comments: B images, N patch tokens, T tokens (prefix tokens first), D channels, H heads of d
channels, S pixels along a side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvhil.errors import UsageError
from tvhil.models.config import ViTConfig


class LinearFactory(Protocol):
    """Makes a layer that maps [..., in_features] to [..., out_features]."""

    def __call__(self, name: str, in_features: int, out_features: int, *, bias: bool) -> nn.Module: ...  # noqa: D102


class ConvFactory(Protocol):
    """Makes a convolution with bias whose stride is its kernel size: [B, C, S, S] to [B, D, S / k, S / k]."""

    def __call__(self, name: str, in_channels: int, out_channels: int, *, kernel_size: int) -> nn.Module: ...  # noqa: D102


class NormFactory(Protocol):
    """Makes a layer normalization over the last dimension."""

    def __call__(self, name: str, channels: int, *, eps: float) -> nn.Module: ...  # noqa: D102


def _linear(name: str, in_features: int, out_features: int, *, bias: bool) -> nn.Module:  # noqa: ARG001
    return nn.Linear(in_features, out_features, bias=bias)


def _conv(name: str, in_channels: int, out_channels: int, *, kernel_size: int) -> nn.Module:  # noqa: ARG001
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=kernel_size)


def _norm(name: str, channels: int, *, eps: float) -> nn.Module:  # noqa: ARG001
    return nn.LayerNorm(channels, eps=eps)


def _softmax(name: str) -> nn.Module:  # noqa: ARG001
    return nn.Softmax(dim=-1)


def _gelu(name: str) -> nn.Module:  # noqa: ARG001
    return nn.GELU()


def _activation(name: str, channels: int) -> nn.Module:  # noqa: ARG001
    return nn.Identity()


def _attention(name: str, num_heads: int, head_dim: int) -> nn.Module | None:  # noqa: ARG001
    return None


def _layer_scale(name: str, channels: int, init_value: float) -> nn.Module:  # noqa: ARG001
    return LayerScale(channels, init_value)


def _pool(name: str) -> nn.Module:  # noqa: ARG001
    return MeanPool()


@dataclass(frozen=True)
class Layers:
    """Constructors of every layer of the model. The defaults are FP32; quantization passes its own.

    The first argument of each is the layer's full name, which is also its state_dict prefix
    ('blocks.3.mlp.fc1'), so a recipe can treat layers differently by name. `softmax` and `gelu` are named by
    the tensor they make ('blocks.3.attn.probs', 'blocks.3.mlp.gelu').

    `activation(name, channels)` makes a module that the named tensor passes through, the place of an
    activation quantizer. The tensor names, in the order of the forward pass:

        patch_embed                                  [B, N, D]  projected patches
        cls_token, dist_token, pos_embed             parameters, before they are used
        embed                                        [B, T, D]  residual stream that enters block 0
        blocks.I.norm1                               [B, T, D]
        blocks.I.attn.{q,k,v}                        [B, H, T, d]
        blocks.I.attn.scores, blocks.I.attn.probs    [B, H, T, T]  before and after softmax
        blocks.I.attn.context                        [B, T, D]  probabilities times values, heads merged
        blocks.I.attn.proj                           [B, T, D]  attention branch, after LayerScale
        blocks.I.residual1                           [B, T, D]
        blocks.I.norm2                               [B, T, D]
        blocks.I.mlp.fc1, blocks.I.mlp.gelu          [B, T, hidden]
        blocks.I.mlp.fc2                             [B, T, D]  MLP branch, after LayerScale
        blocks.I.residual2                           [B, T, D]
        norm                                         [B, T, D]  (pool 'token')
        pool, fc_norm                                [B, D]  (pool 'avg')
        head, head_dist                              [B, classes]  logits of each head

    `attention(name, num_heads, head_dim)` may return a module that maps q, k, v to the context, each
    [B, H, T, d]; None keeps the floating-point attention. `layer_scale` makes the module after a residual
    branch, `pool` the one that averages the patch tokens ([B, N, D] to [B, D]).
    """

    linear: LinearFactory = _linear
    conv: ConvFactory = _conv
    norm: NormFactory = _norm
    softmax: Callable[[str], nn.Module] = _softmax
    gelu: Callable[[str], nn.Module] = _gelu
    activation: Callable[[str, int], nn.Module] = _activation
    attention: Callable[[str, int, int], nn.Module | None] = _attention
    layer_scale: Callable[[str, int, float], nn.Module] = _layer_scale
    pool: Callable[[str], nn.Module] = _pool


class PatchEmbed(nn.Module):
    """Image to patch tokens: a convolution whose kernel and stride are the patch."""

    def __init__(self, config: ViTConfig, layers: Layers) -> None:
        super().__init__()
        self.proj = layers.conv("patch_embed.proj", config.in_channels, config.embed_dim, kernel_size=config.patch_size)
        self.quant_out = layers.activation("patch_embed", config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, S, S] to [B, N, D], patches in row-major order."""
        out: Tensor = self.quant_out(self.proj(x).flatten(2).transpose(1, 2))
        return out


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: ViTConfig, layers: Layers, name: str) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.scale = config.head_dim**-0.5
        self.fused = False
        self.qkv = layers.linear(f"{name}.qkv", dim, 3 * dim, bias=config.qkv_bias)
        self.core = layers.attention(name, config.num_heads, config.head_dim)
        self.softmax = layers.softmax(f"{name}.probs")
        self.proj = layers.linear(f"{name}.proj", dim, dim, bias=True)
        self.quant_q = layers.activation(f"{name}.q", dim)
        self.quant_k = layers.activation(f"{name}.k", dim)
        self.quant_v = layers.activation(f"{name}.v", dim)
        self.quant_scores = layers.activation(f"{name}.scores", config.num_tokens)
        self.quant_probs = layers.activation(f"{name}.probs", config.num_tokens)
        self.quant_context = layers.activation(f"{name}.context", dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        B, T, D = x.shape
        qkv = self.qkv(x).reshape(B, T, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, T, d]
        q, k, v = self.quant_q(q), self.quant_k(k), self.quant_v(v)
        if self.core is not None:
            x = self.core(q, k, v)
        elif self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = self.quant_scores((q @ k.transpose(-2, -1)) * self.scale)
            probs = self.quant_probs(self.softmax(scores))
            x = probs @ v
        x = self.quant_context(x.transpose(1, 2).reshape(B, T, D))
        out: Tensor = self.proj(x)
        return out


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, config: ViTConfig, layers: Layers, name: str) -> None:
        super().__init__()
        self.fc1 = layers.linear(f"{name}.fc1", config.embed_dim, config.hidden_dim, bias=True)
        self.act = layers.gelu(f"{name}.gelu")
        self.fc2 = layers.linear(f"{name}.fc2", config.hidden_dim, config.embed_dim, bias=True)
        self.quant_fc1 = layers.activation(f"{name}.fc1", config.hidden_dim)
        self.quant_gelu = layers.activation(f"{name}.gelu", config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        x = self.quant_fc1(self.fc1(x))
        x = self.quant_gelu(self.act(x))
        out: Tensor = self.fc2(x)
        return out


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch (CaiT, DeiT-III)."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] times gamma [D]."""
        return x * self.gamma


class MeanPool(nn.Module):
    """The mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, D]."""
        return x.mean(dim=1)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: ViTConfig, layers: Layers, name: str) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = layers.norm(f"{name}.norm1", dim, eps=config.norm_eps)
        self.attn = Attention(config, layers, f"{name}.attn")
        self.ls1 = layers.layer_scale(f"{name}.ls1", dim, config.layer_scale) if config.layer_scale else nn.Identity()
        self.norm2 = layers.norm(f"{name}.norm2", dim, eps=config.norm_eps)
        self.mlp = Mlp(config, layers, f"{name}.mlp")
        self.ls2 = layers.layer_scale(f"{name}.ls2", dim, config.layer_scale) if config.layer_scale else nn.Identity()
        self.quant_norm1 = layers.activation(f"{name}.norm1", dim)
        self.quant_attn = layers.activation(f"{name}.attn.proj", dim)
        self.quant_residual1 = layers.activation(f"{name}.residual1", dim)
        self.quant_norm2 = layers.activation(f"{name}.norm2", dim)
        self.quant_mlp = layers.activation(f"{name}.mlp.fc2", dim)
        self.quant_residual2 = layers.activation(f"{name}.residual2", dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        branch = self.attn(self.quant_norm1(self.norm1(x)))
        x = self.quant_residual1(x + self.quant_attn(self.ls1(branch)))
        branch = self.mlp(self.quant_norm2(self.norm2(x)))
        out: Tensor = self.quant_residual2(x + self.quant_mlp(self.ls2(branch)))
        return out


class VisionTransformer(nn.Module):
    """ViT, DeiT or DeiT-III, as its configuration says.

    Args:
        config: shapes and options.
        layers: constructors of the layers; None for FP32.
        fused_attention: use torch's fused attention (faster FP32 training). Refused when `layers` puts
            something else than identity on the attention scores or probabilities.
    """

    def __init__(self, config: ViTConfig, layers: Layers | None = None, *, fused_attention: bool = False) -> None:
        super().__init__()
        layers = layers or Layers()
        dim = config.embed_dim
        self.config = config
        self.patch_embed = PatchEmbed(config, layers)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.pos_embed_tokens, dim))
        self.blocks = nn.Sequential(*(Block(config, layers, f"blocks.{i}") for i in range(config.depth)))
        if config.pool == "token":
            self.norm = layers.norm("norm", dim, eps=config.norm_eps)
            self.quant_norm = layers.activation("norm", dim)
        else:
            self.pool = layers.pool("pool")
            self.quant_pool = layers.activation("pool", dim)
            self.fc_norm = layers.norm("fc_norm", dim, eps=config.norm_eps)
            self.quant_fc_norm = layers.activation("fc_norm", dim)
        self.head = layers.linear("head", dim, config.num_classes, bias=True)
        self.quant_head = layers.activation("head", config.num_classes)
        if config.distilled:
            self.head_dist = layers.linear("head_dist", dim, config.num_classes, bias=True)
            self.quant_head_dist = layers.activation("head_dist", config.num_classes)
        self.quant_cls_token = layers.activation("cls_token", dim)
        self.quant_dist_token = layers.activation("dist_token", dim)
        self.quant_pos_embed = layers.activation("pos_embed", dim)
        self.quant_embed = layers.activation("embed", dim)
        self.init_weights()
        if fused_attention:
            self.use_fused_attention()

    def init_weights(self) -> None:
        """Initialize as timm does; layers that are not torch's own keep what their constructor made."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        if self.dist_token is not None:
            nn.init.trunc_normal_(self.dist_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def use_fused_attention(self) -> None:
        """Switch every block to torch's fused attention."""
        for module in self.modules():
            if isinstance(module, Attention):
                hooks = (module.quant_scores, module.quant_probs)
                plain = module.core is None and all(isinstance(hook, nn.Identity) for hook in hooks)
                if not plain or not isinstance(module.softmax, nn.Softmax):
                    raise UsageError("fused attention skips the attention quantizers: it is for FP32 only")
                module.fused = True

    def embed(self, x: Tensor) -> Tensor:
        """Images [B, C, S, S] to the residual stream [B, T, D] that enters the first block."""
        x = self.patch_embed(x)
        pos_embed = self.quant_pos_embed(self.pos_embed)
        prefix = []
        if self.cls_token is not None:
            prefix.append(self.quant_cls_token(self.cls_token).expand(x.shape[0], -1, -1))
        if self.dist_token is not None:
            prefix.append(self.quant_dist_token(self.dist_token).expand(x.shape[0], -1, -1))
        if self.config.no_embed_class:
            x = torch.cat([*prefix, x + pos_embed], dim=1)
        else:
            x = torch.cat([*prefix, x], dim=1) + pos_embed
        out: Tensor = self.quant_embed(x)
        return out

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Residual stream [B, T, D] after the last block to the logits of both heads, each [B, classes].

        The second is None unless the model is distilled. Training with a hard or soft distillation loss wants
        them apart.
        """
        if self.config.pool == "avg":
            x = self.quant_pool(self.pool(x[:, self.config.num_prefix_tokens :]))
            x = self.quant_fc_norm(self.fc_norm(x))
            return self.quant_head(self.head(x)), None
        x = self.quant_norm(self.norm(x))
        logits = self.quant_head(self.head(x[:, 0]))
        if not self.config.distilled:
            return logits, None
        return logits, self.quant_head_dist(self.head_dist(x[:, 1]))

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images [B, C, S, S] to logits [B, classes]; the mean of both heads if distilled."""
        x = self.embed(x)
        x = self.blocks(x)
        logits, logits_dist = self.classify(x)
        return logits if logits_dist is None else (logits + logits_dist) / 2
