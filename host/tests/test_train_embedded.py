# SPDX-License-Identifier: Apache-2.0
"""The trained CIFAR-10 model in the package: its size, what it says of itself, and that the kernels compute it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tvhil
from tvhil.cli import main
from tvhil.datasets.cifar import CIFAR10_CLASSES
from tvhil.packing import read_model

FILE = Path(tvhil.__file__).parent / "embedded" / "vit_cifar10.tvit"
MOST_BYTES = 1_250_000  # what an ESP32-S3 holds without PSRAM


@pytest.fixture(scope="module")
def model():
    return read_model(FILE.read_bytes())


def test_the_embedded_cifar10_model_fits_a_chip_without_psram():
    assert FILE.stat().st_size <= MOST_BYTES


def test_the_embedded_cifar10_model_tells_how_it_was_made(model):
    assert model.name == "vit_cifar10" and tuple(model.meta["classes"]) == CIFAR10_CLASSES
    made = model.meta["recipe"]
    assert made["data"] == "CIFAR-10 (JPEG)" and made["recipe"]["seed"] == 0
    assert [phase["name"] for phase in made["recipe"]["phases"]] == [
        "fp32", "ternary-weights", "distilled", "distilled-again",
    ]  # fmt: skip
    seen = [row[1] for row in made["log"]["rows"]]
    assert seen == sorted(seen) and len(seen) > 10
    measured = made["test_top1"]
    integer = next(value for name, value in measured.items() if name.startswith("integer predictor"))
    fake = next(value for name, value in measured.items() if name.startswith("fake-quantized"))
    assert measured["agreement"] >= 0.99 and abs(integer - fake) <= 0.002


def test_the_native_kernels_compute_the_embedded_cifar10_model_bit_by_bit(tmp_path):
    """On pictures of its classes' shape; 'vit_cifar10' is what `run-eval cifar10` takes by default."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for name in CIFAR10_CLASSES:
        (tmp_path / "images" / name).mkdir(parents=True)
        pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(tmp_path / "images" / name / "0.png")
    words = f"run-eval cifar10 --data {tmp_path}/images --board native --limit 3 --journal {tmp_path}/j.jsonl"
    assert main([*words.split(), "--json", str(tmp_path / "r.json")]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert "vit_cifar10" in json.dumps(report)
