# SPDX-License-Identifier: Apache-2.0
"""Augmentation of whole batches on the device that trains: uint8 images `[B, C, S, S]` to the same, and mixed targets.

Every operation draws from the generator that it is given, on the CPU, so a batch depends on its seed alone, whatever
the device and the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tvhil.quantization.training.recipe import Augmentation


class Mixed(NamedTuple):
    """Images and, for each, two labels with the share of the first."""

    images: Tensor
    first: Tensor
    second: Tensor
    share: float


def augment(images: Tensor, labels: Tensor, options: Augmentation, draw: torch.Generator) -> Mixed:
    """Vary a batch.

    Args:
        images: uint8 `[B, C, S, S]`.
        labels: `[B]`.
        options: see there.
        draw: on the CPU.

    Returns:
        Images as uint8, and their targets.
    """
    if options.crop or options.flip:
        images = crop_and_flip(images, options.crop, options.flip, draw)
    if options.degrees or options.shift or options.scale or options.shear:
        images = small_affine(images, options, draw)
    for _ in range(options.randaugment):
        images = random_operation(images, options.magnitude, draw)
    if options.erasing:
        images = erase(images, options.erasing, draw)
    return mix(images, labels, options, draw)


def crop_and_flip(images: Tensor, border: int, flip: bool, draw: torch.Generator) -> Tensor:
    """Shift each image by up to `border` pixels into its own reflection, and mirror half of them."""
    count, _, height, width = images.shape
    device = images.device
    shift = torch.randint(-border, border + 1, (2, count), generator=draw).to(device)
    mirrored = (torch.rand(count, generator=draw) < 0.5 * flip).to(device)
    rows = _reflect(torch.arange(height, device=device) + shift[0][:, None], height)
    columns = _reflect(torch.arange(width, device=device) + shift[1][:, None], width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    picked = images[torch.arange(count, device=device)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Indices beyond the border to those of the reflection, which does not repeat the edge."""
    period = max(2 * size - 2, 1)
    index = index.remainder(period)
    return torch.where(index >= size, period - index, index)


def small_affine(images: Tensor, options: Augmentation, draw: torch.Generator) -> Tensor:
    """Rotate, shift, resize and shear each image a little, bilinearly, on a black ground."""
    u = torch.rand(len(images), 6, generator=draw) * 2 - 1
    angle, size = u[:, 0] * math.radians(options.degrees), images.shape[-1]
    cos, sin, slant = angle.cos(), angle.sin(), u[:, 1] * options.shear
    sx, sy = 1 + u[:, 2] * options.scale, 1 + u[:, 3] * options.scale
    tx, ty = u[:, 4] * 2 * options.shift / size, u[:, 5] * 2 * options.shift / size
    rows = (cos * sx, (slant * cos - sin) * sx, tx, sin * sy, (slant * sin + cos) * sy, ty)
    return _warp(images, torch.stack(rows, 1).view(-1, 2, 3), fill=0.0)


def _warp(images: Tensor, theta: Tensor, fill: float) -> Tensor:
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float() - fill, grid, mode="bilinear", align_corners=False)
    return _to_bytes(moved + fill)


def _to_bytes(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)


def erase(images: Tensor, probability: float, draw: torch.Generator) -> Tensor:
    """Fill a box of 2 % to 33 % of the area with noise, in this share of the images."""
    count, _, height, width = images.shape
    chosen = torch.rand(count, generator=draw) < probability
    area = torch.empty(count).uniform_(0.02, 1 / 3, generator=draw) * height * width
    aspect = torch.empty(count).uniform_(math.log(0.3), math.log(3.3), generator=draw).exp()
    h, w = (area * aspect).sqrt().clamp(1, height), (area / aspect).sqrt().clamp(1, width)
    top, left = (torch.rand(count, generator=draw) * (s - e) for s, e in ((height, h), (width, w)))
    noise = torch.randint(0, 256, images.shape, generator=draw, dtype=torch.uint8).to(images.device)
    boxes = _boxes(top, left, h, w, height, width) & chosen[:, None, None]
    return torch.where(boxes[:, None].to(images.device), noise, images)


def _boxes(top: Tensor, left: Tensor, h: Tensor, w: Tensor, height: int, width: int) -> Tensor:
    """Masks `[B, height, width]` of one box an image."""
    y, x = torch.arange(height)[None], torch.arange(width)[None]
    rows = (y >= top[:, None].floor()) & (y < (top + h)[:, None].floor().clamp_min(top[:, None].floor() + 1))
    columns = (x >= left[:, None].floor()) & (x < (left + w)[:, None].floor().clamp_min(left[:, None].floor() + 1))
    return rows[:, :, None] & columns[:, None, :]


def mix(images: Tensor, labels: Tensor, options: Augmentation, draw: torch.Generator) -> Mixed:
    """Mixup or cutmix of each image with the one at the other end of the batch, or neither."""
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(options, kind) > 0]
    if not kinds or float(torch.rand((), generator=draw)) >= options.mix:
        return Mixed(images, labels, labels, 1.0)
    kind = kinds[int(torch.randint(len(kinds), (), generator=draw))]
    share = _beta(getattr(options, kind), draw)
    others = images.flip(0)
    if kind == "mixup":
        return Mixed(_to_bytes(images.float() * share + others.float() * (1 - share)), labels, labels.flip(0), share)
    height, width = images.shape[2:]
    h, w = (round(size * math.sqrt(1 - share)) for size in (height, width))
    top, left = (int(torch.randint(size, (), generator=draw)) - cut // 2 for size, cut in ((height, h), (width, w)))
    y, x = slice(max(top, 0), min(top + h, height)), slice(max(left, 0), min(left + w, width))
    images = images.clone()
    images[:, :, y, x] = others[:, :, y, x]
    share = 1 - (y.stop - y.start) * (x.stop - x.start) / (height * width)
    return Mixed(images, labels, labels.flip(0), share)


def _beta(alpha: float, draw: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha), from two of Gamma(alpha) by Marsaglia and Tsang's method."""
    x, y = (_gamma(alpha, draw) for _ in range(2))
    return x / (x + y) if x + y > 0 else 0.5


def _gamma(alpha: float, draw: torch.Generator) -> float:
    if alpha < 1:
        shrink = math.pow(float(torch.rand((), generator=draw)), 1 / alpha)
        return _gamma(alpha + 1, draw) * shrink
    d = alpha - 1 / 3
    while True:
        z = float(torch.randn((), generator=draw))
        v = (1 + z / math.sqrt(9 * d)) ** 3
        u = max(float(torch.rand((), generator=draw)), 1e-12)
        if v > 0 and math.log(u) < 0.5 * z * z + d - d * v + d * math.log(v):
            return d * v


def random_operation(images: Tensor, magnitude: float, draw: torch.Generator) -> Tensor:
    """One operation of RandAugment on each image; each image draws its own."""
    choice = torch.randint(len(OPERATIONS), (len(images),), generator=draw)
    sign = torch.randint(2, (len(images),), generator=draw) * 2.0 - 1
    out = images.clone()
    for index, operation in enumerate(OPERATIONS):
        chosen = torch.nonzero(choice == index).flatten()
        if len(chosen):
            out[chosen.to(images.device)] = operation(images[chosen.to(images.device)], magnitude / 10, sign[chosen])
    return out


def _geometric(xx: float, xy: float, tx: float, yx: float, yy: float, ty: float) -> Operation:
    """An operation whose matrix is the identity plus strength times these entries."""

    def apply(images: Tensor, strength: float, sign: Tensor) -> Tensor:
        theta = torch.eye(2, 3).expand(len(images), 2, 3)
        change = torch.tensor([[xx, xy, tx], [yx, yy, ty]])
        return _warp(images, theta + change * (strength * sign)[:, None, None], fill=128.0)

    return apply


def _rotate(images: Tensor, strength: float, sign: Tensor) -> Tensor:
    angle = math.radians(30) * strength * sign
    zero = torch.zeros_like(angle)
    rows = (angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero)
    return _warp(images, torch.stack(rows, 1).view(-1, 2, 3), fill=128.0)


def _blend(images: Tensor, other: Tensor, strength: float, sign: Tensor) -> Tensor:
    """Away from (sign 1) or towards (-1) another version of the images, as PIL's ImageEnhance."""
    factor = (1 + 0.9 * strength * sign).to(images.device)[:, None, None, None]
    return _to_bytes(other + (images.float() - other) * factor)


def _gray(images: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images.float().mean(1, keepdim=True)
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)[None, :, None, None]
    return (images.float() * weights).sum(1, keepdim=True)


def _brightness(images: Tensor, strength: float, sign: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images, dtype=torch.float32), strength, sign)


def _contrast(images: Tensor, strength: float, sign: Tensor) -> Tensor:
    return _blend(images, _gray(images).mean((1, 2, 3), keepdim=True), strength, sign)


def _color(images: Tensor, strength: float, sign: Tensor) -> Tensor:
    return _blend(images, _gray(images), strength, sign)


def _sharpness(images: Tensor, strength: float, sign: Tensor) -> Tensor:
    channels = images.shape[1]
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1] = 5
    kernel = (kernel / kernel.sum()).expand(channels, 1, 3, 3)
    smooth = F.conv2d(F.pad(images.float(), (1, 1, 1, 1), mode="replicate"), kernel, groups=channels)
    return _blend(images, smooth, strength, sign)


def _posterize(images: Tensor, strength: float, _sign: Tensor) -> Tensor:
    dropped = round(4 * strength)
    return images >> dropped << dropped


def _solarize(images: Tensor, strength: float, _sign: Tensor) -> Tensor:
    return torch.where(images.int() >= round(256 - 256 * strength), 255 - images, images)


def _autocontrast(images: Tensor, _strength: float, _sign: Tensor) -> Tensor:
    x = images.float()
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, _to_bytes((x - low) * 255 / (high - low).clamp_min(1)), images)


def _equalize(images: Tensor, _strength: float, _sign: Tensor) -> Tensor:
    """Flatten the histogram of each channel: a pixel becomes the share of pixels below it."""
    flat = images.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, device=images.device).scatter_add_(
        2, flat, torch.ones_like(flat).float()
    )
    below = counts.cumsum(2) - counts / 2
    return _to_bytes(below.gather(2, flat) * (255 / flat.shape[2])).view_as(images)


def _identity(images: Tensor, _strength: float, _sign: Tensor) -> Tensor:
    return images


Operation = Callable[[Tensor, float, Tensor], Tensor]
OPERATIONS: tuple[Operation, ...] = (
    _identity, _autocontrast, _equalize, _rotate, _posterize, _solarize, _color, _contrast, _brightness, _sharpness,
    _geometric(0, 0.3, 0, 0, 0, 0), _geometric(0, 0, 0, 0.3, 0, 0),  # shear along x and y
    _geometric(0, 0, 0.9, 0, 0, 0), _geometric(0, 0, 0, 0, 0, 0.9),  # shift by up to 0.45 of the side
)  # fmt: skip
