# SPDX-License-Identifier: Apache-2.0
"""A dataset as the inputs of an evaluation, and what identifies it in a journal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvhil.datasets import Dataset, Sample, preprocess
from tvhil.datasets.dataset import reindex
from tvhil.errors import DatasetError, InputError
from tvhil.evaluation.run import Input
from tvhil.packing.reader import TvitModel

if TYPE_CHECKING:
    from tvhil.models import Preprocessing


def dataset_identity(dataset: Dataset) -> dict[str, Any]:
    """Name, split and a fingerprint over every key and label in order, for the journal's header."""
    digest = hashlib.sha256()
    for sample in dataset:
        digest.update(f"{sample.key}\0{sample.label}\n".encode())
    return {"name": dataset.name, "split": dataset.split, "fingerprint": digest.hexdigest()[:32]}


def labels_fit(dataset: Dataset, model: TvitModel) -> bool:
    """Whether the labels are classes of the model; if not, accuracy means nothing."""
    return bool(dataset.class_names) and len(dataset.class_names) == model.info.classes


def make_inputs(dataset: Dataset, model: TvitModel, preprocessing: Preprocessing | None) -> list[Input]:
    """One input a sample, decoded and preprocessed only when it is loaded; labels only where they fit the model.

    Args:
        dataset: the images.
        model: that takes them.
        preprocessing: of the model; None where its file has none, then the images must have its input's shape.
    """
    labelled = labels_fit(dataset, model)
    shape = model.info.input_shape
    return [
        Input(i, sample.key, sample.label if labelled else None, image_loader(sample, preprocessing, shape))
        for i, sample in enumerate(dataset)
    ]


def without_unreadable(dataset: Dataset, skipped: Callable[[Sample, DatasetError], None]) -> Dataset:
    """The dataset without images that cannot be decoded; every image is decoded once to find them.

    Args:
        dataset: the images.
        skipped: told of each that is left out, and why.

    Raises:
        DatasetError: none is left.
    """
    kept = []
    for sample in dataset:
        try:
            sample.load()
        except DatasetError as error:
            skipped(sample, error)
        else:
            kept.append(sample)
    if not kept and len(dataset):
        raise DatasetError(f"none of the {len(dataset)} images of {dataset.name} can be read")
    return replace(dataset, samples=reindex(kept))


def image_loader(
    sample: Sample, preprocessing: Preprocessing | None, shape: tuple[int, int, int]
) -> Callable[[], npt.NDArray[np.uint8]]:
    """What decodes an image and makes it the uint8 `[H][W][C]` that a model takes.

    Args:
        sample: the image.
        preprocessing: of the model; None where it has none, then the image must have its input's shape.
        shape: of the model's input.
    """

    def load() -> npt.NDArray[np.uint8]:
        try:
            image = sample.load()
            if preprocessing is not None:
                return preprocess(image, preprocessing)
        except InputError as error:
            raise DatasetError(f"image {sample.key}: {error}") from None
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.size != np.prod(shape) or array.shape[:2] != shape[:2]:
            raise DatasetError(
                f"image {sample.key} is {array.shape} and the model takes {shape}; "
                "the model file has no preprocessing that would convert it"
            )
        return array.reshape(shape)

    return load
