# SPDX-License-Identifier: Apache-2.0
"""Who called whom: call stacks of a simulated core, taken between slices of its run and unwound with the program's CFI.

The samples fall every so many cycles of the simulated clock, so they are the same in every run. They only split a
function's cycles between its callers; how many cycles a function took comes from the counters, exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tvhil.lx7sim import Simulator, SimulatorError
from tvhil.profiling.program import UNKNOWN, Program

Stack = tuple[str, ...]  # outermost first

_MOST_FRAMES = 64
_STACK_BYTES = 1024
_REGISTERS = (0, 1, 12, 13, 14, 15)  # return address, stack pointer, and those that a callee saves (call0 ABI)


class Unwinder:
    """Reads call stacks of a simulator that runs a program with the call0 ABI."""

    def __init__(self, simulator: Simulator, program: Program) -> None:
        self._simulator, self._program = simulator, program
        self._calls: dict[int, bool] = {}
        self._top, self._bytes = 0, b""

    def stack(self) -> tuple[Stack, bool]:
        """Functions from the outermost to the one that runs now, and whether the outermost is one that nobody called.

        Where an epilogue has already given its frame back, the unwinding information is wrong for an instruction or
        two; the return address found then is none, the stack is cut there and the second value is False.
        """
        simulator, program = self._simulator, self._program
        values = {n: simulator.register(f"a{n}") for n in _REGISTERS}
        self._read_stack(values[1])
        pc = simulator.register("pc")
        frames = [program.name_at(pc)]
        complete = False
        while len(frames) < _MOST_FRAMES:
            rule = program.unwind_at(pc)
            if rule is None or rule.register not in values:
                complete = program.function_at(pc) is not None
                break
            cfa = (values[rule.register] + rule.offset) & 0xFFFFFFFF
            for register, offset in rule.saved.items():
                if register in values:
                    word = self._word((cfa + offset) & 0xFFFFFFFF)
                    if word is None:
                        return tuple(reversed(frames)), False
                    values[register] = word
            values[1] = cfa
            caller = values[0]
            if caller == 0:
                complete = True
                break
            if not self._is_return_address(caller):
                break
            # The address of the call itself: behind a call that does not return another function may begin.
            pc = caller - 3
            frames.append(program.name_at(pc))
            if len(frames) > 2 and frames[-1] == frames[-2] == UNKNOWN:
                break
        return tuple(reversed(frames)), complete

    def _read_stack(self, pointer: int) -> None:
        """Fetch the top of the stack in one go."""
        self._top, self._bytes = pointer, b""
        for size in (_STACK_BYTES, _STACK_BYTES // 16):
            try:
                self._bytes = self._simulator.read_memory(pointer, size)
                return
            except SimulatorError:
                continue  # it ends with the memory

    def _word(self, address: int) -> int | None:
        at = address - self._top
        if 0 <= at <= len(self._bytes) - 4:
            return int.from_bytes(self._bytes[at : at + 4], "little")
        try:
            return int.from_bytes(self._simulator.read_memory(address, 4), "little")
        except SimulatorError:
            return None

    def _is_return_address(self, address: int) -> bool:
        if address not in self._calls:
            self._calls[address] = self._simulator.disassemble(address - 3)[0].startswith("call")
        return self._calls[address]


@dataclass
class Samples:
    """Stacks in the order they were taken, and how often each occurred.

    Attributes:
        sequence: (cycle, stack), complete stacks only.
        cut: how many stacks could not be unwound to their end.
    """

    sequence: list[tuple[int, Stack]] = field(default_factory=list)
    cut: int = 0

    @property
    def counts(self) -> Counter[Stack]:
        """How often each stack was seen."""
        return Counter(stack for _, stack in self.sequence)


def weigh(samples: Samples, cycles: Mapping[str, int]) -> dict[Stack, int]:
    """Cycles of each stack: those of its innermost function, split as the samples of that function fall.

    Args:
        samples: the stacks.
        cycles: exact cycles of each function, without what it calls.

    Returns:
        Cycles by stack, whose sum is that of `cycles`. A function that no sample hit stands alone.
    """
    by_leaf: dict[str, Counter[Stack]] = {}
    for stack, count in samples.counts.items():
        by_leaf.setdefault(stack[-1], Counter())[stack] += count
    weights: Counter[Stack] = Counter()
    for name, total in cycles.items():
        seen = by_leaf.get(name)
        if not seen:
            if total:
                weights[(name,)] += total
            continue
        # Cumulative rounding: the parts sum to the whole.
        all_samples, done, spent = sum(seen.values()), 0, 0
        for stack, count in sorted(seen.items()):
            done += count
            until = total * done // all_samples
            weights[stack] += until - spent
            spent = until
    return dict(weights)
