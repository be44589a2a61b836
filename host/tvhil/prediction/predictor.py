# SPDX-License-Identifier: Apache-2.0
"""Run a `.tvit` model on the host, bit for bit as the device will (device/CONTRACT.md)."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvhil.errors import InputError
from tvhil.packing.format import OpKind
from tvhil.packing.reader import Operator, Region, TvitModel
from tvhil.prediction import operators as ops

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class OperatorOutput:
    """What one operator wrote: the whole output tensor, or the rows and columns of it that are this operator's.

    What else is in the tensor is not the operator's and may not even be defined, so neither the CRC nor a comparison
    covers it. `of` takes the same part from a whole tensor, such as one that a board sent.

    Attributes:
        operator: index of the operator.
        region: the tensor, and its rows and columns that were written.
        values: `[rows][columns]` of the region, in the tensor's type.
        multipliers: u16 `[rows]` of the region, or None.
    """

    operator: int
    region: Region
    values: Array
    multipliers: Array | None

    @property
    def tensor(self) -> int:
        """Id of the output tensor."""
        return self.region.tensor

    def of(self, values: Array, multipliers: Array | None = None) -> tuple[Array, Array | None]:
        """The region of a whole tensor's values `[rows][columns]`, and of its multipliers `[rows]`."""
        rows, columns = self.region.slices
        return values[rows, columns], None if multipliers is None else multipliers[rows]

    @property
    def crc(self) -> int:
        """CRC-32 of the values, row by row, then of the multipliers where there are any (no padding in between)."""
        crc = zlib.crc32(self.values.tobytes())
        return crc if self.multipliers is None else zlib.crc32(self.multipliers.astype("<u2").tobytes(), crc)


# Tensor values (batched, `[B][rows][columns]`) and multipliers (`[B][rows]`) by tensor id.
_State = dict[int, tuple[Array, Array | None]]
# What an operator computes of it: values `[B][rows][columns]` of its region, and multipliers.
_Step = Callable[[_State], tuple[Array, Array | None]]


class Predictor:
    """Predicts logits and every intermediate tensor of a model.

    Args:
        model: a validated model file.
    """

    def __init__(self, model: TvitModel) -> None:
        self.model = model
        self._kernels: dict[tuple[int, ...], ops.LinearKernel] = {}
        self._steps: list[_Step] = [self._prepare(op) for op in model.operators]
        self._regions = [model.output_region(op) for op in model.operators]
        self._last_use: dict[int, int] = {}
        for i, op in enumerate(model.operators):
            for tensor in (*op.inputs, op.output):
                self._last_use[tensor] = i

    def run(self, images: Array, batch: int = 8) -> npt.NDArray[np.int16]:
        """Logits `[B][classes]` of uint8 images `[B][H][W][C]`, `batch` images at a time.

        Raises:
            InputError: images of another shape or type than the model's input.
        """
        images = self._checked(images)
        out = [self._run_batch(images[i : i + batch]) for i in range(0, len(images), batch)]
        return np.concatenate(out) if out else np.zeros((0, self.model.info.classes), np.int16)

    def trace(self, image: Array, last: int | None = None) -> list[OperatorOutput]:
        """The output of every operator up to `last` for one image `[H][W][C]`."""
        state: _State = {0: (self._checked(image[None]), None)}
        outputs = []
        for i, region in enumerate(self._regions):
            if last is not None and i > last:
                break
            self._apply(i, state)
            rows, columns = region.slices
            values, multipliers = state[region.tensor]
            outputs.append(
                OperatorOutput(
                    i, region, values[0, rows, columns].copy(),
                    None if multipliers is None else multipliers[0, rows].copy(),
                )
            )  # fmt: skip
        return outputs

    def _apply(self, index: int, state: _State) -> None:
        """Run one operator."""
        region = self._regions[index]
        tensor = self.model.tensors[region.tensor]
        values, multipliers = self._steps[index](state)
        if region.whole(tensor):
            state[region.tensor] = values, multipliers
            return
        if region.tensor not in state:
            empty = np.zeros((len(values), tensor.rows, tensor.columns), tensor.dtype.numpy)
            state[region.tensor] = empty, np.ones((len(values), tensor.rows), np.uint16) if tensor.per_token else None
        rows, columns = region.slices
        old_values, old_multipliers = state[region.tensor]
        old_values[:, rows, columns] = values
        if old_multipliers is not None:
            old_multipliers[:, rows] = multipliers

    def _checked(self, images: Array) -> Array:
        expected = self.model.info.input_shape
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise InputError(
                f"{self.model.name} takes uint8 images of {expected[0]}x{expected[1]}x{expected[2]}, "
                f"not {images.dtype} of {'x'.join(map(str, images.shape[1:]))}"
            )
        return images

    def _run_batch(self, images: Array) -> npt.NDArray[np.int16]:
        state: _State = {0: (images, None)}
        for i, op in enumerate(self.model.operators):
            self._apply(i, state)
            for tensor in {*op.inputs, op.output}:  # a set: attention may read one tensor twice
                if self._last_use[tensor] == i and tensor != self.model.info.logits:
                    del state[tensor]
        return state[self.model.info.logits][0][:, 0]

    def _prepare(self, op: Operator) -> _Step:
        return {
            OpKind.PATCH_EMBED: self._patch_embed,
            OpKind.LAYERNORM: self._layernorm,
            OpKind.LINEAR: self._linear,
            OpKind.ATTENTION: self._attention,
            OpKind.MEAN_POOL: self._mean_pool,
        }[op.kind](op)

    def _kernel(self, op: Operator) -> ops.LinearKernel:
        key = op["trits_at"], op["channels_at"], op["n"], op["k"], op["codec"]  # pieces may share their weights
        if key not in self._kernels:
            w = self.model.weights(op)
            self._kernels[key] = ops.LinearKernel(w.trits, w.gain, w.shift, w.bias)
        return self._kernels[key]

    def _patch_embed(self, op: Operator) -> _Step:
        kernel, info = self._kernel(op), self.model.info
        position = self.model.position(op).astype(np.int32) * op["position_multiplier"]
        prefix = self.model.prefix(op)

        def step(state: _State) -> tuple[Array, Array | None]:
            images = state[0][0]
            y = kernel.static(ops.image_to_patches(images, info.patch_size), 32767)
            stream = np.empty((len(images), info.tokens, info.embed_dim), np.int16)
            stream[:, : len(prefix)] = prefix
            stream[:, len(prefix) :] = ops.clamp(y.astype(np.int32) + position, 32767)
            return stream, None

        return step

    def _layernorm(self, op: Operator) -> _Step:
        gamma, beta = self.model.gamma_beta(op)
        c, epsilon = op["c_high"] << 32 | op["c_low"], op["epsilon_high"] << 32 | op["epsilon_low"]
        rows = slice(op["first_row"], op["first_row"] + op["rows"])
        per_token = self.model.tensors[op.output].per_token

        def step(state: _State) -> tuple[Array, Array | None]:
            x = state[op.inputs[0]][0][:, rows]
            limit = 32767 if per_token else 127
            y = ops.layernorm(x, gamma, beta, c, op["beta_unit"], epsilon, op["shift"], limit)
            return ops.quantize_rows(y) if per_token else (y.astype(np.int8), None)

        return step

    def _linear(self, op: Operator) -> _Step:
        kernel, output = self._kernel(op), self.model.tensors[op.output]
        rows = slice(op["first_row"], op["first_row"] + op["rows"])
        table, region = self.model.table(op) if op.has_table else None, self.model.output_region(op)

        def step(state: _State) -> tuple[Array, Array | None]:
            x, multipliers = state[op.inputs[0]]
            if multipliers is None:
                y = kernel.static(x[:, rows], op["limit"])
            else:
                y = kernel.per_token(x[:, rows], multipliers[:, rows], op["limit"])
            if op.adds:
                old = state[op.output][0][:, region.slices[0], region.slices[1]]
                return ops.clamp(old.astype(np.int32) + y.astype(np.int32), 32767).astype(np.int16), None
            if table is None:
                return y.astype(output.dtype.numpy), None
            y = table[y.astype(np.int32) + 128]
            return ops.quantize_rows(y) if output.per_token else (y.astype(np.int8), None)

        return step

    def _attention(self, op: Operator) -> _Step:
        per_token = self.model.tensors[op.output].per_token
        columns = [region.slices[1] for region in self.model.attention_inputs(op)]

        def step(state: _State) -> tuple[Array, Array | None]:
            q, k, v = (state[t][0][..., part] for t, part in zip(op.inputs, columns, strict=True))
            o = ops.attention(
                q, k, v, op["heads"], op["score_shift"], op["exp_multiplier"], op["out_multiplier"], op["out_shift"],
                32767 if per_token else 127,
            )  # fmt: skip
            return ops.quantize_rows(o) if per_token else (o.astype(np.int8), None)

        return step

    def _mean_pool(self, op: Operator) -> _Step:
        rows = slice(op["first_row"], op["first_row"] + op["rows"])
        return lambda state: (ops.mean_pool(state[op.inputs[0]][0][:, rows]), None)


__all__ = ["OperatorOutput", "Predictor"]
