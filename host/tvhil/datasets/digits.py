# SPDX-License-Identifier: Apache-2.0
"""The handwritten digits that scikit-learn ships, embedded in the package with a fixed split.

1,797 grayscale images of 8x8 pixels, the test set of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998. The original counts of 0 to 16 are stretched to 0 to 255. 36 images
of each digit are held out as the test split; both splits contain the same writers.
"""

from __future__ import annotations

from functools import cache, partial
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tvhil.datasets.dataset import Dataset, Sample, reindex
from tvhil.errors import UsageError

SPLIT_SEED = 0
TEST_IMAGES_PER_DIGIT = 36

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]


def open_digits(name: str, split: str | None) -> Dataset:
    """The 'test' (360 images, default) or 'train' split (1,437 images)."""
    split = split or "test"
    if split not in ("train", "test"):
        raise UsageError(f"digits has the splits train and test, not {split!r}")
    images, labels, is_test = embedded_digits()
    wanted = is_test if split == "test" else ~is_test
    samples = [
        Sample(0, f"digits/{i:04d}", int(labels[i]), partial(Image.fromarray, images[i]))
        for i in np.flatnonzero(wanted)
    ]
    return Dataset(name, "digits (scikit-learn)", split, tuple("0123456789"), reindex(samples))


@cache
def embedded_digits() -> Arrays:
    """Images uint8 [1797, 8, 8], labels uint8 [1797], and whether each image is in the test split."""
    with (files("tvhil") / "embedded" / "digits.npz").open("rb") as stream:
        arrays = np.load(stream, allow_pickle=False)
        return arrays["images"], arrays["labels"], arrays["is_test"]


def make_embedded_digits() -> Arrays:
    """What `embedded_digits` returns, made from scikit-learn's copy."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = bunch.target.astype(np.uint8)
    is_test = np.zeros(len(labels), dtype=np.bool_)
    random = np.random.RandomState(SPLIT_SEED)  # its stream is frozen across numpy versions
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        is_test[random.permutation(members)[:TEST_IMAGES_PER_DIGIT]] = True
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return images, labels, is_test


def write_embedded_digits() -> None:
    """Write `embedded/digits.npz` anew.

    python -c 'from tvhil.datasets.digits import write_embedded_digits; write_embedded_digits()'
    """
    images, labels, is_test = make_embedded_digits()
    target = Path(__file__).parents[1] / "embedded" / "digits.npz"
    np.savez_compressed(target, images=images, labels=labels, is_test=is_test)
