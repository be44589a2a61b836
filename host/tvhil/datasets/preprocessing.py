# SPDX-License-Identifier: Apache-2.0
"""Any picture to the uint8 array a model takes: timm's evaluation transform (torchvision's resize and crop), on PIL.

Mean and standard deviation are not applied here: they are folded into the patch embedding, so the device sees
what `preprocess` returns. `normalize` applies them for FP32 torch models.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tvhil.errors import InputError
from tvhil.models.config import Preprocessing

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_MODES_OF_8_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


def preprocess(image: Image.Image | NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Convert, resize and crop one image.

    Args:
        image: a PIL image of any size with 8 bits a channel, or a uint8 array [H, W], [H, W, 1] or [H, W, 3].
        preprocessing: what the model wants. 'center' scales the shorter side to floor(image_size / crop_pct) and
            crops the middle; 'squash' scales both sides to that; 'border' scales the longer side to it, pads
            with the mean colour and crops.

    Returns:
        uint8 [image_size, image_size, channels].

    Raises:
        InputError: an image of another depth (16 bits, float), or an array of another shape or type.
    """
    picture = _to_pil(image)
    if picture.mode not in _MODES_OF_8_BITS:
        raise InputError(f"images of PIL mode {picture.mode} are not supported: convert to 8 bits a channel")
    if picture.mode != preprocessing.mode:
        picture = picture.convert(preprocessing.mode)
    size = preprocessing.image_size
    scaled = math.floor(size / preprocessing.crop_pct)
    picture = _resize(picture, _scaled_size(picture, scaled, preprocessing.crop_mode), preprocessing.interpolation)
    if preprocessing.crop_mode == "border":
        fill = tuple(round(255 * value) for value in preprocessing.mean)
    else:
        fill = (0,) * preprocessing.channels
    picture = _center_crop(picture, size, fill)
    return np.array(picture, dtype=np.uint8).reshape(size, size, preprocessing.channels)


def normalize(images: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """uint8 [N, H, W, C] to float32 [N, C, H, W]: divided by 255, minus the mean, over the standard deviation."""
    mean = np.asarray(preprocessing.mean, dtype=np.float32)
    std = np.asarray(preprocessing.std, dtype=np.float32)
    scaled = (images.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _to_pil(image: Image.Image | NDArray[np.uint8]) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.dtype != np.uint8 or 0 in image.shape or not (image.ndim == 2 or image.shape[2:] == (3,)):
        raise InputError(f"an image must be uint8 [H, W], [H, W, 1] or [H, W, 3], not {image.dtype} {image.shape}")
    return Image.fromarray(np.ascontiguousarray(image))


def _scaled_size(picture: Image.Image, scaled: int, crop_mode: str) -> tuple[int, int]:
    """Width and height after the resize."""
    width, height = picture.size
    if crop_mode == "squash":
        return scaled, scaled
    if crop_mode == "border":
        ratio = max(width / scaled, height / scaled)
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    short, long = min(width, height), max(width, height)
    other = int(scaled * long / short)  # torchvision truncates the longer side
    return (scaled, other) if width <= height else (other, scaled)


def _resize(picture: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, _RESAMPLING[interpolation])


def _center_crop(picture: Image.Image, size: int, fill: tuple[int, ...]) -> Image.Image:
    """The middle size x size pixels; sides that are too short are padded first, evenly."""
    width, height = picture.size
    if width < size or height < size:
        padded = Image.new(picture.mode, (max(width, size), max(height, size)), fill if len(fill) > 1 else fill[0])
        padded.paste(picture, (max(size - width, 0) // 2, max(size - height, 0) // 2))
        picture, (width, height) = padded, padded.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return picture.crop((left, top, left + size, top + size))
