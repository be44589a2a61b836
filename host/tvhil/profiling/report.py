# SPDX-License-Identifier: Apache-2.0
"""A recording as JSON for machines and as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tvhil.evaluation.report import fill_layers
from tvhil.profiling.aggregate import by_function, by_line, cost_of, mac_rate, share
from tvhil.profiling.loops import Loop
from tvhil.profiling.macs import operator_macs
from tvhil.profiling.program import Line, Program
from tvhil.profiling.schedule import render

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tvhil.packing.reader import TvitModel
    from tvhil.profiling.record import Recording

SCHEMA = "tvhil.profile/1"


def profile_json(recording: Recording, program: Program, model: TvitModel) -> dict[str, Any]:
    """Everything about one inference, without the keys that reports share (model, board …)."""
    totals = recording.totals
    macs = [operator_macs(model, op) for op in model.operators]
    return {
        "totals": {
            **cost_of(recording.rows).as_json(),
            "macs": model.info.macs,
            "mac_per_cycle": mac_rate(model.info.macs, recording.latency),
            "icache": {"accesses": totals.icache_access, "misses": totals.icache_miss},
            "dcache": {
                "accesses": totals.dcache_access,
                "misses": totals.dcache_miss,
                "written_back": totals.dcache_writeback,
            },
        },
        "operators": [
            {"name": name, "cycles": cycles, "macs": macs[i], "mac_per_cycle": mac_rate(macs[i], cycles)}
            for i, (name, cycles) in enumerate(recording.operators)
        ],
        "functions": [{"name": name, **cost.as_json()} for name, cost in by_function(recording.rows, program)],
        "lines": [
            {"function": function, **_place(line), **cost.as_json()}
            for (function, line), cost in by_line(recording.rows, program)
        ],
        "loops": [_loop_json(loop, recording, program) for loop in recording.loops],
        "samples": {"complete": len(recording.samples.sequence), "cut": recording.samples.cut},
        "warnings": recording.warnings,
    }


def fill_latency(latency: dict[str, Any], recording: Recording) -> None:
    """Write the measured figures into the `latency` of a report that holds the predicted ones."""
    latency["unit"] = "cycles"
    latency["measured"] = dict.fromkeys(("mean", "p50", "p95", "max"), recording.latency)
    if latency["predicted"]:
        latency["relative_error"] = latency["predicted"] / recording.latency - 1
    fill_layers(latency["layers"], "measured", [cycles for _, cycles in recording.operators])


def _place(line: Line | None) -> dict[str, Any]:
    return {"file": line.file if line else None, "line": line.line if line else None}


def _loop_json(loop: Loop, recording: Recording, program: Program) -> dict[str, Any]:
    schedule = next((s for s in recording.schedules if s.loop.header == loop.header), None)
    return {
        "function": loop.function,
        "header": loop.header,
        **_place(program.line_at(loop.header)),
        "depth": loop.depth,
        "innermost": loop.innermost,
        "zero_overhead": loop.zero_overhead,
        "entries": loop.entries,
        "iterations": loop.iterations,
        "cycles_per_iteration": loop.cycles_per_iteration,
        "instructions_per_iteration": loop.total.instructions / loop.iterations if loop.iterations else None,
        "own": loop.cost.as_json(),
        "schedule": schedule.as_json() if schedule else None,
    }


def tables(
    result: Mapping[str, Any], recording: Recording, program: Program, *, functions: int, lines: int, loops: int
) -> Iterator[RenderableType]:
    """The tables of a profile, the longest ones cut to so many rows."""
    from rich.text import Text

    profile = result["profile"]
    cycles = profile["totals"]["cycles"]
    pie = ("MAC/cycle",) if profile["totals"]["pie_macs"] else ()
    yield _totals_table(result)
    if functions:
        yield table(
            "Functions, their own cycles",
            ("cycles", "share", "instructions", "CPI", *pie, "waits for", "function"),
            [_cost_row(row, cycles, row["name"], bool(pie)) for row in profile["functions"][:functions]],
            ("waits for", "function"),
        )
    if lines:
        yield table(
            "Source lines",
            ("cycles", "share", "instructions", "CPI", *pie, "waits for", "line"),
            [_cost_row(row, cycles, _line_text(row), bool(pie)) for row in profile["lines"][:lines]],
            ("waits for", "line"),
        )
    if loops:
        yield table(
            "Loops, without the loops inside them",
            ("cycles", "share", "iterations", "entries", "cycles each", *pie, "loop"),
            [_loop_row(row, cycles, bool(pie)) for row in profile["loops"][:loops]],
            ("loop",),
        )
    for schedule in recording.schedules[:loops]:
        yield Text("\n" + "\n".join(render(schedule, program)), no_wrap=True, overflow="ellipsis")


def _totals_table(result: Mapping[str, Any]) -> RenderableType:
    from rich.box import SIMPLE
    from rich.table import Table

    totals, latency = result["profile"]["totals"], result["latency"]
    made = Table(title=f"{result['model']['name']} on {result['board']['name']}", box=SIMPLE, show_header=False)
    made.add_column(style="bold")
    made.add_column()
    rate = totals["mac_per_cycle"]
    rows = [
        ("cycles of the inference", f"{latency['measured']['mean']:,.0f}, as the firmware counts them"),
        ("cycles profiled", f"{totals['cycles']:,}, with the protocol around it"),
        ("instructions", f"{totals['instructions']:,}, {_each(totals):.3f} cycles each"),
        ("multiply-accumulates", f"{totals['macs']:,}" + (f", {rate:.4f} a cycle" if rate else "")),
        ("of these by PIE", f"{totals['pie_macs']:,}" if totals["pie_macs"] else None),
        ("stalls", _named(totals["stalls"], totals["cycles"])),
        ("loads and stores", _traffic(totals)),
        ("instruction cache", _cache(totals["icache"])),
        ("data cache", _cache(totals["dcache"])),
        ("warnings", "; ".join(result["profile"]["warnings"])),
    ]
    for name, value in rows:
        if value:
            made.add_row(name, value)
    return made


def _named(values: Mapping[str, int], whole: int) -> str:
    return ", ".join(f"{name} {value:,} ({share(value, whole):.1%})" for name, value in values.items())


def _traffic(totals: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {n:,} ({totals['bytes'][name]:,} bytes)" for name, n in totals["accesses"].items())


def _cache(cache: Mapping[str, int]) -> str:
    if not cache["accesses"]:
        return ""
    misses, accesses = cache["misses"], cache["accesses"]
    return f"{misses:,} misses in {accesses:,} accesses ({misses / accesses:.2%})"


def _each(row: Mapping[str, Any]) -> float:
    return share(row["cycles"], row["instructions"])


def _pie_rate(row: Mapping[str, Any], pie: bool) -> list[str]:
    rate = row["pie_mac_per_cycle"]
    return [f"{rate:.2f}" if rate else ""] if pie else []


def _cost_row(row: Mapping[str, Any], cycles: int, name: str, pie: bool) -> list[str]:
    stalls = ", ".join(f"{cause} {share(n, row['cycles']):.0%}" for cause, n in list(row["stalls"].items())[:3])
    numbers = [f"{row['cycles']:,}", f"{share(row['cycles'], cycles):.1%}", f"{row['instructions']:,}"]
    return [*numbers, f"{_each(row):.2f}", *_pie_rate(row, pie), stalls, name]


def _line_text(row: Mapping[str, Any]) -> str:
    if row["file"] is None:
        return f"{row['function']} (no line)"
    line = Line(row["file"], row["line"])
    return f"{Path(row['file']).name}:{row['line']}  {line.text}"


def _loop_row(row: Mapping[str, Any], cycles: int, pie: bool) -> list[str]:
    place = f"{row['function']} {row['header']:08x}"
    if row["file"]:
        place += f" {Path(row['file']).name}:{row['line']}"
    kind = ", zero-overhead" if row["zero_overhead"] else ""
    return [
        f"{row['own']['cycles']:,}", f"{share(row['own']['cycles'], cycles):.1%}", f"{row['iterations']:,}",
        f"{row['entries']:,}", f"{row['cycles_per_iteration']:.2f}", *_pie_rate(row["own"], pie),
        f"{'  ' * (row['depth'] - 1)}{place}{kind}",
    ]  # fmt: skip


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[str]) -> RenderableType:
    """A table of numbers, aligned to the right, and of `text` columns; the last column is cut where the screen ends."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    made = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for i, name in enumerate(columns):
        justify: Literal["left", "right"] = "left" if name in text else "right"
        if i == len(columns) - 1:
            made.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis")
        else:
            width = max(len(cell) for cell in (name, *(row[i] for row in rows)))
            made.add_column(name, justify=justify, no_wrap=True, min_width=width)
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    return made
