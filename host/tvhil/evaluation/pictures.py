# SPDX-License-Identifier: Apache-2.0
"""The pictures of an evaluation: charts as SVG text, attention maps as one sheet. Parts of the HTML page, or files."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from tvhil.evaluation import svg
from tvhil.evaluation.training_log import TrainingLog
from tvhil.files import write_whole

Json = Mapping[str, Any]
SIDE = 112  # pixels of an example and of its maps
_GAP, _LINE = 10, 16  # of the sheet, in pixels: between pictures; of a line of text

_ACCURACIES = ("train_accuracy", "val_accuracy", "train_top1", "test_top1", "ema_top1")  # of the log, where it has them
_CURVES = (("loss", ("loss",)), ("accuracy", _ACCURACIES), ("learning rate", ("learning_rate",)))


@dataclass(frozen=True)
class AttentionExample:
    """One image, its attention maps by implementation, and what each answered."""

    key: str
    label: str | None
    picture: Image.Image
    maps: dict[str, Image.Image]
    answers: dict[str, str]


@dataclass(frozen=True)
class Pictures:
    """What is shown beside the figures of the report."""

    examples: Sequence[AttentionExample] = field(default_factory=tuple)
    logs: Sequence[TrainingLog] = field(default_factory=tuple)


def primary(report: Json) -> Json:
    """The row that is shown in detail: that of the model which was asked for."""
    row: Json = report["implementations"][report["primary"]]
    return row


def confusion_chart(report: Json) -> str:
    """Labels against answers; empty where images have no label or classes are many."""
    row = primary(report)
    if row["confusion"] is None:
        return ""
    names, n = report["class_names"], len(row["confusion"])
    title = f"{row['name']}: rows are labels, columns answers"
    return svg.heat_map(title, row["confusion"], names, cell=34 if n <= 20 else 10)


def calibration_chart(report: Json) -> str:
    """Accuracy over confidence, a line a model (Guo et al., 2017); empty where images have no label."""
    series = {}
    for row in report["implementations"]:
        bins = row["calibration"]
        if bins is not None:
            pairs = zip(bins["confidence"], bins["accuracy"], strict=True)
            series[row["name"]] = [(c, a) for c, a in pairs if c is not None]
    return svg.line_chart(
        "", series, x_label="confidence", x_range=(0.0, 1.0), y_range=(0.0, 1.0), size=(560, 300), diagonal=True,
        marks=True,
    )  # fmt: skip


def sensitivity_chart(report: Json) -> str:
    """A bar a layer; empty where it was not measured."""
    found = report["sensitivity"]
    bars = [(row["layer"], row["kl"], f"{row['kl']:.3g}") for row in found["layers"]] if found else []
    return svg.bar_chart("KL divergence from full precision, nats", bars)


def training_charts(log: TrainingLog) -> dict[str, str]:
    """Curves by what they show, those that the log has."""
    charts = {
        title: svg.line_chart(title, {c: points for c in columns if (points := log.points(c))}, x_label=log.unit)
        for title, columns in _CURVES
    }
    return {title: chart for title, chart in charts.items() if chart}


def attention_sheet(examples: Sequence[AttentionExample]) -> Image.Image | None:
    """A column an image: itself over its label, then the map of each model over its answer. None without examples."""
    if not examples:
        return None
    names = ["image", *examples[0].maps]
    font = ImageFont.load_default(12)
    left = _GAP + round(max(font.getlength(name) for name in names)) + _GAP
    column, row = SIDE + _GAP, SIDE + _LINE + _GAP
    sheet = Image.new("RGB", (left + column * len(examples), _GAP + row * len(names)), "white")
    draw = ImageDraw.Draw(sheet)
    for j, name in enumerate(names):
        draw.text((left - _GAP, _GAP + j * row + SIDE / 2), name, "#222222", font, anchor="rm")
    for i, example in enumerate(examples):
        cells = [(example.picture, example.label or example.key)]
        cells += [(example.maps[name], example.answers.get(name, "")) for name in names[1:]]
        for j, (picture, text) in enumerate(cells):
            x, y = left + i * column, _GAP + j * row
            sheet.paste(picture, (x, y))
            while font.getlength(text) > SIDE:
                text = text[:-1]
            draw.text((x + SIDE / 2, y + SIDE + 1), text, "#222222", font, anchor="ma")
    return sheet


def write_pictures(folder: Path, report: Json, pictures: Pictures) -> list[Path]:
    """Each picture as a file: attention.png, confusion.svg, calibration.svg, sensitivity.svg, training-….svg.

    Returns:
        The files that were written; a picture that would be empty is none.

    Raises:
        OSError: a file cannot be written.
    """
    files: dict[str, bytes] = {}
    sheet = attention_sheet(pictures.examples)
    if sheet is not None:
        stream = io.BytesIO()
        sheet.quantize(256, Image.Quantize.MAXCOVERAGE).save(stream, "PNG", optimize=True)
        files["attention.png"] = stream.getvalue()
    charts = {
        "confusion": confusion_chart(report),
        "calibration": calibration_chart(report),
        "sensitivity": sensitivity_chart(report),
    }
    names = [log.file.stem if log.file.stem != "log" else log.file.parent.name for log in pictures.logs]
    for i, log in enumerate(pictures.logs):
        name = names[i] if names.count(names[i]) == 1 else f"{i + 1} {log.file.parent.name} {names[i]}"
        for title, chart in training_charts(log).items():
            charts[re.sub(r"\W+", "-", f"training {name} {title}")] = chart
    files |= {f"{name}.svg": chart.encode() for name, chart in charts.items() if chart}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
    return [folder / name for name in files]
