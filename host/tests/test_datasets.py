# SPDX-License-Identifier: Apache-2.0
"""Datasets: layouts, order, draws, labels, and refusal of damaged or hostile archives."""

import gzip
import io
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tvhil.datasets import Dataset, Sample, describe_datasets, open_dataset
from tvhil.datasets import archives as archives_module
from tvhil.datasets.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES
from tvhil.datasets.digits import embedded_digits, make_embedded_digits
from tvhil.datasets.synthetic import synthetic_array
from tvhil.errors import DatasetError, UsageError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def encoded(colour=(1, 2, 3), size=(4, 4), kind="PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind)
    return stream.getvalue()


def tree(files: dict[str, bytes], target: Path, kind: str) -> Path:
    """Write files as a folder, zip, tar or tar.gz, in the order of the dictionary."""
    path = target / f"data.{kind}"
    if kind == "folder":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


KINDS = ["folder", "zip", "tar", "tar.gz"]


def colour_of(sample: Sample) -> tuple[int, int, int]:
    return sample.load().getpixel((0, 0))


# --- order and draws


def made_up(classes: int, per_class: int) -> Dataset:
    samples = [
        Sample(0, f"{c}/{i}", c, lambda: Image.new("L", (1, 1))) for c in range(classes) for i in range(per_class)
    ]
    return Dataset("made-up", "made up", "test", tuple(map(str, range(classes))), tuple(samples))


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 120), st.integers(0, 5), st.randoms())
def test_a_draw_is_balanced_repeatable_and_independent_of_the_order_found(classes, per_class, limit, seed, shuffle):
    dataset = made_up(classes, per_class)
    drawn = dataset.draw(limit, seed)
    assert len(drawn) == min(limit, len(dataset))
    assert len({sample.key for sample in drawn}) == len(drawn)
    counts = Counter(sample.label for sample in drawn)
    assert max(counts.values()) - min(counts[c] for c in range(classes)) <= 1
    assert [sample.index for sample in drawn] == list(range(len(drawn)))
    shuffled = list(dataset.samples)
    shuffle.shuffle(shuffled)
    other = Dataset("made-up", "made up", "test", dataset.class_names, tuple(shuffled)).draw(limit, seed)
    assert other == drawn


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_smaller_limit_draws_a_prefix_of_a_larger_one(a, b):
    dataset = made_up(5, 8)
    small, large = sorted((a, b))
    keys = [sample.key for sample in dataset.draw(large, 3)]
    assert [sample.key for sample in dataset.draw(small, 3)] == keys[:small]


def test_another_seed_draws_other_images():
    dataset = made_up(10, 50)
    draws = {tuple(sample.key for sample in dataset.draw(10, seed)) for seed in range(20)}
    assert len(draws) == 20


def test_a_draw_is_the_same_in_every_version_of_the_package():
    keys = [sample.key for sample in made_up(3, 4).draw(5, seed=7)]
    assert keys == ["2/0", "0/1", "1/3", "2/2", "0/0"]


def test_a_limit_below_one_is_refused():
    with pytest.raises(UsageError, match="--limit must be at least 1, not 0"):
        open_dataset("digits", limit=0)


# --- digits


def test_digits_has_36_test_images_of_each_digit_and_1437_others():
    test, train = open_dataset("digits"), open_dataset("digits", split="train")
    assert (len(test), len(train)) == (360, 1437)
    assert Counter(sample.label for sample in test) == dict.fromkeys(range(10), 36)
    assert not {sample.key for sample in test} & {sample.key for sample in train}
    assert test.class_names == tuple("0123456789")
    assert (test.split, train.split) == ("test", "train")
    image = test[0].load()
    assert (image.mode, image.size) == ("L", (8, 8))


def test_the_embedded_digits_are_those_of_scikit_learn():
    pytest.importorskip("sklearn")
    for embedded, made in zip(embedded_digits(), make_embedded_digits(), strict=True):
        assert embedded.dtype == made.dtype
        assert np.array_equal(embedded, made)


def test_digits_need_neither_scikit_learn_nor_torch():
    program = (
        "import sys; from tvhil.datasets import open_dataset; open_dataset('digits')[0].load();"
        "sys.exit('sklearn' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- synthetic


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (5, 7, 3)])
def test_synthetic_images_have_the_shape_and_differ(shape):
    dataset = open_dataset("synthetic", shape=shape, limit=20, seed=3)
    arrays = [np.asarray(sample.load()).reshape(shape) for sample in dataset]
    assert len({array.tobytes() for array in arrays}) == 20
    assert all(sample.label is None for sample in dataset)
    assert dataset.class_names == ()


def test_synthetic_images_depend_on_the_seed_and_the_index_only():
    few = open_dataset("synthetic", shape=(6, 6, 3), limit=3, seed=1)
    many = open_dataset("synthetic", shape=(6, 6, 3), limit=9, seed=1)
    assert few.samples == many.samples[:3]
    assert [few[i].load().tobytes() for i in range(3)] == [many[i].load().tobytes() for i in range(3)]
    assert synthetic_array((1, 4, 1), 0, 0).ravel().tolist() == [122, 124, 226, 132]


# --- folders and archives


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("root", ["", "pets/", "a/b/"])
def test_class_folders_are_labels_in_sorted_order(tmp_path, kind, root):
    files = {
        f"{root}dog/2.png": encoded((0, 0, 2)),
        f"{root}cat/b.png": encoded((0, 0, 1)),
        f"{root}cat/a.png": encoded((0, 0, 0)),
        f"{root}README.txt": b"not an image",
        f"{root}dog/.hidden/x.png": b"",
        f"__MACOSX/{root}cat/a.png": b"",
    }
    dataset = open_dataset("folder", tree(files, tmp_path, kind))
    assert dataset.class_names == ("cat", "dog")
    assert [(s.index, s.key, s.label) for s in dataset] == [
        (0, "cat/a.png", 0), (1, "cat/b.png", 0), (2, "dog/2.png", 1)
    ]  # fmt: skip
    assert [colour_of(sample)[2] for sample in dataset] == [0, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_class_folders_have_no_labels(tmp_path, kind):
    dataset = open_dataset("folder", tree({"b.png": encoded(), "a.png": encoded()}, tmp_path, kind))
    assert [(sample.key, sample.label) for sample in dataset] == [("a.png", None), ("b.png", None)]
    assert dataset.class_names == ()


def test_split_folders_are_chosen_by_name(tmp_path):
    files = {f"set/{split}/{c}/1.png": encoded() for split in ("train", "valid") for c in ("cat", "dog")}
    path = tree(files, tmp_path, "zip")
    assert [sample.key for sample in open_dataset("folder", path, split="train")] == ["cat/1.png", "dog/1.png"]
    assert open_dataset("folder", path, split="val").split == "val"
    with pytest.raises(DatasetError, match="has the splits train, val, not 'test'"):
        open_dataset("folder", path)


def test_an_image_outside_the_class_folders_is_named(tmp_path):
    files = {"cat/1.png": encoded(), "dog/1.png": encoded(), "stray.png": encoded()}
    with pytest.raises(DatasetError, match=r"stray.png does not lie in a class folder"):
        open_dataset("folder", tree(files, tmp_path, "folder"))


def test_a_folder_that_links_to_itself_is_read_once(tmp_path):
    path = tree({"cat/1.png": encoded(), "dog/1.png": encoded()}, tmp_path, "folder")
    (path / "cat" / "loop").symlink_to(path)
    assert len(open_dataset("folder", path)) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "content",
    [b"", b"no image at all", encoded()[:40], encoded(kind="JPEG", size=(64, 64))[:-300]],
    ids=["empty", "text", "cut png", "cut jpeg"],
)
def test_a_corrupt_image_is_named_when_it_is_loaded(tmp_path, kind, content):
    path = tree({"cat/1.png": encoded(), "cat/2.png": content, "dog/1.png": encoded()}, tmp_path, kind)
    dataset = open_dataset("folder", path)
    assert colour_of(dataset[0]) == (1, 2, 3)
    with pytest.raises(DatasetError, match=r"data\.[a-z.]+: cat/2.png is not a readable image: ") as caught:
        dataset[1].load()
    assert "\n" not in str(caught.value)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tree({"a.png": encoded(size=(30, 30))}, tmp_path, "zip")
    monkeypatch.setattr(archives_module, "MAX_PIXELS", 899)
    with pytest.raises(DatasetError, match=r"a.png has 30x30 pixels, too many"):
        open_dataset("folder", path)[0].load()


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_larger_than_the_bound_is_refused(tmp_path, kind):
    path = tree({"a.png": encoded() + bytes(70 << 20)}, tmp_path, kind)
    with pytest.raises(DatasetError, match=r"a.png is larger than 64 MiB"):
        open_dataset("folder", path)[0].load()


def test_a_compressed_tar_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = tree({"a.png": bytes(3 << 20)}, tmp_path, "tar.gz")
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(archives_module, "MAX_TAR_BYTES", 1 << 20)
    with pytest.raises(DatasetError, match=r"larger than 1 MiB unpacked: decompress it"):
        open_dataset("folder", path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    "name", ["../evil.png", "cat/../../evil.png", "/etc/evil.png", "C:/evil.png", "cat\\evil.png", "cat/a\nb.png"]
)
def test_an_archive_with_a_path_that_leads_outside_is_refused(tmp_path, kind, name):
    path = tree({"cat/1.png": encoded(), name: encoded()}, tmp_path, kind)
    with pytest.raises(DatasetError, match="is hostile: its member"):
        open_dataset("folder", path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"data.{kind}"]


def test_a_tar_with_a_damaged_header_is_refused_rather_than_shortened(tmp_path):
    path = tree({f"cat/{i}.png": encoded() for i in range(3)}, tmp_path, "tar")
    content = bytearray(path.read_bytes())
    content[2 * 1024] ^= 1  # the header of the third file
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="truncated or damaged at byte 2048, after 2 files"):
        open_dataset("folder", path)
    path.write_bytes(content[: 2 * 1024])
    with pytest.raises(DatasetError, match="truncated or damaged at byte 2048, after 2 files"):
        open_dataset("folder", path)


def test_links_in_a_tar_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        for name, kind in (("cat/1.png", tarfile.SYMTYPE), ("cat/2.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("cat/3.png")
        info.size = len(encoded())
        archive.addfile(info, io.BytesIO(encoded()))
    assert [sample.key for sample in open_dataset("folder", tmp_path / "data.tar")] == ["cat/3.png"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_that_occurs_twice_is_refused(tmp_path, kind):
    path = tmp_path / f"data.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.png", encoded())
            archive.writestr("a.png", encoded())
    else:
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo("a.png"))
            archive.addfile(tarfile.TarInfo("./a.png"))
    with pytest.raises(DatasetError, match=r"holds a.png twice"):
        open_dataset("folder", path)


def test_an_encrypted_member_is_refused_by_name(tmp_path):
    path = tree({"a.png": encoded()}, tmp_path, "zip")
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + offset] |= 1  # the flag 'encrypted'
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"cannot read a.png: .*encrypted"):
        open_dataset("folder", path)[0].load()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_damaged_archive_never_ends_in_another_error(tmp_path, kind):
    path = tree({f"cat/{i}.png": encoded((i, 0, 0)) for i in range(3)}, tmp_path, kind)
    content = path.read_bytes()
    if kind == "tar":
        content = content[: 3 * 1024 + 1024]  # header and data of three files, the end mark, no padding
    random = np.random.RandomState(0)
    outcomes = Counter()
    for trial in range(150):
        data = bytearray(content)
        if trial % 3 == 0:
            del data[random.randint(len(data)) :]
        else:
            data[random.randint(len(data))] ^= 1 << random.randint(8)
        path.write_bytes(data)
        try:
            for sample in open_dataset("folder", path):
                sample.load()
            outcomes["read"] += 1
        except DatasetError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 50


def test_missing_and_foreign_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(DatasetError, match=r"no dataset at .*absent"):
        open_dataset("folder", tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(DatasetError, match="neither a folder nor a readable zip or tar"):
        open_dataset("folder", tmp_path / "text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds no images"):
        open_dataset("folder", tmp_path / "empty")


def test_names_and_arguments_are_checked():
    with pytest.raises(UsageError, match="no dataset is called 'cifar1'; did you mean cifar10"):
        open_dataset("cifar1")
    with pytest.raises(UsageError, match="cifar10 needs --data PATH"):
        open_dataset("cifar10")
    with pytest.raises(UsageError, match="digits takes no --data"):
        open_dataset("digits", "x.zip")
    with pytest.raises(UsageError, match="digits has the splits train and test, not 'val'"):
        open_dataset("digits", split="val")
    with pytest.raises(UsageError, match="synthetic images need a model"):
        open_dataset("synthetic")
    assert set(describe_datasets()) >= {"digits", "cifar10", "cifar100", "imagenet-val", "imagenet-val-1k"}


# --- CIFAR


def cifar_records(labels, coarse=False) -> bytes:
    records = b""
    for i, label in enumerate(labels):
        planes = np.zeros((3, 32, 32), np.uint8)
        planes[0], planes[1], planes[2, 0, 5] = i, 2 * i, 77
        records += (b"\x07" if coarse else b"") + bytes([label]) + planes.tobytes()
    return records


CIFAR10_FILES = {
    "cifar-10-batches-bin/batches.meta.txt": b"airplane\n",
    **{f"cifar-10-batches-bin/data_batch_{i}.bin": cifar_records([i, 9]) for i in range(1, 6)},
    "cifar-10-batches-bin/test_batch.bin": cifar_records([3, 0, 9]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_original_binary_cifar10_is_read(tmp_path, kind):
    path = tree(CIFAR10_FILES, tmp_path, kind)
    test, train = open_dataset("cifar10", path), open_dataset("cifar10", path, split="train")
    assert [(sample.key, sample.label) for sample in test] == [
        ("test_batch.bin/00000", 3), ("test_batch.bin/00001", 0), ("test_batch.bin/00002", 9)
    ]  # fmt: skip
    image = test[2].load()
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert (image.getpixel((5, 0)), image.getpixel((0, 5))) == ((2, 4, 77), (2, 4, 0))
    assert len(train) == 10
    assert train[9].key == "data_batch_5.bin/00001"
    assert (test.title, test.split, train.split) == ("CIFAR-10", "test", "train")


def test_the_original_binary_cifar100_has_fine_labels(tmp_path):
    files = {"cifar-100-binary/test.bin": cifar_records([99, 4], coarse=True)}
    dataset = open_dataset("cifar100", tree(files, tmp_path, "tar.gz"))
    assert [sample.label for sample in dataset] == [99, 4]
    assert (len(dataset.class_names), dataset.class_names[99], dataset.class_names[4]) == (100, "worm", "beaver")
    with pytest.raises(DatasetError, match=r"is incomplete: it has no train.bin"):
        open_dataset("cifar100", tree(files, tmp_path, "folder"), split="train")


def test_cifar_class_names_are_sorted_as_their_labels_are():
    assert list(CIFAR10_CLASSES) == sorted(CIFAR10_CLASSES)
    assert list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES)
    assert len(set(CIFAR100_CLASSES)) == 100


def test_a_truncated_batch_and_a_wrong_label_are_named(tmp_path):
    name = "test_batch.bin"
    path = tree({name: cifar_records([3, 4])[:-1]}, tmp_path, "zip")
    with pytest.raises(DatasetError, match=r"test_batch.bin has 6145 bytes, not a multiple of 3073"):
        open_dataset("cifar10", path)
    path = tree({name: cifar_records([3, 10, 1])}, tmp_path, "zip")
    with pytest.raises(DatasetError, match=r"record 1: label 10 is not below 10"):
        open_dataset("cifar10", path)


def test_the_python_version_is_refused_because_it_is_a_pickle(tmp_path):
    files = {"cifar-10-batches-py/test_batch": pickle.dumps({}), "cifar-10-batches-py/batches.meta": b""}
    with pytest.raises(DatasetError, match="a pickle, which is never loaded: use the binary version"):
        open_dataset("cifar10", tree(files, tmp_path, "tar.gz"))


@pytest.mark.parametrize("kind", KINDS)
def test_cifar_class_folders_have_the_official_labels(tmp_path, kind):
    files = {f"{name}/{i}.png": encoded() for name in reversed(CIFAR10_CLASSES) for i in range(2)}
    dataset = open_dataset("cifar10", tree(files, tmp_path, kind))
    assert all(sample.key.startswith(CIFAR10_CLASSES[sample.label]) for sample in dataset)
    assert (len(dataset), dataset.title) == (20, "CIFAR-10")


def test_cifar100_has_a_class_called_train_that_is_no_split(tmp_path):
    files = {f"{split}/{name}/1.png": encoded() for split in ("train", "test") for name in CIFAR100_CLASSES}
    dataset = open_dataset("cifar100", tree(files, tmp_path, "zip"))
    assert (dataset.split, len(dataset)) == ("test", 100)
    flat = {name.removeprefix("test/"): data for name, data in files.items() if name.startswith("test/")}
    assert len(open_dataset("cifar100", tree(flat, tmp_path, "tar"))) == 100


def test_a_missing_or_foreign_cifar_class_is_named(tmp_path):
    files = {f"{name}/1.png": encoded() for name in CIFAR10_CLASSES if name != "ship"}
    with pytest.raises(DatasetError, match="lacks images of 1 classes of CIFAR-10: ship"):
        open_dataset("cifar10", tree(files, tmp_path, "zip"))
    files["yacht/1.png"] = encoded()
    with pytest.raises(DatasetError, match="is not CIFAR-10: it has no class 'yacht'"):
        open_dataset("cifar10", tree(files, tmp_path, "tar"))


# --- ImageNet

WNIDS = [f"n{10_000_000 + 37 * i}" for i in range(1000)]
VAL_FILES = [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(2000)]
VAL_WNIDS = [WNIDS[(i * 7) % 1000] for i in range(2000)]  # two images of each class
PIXEL = encoded(size=(1, 1))


@pytest.fixture(scope="module")
def imagenet_layouts(tmp_path_factory):
    """The same made-up validation set in every layout that is understood."""
    target = tmp_path_factory.mktemp("imagenet")
    folders = {f"val/{wnid}/{file}": PIXEL for file, wnid in zip(VAL_FILES, VAL_WNIDS, strict=True)}
    flat = dict.fromkeys(VAL_FILES, PIXEL)
    pairs = "".join(f"{file} {wnid}\n" for file, wnid in zip(VAL_FILES, VAL_WNIDS, strict=True))
    indices = "".join(f"{f} {WNIDS.index(w)}\n" for f, w in zip(reversed(VAL_FILES), reversed(VAL_WNIDS), strict=True))
    kaggle = "ImageId,PredictionString\n" + "".join(
        f"{file.split('.')[0]},{wnid} 1 2 3 4\n" for file, wnid in zip(VAL_FILES, VAL_WNIDS, strict=True)
    )
    layouts = {
        "wnid folders, folder": (folders, "folder"),
        "wnid folders, zip": (folders, "zip"),
        "flat, wnids in val.txt": ({**flat, "val.txt": pairs.encode()}, "tar"),
        "flat, indices in val.txt": ({**flat, "val.txt": indices.encode()}, "zip"),
        "flat, a wnid a line": (
            {**flat, "imagenet_2012_validation_synset_labels.txt": "\n".join(VAL_WNIDS).encode()}, "tar",
        ),
        "kaggle": (
            {
                **{f"ILSVRC/Data/CLS-LOC/val/{file}": PIXEL for file in VAL_FILES},
                f"ILSVRC/Data/CLS-LOC/train/{WNIDS[0]}/{WNIDS[0]}_1.JPEG": PIXEL,
                "LOC_val_solution.csv": kaggle.encode(),
            },
            "zip",
        ),
    }  # fmt: skip
    paths = {}
    for i, (name, (files, kind)) in enumerate(layouts.items()):
        (target / str(i)).mkdir()
        paths[name] = tree(files, target / str(i), kind)
    return paths


def test_every_imagenet_layout_has_the_same_images_labels_and_order(imagenet_layouts):
    for dataset_name, count in (("imagenet-val", 2000), ("imagenet-val-1k", 1000)):
        opened = {name: open_dataset(dataset_name, path) for name, path in imagenet_layouts.items()}
        expected = [(sample.key, sample.label) for sample in opened["wnid folders, zip"]]
        assert len(expected) == count
        for name, dataset in opened.items():
            assert [(sample.key, sample.label) for sample in dataset] == expected, name
            assert (dataset.split, dataset.title) == ("val", "ImageNet-1k validation set")


def test_imagenet_labels_are_the_ranks_of_the_wnids(imagenet_layouts):
    dataset = open_dataset("imagenet-val", imagenet_layouts["flat, wnids in val.txt"])
    truth = dict(zip(VAL_FILES, VAL_WNIDS, strict=True))
    assert all(WNIDS[sample.label] == truth[sample.key] for sample in dataset)
    assert dataset.class_names == tuple(WNIDS)


def test_imagenet_val_1k_is_one_fixed_image_of_each_class(imagenet_layouts):
    dataset = open_dataset("imagenet-val-1k", imagenet_layouts["wnid folders, zip"])
    assert [sample.label for sample in dataset] == list(range(1000))
    later = sum(VAL_FILES.index(sample.key) >= 1000 for sample in dataset)
    assert 400 < later < 600  # of the two images of a class, either
    assert [sample.key for sample in dataset][:3] == [
        "ILSVRC2012_val_00001001.JPEG", "ILSVRC2012_val_00001144.JPEG", "ILSVRC2012_val_00000287.JPEG"
    ]  # fmt: skip
    drawn = open_dataset("imagenet-val-1k", imagenet_layouts["kaggle"], limit=5, seed=1)
    assert [s.key for s in drawn] == [s.key for s in dataset.draw(5, seed=1)]


def test_labels_beside_an_archive_are_found(tmp_path):
    path = tree(dict.fromkeys(VAL_FILES, PIXEL), tmp_path, "tar")
    unlabelled = open_dataset("imagenet-val", path)
    assert (len(unlabelled), unlabelled[0].label, unlabelled.class_names) == (2000, None, ())
    with pytest.raises(DatasetError, match="has no labels to choose an image of each class by"):
        open_dataset("imagenet-val-1k", path)
    (tmp_path / "val.txt").write_text("".join(f"{f} {w}\n" for f, w in zip(VAL_FILES, VAL_WNIDS, strict=True)))
    assert open_dataset("imagenet-val-1k", path)[5].label == 5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ILSVRC2012_validation_ground_truth.txt", "490\n361\n171\n", "holds no labels that are understood"),
        ("val.txt", f"{VAL_FILES[0]} n10000000\n", "has no label for ILSVRC2012_val_00000002"),
        ("val.txt", "".join(f"{f} n10000000\n" for f in VAL_FILES), "has 1 WNIDs in"),
        ("val.txt", "".join(f"{f} 1000\n" for f in VAL_FILES), "'1000' is neither a WNID nor a class index"),
        ("labels.txt", "n10000000\n" * 3, "has 3 labels for 2000 images"),
    ],
    ids=["devkit", "missing", "one class", "index", "too few"],
)
def test_labels_that_cannot_be_right_are_refused(tmp_path, name, text, message):
    path = tree({**dict.fromkeys(VAL_FILES, PIXEL), name: text.encode()}, tmp_path, "tar")
    with pytest.raises(DatasetError, match=message):
        open_dataset("imagenet-val", path)


def test_a_missing_imagenet_class_is_refused_because_it_would_shift_the_indices(tmp_path):
    files = {f"{wnid}/{wnid}_{i}.JPEG": PIXEL for i, wnid in enumerate(WNIDS[:-1])}
    with pytest.raises(DatasetError, match="has 999 class folders, ImageNet-1k has 1000"):
        open_dataset("imagenet-val", tree(files, tmp_path, "zip"))
    files["stray.JPEG"] = PIXEL
    with pytest.raises(DatasetError, match=r"stray.JPEG does not lie in a WNID folder"):
        open_dataset("imagenet-val", tree(files, tmp_path, "tar"))


def test_class_names_come_from_a_synset_file_or_the_file_names(tmp_path):
    files = {f"{wnid}/{wnid}_class_{i}.JPEG": PIXEL for i, wnid in enumerate(WNIDS)}
    dataset = open_dataset("imagenet-val", tree(files, tmp_path, "zip"))
    assert (dataset.class_names[7], dataset.split) == ("class 7", "other")
    files["LOC_synset_mapping.txt"] = f"{WNIDS[7]} tench, Tinca tinca\n".encode()
    dataset = open_dataset("imagenet-val", tree(files, tmp_path, "tar"))
    assert dataset.class_names[7:9] == ("tench, Tinca tinca", "class 8")


# --- the real archives, where they are


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{name} is not here")
    return path


@pytest.mark.parametrize(("split", "per_class"), [("train", 5000), ("test", 1000)])
def test_the_real_cifar10_archive_has_every_class(split, per_class):
    dataset = open_dataset("cifar10", shared(f"cifar10-jpeg-{split}.zip"))
    assert Counter(sample.label for sample in dataset) == dict.fromkeys(range(10), per_class)
    assert (dataset.split, dataset.title) == (split, "CIFAR-10 (JPEG)")
    for sample in dataset.draw(20, seed=0):
        assert sample.load().size == (32, 32)


def test_the_real_imagenet_archive_has_one_photo_of_each_class():
    dataset = open_dataset("imagenet-val-1k", shared("imagenet-sample-1k.zip"))
    assert [sample.label for sample in dataset] == list(range(1000))
    assert (dataset.class_names[0], dataset.class_names[999], dataset.split) == ("tench", "toilet tissue", "other")
    for sample in dataset.draw(10, seed=0):
        assert min(sample.load().size) == 256


def test_a_gzip_that_is_no_tar_is_refused(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"hello" * 300))
    with pytest.raises(DatasetError, match="neither a folder nor a readable zip or tar"):
        open_dataset("folder", tmp_path / "x.gz")
