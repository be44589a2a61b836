# SPDX-License-Identifier: Apache-2.0
"""A folder, zip or tar of images: CLASS/FILE (the class is the label), optionally below a split folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tvhil.datasets.archives import FileTree, image_names, load_image, open_tree
from tvhil.datasets.dataset import Dataset, Sample, reindex
from tvhil.errors import DatasetError

SPLITS = {"train": "train", "training": "train", "test": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")


def open_folder(name: str, path: Path, split: str | None) -> Dataset:
    """Images of `path`. Files directly in it (no class folders) make a dataset without labels."""
    tree = open_tree(path)
    names, split = select_split(tree, image_names(tree), split)
    if not names:
        raise DatasetError(f"{path} holds no images ({split} split)")
    root = common_root(names)
    if all("/" not in file.removeprefix(root) for file in names):
        samples = [image_sample(tree, file, root, None) for file in names]
        return Dataset(name, path.stem, split, (), reindex(samples))
    by_class = group_by_class(tree, names)
    samples = [image_sample(tree, file, root, label) for label, files in enumerate(by_class.values()) for file in files]
    return Dataset(name, path.stem, split, tuple(by_class), reindex(samples))


def select_split(
    tree: FileTree, names: Sequence[str], split: str | None, default: str = "test"
) -> tuple[list[str], str]:
    """Keep the images of one split.

    Where the tree has split folders (train, test, val, ...), the wanted one must be among them; if none is
    wanted, the default is, or the only one there is. Where it has none, everything belongs to the split asked for;
    if none was, the archive's own name may tell ('cifar10-jpeg-train.zip').
    """
    folders: dict[str, list[str]] = {}
    for name in names:
        found = next((SPLITS[part] for part in name.lower().split("/")[:-1] if part in SPLITS), None)
        if found:  # the outermost such folder: CIFAR-100 has a class called train
            folders.setdefault(found, []).append(name)
    if sum(map(len, folders.values())) < len(names) or not folders:
        told = {SPLITS[word] for word in re.split(r"[^a-z]+", tree.path.stem.lower()) if word in SPLITS}
        return list(names), split or (told.pop() if len(told) == 1 else default)
    wanted = split or (default if default in folders or len(folders) > 1 else next(iter(folders)))
    if wanted not in folders:
        raise DatasetError(f"{tree.path} has the splits {', '.join(sorted(folders))}, not {wanted!r}")
    return folders[wanted], wanted


def common_root(names: Sequence[str]) -> str:
    """The folders above the class folders (or above the files, if there are no classes), with a final '/'."""
    parents = [name.split("/")[:-1] for name in names]
    depth = 0
    while all(len(p) > depth + 1 for p in parents) and len({p[depth] for p in parents}) == 1:
        depth += 1
    if all(p == parents[0] for p in parents) and parents[0][depth:] and parents[0][depth].lower() in SPLITS:
        depth += 1  # 'val/0001.jpg': a split folder is no class
    return "".join(part + "/" for part in parents[0][:depth])


def group_by_class(tree: FileTree, names: Sequence[str]) -> dict[str, list[str]]:
    """Images by class folder, both sorted. Every image has to lie exactly one folder below the common root."""
    root = common_root(names)
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.removeprefix(root).split("/")
        if len(parts) != 2:
            raise DatasetError(f"{tree.path}: {name} does not lie in a class folder like the other images")
        groups.setdefault(parts[0], []).append(name)
    return {folder: sorted(groups[folder]) for folder in sorted(groups)}


def image_sample(tree: FileTree, file: str, root: str, label: int | None) -> Sample:
    """A sample that decodes `file` when asked; its key is the path below `root`."""
    return Sample(0, file.removeprefix(root), label, partial(load_image, tree, file))
