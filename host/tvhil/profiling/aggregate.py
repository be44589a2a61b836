# SPDX-License-Identifier: Apache-2.0
"""Counters of instruction addresses, summed by function and by source line."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tvhil.lx7sim import REGIONS, STALLS
from tvhil.profiling.program import UNKNOWN, Line, Program

K = TypeVar("K", bound=Hashable)
Rows = npt.NDArray[Any]  # of lx7sim.PC_ROW


@dataclass
class Cost:
    """What a group of instructions cost.

    Attributes:
        instructions: completed.
        cycles: issue slots and stalls; of the instructions themselves, without what they call.
        stalls: cycles lost, by cause.
        accesses, bytes: loads and stores, and what they moved, by class of the memory.
        icache_misses, dcache_misses: lines filled.
        pie_macs: multiply-accumulates of vector instructions, as executed.
    """

    instructions: int = 0
    cycles: int = 0
    stalls: dict[str, int] = field(default_factory=dict)
    accesses: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    icache_misses: int = 0
    dcache_misses: int = 0
    pie_macs: int = 0

    @property
    def stalled(self) -> int:
        """Cycles lost, in all."""
        return self.cycles - self.instructions

    def as_json(self) -> dict[str, Any]:
        """For a report."""
        return {
            "instructions": self.instructions,
            "cycles": self.cycles,
            "stalls": self.stalls,
            "accesses": self.accesses,
            "bytes": self.bytes,
            "icache_misses": self.icache_misses,
            "dcache_misses": self.dcache_misses,
            "pie_macs": self.pie_macs,
            "pie_mac_per_cycle": mac_rate(self.pie_macs, self.cycles),
        }


def cost_of(rows: Rows) -> Cost:
    """The sum of some rows."""
    stalls, accesses, moved = (rows[name].sum(axis=0) for name in ("stall", "access", "bytes"))
    instructions = int(rows["count"].sum())
    return Cost(
        instructions,
        instructions + int(stalls.sum()),
        _named(STALLS, stalls),
        _named(REGIONS, accesses),
        _named(REGIONS, moved),
        int(rows["icache_miss"].sum()),
        int(rows["dcache_miss"].sum()),
        int(rows["mac"].sum()),
    )


def by_function(rows: Rows, program: Program) -> list[tuple[str, Cost]]:
    """Cost of every function that ran, the most expensive first."""
    return _grouped(rows, program.name_at)


def by_line(rows: Rows, program: Program) -> list[tuple[tuple[str, Line | None], Cost]]:
    """Cost of every source line that ran, for each function it was compiled into; the most expensive first."""
    return _grouped(rows, lambda pc: (program.name_at(pc), program.line_at(pc)))


def cycles_by_function(rows: Rows, program: Program) -> dict[str, int]:
    """Cycles only."""
    return {name: cost.cycles for name, cost in by_function(rows, program)}


def mac_rate(macs: int, cycles: float) -> float | None:
    """Multiply-accumulates a cycle; None where there are none."""
    return macs / cycles if macs and cycles else None


def share(part: float, whole: float) -> float:
    """A fraction; 0 of nothing."""
    return part / whole if whole else 0.0


def _named(names: tuple[str, ...], values: npt.NDArray[Any]) -> dict[str, int]:
    found = {name: int(value) for name, value in zip(names, values, strict=True) if value}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _grouped(rows: Rows, key: Callable[[int], K]) -> list[tuple[K, Cost]]:
    groups: dict[K, list[int]] = {}
    for i, pc in enumerate(rows["pc"].tolist()):
        groups.setdefault(key(pc), []).append(i)
    costs = [(name, cost_of(rows[np.array(indices)])) for name, indices in groups.items()]
    return sorted(costs, key=lambda item: -item[1].cycles)


__all__ = [
    "UNKNOWN",
    "Cost",
    "Rows",
    "by_function",
    "by_line",
    "cost_of",
    "cycles_by_function",
    "mac_rate",
    "share",
]
