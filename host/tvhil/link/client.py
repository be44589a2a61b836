# SPDX-License-Identifier: Apache-2.0
"""What a host can ask of a board, typed.

Every method raises a `LinkError`: `LinkTimeoutError`, `LinkClosedError`, `BoardResetError`, `BoardFaultError`,
`RemoteError`. After a `BoardResetError` connect again and repeat the image.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tvhil.link import messages
from tvhil.link.errors import BoardFaultError, BoardResetError, LinkError, LinkTimeoutError, RemoteError
from tvhil.link.messages import (
    BoardInfo,
    Capability,
    ErrorCode,
    HelloAnswer,
    MemoryReport,
    ModelInfo,
    ModelSource,
    Region,
    Request,
    RunFlag,
    RunResult,
    TestFault,
    TraceRecord,
)
from tvhil.link.session import Ask, LinkStatistics, LinkTimeouts, Session, pieces
from tvhil.link.transports import Transport

T = TypeVar("T")
Progress = Callable[[int, int], None]  # bytes done, bytes in all
_RESETS = 4
_SLOW_REPEAT = 2.0  # seconds; the board reads megabytes for it


class LinkClient:
    """A board at the other end of a transport.

    Args:
        transport: an open line; `close` closes it.
        timeouts: how patient to be.
        seed: of session numbers and nonces; None for random ones.
        log: receives what the firmware logs.
        rates: that a serial line may go up to, best first.
    """

    def __init__(
        self,
        transport: Transport,
        timeouts: LinkTimeouts | None = None,
        seed: int | None = None,
        log: Callable[[str], None] | None = None,
        rates: Sequence[int] = (),
    ) -> None:
        self.transport = transport
        self.session = Session(transport, timeouts, seed, log, rates)

    @property
    def timeouts(self) -> LinkTimeouts:
        """How patient this client is."""
        return self.session.timeouts

    @property
    def statistics(self) -> LinkStatistics:
        """Totals since the client was made."""
        return self.session.statistics

    @property
    def hello(self) -> HelloAnswer:
        """What the session agreed on."""
        if self.session.hello is None:
            raise LinkError(f"{self.session.name}: not connected")
        return self.session.hello

    def connect(self, reset_after_fault: bool = True) -> HelloAnswer:
        """Open a session; also to come back after a reset or an interrupted run.

        Args:
            reset_after_fault: reset a board that is found reporting a fault, and connect then.
        """
        try:
            return self.session.open()
        except BoardFaultError:
            if not reset_after_fault:
                raise
            return self.reset()

    def close(self) -> None:
        """Close the transport."""
        self.transport.close()

    def __enter__(self) -> LinkClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def info(self) -> BoardInfo:
        """Board, firmware, clock, counter, memories."""
        payload = self.session.ask(Ask(Request.INFO))
        return self._parsed("INFO", BoardInfo.unpack, payload)

    def model_info(self) -> ModelInfo:
        """The model in use. A `RemoteError` tells why there is none."""
        payload = self.session.ask(Ask(Request.MODEL_INFO))
        return self._parsed("MODEL_INFO", ModelInfo.unpack, payload)

    def memory(self, repaint: bool = False) -> MemoryReport:
        """Sizes and high-water marks.

        Args:
            repaint: forget the marks afterwards; the content of all tensors is lost.
        """
        flags = messages.MEMORY_REPAINT if repaint else 0
        ask = Ask(Request.MEMORY, flags.to_bytes(4, "little"), least_repeat=_SLOW_REPEAT)
        return self._parsed("MEMORY", MemoryReport.unpack, self.session.ask(ask))

    def echo(self, data: bytes) -> bytes:
        """Send up to `hello.max_payload` bytes and return what comes back."""
        return self.session.ask(Ask(Request.ECHO, data, answer_bytes=len(data)))

    def load_image(self, image: bytes, progress: Progress | None = None) -> int:
        """Write the image, `[H][W][C]` u8, into the board's tensor 0 and return the CRC-32 that `run` needs."""
        self.write(Region.TENSOR, 0, image, progress)
        return zlib.crc32(image)

    def run(
        self,
        image_crc: int,
        *,
        last: int | None = None,
        counters: bool = False,
        crcs: bool = False,
        trace_first: int = 0,
        progress_every: int = 8,
    ) -> RunResult:
        """Run the operators 0 … `last` (None: all) on the image that was loaded; it is gone afterwards.

        Args:
            image_crc: from `load_image`.
            counters, crcs: record each operator's ticks, the CRC-32 of its output; read them with `trace`.
            trace_first: the operator at which recording starts.
            progress_every: operators between two signs of life.
        """
        flags = (RunFlag.TRACE_COUNTERS if counters else RunFlag(0)) | (RunFlag.TRACE_CRC if crcs else RunFlag(0))
        until = messages.ALL if last is None else last
        payload = messages.RUN.pack(flags, progress_every, until, trace_first, image_crc)
        ask = Ask(Request.RUN, payload, answer_bytes=messages.RUN_ANSWER.size, runs=True)
        return RunResult.unpack(self.session.ask(ask))

    def infer(self, image: bytes, **options: bool | int | None) -> RunResult:
        """`load_image` and `run`, once more where the board had to be told the image again."""
        for attempt in range(3):
            crc = self.load_image(image)
            try:
                return self.run(crc, **options)  # type: ignore[arg-type]
            except RemoteError as error:
                if error.code != ErrorCode.IMAGE_CRC or attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def trace(self, result: RunResult) -> list[TraceRecord]:
        """The records of the last run."""
        data = self.read(Region.TRACE, 0, result.trace_count * messages.TRACE.size)
        return [TraceRecord(*fields) for fields in messages.TRACE.iter_unpack(data)]

    def read_tensor(self, tensor: int, size: int) -> bytes:
        """The values of a tensor as rows, `size` bytes, that are in the arena now."""
        return self.read(Region.TENSOR, tensor, size)

    def read_multipliers(self, tensor: int, rows: int) -> bytes:
        """The per-token multipliers of a tensor, u16 a row."""
        return self.read(Region.MULTIPLIERS, tensor, 2 * rows)

    def read_output(self, result: RunResult, size: int) -> bytes:
        """The values of the tensor that the last run ended with, checked against the board's CRC-32.

        Raises:
            LinkError: the bytes are not what the board computed. Only for a tensor without multipliers that the last
                operator wrote whole.
        """
        data = self.read_tensor(result.output, size)
        self.check_output(result, data)
        return data

    def check_output(self, result: RunResult, written: bytes) -> None:
        """Compare what was read of the last operator's output, row by row, with the board's CRC-32.

        Raises:
            LinkError: it is not what the board computed.
        """
        if zlib.crc32(written) != result.output_crc:
            raise LinkError(f"{self.session.name}: tensor {result.output} was overwritten or arrived damaged")

    def read(
        self, region: Region, identifier: int, size: int, offset: int = 0, progress: Progress | None = None
    ) -> bytes:
        """`size` bytes of a region from `offset` on."""

        def asks() -> Iterator[Ask]:
            for at, length in pieces(size, self.session.chunking):
                payload = messages.READ.pack(region, 0, identifier, offset + at, length)
                yield Ask(Request.READ, payload, answer_bytes=length, chunk=True)

        return b"".join(self._transfer(asks(), size, progress))

    def write(self, region: Region, identifier: int, data: bytes, progress: Progress | None = None) -> None:
        """Write a region from its start: tensor 0, or the RAM for a model."""

        def asks() -> Iterator[Ask]:
            for at, length in pieces(len(data), self.session.chunking):
                header = messages.WRITE.pack(region, 0, identifier, at)
                yield Ask(Request.WRITE, header + data[at : at + length], answer_bytes=0, chunk=True)

        self._transfer(asks(), len(data), progress)

    def checksum(
        self, region: Region, identifier: int = 0, offset: int = 0, size: int | None = None
    ) -> tuple[int, int]:
        """CRC-32 of a region (to its end where no size is given), and the size of the whole region."""
        payload = messages.READ.pack(region, 0, identifier, offset, messages.ALL if size is None else size)
        ask = Ask(
            Request.CHECKSUM,
            payload,
            answer_bytes=messages.CHECKSUM_ANSWER.size,
            patience=self.timeouts.load,
            least_repeat=_SLOW_REPEAT,
        )
        crc, _, total = messages.CHECKSUM_ANSWER.unpack(self.session.ask(ask))
        return crc, total

    def upload_model(self, file: bytes, progress: Progress | None = None) -> ModelInfo:
        """Write a model into the board's RAM, check that it arrived, and use it until the next reset."""
        if Capability.MODEL_RAM not in self.hello.capabilities:
            raise LinkError(f"{self.session.name}: this board has no RAM for a model; flash the model instead")
        room = self.info().model_ram_bytes
        if len(file) > room:
            raise LinkError(f"{self.session.name}: the model has {len(file):,} bytes, the board room for {room:,}")
        self.write(Region.MODEL_RAM, 0, file, progress)
        crc, _ = self.checksum(Region.MODEL_RAM, size=len(file))
        if crc != zlib.crc32(file):
            raise LinkError(f"{self.session.name}: the model arrived damaged; upload it again")
        self.load_model(ModelSource.RAM, len(file))
        return self.model_info()

    def load_model(self, source: ModelSource, size: int = 0) -> None:
        """Use the model in flash, or the first `size` bytes of the uploaded one. A `RemoteError` tells a refusal."""
        payload = int(source).to_bytes(4, "little") + size.to_bytes(4, "little")
        self.session.ask(Ask(Request.MODEL_LOAD, payload, 0, patience=self.timeouts.load, least_repeat=_SLOW_REPEAT))

    def reset(self) -> HelloAnswer:
        """Restart the board, also one that reports a fault, and connect again."""
        if self.session.hello is None:
            with contextlib.suppress(BoardFaultError):
                self.session.open()
        ask = Ask(Request.RESET, messages.RESET_KEY.to_bytes(4, "little"), answer_bytes=0)
        for _ in range(_RESETS):
            # A BOOT, a lost session, or an earlier report of the fault that we reset: each is as good as the answer.
            with contextlib.suppress(BoardResetError, BoardFaultError, LinkTimeoutError):
                self.session.ask(ask)
            with contextlib.suppress(BoardFaultError):
                return self.session.open()
        raise LinkError(f"{self.session.name}: the board reports its fault again after {_RESETS} resets; cut its power")

    def provoke(self, kind: TestFault) -> None:
        """Make the board fail, where it is armed for that; the next request learns of it."""
        ask = Ask(Request.TEST_FAULT, int(kind).to_bytes(4, "little"), answer_bytes=0)
        with contextlib.suppress(BoardFaultError):  # the report may come along with the answer
            self.session.ask(ask)

    def _transfer(self, asks: Iterator[Ask], total: int, progress: Progress | None) -> list[bytes]:
        moved = 0

        def done(ask: Ask) -> None:
            nonlocal moved
            moved += ask.answer_bytes or len(ask.payload) - messages.WRITE.size
            if progress is not None:
                progress(moved, total)

        return self.session.exchange(asks, done)

    def _parsed(self, request: str, parse: Callable[[bytes], T], payload: bytes) -> T:
        try:
            return parse(payload)
        except ValueError as error:
            raise LinkError(
                f"{self.session.name}: malformed answer to {request} ({error}): host and firmware do not fit together"
            ) from error
