# SPDX-License-Identifier: Apache-2.0
"""What a Vision Transformer is (`ViTConfig`) and how its input is made (`Preprocessing`); no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tvhil.errors import InputError, UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
CROP_MODES = ("center", "squash", "border")
CHANNELS = {"L": 1, "RGB": 3}
MAX_IMAGE_SIZE = 4096
MAX_MLP_RATIO = 64


@dataclass(frozen=True)
class Preprocessing:
    """How any picture becomes the uint8 [image_size, image_size, channels] array that the model takes.

    The fields and their meaning are those of timm's pretrained configurations. `mean` and `std` are in units
    of the full scale (0 to 1); the packer folds them into the patch embedding, so the device sees raw uint8.
    """

    image_size: int
    crop_pct: float = 0.9
    interpolation: str = "bicubic"  # one of INTERPOLATIONS
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    mode: str = "RGB"  # PIL mode of the input: 'RGB' or 'L'
    crop_mode: str = "center"  # one of CROP_MODES

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        size_ok = 1 <= self.image_size <= MAX_IMAGE_SIZE
        _require(size_ok, f"image_size {self.image_size} not in 1..{MAX_IMAGE_SIZE}")
        _require(0.1 <= self.crop_pct <= 1.0, f"crop_pct {self.crop_pct} not in 0.1..1")
        interpolation_ok = self.interpolation in INTERPOLATIONS
        _require(interpolation_ok, f"interpolation {self.interpolation!r} not in {INTERPOLATIONS}")
        _require(self.mode in CHANNELS, f"mode {self.mode!r} not in {tuple(CHANNELS)}")
        _require(self.crop_mode in CROP_MODES, f"crop_mode {self.crop_mode!r} not in {CROP_MODES}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            count_ok = len(values) == self.channels
            _require(count_ok, f"{name} {values} must have {self.channels} values for {self.mode}")
            _require(all(math.isfinite(v) for v in values), f"{name} {values} is not finite")
        _require(all(v > 0 for v in self.std), f"std {self.std} must be positive")

    @property
    def channels(self) -> int:
        """Channels of the input: 3 for RGB, 1 for L (grayscale)."""
        return CHANNELS[self.mode]

    def grayscale(self) -> Preprocessing:
        """The same preprocessing for one-channel input; mean and std become their averages."""
        if self.mode == "L":
            return self
        mean, std = sum(self.mean) / len(self.mean), sum(self.std) / len(self.std)
        return dataclasses.replace(self, mode="L", mean=(mean,), std=(std,))


@dataclass(frozen=True)
class ViTConfig:
    """Everything that determines a ViT, DeiT or DeiT-III: its parameters' shapes and its forward pass.

    Fields follow timm's `VisionTransformer` (`no_embed_class`, `layer_scale` = timm's `init_values`,
    `pool` = `global_pool`). With `pool='avg'` the patch tokens are averaged first and normalized by `fc_norm`
    after, as in timm; with 'token' the class token is read after `norm`.
    """

    arch: str = "vit"  # name of the registered variant that this configuration started from
    image_size: int = 224
    patch_size: int = 16
    in_channels: int = 3
    num_classes: int = 1000
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    class_token: bool = True
    distilled: bool = False  # DeiT's distillation token and second head; logits are the mean of both heads
    no_embed_class: bool = False  # DeiT-III: the position embedding covers the patches only
    layer_scale: float | None = None  # initial gamma of LayerScale; None: no LayerScale
    pool: str = "token"  # 'token' or 'avg'
    norm_eps: float = 1e-6
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(224))

    def __post_init__(self) -> None:
        sizes = ("image_size", "patch_size", "in_channels", "num_classes", "embed_dim", "depth", "num_heads")
        for name in sizes:
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _require(
            self.image_size % self.patch_size == 0,
            f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
        )
        _require(
            self.embed_dim % self.num_heads == 0,
            f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}",
        )
        ratio_ok = 0 < self.mlp_ratio <= MAX_MLP_RATIO
        _require(ratio_ok, f"mlp_ratio must be above 0 and at most {MAX_MLP_RATIO}, not {self.mlp_ratio}")
        _require(self.norm_eps > 0, f"norm_eps must be positive, not {self.norm_eps}")
        _require(self.layer_scale is None or self.layer_scale > 0, "layer_scale must be positive or None")
        _require(self.pool in ("token", "avg"), f"pool {self.pool!r} is neither 'token' nor 'avg'")
        _require(self.class_token or self.pool == "avg", "without a class token, pool must be 'avg'")
        _require(
            not self.distilled or (self.class_token and self.pool == "token" and not self.no_embed_class),
            "a distilled model needs a class token, pool 'token' and position-embedded prefix tokens",
        )
        pre = self.preprocessing
        _require(
            (pre.image_size, pre.channels) == (self.image_size, self.in_channels),
            f"preprocessing makes {pre.image_size}x{pre.image_size}x{pre.channels} images, "
            f"the model takes {self.image_size}x{self.image_size}x{self.in_channels}",
        )

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patch tokens: grid_size squared."""
        return self.grid_size**2

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class token, then distillation token."""
        return int(self.class_token) + int(self.distilled)

    @property
    def num_tokens(self) -> int:
        """Length of the token sequence inside the blocks."""
        return self.num_prefix_tokens + self.num_patches

    @property
    def pos_embed_tokens(self) -> int:
        """Rows of the position embedding."""
        return self.num_patches if self.no_embed_class else self.num_tokens

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def hidden_dim(self) -> int:
        """Channels between the two linear layers of the MLP (rounded down, as timm does)."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape [H, W, C] of one uint8 image."""
        return (self.image_size, self.image_size, self.in_channels)

    def replace(self, **changes: Any) -> ViTConfig:
        """A copy with some fields changed; preprocessing follows image_size and in_channels unless given."""
        if "preprocessing" not in changes:
            size = changes.get("image_size", self.image_size)
            pre = dataclasses.replace(self.preprocessing, image_size=size)
            if changes.get("in_channels", self.in_channels) == 1:
                pre = pre.grayscale()
            changes["preprocessing"] = pre
        unknown = sorted(set(changes) - {f.name for f in dataclasses.fields(self)})
        _require(not unknown, f"no such model option: {', '.join(unknown)}")
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """One JSON object with every field; `from_json` reads it back to an equal configuration."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ViTConfig:
        """Read what `to_json` wrote. Raises `InputError` on anything else."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"model configuration is not JSON: {error}") from None
        pre = values.pop("preprocessing", None) if isinstance(values, dict) else None
        pre = _from_mapping(Preprocessing, pre)
        config: ViTConfig = _from_mapping(cls, values, preprocessing=pre)
        return config


def _from_mapping(cls: type[Any], values: Any, **extra: Any) -> Any:
    """Build a configuration dataclass from untrusted JSON values, checking every name and type."""
    if not isinstance(values, Mapping):
        kind = type(values).__name__
        raise InputError(f"model configuration: {cls.__name__} must be a JSON object, not {kind}")
    known = {f.name: f for f in dataclasses.fields(cls)}
    arguments = dict(extra)
    for name, value in values.items():
        if name not in known:
            raise InputError(f"model configuration: unknown {cls.__name__} field {name!r}")
        if not _TYPE_CHECKS[str(known[name].type)](value):
            raise InputError(f"model configuration: {name} must be {known[name].type}, not {value!r}")
        arguments[name] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**arguments)
    except (UsageError, TypeError) as error:
        raise InputError(f"model configuration: {error}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_TYPE_CHECKS: dict[str, Callable[[Any], bool]] = {
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "bool": lambda v: isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "float": _is_number,
    "float | None": lambda v: v is None or _is_number(v),
    "tuple[float, ...]": lambda v: isinstance(v, list) and all(_is_number(x) for x in v),
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)
