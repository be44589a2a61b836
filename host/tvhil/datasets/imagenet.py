# SPDX-License-Identifier: Apache-2.0
"""ImageNet-1k's validation set (Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015).

As WNID/FILE.JPEG, or as the flat ILSVRC2012_val_*.JPEG of the original tar with a file of labels; in a folder, zip
or tar. Class indices follow the sorted WNIDs, as those of every published model do. `imagenet-val-1k` is one
fixed image of each class; it depends on the file names only, so it is the same from any layout.
"""

from __future__ import annotations

import re
from pathlib import Path

from tvhil.datasets.archives import FileTree, image_names, open_tree
from tvhil.datasets.dataset import Dataset, Sample, pick_one_per_class, reindex
from tvhil.datasets.folder import SPLITS, image_sample
from tvhil.errors import DatasetError, UsageError

CLASSES = 1000
PICK_SALT = "imagenet-val-1k"
_WNID = re.compile(r"n\d{8}")
_VAL_FILE = re.compile(r"ILSVRC2012_val_\d{8}")
# Files of labels and of class names that circulate with the validation set; looked for in the data and beside it.
_LABEL_FILES = (
    "val.txt",
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC2012_validation_ground_truth.txt",
    "labels.txt",
)
_NAME_FILES = ("LOC_synset_mapping.txt", "synset_words.txt")
_MAX_TEXT = 16 << 20


def open_imagenet(name: str, path: Path, split: str | None) -> Dataset:
    """The validation set (`name` 'imagenet-val'), or one image a class of it ('imagenet-val-1k').

    Keys are file names. The split is 'val', or 'other' when the files are not named like the validation set's.
    """
    if split not in (None, "val"):
        raise UsageError(f"{name} has the split val only, not {split!r}")
    tree = open_tree(path)
    files = [
        file
        for file in image_names(tree)
        if {SPLITS.get(part.lower(), "val") for part in file.split("/")[:-1]} <= {"val"}
    ]
    if not files:
        raise DatasetError(f"{path} holds no validation images")
    wnids = [_folder_wnid(file) for file in files]
    if all(wnids):
        classes = sorted({wnid for wnid in wnids if wnid})
        _check_classes(path, classes, "class folders")
        index = {wnid: label for label, wnid in enumerate(classes)}
        labels: list[int | None] = [index[wnid] for wnid in wnids if wnid]
    elif any(wnids):
        stray = files[wnids.index(None)]
        raise DatasetError(f"{path}: {stray} does not lie in a WNID folder like the other images")
    else:
        classes, labels = _flat_labels(tree, files)
    samples = []
    for file, label in zip(files, labels, strict=True):
        root = file[: file.rfind("/") + 1]
        samples.append(image_sample(tree, file, root, label))
    _check_unique(path, samples)
    samples.sort(key=lambda sample: sample.key)
    if name == "imagenet-val-1k":
        if not classes:
            raise DatasetError(f"{path} has no labels to choose an image of each class by: {_labels_hint()}")
        samples = pick_one_per_class(samples, PICK_SALT)
        if len(samples) != CLASSES:
            raise DatasetError(f"{path} has images of {len(samples)} classes, not of {CLASSES}")
    original = all(_VAL_FILE.match(sample.key) for sample in samples)
    title = "ImageNet-1k validation set" if original else f"ImageNet-1k classes ({path.stem})"
    names = _class_names(tree, classes, files) if classes else ()
    return Dataset(name, title, "val" if original else "other", names, reindex(samples))


def _folder_wnid(file: str) -> str | None:
    parts = file.split("/")
    return parts[-2] if len(parts) > 1 and _WNID.fullmatch(parts[-2]) else None


def _check_classes(path: Path, classes: list[str], what: str) -> None:
    if len(classes) != CLASSES:
        raise DatasetError(
            f"{path} has {len(classes)} {what}, ImageNet-1k has {CLASSES}: class indices would be wrong "
            "(the dataset 'folder' takes any number)"
        )


def _check_unique(path: Path, samples: list[Sample]) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.key in seen:
            raise DatasetError(
                f"{path} holds {sample.key} in two folders, names in ImageNet are unique (dataset 'folder' takes any)"
            )
        seen.add(sample.key)


def _flat_labels(tree: FileTree, files: list[str]) -> tuple[list[str], list[int | None]]:
    """Classes and labels of images without class folders; no classes when there is no file of labels.

    Understood are lines of 'FILE WNID' (also Kaggle's CSV), 'FILE INDEX' (Caffe's val.txt, index by sorted WNIDs),
    and one WNID a line in the order of the sorted file names. The development kit's ground truth holds numbers in
    an order of its own, so it is refused.
    """
    found = _find_text(tree, _LABEL_FILES)
    if found is None:
        return [], [None] * len(files)
    name, text = found
    rows = [re.split(r"[\s,]+", line.strip())[:2] for line in text.splitlines() if line.strip()]
    pairs = [row for row in rows if len(row) == 2 and _VAL_FILE.match(row[0])]
    stems = [file.rsplit("/", 1)[-1].split(".")[0] for file in files]
    if pairs:
        table = {row[0].split(".")[0]: row[1] for row in pairs}
        missing = next((stem for stem in stems if stem not in table), None)
        if missing is not None:
            raise DatasetError(f"{name} has no label for {missing}")
        values = [table[stem] for stem in stems]
        known = sorted(set(table.values()))
    elif rows and all(len(row) == 1 and _WNID.fullmatch(row[0]) for row in rows):
        if len(rows) != len(files):
            raise DatasetError(f"{name} has {len(rows)} labels for {len(files)} images")
        by_stem = dict(zip(sorted(stems), (row[0] for row in rows), strict=True))
        values = [by_stem[stem] for stem in stems]
        known = sorted({row[0] for row in rows})
    else:
        raise DatasetError(f"{name} holds no labels that are understood: {_labels_hint()}")
    if all(_WNID.fullmatch(value) for value in known):
        _check_classes(tree.path, known, f"WNIDs in {name}")
        index = {wnid: label for label, wnid in enumerate(known)}
        return known, [index[value] for value in values]
    if all(value.isdecimal() and int(value) < CLASSES for value in known):
        return [str(label) for label in range(CLASSES)], [int(value) for value in values]
    raise DatasetError(f"{name}: {known[0]!r} is neither a WNID nor a class index below {CLASSES}")


def _labels_hint() -> str:
    return (
        "put the images into WNID folders, or a val.txt of lines 'ILSVRC2012_val_00000001.JPEG n01751748' beside them"
    )


def _class_names(tree: FileTree, classes: list[str], files: list[str]) -> tuple[str, ...]:
    """Names from a synset file, else from files called WNID_name.JPEG, else the WNIDs themselves."""
    names = dict.fromkeys(classes, "")
    found = _find_text(tree, _NAME_FILES)
    for line in found[1].splitlines() if found else ():
        wnid, _, text = line.strip().partition(" ")
        if wnid in names:
            names[wnid] = text.strip()
    for file in files:
        wnid, _, text = file.rsplit("/", 1)[-1].rsplit(".", 1)[0].partition("_")
        if names.get(wnid) == "" and text and not text.isdecimal():
            names[wnid] = text.replace("_", " ")
    return tuple(name or wnid for wnid, name in names.items())


def _find_text(tree: FileTree, wanted: tuple[str, ...]) -> tuple[str, str] | None:
    """Name and content of the first of some text files, in the data or in the folder that holds it."""
    for target in wanted:
        for file in tree.names:
            if file.rsplit("/", 1)[-1] == target:
                return f"{tree.path}: {file}", tree.read(file, _MAX_TEXT).decode("utf-8", "replace")
        beside = tree.path.parent / target
        if beside.is_file():
            try:
                with beside.open("rb") as stream:
                    return str(beside), stream.read(_MAX_TEXT).decode("utf-8", "replace")
            except OSError as error:
                raise DatasetError(f"cannot read {beside}: {error.strerror}") from None
    return None
