# SPDX-License-Identifier: Apache-2.0
"""Requests and answers over a line that loses, damages and doubles bytes (device/PROTOCOL.md, sections 2 and 3)."""

from __future__ import annotations

import contextlib
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tvhil.link import framing, messages
from tvhil.link.errors import (
    BoardFaultError,
    BoardResetError,
    LinkClosedError,
    LinkError,
    LinkTimeoutError,
    LinkVersionError,
    RemoteError,
)
from tvhil.link.framing import Frame
from tvhil.link.messages import Capability, ErrorCode, Event, Fault, HelloAnswer, Request
from tvhil.link.transports import Transport
from tvhil.packing.format import Status

_MOST_PENDING = 64
_REMEMBERED = 1024  # transmissions whose fate is open
_SMALLEST_CHUNK, _LARGEST_CHUNK = 128, 4096
_TRIAL_PATIENCE = 1.0  # seconds for an answer at a rate that is on trial
_LONG_PATIENCE = 3.0  # and for one of the largest size
_FIRST_BAUD = 115_200  # of a board behind a line without a rate, such as the socket of an emulator
_TRIAL_PATTERN = bytes(range(0, 256, 8))  # short: the board counts what it receives on trial


@dataclass(frozen=True)
class LinkTimeouts:
    """How patient a host is, in seconds.

    Attributes:
        connect: until the board answers HELLO (it may be starting, or loading a model).
        request: without an answer to anything, repeats included.
        run: without a sign of life from a run.
        load: until a model is checked.
        first_repeat: until the first repeat, as long as no round trip has been measured.
        least_repeat, most_repeat: bounds of the time until a repeat.
    """

    connect: float = 10.0
    request: float = 5.0
    run: float = 60.0
    load: float = 60.0
    first_repeat: float = 0.5
    least_repeat: float = 0.2  # as TCP does; a busy machine may hold up an emulator that long
    most_repeat: float = 2.0


@dataclass
class LinkStatistics:
    """What a link has done since it was opened.

    Attributes:
        frames: sent and received, bad ones excluded.
        retries: frames sent again.
        crc_errors: bad frames received.
        naks: bad frames that the board told of.
        timeouts: repeats because nothing came at all.
        probes: RUN sent again to see whether the board is alive.
        seconds: spent in requests.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    frames: int = 0
    retries: int = 0
    crc_errors: int = 0
    naks: int = 0
    timeouts: int = 0
    probes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        type: what to do.
        payload: its arguments.
        answer_bytes: length of the answer, None where any will do.
        patience: seconds until giving up; None for that of the link.
        least_repeat: not to be repeated earlier; for work that takes the board long.
        runs: answered by PROGRESS first, and may take as long as that keeps coming.
        chunk: a piece of a long transfer, by which the loss on the line is judged.
    """

    type: Request
    payload: bytes = b""
    answer_bytes: int | None = None
    patience: float | None = None
    least_repeat: float = 0.0
    runs: bool = False
    chunk: bool = False


@dataclass
class _Pending:
    ask: Ask
    index: int  # in the exchange
    number: int  # of the request
    attempts: int = 0
    line_bytes: int = 0
    order: int = 0  # of its last transmission
    first_sent: float = 0.0
    sent: float = 0.0
    on_line: float = 0.0  # seconds that request and answer take on the line, as far as that is known
    backoff: int = 1
    lost: bool = False  # at least once, as a later frame or a bad one told
    started: bool = False  # PROGRESS has come: from now on
    heard: float = 0.0  # when it came last
    probe: float = 0.0  # and how long to wait before asking again


class RoundTrip:
    """Time until a repeat, by RFC 6298; what its section 3 leaves out, a repeated request, is measured too."""

    def __init__(self, timeouts: LinkTimeouts) -> None:
        self._timeouts = timeouts
        self._mean: float | None = None
        self._deviation = 0.0

    def sample(self, seconds: float) -> None:
        """A measured round trip."""
        if self._mean is None:
            self._mean, self._deviation = seconds, seconds / 2
        else:
            self._deviation += (abs(seconds - self._mean) - self._deviation) / 4
            self._mean += (seconds - self._mean) / 8

    @property
    def wait(self) -> float:
        """Seconds without any answer after which something is lost."""
        limits = self._timeouts
        if self._mean is None:
            return limits.first_repeat
        # Three times the mean at least: on a serial line it hardly varies, until the frames get twice as long.
        seconds = self._mean + max(4 * self._deviation, 2 * self._mean)
        return min(max(seconds, limits.least_repeat), limits.most_repeat)


class Chunking:
    """Length of the pieces of a long transfer: shorter where frames are lost, longer where they are not.

    A frame of L bytes with h bytes of its own is lost with a probability of about 8 L times the bit error rate; the
    best L is sqrt(h / (8 rate)), at which that probability is sqrt(8 h rate): 4 % for 20 bytes and 1e-5.
    """

    _TOO_MANY, _FEW, _MEMORY = 0.06, 0.015, 1 / 64

    def __init__(self) -> None:
        self.limit = _LARGEST_CHUNK
        self.bytes = _LARGEST_CHUNK
        self._loss = 0.0

    def set_limit(self, most: int) -> None:
        """Longest piece that the board takes."""
        self.limit = max(_SMALLEST_CHUNK, most)
        self.bytes = self.limit

    def record(self, lost: bool) -> None:
        """One piece got through, at once or not."""
        self._loss += (lost - self._loss) * self._MEMORY
        if self._loss > self._TOO_MANY and self.bytes > _SMALLEST_CHUNK:
            self.bytes = max(_SMALLEST_CHUNK, self.bytes // 2)
            self._loss /= 2
        elif self._loss < self._FEW and self.bytes < self.limit:
            self.bytes = min(self.limit, self.bytes * 2)
            self._loss *= 2


class Session:
    """One session with a board. Not for use from several threads.

    Args:
        transport: an open line; the session does not close it.
        timeouts: how patient to be.
        seed: of session number and nonce; None for a random one.
        log: receives the texts of LOG events.
        rates: that the line may go up to, best first.
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
        self._rates = tuple(rates)
        self._first_rate = transport.baud  # that the board starts with
        self.timeouts = timeouts or LinkTimeouts()
        self.statistics = LinkStatistics()
        self.hello: HelloAnswer | None = None
        self.chunking = Chunking()
        self._log = log
        self._random = random.Random(seed)
        self._decoder = framing.Decoder()
        self._round_trip = RoundTrip(self.timeouts)
        self._session = 0
        self._number = self._random.randrange(4096)
        self._order = 0
        # Transmissions that the board has not told the fate of, oldest first: sequence -> order, time. Each of them, a
        # needless repeat too, brings back one frame or one bad frame, so a bad frame never costs more than one repeat.
        self._flight: OrderedDict[int, tuple[int, float]] = OrderedDict()
        self._pending: OrderedDict[int, _Pending] = OrderedDict()  # by number, in order of transmission
        self._last_frame = 0.0  # good or bad
        self._last_repeat = 0.0  # by the timer
        self._last_heard = 0.0  # good, and of this session
        self._run_seconds = 0.0
        self._opening = False
        self._answers: dict[int, bytes] = {}
        self._done: Callable[[Ask], None] | None = None

    @property
    def name(self) -> str:
        """How messages call the board's port."""
        return self.transport.name

    def open(self) -> HelloAnswer:
        """Open a new session, which ends whatever the board was doing.

        Where the line has rates, the board is looked for at the one that it starts with and at those that an earlier
        host may have left it at, and then the line goes up to the best rate that both ends and the cable bear.

        Raises:
            LinkTimeoutError: nobody answers.
            LinkVersionError: the firmware speaks another version.
            BoardFaultError: the firmware has crashed and waits for a reset.
        """
        if not self._rates:
            return self._open(self.timeouts.connect)
        answer = self._found()
        if Capability.BAUD in answer.capabilities:
            for rate in self._rates:
                if (rate == self.transport.baud or self.change_baud(rate)) and self._bears_long_frames(answer):
                    return answer
            self.change_baud(self._first_rate or _FIRST_BAUD)
        return answer

    def _bears_long_frames(self, hello: HelloAnswer) -> bool:
        """Whether the largest frames come through, too: a UART that is too slow for its line loses them first."""
        try:
            self.ask(Ask(Request.ECHO, bytes(i & 255 for i in range(hello.max_payload)), patience=_LONG_PATIENCE))
        except LinkTimeoutError:
            return False
        return True

    def _found(self) -> HelloAnswer:
        """Open a session at the rate at which the board is; a line without a rate of its own needs no search."""
        if not self.transport.baud:
            return self._open(self.timeouts.connect)
        short = min(_TRIAL_PATIENCE, self.timeouts.connect)
        for rate in dict.fromkeys((self.transport.baud, self._first_rate, *self._rates)):
            self.transport.set_baud(rate)
            with contextlib.suppress(LinkTimeoutError):
                return self._open(short)
        self.transport.set_baud(self._first_rate)  # it may still be starting
        return self._open(self.timeouts.connect)

    def change_baud(self, baud: int) -> bool:
        """Change the rate of the line at both ends (device/PROTOCOL.md, section 7); False where it stays as it was.

        Raises:
            LinkError: the board answers at neither rate.
        """
        before, payload = self.transport.baud, baud.to_bytes(4, "little")
        try:
            self.ask(Ask(Request.SET_BAUD, payload, 0, patience=_TRIAL_PATIENCE))
        except RemoteError:
            return False
        except LinkTimeoutError:
            pass  # the answer may be what was lost
        if self._answers_at(baud, payload):
            return True
        self.transport.set_baud(before)
        self.transport.write(bytes(2 * messages.BAUD_TRIAL))  # ends the trial at the board; zeros are no frames
        self.ask(Ask(Request.ECHO, _TRIAL_PATTERN))
        return False

    def _answers_at(self, baud: int, payload: bytes) -> bool:
        try:
            self.transport.set_baud(baud)
            if self.ask(Ask(Request.ECHO, _TRIAL_PATTERN, patience=_TRIAL_PATIENCE)) == _TRIAL_PATTERN:
                self.ask(Ask(Request.SET_BAUD, payload, 0, patience=_TRIAL_PATIENCE))
                return True
        except (BoardResetError, BoardFaultError, LinkClosedError):
            raise
        except LinkError:
            pass  # silence, or our end does not know the rate
        return False

    def _open(self, patience: float) -> HelloAnswer:
        self.hello = None
        previous = self._session
        while self._session in (0, previous):
            self._session = self._random.randrange(1, 256)
        nonce = self._random.getrandbits(32)
        self._number = self._random.randrange(4096)
        hello = messages.HELLO.pack(messages.MAGIC, messages.LINK_VERSION, 0, nonce)
        self._opening = True
        try:
            payload = self.ask(Ask(Request.HELLO, hello, patience=patience))
            answer = HelloAnswer.unpack(payload)
        except LinkTimeoutError as error:
            heard = "sends bytes, but none of this protocol" if self.statistics.bytes_received else "is silent"
            raise LinkTimeoutError(
                f"{self.name}: no board answers after {patience:g} s: the port {heard}. "
                "Check port and baud rate, and that the tvhil firmware is flashed and running"
            ) from error
        except RemoteError as error:
            if error.code != ErrorCode.VERSION:
                raise
            raise self._version_error(error.index) from error
        except ValueError as error:
            message = f"{self.name}: the answer to HELLO is malformed: flash the firmware of this tvhil"
            raise LinkVersionError(message) from error
        finally:
            self._opening = False
        if answer.protocol_version != messages.LINK_VERSION:
            raise self._version_error(answer.protocol_version)
        self.hello = answer
        self.chunking.set_limit(min(answer.max_payload, framing.LIMIT_PAYLOAD) - messages.WRITE.size)
        return answer

    def ask(self, ask: Ask) -> bytes:
        """The answer to one request."""
        return self.exchange([ask])[0]

    def exchange(self, asks: Iterable[Ask], done: Callable[[Ask], None] | None = None) -> list[bytes]:
        """Several requests, as many at a time as the board's window allows, and their answers in order.

        Args:
            asks: is consumed as the window moves, so it may look at `chunking.bytes` each time.
            done: called with each request when it has been answered.

        Raises:
            LinkError: one of its kinds; requests still on their way are abandoned.
        """
        begin = self.transport.clock()
        self._pending.clear()
        self._answers = {}
        self._done = done
        self._last_frame = self._last_heard = begin
        waiting = iter(asks)
        following = next(waiting, None)
        count = 0
        try:
            while following is not None or self._pending:
                while following is not None and self._fits(following):
                    self._number = (self._number + 1) % 4096
                    self._transmit(_Pending(following, count, self._number))
                    count += 1
                    following = next(waiting, None)
                self._receive()
                self._repeat_late()
            return [self._answers[index] for index in range(count)]
        finally:
            self._pending.clear()
            self.statistics.seconds += self.transport.clock() - begin

    def _fits(self, ask: Ask) -> bool:
        if not self._pending:
            return True
        if self.hello is None or self.hello.window == 0 or len(self._pending) >= _MOST_PENDING:
            return False
        size = _line_bytes(len(ask.payload)) + sum(one.line_bytes for one in self._pending.values())
        answers = (ask.answer_bytes or 0) + sum(one.ask.answer_bytes or 0 for one in self._pending.values())
        return size <= self.hello.window and answers <= self.hello.window

    def _transmit(self, pending: _Pending) -> None:
        sequence = pending.number << 4 | pending.attempts & 15
        data = framing.encode(Frame(pending.ask.type, self._session, sequence, pending.ask.payload))
        self.transport.write(data)
        now = self.transport.clock()
        self._order += 1
        pending.order = self._order
        pending.line_bytes = len(data)
        pending.sent = now
        if pending.attempts == 0:
            pending.first_sent = now
            pending.on_line = (len(data) + (pending.ask.answer_bytes or 0)) * self.transport.seconds_per_byte
        elif not self._opening:  # a board that is still starting has lost nothing
            self.statistics.retries += 1
        pending.attempts += 1
        self._pending[pending.number] = pending
        self._pending.move_to_end(pending.number)
        self._flight[sequence] = pending.order, now
        self._flight.move_to_end(sequence)
        while len(self._flight) > _REMEMBERED:
            self._flight.popitem(last=False)
        self.statistics.bytes_sent += len(data)
        self.statistics.frames += 1

    def _deadline(self, pending: _Pending) -> float:
        if pending.started:
            return max(pending.sent, pending.heard) + pending.probe
        wait = self._round_trip.wait
        # Backing off, but with a dozen attempts before patience ends: half of the frames may be lost.
        wait = max(wait, min(wait * pending.backoff, self._patience(pending.ask) / 16))
        return max(pending.sent, self._last_frame, self._last_repeat) + max(
            wait + pending.on_line, pending.ask.least_repeat
        )

    def _patience(self, ask: Ask) -> float:
        return self.timeouts.request if ask.patience is None else ask.patience

    def _receive(self) -> None:
        oldest = next(iter(self._pending.values()))
        data = self.transport.read(max(0.0, self._deadline(oldest) - self.transport.clock()))
        self.statistics.bytes_received += len(data)
        for frame in self._decoder.feed(data):
            since, self._last_frame = self._last_frame, self.transport.clock()
            if frame is None:
                self.statistics.crc_errors += 1
                self._lose_oldest()
            else:
                self.statistics.frames += 1
                self._handle(frame, since)

    def _lose_oldest(self) -> None:
        """A bad frame, here or there: the fate of the oldest transmission."""
        if self._flight:
            self._repeat_lost([self._flight.popitem(last=False)])

    def _lose_up_to(self, sequence: int) -> None:
        """A frame that answers this transmission: no earlier one will be answered any more."""
        if sequence not in self._flight:
            return
        lost = []
        while (oldest := self._flight.popitem(last=False))[0] != sequence:
            lost.append(oldest)
        self._repeat_lost(lost)

    def _repeat_lost(self, transmissions: list[tuple[int, tuple[int, float]]]) -> None:
        for sequence, (order, _) in transmissions:
            pending = self._pending.get(sequence >> 4)
            if pending is not None and pending.order == order:
                pending.lost = True
                self._transmit(pending)

    def _repeat_late(self) -> None:
        if not self._pending:
            return
        now = self.transport.clock()
        pending = next(iter(self._pending.values()))
        if now < self._deadline(pending):
            return
        ask = pending.ask
        if pending.started:
            if now - pending.heard > self.timeouts.run:
                raise LinkTimeoutError(
                    f"{self.name}: the run gives no sign of life for {self.timeouts.run:g} s: "
                    "the board hangs, or is slower than that; reset it or allow it more time"
                )
            pending.probe = min(2 * pending.probe, self.timeouts.run / 4)
            self.statistics.probes += 1
            self.statistics.retries -= 1
        else:
            patience = self._patience(ask)
            if now - max(pending.first_sent, self._last_heard) > patience:
                if self.transport.baud != self._first_rate and ask.patience is None:
                    raise BoardResetError(
                        f"{self.name}: no answer at {self.transport.baud:,} baud for {patience:g} s: the board "
                        "restarted, hangs, or was unplugged"
                    )
                raise LinkTimeoutError(
                    f"{self.name}: {ask.type.name} was not answered for {patience:g} s ({pending.attempts} attempts): "
                    "the board hangs or was unplugged"
                )
            pending.backoff = min(2 * pending.backoff, 64)
            self.statistics.timeouts += 1
        self._last_repeat = now  # one at a time: its answer tells about the others
        self._transmit(pending)

    def _handle(self, frame: Frame, since: float) -> None:
        if frame.type == Event.BOOT:
            if not self._opening:
                reason = frame.payload[messages.BOOT.size :].decode("utf-8", "replace") or "it does not tell why"
                raise BoardResetError(f"{self.name}: the board restarted ({reason})")
            for unheard in list(self._pending.values()):  # HELLO, before it was there
                self._transmit(unheard)
            return
        if frame.type == Event.LOG:
            if self._log is not None:
                self._log(frame.payload.decode("utf-8", "replace"))
            return
        if frame.type == Event.NAK:
            self.statistics.naks += 1
            self._lose_oldest()
            return
        pending = self._pending.get(frame.sequence >> 4)
        if frame.type == Event.FAULT:
            # While a session is being opened only a report that answers us is news.
            if not self._opening or (pending is not None and pending.attempts):
                raise self._fault_error(frame.payload)
            return
        if frame.session != self._session:
            return
        now = self.transport.clock()
        self._last_heard = now
        if pending is not None and frame.type == Event.PROGRESS:
            pending.started = True
            pending.heard = now
            expected = max(4 * self._round_trip.wait, 1.25 * self._run_seconds)
            pending.probe = min(expected, self.timeouts.run / 4)
        elif pending is not None and frame.type == Event.ERROR:
            raise self._remote_error(pending.ask.type, frame.payload)
        elif pending is not None and frame.type == pending.ask.type | messages.ANSWER:
            self._accept(pending, frame, now, since)
        if frame.type != Event.PROGRESS:
            self._lose_up_to(frame.sequence)

    def _accept(self, pending: _Pending, frame: Frame, now: float, since: float) -> None:
        ask = pending.ask
        if ask.answer_bytes is not None and len(frame.payload) != ask.answer_bytes:
            raise LinkError(
                f"{self.name}: the answer to {ask.type.name} has {len(frame.payload)} bytes, not {ask.answer_bytes}: "
                "host and firmware do not fit together"
            )
        del self._pending[pending.number]
        if ask.runs:
            self._run_seconds = now - pending.first_sent
        elif frame.sequence in self._flight:  # the attempt is known, so a repeated request is no less sure
            _, sent = self._flight[frame.sequence]
            self._round_trip.sample(now - max(sent, since))  # without the answers queued before it
        if ask.chunk:
            self.chunking.record(pending.lost)
        self._answers[pending.index] = frame.payload
        if self._done is not None:
            self._done(ask)

    def _fault_error(self, payload: bytes) -> LinkError:
        try:
            return BoardFaultError(self.name, Fault.unpack(payload))
        except ValueError:
            return LinkError(f"{self.name}: the firmware crashed and its report is malformed; reset the board")

    def _remote_error(self, request: Request, payload: bytes) -> LinkError:
        if len(payload) < messages.ERROR.size:
            return LinkError(f"{self.name}: malformed ERROR: host and firmware do not fit together")
        code, _, section, index = messages.ERROR.unpack_from(payload)
        text = payload[messages.ERROR.size :].decode("utf-8", "replace")
        # A run is stopped by the HELLO of another host only.
        if code in (ErrorCode.SESSION, ErrorCode.RUNTIME + Status.STOPPED):
            return BoardResetError(f"{self.name}: the board restarted, or another host has taken it over")
        tag = section.rstrip(b"\0").decode("ascii", "replace")
        return RemoteError(self.name, request.name, code, text, tag, None if index == messages.NO_INDEX else index)

    def _version_error(self, theirs: int | None) -> LinkVersionError:
        return LinkVersionError(
            f"{self.name}: the firmware speaks version {theirs} of the link, "
            f"this host version {messages.LINK_VERSION}: build and flash the firmware of this tvhil"
        )


def _line_bytes(payload: int) -> int:
    """Longest frame with a payload of that many bytes (TVIT_LINK_FRAME_BYTES)."""
    packet = framing.HEADER.size + payload + framing.CRC.size
    return packet + packet // 254 + 3


def pieces(total: int, chunking: Chunking) -> Iterator[tuple[int, int]]:
    """Offset and length of the pieces of a transfer, as long as the line bears at the time."""
    offset = 0
    while offset < total:
        length = min(chunking.bytes, total - offset)
        yield offset, length
        offset += length
