# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009).

As the original binary version (`cifar-10-binary.tar.gz`, `cifar-100-binary.tar.gz`, or what they unpack to), or as
images in class folders (folder, zip or tar). The python version is a pickle and is refused: pickles can run code.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tvhil.datasets.archives import FileTree, image_names, open_tree
from tvhil.datasets.dataset import Dataset, Sample, reindex
from tvhil.datasets.folder import common_root, group_by_class, image_sample, select_split
from tvhil.errors import DatasetError, UsageError

PIXEL_BYTES = 3 * 32 * 32  # red plane, green plane, blue plane, each row-major
MAX_BATCH_BYTES = 50_000 * (2 + PIXEL_BYTES)

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905 (a hundred quoted words read worse)
)
_BATCHES = {
    ("cifar10", "train"): tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    ("cifar10", "test"): ("test_batch.bin",),
    ("cifar100", "train"): ("train.bin",),
    ("cifar100", "test"): ("test.bin",),
}


def open_cifar(name: str, path: Path, split: str | None) -> Dataset:
    """CIFAR-10 (`name` 'cifar10') or CIFAR-100 ('cifar100'), split 'test' (default) or 'train'."""
    if split not in (None, "train", "test"):
        raise UsageError(f"{name} has the splits train and test, not {split!r}")
    title, classes = ("CIFAR-10", CIFAR10_CLASSES) if name == "cifar10" else ("CIFAR-100", CIFAR100_CLASSES)
    tree = open_tree(path)
    binaries = {file.rsplit("/", 1)[-1]: file for file in tree.names if file.endswith(".bin")}
    if any(batch in binaries for key, batches in _BATCHES.items() if key[0] == name for batch in batches):
        split = split or "test"
        samples = []
        for batch in _BATCHES[name, split]:
            if batch not in binaries:
                raise DatasetError(f"{path} is incomplete: it has no {batch}")
            samples += _read_batch(tree, binaries[batch], len(classes))
        return Dataset(name, title, split, classes, reindex(samples))
    names = image_names(tree)
    if not names:
        if any(file.rsplit("/", 1)[-1] in ("batches.meta", "meta") for file in tree.names):
            raise DatasetError(
                f"{path} is the python version of {title}, a pickle, which is never loaded: use the binary version"
            )
        raise DatasetError(f"{path} is not {title}: it holds neither its binary batches nor images")
    names, split = select_split(tree, names, split)
    by_class = group_by_class(tree, names)
    missing, extra = sorted(set(classes) - set(by_class)), sorted(set(by_class) - set(classes))
    if extra:
        raise DatasetError(f"{path} is not {title}: it has no class {extra[0]!r}")
    if missing:
        raise DatasetError(f"{path} lacks images of {len(missing)} classes of {title}: {', '.join(missing[:5])}")
    if any(file.lower().endswith((".jpg", ".jpeg")) for file in names):
        title += " (JPEG)"
    root = common_root(names)
    samples = [image_sample(tree, file, root, label) for label, files in enumerate(by_class.values()) for file in files]
    return Dataset(name, title, split, classes, reindex(samples))


def _read_batch(tree: FileTree, file: str, classes: int) -> list[Sample]:
    """Records of the binary version: the label (after the coarse one in CIFAR-100), then the three planes."""
    label_bytes = 1 if classes == 10 else 2
    record = label_bytes + PIXEL_BYTES
    data = np.frombuffer(tree.read(file, MAX_BATCH_BYTES), dtype=np.uint8)
    if data.size == 0 or data.size % record:
        raise DatasetError(f"{tree.path}: {file} has {data.size} bytes, not a multiple of {record}: it is truncated")
    records = data.reshape(-1, record)
    labels = records[:, label_bytes - 1]
    if labels.max() >= classes:
        bad = int(np.argmax(labels >= classes))
        raise DatasetError(f"{tree.path}: {file}, record {bad}: label {labels[bad]} is not below {classes}")
    stem = file.rsplit("/", 1)[-1]
    planes = records[:, label_bytes:].reshape(-1, 3, 32, 32)
    return [Sample(0, f"{stem}/{i:05d}", int(labels[i]), partial(_to_image, planes[i])) for i in range(len(records))]


def _to_image(planes: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
