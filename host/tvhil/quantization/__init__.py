# SPDX-License-Identifier: Apache-2.0
"""Quantization: the contract's grid, ternarizers, layers that train through both, conversion to integers.

`QuantizationConfig` and `grid` need no torch; the rest is imported the first time it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tvhil.quantization.config import QuantizationConfig

if TYPE_CHECKING:
    from tvhil.quantization.build import build_quantized, quantization_of
    from tvhil.quantization.convert import (
        calibrate,
        load_quantized,
        quantize_model,
        random_model,
        save_quantized,
        to_integer,
        untrained_integer_vit,
    )

_NEED_TORCH = {
    "build_quantized": "build",
    "quantization_of": "build",
    "calibrate": "convert",
    "load_quantized": "convert",
    "quantize_model": "convert",
    "random_model": "convert",
    "save_quantized": "convert",
    "to_integer": "convert",
    "untrained_integer_vit": "convert",
}

__all__ = [
    "QuantizationConfig",
    "build_quantized",
    "calibrate",
    "load_quantized",
    "quantization_of",
    "quantize_model",
    "random_model",
    "save_quantized",
    "to_integer",
    "untrained_integer_vit",
]


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        try:
            return getattr(import_module(f"tvhil.quantization.{_NEED_TORCH[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name not in ("torch", "safetensors"):
                raise
            from tvhil.errors import MissingToolError

            raise MissingToolError(f"{name} needs {error.name}: pip install 'tvhil[train]'") from None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
