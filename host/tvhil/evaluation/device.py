# SPDX-License-Identifier: Apache-2.0
"""What an evaluation needs of a running board; `link_device.LinkDevice` is the real one, tests bring their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Run:
    """One inference on a board.

    Attributes:
        output: values of the tensor that the last operator wrote, `[rows][columns]`: the logits of a whole run.
        latency: counter of the run in the board's unit, or None where the board has no counter.
        layers: the same for each operator, or None where it was not asked for.
        crcs: CRC-32 of each operator's output, or None where it was not asked for.
    """

    output: npt.NDArray[np.integer[Any]]
    latency: float | None = None
    layers: Sequence[float] | None = None
    crcs: Sequence[int] | None = None


@dataclass(frozen=True)
class DeviceFacts:
    """What the board says of itself.

    Attributes:
        signature: of the model that it has loaded, hex.
        unit: of its counter: 'cycles', 'instructions' or 'seconds'.
        build: identifies its firmware.
        details: whatever else it tells (chip revision, clock, memories, emulator version).
    """

    signature: str
    unit: str | None = None
    build: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Device(Protocol):
    """A board that runs one model. Every method raises `BoardError` when the board does not answer."""

    def facts(self) -> DeviceFacts:
        """What the board says of itself."""

    def run(self, image: npt.NDArray[np.uint8], *, crcs: bool = False, last: int | None = None) -> Run:
        """Send an image `[H][W][C]` and run the operators 0 … `last` (None: all), with per-operator counters."""

    def read_tensor(self, tensor: int) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.uint16] | None]:
        """Values `[rows][columns]` and per-token multipliers of a tensor that the last run left in memory."""

    def memory(self) -> dict[str, Any]:
        """Measured memory under the keys of a report: arena, stack, static, model_bytes, heap."""

    def link_statistics(self) -> Sequence[int]:
        """Totals since the start in the order of `report.LINK_COUNTERS`."""

    def injected_faults(self) -> Mapping[str, int] | None:
        """Faults made on purpose so far, by their kinds; None where the line is as it is."""
