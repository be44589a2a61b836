# SPDX-License-Identifier: Apache-2.0
"""Write a .tvit model file, what boards run: from a quantized checkpoint as it is, from an FP32 checkpoint after
quantizing it, or from an architecture with random weights (--untrained) to measure sizes and latency."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvhil.commands.checkpoint_options import (
    add_architecture,
    add_quantization,
    calibration_images,
    check_calibration,
    fetch,
    load_fp32,
    quantization_config,
    quantize,
)
from tvhil.commands.common import add_json, emit, facts_table, stderr
from tvhil.commands.planning import add_planning, plan_for, planned_json
from tvhil.errors import ExitCode, UsageError
from tvhil.files import output_file, write_whole

if TYPE_CHECKING:
    from tvhil.packing.integer_vit import IntegerViT

EXAMPLES = """\
examples:
  tvhil pack q.safetensors -o m.tvit                                          a quantized checkpoint
  tvhil pack deit_tiny.pth --arch deit_tiny --calibrate imagenet-val-1k --data val.tar -o m.tvit
  tvhil pack --arch deit_small --image-size 224 --classes 1000 --untrained --seed 0 -o m.tvit
  tvhil pack q.safetensors --arena 192K --codec gaps -o m.tvit                fits 192 KB, the fastest on the ESP32-S3

--codec base3 stores five trits in a byte, 2bit four; gaps stores only the trits that are not zero, half a byte each:
the file is half as large again, and the kernels of the ESP32-S3 have the least to do.
--board and --arena choose how layers are cut into pieces to save memory; see `tvhil plan`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil pack`."""
    parser.add_argument(
        "checkpoint", nargs="?", type=Path, help="safetensors or torch file, never unpickled; or timm:NAME"
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=output_file, required=True, help=".tvit file to write")
    parser.add_argument(
        "--codec", choices=("base3", "2bit", "gaps"), default="base3", help="how trits are stored (default: base3)"
    )
    add_planning(parser)
    parser.add_argument("--name", help="of the model (default: its architecture)")
    parser.add_argument("--untrained", action="store_true", help="random weights for --arch, no checkpoint")
    add_architecture(parser)
    add_quantization(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Pack a model."""
    from tvhil.packing import read_model
    from tvhil.packing.trits import Codec
    from tvhil.prediction.memory import PSRAM_NOTE

    if options.untrained and (options.checkpoint is not None or options.arch is None):
        raise UsageError("--untrained takes no checkpoint, and --arch NAME tells the architecture")
    if not options.untrained and options.checkpoint is None:
        raise UsageError("name a checkpoint, or give --arch NAME --untrained for random weights")
    check_calibration(options)
    started = time.monotonic()
    with stderr().status("quantizing"):
        vit = _untrained(options) if options.untrained else _from_checkpoint(options)
    with stderr().status("packing"):
        file, planned = plan_for(options, vit, Codec.from_name(options.codec))
        model = read_model(file)
    write_whole(options.output, file)
    result: dict[str, Any] = {
        "output": str(options.output),
        "name": model.name,
        "bytes": model.file_bytes,
        "megabytes": round(model.file_bytes / 1e6, 4),
        "codec": options.codec,
        "parameters": model.info.parameters,
        "fp32_ratio": round(4 * model.info.parameters / model.file_bytes, 2),
        "arena_bytes": model.plan.arena_bytes,
        "plan": planned_json(planned),
        "scale_mode": model.info.scale_mode.name.lower(),
        "sha256": model.sha256,
        "signature": model.signature,
        "seconds": round(time.monotonic() - started, 2),
    }
    rows = [
        ("bytes", f"{model.file_bytes:,} ({result['megabytes']} MB)"),
        ("against FP32", f"{result['fp32_ratio']} times smaller"),
        ("parameters", f"{model.info.parameters:,}"),
        ("codec", options.codec),
        ("activation scales", result["scale_mode"].replace("_", " ")),
        ("arena bytes", f"{model.plan.arena_bytes:,}"),
        ("schedule", planned.chosen.schedule.describe()),
        ("in", f"PSRAM, nothing fits the internal memory; {PSRAM_NOTE}" if planned.memory == "psram" else None),
        ("signature", model.signature),
        ("seconds", result["seconds"]),
    ]
    emit(options, result, [facts_table(f"{model.name}: {options.output}", rows)])
    return ExitCode.OK


def _untrained(options: argparse.Namespace) -> IntegerViT:
    from tvhil.models import model_config
    from tvhil.quantization import quantize_model, random_model, to_integer

    config = model_config(
        options.arch, image_size=options.image_size, patch_size=options.patch_size, num_classes=options.classes
    )
    if options.calibration is None:
        options.calibration = "absmax"  # the quickest; random weights have no accuracy to lose
    with _one_thread():
        images, names = _images(options, config)
        quantized = quantize_model(random_model(config, options.seed), images, quantization_config(options))
        return to_integer(
            quantized,
            name=options.name or f"{config.arch}-untrained",
            class_names=names or None,
            recipe={"untrained": True, "seed": options.seed},
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, whatever the number of cores: the same file from the same seed."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _images(options: argparse.Namespace, config: Any) -> tuple[Any, tuple[str, ...]]:
    """Random weights need no more than two synthetic pictures to be calibrated."""
    from tvhil.quantization.convert import synthetic_images

    if options.calibrate is None:
        return synthetic_images(config, 2, options.seed), ()
    return calibration_images(options, config)


def _from_checkpoint(options: argparse.Namespace) -> IntegerViT:
    from tvhil.models import read_checkpoint
    from tvhil.quantization import load_quantized, to_integer
    from tvhil.quantization.convert import checkpoint_quantization

    if options.patch_size is not None:
        raise UsageError("--patch-size goes with --untrained: a checkpoint has its patch size")
    fetch(options.checkpoint)
    checkpoint = read_checkpoint(options.checkpoint)
    recipe = {"checkpoint": options.checkpoint.name}
    if checkpoint_quantization(checkpoint) is not None:
        changed = [
            f"--{name.replace('_', '-')}"
            for name in ("arch", "image_size", "classes", "ternarizer", "scales", "calibration", "calibrate", "mapping")
            if getattr(options, name) is not None
        ]
        if changed:
            raise UsageError(f"{options.checkpoint} is quantized already: {', '.join(changed)} would change nothing")
        return to_integer(load_quantized(options.checkpoint), name=options.name, recipe=recipe)
    model = load_fp32(options).eval()
    images, names = calibration_images(options, model.config)
    quantized = quantize(options, model, images)
    return to_integer(quantized, name=options.name, class_names=names or None, recipe=recipe)
