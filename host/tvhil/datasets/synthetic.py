# SPDX-License-Identifier: Apache-2.0
"""Seeded images without labels, of any size: noise, gradients, stripes and flat fields, for tests without data."""

from __future__ import annotations

import hashlib
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tvhil.datasets.dataset import Dataset, Sample, reindex

DEFAULT_COUNT = 16
KINDS = ("noise", "gradient", "stripes", "noise", "flat")  # image i is of kind i modulo 5


def open_synthetic(name: str, shape: tuple[int, int, int], count: int | None, seed: int) -> Dataset:
    """`count` images (default 16) of `shape` [H, W, C], C being 1 or 3. A smaller count is a prefix."""
    samples = [
        Sample(0, f"synthetic/{seed}/{i:05d}", None, partial(_image, shape, seed, i))
        for i in range(DEFAULT_COUNT if count is None else count)
    ]
    return Dataset(name, "synthetic", "test", (), reindex(samples), seed)


def synthetic_array(shape: tuple[int, int, int], seed: int, index: int) -> NDArray[np.uint8]:
    """Image `index` as uint8 [H, W, C]; the same bytes on every machine and with every numpy."""
    height, width, channels = shape
    kind = KINDS[index % len(KINDS)]
    stream = hashlib.shake_128(f"tvhil synthetic {seed} {index}".encode())
    if kind == "noise":
        noise = np.frombuffer(stream.digest(height * width * channels), dtype=np.uint8)
        return noise.reshape(shape)
    draws = np.frombuffer(stream.digest(4 * channels), dtype=np.uint8).reshape(4, channels).astype(np.int64)
    if kind == "flat":
        return np.broadcast_to(draws[0].astype(np.uint8), shape)
    y, x = np.mgrid[0:height, 0:width]
    ramp = x[..., None] * (draws[0] - 127) // max(width, 1) + y[..., None] * (draws[1] - 127) // max(height, 1)
    if kind == "gradient":
        field: NDArray[np.int64] = np.clip(ramp + draws[2], 0, 255)
        return field.astype(np.uint8)
    on: NDArray[np.int64] = (
        (x[..., None] * (1 + draws[0] % 3) + y[..., None] * (draws[1] % 3)) // (1 + draws[2] % 4)
    ) % 2
    striped: NDArray[np.int64] = draws[2] * on + draws[3] * (1 - on)
    return striped.astype(np.uint8)


def _image(shape: tuple[int, int, int], seed: int, index: int) -> Image.Image:
    array = synthetic_array(shape, seed, index)
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if shape[2] == 1 else array))
