# SPDX-License-Identifier: Apache-2.0
"""What every dataset is: an ordered, finite sequence of images with stable keys, most of them labelled."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from PIL import Image

from tvhil.errors import UsageError


@dataclass(frozen=True)
class Sample:
    """One image, decoded only when `load` is called.

    `index` is its place in the dataset that it was taken from (0, 1, ...), `key` names it independently of any
    order or file system (the path inside the archive, for instance), `label` is its class or None.
    """

    index: int
    key: str
    label: int | None
    load: Callable[[], Image.Image] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Dataset:
    """Samples in a deterministic order.

    Attributes:
        name: as given to `open_dataset`.
        title: what a report should call the data, such as 'CIFAR-10 (JPEG)'.
        split: 'train', 'test', 'val', or 'other' where the data does not tell.
        class_names: name of every class by label; empty when no sample has a label.
        samples: the images.
        seed: seed of the draw that made this subset (or these synthetic images); None for a complete set.
    """

    name: str
    title: str
    split: str
    class_names: tuple[str, ...] = field(repr=False)
    samples: tuple[Sample, ...] = field(repr=False)
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def draw(self, limit: int, seed: int) -> Dataset:
        """A class-balanced subset of `limit` samples (or all, if there are fewer), in the order drawn.

        Depends on keys, labels and seed only. The classes take turns in a seeded order, so class sizes differ by
        at most one while every class has samples left; a smaller limit draws a prefix of a larger one.
        """
        if limit < 1:
            raise UsageError(f"--limit must be at least 1, not {limit}")
        classes: dict[int, list[Sample]] = defaultdict(list)
        for sample in self.samples:
            classes[-1 if sample.label is None else sample.label].append(sample)
        for label, members in classes.items():
            members.sort(key=lambda s: _rank(f"{seed}/{label}/{s.key}"))
        turns = sorted(classes, key=lambda label: _rank(f"{seed}/{label}"))
        drawn: list[Sample] = []
        for place in range(max(map(len, classes.values()), default=0)):
            drawn += [classes[label][place] for label in turns if place < len(classes[label])]
            if len(drawn) >= limit:
                break
        return dataclasses.replace(self, samples=reindex(drawn[:limit]), seed=seed)


def reindex(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The same samples with their index counting from 0 in the given order."""
    return tuple(dataclasses.replace(sample, index=index) for index, sample in enumerate(samples))


def pick_one_per_class(samples: Sequence[Sample], salt: str) -> list[Sample]:
    """For each label, the sample whose key comes first in a fixed pseudo-random order; sorted by label."""
    first: dict[int, Sample] = {}
    for sample in sorted(samples, key=lambda s: _rank(f"{salt}/{s.key}")):
        if sample.label is not None:
            first.setdefault(sample.label, sample)
    return [first[label] for label in sorted(first)]


def _rank(text: str) -> tuple[bytes, str]:
    """A place in a pseudo-random order that is the same on every machine and Python."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest(), text
