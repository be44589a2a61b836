# SPDX-License-Identifier: Apache-2.0
"""The report of `evaluate`: the stable keys of a report, and a row of figures for every implementation.

Beside the keys of `report.empty_report`, of which `accuracy.top1` is that of the board, or else of the integers, or
else of the model itself, there are:

    implementations  rows {name, kind, file, parameters, bytes, bytes_estimated, mirrored (whether logits are the
                     mean of those of an image and its mirror image), accuracy {top1, top5}, precision, recall, f1
                     (macro), calibration_error, per_class, confusion (up to 100 classes), most_confused, calibration}
    primary          index of the row that the report is about
    agreement        {names, top1: share of the images that two of them answer alike}
    class_names      by label
    progress         {done, total, stopped: why it ended early, or null}
    sensitivity      {model, rule, images, accuracy, layers: rows {layer, parameters, accuracy, agreement, kl}} or null
    training         rows {file, unit, rows, last}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvhil.evaluation.implementations import DeviceImplementation, IntegerImplementation
from tvhil.evaluation.measure import Measurement, agreements, figures
from tvhil.evaluation.prepare import model_facts, predicted_report
from tvhil.evaluation.report import empty_report, fill_measured

if TYPE_CHECKING:
    from tvhil.boards import Board
    from tvhil.datasets import Dataset

Json = dict[str, Any]


def classification_report(
    measurement: Measurement,
    own: Sequence[int],
    dataset: Dataset,
    *,
    seed: int,
    skipped: Sequence[str] = (),
    stopped: str | None = None,
    board: Board | None = None,
) -> Json:
    """The report of a measurement.

    Args:
        measurement: what was measured.
        own: indices of the implementations of the model in question; the last one is what the report is about.
        dataset: the images.
        seed: that drew them.
        skipped: keys of images that were left out.
        stopped: why the measurement is not complete, where it is not.
        board: that ran the model.
    """
    implementations = measurement.implementations
    mine = [implementations[i] for i in own]
    integer = next((one for one in mine if isinstance(one, IntegerImplementation)), None)
    device = next((one for one in mine if isinstance(one, DeviceImplementation)), None)
    report = empty_report()
    if integer is not None and board is not None:
        report = predicted_report(integer.tvit, Path(integer.source), board)
    if integer is not None:
        report["model"] = model_facts(integer.tvit, integer.source)
    else:
        first = mine[0]
        report["model"] |= {
            "name": Path(first.source).stem,
            "file": first.source,
            "bytes": first.bytes,
            "parameters": first.parameters,
            "input": list(first.input_shape),
            "classes": first.classes,
        }
    if device is not None:
        _fill_device(report, device)
    rows = [figures(measurement, i) for i in range(len(implementations))]
    predicted = None if integer is None else rows[implementations.index(integer)]["accuracy"]["top1"]
    report["accuracy"] = {**rows[own[-1]]["accuracy"], "predicted_top1": predicted}
    report["dataset"] = {
        "name": dataset.title, "split": dataset.split, "images": measurement.images, "seed": seed,
        "skipped": list(skipped),
    }  # fmt: skip
    return report | {
        "progress": {"done": measurement.images, "total": measurement.total, "stopped": stopped},
        "class_names": list(measurement.class_names),
        "primary": own[-1],
        "implementations": rows,
        "agreement": agreements(measurement),
        "sensitivity": None,
        "training": [],
    }


def _fill_device(report: Json, device: DeviceImplementation) -> None:
    journal = device.evaluation.journal
    board_row = next((row["board"] for row in journal.rows() if "board" in row), None)
    if board_row is not None:
        report["board"]["details"] = board_row["details"]
        report["latency"]["unit"] = report["latency"]["unit"] or board_row["unit"]
    fill_measured(report, device.evaluation.summary)
    report["images"] = str(journal.path)
