# SPDX-License-Identifier: Apache-2.0
"""Small charts as SVG text: lines, bars, a heat map. Plain shapes and text, to be embedded in a page as they are."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

COLOURS = ("#1f6fb4", "#d95f02", "#2a9d5c", "#8c54a6", "#b8860b", "#555555")
_FONT = 'font-family="sans-serif" font-size="11"'
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 26, 34  # margins in pixels

Points = Sequence[tuple[float, float]]


def line_chart(
    title: str,
    series: Mapping[str, Points],
    *,
    x_label: str = "",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    size: tuple[int, int] = (460, 240),
    diagonal: bool = False,
    marks: bool = False,
) -> str:
    """Lines over a common axis.

    Args:
        title: above the chart.
        series: points by name, sorted by x; values that are not finite are left out.
        x_label: under the axis.
        x_range: of the axis; by default that of the values.
        y_range: likewise.
        size: width and height in pixels.
        diagonal: a dashed line from corner to corner.
        marks: dots on the points.
    """
    width, height = size
    finite = {n: [(x, y) for x, y in p if math.isfinite(x) and math.isfinite(y)] for n, p in series.items()}
    every = [point for points in finite.values() for point in points]
    if not every:
        return ""
    x0, x1 = x_range or (min(x for x, _ in every), max(x for x, _ in every))
    y0, y1 = y_range or (min(y for _, y in every), max(y for _, y in every))
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + 1)
    inner_w, inner_h = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + (x - x0) / (x1 - x0) * inner_w, _TOP + (1 - (y - y0) / (y1 - y0)) * inner_h

    out = [_open(width, height, title)]
    for tick in _ticks(y0, y1):
        _, y = at(x0, tick)
        out.append(f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(_text(_LEFT - 6, y + 4, _label(tick), "end"))
    for tick in _ticks(x0, x1):
        x, _ = at(tick, y0)
        out.append(_text(x, height - _BOTTOM + 15, _label(tick), "middle"))
    out.append(_text(_LEFT + inner_w / 2, height - 4, x_label, "middle"))
    if diagonal:
        (ax, ay), (bx, by) = at(x0, y0), at(x1, y1)
        out.append(
            f'<line x1="{ax:.1f}" y1="{ay:.1f}" x2="{bx:.1f}" y2="{by:.1f}" stroke="#999" stroke-dasharray="4 3"/>'
        )
    left = float(_LEFT)
    for i, (name, points) in enumerate(finite.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{x:.1f},{min(max(y, _TOP), _TOP + inner_h):.1f}" for x, y in (at(*p) for p in points))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        if marks:
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in (at(*p) for p in points)]
        out.append(f'<rect x="{left:.0f}" y="{_TOP - 8}" width="10" height="3" fill="{colour}"/>')
        out.append(_text(left + 14, _TOP - 3, name))
        left += 26 + 6.2 * len(name)
    return "".join(out) + "</svg>"


def bar_chart(title: str, bars: Sequence[tuple[str, float, str]], *, width: int = 720) -> str:
    """Horizontal bars from zero.

    Args:
        title: above the chart.
        bars: name, length and the text behind each bar; negative lengths go to the left.
        width: in pixels.
    """
    if not bars:
        return ""
    row, left = 16, 10 + max(len(name) for name, _, _ in bars) * 6.3
    room = width - left - max(90, 10 + max(len(text) for _, _, text in bars) * 6.3)
    low, high = min(0.0, *(v for _, v, _ in bars)), max(0.0, *(v for _, v, _ in bars))
    scale = room / ((high - low) or 1)
    zero = left - low * scale
    out = [_open(width, _TOP + row * len(bars) + 6, title)]
    for i, (name, value, text) in enumerate(bars):
        y, length = _TOP + i * row, abs(value) * scale
        start = zero - (length if value < 0 else 0)
        out.append(_text(left - 6, y + 11, name, "end"))
        out.append(
            f'<rect x="{start:.1f}" y="{y + 2}" width="{max(length, 0.5):.1f}" height="{row - 4}" fill="{COLOURS[0]}"/>'
        )
        out.append(_text(zero + max(value, 0) * scale + 5, y + 11, text))
    return "".join(out) + "</svg>"


def heat_map(title: str, rows: Sequence[Sequence[int]], names: Sequence[str], *, cell: int = 30) -> str:
    """Counts `[N][N]` in squares, darker where a row has more of its sum; numbers in them while they are readable."""
    n = len(rows)
    left = 12 + max((len(name) for name in names), default=1) * 6.3
    width, height = int(left + n * cell + 10), int(_TOP + n * cell + left)
    out = [_open(width, height, title)]
    for i, (values, name) in enumerate(zip(rows, names, strict=True)):
        total = sum(values) or 1
        y = _TOP + i * cell
        out.append(_text(left - 6, y + cell / 2 + 4, name, "end"))
        for j, value in enumerate(values):
            x, share = left + j * cell, value / total
            shade = round(255 - 200 * min(1.0, share**0.5 if i != j else share))
            colour = f"rgb({shade},{shade},255)" if i == j else f"rgb(255,{shade},{shade})"
            tip = f"{name} answered as {names[j]}: {value} ({share:.1%})"
            out.append(
                f'<rect x="{x:.0f}" y="{y}" width="{cell}" height="{cell}" fill="{colour}" stroke="#fff">'
                f"<title>{html.escape(tip)}</title></rect>"
            )
            if value and cell >= 20:
                out.append(_text(x + cell / 2, y + cell / 2 + 4, str(value), "middle"))
    for j, name in enumerate(names):
        x, y = left + j * cell + cell / 2 + 4, _TOP + n * cell + 6
        out.append(
            f'<text x="{x:.0f}" y="{y:.0f}" {_FONT} text-anchor="end" transform="rotate(-90 {x:.0f} {y:.0f})">'
            f"{html.escape(name)}</text>"
        )
    return "".join(out) + "</svg>"


def _open(width: int, height: int, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{html.escape(title, quote=True)}"><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="{_LEFT}" y="12" {_FONT} font-weight="bold">{html.escape(title)}</text>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {_FONT} text-anchor="{anchor}">{html.escape(text)}</text>' if text else ""


def _ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers in a range."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _label(value: float) -> str:
    return f"{value:.6g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.0e}"
