# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that turn a checkpoint into ternary integers, and how they find the model and its images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvhil.commands.common import notice, stderr
from tvhil.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tvhil.models import VisionTransformer, ViTConfig
    from tvhil.models.mapping import KeyMapping
    from tvhil.quantization import QuantizationConfig

DEFAULT_CALIBRATION_IMAGES = 64


def add_architecture(parser: argparse.ArgumentParser) -> None:
    """What model a checkpoint is of."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--arch", metavar="NAME", help="architecture (see `tvhil models`); tvhil's checkpoints know theirs"
    )
    group.add_argument("--image-size", metavar="PIXELS", type=int, help="side of the square input")
    group.add_argument("--patch-size", metavar="PIXELS", type=int, help="side of a patch (with --untrained)")
    group.add_argument("--classes", metavar="N", type=int, help="number of classes")
    group.add_argument(
        "--mapping", metavar="FILE", type=Path,
        help="TOML file that says which tensors of another project's checkpoint are what (see tvhil.models.mapping)",
    )  # fmt: skip


def add_quantization(parser: argparse.ArgumentParser) -> None:
    """How an FP32 model becomes ternary."""
    group = parser.add_argument_group("quantization of an FP32 checkpoint")
    group.add_argument("--ternarizer", metavar="RULE", help="how weights become trits (default: twn)")
    group.add_argument("--scales", choices=("static", "per-token"), help="activation scales (default: static)")
    group.add_argument(
        "--calibration", choices=("absmax", "percentile", "mse"), help="how scales are found (default: mse)"
    )
    group.add_argument("--calibrate", metavar="DATASET", help="find the activation scales on images of this dataset")
    group.add_argument("--data", metavar="PATH", type=Path, help="where that dataset lies")
    group.add_argument(
        "--limit",
        metavar="N",
        type=int,
        default=DEFAULT_CALIBRATION_IMAGES,
        help="how many images (default: %(default)s)",
    )
    group.add_argument(
        "--seed", metavar="S", type=int, default=0, help="of random weights and drawn images (default: 0)"
    )


def quantization_config(options: argparse.Namespace) -> QuantizationConfig:
    """The quantization that the options ask for, or else the mapping of the checkpoint.

    Raises:
        UsageError: an unknown rule.
    """
    from tvhil.packing.format import ScaleMode
    from tvhil.quantization import QuantizationConfig

    given: dict[str, Any] = {}
    mapping = key_mapping(options)
    rule = options.ternarizer or (mapping.ternarizer if mapping is not None else None)
    scales = options.scales or (mapping.scale_mode if mapping is not None else None)
    if rule is not None:
        from tvhil.quantization.ternarizers import ternarizer

        ternarizer(rule)
        given["ternarizer"] = rule
    if scales is not None:
        given["scale_mode"] = ScaleMode.PER_TOKEN if scales == "per-token" else ScaleMode.STATIC
    if options.calibration is not None:
        given["calibration"] = options.calibration
    return QuantizationConfig(**given)


def key_mapping(options: argparse.Namespace) -> KeyMapping | None:
    """The mapping file that was named."""
    if options.mapping is None:
        return None
    from tvhil.models.mapping import read_mapping

    return read_mapping(options.mapping)


def load_fp32(options: argparse.Namespace) -> VisionTransformer:
    """The FP32 model of the checkpoint, with notes about what had to be changed."""
    from tvhil.models import load_model

    fetch(options.checkpoint)
    model, report = load_model(
        options.checkpoint, arch=options.arch, image_size=options.image_size, num_classes=options.classes,
        mapping=key_mapping(options),
    )  # fmt: skip
    for note in report.notes:
        notice(note)
    return model


def fetch(checkpoint: Path | str) -> None:
    """Download published weights under a progress bar, where the cache does not hold them; a file is left alone."""
    from tvhil.models.published import fetch_published, is_published

    if not is_published(checkpoint):
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    console = stderr()
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(str(checkpoint), total=None)
        fetch_published(str(checkpoint), lambda done, total: bar.update(task, completed=done, total=total))


def quantize(options: argparse.Namespace, model: VisionTransformer, images: npt.NDArray[np.uint8]) -> VisionTransformer:
    """The ternary model of a checkpoint: calibrated on images, but for the activation scales that its mapping gives."""
    from tvhil.models.checkpoints import read_checkpoint
    from tvhil.models.mapping import load_activation_scales
    from tvhil.quantization import quantize_model

    quantized = quantize_model(model, images, quantization_config(options))
    mapping = key_mapping(options)
    if mapping is not None and mapping.activation:
        scales = mapping.activation_scales(read_checkpoint(options.checkpoint, mapping).state)
        notice(f"{load_activation_scales(quantized, scales)} activation scales are the checkpoint's")
    return quantized


def check_calibration(options: argparse.Namespace) -> None:
    """Refuse a place of data without the name of its dataset."""
    if options.data is not None and options.calibrate is None:
        raise UsageError("--data is the place of the dataset that --calibrate names")


def calibration_images(options: argparse.Namespace, config: ViTConfig) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """Images `[B][H][W][C]` to calibrate on, and the names of the dataset's classes where they are the model's."""
    import numpy as np

    if options.calibrate is None:
        from tvhil.quantization.convert import synthetic_images

        notice("activation scales are found on synthetic pictures; for accuracy give --calibrate DATASET --data PATH")
        return synthetic_images(config, min(options.limit, 8), options.seed), ()
    from rich.progress import track

    from tvhil.datasets import open_dataset, preprocess

    dataset = open_dataset(
        options.calibrate, options.data, limit=options.limit, seed=options.seed, shape=config.input_shape
    )
    loaded = [
        preprocess(sample.load(), config.preprocessing)
        for sample in track(dataset, "reading images", total=len(dataset), console=stderr(), transient=True)
    ]
    names = dataset.class_names if len(dataset.class_names) == config.num_classes else ()
    return np.stack(loaded), names
