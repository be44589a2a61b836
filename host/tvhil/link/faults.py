# SPDX-License-Identifier: Apache-2.0
"""A bad line on purpose: damages bytes, stalls, unplugs and resets the board, from a seeded schedule."""

from __future__ import annotations

import difflib
import random
import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tvhil.errors import UsageError
from tvhil.link import framing, messages
from tvhil.link.errors import LinkClosedError
from tvhil.link.framing import Frame
from tvhil.link.messages import Request
from tvhil.link.transports import Transport


class FaultKind(StrEnum):
    """What happens to the bytes, and to the line."""

    FLIP = "flip"  # one bit
    DROP = "drop"  # one byte is lost
    DUPLICATE = "duplicate"  # one byte comes twice
    INSERT = "insert"  # one byte comes from nowhere
    TRUNCATE = "truncate"  # everything up to the end of what was sent at once is lost
    REPEAT = "repeat"  # everything that was sent at once comes twice
    DELAY = "delay"  # everything from here on waits for the next call
    STALL = "stall"  # nothing passes for a while, in either direction; then everything does
    DISCONNECT = "disconnect"  # the cable is out until the host opens the port again; what is sent meanwhile is lost
    RESET = "reset"  # the board restarts


BYTE_KINDS = tuple(kind for kind in FaultKind if kind not in ("stall", "disconnect", "reset"))
LINE_KINDS = (FaultKind.STALL, FaultKind.DISCONNECT, FaultKind.RESET)
ALL_KINDS = BYTE_KINDS + LINE_KINDS

_SHORTEST_STALL, _LONGEST_STALL = 0.05, 0.4  # seconds: below and above the time until a repeat


@dataclass
class FaultBudget:
    """Faults that are left to both directions of a line, or to several lines, together."""

    left: int


class Corrupter:
    """Faults in one direction of a line.

    Args:
        seed: of the schedule; the same bytes in the same calls are damaged in the same way.
        rate: probability of a fault at each byte; a bit error rate r is a rate of 8 r with `FaultKind.FLIP` alone.
        kinds: drawn from with equal probability. Of `LINE_KINDS` only `FaultyTransport` makes what they say.
        most: faults after which the line is good; None for no end.
        budget: shared with other directions; the line is good when it is spent.
    """

    def __init__(
        self,
        seed: int,
        rate: float,
        kinds: Sequence[FaultKind] = BYTE_KINDS,
        most: int | None = None,
        budget: FaultBudget | None = None,
    ) -> None:
        if not 0 <= rate < 1:
            raise ValueError("the rate is a probability below 1")
        self.counts: Counter[FaultKind] = Counter()
        self._random = random.Random(seed)
        self._rate = rate
        self._kinds = tuple(kinds)
        self._most = most
        self._budget = budget
        self._held = b""
        self._line_fault: FaultKind | None = None
        self._gap = self._draw_gap()

    @property
    def total(self) -> int:
        """Faults so far."""
        return self.counts.total()

    def release(self) -> bytes:
        """Bytes that were delayed until now."""
        held, self._held = self._held, b""
        return held

    def line_fault(self) -> FaultKind | None:
        """What the last `apply` did to the whole line, told once."""
        kind, self._line_fault = self._line_fault, None
        return kind

    def apply(self, data: bytes) -> bytes:
        """What comes out at the other end of the line."""
        out = bytearray(self.release())
        start, at = len(out), 0
        while at + self._gap < len(data) and self._more():
            struck = at + self._gap
            out += data[at:struck]
            self._gap = self._draw_gap()
            kind = self._random.choice(self._kinds)
            self.counts[kind] += 1
            if self._budget is not None:
                self._budget.left -= 1
            byte = data[struck]
            at = struck + 1
            if kind is FaultKind.FLIP:
                out.append(byte ^ 1 << self._random.randrange(8))
            elif kind is FaultKind.DUPLICATE:
                out += bytes([byte, byte])
            elif kind is FaultKind.INSERT:
                out += bytes([self._random.randrange(256), byte])
            elif kind is FaultKind.TRUNCATE:
                return bytes(out)
            elif kind is FaultKind.REPEAT:
                out += data[struck:]
                return bytes(out) + bytes(out[start:])
            elif kind in (FaultKind.DELAY, *LINE_KINDS):
                self._held = data[struck:]
                self._line_fault = None if kind is FaultKind.DELAY else kind
                return bytes(out)
        if self._gap >= len(data) - at:
            self._gap -= len(data) - at
        out += data[at:]
        return bytes(out)

    def _more(self) -> bool:
        return (self._most is None or self.total < self._most) and (self._budget is None or self._budget.left > 0)

    def _draw_gap(self) -> int:
        """Bytes until the next fault: geometric."""
        if self._rate == 0:
            return 1 << 62
        return int(self._random.expovariate(self._rate))


class FaultyTransport(Transport):
    """A transport whose bytes pass through one `Corrupter` in each direction.

    Args:
        inner: the line.
        outward, inward: to the board, to the host.
        seed: of the lengths of stalls, and of the session numbers of resets.

    Attributes:
        armed: faults happen; as long as it is off, everything passes.
        plugged: the cable is in; off after `FaultKind.DISCONNECT` until `reopen`.
    """

    def __init__(self, inner: Transport, outward: Corrupter, inward: Corrupter, seed: int = 0) -> None:
        self.name = f"{inner.name} (with faults)"
        self.seconds_per_byte = inner.seconds_per_byte
        self.baud = inner.baud
        self.inner = inner
        self.outward = outward
        self.inward = inward
        self.armed = True
        self.plugged = True
        self._random = random.Random(seed)
        self._stalled_until: float | None = None
        self._late_out = self._late_in = b""

    def set_baud(self, baud: int) -> None:
        """As `Transport.set_baud`."""
        self.inner.set_baud(baud)
        self.baud, self.seconds_per_byte = self.inner.baud, self.inner.seconds_per_byte

    @property
    def faults(self) -> int:
        """Faults so far, both directions."""
        return self.outward.total + self.inward.total

    @property
    def counts(self) -> Counter[FaultKind]:
        """Faults so far by their kinds, both directions."""
        return self.outward.counts + self.inward.counts

    def read(self, timeout: float) -> bytes:
        """As `Transport.read`."""
        self._check_plugged()
        deadline = self.clock() + timeout
        if not self._stall_is_over(deadline):
            return b""
        if held := self._take_late_out():
            self.inner.write(held)
        late = self._late_in + self.inward.release()
        self._late_in = b""
        if late:
            return late
        data = self.inner.read(max(0.0, deadline - self.clock()))
        if data and self.armed:
            data = self.inward.apply(data)
            self._strike(self.inward)
        return data

    def write(self, data: bytes) -> None:
        """As `Transport.write`."""
        self._check_plugged()
        passed = self._late_out + (self.outward.apply(data) if self.armed else self.outward.release() + data)
        self._late_out = b""
        if self._stalled_until is not None:
            self._late_out = passed
        else:
            self.inner.write(passed)
        if self.armed:
            self._strike(self.outward)

    def close(self) -> None:
        """As `Transport.close`."""
        self.inner.close()

    def reopen(self) -> None:
        """Plug the cable in again; where it is in, open the line inside again."""
        self._late_out = self._late_in = b""
        self._stalled_until = None
        self.outward.release()
        self.inward.release()
        if self.plugged:
            self.inner.reopen()
            return
        self.plugged = True
        while self.inner.read(0.0):
            pass  # what the board said to a cable that was out

    def fileno(self) -> int:
        """That of the transport inside."""
        return self.inner.fileno()

    def clock(self) -> float:
        """The clock of the transport inside."""
        return self.inner.clock()

    def _check_plugged(self) -> None:
        if not self.plugged:
            raise LinkClosedError(f"{self.name}: the cable is out")

    def _take_late_out(self) -> bytes:
        late, self._late_out = self._late_out + self.outward.release(), b""
        return late

    def _stall_is_over(self, deadline: float) -> bool:
        if self._stalled_until is None:
            return True
        while (left := min(self._stalled_until, deadline) - self.clock()) > 0:
            self._late_in += self.inner.read(left)
        if self.clock() < self._stalled_until:
            return False
        self._stalled_until = None
        return True

    def _strike(self, corrupter: Corrupter) -> None:
        kind = corrupter.line_fault()
        if kind is FaultKind.STALL:
            self._stalled_until = self.clock() + self._random.uniform(_SHORTEST_STALL, _LONGEST_STALL)
        elif kind is FaultKind.DISCONNECT:
            self.plugged = False
            raise LinkClosedError(f"{self.name}: the cable is out")
        elif kind is FaultKind.RESET:
            self.inner.write(reset_frames(self._random.randrange(1, 256), self._random.getrandbits(32)))


class PacedTransport(Transport):
    """A transport slowed down to the speed of a serial line, for boards that are processes of this machine.

    Args:
        inner: the line.
        baud: bits a second in each direction, ten of them a byte.
    """

    def __init__(self, inner: Transport, baud: int) -> None:
        self.name = inner.name
        self.inner = inner
        self.seconds_per_byte = 10 / baud
        self._reset()

    def _reset(self) -> None:
        self._out: deque[tuple[float, bytes]] = deque()  # with the times at which they have passed the line
        self._in: deque[tuple[float, bytes]] = deque()
        self._out_free = self._in_free = self.inner.clock()

    def read(self, timeout: float) -> bytes:
        """As `Transport.read`."""
        deadline = self.clock() + timeout
        while True:
            now = self.clock()
            while self._out and self._out[0][0] <= now:
                self.inner.write(self._out.popleft()[1])
            if self._in and self._in[0][0] <= now:
                return self._in.popleft()[1]
            if now > deadline:
                return b""
            until = min([deadline, *(queue[0][0] for queue in (self._out, self._in) if queue)])
            if data := self.inner.read(max(0.0, until - now)):
                self._in_free = self._send(self._in, data, self._in_free)

    def write(self, data: bytes) -> None:
        """As `Transport.write`; the bytes leave while the host reads."""
        self._out_free = self._send(self._out, data, self._out_free)

    def _send(self, queue: deque[tuple[float, bytes]], data: bytes, free: float) -> float:
        at = max(free, self.clock())
        for part in re.findall(rb"[^\0]*\0|[^\0]+", data):  # a frame at a time
            at += len(part) * self.seconds_per_byte
            queue.append((at, part))
        return at

    def close(self) -> None:
        """As `Transport.close`."""
        self.inner.close()

    def reopen(self) -> None:
        """As `Transport.reopen`; what was on the line is lost."""
        self.inner.reopen()
        self._reset()

    def fileno(self) -> int:
        """None: bytes that have arrived inside are still on the line."""
        return -1

    def clock(self) -> float:
        """The clock of the transport inside."""
        return self.inner.clock()


def reset_frames(session: int, nonce: int) -> bytes:
    """What another host would send to restart a board: HELLO of its own session, and RESET."""
    hello = messages.HELLO.pack(messages.MAGIC, messages.LINK_VERSION, 0, nonce)
    reset = messages.RESET_KEY.to_bytes(4, "little")
    return framing.encode(Frame(Request.HELLO, session, 0, hello)) + framing.encode(
        Frame(Request.RESET, session, 16, reset)
    )


@dataclass(frozen=True)
class FaultPlan:
    """What `--faults` says.

    Attributes:
        seed: of the schedule.
        count: faults after which the line is good.
        every: mean number of bytes between two faults, in either direction.
        kinds: drawn from with equal probability.
        baud: speed that the line is slowed down to; 0 for that which it has.
    """

    seed: int = 0
    count: int = 1000
    every: int = 1000
    kinds: tuple[FaultKind, ...] = ALL_KINDS
    baud: int = 0

    @classmethod
    def parse(cls, text: str, image_bytes: int = 0) -> FaultPlan:
        """Read `seed=1,count=1000,every=200,baud=115200,kinds=flip+drop`, every part of which may be left out.

        Args:
            text: the plan.
            image_bytes: where `every` is left out, an image of so many bytes gets through at the second attempt or so.

        Raises:
            UsageError: an unknown key or kind, or a number that is none.
        """
        values: dict[str, int | tuple[FaultKind, ...]] = {"every": max(200, 2 * image_bytes)}
        for part in filter(None, text.split(",")):
            key, equals, value = part.partition("=")
            if key == "kinds" and equals:
                values[key] = tuple(_kind(name) for name in value.split("+"))
            elif key in ("seed", "count", "every", "baud") and value.isdecimal():
                values[key] = int(value)
            else:
                raise UsageError(
                    f"--faults {part!r} is not understood: seed=N, count=N, every=BYTES, baud=N, "
                    f"kinds=A+B of {', '.join(ALL_KINDS)}"
                )
        plan = cls(**values)  # type: ignore[arg-type]
        if plan.every < 2:
            raise UsageError("--faults every= must be 2 bytes at least")
        return plan

    def around(self, inner: Transport, number: int = 0, budget: FaultBudget | None = None) -> FaultyTransport:
        """A line with these faults.

        Args:
            inner: the line.
            number: of the board, where there are several; each has a schedule of its own.
            budget: shared by all of them; None for one of this line.
        """
        budget = budget or FaultBudget(self.count)
        seeds = random.Random(f"{self.seed} {number}")
        out, into = (Corrupter(seeds.getrandbits(32), 1 / self.every, self.kinds, budget=budget) for _ in range(2))
        line = PacedTransport(inner, self.baud) if self.baud else inner
        return FaultyTransport(line, out, into, seeds.getrandbits(32))


def _kind(name: str) -> FaultKind:
    try:
        return FaultKind(name)
    except ValueError:
        near = difflib.get_close_matches(name, [kind.value for kind in ALL_KINDS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(ALL_KINDS)}"
        raise UsageError(f"--faults: there is no kind {name!r} of fault; {hint}") from None
