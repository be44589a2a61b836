# SPDX-License-Identifier: Apache-2.0
"""What others have published for the ESP32-S3 at 240 MHz: int8 operators and networks, measured on silicon by them.

Multiply-accumulates follow from the shapes, cycles from the published microseconds or ticks. Nobody has published a
matrix product, an attention or a LayerNorm of a transformer for this chip, so these are the nearest there are. Some of
the sources leave the memory open; it is named where they do not.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

CLOCK_HZ = 240e6


@dataclass(frozen=True)
class Published:
    """One figure.

    Attributes:
        source: project and document.
        what: operator and shape, or network and image size.
        macs: multiply-accumulates.
        cycles: of the chip's clock, of one inference.
        memory: where weights and activations are, as far as it is said.
        cores: that worked.
        kind: 'operator' or 'network'.
    """

    source: str
    what: str
    macs: float
    cycles: float
    memory: str = "external"
    cores: int = 1
    kind: str = "operator"

    @property
    def mac_per_cycle(self) -> float:
        """Of all cores together."""
        return self.macs / self.cycles

    def to_json(self) -> dict[str, Any]:
        """For the result of a bench."""
        return {**asdict(self), "mac_per_cycle": self.mac_per_cycle, "measured_on": "silicon"}


_DL_OPERATORS, _DL_MODELS, _NN = "ESP-DL operator_performance.md", "ESP-DL models", "ESP-NN README.md"
_MS = CLOCK_HZ / 1000

PUBLISHED = (
    Published(_DL_OPERATORS, "conv 5x5 stride 2, 22x22x16 to 32 channels", 1_548_800, 233_760, "octal PSRAM"),
    Published(_DL_OPERATORS, "conv 3x3 stride 2, 19x23x32 to 16 channels", 552_960, 115_680, "octal PSRAM"),
    Published(_DL_OPERATORS, "conv 1x1, 20x20x16 to 32 channels", 204_800, 101_280, "octal PSRAM"),
    Published(_NN, "conv 1x1, 10x10x64 to 64 channels", 409_600, 331_008, "quad external"),
    Published(_NN, "fully connected, 271 to 3", 813, 1_078, "internal"),
    Published(_DL_MODELS, "MobileNetV2, 224x224", 300.8e6, 1309.5 * _MS, kind="network"),
    Published(_DL_MODELS, "MobileNetV2, 224x224", 300.8e6, 867.0 * _MS, cores=2, kind="network"),
    Published(_DL_MODELS, "MobileFaceNet (mfn_s8), 112x112", 0.23e9, 248.8 * _MS, kind="network"),
    Published(_NN, "person detection, 96x96", 7.2e6, 47 * _MS, "internal", kind="network"),
)
