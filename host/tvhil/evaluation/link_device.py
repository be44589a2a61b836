# SPDX-License-Identifier: Apache-2.0
"""A board at the other end of a link, as an evaluation sees it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tvhil.errors import BoardError
from tvhil.evaluation.device import DeviceFacts, Run
from tvhil.evaluation.report import LINK_COUNTERS
from tvhil.link import (
    BoardFaultError,
    BoardInfo,
    BoardResetError,
    LinkClient,
    LinkClosedError,
    LinkError,
    LinkTimeoutError,
    MemoryReport,
    RemoteError,
    RunResult,
    TraceRecord,
)
from tvhil.link.faults import FaultyTransport
from tvhil.packing.reader import TvitModel

# How often one image is repeated. A crash that repeats itself is the image's, a silence that does is the board's; a
# hang is ended by a watchdog that may be more patient (ESP32-S3: 20 s) than one handshake, and less than two.
_MOST_REPEATS: dict[type[LinkError], int] = {
    BoardFaultError: 2,
    LinkTimeoutError: 2,
    BoardResetError: 8,
    LinkClosedError: 8,
}
REOPEN_SECONDS = 60.0  # patience with a port that is gone
_REOPEN_PAUSE = 0.2
T = TypeVar("T")


class LinkDevice:
    """Runs one model through a connected `LinkClient`; see `device.Device` for the methods.

    Args:
        client: connected.
        model: what the board should run.
        notice: told, in one line, when the board or the line was lost and an image is repeated.
        details: what the board cannot know of itself, such as the version of its emulator.
        upload: give a board that lost its model another copy in RAM.

    Attributes:
        gone: given up (`give_up`).
    """

    def __init__(
        self,
        client: LinkClient,
        model: TvitModel,
        notice: Callable[[str], None] | None = None,
        details: Mapping[str, Any] | None = None,
        upload: bool = False,
    ) -> None:
        self.client, self.model = client, model
        self.gone = False
        self._notice, self._details, self._upload = notice, details or {}, upload
        self._last_run: tuple[bytes, bool, int | None] = b"", False, None
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
        """Send an image and run it; again when the board or the line was lost in between."""
        self._last_run = image.tobytes(), crcs, last
        return self._recovering(lambda: self._run(*self._last_run), "repeating the image")

    def _recovering(self, action: Callable[[], T], then: str) -> T:
        """Do something with the board, and again when it restarted, crashed, went silent or its line was lost.

        A board that goes on doing that is given up: what it did last is raised.
        """
        lost: LinkError | None = None
        seen: Counter[type[LinkError]] = Counter()
        while True:
            try:
                if lost is not None:
                    self._reconnect(lost)
                    lost = None
                return action()
            except (BoardResetError, BoardFaultError, LinkClosedError, LinkTimeoutError) as error:
                lost = error
                seen[type(error)] += 1
                if self.gone or seen[type(error)] > _MOST_REPEATS[type(error)]:
                    raise
                if self._notice:
                    self._notice(f"{error} - {then}")

    def _reconnect(self, lost: LinkError) -> None:
        if isinstance(lost, LinkClosedError | LinkTimeoutError):
            self._reopen()
        self.client.connect()
        signature = self._signature()
        if signature != self.model.signature and self._upload:
            self.client.upload_model(self.model.file)
            signature = self._signature()
        if signature != self.model.signature:
            raise BoardError(f"after its restart the board runs another model ({signature[:16]}…): flash it again")

    def _signature(self) -> str:
        """Of the model in use; of none, where the board can be given one."""
        try:
            return self.client.model_info().signature.hex()
        except RemoteError:
            if not self._upload:
                raise
            return ""

    def _reopen(self) -> None:
        """Wait for a port that is gone: a cable that is plugged in again, a USB board that restarts."""
        deadline = time.monotonic() + REOPEN_SECONDS
        while True:
            try:
                self.client.transport.reopen()
                return
            except LinkClosedError:
                if time.monotonic() > deadline or self.gone:
                    raise
                time.sleep(_REOPEN_PAUSE)

    def _run(self, image: bytes, crcs: bool, last: int | None) -> Run:
        operators = len(self.model.operators) if last is None else last + 1
        counters = self._info.trace_capacity >= operators
        result = self.client.infer(image, last=last, counters=counters, crcs=crcs)
        output = self._values(result.output)
        if not self.model.tensors[result.output].per_token:
            region = self.model.output_region(self.model.operators[operators - 1])
            self.client.check_output(result, output[region.slices].tobytes())
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
        """Values and multipliers that the last run left in the arena; where they are lost, it is run again."""
        lost = False

        def read() -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.uint16] | None]:
            nonlocal lost
            if lost:
                self._run(*self._last_run)
            lost = True
            return self._tensor(tensor)

        return self._recovering(read, "repeating the image")

    def _tensor(self, tensor: int) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.uint16] | None]:
        shape = self.model.tensors[tensor]
        values = self._values(tensor)
        if not shape.per_token:
            return values, None
        return values, np.frombuffer(self.client.read_multipliers(tensor, shape.rows), "<u2")

    def memory(self) -> dict[str, Any]:
        """High-water marks, under the keys of a report; null where the board does not know."""
        lost = False

        def ask() -> MemoryReport:
            nonlocal lost
            if lost and self._last_run[0]:
                self._run(*self._last_run)  # a board that restarted has no marks
            lost = True
            return self.client.memory()

        report = self._recovering(ask, "running the last image again")
        return {
            "arena": {"measured": report.arena_used or None},
            "stack": {"measured": report.stack_used or None, "limit": report.stack_bytes or None},
            "second_stack": {"measured": report.second_stack_used, "limit": report.second_stack_bytes}
            if report.second_stack_bytes
            else None,
            "static": report.static_bytes or None,
            "model_bytes": report.model_bytes or None,
            "heap": report.heap_used if report.heap_bytes else None,
        }

    def temperature(self) -> float | None:
        """Degrees Celsius of the chip, from `temperature_c` of the board's details; None where it has no sensor."""
        details = self._recovering(self.client.info, "asking again for its temperature").details
        try:
            return float(details["temperature_c"])
        except (KeyError, ValueError):
            return None

    def link_statistics(self) -> Sequence[int]:
        """Totals of the link."""
        return [getattr(self.client.statistics, name) for name in LINK_COUNTERS]

    def injected_faults(self) -> Mapping[str, int] | None:
        """Faults of the `FaultyTransport` that the link goes through, if it does."""
        line = self.client.transport
        return {kind.value: n for kind, n in line.counts.items()} if isinstance(line, FaultyTransport) else None

    def give_up(self) -> None:
        """From another thread: what the board is doing fails now, and is not repeated."""
        self.gone = True
        self.client.transport.close()
