# SPDX-License-Identifier: Apache-2.0
"""A small convolutional network for 32x32 images: the FP32 teacher that a CPU can train in less than an hour.

Three groups of two 3x3 convolutions behind a fixed whitening layer, as in Keller Jordan's airbench networks ("94% on
CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv 2404.00498), which descend from David Page's ResNet-9.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvhil.models.config import Preprocessing

CIFAR = Preprocessing(32, crop_pct=1.0, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
_WHITEN_KERNEL = 2
_WHITEN_EPS = 5e-4


@dataclass(frozen=True)
class ConvTeacherConfig:
    """Shapes of a `ConvTeacher`.

    Attributes:
        widths: channels of the three groups.
        num_classes: rows of the head.
        in_channels: of the images.
        preprocessing: of the images.
    """

    widths: tuple[int, int, int] = (128, 384, 384)
    num_classes: int = 10
    in_channels: int = 3
    preprocessing: Preprocessing = CIFAR


class ConvGroup(nn.Module):
    """Convolution, pooling by 2, convolution; each convolution followed by normalization and GELU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = _norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, S, S] to [B, out_channels, S // 2, S // 2]."""
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class ConvTeacher(nn.Module):
    """Normalized images `[B, C, 32, 32]` to logits `[B, classes]`.

    Normalization layers have a bias and no gain, so every convolution may be rescaled freely: the optimizer keeps
    their norms fixed. `whiten` has to see training images before training starts.
    """

    def __init__(self, config: ConvTeacherConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ConvTeacherConfig()
        white = 2 * config.in_channels * _WHITEN_KERNEL**2
        self.whitening = nn.Conv2d(config.in_channels, white, _WHITEN_KERNEL, bias=True)
        self.whitening.weight.requires_grad = False
        widths = (white, *config.widths)
        self.groups = nn.ModuleList(ConvGroup(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], config.num_classes, bias=False)
        with torch.no_grad():
            cast(Tensor, self.whitening.bias).zero_()
            for conv in self.filters():
                nn.init.kaiming_uniform_(conv, a=5**0.5)
                nn.init.dirac_(conv[: conv.shape[1]])
            self.head.weight /= self.head.weight.std()

    def filters(self) -> list[nn.Parameter]:
        """The weights of the 3x3 convolutions."""
        groups = [cast(ConvGroup, group) for group in self.groups]
        convs = [conv for group in groups for conv in (group.conv1, group.conv2)]
        return [cast(nn.Parameter, conv.weight) for conv in convs]

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the first layer to the patches' principal directions, each scaled to unit variance, and their negatives.

        Args:
            images: normalized, `[B, C, S, S]`, a few thousand.
        """
        k = _WHITEN_KERNEL
        patches = F.unfold(images.float(), k).transpose(1, 2).flatten(0, 1).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        directions = (vectors / (values + _WHITEN_EPS).sqrt()).T.flip(0).view(-1, self.config.in_channels, k, k)
        self.whitening.weight.copy_(torch.cat([directions, -directions]).float())

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = F.gelu(self.whitening(x))
        for group in self.groups:
            x = group(x)
        logits: Tensor = self.head(F.max_pool2d(x, x.shape[-1]).flatten(1) / self.head.in_features**0.5)
        return logits


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-5, momentum=0.4)
    norm.weight.requires_grad = False
    return norm
