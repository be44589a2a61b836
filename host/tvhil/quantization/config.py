# SPDX-License-Identifier: Apache-2.0
"""How a model is quantized; no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from tvhil.errors import InputError, UsageError
from tvhil.packing.format import ScaleMode

CALIBRATIONS = ("absmax", "percentile", "mse")
RULES = (
    "twn", "twn_matrix", "absmean", "absmean_channel", "binary", "binary_matrix", "int8", "int8_matrix", "learned",
    "learned_matrix",
)  # fmt: skip
GRADIENTS = ("straight_through", "clipped")
FULL_PRECISION = ("patch_embed", "norm", "head")
_FIELDS = {
    "ternarizer": str, "scale_mode": str, "calibration": str, "learn_scales": bool, "grid": bool, "gradient": str,
    "full_precision": list,
}  # fmt: skip


@dataclass(frozen=True)
class QuantizationConfig:
    """Options of a fake-quantized model.

    Attributes:
        ternarizer: rule for every matrix and normalization parameter, one of `RULES`; they are in `ternarizers`.
        scale_mode: activation scales, static or per token.
        calibration: how static int8 scales are found: 'absmax' (nothing is clipped), 'percentile' (99.99 % of the
            magnitudes are inside) or 'mse' (least squared error of rounding and clipping).
        learn_scales: train the activation scales (LSQ, arXiv 1902.08153).
        grid: put weight scales on the contract's grid of gains and shifts. Without it a model shows what the grid
            costs, but cannot be converted.
        gradient: of latent weights, 'straight_through' or 'clipped' (zero beyond two scales).
        full_precision: what keeps its real weights, of 'patch_embed', 'norm' and 'head' (earlier ternary ViTs keep all
            three); such a model trains, but the contract cannot express it.
    """

    ternarizer: str = "twn"
    scale_mode: ScaleMode = ScaleMode.STATIC
    calibration: str = "mse"
    learn_scales: bool = False
    grid: bool = True
    gradient: str = "straight_through"
    full_precision: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ternarizer not in RULES:
            raise UsageError(f"no ternarizer is called {self.ternarizer!r}; known: {', '.join(RULES)}")
        if self.calibration not in CALIBRATIONS:
            raise UsageError(f"no calibration is called {self.calibration!r}; known: {', '.join(CALIBRATIONS)}")
        if self.gradient not in GRADIENTS:
            raise UsageError(f"no gradient is called {self.gradient!r}; known: {', '.join(GRADIENTS)}")
        object.__setattr__(self, "full_precision", tuple(self.full_precision))
        unknown = [name for name in self.full_precision if name not in FULL_PRECISION]
        if unknown:
            raise UsageError(f"{unknown[0]!r} cannot keep full precision, only {', '.join(FULL_PRECISION)} can")

    @property
    def per_token(self) -> bool:
        """Whether activations are scaled per token."""
        return self.scale_mode is ScaleMode.PER_TOKEN

    @property
    def learned(self) -> bool:
        """Whether thresholds and scales of matrices are trained."""
        return self.ternarizer.startswith("learned")

    @property
    def clipped(self) -> bool:
        """Whether weights far from their level get no gradient."""
        return self.gradient == "clipped"

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
