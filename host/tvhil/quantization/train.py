# SPDX-License-Identifier: Apache-2.0
"""A short training loop for small models in memory: FP32 from labels, or quantized from a frozen teacher."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvhil.errors import TvhilError
from tvhil.models.vision_transformer import VisionTransformer
from tvhil.quantization.build import quantization_of
from tvhil.quantization.convert import Images, calibrate, normalize

Labels = npt.NDArray[np.integer[np.typing.NBitBase]]
Augmentation = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class TrainingOptions:
    """Options of `train`.

    Attributes:
        epochs: passes over the images.
        batch: images a step.
        learning_rate: peak, after the warm-up; cosine to zero.
        warmup: epochs of linear warm-up.
        weight_decay: AdamW's, of matrices only.
        label_smoothing: of the loss against labels.
        label_weight: share of the loss against labels when there is a teacher; the rest is the distillation's.
        temperature: of the distillation.
        recalibrations: how often the activation scales of a quantized model are found anew, evenly over the first
            three quarters of training.
        seed: of the order of images and of the augmentation.
    """

    epochs: int
    batch: int = 128
    learning_rate: float = 1e-3
    warmup: int = 5
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    label_weight: float = 0.0
    temperature: float = 1.0
    recalibrations: int = 0
    seed: int = 0


@dataclass(frozen=True)
class EpochReport:
    """One line of the training log: mean loss, and share of augmented training images classified correctly."""

    epoch: int
    loss: float
    train_accuracy: float
    learning_rate: float


class DivergedError(TvhilError):
    """The loss is not a number."""


def small_affine(degrees: float, shift: float, scale: float, shear: float) -> Augmentation:
    """Augmentation by small affine maps, bilinear, for pictures of single objects on a dark ground.

    Args:
        degrees: largest rotation.
        shift: largest translation, in pixels.
        scale: largest relative change of size, of each axis.
        shear: largest shear.
    """

    def augment(pixels: Tensor, draw: torch.Generator) -> Tensor:
        count, _, height, _ = pixels.shape
        u = torch.rand(count, 6, generator=draw) * 2 - 1
        angle = u[:, 0] * math.radians(degrees)
        cos, sin, slant = angle.cos(), angle.sin(), u[:, 1] * shear
        sx, sy = 1 + u[:, 2] * scale, 1 + u[:, 3] * scale
        tx, ty = u[:, 4] * 2 * shift / height, u[:, 5] * 2 * shift / height
        rows = (cos * sx, (slant * cos - sin) * sx, tx, sin * sy, (slant * sin + cos) * sy, ty)
        theta = torch.stack(rows, 1).view(count, 2, 3)
        grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
        return F.grid_sample(pixels, grid, mode="bilinear", align_corners=False)

    return augment


def train(
    model: VisionTransformer,
    images: Images,
    labels: Labels,
    options: TrainingOptions,
    *,
    teacher: VisionTransformer | None = None,
    augment: Augmentation | None = None,
    report: Callable[[EpochReport], None] = lambda _: None,
) -> None:
    """Train a model in place.

    With a teacher the loss is the KL divergence from its probabilities (Hinton et al., arXiv 1503.02531), mixed with
    the cross-entropy against the labels; without one it is the cross-entropy. Two runs on one machine with one number
    of threads give the same weights.

    Args:
        model: FP32, or fake-quantized and calibrated.
        images: uint8 `[B, H, W, C]`.
        labels: `[B]`.
        options: see there.
        teacher: frozen.
        augment: maps pixels `[B, C, H, W]` in 0 … 1 to the same.
        report: called after every epoch.

    Raises:
        DivergedError: the loss is not a number.
    """
    pre = model.config.preprocessing
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (pre.mean, pre.std))
    pixels = normalize(images, pre) * std + mean  # checks the shape
    targets = torch.from_numpy(np.ascontiguousarray(labels)).long()
    draw = torch.Generator().manual_seed(options.seed)
    optimizer = _optimizer(model, options)
    steps = math.ceil(len(pixels) / options.batch)
    recalibrate = _recalibrations(options) if quantization_of(model) is not None else set()
    for epoch in range(options.epochs):
        if epoch in recalibrate:
            calibrate(model, images[:: max(1, len(images) // 512)])
        model.train()
        total, correct, rate = 0.0, 0, 0.0
        order = torch.randperm(len(pixels), generator=draw)
        for step, chosen in enumerate(torch.split(order, options.batch)):
            rate = _learning_rate(options, epoch + step / steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            x = pixels[chosen]
            if augment is not None:
                x = (augment(x, draw) * 255).round().clamp(0, 255) / 255
            x = (x - mean) / std
            logits = model(x)
            loss = _loss(logits, targets[chosen], options, None if teacher is None else _predict(teacher, x))
            if not math.isfinite(loss.item()):
                raise DivergedError(f"the loss is {float(loss)} in epoch {epoch}: lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += float(loss.detach()) * len(chosen)
            correct += int((logits.argmax(1) == targets[chosen]).sum())
        report(EpochReport(epoch, total / len(pixels), correct / len(pixels), rate))
    model.eval()


@torch.no_grad()
def init_matrices(model: VisionTransformer, seed: int) -> None:
    """Draw every parameter anew; matrices keep the variance of their input, so that small models start to learn soon.

    timm's fixed standard deviation of 0.02 suits widths of several hundred.
    """
    draw = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.ndim > 1:
            std = p[0].numel() ** -0.5 if name.endswith("weight") else 0.02
            p.normal_(0.0, std, generator=draw)


@torch.no_grad()
def classify(model: VisionTransformer, images: Images, batch: int = 256) -> npt.NDArray[np.int64]:
    """The most likely class of each uint8 image `[B, H, W, C]`."""
    model.eval()
    chunks = [images[i : i + batch] for i in range(0, len(images), batch)]
    classes: npt.NDArray[np.int64] = torch.cat(
        [model(normalize(chunk, model.config.preprocessing)).argmax(1) for chunk in chunks]
    ).numpy()
    return classes


@torch.no_grad()
def _predict(teacher: VisionTransformer, x: Tensor) -> Tensor:
    logits: Tensor = teacher(x)
    return logits


def _loss(logits: Tensor, targets: Tensor, options: TrainingOptions, teacher: Tensor | None) -> Tensor:
    labels = F.cross_entropy(logits, targets, label_smoothing=options.label_smoothing)
    if teacher is None:
        return labels
    t = options.temperature
    distilled = F.kl_div(
        (logits / t).log_softmax(1), (teacher / t).log_softmax(1), reduction="batchmean", log_target=True
    )
    return options.label_weight * labels + (1 - options.label_weight) * t * t * distilled


def _optimizer(model: VisionTransformer, options: TrainingOptions) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.learning_rate)


def _learning_rate(options: TrainingOptions, epoch: float) -> float:
    if epoch < options.warmup:
        return options.learning_rate * (epoch + 1e-3) / options.warmup
    progress = (epoch - options.warmup) / max(options.epochs - options.warmup, 1e-9)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _recalibrations(options: TrainingOptions) -> set[int]:
    count = options.recalibrations
    return {round(0.75 * options.epochs * (i + 1) / count) for i in range(count)}
