# SPDX-License-Identifier: Apache-2.0
"""Model files for tests: drawn models, a planner that needs no compiler, and files made hostile on purpose."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tvhil.packing import pack_vit, read_model
from tvhil.packing.format import HEADER, SECTION, Plan, ScaleMode, align
from tvhil.packing.random_vit import random_vit
from tvhil.packing.trits import Codec


def trivial_planner(draft: bytes) -> Plan:
    """Every tensor in a place of its own, one scratch for all operators."""
    model = read_model(draft, check_plan=False)
    offsets, at = [], 0
    for tensor in model.tensors:
        offsets.append(at)
        at = align(at + tensor.bytes)
    return Plan(at + 65536, 65536, tuple(offsets), ((at, 65536),) * len(model.operators))


def small_file(seed: int = 0, codec: Codec = Codec.BASE3, **options: Any) -> bytes:
    """A drawn model, packed."""
    return pack_vit(random_vit(seed, **options), codec, trivial_planner)


def reseal(file: bytes | bytearray) -> bytes:
    """Recompute every checksum and the signature, so that only the validation of the content is left to object."""
    out = bytearray(file)
    header = np.frombuffer(out, HEADER, 1)
    count = int(header[0]["section_count"])
    table = np.frombuffer(out, SECTION, count, HEADER.itemsize)
    for entry in table:
        at, size = int(entry["offset"]), int(entry["bytes"])
        entry["crc"] = zlib.crc32(out[at : at + size])
    table_end = HEADER.itemsize + count * SECTION.itemsize
    header[0]["table_crc"] = zlib.crc32(out[HEADER.itemsize : table_end])
    header[0]["signature"] = np.void(hashlib.sha256(out[HEADER.itemsize :]).digest())
    header[0]["header_crc"] = zlib.crc32(out[:60])
    return bytes(out)


def sections(file: bytes) -> dict[str, tuple[int, int]]:
    """Offset and size of each section."""
    count = int(np.frombuffer(file, HEADER, 1)[0]["section_count"])
    return {e["tag"].decode(): (int(e["offset"]), int(e["bytes"])) for e in np.frombuffer(file, SECTION, count, 64)}


@st.composite
def drawn_options(draw: st.DrawFn) -> dict[str, Any]:
    """Configurations for `random_vit`: width, depth, heads, patch, tokens, pooling, scale mode."""
    heads = draw(st.integers(1, 4))
    prefix = draw(st.integers(0, 2))
    patch = draw(st.sampled_from([1, 2, 3, 4, 7]))
    return {
        "embed_dim": heads * draw(st.sampled_from([3, 8, 16, 20])),
        "depth": draw(st.integers(0, 2)),
        "heads": heads,
        "patch_size": patch,
        "image_size": (patch * draw(st.integers(1, 5)), patch * draw(st.integers(1, 5))),
        "channels": draw(st.sampled_from([1, 3])),
        "mlp_dim": draw(st.sampled_from([5, 32, 80])),
        "classes": draw(st.integers(1, 20)),
        "prefix_tokens": prefix,
        "mean_pool": prefix == 0 or draw(st.booleans()),
        "scale_mode": draw(st.sampled_from(list(ScaleMode))),
    }
