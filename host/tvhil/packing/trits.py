# SPDX-License-Identifier: Apache-2.0
"""Trit codecs: matrices of {-1, 0, +1} as tiles of 16 output channels (device/FORMAT.md, "Trits")."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

TILE_CHANNELS = 16

# Codec `gaps`: one nibble an instruction, three bits gap; the first gaps of a row are in its header.
GAPS_MOST_INPUTS = 4095
GAPS_READ_AHEAD = 32  # zero bytes behind the last tile
LONGEST_GAP = 7
LONGEST_HEADER_GAP = 31
FEWEST_INSTRUCTIONS = 3

Int8Array = npt.NDArray[np.int8]
IntArray = npt.NDArray[np.integer[Any]]


class Codec(IntEnum):
    """How trits become bytes; the value is what the file holds."""

    TWO_BIT = 0
    BASE3 = 1
    GAPS = 2

    @property
    def trits_per_byte(self) -> int:
        """Trits in one byte: 4 or 5; not of `gaps`, whose rows take as many bytes as they have non-zero trits."""
        return 4 if self is Codec.TWO_BIT else 5

    @classmethod
    def from_name(cls, name: str) -> Codec:
        """Look up `2bit`, `base3` or `gaps`, the names the command line uses."""
        return {codec.label: codec for codec in cls}[name]

    @property
    def label(self) -> str:
        """The name the command line uses."""
        return ("2bit", "base3", "gaps")[self]


@dataclass(frozen=True)
class Matrix:
    """A decoded matrix.

    Attributes:
        trits: int8 `[n][k]`.
        terms: `[n]`, the most products that an accumulator holds at once, in the order of the file: the non-zero trits,
            and one more in rows of `gaps` that add and subtract a vector behind their last trit.
        bytes: how many it was stored in.
    """

    trits: Int8Array
    terms: npt.NDArray[np.int64]
    bytes: int


_BASE3_WEIGHTS = np.array([1, 3, 9, 27, 81], np.uint8)
_BASE3_TRITS = (np.arange(243)[:, None] // _BASE3_WEIGHTS.astype(int) % 3 - 1).astype(np.int8)
_TWO_BIT_TRITS = np.array([0, 1, 0, -1], np.int8)


def tile_bytes(codec: Codec, channels: int, k: int) -> int:
    """Bytes of one tile of `channels` rows of `k` trits, padded to a multiple of 4; not of `gaps`."""
    per_byte = codec.trits_per_byte
    return ((channels * k + per_byte - 1) // per_byte + 3) // 4 * 4


def matrix_bytes(codec: Codec, n: int, k: int) -> int:
    """Bytes of an `[n][k]` matrix; not of `gaps`, where they depend on the trits (`decode_matrix` tells them)."""
    full, rest = divmod(n, TILE_CHANNELS)
    return full * tile_bytes(codec, TILE_CHANNELS, k) + (tile_bytes(codec, rest, k) if rest else 0)


def encode_matrix(trits: Int8Array, codec: Codec) -> bytes:
    """Encode `[N][K]` trits; the inverse of `decode_matrix`.

    Raises:
        ValueError: other values than trits, or more inputs than the codec can address.
    """
    if trits.ndim != 2 or np.abs(trits).max(initial=0) > 1:
        raise ValueError("a ternary matrix is two-dimensional and holds -1, 0 and 1 only")
    n, k = trits.shape
    if codec is Codec.GAPS:
        return _encode_gaps(trits)
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


def decode_matrix(data: bytes | memoryview, n: int, k: int, codec: Codec) -> Matrix:
    """Decode an `[n][k]` matrix from the start of some bytes.

    Raises:
        ValueError: too few bytes, a malformed code, or padding that is not 0.
    """
    if codec is Codec.GAPS:
        return _decode_gaps(np.frombuffer(data, np.uint8), n, k)
    size = matrix_bytes(codec, n, k)
    if len(data) < size:
        raise ValueError(f"{size} bytes of trits expected, {len(data)} there")
    raw = np.frombuffer(data, np.uint8, size)
    out = np.empty((n, k), np.int8)
    at = 0
    for start in range(0, n, TILE_CHANNELS):
        channels = min(TILE_CHANNELS, n - start)
        used = (channels * k + codec.trits_per_byte - 1) // codec.trits_per_byte
        tile = tile_bytes(codec, channels, k)
        codes, padding = raw[at : at + used], raw[at + used : at + tile]
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
        at += tile
    return Matrix(out, np.count_nonzero(out, axis=1).astype(np.int64), size)


# --- gaps ----------------------------------------------------------------------------------------------------
#
# A row is a list of instructions, each a position and a sign; one position may occur several times. Arrays over "all
# instructions" are the rows one behind the other, each row a slice that starts at `starts[row]`.


def _starts(counts: IntArray) -> IntArray:
    """Where each slice starts."""
    starts: IntArray = np.cumsum(counts) - counts
    return starts


def _within(counts: IntArray) -> IntArray:
    """0, 1, … in each slice."""
    return np.arange(int(counts.sum())) - np.repeat(_starts(counts), counts)


def _bridges(gaps: IntArray, counts: IntArray) -> tuple[IntArray, IntArray]:
    """Pairs of instructions in front of each non-zero trit: how many of them move on by 31, how many by 7."""
    starts = _starts(counts)
    wide, narrow = np.zeros_like(gaps), (gaps - 1) // LONGEST_GAP * (gaps > LONGEST_GAP)
    before = np.zeros(len(counts), gaps.dtype)  # instructions of each row so far
    for index in range(FEWEST_INSTRUCTIONS):
        rows = np.flatnonzero(counts > index)
        at = starts[rows] + index
        left, used = gaps[at], before[rows]
        for _ in range(2):
            step = (used < FEWEST_INSTRUCTIONS) & (left > LONGEST_HEADER_GAP)
            wide[at] += step
            left = left - LONGEST_HEADER_GAP * step
            used = used + 2 * step
        narrow[at] = np.where((used >= FEWEST_INSTRUCTIONS) & (left > LONGEST_GAP), (left - 1) // LONGEST_GAP, 0)
        before[rows] = used + 2 * narrow[at] + 1
    return wide, narrow


def _instructions(trits: Int8Array) -> tuple[IntArray, IntArray, IntArray]:
    """Positions and signs (1 = minus) of all instructions, and how many each row has."""
    n = len(trits)
    rows, columns = np.nonzero(trits)
    nonzeros = np.bincount(rows, minlength=n)
    first = _starts(nonzeros)[nonzeros > 0]
    gaps = np.diff(columns, prepend=0)
    gaps[first] = columns[first]
    wide, narrow = _bridges(gaps, nonzeros)
    counts = 1 + 2 * (wide + narrow)  # instructions of each trit, its bridges in front
    of_row = np.bincount(rows, counts, n).astype(np.int64)
    padding = np.where(of_row >= FEWEST_INSTRUCTIONS, 0, np.where(of_row == 0, 4, 2))  # pairs at the last position
    behind = _starts(of_row + padding) - _starts(of_row)  # padding of the rows in front
    ends = np.cumsum(counts) - 1 + behind[rows]  # where each trit's own instruction goes
    total = of_row + padding
    positions, signs = np.zeros(int(total.sum()), np.int64), np.zeros(int(total.sum()), np.uint8)
    positions[ends], signs[ends] = columns, trits[rows, columns] < 0
    bridged = np.flatnonzero(counts > 1)
    pairs = (wide + narrow)[bridged]
    trit, pair = np.repeat(bridged, pairs), _within(pairs)
    moved = LONGEST_HEADER_GAP * np.minimum(pair + 1, wide[trit]) + LONGEST_GAP * np.maximum(pair + 1 - wide[trit], 0)
    at = ends[trit] + 1 - counts[trit] + 2 * pair
    positions[at] = positions[at + 1] = columns[trit] - gaps[trit] + moved
    signs[at + 1] = 1
    row, index = np.repeat(np.arange(n), padding), _within(padding)
    at = _starts(total)[row] + of_row[row] + index
    last = np.zeros(n, np.int64)
    last[rows] = columns  # the last one stays
    # The first of a pair takes the row's last trit back, so that no accumulator holds more than the trits make.
    sign = np.zeros(n, np.uint8)
    sign[rows] = trits[rows, columns] < 0
    positions[at], signs[at] = last[row], (index + (of_row[row] > 0)) % 2 ^ sign[row]
    return positions, signs, total


def _layout(counts: IntArray) -> tuple[IntArray, IntArray, int]:
    """Where each row's header and its codes lie in the matrix, and the bytes of the matrix, read-ahead included."""
    n = len(counts)
    tiles = -(-n // TILE_CHANNELS)
    headers, codes = np.zeros(n, np.int64), np.zeros(n, np.int64)
    at = 4 * tiles
    for start in range(0, n, TILE_CHANNELS):
        sizes = (counts[start : start + TILE_CHANNELS] + 1) // 2
        headers[start : start + len(sizes)] = at + 4 * np.arange(len(sizes))
        codes[start : start + len(sizes)] = at + 4 * len(sizes) + _starts(sizes)
        at += (4 * len(sizes) + int(sizes.sum()) + 3) // 4 * 4
    return headers, codes, at + GAPS_READ_AHEAD


def _encode_gaps(trits: Int8Array) -> bytes:
    n, k = trits.shape
    if k > GAPS_MOST_INPUTS:
        raise ValueError(f"{k} inputs: codec gaps addresses at most {GAPS_MOST_INPUTS}")
    positions, signs, counts = _instructions(trits)
    headers, codes, size = _layout(counts)
    starts = _starts(counts)
    gaps = np.diff(positions, append=0)  # gaps[i] = p[i + 1] - p[i]; across rows it is not used
    index = _within(counts)
    ahead = np.roll(gaps, -2) * (index + FEWEST_INSTRUCTIONS < np.repeat(counts, counts))
    nibbles = np.zeros(2 * size, np.uint8)
    nibbles[2 * np.repeat(codes, counts) + index] = signs << 3 | ahead.astype(np.uint8)
    out = nibbles[0::2] | nibbles[1::2] << 4
    words = out.view("<u4")
    words[: -(-n // TILE_CHANNELS)] = headers[::TILE_CHANNELS]
    words[headers // 4] = counts | positions[starts] << 12 | gaps[starts] << 17 | gaps[starts + 1] << 22
    return out.tobytes()


def _decode_gaps(raw: npt.NDArray[np.uint8], n: int, k: int) -> Matrix:
    if k > GAPS_MOST_INPUTS:
        raise ValueError(f"{k} inputs: codec gaps addresses at most {GAPS_MOST_INPUTS}")
    tiles = -(-n // TILE_CHANNELS)
    headers, at = _gaps_headers(raw, n, tiles)
    counts = (headers & 0xFFF).astype(np.int64)
    if (headers >> 27).any() or (counts < FEWEST_INSTRUCTIONS).any():
        raise ValueError("a row's header is malformed")
    _, codes_at, size = _layout(counts)
    if size > len(raw):
        raise ValueError(f"{size} bytes of trits expected, {len(raw)} there")
    if (at != codes_at[::TILE_CHANNELS]).any():
        raise ValueError("a tile does not start where the one before ends")
    index, starts = _within(counts), _starts(counts)
    codes = raw[np.repeat(codes_at, counts) + index // 2] >> (4 * (index & 1)).astype(np.uint8) & 15
    odd = np.flatnonzero(counts & 1)
    used = np.zeros(size, bool)
    used[: 4 * tiles] = True
    used[np.repeat(codes_at, counts) + index // 2] = True
    for start in range(0, n, TILE_CHANNELS):
        used[codes_at[start] - 4 * min(TILE_CHANNELS, n - start) : codes_at[start]] = True
    if raw[:size][~used].any() or (raw[codes_at[odd] + counts[odd] // 2] >> 4).any():
        raise ValueError("the padding of a tile is not zero")
    gaps = np.zeros(len(codes) + 3, np.int64)
    gaps[3:] = codes & LONGEST_GAP
    if gaps[3:][index + FEWEST_INSTRUCTIONS >= np.repeat(counts, counts)].any():
        raise ValueError("a gap behind the last instruction of a row")
    for i, shift in enumerate((12, 17, 22)):
        gaps[starts + i] = headers >> shift & LONGEST_HEADER_GAP
    gaps = gaps[: len(codes)]
    positions = np.cumsum(gaps)
    positions -= np.repeat(positions[starts] - gaps[starts], counts)
    if (positions >= k).any():
        raise ValueError(f"an instruction for an input behind the last of {k}")
    signs = 1 - 2 * (codes >> 3).astype(np.int64)
    groups = np.flatnonzero((gaps > 0) | (index == 0))  # instructions on one position
    lengths = np.diff(groups, append=len(signs))
    sums = np.cumsum(signs)
    sums -= np.repeat(sums[groups] - signs[groups], lengths)
    values = sums[groups + lengths - 1]
    if (np.abs(values) > 1).any():
        raise ValueError("a trit outside -1 … 1")
    rows = np.repeat(np.arange(n), counts)
    trits = np.zeros((n, k), np.int8)
    trits[rows[groups], positions[groups]] = values
    nonzeros = np.cumsum(values != 0)
    first = np.searchsorted(groups, starts)
    nonzeros -= np.repeat(nonzeros[first] - (values[first] != 0), np.diff(first, append=len(groups)))
    held = np.abs(sums) + np.repeat(nonzeros - (values != 0), lengths)
    return Matrix(trits, np.maximum.reduceat(held, starts), size)


def gaps_instructions(data: bytes | memoryview, n: int) -> int:
    """Instructions of all rows of a well-formed matrix in codec `gaps`."""
    return int(gaps_row_instructions(data, n).sum())


def gaps_row_instructions(data: bytes | memoryview, n: int) -> npt.NDArray[np.int64]:
    """Instructions of each row of a well-formed matrix in codec `gaps`, `[n]`."""
    headers, _ = _gaps_headers(np.frombuffer(data, np.uint8), n, -(-n // TILE_CHANNELS))
    return (headers & 0xFFF).astype(np.int64)


def _gaps_headers(raw: npt.NDArray[np.uint8], n: int, tiles: int) -> tuple[npt.NDArray[np.uint32], IntArray]:
    """Every row's header, and where each tile's codes start."""
    if 4 * tiles > len(raw):
        raise ValueError(f"{4 * tiles} bytes of tile offsets expected, {len(raw)} there")
    tile_at = raw[: 4 * tiles].view("<u4").astype(np.int64)
    channels = np.full(tiles, TILE_CHANNELS)
    channels[-1] = n - TILE_CHANNELS * (tiles - 1)
    if (tile_at % 4).any() or (np.diff(tile_at) <= 0).any() or int((tile_at + 4 * channels).max()) > len(raw):
        raise ValueError("a tile outside the matrix or misaligned")
    at = np.repeat(tile_at // 4, channels) + _within(channels)
    return raw[: len(raw) // 4 * 4].view("<u4")[at], tile_at + 4 * channels
