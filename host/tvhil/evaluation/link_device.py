# SPDX-License-Identifier: Apache-2.0
"""A board at the other end of a link, as an evaluation sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tvhil.errors import BoardError
from tvhil.evaluation.device import DeviceFacts, Run
from tvhil.evaluation.report import LINK_COUNTERS
from tvhil.link import BoardFaultError, BoardInfo, BoardResetError, LinkClient, RunResult, TraceRecord
from tvhil.packing.reader import TvitModel

# A board that restarts or crashes during an image gets it again so many times.
_MOST_RESTARTS = 2


class LinkDevice:
    """Runs one model through a connected `LinkClient`; see `device.Device` for the methods.

    Args:
        client: connected.
        model: what the board should run.
        notice: told, in one line, when the board restarted and an image is repeated.
        details: what the board cannot know of itself, such as the version of its emulator.
    """

    def __init__(
        self,
        client: LinkClient,
        model: TvitModel,
        notice: Callable[[str], None] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.client, self.model = client, model
        self._notice, self._details = notice, details or {}
        self._info: BoardInfo = client.info()

    def facts(self) -> DeviceFacts:
        """What the board says of itself; a `RemoteError` tells why it has no usable model."""
        info = self._info
        details: dict[str, Any] = {
            "port": info.port,
            "firmware": info.firmware_version,
            "cpu_mhz": info.clock_hz / 1e6 if info.clock_hz else None,
            "memories": {memory.name: memory.bytes for memory in info.memories},
            **info.details,
            **self._details,
        }
        signature = self.client.model_info().signature.hex()
        return DeviceFacts(signature, info.latency_unit, info.build_id or info.firmware_version, details)

    def run(self, image: npt.NDArray[np.uint8], *, crcs: bool = False, last: int | None = None) -> Run:
        """Send an image and run it; once more when the board restarted in between."""
        for attempt in range(_MOST_RESTARTS + 1):
            try:
                return self._run(image.tobytes(), crcs, last)
            except (BoardResetError, BoardFaultError) as error:
                if attempt == _MOST_RESTARTS:
                    raise
                if self._notice:
                    self._notice(f"{error} - repeating the image")
                self._reconnect()
        raise AssertionError("unreachable")

    def _reconnect(self) -> None:
        self.client.connect()
        signature = self.client.model_info().signature.hex()
        if signature != self.model.signature:
            raise BoardError(f"after its restart the board runs another model ({signature[:16]}…): flash it again")

    def _run(self, image: bytes, crcs: bool, last: int | None) -> Run:
        operators = len(self.model.operators) if last is None else last + 1
        counters = self._info.trace_capacity >= operators
        result = self.client.infer(image, last=last, counters=counters, crcs=crcs)
        shape = self.model.tensors[result.output]
        if shape.per_token:
            output = self._values(result.output)
        else:
            output = self._shaped(result.output, self.client.read_output(result, shape.value_bytes))
        layers: Sequence[float] | None = None
        found: list[TraceRecord] = self.client.trace(result) if counters or crcs else []
        if counters:
            layers = [self._info.latency(record.counter) for record in found]
        while crcs and found and len(found) < operators:
            more: RunResult = self.client.infer(image, last=last, crcs=True, trace_first=len(found))
            found += self.client.trace(more)
        return Run(output, self._info.latency(result.counter), layers, [r.crc for r in found] if crcs else None)

    def _values(self, tensor: int) -> npt.NDArray[np.integer[Any]]:
        return self._shaped(tensor, self.client.read_tensor(tensor, self.model.tensors[tensor].value_bytes))

    def _shaped(self, tensor: int, data: bytes) -> npt.NDArray[np.integer[Any]]:
        shape = self.model.tensors[tensor]
        values: npt.NDArray[np.integer[Any]] = np.frombuffer(data, shape.dtype.numpy).reshape(shape.rows, shape.columns)
        return values

    def read_tensor(self, tensor: int) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.uint16] | None]:
        """Values and multipliers that the last run left in the arena."""
        shape = self.model.tensors[tensor]
        values = self._values(tensor)
        if not shape.per_token:
            return values, None
        return values, np.frombuffer(self.client.read_multipliers(tensor, shape.rows), "<u2")

    def memory(self) -> dict[str, Any]:
        """High-water marks, under the keys of a report; null where the board does not know."""
        report = self.client.memory()
        return {
            "arena": {"measured": report.arena_used or None},
            "stack": {"measured": report.stack_used or None, "limit": report.stack_bytes or None},
            "static": report.static_bytes or None,
            "model_bytes": report.model_bytes or None,
            "heap": report.heap_used if report.heap_bytes else None,
        }

    def link_statistics(self) -> Sequence[int]:
        """Totals of the link."""
        return [getattr(self.client.statistics, name) for name in LINK_COUNTERS]
