# SPDX-License-Identifier: Apache-2.0
"""Runs an inference on a simulator in this process and records where its cycles went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvhil.boards import Board, BootImage
from tvhil.errors import UsageError
from tvhil.link import LinkClient, RunResult
from tvhil.lx7sim import STALLS, Simulator, Stop, Totals
from tvhil.profiling.aggregate import Rows, cycles_by_function
from tvhil.profiling.loops import Loop, find_loops
from tvhil.profiling.program import Program
from tvhil.profiling.schedule import LoopTracer, Schedule
from tvhil.profiling.simulated_board import SimulatorTransport
from tvhil.profiling.stacks import Samples, Unwinder

_SAMPLES = 10_000  # call stacks an inference, about
_EXECUTE = "tvit_run"  # the frame below which operators run
_BETWEEN = "observe"  # and what it calls after each of them


@dataclass
class Recording:
    """One inference on the simulator.

    Attributes:
        logits: int16 `[classes]`.
        totals, rows: counters from sending RUN to its answer; `rows` without the cycles asleep.
        latency: cycles of the inference as the firmware counts them, without what happens between operators.
        operators: (name, cycles) in execution order, likewise.
        loops: every loop that ran, the most expensive first.
        schedules: of the innermost ones that were asked for.
        samples: call stacks.
        parameters: of the cycle model.
        warnings: what the simulator found strange.
    """

    logits: npt.NDArray[np.int16]
    totals: Totals
    rows: Rows
    latency: float
    operators: list[tuple[str, float]]
    loops: list[Loop]
    schedules: list[Schedule]
    samples: Samples
    parameters: dict[str, int]
    warnings: list[str]

    def timeline(self) -> list[tuple[str, int, float]]:
        """(operator, first cycle, cycles), on the clock of the samples; what happens between operators is left out."""
        inside = (cycle for cycle, stack in self.samples.sequence if _EXECUTE in stack)
        start = float(next(inside, 0))
        spans = []
        for name, cycles in self.operators:
            spans.append((name, round(start), cycles))
            start += cycles
        return spans


class Recorder:
    """A board's firmware on one core of a simulator in this process, with a model in its flash.

    Args:
        board: one with a cycle model.
        image: its firmware and the model, from `boards.flash`.
        parameters: changes to the cycle model by name ("latency.load").

    Raises:
        UsageError: the board has no cycle model.
    """

    def __init__(self, board: Board, image: BootImage, parameters: Mapping[str, int] | None = None) -> None:
        if board.cycle_model is None:
            raise UsageError(f"{board.name} has no cycle model to profile with; lx7sim has")
        self.program, self.model = Program(image.firmware.path), image.model
        self.simulator = Simulator(
            config=board.cycle_model, pie=True, trap=True, flash=image.flash,
            command_line=f"board={board.name} cores=1", parameters=parameters,
        )  # fmt: skip
        try:
            self.simulator.load(self.program.path)
            self.parameters = self.simulator.parameters()
            cpu_hz = 1e6 * self.parameters["clock.cpu_mhz"]
            self.transport = SimulatorTransport(self.simulator, cpu_hz)
            self.client = LinkClient(self.transport, seed=0)
            self.client.connect()
            self.info = self.client.info()
            self.client.model_info()
        except BaseException:
            self.simulator.close()
            raise
        self._operator_index = self.program.member_address("server", "operators_run")

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def infer(self, image: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int16], RunResult]:
        """Run the model on an image with fresh counters; logits and what the firmware counted."""
        crc = self.client.load_image(image.tobytes())
        self.simulator.clear_counters()
        result = self.client.run(crc, counters=True)
        rows = self.simulator.pcs()
        # Waiting for the next request is no work: how long the host lets the core sleep means nothing.
        rows["stall"][:, STALLS.index("sleep")] = 0
        self._counted = self.simulator.totals(), rows
        shape = self.model.tensors[result.output]
        data = self.client.read_output(result, shape.value_bytes)
        return np.frombuffer(data, shape.dtype.numpy).astype(np.int16), result

    def record(self, image: npt.NDArray[np.uint8], schedules: int = 3, function: str | None = None) -> Recording:
        """Run the model on an image: once for the counters, once more for call stacks and schedules.

        Args:
            image: uint8 `[H][W][C]`.
            schedules: of how many of the most expensive innermost loops to write down an iteration.
            function: look for those loops in this function only.

        Raises:
            UsageError: the function did not run.
        """
        logits, result = self.infer(image)
        totals, rows = self._counted
        records = self.client.trace(result)
        latency = self.info.latency(result.counter)
        operators = [
            (op.name, float(self.info.latency(record.counter)))
            for op, record in zip(self.model.operators, records, strict=False)
        ]
        loops = find_loops(rows, self.program, self.simulator.disassemble)
        if function is not None and function not in cycles_by_function(rows, self.program):
            raise UsageError(f"no function {function!r} ran in this inference")
        innermost = [loop for loop in loops if loop.innermost and function in (None, loop.function)][:schedules]
        tracers = [LoopTracer(self.simulator, loop) for loop in innermost]
        samples = self._sample(image, max(100, totals.cycles // _SAMPLES), tracers)
        found = [tracer.schedule for tracer in tracers if tracer.schedule is not None]
        return Recording(
            logits, totals, rows, float(latency), operators, loops, found, samples, self.parameters,
            list(self.simulator.warnings),
        )  # fmt: skip

    def _sample(self, image: npt.NDArray[np.uint8], period: int, tracers: Sequence[LoopTracer]) -> Samples:
        samples = Samples()
        unwinder = Unwinder(self.simulator, self.program)
        names = [op.name for op in self.model.operators]
        cycle = 0

        def between() -> Stop | None:
            nonlocal cycle
            cycle += period
            stack, complete = unwinder.stack()
            if complete:
                samples.sequence.append((cycle, self._with_operator(stack, names)))
            else:
                samples.cut += 1
            for tracer in tracers:
                stop = tracer.sample()
                if stop is not None:
                    return stop
            return None

        crc = self.client.load_image(image.tobytes())
        self.transport.slice_cycles, self.transport.between = period, between
        try:
            self.client.run(crc, counters=True)
        finally:
            self.transport.between = None
        return samples

    def _with_operator(self, stack: tuple[str, ...], names: Sequence[str]) -> tuple[str, ...]:
        """The stack with the operator that runs as a frame of its own."""
        if self._operator_index is None or _EXECUTE not in stack[:-1]:
            return stack
        index = int.from_bytes(self.simulator.read_memory(self._operator_index, 4), "little")
        at = stack.index(_EXECUTE) + 1
        if index >= len(names) or stack[at] == _BETWEEN:
            return stack
        return (*stack[:at], names[index], *stack[at:])
