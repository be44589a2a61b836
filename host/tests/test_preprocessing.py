# SPDX-License-Identifier: Apache-2.0
"""Preprocessing: equal to torchvision's Resize and CenterCrop as timm composes them, for every size and mode."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tvhil.datasets import normalize, preprocess
from tvhil.errors import InputError, UsageError
from tvhil.models import Preprocessing, model_config


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    array = np.random.RandomState(seed).randint(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(array[..., 0] if channels == 1 else array, mode if mode == "CMYK" else None)


def coordinates(width: int, height: int) -> np.ndarray:
    """An image whose red channel is the column and whose green channel is the row."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)


# torchvision's Resize(int) makes the shorter side exactly that and truncates the other one; CenterCrop starts at
# round((length - crop) / 2), with Python's round half to even. Both worked out by hand here.
@pytest.mark.parametrize(
    ("width", "height", "scaled", "crop_left", "crop_top"),
    [
        (500, 375, (330, 248), 53, 12),  # 248 * 500 / 375 = 330.67; (330 - 224) / 2 = 53; (248 - 224) / 2 = 12
        (375, 500, (248, 330), 12, 53),
        (341, 256, (330, 248), 53, 12),  # 330.34
        (256, 341, (248, 330), 12, 53),
        (100, 301, (248, 746), 12, 261),  # upscaled; 746.48
        (248, 248, (248, 248), 12, 12),
        (248, 249, (248, 249), 12, 12),  # (249 - 224) / 2 = 12.5 rounds to the even 12
        (248, 251, (248, 251), 12, 14),  # 13.5 rounds to the even 14
    ],
)
def test_center_mode_is_resize_of_the_shorter_side_then_center_crop(width, height, scaled, crop_left, crop_top):
    image = picture(width, height)
    resized = image if image.size == scaled else image.resize(scaled, Image.Resampling.BICUBIC)
    expected = np.asarray(resized)[crop_top : crop_top + 224, crop_left : crop_left + 224]
    assert np.array_equal(preprocess(image, Preprocessing(224)), expected)


@pytest.mark.parametrize(("length", "start"), [(8, 0), (9, 0), (10, 1), (11, 2), (12, 2), (13, 2), (15, 4)])
def test_a_half_pixel_in_the_crop_rounds_to_even_as_in_torchvision(length, start):
    out = preprocess(coordinates(length, 8), Preprocessing(8, crop_pct=1.0))
    assert out[0, :, 0].tolist() == list(range(start, start + 8))
    assert out[:, 0, 1].tolist() == list(range(8))


def test_the_scaled_size_is_rounded_down_as_in_timm():
    # floor(224 / 0.9) = 248 although 248.9 is nearer to 249; floor(224 / 0.875) = 256
    for crop_pct, scaled in ((0.9, 248), (0.875, 256), (1.0, 224), (0.95, 235)):
        image = picture(400, 400)
        resized = np.asarray(image.resize((scaled, scaled), Image.Resampling.BICUBIC))
        start = round((scaled - 224) / 2)
        expected = resized[start : start + 224, start : start + 224]
        assert np.array_equal(preprocess(image, Preprocessing(224, crop_pct=crop_pct)), expected)


def test_squash_keeps_the_whole_picture():
    image = picture(60, 30)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    out = preprocess(image, Preprocessing(16, crop_pct=1.0, crop_mode="squash"))
    assert np.array_equal(out, expected)


def test_border_fits_the_longer_side_and_pads_with_the_mean_colour():
    image = picture(60, 30)
    out = preprocess(image, Preprocessing(16, crop_pct=1.0, crop_mode="border"))
    assert np.array_equal(out[4:12], np.asarray(image.resize((16, 8), Image.Resampling.BICUBIC)))
    assert (out[:4] == [124, 116, 104]).all()
    assert (out[12:] == [124, 116, 104]).all()


@pytest.mark.parametrize(
    ("name", "resampling"), [("nearest", 0), ("bilinear", 2), ("bicubic", 3)], ids=["nearest", "bilinear", "bicubic"]
)
def test_interpolation_is_the_named_one(name, resampling):
    image = picture(37, 37)
    expected = np.asarray(image.resize((16, 16), resampling))
    assert np.array_equal(preprocess(image, Preprocessing(16, crop_pct=1.0, interpolation=name)), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_8_bit_mode_is_converted_before_the_resize(mode):
    image = picture(20, 20).convert(mode) if mode != "LA" else picture(20, 20, "LA")
    for wanted in (Preprocessing(8, crop_pct=1.0), Preprocessing(8, crop_pct=1.0).grayscale()):
        out = preprocess(image, wanted)
        assert out.shape == (8, 8, wanted.channels)
        converted = image.convert(wanted.mode).resize((8, 8), Image.Resampling.BICUBIC)
        assert np.array_equal(out, np.asarray(converted).reshape(out.shape))


def test_gray_becomes_three_equal_channels_and_colour_becomes_luma():
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8)
    out = preprocess(gray, Preprocessing(8, crop_pct=1.0))
    assert all(np.array_equal(out[..., c], gray) for c in range(3))
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[..., 1] = 255
    assert (preprocess(colour, Preprocessing(8, crop_pct=1.0).grayscale()) == 150).all()  # ITU-R 601: 0.587 * 255


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_an_image_of_another_depth_is_refused_by_its_mode(mode):
    with pytest.raises(InputError, match=f"mode {mode} are not supported"):
        preprocess(Image.new(mode, (8, 8)), Preprocessing(8))


@pytest.mark.parametrize(
    "array",
    [np.zeros((8, 8), np.float32), np.zeros((8, 8, 4), np.uint8), np.zeros((8,), np.uint8), np.zeros((0, 8), np.uint8)],
    ids=["float", "four channels", "flat", "empty"],
)
def test_an_array_of_another_shape_or_type_is_refused(array):
    with pytest.raises(InputError, match="an image must be uint8"):
        preprocess(array, Preprocessing(8))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    size=st.integers(1, 40),
    crop_pct=st.floats(0.5, 1.0),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
    gray=st.booleans(),
)
def test_any_picture_becomes_an_array_of_the_models_size(width, height, size, crop_pct, crop_mode, interpolation, gray):
    wanted = Preprocessing(size, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation)
    wanted = wanted.grayscale() if gray else wanted
    image = picture(width, height)
    out = preprocess(image, wanted)
    assert out.shape == (size, size, wanted.channels)
    assert out.dtype == np.uint8
    assert np.array_equal(out, preprocess(np.asarray(image), wanted))


def test_an_image_of_the_right_size_passes_unchanged():
    image = picture(32, 32)
    wanted = model_config("vit_cifar_nano").preprocessing
    assert np.array_equal(preprocess(image, wanted), np.asarray(image))


def test_normalize_divides_by_255_subtracts_the_mean_and_divides_by_the_deviation():
    wanted = Preprocessing(2, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    images = np.full((1, 2, 2, 3), 255, np.uint8)
    images[0, 0, 0] = 0
    out = normalize(images, wanted)
    assert (out.shape, out.dtype) == ((1, 3, 2, 2), np.float32)
    assert out[0, :, 1, 1].tolist() == [1.0, 3.0, 1.0]
    assert out[0, :, 0, 0].tolist() == [-1.0, -1.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_pct": 0}, "crop_pct"),
        ({"interpolation": "lanczos"}, "interpolation 'lanczos'"),
        ({"mode": "CMYK"}, "mode 'CMYK'"),
        ({"crop_mode": "stretch"}, "crop_mode 'stretch'"),
        ({"mean": (0.5,)}, "mean .* must have 3 values"),
        ({"std": (0.5, 0.0, 0.5)}, "must be positive"),
        ({"image_size": 0}, "image_size 0"),
    ],
)
def test_a_preprocessing_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        Preprocessing(**{"image_size": 8, **changes})
