# SPDX-License-Identifier: Apache-2.0
"""Compare what a board computed with the prediction, and find the first element that differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvhil.prediction.predictor import OperatorOutput

IntArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Operator:
    """How an operator is called in a report: its index, the name in the file, its kind, its output tensor's name."""

    index: int
    name: str
    kind: str
    tensor: str


@dataclass(frozen=True)
class Divergence:
    """The first operator whose output differs, and the first element of that output that does.

    Attributes:
        part: 'value' for an element of the tensor, 'multiplier' for a per-token scale (then `channel` is None).
        reason: why there is no element, where there is none.
    """

    operator: Operator
    part: str = "value"
    token: int | None = None
    channel: int | None = None
    expected: int | None = None
    got: int | None = None
    bits: int = 8
    differing: int = 0
    elements: int = 0
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The `first_divergence` of a report."""
        return {
            "operator": self.operator.index,
            "name": self.operator.name,
            "kind": self.operator.kind,
            "tensor": self.operator.tensor,
            "part": self.part,
            "token": self.token,
            "channel": self.channel,
            "expected": self.expected,
            "got": self.got,
            "expected_hex": self._hex(self.expected),
            "got_hex": self._hex(self.got),
            "differing": self.differing,
            "elements": self.elements,
            "reason": self.reason,
        }

    def _hex(self, value: int | None) -> str | None:
        return None if value is None else f"0x{value & (1 << self.bits) - 1:0{self.bits // 4}x}"


def rank_of(logits: IntArray, label: int) -> int:
    """How many classes come before `label`; ties go to the lowest class index (CONTRACT.md, section 10)."""
    mine = logits[label]
    return int((logits > mine).sum() + (logits[:label] == mine).sum())


def max_abs_error(expected: IntArray, got: IntArray) -> int:
    """Largest difference of two rows of logits."""
    return int(np.abs(expected.astype(np.int64) - got.astype(np.int64)).max(initial=0))


def first_different_crc(expected: Sequence[OperatorOutput], crcs: Sequence[int]) -> int | None:
    """Index of the first operator whose output has another CRC than predicted."""
    for index, (output, crc) in enumerate(zip(expected, crcs, strict=True)):
        if output.crc != crc:
            return index
    return None


def first_different_element(
    operator: Operator, expected: OperatorOutput, values: IntArray, multipliers: IntArray | None
) -> Divergence:
    """The first element that an operator wrote, row by row, in which a tensor read from the board differs.

    Args:
        operator: that wrote it.
        expected: its predicted output.
        values: the whole tensor, `[rows][columns]`, from the board.
        multipliers: `[rows]` from the board, for a tensor with per-token scales.
    """
    region = expected.region
    values, multipliers = expected.of(values, multipliers)
    different = np.argwhere(expected.values != values)
    if len(different):
        row, column = (int(i) for i in different[0])
        return Divergence(
            operator, "value", region.row + row, region.column + column, int(expected.values[row, column]),
            int(values[row, column]), bits=8 * values.dtype.itemsize, differing=len(different), elements=values.size,
        )  # fmt: skip
    if expected.multipliers is not None and multipliers is not None:
        rows = np.flatnonzero(expected.multipliers != multipliers)
        if len(rows):
            row = int(rows[0])
            return Divergence(
                operator, "multiplier", region.row + row, None, int(expected.multipliers[row]), int(multipliers[row]),
                bits=16, differing=len(rows), elements=len(multipliers),
            )  # fmt: skip
    return Divergence(
        operator,
        reason="its CRC differed, but the tensor read back is as predicted: the board does not repeat itself",
    )


def locate_divergence(
    operators: Sequence[Operator],
    expected: Sequence[OperatorOutput],
    trace: Callable[[], tuple[IntArray, Sequence[int]]],
    read_output: Callable[[int], tuple[IntArray, IntArray | None]],
) -> Divergence:
    """Run the image again and explain a mismatch.

    Args:
        operators: of the model, in execution order.
        expected: their predicted outputs.
        trace: runs the image on the board; its logits and the CRC-32 of each operator's output.
        read_output: runs the image up to an operator; values and per-token multipliers of its output.
    """
    logits, crcs = trace()
    index = first_different_crc(expected, crcs)
    if index is not None:
        values, multipliers = read_output(index)
        return first_different_element(operators[index], expected[index], values, multipliers)
    last = expected[-1]
    if np.array_equal(np.ravel(last.values), np.ravel(logits)):
        return Divergence(
            operators[-1], reason="the second run of the same image was as predicted: the board does not repeat itself"
        )
    return first_different_element(operators[-1], last, logits.reshape(last.values.shape), None)
