# SPDX-License-Identifier: Apache-2.0
"""Figures of a classifier from labels and answers: accuracy, precision, recall, F1, confusion, calibration, agreement.

The definitions are scikit-learn's: a class that was never predicted has precision 0, one without images recall 0, and
macro averages are taken over the classes that occur among the labels or the answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]
CALIBRATION_BINS = 15


def confusion_matrix(labels: Ints, answers: Ints, classes: int) -> npt.NDArray[np.int64]:
    """`[classes][classes]` counts: row the label, column the answer."""
    counts = np.bincount(labels.astype(np.int64) * classes + answers, minlength=classes * classes)
    return counts.reshape(classes, classes)


@dataclass(frozen=True)
class ClassFigures:
    """Figures of every class, each `[classes]`.

    Attributes:
        precision: share of the answers with this class that are right.
        recall: share of the class's images that are answered so.
        f1: harmonic mean of the two.
        support: images of the class.
        occurs: whether the class is among the labels or the answers.
    """

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    f1: npt.NDArray[np.float64]
    support: npt.NDArray[np.int64]
    occurs: npt.NDArray[np.bool_]

    def macro(self) -> dict[str, float]:
        """Unweighted means over the classes that occur."""
        chosen = self.occurs
        return {
            name: float(getattr(self, name)[chosen].mean()) if chosen.any() else 0.0
            for name in ("precision", "recall", "f1")
        }


def class_figures(confusion: npt.NDArray[np.int64]) -> ClassFigures:
    """Precision, recall and F1 of every class of a confusion matrix."""
    right = np.diagonal(confusion).astype(np.float64)
    answered, support = confusion.sum(0), confusion.sum(1)
    return ClassFigures(
        precision=right / np.maximum(answered, 1),
        recall=right / np.maximum(support, 1),
        f1=2 * right / np.maximum(answered + support, 1),
        support=support,
        occurs=(answered + support) > 0,
    )


def softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Probabilities `[B][classes]` of real logits."""
    z = logits.astype(np.float64)
    e = np.exp(z - z.max(-1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = e / e.sum(-1, keepdims=True)
    return probabilities


@dataclass(frozen=True)
class Calibration:
    """How far confidence and accuracy are apart, in bins of equal width over 0 … 1.

    Attributes:
        error: the expected calibration error, mean of |accuracy - confidence| weighted by the images in each bin
            (Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599).
        confidence: mean confidence of each bin, NaN where it is empty.
        accuracy: share of right answers of each bin, NaN where it is empty.
        images: in each bin.
    """

    error: float
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    images: npt.NDArray[np.int64]


def calibration(confidence: Floats, right: npt.NDArray[np.bool_], bins: int = CALIBRATION_BINS) -> Calibration:
    """Calibration of the probability `[B]` of each answer.

    Args:
        confidence: probability of the answer, 0 … 1.
        right: whether the answer is the label.
        bins: of equal width; the upper edge belongs to a bin.
    """
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, weights=confidence, minlength=bins) / images
        accuracy = np.bincount(place, weights=right.astype(np.float64), minlength=bins) / images
    gaps = np.where(images > 0, np.abs(accuracy - mean), 0.0)
    error = float((gaps * images).sum() / max(1, images.sum()))
    return Calibration(error, mean, accuracy, images)


def agreement(answers: list[Ints]) -> npt.NDArray[np.float64]:
    """`[N][N]` share of images to which two of N give the same answer."""
    n = len(answers)
    shares = np.ones((n, n))
    for i in range(n):
        for j in range(i):
            both = min(len(answers[i]), len(answers[j]))
            shares[i, j] = shares[j, i] = float(np.mean(answers[i][:both] == answers[j][:both])) if both else np.nan
    return shares
