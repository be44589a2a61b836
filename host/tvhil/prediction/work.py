# SPDX-License-Identifier: Apache-2.0
"""How much each operator of a model has to do, for either implementation of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvhil.errors import InputError
from tvhil.packing.format import BLOCK_TOKENS, OpKind, ScaleMode
from tvhil.packing.trits import Codec
from tvhil.prediction import pie_work as pie
from tvhil.prediction.flash_reads import CacheShape, flash_lines, patches_of
from tvhil.prediction.pie_work import IntArray, Phase, Rows
from tvhil.prediction.portable_work import PORTABLE

if TYPE_CHECKING:
    from tvhil.packing.reader import Operator, TvitModel

KERNELS = ("portable", "pie")
# Of models with per-token scales, which a build with PIE kernels runs on the portable ones.
PORTABLE_PREFIX = "portable_"


@dataclass(frozen=True)
class OperatorWork:
    """Amounts of work of one operator on some cores.

    Attributes:
        name: of the operator.
        kind: of the operator, in lower case.
        phases: what each core does until all wait for each other, one after the other.
        lines: for each phase, the lines that each core reads from flash; empty where the amounts contain them.
    """

    name: str
    kind: str
    phases: tuple[Phase, ...]
    lines: tuple[tuple[float, ...], ...] = ()

    @property
    def table(self) -> str:
        """The table of the cost model that knows its amounts. Matrices of PIE kernels are all multiplied alike."""
        return "linear" if self.kind == "patch_embed" and self.lines else self.kind


def kind_of(op: Operator) -> str:
    """The name of an operator's table in a cost model: its kind in lower case."""
    return op.kind.name.lower()


def model_work(
    model: TvitModel, kernels: str = "portable", cores: int = 1, cache: CacheShape | None = None
) -> list[OperatorWork]:
    """Amounts of work of every operator.

    Args:
        model: what runs.
        kernels: which implementation counts them, one of `KERNELS`. Models with per-token scales run on the portable
            kernels in every build.
        cores: that share each operator, where the kernels can.
        cache: of flash, for the PIE kernels; None: nothing is read from flash.

    Raises:
        InputError: unknown kernels.
    """
    if kernels not in KERNELS:
        raise InputError(f"the cost model is for kernels {kernels!r}; known: {', '.join(KERNELS)}")
    if kernels == "portable" or model.info.scale_mode is ScaleMode.PER_TOKEN:
        prefix = "" if kernels == "portable" else PORTABLE_PREFIX
        return [
            OperatorWork(op.name, prefix + kind_of(op), ((PORTABLE[op.kind](model, op),),)) for op in model.operators
        ]
    matrices = Matrices(model)
    phases = [pie_phases(model, op, cores, matrices) for op in model.operators]
    _count_tables(phases)
    lines = flash_lines(model, cache, [len(p) for p in phases], cores) if cache is not None else [[]] * len(phases)
    return [
        OperatorWork(op.name, kind_of(op), tuple(p), tuple(found))
        for op, p, found in zip(model.operators, phases, lines, strict=True)
    ]


def _count_tables(operators: list[list[Phase]]) -> None:
    """Add the tables by byte of a codec that a core makes anew, because its last ones were of another kind."""
    last: dict[int, str] = {}
    for counted in (False, True):  # the tables of the inference before are there
        for phases in operators:
            for phase in phases:
                for part, features in enumerate(phase):
                    table = next((name for name in _TABLES if features.get(name)), None)
                    if table is None:
                        continue
                    if counted and last[part] != table:
                        features[_TABLES[table]] = 1
                    last[part] = table


# By the amount that tells that a table is used.
_TABLES = {
    "bytes_base3": "code_tables_base3",
    "bytes_2bit": "code_tables_2bit",
    "lane_bytes_base3": "trit_tables_base3",
    "lane_bytes_2bit": "trit_tables_2bit",
}


class Matrices:
    """Instructions of each row of a model's matrices, counted once."""

    def __init__(self, model: TvitModel) -> None:
        self._model = model
        self._found: dict[tuple[int, int, int], IntArray] = {}

    def instructions(self, op: Operator) -> IntArray:
        """Of each output channel of a PATCH_EMBED or LINEAR operator."""
        key = op["trits_at"], op["n"], op["k"]
        if key not in self._found:
            gaps = Codec(op["codec"]) is Codec.GAPS
            model = self._model
            self._found[key] = model.row_instructions(op) if gaps else pie.row_instructions(model.weights(op).trits)
        return self._found[key]


def rows_of(model: TvitModel, op: Operator, matrices: Matrices) -> Rows:
    """What a LINEAR or PATCH_EMBED operator does with its matrix."""
    output, as_row, blocks = "i16_add", False, float(patches_of(model).blocks)
    if op.kind is OpKind.LINEAR:
        tensor = model.tensors[op.output]
        as_row = op.output == model.info.logits
        blocks = 1 if as_row else pie.blocks_of(op["rows"])
        output = "i16_add" if op.adds else "i16_set"
        if tensor.dtype.name == "I8":
            output = "table" if op.has_table else "i8_127" if op["limit"] == 127 else "i8"
        if as_row:
            output = "i16_set"
    return Rows(op["k"], Codec(op["codec"]), matrices.instructions(op), blocks, output, as_row)


def pie_phases(model: TvitModel, op: Operator, cores: int, matrices: Matrices) -> list[Phase]:
    """What the PIE kernels do for one operator."""
    if op.kind is OpKind.PATCH_EMBED:
        return pie.patch_embed(patches_of(model), rows_of(model, op, matrices), cores)
    if op.kind is OpKind.LINEAR:
        return pie.linear(rows_of(model, op, matrices), cores)
    if op.kind is OpKind.LAYERNORM:
        return pie.layernorm(model.tensors[op.inputs[0]].columns, op["rows"], cores, op["shift"])
    if op.kind is OpKind.MEAN_POOL:
        return pie.mean_pool(model.tensors[op.output].columns, op["first_row"] % BLOCK_TOKENS, op["rows"], cores)
    heads, head_dim, multiplier = op["heads"], op["head_dim"], op["exp_multiplier"]
    strided = model.tensors[op.inputs[1]].columns != head_dim
    return pie.attention(model.info.tokens, heads, head_dim, cores, strided, multiplier)


__all__ = ["KERNELS", "Matrices", "OperatorWork", "kind_of", "model_work", "pie_phases", "rows_of"]
