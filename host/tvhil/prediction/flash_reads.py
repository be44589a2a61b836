# SPDX-License-Identifier: Apache-2.0
"""Which lines of a model file the cores read from flash, because they are not in the data cache any more.

The order of the reads is that of the kernels (tile by tile, both cores at once); the cache is that of the chip, set
associative with the least recently used line replaced. What stays in the cache from one operator to a later one, or
from one inference to the next, costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import numpy as np

from tvhil.packing.format import BLOCK_TOKENS, HEADER, SECTION, OpKind
from tvhil.packing.reader import Operator, TvitModel
from tvhil.packing.trits import GAPS_READ_AHEAD, TILE_CHANNELS, Codec, tile_bytes
from tvhil.prediction.pie_work import Patches, tiles_of_part

Span = tuple[int, int]  # first byte in the file, and the one behind the last


@dataclass(frozen=True)
class CacheShape:
    """A set-associative cache; all in bytes but `ways`."""

    bytes: int
    line_bytes: int
    ways: int


class Cache:
    """Lines of a file in a cache, empty at first."""

    def __init__(self, shape: CacheShape) -> None:
        self._line_bytes, self._ways = shape.line_bytes, shape.ways
        self._sets: list[list[int]] = [[] for _ in range(shape.bytes // shape.line_bytes // shape.ways)]

    def read(self, span: Span) -> int:
        """Read some bytes: how many lines come from flash."""
        missed = 0
        for line in range(span[0] // self._line_bytes, (span[1] - 1) // self._line_bytes + 1):
            lines = self._sets[line % len(self._sets)]
            if line in lines:
                lines.remove(line)
            else:
                missed += 1
                if len(lines) == self._ways:
                    del lines[0]
            lines.append(line)
        return missed


def data_offset(model: TvitModel) -> int:
    """Where the section DATA lies in the file, which begins at a line of flash."""
    entries = np.frombuffer(model.file, SECTION, len(model.sections), HEADER.itemsize)
    return next(int(entry["offset"]) for entry in entries if entry["tag"] == b"DATA")


class Reader:
    """What each operator of a model reads from the file, for some number of parts."""

    def __init__(self, model: TvitModel, parts: int) -> None:
        self.model, self.parts, self.data = model, parts, data_offset(model)
        self._tiles: dict[tuple[int, int, int], list[list[Span]]] = {}

    def tiles(self, op: Operator) -> list[list[Span]]:
        """What is read for each tile of an operator's matrix."""
        key = op["trits_at"], op["n"], op["k"]
        if key not in self._tiles:
            self._tiles[key] = list(self._matrix(op))
        channels = self.data + op["channels_at"]
        bounds = [min(TILE_CHANNELS * t, op["n"]) for t in range(len(self._tiles[key]) + 1)]
        records = [(channels + 4 * a, channels + 4 * b) for a, b in pairwise(bounds)]
        return [[*spans, record] for spans, record in zip(self._tiles[key], records, strict=True)]

    def _matrix(self, op: Operator) -> Iterable[list[Span]]:
        n, k, start = op["n"], op["k"], self.data + op["trits_at"]
        tiles = -(-n // TILE_CHANNELS)
        if Codec(op["codec"]) is Codec.GAPS:
            instructions = self.model.row_instructions(op)
            table = np.frombuffer(self.model.data(op["trits_at"], 4 * tiles), "<u4")
            for t, at in enumerate(table):
                rows = instructions[TILE_CHANNELS * t : TILE_CHANNELS * (t + 1)]
                size = 4 * len(rows) + int(((rows + 1) // 2).sum()) + GAPS_READ_AHEAD // 2
                yield [(start + 4 * t, start + 4 * t + 4), (start + int(at), start + int(at) + size)]
            return
        step = tile_bytes(Codec(op["codec"]), TILE_CHANNELS, k)
        for t in range(tiles):
            size = tile_bytes(Codec(op["codec"]), min(TILE_CHANNELS, n - TILE_CHANNELS * t), k)
            yield [(start + step * t, start + step * t + size)]

    def parts_of_tiles(self, op: Operator) -> list[list[Span]]:
        """The same in the order of each part."""
        tiles = self.tiles(op)
        bounds = [tiles_of_part(op["n"], part, self.parts) for part in range(self.parts)]
        return [[span for tile in tiles[first:end] for span in tile] for first, end in bounds]

    def phases(self, op: Operator, phases: int) -> list[list[list[Span]]]:
        """What the parts read in each phase of an operator."""
        nothing: list[list[Span]] = [[] for _ in range(self.parts)]
        if op.kind is OpKind.LINEAR:
            found = self.parts_of_tiles(op)
            if op.has_table:
                table = self.data + op["table_at"]
                found = [[(table, table + 256), *spans] for spans in found]
            return [found]
        if op.kind is OpKind.PATCH_EMBED:
            return self._patch_embed(op)
        if op.kind is OpKind.LAYERNORM:
            at = self.data + op["gamma_beta_at"]
            columns = self.model.tensors[op.inputs[0]].columns
            return [[[(at, at + (columns + 1) // 2)] for _ in range(self.parts)]]
        return [nothing for _ in range(phases)]

    def _patch_embed(self, op: Operator) -> list[list[list[Span]]]:
        shape, n = patches_of(self.model), op["n"]
        position, found = self.data + op["position_at"], list[list[list[Span]]]()
        weights = self.parts_of_tiles(op)
        together = shape.together(n)
        for done in range(0, shape.blocks, together):
            end = min(done + together, shape.blocks)
            rows = [max(0, min(BLOCK_TOKENS * b - shape.prefix_tokens, shape.patches)) for b in (done, end)]
            positions: list[list[Span]] = []
            for part in range(self.parts):
                first, last = (min(TILE_CHANNELS * t, n) for t in tiles_of_part(n, part, self.parts))
                spans = [(position + r * n + first, position + r * n + last) for r in range(*rows)]
                positions.append(spans if last > first else [])
            found += [[[] for _ in range(self.parts)], positions, weights]
        return found


def patches_of(model: TvitModel) -> Patches:
    """The shapes of a model's patch embedding."""
    info = model.info
    return Patches(info.image_height, info.image_width, info.image_channels, info.patch_size, info.prefix_tokens)


def flash_lines(model: TvitModel, shape: CacheShape, phases: Sequence[int], parts: int) -> list[list[tuple[int, ...]]]:
    """Lines that each part reads from flash, for each phase of each operator, in an inference that is not the first.

    Args:
        model: a model with static scales.
        shape: of the data cache, which the cores share.
        phases: of each operator.
        parts: cores.
    """
    reader, cache = Reader(model, parts), Cache(shape)
    reads = [reader.phases(op, count) for op, count in zip(model.operators, phases, strict=True)]
    # The inference before has left its last reads in the cache.
    for op_reads in reads[-_operators_within(reads, 2 * shape.bytes) :]:
        _read(cache, op_reads)
    return [_read(cache, op_reads) for op_reads in reads]


def _operators_within(reads: Sequence[list[list[list[Span]]]], size: int) -> int:
    """How many operators at the end read so many bytes, or all of them."""
    read = 0
    for count, op_reads in enumerate(reversed(reads), 1):
        read += sum(b - a for phase in op_reads for part in phase for a, b in part)
        if read >= size:
            return count
    return len(reads)


def _read(cache: Cache, phases: list[list[list[Span]]]) -> list[tuple[int, ...]]:
    found = []
    for phase in phases:
        missed = [0] * len(phase)
        for spans in zip_longest(*phase):
            for part, span in enumerate(spans):
                if span is not None:
                    missed[part] += cache.read(span)
        found.append(tuple(missed))
    return found
