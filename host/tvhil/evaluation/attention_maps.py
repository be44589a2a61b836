# SPDX-License-Identifier: Apache-2.0
"""Where a model looks: attention rollout (Abnar and Zuidema, arXiv 2005.00928) over the patches of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tvhil.evaluation.implementations import DEVICE, FAKE_QUANTIZED, INTEGER, Implementation

Floats = npt.NDArray[np.float64]
# From dark blue over green to yellow: even steps of lightness, as matplotlib's viridis has them.
_COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float64)
_OPACITY = 0.6


def rollout(probabilities: Sequence[npt.NDArray[Any]]) -> Floats:
    """`[T][T]`: what each token at the end draws from each token at the start.

    Heads are averaged, the residual connection counts as much as the attention (half the identity), and the
    matrices of all blocks are multiplied.

    Args:
        probabilities: attention `[heads][T][T]` of every block, from the first to the last.
    """
    tokens = probabilities[0].shape[-1]
    total: Floats = np.eye(tokens)
    for p in probabilities:
        mixed = 0.5 * p.mean(0, dtype=np.float64) + 0.5 * np.eye(tokens)
        total = (mixed / mixed.sum(-1, keepdims=True)) @ total
    return total


def patch_map(total: Floats, prefix_tokens: int, *, pooled: bool) -> Floats:
    """`[grid][grid]` share of each patch in the answer, scaled to 0 … 1.

    Args:
        total: from `rollout`.
        prefix_tokens: class and distillation tokens before the patches.
        pooled: the answer is read from the mean of the patches; otherwise from the class token.
    """
    source = total[prefix_tokens:].mean(0) if pooled else total[0]
    patches = source[prefix_tokens:]
    side = round(len(patches) ** 0.5)
    low, high = float(patches.min()), float(patches.max())
    scaled: Floats = ((patches - low) / max(high - low, 1e-30)).reshape(side, side)
    return scaled


def attention_map(implementation: Implementation, image: npt.NDArray[np.uint8]) -> Floats | None:
    """The map of one image `[H][W][C]`; None where the implementation cannot tell."""
    probabilities = implementation.attention(image)
    if probabilities is None:
        return None
    return patch_map(rollout(probabilities), implementation.prefix_tokens, pooled=implementation.pooled)


def overlay(image: npt.NDArray[np.uint8], shares: Floats, side: int) -> Image.Image:
    """The image with the map over it in colours, `side` pixels a side."""
    picture = picture_of(image, side)
    smooth = Image.fromarray((shares * 255).round().astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    place = np.asarray(smooth, np.float64) / 255 * (len(_COLOURS) - 1)
    colours = np.stack([np.interp(place, range(len(_COLOURS)), _COLOURS[:, c]) for c in range(3)], -1)
    return Image.blend(picture, Image.fromarray(colours.round().astype(np.uint8)), _OPACITY)


def picture_of(image: npt.NDArray[np.uint8], side: int) -> Image.Image:
    """An image `[H][W][C]` as a picture of `side` pixels; small ones keep their pixels visible."""
    array = image[..., 0] if image.shape[-1] == 1 else image
    resampling = Image.Resampling.NEAREST if image.shape[0] < side else Image.Resampling.LANCZOS
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB").resize((side, side), resampling)


def shown(implementations: Sequence[Implementation]) -> list[Implementation]:
    """Implementations whose maps are worth showing: one of each model, integers before fake quantization."""
    chosen = []
    for one in implementations:
        if one.kind == DEVICE:
            continue  # bit for bit what the integers are
        twin = any(o.kind == INTEGER and o.twin == one.twin for o in implementations if one.twin)
        if one.kind == FAKE_QUANTIZED and twin:
            continue
        chosen.append(one)
    return chosen
