# SPDX-License-Identifier: Apache-2.0
"""Seeded random models in integers, for tests, fuzzing and the calibration of cost models.

The constants are drawn so that activations fill their ranges (some values clamp, most do not): a mistake in any
operator shows in the logits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tvhil.packing.format import LANE_LIMIT, ScaleMode
from tvhil.packing.integer_vit import (
    IntegerAttention,
    IntegerBlock,
    IntegerLayerNorm,
    IntegerLinear,
    IntegerViT,
)


def _linear(rng: np.random.Generator, n: int, k: int, spread: float, per_token: bool, xmax: int = 127) -> IntegerLinear:
    """A random matrix whose outputs have about `spread` standard deviations of units for inputs of about 40."""
    trits = rng.choice(np.array([-1, 0, 1], np.int8), (n, k), p=[0.3, 0.4, 0.3])
    trits[rng.random(n) < 0.03] = 0
    nnz = np.count_nonzero(trits, axis=1)
    most = np.minimum(127, (LANE_LIMIT // 2) // np.maximum(nnz * xmax, 1))
    gain = rng.integers(1, np.maximum(most, 1) + 1)
    typical = gain * np.sqrt(np.maximum(nnz, 1)) * 40 / (16 if per_token else 1)
    shift = np.clip(np.round(np.log2(np.maximum(typical / spread, 1)) + rng.normal(0, 0.3, n)), 0, 31).astype(int)
    bias = np.round(rng.normal(0, spread, n) * 2.0**shift).astype(int) + np.where(
        shift > 0, 1 << np.maximum(shift - 1, 0), 0
    )
    limit = LANE_LIMIT - 1 - gain * xmax * nnz
    return IntegerLinear(trits, gain, shift, np.clip(bias, -limit, limit))


def _layernorm(rng: np.random.Generator, n: int, per_token: bool) -> IntegerLayerNorm:
    shift = 15
    spread = 6000 if per_token else 45
    if per_token:
        shift = 9
    c = round(spread * n * 2.0 ** (15 + shift) * rng.uniform(0.8, 1.2))
    return IntegerLayerNorm(
        gamma=rng.choice([-1, 0, 1], n, p=[0.1, 0.1, 0.8]),
        beta=rng.choice([-1, 0, 1], n),
        c=c,
        beta_unit=int(rng.integers(-20, 20)) * (spread << shift) // 45,
        epsilon=int(rng.integers(1, 1000)),
        shift=shift,
    )


def _table(rng: np.random.Generator, per_token: bool) -> npt.NDArray[Any]:
    x = (np.arange(256) - 128) * rng.uniform(0.02, 0.05)
    y = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    largest, dtype = (30000, np.int16) if per_token else (127, np.int8)
    table: npt.NDArray[Any] = np.round(y / np.abs(y[1:]).max() * largest).astype(dtype)
    table[0] = 0
    return table


def random_vit(
    seed: int,
    *,
    image_size: tuple[int, int] = (8, 8),
    channels: int = 1,
    patch_size: int = 4,
    embed_dim: int = 32,
    depth: int = 2,
    heads: int = 2,
    mlp_dim: int = 64,
    classes: int = 10,
    prefix_tokens: int = 1,
    mean_pool: bool = False,
    scale_mode: ScaleMode = ScaleMode.STATIC,
    name: str = "random",
) -> IntegerViT:
    """Draw a model. `embed_dim` is a multiple of `heads`; two prefix tokens make a distilled model with two heads."""
    rng = np.random.default_rng(seed)
    per_token = scale_mode is ScaleMode.PER_TOKEN
    d, f = embed_dim, mlp_dim
    patches = (image_size[0] // patch_size) * (image_size[1] // patch_size)
    head_dim = d // heads
    q_limit = min(127, (LANE_LIMIT - 1) // (127 * head_dim))

    def block() -> IntegerBlock:
        score = 1024 * rng.uniform(0.5, 3) / (40 * 40 * math.sqrt(head_dim))
        score_shift = max(0, min(15, math.floor(math.log2(0.99996 / min(score, 0.9)))))
        out_shift = 8 if per_token else 16
        return IntegerBlock(
            norm1=_layernorm(rng, d, per_token),
            q=_linear(rng, d, d, 30, per_token),
            k=_linear(rng, d, d, 40, per_token),
            v=_linear(rng, d, d, 40, per_token),
            q_limit=q_limit,
            attention=IntegerAttention(
                score_shift,
                max(1, min(32767, round(min(score, 0.9) * 2 ** (score_shift + 15)))),
                round(16 * 2**out_shift * rng.uniform(1, 2.5)),
                out_shift,
            ),
            proj=_linear(rng, d, d, 1500, per_token),
            norm2=_layernorm(rng, d, per_token),
            fc1=_linear(rng, f, d, 45, per_token),
            table=_table(rng, per_token),
            fc2=_linear(rng, d, f, 1500, per_token),
        )

    blocks = tuple(block() for _ in range(depth))
    heads_out = tuple(
        _linear(rng, classes, d, 800, per_token) for _ in range(2 if prefix_tokens == 2 and not mean_pool else 1)
    )
    return IntegerViT(
        name=name,
        image_size=image_size,
        channels=channels,
        patch_size=patch_size,
        heads=heads,
        scale_mode=scale_mode,
        patch_embed=_linear(rng, d, patch_size * patch_size * channels, 1500, False, xmax=128),
        position=rng.integers(-127, 128, (patches, d)),
        position_multiplier=int(rng.integers(1, 30)),
        prefix=rng.integers(-3000, 3000, (prefix_tokens, d)),
        blocks=blocks,
        mean_pool=mean_pool,
        norm=_layernorm(rng, d, per_token),
        heads_out=heads_out,
        logit_scale=0.01,
        parameters=0,
        meta={"recipe": f"random, seed {seed}"},
    )
