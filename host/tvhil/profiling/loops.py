# SPDX-License-Identifier: Apache-2.0
"""The loops of a program, found in its executed instructions.

A loop is a back edge, an edge of the control flow whose target dominates its source, together with every instruction
that reaches the source without passing the target (Aho, Lam, Sethi, Ullman, "Compilers", section 9.6.6: natural loops).
The invisible branch at the end of a zero-overhead loop is an edge like the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tvhil.profiling.aggregate import Cost, Rows, cost_of
from tvhil.profiling.program import Program

Disassemble = Callable[[int], tuple[str, int]]


class Instruction(NamedTuple):
    """One instruction of a function: text, length in bytes, and where it goes."""

    pc: int
    text: str
    length: int
    successors: tuple[int, ...]
    loop_end: int  # of LOOP, LOOPNEZ, LOOPGTZ: the address behind the body; else 0


@dataclass(frozen=True)
class Loop:
    """A loop with its counters.

    Attributes:
        function: that it is part of.
        header: its first instruction, through which it is entered.
        pcs: its instructions, ascending, those of inner loops included.
        own: those of no inner loop.
        iterations: executions of the header.
        entries: of these, how many came from outside.
        cost: of `own`.
        total: of `pcs`.
        depth: 1 for an outermost loop.
        zero_overhead: made by a LOOP instruction.
    """

    function: str
    header: int
    pcs: tuple[int, ...]
    own: tuple[int, ...]
    iterations: int
    entries: int
    cost: Cost
    total: Cost
    depth: int
    zero_overhead: bool

    @property
    def innermost(self) -> bool:
        """Whether no other loop that ran is inside."""
        return len(self.own) == len(self.pcs)

    @property
    def cycles_per_iteration(self) -> float:
        """Cycles of one iteration, inner loops included."""
        return self.total.cycles / self.iterations if self.iterations else 0.0


def decode(pc: int, disassemble: Disassemble) -> Instruction | None:
    """One instruction, with the successors that it has by itself: the ends of zero-overhead loops are not in them."""
    text, length = disassemble(pc)
    if not length:
        return None
    mnemonic, _, operands = text.partition(" ")
    mnemonic = mnemonic.removesuffix(".n")
    follows = pc + length
    if mnemonic in ("ret", "retw", "jx", "rfe", "rfde", "rfi", "rfwo", "rfwu"):
        return Instruction(pc, text, length, (), 0)
    if mnemonic == "j":
        return Instruction(pc, text, length, (_target(operands),), 0)
    if mnemonic in ("loop", "loopnez", "loopgtz"):
        end = _target(operands)
        return Instruction(pc, text, length, (follows,) if mnemonic == "loop" else (follows, end), end)
    if mnemonic.startswith("b") and not mnemonic.startswith("break"):
        return Instruction(pc, text, length, (follows, _target(operands)), 0)
    return Instruction(pc, text, length, (follows,), 0)


def _target(operands: str) -> int:
    return int(operands.rsplit(",", 1)[-1], 16)


def find_loops(rows: Rows, program: Program, disassemble: Disassemble) -> list[Loop]:
    """Every loop that ran, the most expensive by its own instructions first."""
    loops: list[Loop] = []
    pcs = rows["pc"].astype(np.int64)
    for function in program.functions:
        low, high = np.searchsorted(pcs, (function.start, function.end))
        if low < high:
            loops += _function_loops(function.name, rows[low:high], disassemble)
    return sorted(loops, key=lambda loop: -loop.cost.cycles)


@dataclass(frozen=True)
class _Flow:
    """Control flow among the executed instructions of one function."""

    code: dict[int, Instruction]
    rows: dict[int, Any]  # one of lx7sim.PC_ROW each
    successors: dict[int, tuple[int, ...]]
    predecessors: dict[int, list[int]]
    entries: tuple[int, ...]
    loop_instructions: dict[int, int]  # start of a zero-overhead loop's body to its LOOP instruction

    def edge_count(self, source: int, target: int) -> int:
        """How often an edge was taken; not for the way back of a zero-overhead loop, which nothing counts."""
        row, instruction = self.rows[source], self.code[source]
        if len(instruction.successors) == 1:
            return int(row["count"])
        falls_through = target == source + instruction.length
        return int(row["count"] - row["taken"] if falls_through else row["taken"])


def _function_loops(name: str, rows: Rows, disassemble: Disassemble) -> list[Loop]:
    flow = _control_flow(rows, disassemble)
    bodies: dict[int, set[int]] = {}
    back: dict[int, list[int]] = {}
    for header, sources in flow.predecessors.items():
        # A header has an edge from outside, too, unless the function starts with it.
        if len(sources) < 2 and header not in flow.entries:
            continue
        for source in sources:
            if _dominates(flow, header, source):
                bodies.setdefault(header, {header}).update(_natural_loop(flow, header, source))
                back.setdefault(header, []).append(source)
    return [_loop(name, flow, rows, header, back[header], bodies) for header in bodies]


def _control_flow(rows: Rows, disassemble: Disassemble) -> _Flow:
    code = {pc: found for pc in rows["pc"].tolist() if (found := decode(pc, disassemble))}
    ends = {i.loop_end: i.pc + i.length for i in code.values() if i.loop_end}
    successors = {}
    predecessors: dict[int, list[int]] = {pc: [] for pc in code}
    for pc, instruction in code.items():
        targets = list(instruction.successors)
        if pc + instruction.length in ends and pc + instruction.length in targets and not instruction.loop_end:
            targets.append(ends[pc + instruction.length])
        successors[pc] = tuple(dict.fromkeys(t for t in targets if t in code))
        for target in successors[pc]:
            predecessors[target].append(pc)
    entries = tuple({min(code, default=0), *(pc for pc in code if not predecessors[pc])} if code else ())
    loop_instructions = {i.pc + i.length: i.pc for i in code.values() if i.loop_end}
    by_pc = dict(zip(rows["pc"].tolist(), rows, strict=True))
    return _Flow(code, by_pc, successors, predecessors, entries, loop_instructions)


def _dominates(flow: _Flow, header: int, node: int) -> bool:
    """Whether every way from an entry to `node` passes `header`."""
    seen, stack = {header}, [pc for pc in flow.entries if pc != header]
    while stack:
        pc = stack.pop()
        if pc in seen:
            continue
        if pc == node:
            return False
        seen.add(pc)
        stack.extend(flow.successors[pc])
    return True


def _natural_loop(flow: _Flow, header: int, source: int) -> set[int]:
    body, stack = {header}, [source]
    while stack:
        pc = stack.pop()
        if pc not in body:
            body.add(pc)
            stack.extend(flow.predecessors[pc])
    return body


def _loop(name: str, flow: _Flow, rows: Rows, header: int, back: list[int], bodies: dict[int, set[int]]) -> Loop:
    body = bodies[header]
    own = body.difference(*(other for h, other in bodies.items() if h != header and other < body))
    iterations = int(flow.rows[header]["count"])
    zero_overhead = header in flow.loop_instructions and flow.loop_instructions[header] not in body
    if zero_overhead:
        entries = flow.edge_count(flow.loop_instructions[header], header)
    else:
        entries = iterations - sum(flow.edge_count(source, header) for source in back)
    return Loop(
        name,
        header,
        tuple(sorted(body)),
        tuple(sorted(own)),
        iterations,
        entries,
        cost_of(rows[np.isin(rows["pc"], list(own))]),
        cost_of(rows[np.isin(rows["pc"], list(body))]),
        1 + sum(header in other and body < other for other in bodies.values()),
        zero_overhead,
    )
