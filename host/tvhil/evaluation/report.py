# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: stable keys for machines, a table for people.

`predict`, `run-eval`, `evaluate` and `bench` write the same keys where they mean the same thing; what was not measured
is null. A report is computed from the journal alone (plus the predictions), so an evaluation that was killed and
resumed reports what an undisturbed one does.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from tvhil import __version__
from tvhil.prediction.memory import PSRAM_NOTE

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tvhil.prediction.latency import LatencyPrediction

SCHEMA = "tvhil.report/1"
REMAINDER = "(between operators)"
LINK_COUNTERS = ("bytes_sent", "bytes_received", "frames", "retries", "crc_errors")

Json = dict[str, Any]


def empty_report() -> Json:
    """A report with every stable key, nothing in it yet."""
    return {
        "schema": SCHEMA,
        "tool_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": dict.fromkeys(("name", "file", "sha256", "bytes", "parameters", "input", "classes")),
        "board": dict.fromkeys(("name", "kind", "details")),
        "dataset": dict.fromkeys(("name", "split", "images", "seed")),
        "logits": dict.fromkeys(("bit_exact", "max_abs_error", "top1_agreement", "first_divergence")),
        "accuracy": dict.fromkeys(("top1", "top5", "predicted_top1")),
        "latency": dict.fromkeys(("unit", "measured", "predicted", "relative_error", "layers")),
        "memory": {
            "arena": {"measured": None, "predicted": None},
            "stack": {"measured": None, "limit": None},
            **dict.fromkeys(("static", "model_bytes", "heap")),
        },
        "link": dict.fromkeys((*LINK_COUNTERS, "seconds")),
        "images": None,
    }


class IndexSet:
    """Indices of images, from 0, at a bit each: what is done of an evaluation."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._count = 0

    def add(self, index: int) -> None:
        """Put an index in; once more changes nothing."""
        if index in self:
            return
        if index >> 3 >= len(self._bits):
            self._bits.extend(bytes((index >> 3) + 1 - len(self._bits)))
        self._bits[index >> 3] |= 1 << (index & 7)
        self._count += 1

    def __contains__(self, index: int) -> bool:
        return index >> 3 < len(self._bits) and bool(self._bits[index >> 3] >> (index & 7) & 1)

    def __len__(self) -> int:
        return self._count


class FaultSummary:
    """Faults that were made on purpose, and what one of them cost.

    Attributes:
        kinds: faults by kind.
        images: that were struck.
    """

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.images = 0
        self._clean, self._struck_once = array("d"), array("d")

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row of the journal into account."""
        kinds, seconds = row["faults"], row["seconds"]
        self.kinds.update(kinds)
        self.images += bool(kinds)
        if sum(kinds.values()) == 1:
            self._struck_once.append(seconds)
        elif not kinds:
            self._clean.append(seconds)

    def to_json(self) -> Json:
        """The `faults` of a report; recovery: how much longer images with one fault took than others."""
        image = float(np.median(self._clean)) if self._clean else None
        struck = float(np.median(self._struck_once)) if self._struck_once else None
        return {
            "injected": self.kinds.total(),
            "kinds": dict(sorted(self.kinds.items())),
            "images_struck": self.images,
            "image_seconds": None if image is None else round(image, 6),
            "median_recovery_seconds": None if image is None or struck is None else round(max(0.0, struck - image), 6),
        }


class Summary:
    """Figures of an evaluation, gathered row by row in constant memory (a few bytes an image)."""

    def __init__(self) -> None:
        self.images = 0
        self.bit_exact = 0
        self.max_abs_error = 0
        self.same_top1 = 0
        self.labelled = 0
        self.top1 = 0
        self.top5 = 0
        self.predicted_top1 = 0
        self.first_divergence: Json | None = None
        self.latencies = array("d")
        self.link = dict.fromkeys(LINK_COUNTERS, 0)
        self.seconds = 0.0
        self.memory: Json | None = None
        self.faults: FaultSummary | None = None
        self.boards: dict[str, Json] = {}
        self.boards_agree: bool | None = None
        self._explained: int | None = None
        self._layers: np.ndarray[Any, np.dtype[np.float64]] | None = None
        self._layer_rows = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Take one row of the journal (see `run.image_row`) into account."""
        if "image" not in row:
            self._add_note(row)
            return
        self.images += 1
        self.bit_exact += row["exact"]
        self.max_abs_error = max(self.max_abs_error, row["error"])
        self.same_top1 += row["top1"] == row["predicted_top1"]
        if row["label"] is not None:
            self.labelled += 1
            self.top1 += row["rank"] == 0
            self.top5 += row["rank"] < 5
            self.predicted_top1 += row["predicted_top1"] == row["label"]
        if row.get("divergence") and self.unexplained(row["image"]):
            self._explained = row["image"]
            self.first_divergence = {"image": row["id"], **row["divergence"]}
        if row["latency"] is not None:
            self.latencies.append(row["latency"])
        if row["layers"] is not None:
            layers = np.asarray(row["layers"], np.float64)
            self._layers = layers if self._layers is None else self._layers + layers
            self._layer_rows += 1
        for key, value in zip(LINK_COUNTERS, row["link"], strict=True):
            self.link[key] += value
        self.seconds += row["seconds"]
        if "faults" in row:
            self.faults = self.faults or FaultSummary()
            self.faults.add(row)
        if "on" in row:
            self.boards[row["on"]]["images"] += 1

    def _add_note(self, row: Mapping[str, Any]) -> None:
        if "memory" in row:
            self.memory = dict(row["memory"])
        for board in row.get("rack", ()):
            self.boards.setdefault(board["name"], {**board, "images": 0})["quarantined"] = None
        if "agree" in row:
            self.boards_agree = row["agree"] and self.boards_agree is not False
        if "quarantine" in row:
            self.boards[row["quarantine"]]["quarantined"] = row["reason"]

    def unexplained(self, index: int) -> bool:
        """Whether a divergence of this image would be the first."""
        return self._explained is None or index < self._explained

    @property
    def layer_means(self) -> list[float] | None:
        """Mean of each operator's counter, or None where it was not measured."""
        return None if self._layers is None else [float(v) for v in self._layers / self._layer_rows]

    @property
    def measured_latency(self) -> Json | None:
        """Mean, median, 95th percentile (nearest rank) and maximum, or None where it was not measured."""
        if not self.latencies:
            return None
        values = np.sort(np.frombuffer(self.latencies, np.float64))
        rank = {p: values[max(0, int(np.ceil(p * len(values))) - 1)] for p in (0.5, 0.95)}
        return {
            "mean": float(values.mean()),
            "p50": float(rank[0.5]),
            "p95": float(rank[0.95]),
            "max": float(values[-1]),
        }


def summarize(rows: Iterable[Mapping[str, Any]]) -> Summary:
    """Figures of all rows; of an image that occurs twice the first row counts."""
    summary, seen = Summary(), IndexSet()
    for row in rows:
        if "image" in row:
            if row["image"] in seen:
                continue
            seen.add(row["image"])
        summary.add(row)
    return summary


def fill_measured(report: Json, summary: Summary) -> None:
    """Write the figures of an evaluation into a report."""
    n, labelled = summary.images, summary.labelled
    report["dataset"]["images"] = n
    report["logits"] = {
        "bit_exact": summary.bit_exact,
        "max_abs_error": summary.max_abs_error,
        "top1_agreement": summary.same_top1 / n if n else None,
        "first_divergence": summary.first_divergence,
    }
    for key in report["accuracy"]:
        report["accuracy"][key] = getattr(summary, key) / labelled if labelled else None
    report["link"] = {**summary.link, "seconds": round(summary.seconds, 6)}
    measured = summary.measured_latency
    latency = report["latency"]
    latency["measured"] = {key: _number(value) for key, value in measured.items()} if measured else None
    if measured and latency["predicted"]:
        latency["relative_error"] = round(latency["predicted"] / measured["mean"] - 1, 6)
    if summary.faults is not None:
        report["faults"] = summary.faults.to_json()
    if summary.boards:
        report["rack"] = {"boards": list(summary.boards.values()), "agree": summary.boards_agree}
    means = summary.layer_means
    if means is not None:
        _fill_layers(latency, means, measured["mean"] if measured else None)
    for key, value in (summary.memory or {}).items():
        if key in ("arena", "stack"):
            report["memory"][key].update(value)
        elif value is not None:
            report["memory"][key] = value


def fill_latency_prediction(report: Json, prediction: LatencyPrediction | None, names: Sequence[str]) -> None:
    """Write the cost model's figures into a report; `names` are the operators' names."""
    latency = report["latency"]
    latency["layers"] = layer_rows(names)
    if prediction is None:
        return
    latency["unit"], latency["predicted"] = prediction.unit, _number(prediction.total)
    values = [value for _, value in prediction.layers]
    fill_layers(latency["layers"], "predicted", values)
    latency["layers"].append(_remainder() | {"predicted": _number(prediction.total - sum(values))})


def layer_rows(names: Sequence[str]) -> list[Json]:
    """One row a layer, in the order of their first operators; `operators` are the layer's pieces, those of its name."""
    rows: dict[str, Json] = {}
    for index, name in enumerate(names):
        row = rows.setdefault(name, {"name": name, "measured": None, "predicted": None, "operators": []})
        row["operators"].append(index)
    return list(rows.values())


def fill_layers(rows: Sequence[Json], key: str, values: Sequence[float]) -> None:
    """Write what each operator took into the rows of their layers: the sum over a layer's operators.

    Args:
        rows: of `layer_rows`.
        key: 'measured' or 'predicted'.
        values: one an operator; of the first ones, where a run stopped early.
    """
    for row in rows:
        if row["operators"] and row["operators"][-1] < len(values):
            row[key] = _number(sum(values[index] for index in row["operators"]))


def _remainder() -> Json:
    return {"name": REMAINDER, "measured": None, "predicted": None, "operators": []}


def render(report: Mapping[str, Any], *, layers: bool = False) -> list[RenderableType]:
    """Tables of a report: the figures, and with `layers` one row a layer."""
    from rich.box import SIMPLE
    from rich.table import Table

    board, dataset, logits = report["board"], report["dataset"], report["logits"]
    title = f"{report['model']['name']} on {board['name']} ({board['kind']})"
    table = Table(title=title, box=SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    n = dataset["images"]
    if n:
        source = " ".join(str(part) for part in (dataset["name"], dataset["split"]) if part)
        table.add_row("images", f"{n} of {source}")
        exact = logits["bit_exact"] == n
        table.add_row(
            "bit-exact logits",
            f"[{'green' if exact else 'red'}]{logits['bit_exact']} of {n}[/]"
            + ("" if exact else f", largest difference {logits['max_abs_error']}"),
        )
        table.add_row("same top-1 as predicted", f"{logits['top1_agreement']:.2%}")
    if logits["first_divergence"]:
        table.add_row("first divergence", describe_divergence(logits["first_divergence"]))
    accuracy = report["accuracy"]
    if accuracy["top1"] is not None:
        table.add_row("top-1, top-5", f"{accuracy['top1']:.2%}, {accuracy['top5']:.2%}")
        table.add_row("top-1 predicted", f"{accuracy['predicted_top1']:.2%}")
    _latency_rows(table, report["latency"])
    _memory_rows(table, report["memory"])
    link = report["link"]
    if link["frames"] is not None:
        table.add_row(
            "link",
            f"{link['bytes_sent']:,} bytes sent, {link['bytes_received']:,} received, {link['frames']:,} frames, "
            f"{link['retries']} retries, {link['crc_errors']} CRC errors, {link['seconds']:.1f} s",
        )
    if faults := report.get("faults"):
        table.add_row("faults on purpose", _faults_text(faults))
    out: list[RenderableType] = [table]
    if rack := report.get("rack"):
        out.append(_rack_table(rack))
    if layers and report["latency"]["layers"]:
        out.append(_layer_table(report["latency"]))
    return out


def describe_divergence(divergence: Mapping[str, Any]) -> str:
    """One line: where the board first differs, what was expected and what came."""
    where = f"operator {divergence['operator']} ({divergence['name']}, {divergence['kind']})"
    if divergence.get("token") is None:
        return f"{where}: {divergence.get('reason', 'no element differs')}"
    return (
        f"{where}, token {divergence['token']}, channel {divergence['channel']}: "
        f"expected {divergence['expected']} ({divergence['expected_hex']}), "
        f"got {divergence['got']} ({divergence['got_hex']})"
    )


def _number(value: float) -> int | float:
    # Counts stay counts; a mean or a time keeps nine significant digits.
    return int(value) if float(value).is_integer() else float(f"{value:.9g}")


def _fill_layers(latency: Json, means: Sequence[float], total: float | None) -> None:
    if latency["layers"] is None:
        return
    fill_layers(latency["layers"], "measured", means)
    if total is None:
        return
    if latency["layers"][-1]["name"] != REMAINDER:
        latency["layers"].append(_remainder())
    latency["layers"][-1]["measured"] = _number(total - sum(means))


def _latency_rows(table: Any, latency: Mapping[str, Any]) -> None:
    unit, measured = latency["unit"] or "", latency["measured"]
    if measured:
        text = f"mean {human(measured['mean'])}, p50 {human(measured['p50'])}, p95 {human(measured['p95'])}"
        table.add_row("latency measured", f"{text}, max {human(measured['max'])} {unit}")
    if latency["predicted"] is not None:
        error = latency["relative_error"]
        table.add_row(
            "latency predicted",
            f"{human(latency['predicted'])} {unit}" + (f" ({error:+.2%})" if error is not None else ""),
        )


def _memory_rows(table: Any, memory: Mapping[str, Any]) -> None:
    arena, stack = memory["arena"], memory["stack"]
    if arena["predicted"] is not None or arena["measured"] is not None:
        parts = [f"{arena[key]:,} {key}" for key in ("measured", "predicted") if arena[key] is not None]
        table.add_row("arena bytes", ", ".join(parts))
    if arena.get("in_psram"):
        table.add_row("", PSRAM_NOTE)
    if stack["measured"] is not None or stack["limit"] is not None:
        parts = [f"{stack[key]:,} {text}" for key, text in (("measured", "used"), ("limit", "limit")) if stack[key]]
        table.add_row("stack bytes", ", ".join(parts))
    if second := memory.get("second_stack"):
        table.add_row("second core's stack", f"{second['measured']:,} used, {second['limit']:,} limit")
    for key, text in (("static", "static bytes"), ("heap", "heap bytes"), ("model_bytes", "model bytes")):
        if memory[key] is not None:
            table.add_row(text, f"{memory[key]:,}")


def _faults_text(faults: Mapping[str, Any]) -> str:
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in faults["kinds"].items())
    text = f"{faults['injected']:,} in {faults['images_struck']:,} images ({kinds})"
    if faults["median_recovery_seconds"] is None:
        return text
    recovery, image = 1e3 * faults["median_recovery_seconds"], 1e3 * faults["image_seconds"]
    return f"{text}; median recovery {recovery:.3g} ms, an image without a fault takes {image:.3g} ms"


def _rack_table(rack: Mapping[str, Any]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    agree = {None: "were not compared", True: "agree", False: "do not agree"}[rack["agree"]]
    table = Table(title=f"Rack: its boards {agree}", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("board")
    table.add_column("images", justify="right")
    table.add_column("quarantined")
    for board in rack["boards"]:
        table.add_row(board["name"], f"{board['images']:,}", board["quarantined"] or "")
    return table


def _layer_table(latency: Mapping[str, Any]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=f"Operators ({latency['unit'] or 'no unit'})", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("operator")
    for name in ("measured", "predicted", "error", "share"):
        table.add_column(name, justify="right")
    column = "measured" if any(row["measured"] for row in latency["layers"]) else "predicted"
    total = sum(row[column] or 0 for row in latency["layers"])
    for row in latency["layers"]:
        measured, predicted = row["measured"], row["predicted"]
        table.add_row(
            row["name"],
            human(measured),
            human(predicted),
            f"{predicted / measured - 1:+.2%}" if measured and predicted else "",
            f"{row[column] / total:.1%}" if total and row[column] else "",
        )
    return table


def human(value: float | None) -> str:
    """A figure for people: whole from 100 on, four digits below; empty for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
