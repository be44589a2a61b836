# SPDX-License-Identifier: Apache-2.0
"""FP32 model to fake-quantized model (`quantize_model`) to integers (`to_integer`), and its checkpoints."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tvhil.errors import CheckpointError, InputError, UsageError
from tvhil.models.checkpoints import Checkpoint, load_state, read_checkpoint, save_checkpoint
from tvhil.models.config import Preprocessing, ViTConfig
from tvhil.models.vision_transformer import Block, VisionTransformer
from tvhil.packing.format import ScaleMode
from tvhil.packing.integer_vit import (
    IntegerAttention,
    IntegerBlock,
    IntegerLayerNorm,
    IntegerLinear,
    IntegerViT,
)
from tvhil.quantization.activations import ActivationQuantizer, HeadQuantizer, PositionQuantizer, calibrating
from tvhil.quantization.build import blocks_of, build_quantized, quantization_of
from tvhil.quantization.config import QuantizationConfig
from tvhil.quantization.grid import ChannelGrid, max_score_scale
from tvhil.quantization.layers import (
    IntegerAttentionCore,
    TableGelu,
    TernaryConv2d,
    TernaryLayerNorm,
    TernaryLinear,
)

QUANTIZATION_KEY = "tvhil.quantization"  # metadata entry of a fake-quantized checkpoint
# What a fake-quantized model has beyond the parameters of the FP32 model.
QUANTIZER_STATE = r"(^|\.)(quant_\w+\.(scale|profile)|rule\.(scale|threshold))$"
_ACTIVATION_SCALE = re.compile(r"(^|\.)quant_\w+\.scale$")

Images = npt.NDArray[np.uint8]


def normalize(images: Images, preprocessing: Preprocessing) -> Tensor:
    """uint8 `[B, H, W, C]` to the normalized float32 `[B, C, H, W]` that torch models take.

    Raises:
        InputError: images of another shape or type.
    """
    size, channels = preprocessing.image_size, preprocessing.channels
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, channels):
        shape = "x".join(map(str, images.shape))
        raise InputError(f"images must be uint8 of Nx{size}x{size}x{channels}, not {images.dtype} of {shape}")
    x = torch.from_numpy(np.ascontiguousarray(images)).float()
    x = (x / 255 - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
    return x.permute(0, 3, 1, 2).contiguous()


def quantize_model(
    model: VisionTransformer, images: Images, quantization: QuantizationConfig | None = None, *, batch: int = 32
) -> VisionTransformer:
    """A fake-quantized copy of an FP32 model, its activation scales calibrated on images.

    Args:
        model: FP32.
        images: uint8 `[B, H, W, C]`; more of them find the ranges better, a few dozen are enough.
        quantization: options.
        batch: images at a time.

    Raises:
        UsageError: the model is quantized already.
        InputError: images that do not fit the model.
    """
    if quantization_of(model) is not None:
        raise UsageError("the model is quantized already")
    quantized = build_quantized(model.config, quantization or QuantizationConfig())
    load_state(quantized, model.state_dict(), may_lack=QUANTIZER_STATE)
    for layer in quantized.modules():
        if isinstance(layer, TernaryLinear):
            layer.start_rule()
    device = next(model.parameters()).device
    quantized = quantized.to(device).train(model.training)
    calibrate(quantized, images, batch=batch)
    return quantized


def calibrate(model: VisionTransformer, images: Images, *, batch: int = 32) -> None:
    """Set every activation scale of a fake-quantized model from what its ternary weights make of images.

    One pass in real arithmetic; then the scales of q and k are balanced, and their product bounded by what the
    attention can express (`grid.max_score_scale`).
    """
    quantization = _quantization(model)
    device = next(model.parameters()).device
    with calibrating(model, quantization.calibration):
        for i in range(0, len(images), batch):
            model(normalize(images[i : i + batch], model.config.preprocessing).to(device))
        for block in blocks_of(model):
            q, k = (cast(HeadQuantizer, m) for m in (block.attn.quant_q, block.attn.quant_k))
            q.balance(k, max_score_scale(model.config.head_dim), quantization.calibration)
    _make_room(model)


# A weight scale may grow by this in training before its gain saturates.
_SCALE_HEADROOM = 1.25


@torch.no_grad()
def _make_room(model: VisionTransformer) -> None:
    """Raise the units of the residual stream and of the logits until every weight scale has a gain.

    The largest gain that keeps a row inside 20 bits bounds its scale, in output units a unit of the accumulator; a
    finer output could not be reached.
    """
    for layer in model.modules():
        if isinstance(layer, TernaryLinear):
            needed = layer.smallest_unit() * _SCALE_HEADROOM
            for quantizer in layer.wide_outputs():
                quantizer.scale.data.clamp_(min=needed)


def _quantization(model: VisionTransformer) -> QuantizationConfig:
    quantization = quantization_of(model)
    if quantization is None:
        raise UsageError("the model is not quantized: pass it through quantize_model first")
    return quantization


@torch.no_grad()
def to_integer(
    model: VisionTransformer,
    *,
    name: str | None = None,
    class_names: tuple[str, ...] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> IntegerViT:
    """The integers of a fake-quantized model: what the device computes, and what this model computes forward.

    Args:
        model: fake-quantized and calibrated.
        name: of the model; its architecture's by default.
        class_names: go into the file.
        recipe: how the model was made; goes into the file as JSON.

    Raises:
        UsageError: the model is not quantized, or not on the contract's grid.
    """
    quantization, config = _quantization(model), model.config
    if not quantization.grid:
        raise UsageError("a model with ideal weight scales (grid = false) cannot be converted to integers")
    if quantization.full_precision:
        kept = ", ".join(quantization.full_precision)
        raise UsageError(f"a model that keeps {kept} in full precision cannot be converted to integers")
    if class_names is not None and len(class_names) != config.num_classes:
        raise UsageError(f"{len(class_names)} class names for {config.num_classes} classes")
    stream = cast(ActivationQuantizer, model.quant_embed)
    position, multiplier = cast(PositionQuantizer, model.quant_pos_embed).integers(model.pos_embed)
    blank = torch.zeros(1, config.in_channels, config.image_size, config.image_size, device=position.device)
    prefix = stream.integers(model.embed(blank))[0, : config.num_prefix_tokens]
    logits = cast(ActivationQuantizer, model.quant_head)
    heads = (model.head, model.head_dist) if config.distilled else (model.head,)
    # The logits of a distilled model are the mean of its heads: their sum in units of half the heads' scale.
    logit_scale = float(logits.unit()) / len(heads)
    meta = {
        "arch": config.arch,
        "preprocessing": asdict(config.preprocessing),
        "classes": None if class_names is None else list(class_names),
        "scales": {
            n.removesuffix(".scale"): float(p) for n, p in model.named_parameters() if _ACTIVATION_SCALE.search(n)
        },
        "quantization": {"ternarizer": quantization.ternarizer, "scale_mode": quantization.scale_mode.name.lower()},
        "recipe": dict(recipe or {}),
    }
    return IntegerViT(
        name=name or config.arch,
        image_size=(config.image_size, config.image_size),
        channels=config.in_channels,
        patch_size=config.patch_size,
        heads=config.num_heads,
        scale_mode=quantization.scale_mode,
        patch_embed=_linear(model.patch_embed.proj),
        position=_array(position[0], np.int8),
        position_multiplier=int(multiplier),
        prefix=_array(prefix, np.int16),
        blocks=tuple(_block(block, quantization.per_token) for block in blocks_of(model)),
        mean_pool=config.pool == "avg",
        norm=_layernorm(model.norm if config.pool == "token" else model.fc_norm),
        heads_out=tuple(_linear(head) for head in heads),
        logit_scale=logit_scale,
        parameters=parameter_count(model),
        meta=meta,
    )


def parameter_count(model: nn.Module) -> int:
    """Parameters of the FP32 model that a fake-quantized one stands for (its activation scales left out)."""
    return sum(p.numel() for name, p in model.named_parameters() if not re.search(QUANTIZER_STATE, name))


def _array(x: Tensor, dtype: type[np.signedinteger[Any]]) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = x.detach().cpu().numpy().round().astype(dtype)
    return array


def _linear(module: nn.Module, part: int = 0, parts: int = 1) -> IntegerLinear:
    trits, grid = cast(TernaryLinear | TernaryConv2d, module).integers()
    size = len(trits) // parts
    rows = slice(part * size, (part + 1) * size)
    gain, shift, bias = (_array(x[rows], np.int32) for x in ChannelGrid(*grid)[1:])
    return IntegerLinear(_array(trits[rows], np.int8), gain, shift, bias)


def _layernorm(module: nn.Module) -> IntegerLayerNorm:
    gamma, beta, grid = cast(TernaryLayerNorm, module).integers()
    c, beta_unit, epsilon, shift = (int(x) for x in grid)
    return IntegerLayerNorm(_array(gamma, np.int8), _array(beta, np.int8), c, beta_unit, epsilon, shift)


def _block(block: Block, per_token: bool) -> IntegerBlock:
    attn = block.attn
    constants = IntegerAttention(*(int(x) for x in cast(IntegerAttentionCore, attn.core).integers()))
    q, k, v = (_linear(attn.qkv, part, 3) for part in range(3))
    return IntegerBlock(
        norm1=_layernorm(block.norm1),
        q=q,
        k=k,
        v=v,
        q_limit=cast(HeadQuantizer, attn.quant_q).limit,
        attention=constants,
        proj=_linear(attn.proj),
        norm2=_layernorm(block.norm2),
        fc1=_linear(block.mlp.fc1),
        table=_array(cast(TableGelu, block.mlp.act).table(), np.int16 if per_token else np.int8),
        fc2=_linear(block.mlp.fc2),
    )


def save_quantized(
    path: str | os.PathLike[str], model: VisionTransformer, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a fake-quantized model as safetensors: latent weights, scales, and its options in the metadata.

    Raises:
        CheckpointError: the file cannot be written.
        UsageError: the model is not quantized.
    """
    options = {QUANTIZATION_KEY: _quantization(model).to_json()}
    save_checkpoint(path, model.state_dict(), model.config, {**(metadata or {}), **options})


def load_quantized(path: str | os.PathLike[str]) -> VisionTransformer:
    """Read what `save_quantized` wrote.

    Raises:
        CheckpointError: unreadable, not fake-quantized, or not fitting its own configuration.
    """
    checkpoint = read_checkpoint(path)
    quantization = checkpoint_quantization(checkpoint)
    if quantization is None or checkpoint.config is None:
        raise CheckpointError(f"{checkpoint.path} is not a fake-quantized checkpoint of tvhil: quantize it first")
    model = build_quantized(checkpoint.config, quantization)
    try:
        load_state(model, checkpoint.state)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None
    return model


def checkpoint_quantization(checkpoint: Checkpoint) -> QuantizationConfig | None:
    """The options of a fake-quantized checkpoint, None for others.

    Raises:
        CheckpointError: the metadata is malformed.
    """
    text = checkpoint.metadata.get(QUANTIZATION_KEY)
    try:
        return None if text is None else QuantizationConfig.from_json(text)
    except InputError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None


def random_model(config: ViTConfig, seed: int) -> VisionTransformer:
    """An untrained FP32 model that behaves like a trained one: nothing is zero, attention is not uniform.

    Matrices keep the variance of their input (queries and keys more), LayerNorm parameters, biases, tokens and
    LayerScale are drawn too, with both signs, so that every branch of the arithmetic is used.
    """
    model = VisionTransformer(config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                p.normal_(1.0, 0.3, generator=draw)
            elif name.endswith("gamma"):
                p.normal_(0.0, 0.5, generator=draw)
            elif p.ndim > 1 and name.endswith("weight"):
                p.normal_(0.0, p[0].numel() ** -0.5, generator=draw)
                if name.endswith("qkv.weight"):
                    p[: 2 * config.embed_dim] *= 1.5
            else:
                p.normal_(0.0, 0.3, generator=draw)
    return model


def synthetic_images(config: ViTConfig, count: int, seed: int) -> Images:
    """Smooth random pictures, uint8 `[count, H, W, C]`: noise at several scales, stretched to the full range."""
    draw = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, config.in_channels, config.image_size, config.image_size)
    for side in (2, 4, 8, 16):
        noise = torch.randn(count, config.in_channels, side, side, generator=draw)
        total += nn.functional.interpolate(noise, (config.image_size, config.image_size), mode="bilinear") / side**0.5
    low, high = total.amin((1, 2, 3), keepdim=True), total.amax((1, 2, 3), keepdim=True)
    pixels = ((total - low) / (high - low) * 255).round().to(torch.uint8)
    images: Images = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return images


def untrained_integer_vit(
    config: ViTConfig, seed: int = 0, quantization: QuantizationConfig | None = None, *, images: int = 2
) -> IntegerViT:
    """The integers of an untrained model (`random_model`), calibrated on synthetic pictures.

    For measuring sizes, latency and bit-exactness of an architecture without a checkpoint.
    """
    with torch.no_grad():
        model = random_model(config, seed)
        quantized = quantize_model(model, synthetic_images(config, images, seed), quantization)
    return to_integer(quantized, name=f"{config.arch}-untrained", recipe={"untrained": True, "seed": seed})


__all__ = [
    "QUANTIZATION_KEY",
    "ScaleMode",
    "calibrate",
    "checkpoint_quantization",
    "load_quantized",
    "normalize",
    "parameter_count",
    "quantize_model",
    "random_model",
    "save_quantized",
    "synthetic_images",
    "to_integer",
    "untrained_integer_vit",
]
