# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: the C targets of device/fuzz/, and the readers of the package. The tests replay corpora and a fixed
set of mutations; tools/fuzz.py searches for as long as it is told."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import random
import re
import struct
import subprocess
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import strategies as st
from link_boards import environment
from model_files import reseal, sections, small_file
from PIL import Image

from tvhil.errors import TvhilError
from tvhil.packing.format import SECTION
from tvhil.runtime import device_dir

# --- C ---------------------------------------------------------------------------------------------------------

C_TARGETS = {"model": 16384, "framing": 4096, "server": 1024}  # with the most bytes of an input
# What reads bytes that anybody may have written.
C_PARSERS = (
    *("runtime/load.c", "runtime/validate.c", "runtime/validate_matrix.c", "runtime/validate_order.c"),
    "runtime/plan.c",
    *("app/framing.c", "app/server.c", "app/regions.c", "app/model.c", "app/run.c", "app/info.c"),
)
_SHARED = (
    *("runtime/*.c", "kernels/portable/*.c", "kernels/pie/buffer_sizes.c", "app/*.c", "fuzz/model_mutator.c"),
    *("tests/link_board.c", "tests/model_builder.c", "tests/small_model.c", "tests/piece_model.c", "tests/reference.c"),
)
SANITIZE = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def corpus(target: str) -> Path:
    """The inputs of a C target that are kept in the tree."""
    return device_dir() / "fuzz" / "corpus" / target


def build_c(program: str, compiler: str, flags: Iterable[str], extra: Iterable[str] = ()) -> Path:
    """Compile `device/fuzz/<program>.c` (and `extra` files of device/) once for each state of the sources."""
    device = device_dir()
    patterns = (*_SHARED, f"fuzz/{program}.c", *extra)
    sources = sorted(path for pattern in patterns for path in device.glob(pattern))
    headers = sorted(p for folder in ("include", "runtime", "kernels", "app", "tests", "fuzz")
                     for p in (device / folder).rglob("*.h"))  # fmt: skip
    command = [compiler, "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-g", "-Wall", "-Wextra", "-Werror", *flags]
    command += [f"-I{device / folder}" for folder in ("include", ".", "tests")]
    digest = hashlib.sha256(" ".join([*command, *map(str, sources)]).encode())
    for path in [*sources, *headers]:
        digest.update(path.read_bytes())
    folder = device.parent / "build" / "fuzz" / f"{program}-{digest.hexdigest()[:16]}"
    output = folder / program
    if not output.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = folder / f"{program}.{os.getpid()}"  # in this folder: gcov's notes and counts lie beside the program
        done = subprocess.run(
            [*command, *map(str, sources), "-lm", "-o", str(made)],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr)
        made.replace(output)
    return output


def replay(target: str, compiler: str, inputs: Iterable[Path], flags: Iterable[str] = SANITIZE) -> int:
    """Run inputs (files, folders) through a C target built by any compiler; how many there were.

    Raises:
        RuntimeError: with what the sanitizer or the target says of the last one.
    """
    program = build_c(f"fuzz_{target}", compiler, flags, ["fuzz/replay.c"])
    command = [str(program), *map(str, inputs)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{target}: exit {done.returncode}: {done.stderr[-4000:]}")
    return int(done.stdout)


def line_coverage(compiler: str, inputs: dict[str, list[Path]]) -> dict[str, tuple[int, int]]:
    """Lines of each C parser that the inputs of all targets together execute, and lines that there are. Needs gcc."""
    lines: dict[str, dict[int, bool]] = {name: {} for name in C_PARSERS}
    for target, files in inputs.items():
        flags = ("-O0", "--coverage", "-fprofile-update=single")
        folder = build_c(f"fuzz_{target}", compiler, flags, ["fuzz/replay.c"]).parent
        for counts in folder.rglob("*.gcda"):
            counts.unlink()
        replay(target, compiler, files, flags)
        for counts in sorted(folder.rglob("*.gcda")):
            command = ["gcov", "--json-format", "--stdout", str(counts)]
            done = subprocess.run(command, cwd=folder, capture_output=True, check=True)
            for text in done.stdout.splitlines():
                for file in json.loads(text)["files"]:
                    name = "/".join(Path(file["file"]).parts[-2:])
                    for line in file["lines"] if name in lines else []:
                        known = lines[name].get(line["line_number"], False)
                        lines[name][line["line_number"]] = known or line["count"] > 0
    return {name: (sum(hit.values()), len(hit)) for name, hit in lines.items()}


def mutated_models(compiler: str, count: int, seed: int) -> list[bytes]:
    """Model files mutated by device/fuzz/model_mutator.c, always the same for the same seed."""
    program = build_c("mutate_models", compiler, SANITIZE)
    command = [str(program), str(count), str(seed)]
    raw = subprocess.run(command, capture_output=True, env=environment(), timeout=600, check=True).stdout
    files, at = [], 0
    while at < len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        files.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return files


def server_inputs(count: int, seed: int) -> list[bytes]:
    """Drawn inputs of the server's target (device/fuzz/fuzz_server.c): awkward offsets, lengths, regions, orders."""
    rng = random.Random(seed)
    numbers = (0, 1, 4, 15, 16, 63, 64, 1023, 1024, 1032, 1033, 4095, 4096, 8191, 8192, 8193)
    numbers += (0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF)

    def number() -> int:
        return rng.choice(numbers) if rng.random() < 0.6 else rng.randrange(3000)

    def step() -> bytes:
        control = rng.choice((0, 0, 0, 0, 16, 16, 32, 32, 8, 40, 2, 1, 64))
        kind = rng.choice((5, 6, 7, *range(1, 13), *range(16)))
        payload = struct.pack("<BBHII", rng.randrange(7), 0, rng.choice((0, rng.randrange(16))), number(), number())
        payload = payload[: rng.randrange(13)] if control & 16 else payload + rng.randbytes(rng.randrange(40))
        if control == 64:
            payload = struct.pack("<I", rng.randrange(4) if rng.random() < 0.5 else rng.getrandbits(32))
        return bytes((control, kind, len(payload))) + payload

    boards = (3, 7, 11, 15, 131, 1, 2, 0)
    return [
        bytes((rng.choice(boards), rng.choice((0, 0, 0, 4, 8, 16, 32, 2)))) + b"".join(step() for _ in range(24))
        for _ in range(count)
    ]


def resign(file: bytes) -> bytes:
    """Put the right SHA-256 into a mutated file, which C cannot; its CRCs stay as right or wrong as they were."""
    out = bytearray(file)
    if len(out) >= 64:
        right = zlib.crc32(out[:60]) == struct.unpack_from("<I", out, 60)[0]
        out[16:48] = hashlib.sha256(out[64:]).digest()
        if right:
            struct.pack_into("<I", out, 60, zlib.crc32(out[:60]))
    return bytes(out)


# --- Python ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A reader of the package: it takes any bytes, or refuses them as a `TvhilError`; anything else is a finding.

    Attributes:
        module: what its line coverage is measured of.
        seeds: complete files to begin from.
        read: uses the bytes, given a folder to put files into.
        repair: makes checksums right again, so that mutations get past them.
    """

    module: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], object]
    repair: Callable[[bytes], bytes] | None = None

    def offer(self, data: bytes, folder: Path) -> bool:
        """Whether the bytes were taken."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)  # numpy's silent overflows
            try:
                self.read(data, folder)
            except TvhilError as error:
                assert str(error).strip(), "a refusal without a word"
                assert "\n" not in str(error)
                return False
        return True


def _edits(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    out = bytearray(data)
    for kind, place, content in edits:
        at = place % (len(out) + 1)
        if kind == 0:
            out[at : at + len(content)] = content
        elif kind == 1:
            out[at:at] = content
        elif kind == 2:
            del out[at : at + max(len(content), 1)]
        elif kind == 3:
            del out[at:]
        else:  # a piece of the file, somewhere else
            piece = out[at : at + 8 * len(content)]
            to = (place // 7) % (len(out) + 1)
            out[to : to + (len(piece) if kind == 4 else 0)] = piece
    return bytes(out)


_WORDS = (b"\0", b"\xff" * 4, b"\0\0\0\x80", b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'"', b"../", b"\n")


@functools.cache
def _seeds(name: str) -> tuple[bytes, ...]:
    return tuple(READERS[name].seeds())


def inputs(name: str) -> st.SearchStrategy[bytes]:
    """Mutations of a reader's seeds, and now and then bytes from nowhere."""
    reader = READERS[name]
    content = st.one_of(st.binary(max_size=6), st.sampled_from(_WORDS))
    edits = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1 << 16), content), max_size=4)
    changed = st.builds(_edits, st.sampled_from(_seeds(name)), edits)
    if reader.repair is not None:
        changed = st.one_of(changed.map(reader.repair), changed.map(reader.repair), changed)
    return st.one_of(changed, changed, changed, st.binary(max_size=100))


def _repair_model(data: bytes) -> bytes:
    if len(data) < 64:
        return data
    data = data[: len(data) // 16 * 16]
    out = bytearray(data)
    struct.pack_into("<I", out, 8, len(out))
    try:
        return reseal(out)
    except ValueError:  # the table reaches behind the end
        return bytes(out)


def _read_model(data: bytes, folder: Path) -> None:
    from tvhil.commands.common import preprocessing_of
    from tvhil.commands.inspect import describe
    from tvhil.packing import read_model
    from tvhil.prediction import Predictor

    model = read_model(data)
    describe(model, folder)
    preprocessing_of(model)
    assert len(model.classes) == model.info.classes
    if sum(tensor.rows * tensor.columns for tensor in model.tensors) < 1 << 16:
        Predictor(model).run(np.zeros((1, *model.info.input_shape), np.uint8))


def with_meta(meta: bytes) -> bytes:
    """A model file whose META is these bytes."""
    file = small_file(1, embed_dim=6, heads=1, depth=0, image_size=(8, 8))
    at = sections(file)["META"][0]
    out = bytearray(file[:at] + meta + bytes(-len(meta) % 16))
    struct.pack_into("<I", out, 8, len(out))
    np.frombuffer(out, SECTION, 7, 64)[6]["bytes"] = len(meta)
    return reseal(out)


def _meta_seeds() -> list[bytes]:
    from tvhil.packing import read_model

    size, _, channels = read_model(with_meta(b"{}")).info.input_shape
    preprocessing = {"image_size": size, "mean": [0.5] * channels, "std": [0.5] * channels}
    preprocessing |= {"mode": "RGB" if channels == 3 else "L", "crop_pct": 0.9, "interpolation": "bicubic"}
    return [b"{}", json.dumps({"classes": ["cat", "dog"], "preprocessing": preprocessing, "name": "m"}).encode()]


def _frame_seeds() -> list[bytes]:
    from tvhil.link import framing, messages

    layouts = (messages.HELLO_ANSWER, messages.INFO, messages.MODEL_INFO, messages.MEMORY, messages.RUN_ANSWER)
    return [framing.encode(framing.Frame(i + 129, 1, 16 * i, bytes(x.size))) for i, x in enumerate(layouts)]


def _repair_frames(data: bytes) -> bytes:
    """The pieces between zeros as packets of their own, with the right CRC."""
    from tvhil.link import framing

    pieces = [framing.cobs_decode(piece) or piece for piece in data.split(b"\0") if len(piece) > 8]
    return b"".join(
        framing.encode(framing.Frame(p[0], p[1], p[2] | p[3] << 8, p[4:-4])) for p in pieces if len(p) > 8
    )  # fmt: skip


def _read_frames(data: bytes, folder: Path) -> None:
    from tvhil.link import framing, messages

    parsers = (messages.HelloAnswer, messages.BoardInfo, messages.ModelInfo, messages.MemoryReport, messages.RunResult,
               messages.Fault)  # fmt: skip
    decoder = framing.Decoder()
    half = len(data) // 2
    for frame in [*decoder.feed(data[:half]), *decoder.feed(data[half:]), *decoder.feed(b"\0")]:
        for parser in parsers if frame is not None else ():
            try:
                str(parser.unpack(frame.payload))
            except ValueError:  # what a client takes for a malformed answer
                continue


def _checkpoint_seeds() -> list[bytes]:
    import torch
    from safetensors.torch import save

    from tvhil.models import model_config
    from tvhil.models.checkpoints import CONFIG_KEY

    state = {"head.weight": torch.zeros(2, 3), "pos_embed": torch.ones(1, 5, 3), "gamma_1": torch.zeros(0)}
    found = [save(state, {CONFIG_KEY: model_config("deit_tiny").to_json()}), save(state)]
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        stream = io.BytesIO()
        torch.save({"model": state, "epoch": 3}, stream, **options)
        found.append(stream.getvalue())
    return found


def _read_checkpoint(data: bytes, folder: Path) -> None:
    from tvhil.models.checkpoints import read_checkpoint

    file = folder / "checkpoint"
    file.write_bytes(data)
    read_checkpoint(file)


def _picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(108, dtype=np.uint8).reshape(6, 6, 3)).save(stream, kind)
    return stream.getvalue()


def _archive_seeds() -> list[bytes]:
    members = {"a/1.png": _picture("PNG"), "b/2.jpg": _picture("JPEG"), "c.txt": b"text\n"}
    zipped, found = io.BytesIO(), []
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    found.append(zipped.getvalue())
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=mode) as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        found.append(stream.getvalue())
    return found


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

    file = folder / "archive"
    file.write_bytes(data)
    tree = open_tree(file)
    for name in tree.names:
        assert not name.startswith("/") and ".." not in name.split("/")
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


def _read_journal(data: bytes, folder: Path) -> None:
    from tvhil.evaluation.journal import Journal, read_journal

    file = folder / "journal.jsonl"
    file.write_bytes(data)
    header, rows = read_journal(file)
    found = list(rows)
    with Journal.resume(file, {k: v for k, v in header.items() if k != "schema"}) as journal:
        assert list(journal.rows()) == found


def _board_seeds() -> list[bytes]:
    from tvhil.boards.board import boards_dir

    files = sorted(boards_dir().glob("*.toml"))
    return [re.sub(rb'(?m)^name = ".*"', b'name = "board"', path.read_bytes()) for path in files]


def _read_board(data: bytes, folder: Path) -> None:
    from tvhil.boards import load_board
    from tvhil.boards.board import boards_dir

    for path in boards_dir().glob("*.toml"):  # for firmware_of
        (folder / path.name).write_bytes(path.read_bytes())
    file = folder / "board.toml"
    file.write_bytes(data)
    load_board(file)


_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def _signature_seeds() -> list[bytes]:
    from tvhil.packing import signing

    public = signing.public_pem(_KEY.public_key())
    return [signing.sign(b"model", _KEY), public, public + public]


def _read_signature(data: bytes, folder: Path) -> None:
    from tvhil.packing import signing

    if data[:5] == b"-----":
        file = folder / "key.pub"
        file.write_bytes(data)
        signing.read_trusted_keys([file])
        return
    # Ed25519's equation has no second solution that a changed digit could find.
    signing.verify(b"model", data, [_KEY.public_key()], "model")
    assert json.loads(data) == json.loads(signing.sign(b"model", _KEY))


READERS: dict[str, Reader] = {
    "read_model": Reader(
        "packing/reader.py", lambda: [small_file(1, embed_dim=6, heads=1, patch_size=1, image_size=(1, 2), channels=1,
                                                 mlp_dim=5, classes=2, depth=depth) for depth in (0, 1)],
        _read_model, _repair_model,
    ),
    "model_meta": Reader("packing/reader.py", _meta_seeds, lambda data, folder: _read_model(with_meta(data), folder)),
    "frames": Reader("link/framing.py", _frame_seeds, _read_frames, _repair_frames),
    "checkpoints": Reader("models/checkpoints.py", _checkpoint_seeds, _read_checkpoint),
    "archives": Reader("datasets/archives.py", _archive_seeds, _read_archive, _repair_tar),
    "journal": Reader("evaluation/journal.py", _journal_seeds, _read_journal, _repair_rows),
    "board_files": Reader("boards/board.py", _board_seeds, _read_board),
    "signatures": Reader("packing/signing.py", _signature_seeds, _read_signature),
}  # fmt: skip
