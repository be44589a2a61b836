# SPDX-License-Identifier: Apache-2.0
"""Fuzzed readers: model files, their metadata, matrices and signatures, and what boards answer."""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzz_targets
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from fuzz_reader import JSON, Reader
from hypothesis import strategies as st
from model_files import reseal, sections, small_file

from tvhil.errors import InputError
from tvhil.packing.format import HEADER, MODEL, OPERATOR, PLAN, SECTION, SECTION_TAGS, TENSOR
from tvhil.packing.trits import Codec, decode_matrix, encode_matrix
from tvhil.runtime import find_compiler

_TINY: dict[str, Any] = {
    "embed_dim": 6,
    "heads": 1,
    "patch_size": 1,
    "image_size": (1, 2),
    "channels": 1,
    "mlp_dim": 5,
    "classes": 2,
}


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

    file = folder / "m.tvit"
    file.write_bytes(data)
    model = read_model(file)
    describe(model, file)
    preprocessing_of(model)
    assert len(model.classes) == model.info.classes
    assert all(model.instructions(op) >= 3 * op["n"] for op in model.operators if op.params.get("codec") == Codec.GAPS)
    if sum(tensor.rows * tensor.columns for tensor in model.tensors) < 1 << 16:
        Predictor(model).run(np.zeros((1, *model.info.input_shape), np.uint8))


def _field_changes(file: bytes, tag: str, record: np.dtype[np.void]) -> Iterator[bytes]:
    """The file with one number of one record of a section changed, all of them in turn."""
    at, size = sections(file)[tag] if tag else (HEADER.itemsize, len(SECTION_TAGS) * SECTION.itemsize)
    for name in record.names or ():
        place = np.frombuffer(file, record, size // record.itemsize, at)[name]
        for index in np.ndindex(place.shape) if place.dtype.kind == "u" else ():
            most = int(np.iinfo(place.dtype).max)
            for value in {0, 1, most, min(int(place[index]) + 1, most), int(place[index]) // 2} - {int(place[index])}:
                out = bytearray(file)
                np.frombuffer(out, record, len(place), at)[name][index] = value
                yield bytes(out)


def _model_odd() -> list[bytes]:
    whole, smaller = (small_file(1, depth=depth, **_TINY) for depth in (1, 0))
    found = [b"", whole[:20], whole[:-16]]
    for tag, record in (("MODL", MODEL), ("OPER", OPERATOR), ("PLAN", PLAN), ("TENS", TENSOR)):
        found += [reseal(file) for file in _field_changes(whole if tag == "OPER" else smaller, tag, record)]
    found += [_seal_table(file) for file in _field_changes(smaller, "", SECTION)]
    for name, value in (("magic", 0), ("version", 9), ("header_bytes", 9), ("section_count", 2), ("section_count", 9)):
        out = bytearray(smaller)
        np.frombuffer(out, HEADER, 1)[name] = value
        found += [bytes(out), fuzz_targets.resign(_seal_table(out))]
    unsigned, long_name, bad_name = bytearray(smaller), bytearray(smaller), bytearray(smaller)
    unsigned[20] ^= 1
    np.frombuffer(long_name, MODEL, 1, sections(smaller)["MODL"][0])["name"] = b"x" * 64
    bad_name[sections(smaller)["NAME"][0]] = 1
    unread = reseal(with_meta(b"[]"))
    return [*found, _seal_table(unsigned), reseal(long_name), reseal(bad_name), unread]


def _seal_table(file: bytes | bytearray) -> bytes:
    """The right CRCs in the header, whatever the sections' are."""
    out = bytearray(file)
    header = np.frombuffer(out, HEADER, 1)
    header["table_crc"] = zlib.crc32(out[HEADER.itemsize : HEADER.itemsize + len(SECTION_TAGS) * SECTION.itemsize])
    header["header_crc"] = zlib.crc32(out[:60])
    return bytes(out)


def _mutated_models() -> st.SearchStrategy[bytes]:
    """Mutations that know the records of a model file (device/fuzz/model_mutator.c), of models of all kinds."""
    program = fuzz_targets.build_c("mutate_models", find_compiler(), ("-O1",))

    def mutated(seed: int, which: int) -> bytes:
        return fuzz_targets.resign(fuzz_targets.run_mutator(program, fuzz_targets.SEED_MODELS, seed)[which])

    return st.builds(mutated, st.integers(0, (1 << 32) - 1), st.integers(0, fuzz_targets.SEED_MODELS - 1))


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


def _meta_odd() -> list[bytes]:
    good = json.loads(_meta_seeds()[1])["preprocessing"]
    channels = len(good["mean"])
    odd: list[tuple[str, Any]] = [
        ("image_size", 9), ("image_size", 0), ("crop_pct", 2), ("interpolation", "x"), ("mode", "x"),
        ("crop_mode", "x"), ("mean", []), ("mean", [float("inf")] * channels), ("std", [0] * channels), ("x", 1),
    ]  # fmt: skip
    values: list[Any] = [1, *(good | {key: value} for key, value in odd)]
    return [b"1", b"[" * 9999, b"\xff", *(json.dumps({"preprocessing": one}).encode() for one in values)]


_MATRIX = struct.Struct("<BHH")  # codec, n, k in front of a matrix


def _matrix_seeds() -> list[bytes]:
    rng, found = np.random.default_rng(0), []
    for codec in Codec:
        for n, k, zeros in ((1, 1, 0.0), (3, 7, 0.5), (17, 33, 0.8), (16, 300, 0.99), (2, 40, 1.0)):
            trits = rng.integers(-1, 2, (n, k)).astype(np.int8) * (rng.random((n, k)) >= zeros)
            found.append(_MATRIX.pack(codec, n, k) + encode_matrix(trits.astype(np.int8), codec))
    return found


def _matrix_odd() -> list[bytes]:
    return [
        _MATRIX.pack(Codec.TWO_BIT, 1, 4) + b"\2\0\0\0",
        _MATRIX.pack(Codec.BASE3, 1, 4) + b"\xf3\0\0\0",
        _MATRIX.pack(Codec.GAPS, 1, 4096) + bytes(64),
        _MATRIX.pack(Codec.GAPS, 33, 4) + bytes(8),
    ]


def _read_matrix(data: bytes, folder: Path) -> None:
    if len(data) < _MATRIX.size:
        return
    codec, n, k = _MATRIX.unpack_from(data)
    codec, n, k = Codec(codec % 3), 1 + (n - 1) % 64, 1 + (k - 1) % 5000
    stored = data[_MATRIX.size :]
    try:
        matrix = decode_matrix(stored, n, k, codec)
    except ValueError as error:
        raise InputError(str(error)) from None
    assert matrix.trits.shape == (n, k) and matrix.bytes <= len(stored)
    assert (matrix.terms >= np.count_nonzero(matrix.trits, axis=1)).all()
    again = encode_matrix(matrix.trits, codec)
    assert (decode_matrix(again, n, k, codec).trits == matrix.trits).all()
    assert codec is Codec.GAPS or again == stored[: matrix.bytes]  # of gaps there are longer ways to say the same


def _frame_seeds() -> list[bytes]:
    from tvhil.link import framing, messages

    layouts = (messages.HELLO_ANSWER, messages.INFO, messages.MODEL_INFO, messages.MEMORY, messages.RUN_ANSWER)
    payloads = [bytes(layout.size) for layout in layouts]
    payloads += [_hello(), bytes(range(1, 256)) * 4]  # of a good board; blocks of COBS that are full
    return [framing.encode(framing.Frame(i + 129, 1, 16 * i, payload)) for i, payload in enumerate(payloads)]


def _frame_odd() -> list[bytes]:
    (good,) = _frame_seeds()[:1]
    return [b"\0\5\1\0", b"\0\1\1\0", good[:-2] + b"\1\0", bytes([0]) + b"\1" * 5000 + bytes([0]), good[:-1]]


def _hello() -> bytes:
    from tvhil.link import messages

    return messages.HELLO_ANSWER.pack(messages.MAGIC, 1, 2, 0, 0, messages.MIN_PAYLOAD, 0, *[0])


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
        if frame is not None:
            assert framing.decode(framing.encode(frame)[1:-1]) == frame
        for parser in parsers if frame is not None else ():
            try:
                str(parser.unpack(frame.payload))
            except ValueError:  # what a client takes for a malformed answer
                continue


_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
_PASSWORD = BestAvailableEncryption(b"secret")
_ELLIPTIC = ec.derive_private_key(7, ec.SECP256R1())


def _private_pem(key: Any, encryption: Any = None) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))


def _signature_seeds() -> list[bytes]:
    from tvhil.packing import signing

    public = signing.public_pem(_KEY.public_key())
    return [signing.sign(b"model", _KEY), public, public + public, _private_pem(_KEY)]


def _signature_odd() -> list[bytes]:
    from tvhil.packing import signing

    good = json.loads(signing.sign(b"model", _KEY))
    elliptic = _ELLIPTIC.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    forged = [good | {"signature": "0" * 128}, good | {"key": "0" * 64}, good | {"sha256": "x"}, good | {"schema": ""}]
    pems = [elliptic, _private_pem(_ELLIPTIC), _private_pem(_KEY, _PASSWORD), b"-----BEGIN PUBLIC KEY-----\nx\n"]
    pems.append(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    return [signing.sign(b"other", _KEY), signing.sign(b"model", _OTHER), *(json.dumps(one).encode() for one in forged),
            *pems, b"[" * 9999, b" " * (1 << 17)]  # fmt: skip


def _read_signature(data: bytes, folder: Path) -> None:
    from tvhil.packing import signing

    model, trusted = folder / "m.tvit", folder / "trusted.pub"
    trusted.write_bytes(signing.public_pem(_KEY.public_key()))
    signing.signature_path(model).unlink(missing_ok=True)
    if data[:5] == b"-----":
        file = folder / "key"
        file.write_bytes(data)
        if b"PRIVATE" in data:
            for mode, taken in ((0o644, False), (0o600, True)):
                file.chmod(mode)
                try:
                    signing.read_private_key(file)
                    assert taken
                except signing.SignatureError:
                    if taken:
                        raise
            with contextlib.suppress(signing.SignatureError):
                signing.read_trusted_keys([file])
                raise AssertionError("a private key is no trusted one")
            return
        signing.read_trusted_keys([file])
        return
    with contextlib.suppress(signing.SignatureError):
        signing.require_signature(model, b"model", [trusted])
        raise AssertionError("there is no signature")
    signing.signature_path(model).write_bytes(data)
    # Ed25519's equation has no second solution that a changed digit could find.
    signing.require_signature(model, b"model", [trusted])
    assert json.loads(data) == json.loads(signing.sign(b"model", _KEY))


MODEL_READERS = {
    "read_model": Reader(
        ("packing/reader.py", "packing/trits.py"),
        _read_model,
        lambda: [small_file(1, codec, depth=depth, **_TINY) for depth in (0, 1) for codec in Codec],
        _model_odd,
        repair=_repair_model,
        drawn=_mutated_models,
    ),
    "model_meta": Reader(
        ("packing/reader.py", "models/config.py"),
        lambda data, folder: _read_model(with_meta(data), folder),
        _meta_seeds,
        _meta_odd,
        tree=JSON,
    ),
    "matrices": Reader(("packing/trits.py",), _read_matrix, _matrix_seeds, _matrix_odd),
    "signatures": Reader(("packing/signing.py",), _read_signature, _signature_seeds, _signature_odd, tree=JSON),
    "frames": Reader(
        ("link/framing.py", "link/messages.py"), _read_frames, _frame_seeds, _frame_odd, repair=_repair_frames
    ),
}
