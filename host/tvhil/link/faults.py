# SPDX-License-Identifier: Apache-2.0
"""A bad line on purpose: damages bytes in both directions from a seeded schedule, around any transport."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum

from tvhil.link.transports import Transport


class FaultKind(StrEnum):
    """What happens to the bytes."""

    FLIP = "flip"  # one bit
    DROP = "drop"  # one byte is lost
    DUPLICATE = "duplicate"  # one byte comes twice
    INSERT = "insert"  # one byte comes from nowhere
    TRUNCATE = "truncate"  # everything up to the end of what was sent at once is lost
    REPEAT = "repeat"  # everything that was sent at once comes twice
    DELAY = "delay"  # everything from here on waits for the next call


ALL_KINDS = tuple(FaultKind)


class Corrupter:
    """Faults in one direction of a line.

    Args:
        seed: of the schedule; the same bytes in the same calls are damaged in the same way.
        rate: probability of a fault at each byte; a bit error rate r is a rate of 8 r with `FaultKind.FLIP` alone.
        kinds: drawn from with equal probability.
        most: faults after which the line is good; None for no end.
    """

    def __init__(self, seed: int, rate: float, kinds: Sequence[FaultKind] = ALL_KINDS, most: int | None = None) -> None:
        if not 0 <= rate < 1:
            raise ValueError("the rate is a probability below 1")
        self.counts: Counter[FaultKind] = Counter()
        self._random = random.Random(seed)
        self._rate = rate
        self._kinds = tuple(kinds)
        self._most = most
        self._held = b""
        self._gap = self._draw_gap()

    @property
    def total(self) -> int:
        """Faults so far."""
        return self.counts.total()

    def release(self) -> bytes:
        """Bytes that were delayed until now."""
        held, self._held = self._held, b""
        return held

    def apply(self, data: bytes) -> bytes:
        """What comes out at the other end of the line."""
        out = bytearray(self.release())
        start, at = len(out), 0
        while at + self._gap < len(data) and (self._most is None or self.total < self._most):
            struck = at + self._gap
            out += data[at:struck]
            self._gap = self._draw_gap()
            kind = self._random.choice(self._kinds)
            self.counts[kind] += 1
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
            elif kind is FaultKind.DELAY:
                self._held = data[struck:]
                return bytes(out)
        if self._gap >= len(data) - at:
            self._gap -= len(data) - at
        out += data[at:]
        return bytes(out)

    def _draw_gap(self) -> int:
        """Bytes until the next fault: geometric."""
        if self._rate == 0:
            return 1 << 62
        return int(self._random.expovariate(self._rate))


class FaultyTransport(Transport):
    """A transport whose bytes pass through one `Corrupter` in each direction."""

    def __init__(self, inner: Transport, outward: Corrupter, inward: Corrupter) -> None:
        self.name = f"{inner.name} (with faults)"
        self.seconds_per_byte = inner.seconds_per_byte
        self._inner = inner
        self.outward = outward
        self.inward = inward

    @property
    def faults(self) -> int:
        """Faults so far, both directions."""
        return self.outward.total + self.inward.total

    def read(self, timeout: float) -> bytes:
        """As `Transport.read`."""
        held = self.outward.release()
        if held:
            self._inner.write(held)
        late = self.inward.release()
        if late:
            return late
        data = self._inner.read(timeout)
        return self.inward.apply(data) if data else b""

    def write(self, data: bytes) -> None:
        """As `Transport.write`."""
        self._inner.write(self.outward.apply(data))

    def close(self) -> None:
        """As `Transport.close`."""
        self._inner.close()

    def clock(self) -> float:
        """The clock of the transport inside."""
        return self._inner.clock()
