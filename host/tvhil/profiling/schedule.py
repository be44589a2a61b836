# SPDX-License-Identifier: Apache-2.0
"""The annotated schedule of a loop: which instruction of one iteration issues in which cycle, and why it waits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tvhil.lx7sim import STALLS, Event, Simulator, Stop
from tvhil.profiling.loops import Loop
from tvhil.profiling.program import Program

REASONS = {
    "load": "operand still being loaded",
    "mul": "product not ready",
    "div": "quotient not ready, or the divider is busy",
    "fpu": "floating-point result not ready",
    "sreg": "special register still being read",
    "pie": "vector or accumulator not ready",
    "pie_unit": "reduction right behind a multiply-accumulate",
    "branch": "pipeline refilled after the taken branch",
    "fetch": "branch target crosses a fetch word",
    "loop": "loop set-up or loop-back",
    "icache": "instruction cache miss",
    "dcache": "data cache miss of the load",
    "dcache_write": "data cache miss of the store, or dirty lines written back",
    "bus": "flash/PSRAM bus busy",
    "unaligned": "access crosses a 16-byte boundary",
    "sram": "SRAM block busy with the instruction fetch",
    "device": "device register",
    "sync": "synchronization",
    "exception": "exception or interrupt",
    "sleep": "sleeping",
}
_MOST_EVENTS = 20_000


@dataclass(frozen=True)
class Slot:
    """One instruction of an iteration.

    Attributes:
        cycle: in which it issues, counted from the issue of the header.
        pc, text: the instruction.
        waited: cycles lost between its predecessor's issue and its own, beyond the one that every instruction takes.
        causes: those cycles by cause; they sum to `waited`.
    """

    cycle: int
    pc: int
    text: str
    waited: int
    causes: dict[str, int]

    @property
    def why(self) -> str:
        """The causes in words."""
        return "; ".join(f"{cycles} {REASONS[name]}" for name, cycles in self.causes.items())


@dataclass(frozen=True)
class Schedule:
    """One iteration in the steady state: the second or a later one of an entry, that took as many cycles as the one
    before.

    Attributes:
        loop: that it is an iteration of.
        slots: its instructions in order of issue, and a last one for the header of the next iteration.
        steady: whether the iteration before took the same path and time.
    """

    loop: Loop
    slots: tuple[Slot, ...]
    steady: bool

    @property
    def cycles(self) -> int:
        """Of the iteration."""
        return self.slots[-1].cycle

    @property
    def instructions(self) -> int:
        """Of the iteration, inner loops and called functions included."""
        return len(self.slots) - 1

    def as_json(self) -> dict[str, Any]:
        """For a report."""
        return {
            "cycles": self.cycles,
            "instructions": self.instructions,
            "steady": self.steady,
            "slots": [
                {"cycle": s.cycle, "pc": s.pc, "text": s.text, "waited": s.waited, "causes": s.causes}
                for s in self.slots[:-1]
            ],
        }


def path(slots: tuple[Slot, ...]) -> list[tuple[int, int]]:
    """Address and cycle of each instruction of an iteration."""
    return [(slot.pc, slot.cycle) for slot in slots]


class LoopTracer:
    """Records iterations of one loop while the simulator runs: call `sample` between slices of the run.

    The trace is on only for the few iterations that are looked at.
    """

    def __init__(self, simulator: Simulator, loop: Loop) -> None:
        self.loop = loop
        self.schedule: Schedule | None = None
        self._simulator = simulator
        self._body = frozenset(loop.pcs)
        self._iterations: list[tuple[Slot, ...]] = []

    @property
    def done(self) -> bool:
        """Whether a steady iteration was found."""
        return self.schedule is not None and self.schedule.steady

    def sample(self) -> Stop | None:
        """Trace a while if the program is in the loop; how that run ended, None where nothing was run."""
        if self.done or self._simulator.register("pc") not in self._body:
            return None
        iterations: list[tuple[Slot, ...]] = []
        collector = _Collector(self._simulator, self.loop.header, self._body, iterations)
        self._simulator.trace(collector)
        try:
            stop = self._simulator.run()
        finally:
            self._simulator.trace(None)
        if collector.failure is not None:
            raise collector.failure
        for before, after in pairwise(iterations):
            same = path(before) == path(after)
            if same or self.schedule is None:
                self.schedule = Schedule(self.loop, after, same)
            if same:
                break
        return None if stop == Stop.BREAK else stop


class _Collector:
    """Takes events until the loop is left or enough iterations were seen.

    Between two events the stall counters grow by exactly the cycles that were lost, wherever they are booked.
    """

    def __init__(
        self, simulator: Simulator, header: int, body: frozenset[int], iterations: list[tuple[Slot, ...]]
    ) -> None:
        self._simulator, self._header, self._body, self._iterations = simulator, header, body, iterations
        self._slots: list[Slot] = []
        self._start = 0
        self._last_cycle = 0
        self._stalls: dict[str, int] = {}
        self._events = 0
        self.failure: BaseException | None = None  # what cannot pass through C: Ctrl-C, for one

    def __call__(self, event: Event) -> bool:
        try:
            return self._visit(event)
        except BaseException as error:
            self.failure = error
            return True

    def _visit(self, event: Event) -> bool:
        self._events += 1
        if self._events > _MOST_EVENTS or len(self._iterations) >= 4 or self._repeats():
            return True
        if not self._slots:
            if event.pc == self._header:
                self._begin(event)
            return False
        stalls = self._simulator.totals().stall
        lost = {name: n for name in STALLS if (n := stalls[name] - self._stalls[name])}
        text, _ = self._simulator.disassemble(event.pc)
        slot = Slot(event.cycle - self._start, event.pc, text, event.cycle - self._last_cycle - 1, lost)
        self._slots.append(slot)
        self._last_cycle, self._stalls = event.cycle, stalls
        if event.pc == self._header:
            self._iterations.append(tuple(self._slots))
            self._begin(event)
        return False

    def _repeats(self) -> bool:
        return len(self._iterations) > 1 and path(self._iterations[-1]) == path(self._iterations[-2])

    def _begin(self, event: Event) -> None:
        text, _ = self._simulator.disassemble(event.pc)
        # What the header waits for is the price of coming back to it, so it belongs to the iteration that ends.
        self._slots = [Slot(0, event.pc, text, 0, {})]
        self._start = self._last_cycle = event.cycle
        self._stalls = self._simulator.totals().stall


def render(schedule: Schedule, program: Program) -> Iterator[str]:
    """Lines of text: a heading, a row an instruction, a row for every wait, the sum."""
    loop = schedule.loop
    line = program.line_at(loop.header)
    where = f" ({_short(line.file)}:{line.line})" if line else ""
    kind = "zero-overhead loop" if loop.zero_overhead else "loop"
    yield f"{loop.function}: {kind} at {loop.header:08x}{where}, {loop.iterations:,} iterations"
    width = max(len(slot.text) for slot in schedule.slots)
    previous = None
    yield f"{'cycle':>6}  {'address':8}  {'instruction':{width}}  source"
    for slot in schedule.slots[:-1]:
        for name, cycles in slot.causes.items():
            yield f"{'':6}  {'':8}  {f'  +{cycles} {REASONS[name]}':{width}}".rstrip()
        source = program.line_at(slot.pc)
        note = "" if source is None or source == previous else f"{_short(source.file)}:{source.line}  {source.text}"
        previous = source
        yield f"{slot.cycle:6}  {slot.pc:08x}  {slot.text:{width}}  {note}".rstrip()
    for name, cycles in schedule.slots[-1].causes.items():
        yield f"{'':6}  {'':8}    +{cycles} {REASONS[name]}"
    work, waits = schedule.instructions, schedule.cycles - schedule.instructions
    note = "" if schedule.steady else "; the iterations differ, this is one of them"
    yield f"{schedule.cycles:6}  cycles an iteration: {work} instructions, {waits} cycles of waiting{note}"


def _short(file: str) -> str:
    return file.rsplit("/", 1)[-1]
