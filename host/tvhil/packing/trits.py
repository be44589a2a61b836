# SPDX-License-Identifier: Apache-2.0
"""Trit codecs: matrices of {-1, 0, +1} as tiles of 16 output channels (device/FORMAT.md, "Trits")."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

TILE_CHANNELS = 16

Int8Array = npt.NDArray[np.int8]


class Codec(IntEnum):
    """How trits become bytes; the value is what the file holds."""

    TWO_BIT = 0
    BASE3 = 1

    @property
    def trits_per_byte(self) -> int:
        """Trits in one byte: 4 or 5."""
        return 4 if self is Codec.TWO_BIT else 5

    @classmethod
    def from_name(cls, name: str) -> Codec:
        """Look up `2bit` or `base3`, the names the command line uses."""
        return {"2bit": cls.TWO_BIT, "base3": cls.BASE3}[name]

    @property
    def label(self) -> str:
        """The name the command line uses."""
        return "2bit" if self is Codec.TWO_BIT else "base3"


_BASE3_WEIGHTS = np.array([1, 3, 9, 27, 81], np.uint8)
_BASE3_TRITS = (np.arange(243)[:, None] // _BASE3_WEIGHTS.astype(int) % 3 - 1).astype(np.int8)
_TWO_BIT_TRITS = np.array([0, 1, 0, -1], np.int8)


def tile_bytes(codec: Codec, channels: int, k: int) -> int:
    """Bytes of one tile of `channels` rows of `k` trits, padded to a multiple of 4."""
    per_byte = codec.trits_per_byte
    return ((channels * k + per_byte - 1) // per_byte + 3) // 4 * 4


def matrix_bytes(codec: Codec, n: int, k: int) -> int:
    """Bytes of an `[n][k]` matrix."""
    full, rest = divmod(n, TILE_CHANNELS)
    return full * tile_bytes(codec, TILE_CHANNELS, k) + (tile_bytes(codec, rest, k) if rest else 0)


def encode_matrix(trits: Int8Array, codec: Codec) -> bytes:
    """Encode `[N][K]` trits; the inverse of `decode_matrix`."""
    if trits.ndim != 2 or np.abs(trits).max(initial=0) > 1:
        raise ValueError("a ternary matrix is two-dimensional and holds -1, 0 and 1 only")
    n, k = trits.shape
    out = bytearray()
    for start in range(0, n, TILE_CHANNELS):
        tile = trits[start : start + TILE_CHANNELS].reshape(-1)
        per_byte = codec.trits_per_byte
        groups = np.pad(tile, (0, -len(tile) % per_byte)).reshape(-1, per_byte)
        if codec is Codec.TWO_BIT:
            packed = ((groups & 3).astype(np.uint8) << np.array([0, 2, 4, 6], np.uint8)).sum(1, dtype=np.uint8)
        else:
            packed = ((groups + 1).astype(np.uint8) * _BASE3_WEIGHTS).sum(1, dtype=np.uint8)
        out += packed.tobytes().ljust(tile_bytes(codec, len(tile) // k, k), b"\0")
    return bytes(out)


def decode_matrix(data: bytes | memoryview, n: int, k: int, codec: Codec) -> Int8Array:
    """Decode `[n][k]` trits.

    Raises:
        ValueError: too few bytes, a malformed code, or a position after the last trit that is not 0.
    """
    if len(data) < matrix_bytes(codec, n, k):
        raise ValueError(f"{matrix_bytes(codec, n, k)} bytes of trits expected, {len(data)} there")
    raw = np.frombuffer(data, np.uint8)
    out = np.empty((n, k), np.int8)
    at = 0
    for start in range(0, n, TILE_CHANNELS):
        channels = min(TILE_CHANNELS, n - start)
        used = (channels * k + codec.trits_per_byte - 1) // codec.trits_per_byte
        size = tile_bytes(codec, channels, k)
        codes, padding = raw[at : at + used], raw[at + used : at + size]
        if codec is Codec.TWO_BIT:
            if ((codes >> 1) & ~codes & 0x55).any():
                raise ValueError("a 2-bit code is 2")
            trits = _TWO_BIT_TRITS[(codes[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3].reshape(-1)
        else:
            if (codes > 242).any():
                raise ValueError("a base-3 byte is above 242")
            trits = _BASE3_TRITS[codes].reshape(-1)
        if trits[channels * k :].any() or padding.any():
            raise ValueError("the padding of a tile is not zero")
        out[start : start + channels] = trits[: channels * k].reshape(channels, k)
        at += size
    return out
