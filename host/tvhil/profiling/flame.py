# SPDX-License-Identifier: Apache-2.0
"""Stacks as files for a browser: speedscope's JSON, Chrome's trace events, and a flame graph in one HTML file.

Formats: speedscope, "Importing from custom sources" (https://www.speedscope.app/file-format-schema.json); "Trace Event
Format" of Chrome, complete events ("ph": "X"), which chrome://tracing and Perfetto open; flame graphs after Gregg, "The
Flame Graph" (CACM 59(6), 2016).
"""

from __future__ import annotations

import html
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tvhil.profiling.stacks import Samples, Stack


def speedscope(title: str, weights: Mapping[Stack, int], samples: Samples, exporter: str) -> dict[str, Any]:
    """Two profiles: the stacks with their exact weights in cycles, and the samples in the order of time."""
    frames: dict[str, int] = {}

    def indices(stack: Stack) -> list[int]:
        return [frames.setdefault(name, len(frames)) for name in stack]

    profiles = []
    ordered = sorted(weights.items())
    profiles.append(_sampled("cycles by call stack", [indices(s) for s, _ in ordered], [w for _, w in ordered]))
    if len(samples.sequence) > 1:
        stacks = [indices(stack) for _, stack in samples.sequence]
        cycles = [cycle for cycle, _ in samples.sequence]
        durations = [b - a for a, b in pairwise(cycles)]
        profiles.append(_sampled("call stacks over time (sampled)", stacks[:-1], durations))
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": title,
        "exporter": exporter,
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": name} for name in frames]},
        "profiles": profiles,
    }


def _sampled(name: str, stacks: list[list[int]], weights: list[int]) -> dict[str, Any]:
    return {
        "type": "sampled", "name": name, "unit": "none", "startValue": 0, "endValue": sum(weights),
        "samples": stacks, "weights": weights,
    }  # fmt: skip


def trace_events(operators: Sequence[tuple[str, int, float]], samples: Samples, cpu_mhz: float) -> dict[str, Any]:
    """Chrome's trace events: the operators one after the other, and the sampled stacks below them on a second track.

    Args:
        operators: (name, first cycle, cycles).
        samples: call stacks.
        cpu_mhz: to turn cycles into the microseconds that the format wants.
    """
    events: list[dict[str, Any]] = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": {"name": name}}
        for tid, name in ((1, "operators"), (2, "call stacks (sampled)"))
    ]

    def add(tid: int, name: str, start: float, cycles: float) -> None:
        place = {"pid": 1, "tid": tid, "ts": start / cpu_mhz, "dur": cycles / cpu_mhz}
        events.append({"name": name, "ph": "X", **place, "args": {"cycles": cycles}})

    for name, start, cycles in operators:
        add(1, name, start, cycles)
    unfinished: list[tuple[str, int]] = []
    last = samples.sequence[-1][0] if samples.sequence else 0
    for cycle, stack in [*samples.sequence, (last, ())]:
        kept = 0
        while kept < min(len(unfinished), len(stack)) and unfinished[kept][0] == stack[kept]:
            kept += 1
        while len(unfinished) > kept:
            name, start = unfinished.pop()
            add(2, name, start, cycle - start)
        unfinished += [(name, cycle) for name in stack[kept:]]
    return {"traceEvents": events, "displayTimeUnit": "ns"}


@dataclass
class _Frame:
    name: str
    cycles: int = 0
    own: int = 0
    children: dict[str, _Frame] = field(default_factory=dict)


def _tree(weights: Mapping[Stack, int]) -> _Frame:
    root = _Frame("all")
    for stack, cycles in weights.items():
        at = root
        at.cycles += cycles
        for name in stack:
            at = at.children.setdefault(name, _Frame(name))
            at.cycles += cycles
        at.own += cycles
    return root


def flame_html(title: str, weights: Mapping[Stack, int]) -> str:
    """A flame graph that needs nothing but a browser: click a frame to zoom, type to search."""
    root = _tree(weights)
    rows: list[str] = []
    depth = _boxes(root, 0, 0, root.cycles or 1, rows)
    return _PAGE.format(
        title=html.escape(title), height=(depth + 1) * _ROW, boxes="\n".join(rows), total=f"{root.cycles:,}", row=_ROW
    )


_ROW = 18  # pixels


def _boxes(frame: _Frame, depth: int, start: int, whole: int, rows: list[str]) -> int:
    """Append a box for a frame and those above it; the largest depth."""
    name = html.escape(frame.name, quote=True)
    hue = 20 + zlib.crc32(frame.name.encode()) % 40
    note = f"{name}: {frame.cycles:,} cycles ({frame.cycles / whole:.2%}), {frame.own:,} its own"
    rows.append(
        f'<div class="f" data-x="{start / whole:.9f}" data-w="{frame.cycles / whole:.9f}" data-d="{depth}" '
        f'data-n="{name}" title="{note}" style="background:hsl({hue},85%,70%)">{name}</div>'
    )
    deepest = depth
    for child in sorted(frame.children.values(), key=lambda c: -c.cycles):
        deepest = max(deepest, _boxes(child, depth + 1, start, whole, rows))
        start += child.cycles
    return deepest


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 13px sans-serif; margin: 12px; }}
#g {{ position: relative; height: {height}px; }}
.f {{ position: absolute; height: {row}px; line-height: {row}px; box-sizing: border-box; border: 1px solid #fff;
     overflow: hidden; white-space: nowrap; cursor: pointer; font-size: 11px; padding-left: 2px; border-radius: 2px; }}
.hit {{ outline: 2px solid #06c; outline-offset: -2px; }}
</style></head><body>
<h3>{title}</h3>
<p>{total} cycles; the width of a frame is its share. Click to zoom, click the lowest row to go back.
<input id="q" placeholder="search"> <span id="h"></span></p>
<div id="g">
{boxes}
</div>
<script>
const frames = [...document.querySelectorAll('.f')].map(
  e => ({{e, x: +e.dataset.x, w: +e.dataset.w, d: +e.dataset.d}}));
function show(z) {{
  for (const f of frames) {{
    const inside = f.x + f.w > z.x + 1e-12 && f.x < z.x + z.w - 1e-12;
    const left = Math.max(0, (f.x - z.x) / z.w), right = Math.min(1, (f.x + f.w - z.x) / z.w);
    f.e.style.display = inside && right - left > 2e-4 ? '' : 'none';
    f.e.style.left = 100 * left + '%';
    f.e.style.width = 100 * (right - left) + '%';
    f.e.style.top = {row} * f.d + 'px';
  }}
}}
for (const f of frames) f.e.onclick = () => show(f);
show(frames[0]);
document.getElementById('q').oninput = e => {{
  let text = e.target.value, end = -1, sum = 0;
  for (const f of frames) {{
    const hit = text && f.e.dataset.n.includes(text);
    f.e.classList.toggle('hit', hit);
    if (hit && f.x >= end - 1e-12) {{ sum += f.w; end = f.x + f.w; }}
  }}
  document.getElementById('h').textContent = text ? (100 * sum).toFixed(2) + ' % of all cycles' : '';
}};
</script></body></html>
"""


def dump(document: Mapping[str, Any]) -> str:
    """JSON in one line, as viewers take it."""
    return json.dumps(document, separators=(",", ":")) + "\n"
