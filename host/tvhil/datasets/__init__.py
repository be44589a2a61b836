# SPDX-License-Identifier: Apache-2.0
"""Datasets by name: ordered, seeded, read in place from folders and archives. Needs no torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tvhil.datasets.cifar import open_cifar
from tvhil.datasets.dataset import Dataset, Sample
from tvhil.datasets.digits import open_digits
from tvhil.datasets.folder import open_folder
from tvhil.datasets.imagenet import open_imagenet
from tvhil.datasets.preprocessing import normalize, preprocess
from tvhil.datasets.synthetic import open_synthetic
from tvhil.errors import UsageError

__all__ = ["Dataset", "Sample", "describe_datasets", "normalize", "open_dataset", "preprocess"]


@dataclass(frozen=True)
class _Kind:
    description: str
    open: Callable[[str, Path, str | None], Dataset] | None = None  # datasets that lie in a file or folder


_KINDS = {
    "digits": _Kind("scikit-learn's 8x8 handwritten digits, embedded; 360 test images"),
    "synthetic": _Kind("seeded noise, gradients and stripes of the model's input size, without labels"),
    "cifar10": _Kind("CIFAR-10: the original binary version, or class folders; folder, zip or tar", open_cifar),
    "cifar100": _Kind("CIFAR-100: the original binary version, or class folders; folder, zip or tar", open_cifar),
    "imagenet-val": _Kind("ImageNet-1k's validation set: WNID folders or flat; folder, zip or tar", open_imagenet),
    "imagenet-val-1k": _Kind("one fixed image of each class of imagenet-val", open_imagenet),
    "folder": _Kind("any images, in class folders or flat; folder, zip or tar", open_folder),
}


def describe_datasets() -> dict[str, str]:
    """Every dataset's name and a line about it."""
    return {name: kind.description for name, kind in _KINDS.items()}


def open_dataset(
    name: str,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    shape: tuple[int, int, int] | None = None,
) -> Dataset:
    """Open a dataset. Images are decoded later, one at a time, by `Sample.load`.

    Args:
        name: one of `describe_datasets()`.
        data: where it lies; for the embedded and synthetic ones, None.
        split: 'train', 'test' or 'val'; None for the one that accuracy is usually measured on.
        limit: draw a class-balanced subset of so many images (see `Dataset.draw`); None for all, in sorted order.
        seed: of the draw, or of the synthetic images.
        shape: [H, W, C] of synthetic images; other datasets ignore it.

    Raises:
        UsageError: unknown name, a missing or superfluous argument.
        DatasetError: missing, damaged or hostile data.
    """
    if name not in _KINDS:
        near = difflib.get_close_matches(name, _KINDS, n=3) or list(_KINDS)
        raise UsageError(f"no dataset is called {name!r}; did you mean {' or '.join(near)}?")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, not {limit}")
    opener = _KINDS[name].open
    if opener is None and data is not None:
        raise UsageError(f"{name} takes no --data")
    if name == "synthetic":
        if shape is None:
            raise UsageError("synthetic images need a model whose input size they take")
        return open_synthetic(name, shape, limit, seed)
    if opener is None:
        dataset = open_digits(name, split)
    elif data is None:
        raise UsageError(f"{name} needs --data PATH: {_KINDS[name].description}")
    else:
        dataset = opener(name, Path(data).expanduser(), split)
    return dataset if limit is None else dataset.draw(limit, seed)
