# SPDX-License-Identifier: Apache-2.0
"""How a model is quantized; no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from tvhil.errors import InputError, UsageError
from tvhil.packing.format import ScaleMode

CALIBRATIONS = ("absmax", "percentile", "mse")
_FIELDS = {"ternarizer": str, "scale_mode": str, "calibration": str, "learn_scales": bool, "grid": bool}


@dataclass(frozen=True)
class QuantizationConfig:
    """Options of a fake-quantized model.

    Attributes:
        ternarizer: rule of `ternarizers.TERNARIZERS` for every matrix and normalization parameter.
        scale_mode: activation scales, static or per token.
        calibration: how static int8 scales are found: 'absmax' (nothing is clipped), 'percentile' (99.99 % of the
            magnitudes are inside) or 'mse' (least squared error of rounding and clipping).
        learn_scales: train the activation scales (LSQ, arXiv 1902.08153).
        grid: put weight scales on the contract's grid of gains and shifts. Without it a model shows what the grid
            costs, but cannot be converted.
    """

    ternarizer: str = "twn"
    scale_mode: ScaleMode = ScaleMode.STATIC
    calibration: str = "mse"
    learn_scales: bool = False
    grid: bool = True

    def __post_init__(self) -> None:
        if self.calibration not in CALIBRATIONS:
            raise UsageError(f"no calibration is called {self.calibration!r}; known: {', '.join(CALIBRATIONS)}")

    @property
    def per_token(self) -> bool:
        """Whether activations are scaled per token."""
        return self.scale_mode is ScaleMode.PER_TOKEN

    def to_json(self) -> str:
        """One JSON object; `from_json` reads it back."""
        return json.dumps(asdict(self) | {"scale_mode": self.scale_mode.name.lower()}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> QuantizationConfig:
        """Read what `to_json` wrote.

        Raises:
            InputError: anything else.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"quantization options are not JSON: {error}") from None
        if not isinstance(values, dict):
            raise InputError("quantization options must be a JSON object")
        for name, value in values.items():
            if name not in _FIELDS or not isinstance(value, _FIELDS[name]):
                raise InputError(f"quantization options: {name} = {value!r} is unknown or of the wrong type")
        mode = values.pop("scale_mode", "static").upper()
        if mode not in ScaleMode.__members__:
            raise InputError(f"quantization options: no scale mode {mode!r}")
        try:
            return cls(scale_mode=ScaleMode[mode], **values)
        except UsageError as error:
            raise InputError(f"quantization options: {error}") from None
