# SPDX-License-Identifier: Apache-2.0
"""Named model variants, as timm registers them: a decorated function a variant.

A variant is a `ViTConfig`; only `create_model` needs torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from tvhil.errors import UsageError
from tvhil.models.config import ViTConfig

if TYPE_CHECKING:
    from tvhil.models.vision_transformer import Layers, VisionTransformer

Variant = Callable[[], ViTConfig]
_VARIANTS: dict[str, Variant] = {}
_TIMM_NAME = re.compile(r"(?P<arch>\w+?)_patch(?P<patch>\d+)_(?P<size>\d+)")


def register_model(variant: Variant) -> Variant:
    """Register a function without arguments that returns a `ViTConfig` under the function's name."""
    _VARIANTS[variant.__name__] = variant
    return variant


def list_models(pattern: str = "*") -> list[str]:
    """Names of the registered variants that match a shell pattern such as 'deit3_*', sorted."""
    return sorted(name for name in _VARIANTS if fnmatchcase(name, pattern))


def describe_model(name: str) -> str:
    """First line of the variant's docstring."""
    return (_find(name).__doc__ or "").strip().splitlines()[0]


def model_config(
    name: str,
    *,
    image_size: int | None = None,
    patch_size: int | None = None,
    in_channels: int | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> ViTConfig:
    """Configuration of a registered variant with some fields changed.

    Args:
        name: a name of `list_models()`; timm's spelling with patch and image size
            ('deit_tiny_patch16_224') works too.
        image_size: side of the square input in pixels. From 384 on, an ImageNet model is evaluated without
            cropping (crop_pct 1.0), as timm's and DeiT's 384 variants are.
        patch_size: side of a patch in pixels.
        in_channels: 3 (RGB) or 1 (grayscale).
        num_classes: rows of the classification head.
        options: any other field of `ViTConfig`.

    Raises:
        UsageError: unknown name or fields that do not fit together.
    """
    timm_name = _TIMM_NAME.fullmatch(name)
    if name not in _VARIANTS and timm_name and timm_name["arch"] in _VARIANTS:
        name = timm_name["arch"]
        patch_size = patch_size or int(timm_name["patch"])
        image_size = image_size or int(timm_name["size"])
    changes = {
        "image_size": image_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "num_classes": num_classes,
    }
    options |= {key: value for key, value in changes.items() if value is not None}
    config = replace(_find(name)(), arch=name).replace(**options)
    if "preprocessing" not in options and config.image_size >= 384:
        config = config.replace(preprocessing=replace(config.preprocessing, crop_pct=1.0))
    return config


def create_model(name: str, *, layers: Layers | None = None, **options: Any) -> VisionTransformer:
    """Build a freshly initialized model; options as in `model_config`, layers as in `VisionTransformer`."""
    from tvhil.models.vision_transformer import VisionTransformer

    return VisionTransformer(model_config(name, **options), layers)


def _find(name: str) -> Variant:
    if name not in _VARIANTS:
        near = difflib.get_close_matches(name, _VARIANTS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(list_models())}"
        raise UsageError(f"no model is called {name!r}; {hint}")
    return _VARIANTS[name]
