# SPDX-License-Identifier: Apache-2.0
"""The ways to compute a model's answer that `evaluate` compares: FP32 and fake-quantized torch, integers, a board."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from tvhil.errors import InputError, UsageError
from tvhil.evaluation.compare import rank_of
from tvhil.evaluation.device import Device, Run
from tvhil.evaluation.run import Evaluation, Input, Predicted
from tvhil.packing.format import OpKind
from tvhil.packing.reader import TvitModel
from tvhil.prediction import Predictor
from tvhil.prediction.operators import softmax_probabilities

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tvhil.models import Preprocessing, VisionTransformer

Images = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.floating[Any]]
FP32, FAKE_QUANTIZED, INTEGER, DEVICE = "fp32", "fake-quantized", "integer", "device"


class Implementation:
    """One way to compute logits.

    Attributes:
        name: what a report calls it.
        kind: 'fp32', 'fake-quantized', 'integer' or 'device'.
        source: file that it came from.
        twin: identifies the model; implementations of one model share it.
        input_shape: `[H, W, C]` of its images.
        classes: number of logits.
        preprocessing: how its images are made; None where the model file does not say.
        parameters: of the model.
        bytes: of the model as it is stored; None where the same model is stored by another implementation.
        estimated: whether `bytes` is an estimate, of a model that cannot be packed.
        prefix_tokens: tokens before those of the patches.
        pooled: whether the answer is read from the mean of the patches instead of the class token.
        mirrored: whether logits are the mean of those of the image and of its mirror image (left and right).
    """

    name: str
    kind: str
    source: str
    twin: str
    input_shape: tuple[int, int, int]
    classes: int
    preprocessing: Preprocessing | None
    parameters: int
    bytes: int | None
    estimated: bool = False
    mirrored: bool = False
    prefix_tokens: int
    pooled: bool

    def logits(self, images: Images, items: Sequence[Input]) -> Logits:
        """Real logits `[B][classes]` of images `[B][H][W][C]`; `items` tells what they are."""
        raise NotImplementedError

    def attention(self, image: Images) -> list[npt.NDArray[np.float64]] | None:
        """Attention probabilities `[heads][T][T]` of each block for one image `[H][W][C]`, where they can be had."""
        del image
        return None


class TorchImplementation(Implementation):
    """A torch model, FP32 or fake-quantized, on the GPU where there is one.

    `vit` is the model where it is a ViT, and None of others, which have no attention to show.

    Args:
        name: for the report.
        model: a ViT, or another classifier with `config.num_classes` and `config.preprocessing`.
        source: its file.
        stored: its size in bytes, where that is not counted elsewhere.
        twin: of the model, by default a name of its own.
    """

    preprocessing: Preprocessing

    def __init__(
        self, name: str, model: nn.Module, source: str, stored: int | None = None, twin: str | None = None
    ) -> None:
        import torch

        from tvhil.models import VisionTransformer
        from tvhil.quantization import quantization_of
        from tvhil.quantization.convert import parameter_count

        config = cast(Any, model).config
        self.vit = model if isinstance(model, VisionTransformer) else None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device)
        self.name, self.source, self.bytes, self.twin = name, source, stored, twin or name
        self.kind = FP32 if self.vit is None or quantization_of(self.vit) is None else FAKE_QUANTIZED
        pre = config.preprocessing
        self.preprocessing, self.input_shape = pre, (pre.image_size, pre.image_size, pre.channels)
        self.classes, self.parameters = config.num_classes, parameter_count(model)
        if self.kind == FP32 and stored is None:
            self.bytes = 4 * self.parameters
        self.prefix_tokens = 0 if self.vit is None else self.vit.config.num_prefix_tokens
        self.pooled = self.vit is not None and self.vit.config.pool == "avg"

    def logits(self, images: Images, items: Sequence[Input]) -> Logits:
        """The forward pass; with `mirrored` the mean of two (test-time augmentation, arXiv 2404.00498)."""
        import torch

        from tvhil.quantization.convert import normalize

        del items
        with torch.no_grad():
            x = normalize(images, self.preprocessing).to(self.device)
            logits = self.model(x).float()
            if self.mirrored:
                logits = (logits + self.model(x.flip(-1)).float()) / 2
        return cast(Logits, logits.cpu().numpy())

    def attention(self, image: Images) -> list[npt.NDArray[np.float64]] | None:
        """Probabilities in real arithmetic from the q and k that the attention sees; None of a model without."""
        if self.vit is None:
            return None
        import torch

        from tvhil.quantization.build import blocks_of
        from tvhil.quantization.convert import normalize

        blocks = blocks_of(self.vit)
        seen: dict[str, torch.Tensor] = {}
        hooks = []
        for i, block in enumerate(blocks):
            for letter, module in (("q", block.attn.quant_q), ("k", block.attn.quant_k)):
                hooks.append(module.register_forward_hook(_keep(seen, f"{letter}{i}")))
        try:
            with torch.no_grad():
                self.vit(normalize(image[None], self.preprocessing).to(self.device))
                maps = [
                    (seen[f"q{i}"][0].double() @ seen[f"k{i}"][0].double().transpose(-2, -1)) * block.attn.scale
                    for i, block in enumerate(blocks)
                ]
                return [scores.softmax(-1).cpu().numpy() for scores in maps]
        finally:
            for hook in hooks:
                hook.remove()


def _keep(seen: dict[str, torch.Tensor], key: str) -> Callable[[Any, Any, torch.Tensor], None]:
    """A hook that keeps a module's output."""

    def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        seen[key] = output

    return hook


class IntegerImplementation(Implementation):
    """The integer predictor of a `.tvit` file."""

    def __init__(
        self,
        name: str,
        model: TvitModel,
        preprocessing: Preprocessing | None,
        source: str,
        twin: str | None = None,
    ) -> None:
        info = model.info
        self.tvit, self.predictor = model, Predictor(model)
        self.name, self.kind, self.source, self.twin = name, INTEGER, source, twin or name
        self.input_shape, self.classes, self.preprocessing = info.input_shape, info.classes, preprocessing
        self.parameters, self.bytes = info.parameters, model.file_bytes
        self.prefix_tokens = info.prefix_tokens
        self.pooled = any(op.kind is OpKind.MEAN_POOL for op in model.operators)
        self.last: npt.NDArray[np.int16] | None = None

    def logits(self, images: Images, items: Sequence[Input]) -> Logits:
        """The integer logits times their scale; the integers themselves stay in `last`."""
        del items
        self.last = self.predictor.run(images)
        return self.last * np.float64(self.tvit.info.logit_scale)

    def attention(self, image: Images) -> list[npt.NDArray[np.float64]]:
        """The probabilities that the integer softmax makes, each row divided by its sum."""
        last = max(i for i, op in enumerate(self.tvit.operators) if op.kind is OpKind.ATTENTION)
        values: dict[int, npt.NDArray[Any]] = {}
        maps: dict[str, list[npt.NDArray[np.float64]]] = {}  # of each layer; its heads may be several operators
        outputs = self.predictor.trace(image, last)
        for op, output in zip(self.tvit.operators, outputs, strict=False):
            if op.kind is OpKind.ATTENTION:
                q, k = (
                    values[read.tensor][read.slices]
                    .astype(np.float32)
                    .reshape(read.rows, op["heads"], -1)
                    .swapaxes(0, 1)
                    for read in self.tvit.attention_inputs(op)[:2]
                )
                p = softmax_probabilities(q @ k.swapaxes(1, 2), op["score_shift"], op["exp_multiplier"])
                maps.setdefault(op.name, []).append(p / p.sum(-1, keepdims=True, dtype=np.float64))
            tensor = self.tvit.tensors[output.tensor]
            whole = values.setdefault(output.tensor, np.zeros((tensor.rows, tensor.columns), tensor.dtype.numpy))
            whole[output.region.slices] = output.values
        return [np.concatenate(heads) for heads in maps.values()]


class DeviceImplementation(Implementation):
    """A board that runs the model of an integer implementation, image by image, with a journal.

    Args:
        name: for the report.
        integer: the prediction that each image is compared with; it must be asked for an image before the board is.
        evaluation: compares and keeps the journal.
        device: the running board.
    """

    def __init__(self, name: str, integer: IntegerImplementation, evaluation: Evaluation, device: Device) -> None:
        self.name, self.kind, self.source, self.bytes = name, DEVICE, integer.source, None
        self.twin, self.input_shape, self.classes = integer.twin, integer.input_shape, integer.classes
        self.preprocessing, self.parameters = integer.preprocessing, integer.parameters
        self.prefix_tokens, self.pooled = integer.prefix_tokens, integer.pooled
        self.integer, self.evaluation, self.device = integer, evaluation, _FirstRun(device)
        evaluation.begin(device.facts())

    def logits(self, images: Images, items: Sequence[Input]) -> Logits:
        """What the board answers."""
        expected = self.integer.last
        assert expected is not None
        out: list[npt.NDArray[np.integer[Any]]] = []
        for item, image, predicted in zip(items, images, expected, strict=True):
            self.device.output = None
            row = self.evaluation.measure(self.device, Predicted(item, image, predicted))
            self.evaluation.record(row)
            assert self.device.output is not None
            out.append(self.device.output.reshape(-1))
        return np.stack(out) * np.float64(self.integer.tvit.info.logit_scale)

    def finish(self) -> None:
        """Note the board's memory in the journal."""
        self.evaluation.record({"memory": self.device.memory()})


class _FirstRun:
    """A device that remembers the output of the first run after `output` was cleared."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.output: npt.NDArray[np.integer[Any]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def run(self, image: Images, *, crcs: bool = False, last: int | None = None) -> Run:
        result = self._device.run(image, crcs=crcs, last=last)
        if self.output is None:
            self.output = result.output
        return result


class Answers:
    """What one implementation answered, image by image."""

    def __init__(self) -> None:
        self.top1: list[int] = []
        self.confidence: list[float] = []
        self.rank: list[int] = []  # of the label; -1 without one

    def add(self, logits: Logits, labels: Iterable[int | None]) -> None:
        """Take logits `[B][classes]` into account."""
        from tvhil.evaluation.metrics import softmax

        probabilities = softmax(logits)
        for row, p, label in zip(logits, probabilities, labels, strict=True):
            answer = int(row.argmax())
            self.top1.append(answer)
            self.confidence.append(float(p[answer]))
            self.rank.append(-1 if label is None else rank_of(row, label))


def estimated_bytes(model: VisionTransformer) -> int:
    """Size of a fake-quantized model that the format cannot hold, if it could.

    Trits at five a byte, 8-bit weights at one, four bytes for each output channel of a quantized layer and for each
    parameter that keeps full precision, one for each value of the position embedding.
    """
    from tvhil.quantization import quantization_of
    from tvhil.quantization.layers import TernaryLayerNorm, TernaryLinear

    quantization = quantization_of(model)
    per_byte = 1 if quantization is not None and quantization.ternarizer.startswith("int8") else 5
    total = model.pos_embed.numel()
    for module in model.modules():
        own = [p for name, p in module.named_parameters(recurse=False) if name in ("weight", "bias")]
        if isinstance(module, TernaryLinear):
            rows = module.out_features
            total += rows * (-(-module.in_features // per_byte) + 4)
        elif isinstance(module, TernaryLayerNorm):
            total += sum(-(-p.numel() // per_byte) for p in own)
        else:
            total += 4 * sum(p.numel() for p in own)
    return total


def check_same_classes(implementations: Sequence[Implementation]) -> None:
    """Refuse to compare models that tell other classes apart.

    Raises:
        UsageError: both numbers.
    """
    first = implementations[0]
    for other in implementations[1:]:
        if other.classes != first.classes:
            raise UsageError(
                f"{other.source} has {other.classes} classes, {first.source} has {first.classes}: "
                "they cannot be compared"
            )


def check_finite(implementation: Implementation, logits: Logits, items: Sequence[Input]) -> None:
    """Refuse logits that are no numbers.

    Raises:
        InputError: the implementation and the first image.
    """
    bad = np.flatnonzero(~np.isfinite(logits).all(-1))
    if len(bad):
        raise InputError(
            f"{implementation.source}: the logits of {implementation.name} for image {items[bad[0]].id} are not "
            "finite; its weights overflow, so it is of no use as it is"
        )
