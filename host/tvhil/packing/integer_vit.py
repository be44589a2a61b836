# SPDX-License-Identifier: Apache-2.0
"""A fully ternary ViT as integers: what quantization produces and the writer packs.

Shapes: `T` tokens, `D` embedding width, `H` heads, `h` head dimension, `F` MLP width, `N` outputs, `K` inputs.
The arithmetic is device/CONTRACT.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tvhil.packing.format import ScaleMode

IntArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class IntegerLinear:
    """A ternary matrix with its channel records.

    Attributes:
        trits: int8 `[N][K]`, -1, 0 or 1.
        gain: `[N]`, 1 … 127.
        shift: `[N]`, 0 … 31.
        bias: `[N]`, below 2^19 in magnitude, the rounding half included.
    """

    trits: IntArray
    gain: IntArray
    shift: IntArray
    bias: IntArray

    def channel_records(self) -> npt.NDArray[np.uint32]:
        """The packed records `bias << 12 | gain << 5 | shift`."""
        bias, gain, shift = (np.asarray(a, np.int64) for a in (self.bias, self.gain, self.shift))
        return ((bias << 12 | gain << 5 | shift) & 0xFFFFFFFF).astype(np.uint32)


@dataclass(frozen=True)
class IntegerLayerNorm:
    """Trits of gamma and beta, and the constants of CONTRACT.md, section 5."""

    gamma: IntArray
    beta: IntArray
    c: int
    beta_unit: int
    epsilon: int
    shift: int


@dataclass(frozen=True)
class IntegerAttention:
    """Constants of CONTRACT.md, section 6."""

    score_shift: int
    exp_multiplier: int
    out_multiplier: int
    out_shift: int


@dataclass(frozen=True)
class IntegerBlock:
    """One encoder block; `table` has 256 entries, int8 values (int16 for per-token scales), entry 0 is 0."""

    norm1: IntegerLayerNorm
    q: IntegerLinear
    k: IntegerLinear
    v: IntegerLinear
    q_limit: int
    attention: IntegerAttention
    proj: IntegerLinear
    norm2: IntegerLayerNorm
    fc1: IntegerLinear
    table: IntArray
    fc2: IntegerLinear


@dataclass(frozen=True)
class IntegerViT:
    """A whole model.

    Attributes:
        position: int8 `[patches][D]`, to be multiplied by `position_multiplier` (1 … 255).
        prefix: int16 `[prefix tokens][D]`, position embedding included.
        mean_pool: classify the mean of the patch tokens instead of the prefix tokens.
        heads_out: one classifier, or two for a distilled model, whose logits are added.
        logit_scale: the real value of one unit of a logit.
        parameters: of the PyTorch model.
        meta: goes into the file's META section as JSON.
    """

    name: str
    image_size: tuple[int, int]
    channels: int
    patch_size: int
    heads: int
    scale_mode: ScaleMode
    patch_embed: IntegerLinear
    position: IntArray
    position_multiplier: int
    prefix: IntArray
    blocks: tuple[IntegerBlock, ...]
    mean_pool: bool
    norm: IntegerLayerNorm
    heads_out: tuple[IntegerLinear, ...]
    logit_scale: float
    parameters: int
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def patches(self) -> int:
        """Number of patches."""
        return (self.image_size[0] // self.patch_size) * (self.image_size[1] // self.patch_size)

    @property
    def tokens(self) -> int:
        """Prefix tokens and patches."""
        return len(self.prefix) + self.patches

    @property
    def embed_dim(self) -> int:
        """Width of the residual stream."""
        return int(self.patch_embed.trits.shape[0])

    @property
    def mlp_dim(self) -> int:
        """Width of the hidden layer of the MLPs."""
        return int(self.blocks[0].fc1.trits.shape[0]) if self.blocks else 0

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.heads_out[0].trits.shape[0])
