# SPDX-License-Identifier: Apache-2.0
"""The report of `evaluate` as one HTML page: pictures are in it, nothing is loaded, nothing runs."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from tvhil.evaluation.pictures import (
    AttentionExample,
    Pictures,
    calibration_chart,
    confusion_chart,
    primary,
    sensitivity_chart,
    training_charts,
)
from tvhil.evaluation.training_log import TrainingLog

Json = Mapping[str, Any]


def render_html(report: Json, pictures: Pictures, command: str) -> str:
    """The page.

    Args:
        report: of `evaluate`, as it is written as JSON.
        pictures: that are no figures.
        command: that made the report.
    """
    sections = [
        _summary(report, command),
        _figures(report),
        _agreement(report),
        _confusion(report),
        _classes(report),
        _calibration(report),
        _attention(pictures.examples),
        _curves(pictures.logs),
        _sensitivity(report),
    ]
    title = f"{report['model']['name']} on {report['dataset']['name']}"
    return _PAGE.format(title=html.escape(title), body="\n".join(s for s in sections if s))


def _summary(report: Json, command: str) -> str:
    model, dataset, board = report["model"], report["dataset"], report["board"]
    progress = report["progress"]
    rows = [
        ("model", f"{model['name']} ({model['file']})"),
        ("images", f"{progress['done']:,} of {dataset['name']}, split {dataset['split']}, seed {dataset['seed']}"),
        ("board", None if board["name"] is None else f"{board['name']} ({board['kind']})"),
        ("bit-exact on the board", _of(report["logits"]["bit_exact"], dataset["images"])),
        ("left out", ", ".join(dataset["skipped"]) or None),
        ("made", f"{report['created']} by tvhil {report['tool_version']}"),
        ("command", command),
    ]
    partial = ""
    if progress["done"] < progress["total"]:
        partial = (
            f'<p class="warn">Stopped after {progress["done"]:,} of {progress["total"]:,} images '
            f"({html.escape(progress['stopped'])}): all figures are of these.</p>"
        )
    return partial + _table([], [(name, value) for name, value in rows if value], header=False)


def _of(count: int | None, total: int | None) -> str | None:
    return None if count is None else f"{count:,} of {total:,}"


def _figures(report: Json) -> str:
    rows = []
    for row in report["implementations"]:
        accuracy = row["accuracy"]
        rows.append(
            (
                name_text(row), _percent(accuracy["top1"]), _percent(accuracy["top5"]), _percent(row["precision"]),
                _percent(row["recall"]), _percent(row["f1"]), _percent(row["calibration_error"]),
                f"{row['parameters']:,}", size_text(row),
            )
        )  # fmt: skip
    columns = (
        "", "accuracy", "top 5", "precision (macro)", "recall (macro)", "F1 (macro)", "calibration error",
        "parameters", "bytes",
    )  # fmt: skip
    return "<h2>Figures</h2>" + _table(columns, rows)


def name_text(row: Json) -> str:
    """The name of a row of figures, and how they were computed where that is not once an image."""
    return f"{row['name']}, image and mirror averaged" if row["mirrored"] else str(row["name"])


def size_text(row: Json) -> str:
    """The size of a row of figures, with a sign where it is an estimate."""
    return "" if row["bytes"] is None else f"{'about ' if row['bytes_estimated'] else ''}{row['bytes']:,}"


def _agreement(report: Json) -> str:
    agreement = report["agreement"]
    if len(agreement["names"]) < 2:
        return ""
    rows = [
        (name, *(_percent(v) for v in values))
        for name, values in zip(agreement["names"], agreement["top1"], strict=True)
    ]
    note = "<p>Share of the images to which two of them give the same answer.</p>"
    return "<h2>Agreement</h2>" + note + _table(("", *agreement["names"]), rows)


def _confusion(report: Json) -> str:
    row = primary(report)
    if row["most_confused"] is None:
        return ""
    worst = [(c["label"], c["answer"], f"{c['images']:,}") for c in row["most_confused"][:10]]
    table = _table(("label", "answer", "images"), worst) if worst else "<p>No image was confused.</p>"
    return f"<h2>Confusion</h2><div class='row'>{confusion_chart(report)}<div>{table}</div></div>"


def _classes(report: Json) -> str:
    row = primary(report)
    if not row["per_class"]:
        return ""
    rows = [
        (c["class"], f"{c['images']:,}", _percent(c["precision"]), _percent(c["recall"]), _percent(c["f1"]))
        for c in row["per_class"]
    ]
    return f"<h2>Classes, {html.escape(row['name'])}</h2>" + _table(
        ("class", "images", "precision", "recall", "F1"), rows
    )


def _calibration(report: Json) -> str:
    chart = calibration_chart(report)
    if not chart:
        return ""
    note = (
        "<p>Accuracy of the answers over their confidence, in bins of equal width; on the dashed line the model is as "
        "sure as it is right. The expected calibration error is the mean distance from it (Guo et al., 2017).</p>"
    )
    return "<h2>Calibration</h2>" + note + chart


def _attention(examples: Sequence[AttentionExample]) -> str:
    if not examples:
        return ""
    names = list(examples[0].maps)
    rows = []
    for example in examples:
        cells = [f"<td>{_image(example.picture, example.key)}<br>{html.escape(example.label or example.key)}</td>"]
        for name in names:
            answer = html.escape(example.answers.get(name, ""))
            cells.append(f"<td>{_image(example.maps[name], f'{name}: {example.key}')}<br>{answer}</td>")
        rows.append("<tr>" + "".join(cells) + "</tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("image", *names))
    note = (
        "<p>Attention rollout (Abnar and Zuidema, 2020): the share of each patch in what the class token, or the mean "
        "of the patches, has gathered after the last block; heads averaged, residual connections counted half. "
        "Yellow is most. Under each map the answer.</p>"
    )
    return f'<h2>Attention</h2>{note}<table class="maps"><tr>{head}</tr>{"".join(rows)}</table>'


def _curves(logs: Sequence[TrainingLog]) -> str:
    out = []
    for log in logs:
        charts = training_charts(log)
        if charts:
            out.append(f"<h3>{html.escape(log.file.name)}</h3><div class='row'>{''.join(charts.values())}</div>")
    return "<h2>Training</h2>" + "".join(out) if out else ""


def _sensitivity(report: Json) -> str:
    found = report["sensitivity"]
    if not found or not found["layers"]:
        return ""
    columns = ("layer", "parameters", "accuracy", "change", "same answer", "KL divergence")
    rows = []
    for row in found["layers"]:
        accuracy, base = row["accuracy"], found["accuracy"]
        change = "" if accuracy is None or base is None else f"{100 * (accuracy - base):+.2f}"
        cells = (_percent(accuracy), change, _percent(row["agreement"]), f"{row['kl']:.4g}")
        rows.append((row["layer"], f"{row['parameters']:,}", *cells))
    note = (
        f"<p>{html.escape(found['model'])}, one layer at a time ternary by the rule {html.escape(found['rule'])}, "
        f"activations real, {found['images']:,} images.</p>"
    )
    return "<h2>Sensitivity of the layers</h2>" + note + sensitivity_chart(report) + _table(columns, rows)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, header: bool = True) -> str:
    head = "<tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in columns) + "</tr>" if header else ""
    kind = "" if header else ' class="facts"'
    body = "".join(
        "<tr>" + f"<th>{html.escape(row[0])}</th>" + "".join(f"<td>{html.escape(c)}</td>" for c in row[1:]) + "</tr>"
        for row in rows
    )
    return f"<table{kind}>{head}{body}</table>"


def _image(picture: Image.Image, alt: str) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    width, height = picture.size
    return (
        f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt, quote=True)}" '
        f'width="{width}" height="{height}">'
    )


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 14px/1.45 sans-serif; margin: 24px auto; max-width: 1180px; padding: 0 16px; color: #222;
       background: #fff; }}
h1 {{ font-size: 22px; }} h2 {{ font-size: 17px; margin-top: 32px; border-bottom: 1px solid #ccc; }}
h3 {{ font-size: 14px; margin-bottom: 4px; }}
table {{ border-collapse: collapse; margin: 8px 0; }}
th, td {{ padding: 3px 10px; border-bottom: 1px solid #e4e4e4; text-align: right; vertical-align: top; }}
th:first-child {{ text-align: left; }} td {{ font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }}
table.facts td {{ text-align: left; }}
table.maps th, table.maps td {{ text-align: center; border: 0; }}
.row {{ display: flex; flex-wrap: wrap; gap: 18px; }}
.warn {{ background: #fff3cd; padding: 8px 12px; border-left: 4px solid #e0a800; }}
svg {{ max-width: 100%; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""
