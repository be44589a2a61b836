# SPDX-License-Identifier: Apache-2.0
"""Make an FP32 checkpoint (timm, DeiT, transformers, or tvhil's own) fully ternary: patch embedding, every linear
layer, LayerNorm parameters and head. Activation scales are found on images. No training: the result is what training
starts from, and what `tvhil pack` packs."""

from __future__ import annotations

import argparse
from pathlib import Path

from tvhil.commands.checkpoint_options import (
    add_architecture,
    add_quantization,
    calibration_images,
    check_calibration,
    load_fp32,
    quantization_config,
    quantize,
)
from tvhil.commands.common import add_json, emit, facts_table, stderr
from tvhil.errors import ExitCode

EXAMPLES = """\
examples:
  tvhil quantize deit_tiny.safetensors --arch deit_tiny --calibrate imagenet-val-1k --data val.tar -o q.safetensors
  tvhil quantize timm:deit_tiny_patch16_224 --calibrate imagenet-val-1k --data val.tar -o q.safetensors    by name
  tvhil quantize vit.safetensors --scales per-token --ternarizer absmean -o q.safetensors
  tvhil quantize ftervit.pth --mapping ftervit.toml -o q.safetensors        a checkpoint of another project
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil quantize`."""
    parser.add_argument("checkpoint", type=Path, help="safetensors or torch file, never unpickled; or timm:NAME")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="ternary checkpoint to write")
    add_architecture(parser)
    add_quantization(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Quantize a checkpoint."""
    from tvhil.quantization import save_quantized

    check_calibration(options)
    model = load_fp32(options).eval()
    images, _ = calibration_images(options, model.config)
    config = quantization_config(options)
    with stderr().status("calibrating"):
        quantized = quantize(options, model, images)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_quantized(options.output, quantized)
    result = {
        "checkpoint": str(options.checkpoint),
        "output": str(options.output),
        "arch": model.config.arch,
        "ternarizer": config.ternarizer,
        "scale_mode": config.scale_mode.name.lower(),
        "calibration": config.calibration,
        "calibration_dataset": options.calibrate,
        "calibration_images": len(images),
    }
    rows = [(key.replace("_", " "), value) for key, value in result.items()]
    emit(options, result, [facts_table("Quantized", rows)])
    return ExitCode.OK
