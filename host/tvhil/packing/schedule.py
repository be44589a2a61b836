# SPDX-License-Identifier: Apache-2.0
"""How a model's encoder is cut into operators: what a memory plan starts from.

A schedule changes when and where each value is computed, never the value: linear operators may be cut into output
channels and rows, LayerNorm into rows, attention into heads, and each piece computes what the whole one would.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from tvhil.packing.format import BLOCK_TOKENS, align


@dataclass(frozen=True)
class Schedule:
    """The cuts of every encoder block; the default is one operator a layer.

    Attributes:
        heads_split: attention head by head. A head's queries are computed into the columns of the output that its
            result replaces; they need head dimensions that are multiples of 16.
        keys_in_output: head by head, keys and values lie in the columns of the output that later heads fill, while
            there are such columns; else in tensors of their own.
        attention_groups: groups of tokens for whose queries, keys and values the normalized tokens are computed one
            after the other, for each head again where heads are split. Each group reads the weights again.
        mlp_passes: groups of tokens that go through the whole MLP one after the other. Each pass reads its weights.
        fc1_chunks: groups of fc1's output channels, within a pass.
        fc1_groups: groups of tokens for which a chunk of fc1 is computed one after the other, within a pass. Their
            normalized tokens are computed again for each chunk, and each group reads the chunk's weights again.
    """

    heads_split: bool = False
    keys_in_output: bool = True
    attention_groups: int = 1
    mlp_passes: int = 1
    fc1_chunks: int = 1
    fc1_groups: int = 1

    def operators(self, depth: int, heads: int) -> int:
        """The most operators that a model may have: fewer where it has not enough tokens for the groups."""
        groups, pieces = self.attention_groups, self.fc1_chunks * self.fc1_groups
        attention = heads * (3 * groups + 1) if self.heads_split else 3 * groups + 1
        norms = groups * (heads if self.heads_split and groups > 1 else 1)
        norms2 = pieces if self.fc1_groups > 1 else 1
        ends = 5  # patch embedding, pooling, LayerNorm, two heads
        return ends + depth * (norms + attention + 1 + self.mlp_passes * (norms2 + pieces + 1))

    def describe(self) -> str:
        """In words, for people."""
        parts = ["attention head by head" if self.heads_split else "attention of all heads"]
        if self.heads_split and not self.keys_in_output:
            parts[0] += " with keys and values apart"
        if self.attention_groups > 1:
            parts[0] += f" in {self.attention_groups} groups"
        passes = f"MLP in {self.mlp_passes} passes" if self.mlp_passes > 1 else "MLP in one pass"
        if self.fc1_chunks > 1 or self.fc1_groups > 1:
            passes += f", fc1 in {self.fc1_chunks} x {self.fc1_groups}"
        return "; ".join([*parts, passes])


def token_groups(first_row: int, rows: int, groups: int) -> list[tuple[int, int]]:
    """Cut rows into (first row, rows), at multiples of 16 as evenly as possible; fewer where there are fewer blocks."""
    blocks = align(rows, BLOCK_TOKENS) // BLOCK_TOKENS
    groups = min(groups, blocks)
    bounds = [BLOCK_TOKENS * (blocks * g // groups) for g in range(groups)] + [rows]
    return [(first_row + a, b - a) for a, b in pairwise(bounds)]


def channel_chunks(channels: int, chunks: int) -> list[tuple[int, int]]:
    """Cut output channels into (first, count), at multiples of 16 as evenly as possible."""
    tiles = -(-channels // 16)
    chunks = min(chunks, tiles)
    bounds = [16 * (tiles * c // chunks) for c in range(chunks)] + [channels]
    return [(a, b - a) for a, b in pairwise(bounds)]
