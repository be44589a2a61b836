# SPDX-License-Identifier: Apache-2.0
"""Fuzzed readers: data sets, journals, board files, pools of boards, partition tables."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_reader import TOML, Reader, toml_text
from PIL import Image

from tvhil.errors import DatasetError, InputError, MissingToolError, TvhilError


def zip_archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return stream.getvalue()


def _picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(108, dtype=np.uint8).reshape(6, 6, 3)).save(stream, kind)
    return stream.getvalue()


def _tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _archive_seeds() -> list[bytes]:
    members = {"a/1.png": _picture("PNG"), "b/2.jpg": _picture("JPEG"), "c.txt": b"text\n"}
    packed = [zip_archive(members, compression) for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    return packed + [_tar(members, mode) for mode in ("w", "w:gz", "w:bz2", "w:xz")]


def _archive_odd() -> list[bytes]:
    bombs = [b"P5 %d %d 255\n" % (side, side) for side in (11_000, 20_000)]  # too large for us; for Pillow, too
    encrypted = bytearray(zip_archive({"a.png": b"x"}))
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        encrypted[encrypted.index(mark) + at] |= 1
    large = bytearray(_tar({"a.png": b"x"}))
    large[124:136] = b"%011o\0" % (65 << 20)
    cut = bytearray(large)
    cut[124:136] = b"%011o\0" % (1 << 20)
    odd = (
        [zip_archive({"\xe4.png": b"x"}).replace(b"\xc3\xa4", b"\xff\xff", 1)]  # a name in its own header
        + [_tar({name: b""}) for name in ("", "../a", "/a", "a\\b", "c:a")]
        + [zip_archive({"": b""})]
        + [_tar({"a.png": b"", "./a.png": b""})]
    )
    pictures = [*(zip_archive({"a.pgm": bomb}) for bomb in bombs), zip_archive({"a.png": b"x"})]
    return [*odd, *pictures, bytes(encrypted), _repair_tar(large), _repair_tar(cut), b"\x1f\x8bx"]


def _repair_tar(data: bytes) -> bytes:
    """The right checksum in every header block of a tar."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            block = bytes(out[at : at + 148]) + b" " * 8 + bytes(out[at + 156 : at + 512])
            out[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(out)


def _read_archive(data: bytes, folder: Path) -> None:
    from tvhil.datasets.archives import image_names, load_image, open_tree

    with contextlib.suppress(DatasetError):
        open_tree(folder / "none")
        raise AssertionError("there is no such file")
    for name in (*open_tree(folder).names, "none"):
        with contextlib.suppress(DatasetError):
            open_tree(folder).read(name)
            assert name != "none"
    file = folder / "archive"
    file.write_bytes(data)
    tree = open_tree(file)
    for name in tree.names:
        assert not name.startswith("/") and ".." not in name.split("/")
        with contextlib.suppress(DatasetError):
            assert len(tree.read(name, limit=100)) <= 100
        tree.read(name)
    for name in image_names(tree):
        load_image(tree, name)


def _journal_seeds() -> list[bytes]:
    from tvhil.evaluation.journal import SCHEMA, encode_row

    rows = [{"schema": SCHEMA, "images": 2, "board": "native"}, {"board": {"details": {}, "unit": "seconds"}}]
    rows += [{"image": i, "id": f"test/{i}", "exact": True, "latency": 0.5} for i in range(2)]
    return [b"".join(map(encode_row, rows))]


def _repair_rows(data: bytes) -> bytes:
    rows = []
    for line in data.split(b"\n"):
        body, found, _ = line.rpartition(b',"crc":"')
        rows.append(b'%s,"crc":"%08x"}' % (body, zlib.crc32(body)) if found else line)
    return b"\n".join(rows)


def _journal_odd() -> list[bytes]:
    from tvhil.evaluation.journal import encode_row

    good, old = _journal_seeds()[0], encode_row({"schema": "tvhil.journal/0"})
    lines = good.splitlines(keepends=True)
    return [b"", lines[0][:-5], lines[0] + b"{}\n" + lines[1], b"{}\n", old, encode_row({"schema": "tvhil.journal/"})]


def _read_journal(data: bytes, folder: Path) -> None:
    from tvhil.evaluation.journal import Journal, JournalError, read_journal

    file, other = folder / "journal.jsonl", folder / "other.jsonl"
    file.write_bytes(data)
    other.write_bytes(data)
    with contextlib.suppress(JournalError), Journal.resume(other, {"board": "another" * 20}) as journal:
        assert list(journal.rows()) == []  # it was of no evaluation yet
    header, rows = read_journal(file)
    found = list(rows)
    with Journal.resume(file, {k: v for k, v in header.items() if k != "schema"}) as journal:
        assert list(journal.rows()) == found


def _board_seeds() -> list[bytes]:
    from tvhil.boards.board import boards_dir

    files = sorted(boards_dir().glob("*.toml"))
    return [re.sub(rb'(?m)^name = ".*"', b'name = "board"', path.read_bytes()) for path in files]


def _board_odd() -> list[bytes]:
    """A whole board of which one thing is wrong."""
    counter = {"unit": "cycles"}
    good = {"name": "board", "kind": "native", "summary": "", "counter": counter, "memory": {"arena": 1, "stack": 1}}
    changes: list[dict[str, Any]] = [
        *({key: value} for key in ("memory", "counter", "start") for value in (1, {}, {"nothing": 1})),
        {"firmware_of": "lx7sim"},
        *({"extends": name} for name in (1, "none", "esp32s3")),
        *({"start": {"command": value}} for value in ("a", [1])),
        *({"start": {"command": ["a"], "cores": value}} for value in (3, True)),
        *({"start": {"command": ["a"], "pad_flash": value}} for value in (1, True)),
        {"start": {"command": ["a"], "package": 1}},
        *({"cost": value} for value in (1, {}, {"unit": "cycles", "kernels": "portable", "x": {"y": "z"}})),
        {"cost": {"unit": "seconds", "kernels": "portable"}},
        *({"counter": counter | {"tick_time": ticks, "instruction_shift": 2}} for ticks in (-1, 3, 9)),
        *({key: "x"} for key in ("name", "kind", "kernels", "idf", "nothing", "kinds")),
        *({"usb": {"ids": ids}} for ids in (["x"], ["303a:1001"])),
        *({"serial": {"link_rates": rates}} for rates in ([0], "x", [9600])),
    ]
    found = [toml_text({**good, **change}).encode() for change in changes]
    bare = {key: value for key, value in good.items() if key != "memory"}
    changes = [{"firmware_of": name} for name in (1, "board", "broken", "lx7sim", "qemu-xtensa")]
    changes += [{"extends": name} for name in ("broken", "lx7sim", "board")]
    changes += [{"extends": "native", "counter": 1}, {"extends": "native", "stands_for": "circle"}]
    changes += [{"extends": "native", "firmware_of": "native"}, {"extends": "esp32s3", "idf": {"defaults": ["x"]}}, {}]
    found += [toml_text({**bare, **change}).encode() for change in changes]
    flash = {"size": 1, "partitions": "x"}
    found.append(toml_text({**good, "flash": flash}).encode())
    overlays = [{"firmware": {"cflags_also": value}} for value in (1, ["-O2"])]
    found += [toml_text({"name": "board", "extends": "native", **one}).encode() for one in overlays]
    return [*found, b"x", b"\xff", b"x = " + b"[" * 2000, b"x = " + b"1" * 5000]


def _read_board(data: bytes, folder: Path) -> None:
    from tvhil.boards import load_board

    if not (folder / "native.toml").exists():
        _lay_out_boards(folder)
    file = folder / "board.toml"
    file.write_bytes(data)
    load_board(file)


def _lay_out_boards(folder: Path) -> None:
    """What a board file may name, and names of which each is refused."""
    from tvhil.boards import load_board
    from tvhil.boards.board import boards_dir

    broken, place = folder / "broken.toml", folder / "folder.toml"
    broken.write_bytes(b"x")
    place.mkdir()
    (folder / "circle.toml").write_text(toml_text({"name": "circle", "extends": "native", "stands_for": "board"}))
    for path in boards_dir().glob("*.toml"):
        (folder / path.name).write_bytes(path.read_bytes())
    for name in ("nativ", folder / "none.toml", broken, place):
        with contextlib.suppress(TvhilError):
            load_board(name)
            raise AssertionError("it is no board file")
    assert load_board("native").name == "native"


def _pool_seeds() -> list[bytes]:
    pools: list[list[dict[str, Any]]] = [
        [{"board": "native", "instances": 3}, {"board": "esp32s3", "port": "/dev/ttyACM0", "name": "a"}],
        [{"board": "esp32s3", "port": port} for port in ("socket://lab:4000", "rfc2217://lab:4001")],
    ]
    return [toml_text({"board": pool}).encode() for pool in pools]


def _pool_odd() -> list[bytes]:
    entries: list[dict[str, Any]] = [
        {}, {"board": "esp32s3"}, {"board": "none"}, {"board": "native", "instances": 65},
        {"board": "native", "nothing": 1}, {"board": "native", "ports": "x"}, {"board": "native", "instances": True},
        {"board": "native", "port": "x", "instances": 2},
    ]  # fmt: skip
    twice = {"board": "esp32s3", "port": "x"}
    pools: list[Any] = [*([one] for one in entries), [twice, twice], [], 1, [1]]
    return [toml_text({"board": pool}).encode() for pool in pools] + [b"x = 1", b"x", b"\xff", b"x = " + b"1" * 5000]


def _read_pool(data: bytes, folder: Path) -> None:
    from tvhil.rack.pool import read_pool

    file = folder / "pool.toml"
    for name in ("none.toml", "none.yaml"):
        with contextlib.suppress(InputError, MissingToolError):
            read_pool(folder / name)
            raise AssertionError("there is no such file")
    file.write_bytes(data)
    slots = read_pool(file)
    assert slots and len({slot.name for slot in slots}) == len(slots)


_PARTITIONS = """# Name, Type, SubType, Offset, Size, Flags
nvs, data, nvs, 0x9000, 24K
factory, app, factory, 0x10000, 1M

model, data, 0x40, 0x110000, 0x10000, readonly:encrypted
"""


def _partition_table(text: str) -> bytes:
    from tvhil.boards.partitions import partition_image, read_partitions

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "p.csv"
        file.write_text(text)
        return partition_image(read_partitions(file))


def _partition_seeds() -> list[bytes]:
    return [_PARTITIONS.encode(), _partition_table(_PARTITIONS)]


def _partition_odd() -> list[bytes]:
    changes = [
        ("nvs, data", "n\0s, data"),
        ("nvs, data", ", data"), ("nvs, data", "x" * 17 + ", data"), ("24K", "24K,,x"), ("app, f", "apple, f"),
        ("readonly", "writable"), ("0x40", "x"), ("0x40", "0x100"), ("0x10000, 1M", "0x11000, 1M"), ("24K", "0"),
        ("1M", "0x123"), ("model", "nvs"), ("0x110000", "0x100000"), ("1M", "8192M"),
    ]  # fmt: skip
    many = "".join(f"p{i}, data, 0x40, {0x10000 + 0x1000 * i:#x}, 4K\n" for i in range(96))
    image = bytearray(_partition_table(_PARTITIONS))
    image[40] ^= 1
    odd = [b"\xff", many.encode(), bytes(image), bytes(image[:64]), b"\xaa\x50"]
    return [*odd, *(_PARTITIONS.replace(old, new).encode() for old, new in changes)]


def _read_partitions(data: bytes, folder: Path) -> None:
    from tvhil.boards.partitions import parse_partition_image, partition_image, read_partitions

    if data[:2] == b"\xaa\x50":
        parse_partition_image(data)
        return
    file = folder / "partitions.csv"
    file.write_bytes(data)
    partitions = read_partitions(file)
    assert parse_partition_image(partition_image(partitions)) == partitions
    assert all(one.end <= other.offset for one, other in itertools.pairwise(partitions))


FILE_READERS = {
    "archives": Reader(("datasets/archives.py",), _read_archive, _archive_seeds, _archive_odd, _repair_tar),
    "journal": Reader(("evaluation/journal.py",), _read_journal, _journal_seeds, _journal_odd, _repair_rows),
    "board_files": Reader(("boards/board.py",), _read_board, _board_seeds, _board_odd, tree=TOML),
    "pools": Reader(("rack/pool.py",), _read_pool, _pool_seeds, _pool_odd, tree=TOML),
    "partitions": Reader(("boards/partitions.py",), _read_partitions, _partition_seeds, _partition_odd),
}
