# SPDX-License-Identifier: Apache-2.0
"""Run the same few images for hours and watch what changes: bits, latency, stack, heap, temperature, the line."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tvhil.errors import MissingToolError
from tvhil.evaluation.device import Device
from tvhil.evaluation.report import LINK_COUNTERS
from tvhil.evaluation.run import Input, explain
from tvhil.prediction.predictor import Predictor

SCHEMA = "tvhil.soak/1"
MOST_POINTS = 240  # of the time line
_SHORTEST_POINT = 1.0  # seconds
# Growth of the median latency between the first and the last quarter that is a finding. A machine that others use
# slows down by itself; a counter does not.
_MOST_GROWTH = {"seconds": 0.25, "cycles": 0.01, "instructions": 0.001}
_RETRIES = LINK_COUNTERS.index("retries")


class SoakDevice(Device, Protocol):
    """A device that may have a thermometer."""

    def temperature(self) -> float | None:
        """Degrees Celsius, or None."""


class Point:
    """A stretch of the time line. Latencies are relative to the first run of the same image.

    Attributes:
        begin: seconds since the start.
        latency: 5th percentile, median, 95th percentile and maximum of its runs, once it has ended.
    """

    def __init__(self, begin: float) -> None:
        self.begin = begin
        self.runs = self.mismatches = self.retries = 0
        self.latency: dict[str, float | None] = dict.fromkeys(("p5", "median", "p95", "max"))
        self.memory: dict[str, Any] = {}
        self.temperature: float | None = None
        self._ratios = array("d")

    def add(self, ratio: float) -> None:
        """The latency of one run."""
        self._ratios.append(ratio)

    def end(self, device: SoakDevice) -> None:
        """Take the board's memory and temperature, and sum up the latencies."""
        self.memory, self.temperature = device.memory(), device.temperature()
        if self._ratios:
            figures = np.percentile(self._ratios, (5, 50, 95, 100))
            self.latency = {key: round(float(v), 9) for key, v in zip(self.latency, figures, strict=True)}
            self._ratios = array("d")

    def to_json(self) -> dict[str, Any]:
        """A point of the `timeline`."""
        return {
            "seconds": round(self.begin, 3),
            "runs": self.runs,
            "mismatches": self.mismatches,
            "retries": self.retries,
            "latency": self.latency,
            "stack": (self.memory.get("stack") or {}).get("measured"),
            "heap": self.memory.get("heap"),
            "temperature_c": self.temperature,
        }


class Soak:
    """One soak of a board.

    Args:
        device: running the predictor's model.
        predictor: of that model.
        inputs: the images that are repeated in turn.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        device: SoakDevice,
        predictor: Predictor,
        inputs: Sequence[Input],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.device, self.predictor, self._clock = device, predictor, clock
        self._ids = [item.id for item in inputs]
        self._images = [item.load() for item in inputs]
        self._expected = predictor.run(np.stack(self._images))
        self._first: dict[int, float] = {}  # latency of each image's first run
        self.points: list[Point] = []
        self.runs = self.mismatches = 0
        self.first_mismatch: dict[str, Any] | None = None
        self.unit = device.facts().unit
        self.seconds = 0.0

    def run(self, seconds: float, watch: Callable[[Soak], None] | None = None) -> None:
        """Repeat the images for so many seconds; at least each of them twice.

        Args:
            seconds: to go on.
            watch: called at every new point of the time line.

        Raises:
            BoardError: the board stopped answering; what was measured is kept.
        """
        began, width = self._clock(), max(_SHORTEST_POINT, seconds / MOST_POINTS)
        while (now := self._clock() - began) < seconds or self.runs < 2 * len(self._images):
            if not self.points or now >= self.points[-1].begin + width:
                if self.points:
                    self.points[-1].end(self.device)
                self.points.append(Point(now))
                if watch:
                    watch(self)
            self._run_one(self.runs % len(self._images))
            self.seconds = self._clock() - began
        self.points[-1].end(self.device)

    def _run_one(self, index: int) -> None:
        point, retries = self.points[-1], self.device.link_statistics()[_RETRIES]
        result = self.device.run(self._images[index])
        self.runs += 1
        point.runs += 1
        if result.latency is not None:
            first = self._first.setdefault(index, result.latency)
            point.add(result.latency / first if first else 1.0)
        if not np.array_equal(result.output.reshape(-1), self._expected[index]):
            self.mismatches += 1
            point.mismatches += 1
            if self.first_mismatch is None:
                where = explain(self.device, self.predictor, self._images[index]).to_json()
                self.first_mismatch = {"run": self.runs, "seconds": round(point.begin, 3), "image": self._ids[index]}
                self.first_mismatch |= {"divergence": where}
        point.retries += self.device.link_statistics()[_RETRIES] - retries

    @property
    def latency_growth(self) -> float | None:
        """Of the last quarter of the time line over the first, by their medians; None with fewer than four points."""
        points = [point.latency["median"] for point in self.points if point.latency["median"] is not None]
        if len(points) < 4:
            return None
        quarter = len(points) // 4
        return float(np.median(points[-quarter:]) / np.median(points[:quarter]) - 1)

    @property
    def findings(self) -> list[str]:
        """What should not be: one sentence each."""
        found = []
        if self.mismatches:
            found.append(f"{self.mismatches} of {self.runs} runs were not bit-exact")
        growth, most = self.latency_growth, _MOST_GROWTH.get(self.unit or "seconds", 0.25)
        if growth is not None and growth > most:
            found.append(f"latency grew by {growth:.2%} (more than {most:.1%})")
        points = [point.to_json() for point in self.points]
        # The first point is left out: everything is done there for the first time.
        for key, name in (("stack", "the deepest stack"), ("heap", "the heap in use")):
            values = [point[key] for point in points[1:] if point[key] is not None]
            if values and values[-1] > values[0]:
                found.append(f"{name} grew from {values[0]:,} to {values[-1]:,} bytes")
        return found

    def to_json(self) -> dict[str, Any]:
        """The result so far; stable keys, null for what was not measured."""
        growth = self.latency_growth
        temperatures = [point.temperature for point in self.points if point.temperature is not None]
        return {
            "schema": SCHEMA,
            "seconds": round(self.seconds, 3),
            "images": len(self._images),
            "runs": self.runs,
            "mismatches": self.mismatches,
            "first_mismatch": self.first_mismatch,
            "latency": {"unit": self.unit, "growth": None if growth is None else round(growth, 6)},
            "temperature_c": {"min": min(temperatures), "max": max(temperatures)} if temperatures else None,
            "findings": self.findings,
            "timeline": [point.to_json() for point in self.points],
        }


def draw_timeline(result: dict[str, Any], title: str, path: Path) -> None:
    """The time line as a picture, in the format of the file's suffix (.png, .svg, .pdf).

    Raises:
        MissingToolError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingToolError(f"{path} needs matplotlib: pip install 'tvhil[plot]'") from None
    points = result["timeline"]
    minutes = [point["seconds"] / 60 for point in points]
    hot = any(point["temperature_c"] is not None for point in points)
    figure = Figure(figsize=(9, 8 if hot else 6.5), layout="constrained")
    axes = figure.subplots(4 if hot else 3, 1, sharex=True)
    for axis in axes:
        axis.grid(alpha=0.3)
    low, middle, high = ([p["latency"][key] or np.nan for p in points] for key in ("p5", "median", "p95"))
    axes[0].fill_between(minutes, low, high, alpha=0.25, label="90 % of runs")
    axes[0].plot(minutes, middle, label="median")
    axes[0].set_ylabel("latency, of the\nimage's first run")
    axes[0].legend(loc="upper right")
    for key in ("stack", "heap"):
        values = [np.nan if p[key] is None else p[key] for p in points]
        if not np.isnan(values).all():
            axes[1].plot(minutes, values, label=key)
            axes[1].legend(loc="upper right")
    axes[1].set_ylabel("bytes used")
    axes[2].plot(minutes, [p["mismatches"] for p in points], color="tab:red", label="runs not bit-exact")
    axes[2].plot(minutes, [p["retries"] for p in points], color="tab:gray", label="frames sent again")
    axes[2].set_ylabel("count")
    axes[2].legend(loc="upper right")
    if hot:
        axes[3].plot(minutes, [np.nan if p["temperature_c"] is None else p["temperature_c"] for p in points])
        axes[3].set_ylabel("°C")
    axes[-1].set_xlabel("minutes")
    axes[0].set_title(f"{title}: {result['runs']:,} runs, {result['mismatches']} not bit-exact")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
