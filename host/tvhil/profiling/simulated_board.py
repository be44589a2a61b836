# SPDX-License-Identifier: Apache-2.0
"""A board that is a simulator in this process: a transport whose clock is the simulated one.

So nothing depends on how fast the host is.
"""

from __future__ import annotations

from collections.abc import Callable

from tvhil.link import LinkClosedError
from tvhil.link.transports import Transport
from tvhil.lx7sim import Simulator, Stop

_SLICE = 1_000_000  # cycles between two looks at what the program has sent


class SimulatorTransport(Transport):
    """The UART of a simulated board.

    Args:
        simulator: with a program loaded.
        cpu_hz: cycles a second of the clock that timeouts count on.
        slice_cycles: run so long between two calls of `between`.

    Attributes:
        between: called after each slice; it may run the simulator itself, and then returns how that ended.
    """

    def __init__(self, simulator: Simulator, cpu_hz: float, name: str = "lx7sim") -> None:
        self.name = name
        self.simulator = simulator
        self.slice_cycles = _SLICE
        self.between: Callable[[], Stop | None] | None = None
        self._cpu_hz = cpu_hz
        self._cycles = 0
        self._slept = 0.0  # seconds that passed while the program waited for input
        self._ended = ""

    def read(self, timeout: float) -> bytes:
        """What the program has sent, running it until it sends something, waits for input, or the time is up."""
        deadline = self.clock() + max(0.0, timeout)
        while True:
            if data := self.simulator.receive():
                return data
            if self._ended:
                raise LinkClosedError(f"{self.name}: {self._ended}")
            if self.clock() >= deadline:
                return b""
            stop = self.simulator.run(self.slice_cycles)
            self._cycles += self.slice_cycles
            if stop == Stop.BUDGET and self.between is not None:
                stop = self.between() or Stop.BUDGET
            if stop == Stop.EXIT:
                self.simulator.reboot()
            elif stop == Stop.IDLE:
                if data := self.simulator.receive():
                    return data
                self._slept += max(0.0, deadline - self.clock())
            elif stop != Stop.BUDGET:
                self._ended = self.simulator.message

    def write(self, data: bytes) -> None:
        """Queue bytes for the program."""
        if self._ended:
            raise LinkClosedError(f"{self.name}: {self._ended}")
        self.simulator.send(data)

    def close(self) -> None:
        """End the simulator."""
        self._ended = self._ended or "closed"
        self.simulator.close()

    def clock(self) -> float:
        """Simulated seconds."""
        return self._cycles / self._cpu_hz + self._slept
