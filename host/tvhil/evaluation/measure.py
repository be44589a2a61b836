# SPDX-License-Identifier: Apache-2.0
"""Run images through several implementations of a model, and sum up what they answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from tvhil.datasets import Dataset, Sample
from tvhil.evaluation.implementations import Answers, Implementation, check_finite
from tvhil.evaluation.inputs import image_loader
from tvhil.evaluation.metrics import agreement, calibration, class_figures, confusion_matrix
from tvhil.evaluation.run import Input

Json = dict[str, Any]
MOST_CLASSES_SHOWN = 100  # whole confusion matrices up to here, the largest confusions beyond
_MOST_CONFUSED = 20


@dataclass
class Measurement:
    """Answers of all implementations to the same images; every list has the same length at any time.

    Attributes:
        implementations: in the order of the report.
        labels: of the images; None where the data has none, or other classes than the model.
        class_names: by label.
        total: images that there are.
        answers: of each implementation.
        done: labels of the images that are done.
    """

    implementations: Sequence[Implementation]
    class_names: tuple[str, ...]
    total: int
    answers: list[Answers] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Images that every implementation has answered."""
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether the labels are classes of the models."""
        return bool(self.labels) and all(label is not None for label in self.labels)


def start(dataset: Dataset, implementations: Sequence[Implementation]) -> Measurement:
    """A measurement in which nothing is measured yet."""
    return Measurement(implementations, tuple(dataset.class_names), len(dataset), [Answers() for _ in implementations])


def measure(measurement: Measurement, dataset: Dataset, batch: int, progress: Callable[[int], None]) -> None:
    """Run every image through every implementation; interrupted, the measurement holds what was done.

    Args:
        measurement: from `start`.
        dataset: the images.
        batch: images at a time.
        progress: told how many images are done.

    Raises:
        DatasetError: an image that cannot be read (named).
        InputError: logits that are not finite.
        BoardError: a board stopped answering.
    """
    models = measurement.implementations
    labelled = len(dataset.class_names) == models[0].classes
    samples = iter(dataset)
    while chunk := list(islice(samples, batch)):
        labels = [sample.label if labelled else None for sample in chunk]
        prepared: dict[Any, np.ndarray[Any, Any]] = {}
        logits = []
        for model in models:
            key = (model.preprocessing, model.input_shape)
            if key not in prepared:
                prepared[key] = np.stack([_load(sample, model) for sample in chunk])
            items = [
                Input(sample.index, sample.key, label, image_loader(sample, model.preprocessing, model.input_shape))
                for sample, label in zip(chunk, labels, strict=True)
            ]
            logits.append(model.logits(prepared[key], items))
            check_finite(model, logits[-1], items)
        for answers, rows in zip(measurement.answers, logits, strict=True):
            answers.add(rows, labels)
        measurement.labels += labels
        progress(measurement.images)


def _load(sample: Sample, model: Implementation) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return image_loader(sample, model.preprocessing, model.input_shape)()


def figures(measurement: Measurement, index: int) -> Json:
    """The row of one implementation in a report; figures that need labels are null where there are none."""
    model, answers = measurement.implementations[index], measurement.answers[index]
    row: Json = {
        "name": model.name,
        "kind": model.kind,
        "file": model.source,
        "parameters": model.parameters,
        "bytes": model.bytes,
        "bytes_estimated": model.estimated,
        "mirrored": model.mirrored,
        "accuracy": {"top1": None, "top5": None},
        **dict.fromkeys(
            ("precision", "recall", "f1", "calibration_error", "per_class", "confusion", "most_confused", "calibration")
        ),
    }
    n = measurement.images
    if not measurement.labelled:
        return row
    labels, top1, rank = (np.array(v[:n]) for v in (measurement.labels, answers.top1, answers.rank))
    confusion = confusion_matrix(labels, top1, model.classes)
    each = class_figures(confusion)
    bins = calibration(np.array(answers.confidence[:n]), labels == top1)
    row["accuracy"] = {"top1": float(np.mean(rank == 0)), "top5": float(np.mean(rank < 5)) if n else None}
    row |= {name: round(value, 9) for name, value in each.macro().items()}
    row["calibration_error"] = round(bins.error, 9)
    row["per_class"] = [
        {
            "class": measurement.class_names[i],
            "images": int(each.support[i]),
            **{name: round(float(getattr(each, name)[i]), 9) for name in ("precision", "recall", "f1")},
        }
        for i in np.flatnonzero(each.occurs)
    ]
    if model.classes <= MOST_CLASSES_SHOWN:
        row["confusion"] = confusion.tolist()
    wrong = confusion - np.diag(np.diagonal(confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSED]
    row["most_confused"] = [
        {"label": measurement.class_names[i], "answer": measurement.class_names[j], "images": int(wrong[i, j])}
        for i, j in (divmod(int(flat), model.classes) for flat in order)
        if wrong[i, j]
    ]
    row["calibration"] = {
        "images": bins.images.tolist(),
        "confidence": [None if np.isnan(v) else round(float(v), 9) for v in bins.confidence],
        "accuracy": [None if np.isnan(v) else round(float(v), 9) for v in bins.accuracy],
    }
    return row


def agreements(measurement: Measurement) -> Json:
    """Share of images to which two implementations give the same answer."""
    shares = agreement([np.array(a.top1[: measurement.images]) for a in measurement.answers])
    return {
        "names": [model.name for model in measurement.implementations],
        "top1": [[None if np.isnan(v) else round(float(v), 9) for v in row] for row in shares],
    }
