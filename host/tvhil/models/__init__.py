# SPDX-License-Identifier: Apache-2.0
"""ViT, DeiT and DeiT-III: configurations, the registry, the torch model and its checkpoints.

`VisionTransformer`, `Layers` and the checkpoint functions import torch the first time they are asked for, so
commands that only need a configuration start fast and run without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tvhil.models import variants as _variants  # noqa: F401  (registers the variants)
from tvhil.models.config import Preprocessing, ViTConfig
from tvhil.models.registry import create_model, describe_model, list_models, model_config, register_model

if TYPE_CHECKING:
    from tvhil.models.checkpoints import (
        Checkpoint,
        LoadReport,
        load_model,
        load_state,
        read_checkpoint,
        save_checkpoint,
    )
    from tvhil.models.vision_transformer import Layers, VisionTransformer

_NEED_TORCH = {
    "Checkpoint": "checkpoints",
    "LoadReport": "checkpoints",
    "load_model": "checkpoints",
    "load_state": "checkpoints",
    "read_checkpoint": "checkpoints",
    "save_checkpoint": "checkpoints",
    "Layers": "vision_transformer",
    "VisionTransformer": "vision_transformer",
}

__all__ = [
    "Checkpoint",
    "Layers",
    "LoadReport",
    "Preprocessing",
    "ViTConfig",
    "VisionTransformer",
    "create_model",
    "describe_model",
    "list_models",
    "load_model",
    "load_state",
    "model_config",
    "read_checkpoint",
    "register_model",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        try:
            return getattr(import_module(f"tvhil.models.{_NEED_TORCH[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name not in ("torch", "safetensors"):
                raise
            from tvhil.errors import MissingToolError

            raise MissingToolError(f"{name} needs {error.name}: pip install 'tvhil[train]'") from None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
