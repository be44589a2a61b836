# SPDX-License-Identifier: Apache-2.0
"""Latency from a cost model: a linear form over amounts of work, for each kind of operator.

What one operator does follows from its shape, and from the number of its non-zero trits where only these are stored
(device/CONTRACT.md has no work that depends on activations), so its cost is `sum of coefficient * amount`. The amounts
are counted from the model file, as the kernels' loops count them (`portable_work`, `pie_work`); the coefficients, in
the board's unit, are in the `[cost]` table of the board file and are fitted to measurements by
tools/calibrate_cost_model.py.

Of the PIE kernels the amounts of each core are known, so a phase takes as long as the core that has most to do. Lines
of weights that come from flash are counted by a model of the cache (`flash_reads`), and where both cores read, one
sometimes waits for the other: the more often, the busier the other one keeps the bus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvhil.errors import InputError
from tvhil.packing.reader import TvitModel
from tvhil.prediction.flash_reads import CacheShape
from tvhil.prediction.pie_work import Features
from tvhil.prediction.work import KERNELS, OperatorWork, model_work

UNITS = ("cycles", "instructions", "seconds")
# Tables of a cost model that are no kind of operator: the loop around the operators; lines that are read from flash,
# and the cache that they stay in; what it costs that several cores share an operator.
RUN = "run"
FLASH = "flash"
CORES = "cores"
_CACHE = {"cache_bytes": "bytes", "cache_line_bytes": "line_bytes", "cache_ways": "ways"}


def run_features(model: TvitModel) -> Features:
    """Amounts of work outside the operators."""
    return {"inferences": 1, "operators": len(model.operators)}


@dataclass(frozen=True)
class LatencyPrediction:
    """What the cost model says of one inference.

    Attributes:
        unit: 'cycles', 'instructions' or 'seconds'.
        total: of one inference.
        layers: (operator name, prediction) in execution order.
    """

    unit: str
    total: float
    layers: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class CostModel:
    """Coefficients of a board, as its file's `[cost]` table has them.

    Attributes:
        unit: 'cycles', 'instructions' or 'seconds'.
        kernels: the implementation that the amounts of work are counted for.
        coefficients: for each kind of operator (and `RUN`), cost of one unit of each amount.
        mhz: cycles in a microsecond; 0 where the unit is another one.
    """

    unit: str
    kernels: str
    coefficients: Mapping[str, Mapping[str, float]]
    mhz: float = 0

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> CostModel:
        """Read a `[cost]` table: `unit`, `kernels`, where there is one `mhz`, and a sub-table a kind of operator.

        Raises:
            InputError: it is malformed.
        """
        if not isinstance(table, Mapping):
            raise InputError("[cost] must be a table")
        values = dict(table)
        unit, kernels = values.pop("unit", None), values.pop("kernels", None)
        if unit not in UNITS or kernels not in KERNELS:
            raise InputError(f"[cost]: unit {unit!r} or kernels {kernels!r} is unknown")
        mhz = values.pop("mhz", 0)
        if isinstance(mhz, bool) or not isinstance(mhz, int | float) or mhz < 0 or (mhz and unit != "cycles"):
            raise InputError(f"[cost]: mhz {mhz!r} must be the clock of a board whose unit is cycles")
        for kind, coefficients in values.items():
            numbers = isinstance(coefficients, dict) and all(
                isinstance(value, int | float) and not isinstance(value, bool) for value in coefficients.values()
            )
            if not numbers:
                raise InputError(f"[cost.{kind}] must hold numbers only")
        missing = [key for key in ("lines", *_CACHE) if FLASH in values and not values[FLASH].get(key)]
        if missing:
            raise InputError(f"[cost.{FLASH}] must have {' and '.join(missing)}")
        return cls(unit, kernels, values, mhz)

    @property
    def cache(self) -> CacheShape | None:
        """The data cache between flash and the cores; None where lines of flash are not counted."""
        table = self.coefficients.get(FLASH)
        return None if table is None else CacheShape(**{_CACHE[key]: int(table[key]) for key in _CACHE})

    def cost(self, kind: str, features: Features) -> float:
        """Cost of some work.

        Raises:
            InputError: the board's cost model has no coefficient for it.
        """
        coefficients = self.coefficients.get(kind, {})
        for name, amount in features.items():
            if amount and name not in coefficients:
                raise InputError(
                    f"the board's cost model has no coefficient [cost.{kind}] {name}: "
                    "measure it with tools/calibrate_cost_model.py"
                )
        return sum(coefficients[name] * amount for name, amount in features.items() if amount)

    def line_cost(self) -> float:
        """Of a line from flash."""
        return self.coefficients.get(FLASH, {}).get("lines", 0.0)

    def busiest(self, work: OperatorWork) -> tuple[float, Features]:
        """Cost of the busiest core in every phase of an operator, and the amounts that sharing it costs more by."""
        total, waits = 0.0, 0.0
        for i, phase in enumerate(work.phases):
            lines: Sequence[float] = work.lines[i] if work.lines else (0,) * len(phase)
            flash = [self.line_cost() * n for n in lines]
            costs = [self.cost(work.table, features) + f for features, f in zip(phase, flash, strict=True)]
            most = max(range(len(costs)), key=costs.__getitem__)
            total += costs[most]
            if costs[most]:
                waits += flash[most] * ((sum(flash) - flash[most]) / costs[most]) ** 2
        shared: Features = {}
        if len(work.phases[0]) > 1:
            shared = {"forks": 1, "barriers": len(work.phases) - 1, "waits": waits}
        return total, shared

    def operator_cost(self, work: OperatorWork) -> float:
        """Cost of one operator."""
        total, shared = self.busiest(work)
        return total + self.cost(CORES, shared)

    def predict(self, model: TvitModel, cores: int = 1) -> LatencyPrediction:
        """Latency of one inference that is not the first, in total and for each operator."""
        work = model_work(model, self.kernels, cores, self.cache)
        layers = tuple((one.name, self.operator_cost(one)) for one in work)
        total = sum(cost for _, cost in layers) + self.cost(RUN, run_features(model))
        return LatencyPrediction(self.unit, total, layers)
