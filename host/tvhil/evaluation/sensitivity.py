# SPDX-License-Identifier: Apache-2.0
"""Sensitivity of each layer: what an FP32 model loses when that layer alone is ternary.

Activations stay real, so that the figures tell of the weights. The change of the logits is measured as the KL
divergence of the model's probabilities from those of the FP32 model, which tells layers apart long before answers
change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tvhil.models import VisionTransformer
from tvhil.quantization.convert import normalize
from tvhil.quantization.ternarizers import Ternarizer, ternarizer

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer.

    Attributes:
        layer: its name in the model.
        parameters: that become ternary.
        accuracy: share of the images answered right with this layer ternary; None without labels.
        agreement: share of the images answered as the FP32 model does.
        kl: mean KL divergence from the FP32 model's probabilities, in nats.
    """

    layer: str
    parameters: int
    accuracy: float | None
    agreement: float
    kl: float

    def to_json(self) -> dict[str, Any]:
        """A row of the report's `sensitivity`."""
        return {
            "layer": self.layer,
            "parameters": self.parameters,
            "accuracy": self.accuracy,
            "agreement": round(self.agreement, 9),
            "kl": float(f"{self.kl:.6g}"),
        }


def layers_of(model: VisionTransformer) -> list[str]:
    """Names of the layers that can be ternary, in the order of the forward pass."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm)]


@contextmanager
def ternary_layer(model: VisionTransformer, name: str, rule: Ternarizer) -> Iterator[int]:
    """Inside, one layer's weights (of a LayerNorm: gamma and beta) have their ternary values; yields their number.

    The patch embedding is ternarized as the device applies it, to pixels: its weights over the standard deviation of
    their colour.
    """
    layer = model.get_submodule(name)
    weight = cast(Tensor, layer.weight)
    changed = [weight, cast(Tensor, layer.bias)] if isinstance(layer, nn.LayerNorm) else [weight]
    kept = [t.detach().clone() for t in changed]
    with torch.no_grad():
        for t in changed:
            if isinstance(layer, nn.Conv2d):
                std = torch.tensor(model.config.preprocessing.std, device=t.device).view(1, -1, 1, 1)
                t.copy_(rule((t / std).flatten(1)).values().view_as(t) * std)
            elif t.ndim == 1:
                t.copy_(rule(t[None]).values()[0])
            else:
                t.copy_(rule(t).values())
    try:
        yield sum(t.numel() for t in changed)
    finally:
        with torch.no_grad():
            for t, before in zip(changed, kept, strict=True):
                t.copy_(before)


def sensitivity(
    model: VisionTransformer,
    images: Images,
    labels: npt.NDArray[np.integer[Any]] | None,
    *,
    rule: str = "twn",
    batch: int = 64,
    progress: Callable[[LayerSensitivity], None] = lambda _: None,
) -> list[LayerSensitivity]:
    """Make one layer after the other ternary and measure what changes.

    Args:
        model: FP32; it is as before afterwards.
        images: uint8 `[B, H, W, C]`, as the model takes them.
        labels: `[B]`, or None.
        rule: of `ternarizers.TERNARIZERS`.
        batch: images at a time.
        progress: told of every layer that is done, so that an interruption loses one layer only.
    """
    model.eval()
    device = next(model.parameters()).device
    pixels = normalize(images, model.config.preprocessing)
    chosen = ternarizer(rule)

    def run() -> Tensor:
        with torch.no_grad():
            parts = [model(part.to(device)).double().log_softmax(-1).cpu() for part in torch.split(pixels, batch)]
        return torch.cat(parts)

    reference = run()
    expected = reference.argmax(1)
    rows = []
    for name in layers_of(model):
        with ternary_layer(model, name, chosen) as count:
            got = run()
        answers = got.argmax(1)
        row = LayerSensitivity(
            layer=name,
            parameters=count,
            accuracy=None if labels is None else float(np.mean(answers.numpy() == labels)),
            agreement=float((answers == expected).double().mean()),
            kl=float((reference.exp() * (reference - got)).sum(1).mean()),
        )
        rows.append(row)
        progress(row)
    return rows
