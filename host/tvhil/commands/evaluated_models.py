# SPDX-License-Identifier: Apache-2.0
"""The models of `tvhil evaluate`: a .tvit file or a checkpoint, and every way to compute it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvhil.commands.common import EMBEDDED_MODEL, notice, open_model, preprocessing_of, stderr
from tvhil.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tvhil.boards import Board
    from tvhil.evaluation.implementations import Implementation, IntegerImplementation
    from tvhil.models import VisionTransformer
    from tvhil.models.conv_teacher import ConvTeacher
    from tvhil.packing import TvitModel

CALIBRATION_IMAGES = 64
CONV_TEACHER_KEY = "tvhil.conv_teacher"  # metadata entry of a convolutional teacher's checkpoint
ONE_BIT = "1-bit, fake-quantized"  # what an FP32 checkpoint is made to be compared


def compared(options: argparse.Namespace) -> dict[str, Path]:
    """Files of `--compare` by name.

    Raises:
        UsageError: not NAME=FILE, or a name given twice.
    """
    found: dict[str, Path] = {}
    for text in options.compare:
        name, _, file = text.partition("=")
        if not name or not file:
            raise UsageError(f"--compare takes NAME=FILE, not {text!r}")
        if name in found:
            raise UsageError(f"two models of --compare are called {name}")
        found[name] = Path(file)
    return found


def default_model(dataset: str) -> Path:
    """The embedded model of a dataset.

    Raises:
        UsageError: there is none.
    """
    file = EMBEDDED_MODEL.parent / f"vit_{dataset}.tvit"
    if dataset == "synthetic":
        return EMBEDDED_MODEL
    if not file.is_file():
        embedded = sorted(path.stem.removeprefix("vit_") for path in EMBEDDED_MODEL.parent.glob("vit_*.tvit"))
        raise UsageError(f"{dataset} needs --model FILE; embedded models are of {', '.join(embedded)}")
    return file


def open_implementations(options: argparse.Namespace, board: Board | None) -> list[Implementation]:
    """Every implementation of the model in question, then one of each model to compare."""
    file = options.model or default_model(options.dataset)
    trusted = [options.require_signature, board.trusted_key_files if board is not None else []]
    if _is_tvit(file):
        model, _ = open_model(file, *trusted)
        found: list[Implementation] = [_integers(_width_name(model.meta), model, str(file))]
    else:
        if any(trusted):
            raise UsageError("only a signed .tvit file can be checked for a signature: pack and sign the checkpoint")
        found = _of_checkpoint(options, file)
    for name, other in compared(options).items():
        if any(one.name == name for one in found):
            raise UsageError(f"--compare {name}=…: the evaluated model is called so already, choose another name")
        found.append(_other(options, name, other))
    return found


def _is_tvit(file: Path) -> bool:
    from tvhil.models.published import is_published
    from tvhil.packing.format import MAGIC

    if is_published(file) or not file.is_file():
        return file.suffix == ".tvit"
    with file.open("rb") as stream:
        return stream.read(4) == MAGIC.to_bytes(4, "little") or file.suffix == ".tvit"


def _width_name(meta: dict[str, Any]) -> str:
    quantization = meta.get("quantization")
    return _bits(quantization.get("ternarizer") if isinstance(quantization, dict) else None) + ", integers"


def _bits(rule: Any) -> str:
    name = str(rule).partition("_")[0]
    return {"binary": "1-bit", "int8": "8-bit"}.get(name, "ternary")


def _integers(name: str, model: TvitModel, source: str, twin: str | None = None) -> IntegerImplementation:
    from tvhil.evaluation.implementations import IntegerImplementation

    return IntegerImplementation(name, model, preprocessing_of(model), source, twin)


def _of_checkpoint(options: argparse.Namespace, file: Path) -> list[Implementation]:
    """Fake-quantized and integers of a quantized checkpoint; of an FP32 one also itself and 1 bit."""
    from tvhil.evaluation.implementations import TorchImplementation
    from tvhil.models import VisionTransformer
    from tvhil.quantization import QuantizationConfig, quantize_model

    model = _load(options, file)
    if not isinstance(model, VisionTransformer):
        return [TorchImplementation("FP32", model, str(file))]
    rule = _rule_of(model)
    if rule is not None:
        return _quantized(_bits(rule), model, str(file))
    found: list[Implementation] = [TorchImplementation("FP32", model, str(file))]
    if options.as_is:
        return found
    images = _calibration_images(options, model)
    notice("the FP32 checkpoint is made ternary and 1-bit without training, to compare")
    with stderr().status("quantizing"):
        found += _quantized("ternary", quantize_model(model, images, QuantizationConfig()), str(file))
        one_bit = quantize_model(model, images, QuantizationConfig(ternarizer="binary"))
    return [*found, TorchImplementation(ONE_BIT, one_bit, str(file))]


def _quantized(name: str, model: VisionTransformer, source: str) -> list[Implementation]:
    """Both implementations of a fake-quantized model; only one where it has no integers."""
    from tvhil.evaluation.implementations import TorchImplementation, estimated_bytes
    from tvhil.packing import pack_vit, read_model
    from tvhil.quantization import to_integer

    fake = TorchImplementation(f"{name}, fake-quantized", model, source, twin=name)
    try:
        with stderr().status("packing"):
            packed = read_model(pack_vit(to_integer(model.cpu())))
    except UsageError as error:
        notice(f"{source} cannot be computed with integers: {error}")
        fake.bytes, fake.estimated = estimated_bytes(model), True
        return [fake]
    model.to(fake.device)
    return [fake, _integers(f"{name}, integers", packed, source, name)]


def _load(options: argparse.Namespace, file: Path) -> VisionTransformer | ConvTeacher:
    from tvhil.commands.checkpoint_options import fetch, key_mapping
    from tvhil.models import load_model, read_checkpoint
    from tvhil.quantization import load_quantized
    from tvhil.quantization.convert import checkpoint_quantization

    fetch(file)
    checkpoint = read_checkpoint(file)
    if CONV_TEACHER_KEY in checkpoint.metadata:
        from tvhil.quantization.training.models import load_any

        return load_any(file).eval()
    if checkpoint_quantization(checkpoint) is not None:
        return load_quantized(file).eval()
    model, report = load_model(file, arch=options.arch, mapping=key_mapping(options))
    for line in report.notes:
        notice(line)
    return model.eval()


def _rule_of(model: VisionTransformer) -> str | None:
    """The rule of a quantized model's weights; None for FP32."""
    from tvhil.quantization import quantization_of

    quantization = quantization_of(model)
    return None if quantization is None else quantization.ternarizer


def _other(options: argparse.Namespace, name: str, file: Path) -> Implementation:
    """A model to compare: one implementation, with the size that it has when it is packed."""
    from tvhil.evaluation.implementations import TorchImplementation
    from tvhil.models import VisionTransformer

    if _is_tvit(file):
        return _integers(name, open_model(file)[0], str(file))
    model = _load(options, file)
    if not isinstance(model, VisionTransformer) or _rule_of(model) is None:
        return TorchImplementation(name, model, str(file))
    fake, *integers = _quantized(name, model, str(file))
    fake.name, fake.bytes = name, integers[0].bytes if integers else fake.bytes
    return fake


def _calibration_images(options: argparse.Namespace, model: VisionTransformer) -> npt.NDArray[np.uint8]:
    import numpy as np

    from tvhil.datasets import open_dataset
    from tvhil.evaluation.inputs import image_loader

    config = model.config
    split, data = options.split, options.calibration_data or options.data
    if options.dataset == "digits":
        split = "train"
    elif options.calibration_data is None:
        notice("activation scales are found on images that are evaluated; --calibration-data PATH names others")
    else:
        split = None
    dataset = open_dataset(
        options.dataset, data, split=split, limit=CALIBRATION_IMAGES, seed=options.seed, shape=config.input_shape
    )
    return np.stack([image_loader(sample, config.preprocessing, config.input_shape)() for sample in dataset])
