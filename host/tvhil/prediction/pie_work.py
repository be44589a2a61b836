# SPDX-License-Identifier: Apache-2.0
"""Amounts of work of the PIE kernels, as their loops count them (device/kernels/pie).

An operator is a list of phases, at whose ends the cores wait for each other; a phase has the amounts of each core's
part, divided as the kernels divide it: tiles of 16 channels, blocks of 16 tokens, lines of patches. Bytes that are read
from flash are not here but in `flash_reads`. Everything is a function of shapes, and of the number of instructions of
each row of a ternary matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvhil.packing.format import BLOCK_TOKENS
from tvhil.packing.trits import TILE_CHANNELS, Codec

Features = dict[str, float]
Phase = tuple[Features, ...]  # of each part
IntArray = npt.NDArray[np.integer[Any]]

# workspace.h: longer rows are multiplied instead (lanes.c), as many at a time as fit the memory of the instructions.
STREAM_MAX_K = 1600
STREAM_MAX_INSTRUCTIONS = 1664
LANE_WEIGHT_BYTES = 6880
# stream.S and epilogues.h: bytes of the loop around a row's instructions, by kind of output; it has a buffer of 256.
LOOP_BYTES = {"i8": 32, "i8_127": 31, "table": 108, "i16_add": 96, "i16_set": 82}
LOOP_BUFFER_BYTES = 256
LAYERNORM_SUM_CHANNELS = 512  # layernorm.c: summed at a time
SMALLEST_EXP_MULTIPLIER = 15361  # attention.c: below it scores are clamped first
NARROW_QUERIES = 8  # attention.c: blocks of no more queries go a shorter way


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def blocks_of(rows: int) -> int:
    """Blocks of 16 tokens."""
    return _ceil_div(rows, BLOCK_TOKENS)


def total(parts: Iterable[Features]) -> Features:
    """Sum of amounts."""
    out: Features = {}
    for features in parts:
        for name, amount in features.items():
            out[name] = out.get(name, 0) + amount
    return out


def tiles_of_part(n: int, part: int, parts: int) -> tuple[int, int]:
    """First tile and the one behind the last of a part."""
    tiles = _ceil_div(n, TILE_CHANNELS)
    return tiles * part // parts, tiles * (part + 1) // parts


# --- rows of ternary matrices --------------------------------------------------------------------------------


def row_instructions(trits: npt.NDArray[np.int8]) -> IntArray:
    """Instructions that stream_trits.S makes of each row: its non-zero trits, and bridges over long runs of zeros."""
    n = trits.shape[0]
    counts = np.count_nonzero(trits, axis=1).astype(np.int64)
    rows, columns = np.nonzero(trits)
    gaps = np.diff(columns, prepend=-1)
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    gaps[first] = columns[first] + 1
    bridges = np.bincount(rows, (gaps - 1) // 10, n).astype(np.int64)
    return np.where(counts == 0, 4, np.where(counts < 3, counts + 2, counts) + 2 * bridges)


@dataclass(frozen=True)
class Rows:
    """What is done with a ternary matrix.

    Attributes:
        k: inputs.
        codec: of the trits.
        instructions: of each output channel, `[n]`.
        blocks: of tokens; a fraction where padding is not to count.
        output: 'i8', 'i8_127' (clamped at 127), 'table', 'i16_add' or 'i16_set'.
        as_row: one token, whose outputs become a row.
        streamed: all rows become instructions (True) or none (False); None: as the kernel decides.
    """

    k: int
    codec: Codec
    instructions: IntArray
    blocks: float
    output: str
    as_row: bool = False
    streamed: bool | None = None

    @property
    def n(self) -> int:
        """Output channels."""
        return len(self.instructions)

    def streams(self, first_tile: int, end_tile: int) -> npt.NDArray[np.bool_]:
        """Whether each tile's rows become instructions."""
        if self.streamed is not None or self.codec is not Codec.GAPS:
            return np.full(end_tile - first_tile, self.k <= STREAM_MAX_K if self.streamed is None else self.streamed)
        longest = [
            self.instructions[t * TILE_CHANNELS : (t + 1) * TILE_CHANNELS].max() for t in range(first_tile, end_tile)
        ]
        return np.array(longest, np.int64) <= STREAM_MAX_INSTRUCTIONS


def rows_features(rows: Rows, first_tile: int, end_tile: int) -> Features:
    """tvit_rows_pie of some tiles (tvit_linear_pie's loop around it included where the output is a row)."""
    if first_tile == end_tile:
        return {}
    streams = rows.streams(first_tile, end_tile)
    found: list[Features] = []
    if streams.any():
        found.append(_stream_features(rows, first_tile + np.flatnonzero(streams)))
    if not streams.all():
        found.append(_lane_features(rows, first_tile + np.flatnonzero(~streams)))
    if rows.output == "table":
        found.append({"tables": 1})
    if rows.as_row:
        channels = min(rows.n, end_tile * TILE_CHANNELS) - first_tile * TILE_CHANNELS
        found.append({"row_tiles": end_tile - first_tile, "row_channels": channels})
    return total(found)


def _counts(rows: Rows, tiles: IntArray) -> IntArray:
    at = (tiles[:, None] * TILE_CHANNELS + np.arange(TILE_CHANNELS)).reshape(-1)
    counts: IntArray = rows.instructions[at[at < rows.n]]
    return counts


def _stream_features(rows: Rows, tiles: IntArray) -> Features:
    counts = _counts(rows, tiles)
    gaps = rows.codec is Codec.GAPS
    group = 32 if gaps else 16  # instructions that are generated at a time
    features: Features = {
        "streamed": 1,
        "tiles": len(tiles),
        f"rows_{rows.codec.label}": len(counts),
        "groups_gaps" if gaps else "groups_trits": int((-(-counts // group)).sum()),
        "instructions": rows.blocks * float(counts.sum()),
        f"blocks_{rows.output}": rows.blocks * len(counts),
        "unbuffered": max(rows.blocks - 1, 0)
        * int(np.count_nonzero(4 * counts + LOOP_BYTES[rows.output] > LOOP_BUFFER_BYTES)),
    }
    if not gaps:
        features[f"bytes_{rows.codec.label}"] = len(counts) * rows.k / rows.codec.trits_per_byte
    return features


def _lane_features(rows: Rows, tiles: IntArray) -> Features:
    counts = _counts(rows, tiles)
    row_bytes = _ceil_div(rows.k, 32) * 32
    long = row_bytes > LANE_WEIGHT_BYTES
    decoded = rows.blocks if long else 1  # times
    batch = 1 if long else LANE_WEIGHT_BYTES // row_bytes
    batches = len(tiles) * _ceil_div(min(TILE_CHANNELS, len(counts)), batch)
    output = "i8" if rows.output == "i8_127" else rows.output
    features: Features = {
        "lane_tiles": len(tiles),
        f"lane_rows_{rows.codec.label}": decoded * len(counts),
        "lane_vectors": decoded * len(counts) * row_bytes / BLOCK_TOKENS,
        "lane_batches": rows.blocks * batches,
        f"lane_blocks_{output}": rows.blocks * len(counts),
        "lane_steps": rows.blocks * len(counts) * row_bytes / 32,
    }
    if rows.codec is Codec.GAPS:
        features["lane_instructions"] = decoded * float(counts.sum())
    else:
        features[f"lane_bytes_{rows.codec.label}"] = decoded * len(counts) * rows.k / rows.codec.trits_per_byte
    return features


def linear(rows: Rows, parts: int) -> list[Phase]:
    """linear.c: the parts have tiles."""
    return [tuple({"operators": 1, **rows_features(rows, *tiles_of_part(rows.n, p, parts))} for p in range(parts))]


# --- the other operators ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patches:
    """Shapes of a patch embedding.

    Attributes:
        height, width, channels: of the image.
        patch_size: of a patch.
        prefix_tokens: in front of the patches.
        by_vectors: gather vectors of pixels, of positions, whatever the shapes; None: as the kernel decides.
    """

    height: int
    width: int
    channels: int
    patch_size: int
    prefix_tokens: int
    by_vectors: bool | None = None

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.height // self.patch_size) * (self.width // self.patch_size)

    @property
    def blocks(self) -> int:
        """Blocks of tokens."""
        return blocks_of(self.prefix_tokens + self.patches)

    def pixels_by_vectors(self) -> bool:
        """Whether pixels are gathered by transposing vectors."""
        run, line = self.patch_size * self.channels, self.width * self.channels
        return (run | line) % 16 == 0 if self.by_vectors is None else self.by_vectors

    def positions_by_vectors(self, n: int) -> bool:
        """Whether the position embedding of n columns is."""
        return n % 16 == 0 if self.by_vectors is None else self.by_vectors

    def together(self, n: int) -> int:
        """Blocks whose patches are gathered at a time (tvit_patch_embed_buffer_size_pie)."""
        image, half = self.height * self.width * self.channels, (self.blocks + 1) // 2
        channel = n * BLOCK_TOKENS
        stream = 2 * self.blocks * channel
        mlp, used = stream + 5 * half * channel, max(image, stream)
        block = self.patch_size**2 * self.channels * BLOCK_TOKENS
        return max(1, min(half, max(0, mlp - used) // block))


def patch_embed(shape: Patches, weights: Rows, parts: int) -> list[Phase]:
    """patch_embed.c: for some blocks at a time lines of patches, then the positions of some tiles, then their rows.

    The parts do not wait for each other between the last two, but both read from flash first, then compute.
    """
    n, blocks, together = weights.n, shape.blocks, shape.together(weights.n)
    phases: list[Phase] = []
    for done in range(0, blocks, together):
        count = min(together, blocks - done)
        phases.append(tuple(_gather(shape, count, part, parts) for part in range(parts)))
        group = Rows(weights.k, weights.codec, weights.instructions, count, "i16_add", False, weights.streamed)
        phases.append(tuple(_place_positions(shape, n, count, part, parts) for part in range(parts)))
        phases.append(tuple(rows_features(group, *tiles_of_part(n, part, parts)) for part in range(parts)))
    ends: list[Features] = []
    for part in range(parts):
        first, end = tiles_of_part(n, part, parts)
        channels = min(end * TILE_CHANNELS, n) - min(first * TILE_CHANNELS, n)
        ends.append({"patch_embeds": 1, "prefix_values": shape.prefix_tokens * channels})
    phases[-1] = tuple(total([a, b]) for a, b in zip(phases[-1], ends, strict=True))
    return phases


def _gather(shape: Patches, blocks: int, part: int, parts: int) -> Features:
    size, run = shape.patch_size, shape.patch_size * shape.channels
    lines = size * (part + 1) // parts - size * part // parts
    features: Features = {"gathered_blocks": blocks, "gathered_lines": blocks * lines}
    if shape.pixels_by_vectors():
        return {**features, "gathered_vectors": blocks * lines * run}
    return {**features, "gathered_bytes": blocks * lines * run * BLOCK_TOKENS}


def _place_positions(shape: Patches, n: int, blocks: int, part: int, parts: int) -> Features:
    first, end = tiles_of_part(n, part, parts)
    channels = min(end * TILE_CHANNELS, n) - min(first * TILE_CHANNELS, n)
    by_vectors = shape.positions_by_vectors(n)
    return {"position_blocks": blocks, "position_vectors" if by_vectors else "position_values": blocks * channels}


def layernorm(n: int, rows: int, parts: int, shift: int = 15) -> list[Phase]:
    """layernorm.c: as many blocks for each part; of one left over its channels."""
    blocks = blocks_of(rows)
    each, shared = divmod(blocks, parts)
    found = []
    for part in range(parts):
        mine = [(part * each + i, n) for i in range(each)]
        if shared:
            mine.append((blocks - 1, n * (part + 1) // parts - n * part // parts))
        features: Features = {"operators": 1, "pointers": n}
        for block, channels in mine:
            tokens = min(BLOCK_TOKENS, rows - block * BLOCK_TOKENS)
            work: Features = {
                "blocks": 1,
                "sums": n,
                "more_sums": _ceil_div(n, LAYERNORM_SUM_CHANNELS) - 1,
            }
            if shift >= 8 and channels >= 3:
                work |= {"tokens": tokens, "channels": channels}
            else:
                work |= {"plain_tokens": tokens, "plain_values": tokens * channels}
            features = total([features, work])
        found.append(features)
    return [tuple(found)]


def attention(
    tokens: int,
    heads: int,
    head_dim: int,
    parts: int,
    strided: bool = False,
    exp_multiplier: int = 32767,
    padded: bool | None = None,
) -> list[Phase]:
    """attention.c: the parts take turns with the blocks of all heads; with those of each, where keys are padded.

    Args:
        tokens: queries and keys.
        heads: of this operator.
        head_dim: of each.
        parts: cores.
        strided: keys of a head do not lie one behind the other.
        exp_multiplier: of the operator.
        padded: count as if head_dim were a multiple of 16 (False); None: as it is.
    """
    blocks = blocks_of(tokens)
    padded = head_dim % 16 != 0 if padded is None else padded
    padded_dim = _ceil_div(head_dim, 16) * 16
    tail = tokens - 16 * (blocks - 1)
    pairs = _ceil_div(tail, 2)
    turn: Features = {"turned_blocks": 1, "turned_vectors": padded_dim / 16}
    turn |= {"padded_blocks": 1, "padded_dims": padded_dim} if padded else {"turned_dims": head_dim}
    widths = {width: _block(width, tokens, head_dim, padded_dim, pairs) for width in ("wide", "narrow")}
    for width, work in widths.items():
        if exp_multiplier < SMALLEST_EXP_MULTIPLIER:
            work[f"{width}_clamped"] = 2 * _ceil_div(tokens, 2)
        if strided and not padded:
            work[f"{width}_runs"] = blocks - 1

    def turning(count: int) -> Features:
        return {name: count * amount for name, amount in turn.items()}

    def attending(items: range) -> Features:
        narrow = sum(1 for i in items if i % blocks == blocks - 1) if tail <= NARROW_QUERIES else 0
        counts = {"wide": len(items) - narrow, "narrow": narrow}
        return total({name: counts[w] * amount for name, amount in widths[w].items()} for w in counts if counts[w])

    starts: list[Features] = [{"operators": 1, **({"powers": 1} if part + 1 == parts else {})} for part in range(parts)]
    rounds = [blocks] * heads if padded else [heads * blocks]
    phases: list[Phase] = []
    for items in rounds:
        mine = [range(part, items, parts) for part in range(parts)]
        phases += [tuple(turning(len(i)) for i in mine), tuple(attending(i) for i in mine)]
    phases[0] = tuple(total([a, b]) for a, b in zip(phases[0], starts, strict=True))
    return phases


def _block(width: str, tokens: int, head_dim: int, padded_dim: int, pairs: int) -> Features:
    """A block of queries of one head."""
    rows = 2 * _ceil_div(tokens, 2)
    scores = {"keys64": tokens} if padded_dim == 64 else {"keys": tokens, "key_vectors": tokens * padded_dim / 16}
    work: Features = {
        "blocks": 1,
        "dims": head_dim,
        "query_dims": padded_dim,
        **scores,
        "rows": rows,
        "dim_blocks": head_dim * (blocks_of(tokens) - 1),
        "dim_pairs": head_dim * pairs,
    }
    return {f"{width}_{name}": amount for name, amount in work.items()}


def mean_pool(n: int, first_row: int, rows: int, parts: int) -> list[Phase]:
    """mean_pool.c: the parts have channels."""
    blocks = blocks_of(first_row % BLOCK_TOKENS + rows)
    shares = [n * (part + 1) // parts - n * part // parts for part in range(parts)]
    if blocks == 1:
        return [tuple({"operators": 1, "short_channels": channels} for channels in shares)]
    return [tuple({"operators": 1, "channels": c, "channel_blocks": c * blocks} for c in shares)]
