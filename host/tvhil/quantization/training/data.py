# SPDX-License-Identifier: Apache-2.0
"""Training and test images of a dataset, decoded once and held in memory as uint8."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tvhil.datasets import Dataset, open_dataset, preprocess
from tvhil.errors import DatasetError, TvhilError
from tvhil.models.config import Preprocessing

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TEST_WORDS = {"test", "val", "valid", "validation"}


@dataclass(frozen=True)
class LabelledImages:
    """One split: images uint8 `[B][H][W][C]` and labels int64 `[B]`."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TrainingData:
    """What a recipe trains on and is measured on.

    Attributes:
        title: for reports.
        class_names: by label.
        train, test: the splits.
        skipped: images that could not be read and were left out, with the reason.
    """

    title: str
    class_names: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    skipped: tuple[str, ...] = ()


def load_training_data(
    name: str,
    data: Path | None,
    preprocessing: Preprocessing,
    *,
    test_data: Path | None = None,
    skip_corrupt: bool = False,
    progress: Callable[[int, int, str], None] = lambda _done, _total, _what: None,
) -> TrainingData:
    """Decode both splits of a dataset.

    Args:
        name: of `tvhil.datasets`.
        data: where it lies: one file or folder with both splits, the training split alone, or a folder with an archive
            for each split ('cifar10-jpeg-train.zip', 'cifar10-jpeg-test.zip').
        preprocessing: how images become the model's input.
        test_data: where the test split lies, if elsewhere.
        skip_corrupt: leave images out that cannot be decoded.
        progress: called with images done, images in all, and the split.

    Raises:
        DatasetError: missing data, a class without images, an image that cannot be decoded, classes that differ.
    """
    skipped: list[str] = []
    datasets = open_splits(name, data, test_data)
    if datasets[0].class_names != datasets[1].class_names:
        ours, theirs = set(datasets[0].class_names), set(datasets[1].class_names)
        odd = sorted(ours ^ theirs)
        raise DatasetError(f"{name}: class {odd[0]!r} is in one of the splits train and test only")
    train, test = (_decode(dataset, preprocessing, skip_corrupt, skipped, progress) for dataset in datasets)
    return TrainingData(datasets[0].title, datasets[0].class_names, train, test, tuple(skipped))


def open_splits(name: str, data: Path | None, test_data: Path | None = None) -> tuple[Dataset, Dataset]:
    """Training and test images of a dataset, not decoded yet; arguments and errors as of `load_training_data`."""
    train_place, test_place = split_places(data, test_data)
    return open_dataset(name, train_place, split="train"), _open_test(name, test_place)


def _open_test(name: str, place: Path | None) -> Dataset:
    """The split that accuracy is measured on: 'test', or 'val' where there is none."""
    try:
        return open_dataset(name, place, split="test")
    except DatasetError as error:
        with contextlib.suppress(TvhilError):
            return open_dataset(name, place, split="val")
        raise error from None


def split_places(data: Path | None, test_data: Path | None = None) -> tuple[Path | None, Path | None]:
    """Where the splits lie: an archive each, if `data` is a folder that holds such.

    Raises:
        DatasetError: it holds several, or only one of the two.
    """
    if data is None:
        return None, test_data
    data = data.expanduser()
    if not data.is_dir():
        return data, test_data or data
    archives = [f for f in sorted(data.iterdir()) if f.name.lower().endswith(_ARCHIVES)]
    words = {f: set(re.split(r"[^a-z]+", f.name.lower())) for f in archives}
    train = [f for f in archives if words[f] & {"train", "training"}]
    test = [f for f in archives if words[f] & _TEST_WORDS]
    if len(train) > 1 or (train and len(test) > 1):
        many = train if len(train) > 1 else test
        raise DatasetError(f"{data} holds {many[0].name} and {many[1].name}: name one with --data or --test-data")
    if not train:
        return data, test_data or data
    if not test and test_data is None:
        raise DatasetError(f"{data} holds {train[0].name} but no archive of test images: name it with --test-data")
    return train[0], test_data or test[0]


def _decode(
    dataset: Dataset,
    preprocessing: Preprocessing,
    skip_corrupt: bool,
    skipped: list[str],
    progress: Callable[[int, int, str], None],
) -> LabelledImages:
    images = np.empty((len(dataset), preprocessing.image_size, preprocessing.image_size, preprocessing.channels), "u1")
    labels, count = np.empty(len(dataset), np.int64), 0
    for sample in dataset:
        if sample.label is None:
            raise DatasetError(f"{dataset.title}: {sample.key} has no label: training needs images in class folders")
        try:
            images[count] = preprocess(sample.load(), preprocessing)
        except DatasetError as error:
            if not skip_corrupt:
                raise DatasetError(f"{error} (--skip-corrupt leaves such images out)") from None
            skipped.append(str(error))
            continue
        labels[count] = sample.label
        count += 1
        if count % 1000 == 0 or count == len(dataset):
            progress(count, len(dataset), dataset.split)
    images, labels = images[:count], labels[:count]
    present = np.bincount(labels, minlength=len(dataset.class_names))
    if not present.all():
        missing = dataset.class_names[int(np.argmin(present > 0))]
        raise DatasetError(f"{dataset.title}: class {missing!r} has no {dataset.split} images")
    return LabelledImages(images, labels)
