# SPDX-License-Identifier: Apache-2.0
"""The end of a run: the packed model, and the integer predictor against the fake-quantized model that was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tvhil.files import write_whole
from tvhil.models.vision_transformer import VisionTransformer
from tvhil.packing import pack_vit, read_model
from tvhil.prediction import Predictor
from tvhil.quantization import to_integer
from tvhil.quantization.train import classify
from tvhil.quantization.training.data import TrainingData


def pack_and_verify(
    model: VisionTransformer, data: TrainingData, path: Path, report: Mapping[str, Any], *, images: int = 0
) -> dict[str, Any]:
    """Write the model file and compare.

    Args:
        model: fake-quantized, on the contract's grid.
        data: its test split is compared on.
        path: of the model file.
        report: of the training; its recipe, data and results go into the file.
        images: how many test images, evenly spread; 0 for all.

    Returns:
        File, bytes, images, accuracy of both, the share of images they put into one class.
    """
    model = model.cpu().eval()
    kept = ("recipe", "data", "train_images", "test_images", "torch", "precision", "phases", "teacher", "initial")
    recipe = {key: report[key] for key in kept if key in report}
    vit = to_integer(model, class_names=data.class_names, recipe=recipe)
    content = pack_vit(vit)
    write_whole(path, content)
    count = len(data.test) if images <= 0 else min(images, len(data.test))
    chosen = np.linspace(0, len(data.test) - 1, count).round().astype(np.int64)
    pixels, labels = data.test.images[chosen], data.test.labels[chosen]
    fake = classify(model, pixels)
    predictor = Predictor(read_model(content))
    integer = np.concatenate([predictor.run(pixels[i : i + 250]).argmax(1) for i in range(0, count, 250)])
    return {
        "file": str(path), "bytes": len(content), "images": count,
        "fake_quantized_top1": float((fake == labels).mean()), "integer_top1": float((integer == labels).mean()),
        "agreement": float((fake == integer).mean()),
    }  # fmt: skip
