# SPDX-License-Identifier: Apache-2.0
"""The models of a recipe: built, initialized, carried from phase to phase, written and read."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from tvhil.errors import CheckpointError, InputError, UsageError
from tvhil.files import write_whole
from tvhil.models import (
    VisionTransformer,
    ViTConfig,
    load_model,
    load_state,
    model_config,
    read_checkpoint,
    save_checkpoint,
)
from tvhil.models.config import Preprocessing
from tvhil.models.conv_teacher import ConvTeacher, ConvTeacherConfig
from tvhil.models.published import is_published
from tvhil.quantization import build_quantized, quantization_of, save_quantized
from tvhil.quantization.build import blocks_of
from tvhil.quantization.convert import QUANTIZER_STATE, Images, calibrate, checkpoint_quantization
from tvhil.quantization.layers import TernaryLinear
from tvhil.quantization.train import init_matrices
from tvhil.quantization.training.recipe import CONV_TEACHER, Phase, Recipe

Model: TypeAlias = VisionTransformer | ConvTeacher

_TEACHER_KEY = "tvhil.conv_teacher"
CALIBRATION_IMAGES = 512


def configuration(recipe: Recipe, num_classes: int | None = None) -> ViTConfig | ConvTeacherConfig:
    """The configuration that a recipe trains.

    Raises:
        InputError: the recipe names options that do not exist or do not fit together.
    """
    options: dict[str, Any] = dict(recipe.model)
    if num_classes is not None:
        options.setdefault("num_classes", num_classes)
    try:
        if recipe.architecture == CONV_TEACHER:
            if "widths" in options:
                options["widths"] = tuple(options["widths"])
            return ConvTeacherConfig(**options)
        return model_config(recipe.architecture, **options)
    except (UsageError, TypeError) as error:
        raise InputError(f"recipe {recipe.name}, model: {error}") from None


def fresh_model(config: ViTConfig | ConvTeacherConfig, recipe: Recipe) -> Model:
    """A model that knows nothing, its weights drawn from the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if isinstance(config, ConvTeacherConfig):
            return ConvTeacher(config)
        model = VisionTransformer(config)
        if recipe.initialization != "timm":
            init_matrices(model, recipe.seed)
        if recipe.initialization == "mimetic":
            init_mimetic(model)
    return model


@torch.no_grad()
def init_mimetic(model: VisionTransformer) -> None:
    """Start with attention to the place itself and its surroundings, as trained ViTs show it.

    Sinusoidal position embedding; per head `Wq^T Wk ~ 0.7 I + noise`, and `Wproj Wv ~ -0.4 I + noise` (Trockman and
    Kolter, "Mimetic Initialization of Self-Attention Layers", arXiv 2305.09828). The head starts near zero.
    """
    config = model.config
    dim, size, rows = config.embed_dim, config.head_dim, config.grid_size
    if dim % 4 == 0:
        frequency = 1e4 ** (-torch.arange(dim // 4) / (dim / 4))
        angle = torch.arange(rows)[:, None] * frequency
        line = torch.cat([angle.sin(), angle.cos()], 1)
        grid = torch.cat([line[:, None].expand(rows, rows, -1), line[None].expand(rows, rows, -1)], 2)
        model.pos_embed[:, -config.num_patches :] = grid.reshape(1, -1, dim)
    cast(Any, model.head).weight.mul_(0.2)
    for block in blocks_of(model):
        attn = cast(Any, block.attn)
        weight = attn.qkv.weight
        for head in range(config.num_heads):
            u, s, v = torch.linalg.svd(0.49 * torch.randn(dim, dim) / dim**0.5 + 0.7 * torch.eye(dim))
            rows_of_head = slice(head * size, (head + 1) * size)
            weight[:dim][rows_of_head] = (u * s.sqrt())[:, :size].T
            weight[dim : 2 * dim][rows_of_head] = (v.T * s.sqrt())[:, :size].T
        u, s, v = torch.linalg.svd(0.4 * torch.randn(dim, dim) / dim**0.5 - 0.4 * torch.eye(dim))
        weight[2 * dim :] = (v.T * s.sqrt()).T
        attn.proj.weight.copy_(u * s.sqrt())


def model_of_phase(
    previous: Model, phase: Phase, images: Images | None, device: torch.device, *, fresh: bool = False
) -> Model:
    """The model that a phase trains, with the weights of the one before.

    Args:
        previous: full precision or quantized; unchanged.
        phase: says how it is quantized.
        images: uint8 `[B, H, W, C]` to calibrate activation scales on; None leaves the scales to be loaded.
        device: where it goes.
        fresh: the first convolution of a `ConvTeacher` is to be found from the images.
    """
    if isinstance(previous, ConvTeacher):
        if fresh and images is not None:
            previous.whiten(pixels_to_input(to_pixels(images), previous.config.preprocessing))
        moved: ConvTeacher = cast(Any, previous).to(device, memory_format=torch.channels_last)
        return moved
    if phase.quantization is None:
        model = VisionTransformer(previous.config)
        load_state(model, _fp32_state(previous))
        return model.to(device)
    before = quantization_of(previous)
    model = build_quantized(previous.config, phase.quantization)
    same = before == phase.quantization
    load_state(model, previous.state_dict() if same else _fp32_state(previous), may_lack=QUANTIZER_STATE)
    if not same:
        for layer in model.modules():
            if isinstance(layer, TernaryLinear):
                layer.start_rule()
    model = model.to(device)
    if images is not None and not same:
        calibrate(model, images)
    return model


def _fp32_state(model: VisionTransformer) -> dict[str, Tensor]:
    """The latent weights alone."""
    return {name: value for name, value in model.state_dict().items() if not re.search(QUANTIZER_STATE, name)}


def to_pixels(images: Images) -> Tensor:
    """uint8 `[B, H, W, C]` to uint8 `[B, C, H, W]`."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def pixels_to_input(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 `[B, C, H, W]` to normalized float32, on the same device."""
    mean, std = (torch.tensor(v, device=pixels.device).view(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (pixels.float() / 255 - mean) / std


def save_model(path: Path, model: Model, metadata: dict[str, str] | None = None) -> None:
    """Write a checkpoint that every command reads (a `ConvTeacher`: that `load_any` reads).

    Raises:
        CheckpointError: it cannot be written.
    """
    if isinstance(model, ConvTeacher):
        from safetensors.torch import save as serialize

        text = json.dumps(dataclasses.asdict(model.config))
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
        try:
            write_whole(path, serialize(tensors, {**(metadata or {}), _TEACHER_KEY: text}))
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from None
    elif quantization_of(model) is not None:
        save_quantized(path, model, metadata)
    else:
        save_checkpoint(path, model.state_dict(), model.config, metadata)


def load_any(path: Path) -> Model:
    """Read what `save_model` wrote, or any FP32 checkpoint that says what it is of: a file, or `timm:NAME`.

    Raises:
        CheckpointError: unreadable, of unknown architecture, or not fitting it.
        UsageError: timm has no such name.
    """
    teacher = None if is_published(path) else _read_conv_teacher(path)
    if teacher is not None:
        return teacher
    checkpoint = read_checkpoint(path)
    quantization = checkpoint_quantization(checkpoint)
    if checkpoint.config is None and (quantization is not None or checkpoint.hub is None):
        raise CheckpointError(f"{path} does not say what model it is of: pass it through `tvhil quantize` or `train`")
    if checkpoint.config is None or quantization is None:
        return load_model(path)[0]
    model = build_quantized(checkpoint.config, quantization)
    try:
        load_state(model, checkpoint.state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return model


def _read_conv_teacher(path: Path) -> ConvTeacher | None:
    import safetensors
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_TEACHER_KEY)
            if text is None:
                return None
            values = json.loads(text)
            values["widths"] = tuple(values["widths"])
            pre = values.pop("preprocessing")
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in pre.items()}
            config = ConvTeacherConfig(**values, preprocessing=Preprocessing(**fields))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            with torch.device("meta"):  # takes no memory, whatever the configuration says
                claimed = ConvTeacher(config)
    except (OSError, safetensors.SafetensorError):
        return None  # `read_checkpoint` says what is wrong
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, UsageError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: the teacher's configuration is malformed: {reason}") from None
    check_shapes(claimed, state, path)
    model = ConvTeacher(config)
    model.load_state_dict(state)
    return model


def check_shapes(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not those of the model.

    Raises:
        CheckpointError: says which, and both shapes.
    """
    own = model.state_dict()
    odd = sorted(set(own) ^ set(state))
    if odd:
        raise CheckpointError(f"{path}: tensor {odd[0]} is {'missing' if odd[0] in own else 'unexpected'}")
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise CheckpointError(f"{path}: {name} is {list(state[name].shape)}, the model's is {list(value.shape)}")


def check_teacher(teacher: Model, config: ViTConfig | ConvTeacherConfig, classes: int) -> None:
    """Refuse a teacher of other images or classes than the model that is to learn from it.

    Raises:
        InputError: says which, and both values.
    """
    wanted, given = ((c.preprocessing.image_size, c.preprocessing.channels) for c in (config, teacher.config))
    if given != wanted:
        raise InputError(
            f"the teacher takes {given[0]} pixels and {given[1]} channels, the model {wanted[0]} and {wanted[1]}"
        )
    if teacher.config.num_classes != classes:
        raise InputError(f"the teacher has {teacher.config.num_classes} classes, not {classes}")


def check_initial(previous: Model, config: ViTConfig | ConvTeacherConfig, path: Path) -> None:
    """Refuse an initial checkpoint of another shape than the recipe's model.

    Raises:
        CheckpointError: says which tensors, and both shapes.
    """
    target: nn.Module = ConvTeacher(config) if isinstance(config, ConvTeacherConfig) else VisionTransformer(config)
    state = previous.state_dict() if isinstance(previous, ConvTeacher) else _fp32_state(previous)
    own = target.state_dict()
    wrong = [
        f"{name}: {list(state[name].shape) if name in state else 'none'} instead of {list(own[name].shape)}"
        for name in own
        if name not in state or state[name].shape != own[name].shape
    ]
    wrong += [f"{name}: {list(state[name].shape)} instead of none" for name in state if name not in own]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{path} is of another shape than the recipe's model: {'; '.join(wrong[:3])}{more}")
