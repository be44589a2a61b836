# SPDX-License-Identifier: Apache-2.0
"""Write an `IntegerViT` as a `.tvit` file (device/FORMAT.md)."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvhil import __version__
from tvhil.errors import InputError
from tvhil.packing.format import (
    BLOCK_TOKENS,
    HEADER,
    LANE_LIMIT,
    MAGIC,
    MAX_OPERATORS,
    MODEL,
    NO_TENSOR,
    OP_ADD,
    OP_TABLE,
    OPERATOR,
    PARAMS,
    PLAN,
    PLAN_SCRATCH,
    SECTION,
    SECTION_TAGS,
    TENSOR,
    TENSOR_PER_TOKEN,
    VERSION,
    DType,
    OpKind,
    Plan,
    ScaleMode,
    align,
)
from tvhil.packing.integer_vit import IntArray, IntegerBlock, IntegerLayerNorm, IntegerLinear, IntegerViT
from tvhil.packing.schedule import Schedule, channel_chunks, token_groups
from tvhil.packing.trits import Codec, encode_matrix

# The memory plan of a file whose PLAN is still zero.
Planner = Callable[[bytes], Plan]


@dataclass(frozen=True)
class DraftOperator:
    """An operator before it becomes a record.

    Attributes:
        params: named as in `PARAMS`; what is not there is 0.
        channels: first and number of the layer's output channels, of a linear operator.
    """

    kind: OpKind
    name: str
    inputs: tuple[int, ...]
    output: int
    flags: int
    params: dict[str, int]
    channels: tuple[int, int] | None = None

    def __getitem__(self, key: str) -> int:
        return self.params.get(key, 0)

    def record(self, name_at: int) -> tuple[int, int, int, list[int], int, list[int]]:
        """The fields of an OPER record."""
        values = [self[key] & 0xFFFFFFFF for key in PARAMS[self.kind]]
        padded = [*self.inputs, *[NO_TENSOR] * (3 - len(self.inputs))]
        return int(self.kind), self.flags, name_at, padded, self.output, values + [0] * (12 - len(values))


class ModelBuilder:
    """Collects tensors, operators and data, then lays the file out."""

    def __init__(self) -> None:
        self._names = bytearray(b"\0")
        self._name_at: dict[str, int] = {"": 0}
        self._data = bytearray()
        self._data_at: dict[bytes, int] = {}
        self._tensors: list[tuple[int, int, int, int, int]] = []
        self.operators: list[DraftOperator] = []

    def name(self, text: str) -> int:
        """Offset of a string in NAME."""
        if text not in self._name_at:
            self._name_at[text] = len(self._names)
            self._names += text.encode() + b"\0"
        return self._name_at[text]

    def data(self, content: bytes) -> int:
        """Its offset in DATA, a multiple of 16; what is there already is not stored again."""
        key = hashlib.sha256(content).digest()
        if key in self._data_at:
            return self._data_at[key]
        self._data += bytes(align(len(self._data)) - len(self._data))
        at = self._data_at[key] = len(self._data)
        self._data += content
        return at

    def tensor(self, name: str, dtype: DType, rows: int, columns: int, per_token: bool = False) -> int:
        """Add a tensor; its id."""
        flags = TENSOR_PER_TOKEN if per_token else 0
        self._tensors.append((self.name(name), int(dtype), flags, rows, columns))
        return len(self._tensors) - 1

    def dtype(self, tensor: int) -> DType:
        """Of a tensor that was added."""
        return DType(self._tensors[tensor][1])

    def columns(self, tensor: int) -> int:
        """Of a tensor that was added."""
        return int(self._tensors[tensor][4])

    def operator(
        self, kind: OpKind, name: str, inputs: list[int], output: int, params: dict[str, int], flags: int = 0,
        channels: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        """Append an operator; the arguments are those of `DraftOperator`."""
        if unknown := params.keys() - set(PARAMS[kind]):
            raise TypeError(f"{kind.name} has no {sorted(unknown)}")
        self.name(name)
        self.operators.append(DraftOperator(kind, name, tuple(inputs), output, flags, params, channels))

    def finish(self, model: np.ndarray[Any, np.dtype[np.void]], meta: dict[str, Any], planner: Planner) -> bytes:
        """Plan the memory and return the file."""
        made = planner(self.draft(model, meta))
        plan = np.zeros(1, PLAN)
        plan[0]["arena_bytes"], plan[0]["scratch_bytes"] = made.arena_bytes, made.scratch_bytes
        offsets, scratches = np.array(made.offsets, "<u4"), np.array(list(made.scratches), PLAN_SCRATCH)
        return self._lay_out(model, plan.tobytes() + offsets.tobytes() + scratches.tobytes(), meta)

    def draft(self, model: np.ndarray[Any, np.dtype[np.void]], meta: dict[str, Any]) -> bytes:
        """The file with a plan of zeros, from which its memory is planned."""
        size = PLAN.itemsize + 4 * len(self._tensors) + PLAN_SCRATCH.itemsize * len(self.operators)
        return self._lay_out(model, bytes(size), meta)

    def _lay_out(self, model: np.ndarray[Any, np.dtype[np.void]], plan: bytes, meta: dict[str, Any]) -> bytes:
        operators = [operator.record(self.name(operator.name)) for operator in self.operators]
        contents = {
            "MODL": (model.tobytes(), 1),
            "TENS": (np.array(self._tensors, TENSOR).tobytes(), len(self._tensors)),
            "OPER": (np.array(operators, OPERATOR).tobytes(), len(self.operators)),
            "PLAN": (plan, 1),
            "NAME": (bytes(self._names), 0),
            "DATA": (bytes(self._data), 0),
            "META": (json.dumps(meta, ensure_ascii=False, separators=(",", ":")).encode(), 0),
        }
        table = np.zeros(len(SECTION_TAGS), SECTION)
        at = align(HEADER.itemsize + table.nbytes)
        body = bytearray()
        for entry, tag in zip(table, SECTION_TAGS, strict=True):
            content, count = contents[tag]
            entry["tag"], entry["offset"], entry["bytes"] = tag.encode(), at + len(body), len(content)
            entry["crc"], entry["count"] = zlib.crc32(content), count
            body += content.ljust(align(len(content)), b"\0")
        table_bytes = table.tobytes()
        rest = table_bytes.ljust(at - HEADER.itemsize, b"\0") + body
        header = np.zeros(1, HEADER)
        header[0]["magic"], header[0]["version"], header[0]["header_bytes"] = MAGIC, VERSION, HEADER.itemsize
        header[0]["file_bytes"] = HEADER.itemsize + len(rest)
        header[0]["section_count"] = len(table)
        header[0]["signature"] = np.void(hashlib.sha256(rest).digest())
        header[0]["table_crc"] = zlib.crc32(table_bytes)
        header[0]["header_crc"] = zlib.crc32(header.tobytes()[:60])
        return header.tobytes() + bytes(rest)


def check_proof_obligation(linear: IntegerLinear, xmax: int, name: str, terms: IntArray | None = None) -> None:
    """Refuse a matrix whose accumulators could leave a 20-bit lane (CONTRACT.md, section 1).

    Args:
        linear: the matrix.
        xmax: the largest magnitude of an input.
        name: for the message.
        terms: `[N]` products that an accumulator holds at most; the non-zero trits by default.

    Raises:
        InputError: naming the first channel that could reach most.
    """
    if terms is None:
        terms = np.count_nonzero(linear.trits, axis=1).astype(np.int64)
    gain, shift, bias = (np.asarray(a, np.int64) for a in (linear.gain, linear.shift, linear.bias))
    if ((gain < 1) | (gain > 127)).any() or ((shift < 0) | (shift > 31)).any():
        raise InputError(f"{name}: a gain outside 1 … 127 or a shift outside 0 … 31")
    bound = gain * xmax * terms + np.abs(bias)
    if (bound >= LANE_LIMIT).any():
        row = int(bound.argmax())
        raise InputError(
            f"{name}: channel {row} could reach {int(bound[row])}, and an accumulator holds less than {LANE_LIMIT}: "
            "use a smaller gain, or fewer inputs"
        )


def macs_of(vit: IntegerViT) -> int:
    """Multiply-accumulates of one inference (linear operators and both attention products)."""
    t, d = vit.tokens, vit.embed_dim
    macs = vit.patches * vit.patch_embed.trits.size
    for block in vit.blocks:
        matrices = (block.q, block.k, block.v, block.proj, block.fc1, block.fc2)
        macs += t * sum(m.trits.size for m in matrices) + 2 * t * t * d
    return macs + sum(head.trits.size for head in vit.heads_out)


class ModelWriter:
    """The operators of one model, piece by piece.

    Args:
        vit: the integers.
        codec: how the trits are stored.
        schedule: how the encoder is cut into operators.
        encode: stores trits; `trits.encode_matrix` but for planning.
    """

    def __init__(
        self, vit: IntegerViT, codec: Codec, schedule: Schedule, encode: Callable[..., bytes] = encode_matrix
    ) -> None:
        self.vit, self.codec, self.schedule, self.encode = vit, codec, schedule, encode
        self.build = ModelBuilder()
        self.per_token = vit.scale_mode is ScaleMode.PER_TOKEN
        self._stored: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._tables: dict[int, int] = {}  # places of GELU's tables and of LayerNorm's parameters

    def weights(self, name: str, m: IntegerLinear, first: int, channels: int, xmax: int) -> dict[str, int]:
        """Store output channels of a matrix, once; the operator's params that name it."""
        key = id(m), first, channels
        if key not in self._stored:
            part = slice(first, first + channels)
            piece = IntegerLinear(m.trits[part], m.gain[part], m.shift[part], m.bias[part])
            check_proof_obligation(piece, xmax, name)
            try:
                trits = self.encode(piece.trits.astype(np.int8), self.codec)
            except ValueError as error:
                raise InputError(f"{name}: {error}; pack it with another codec") from None
            if self.codec is Codec.GAPS:  # short rows add and subtract a vector that is not theirs
                short = np.flatnonzero(np.count_nonzero(piece.trits, axis=1) == 0)
                rows = IntegerLinear(piece.trits[short], piece.gain[short], piece.shift[short], piece.bias[short])
                check_proof_obligation(rows, xmax, f"{name}, channels without weights", np.ones(len(short), np.int64))
            self._stored[key] = self.build.data(trits), self.build.data(piece.channel_records().tobytes())
        trits_at, channels_at = self._stored[key]
        return {"k": m.trits.shape[1], "n": channels, "codec": self.codec, "trits_at": trits_at,
                "channels_at": channels_at}  # fmt: skip

    def linear(
        self, name: str, m: IntegerLinear, source: int, output: int, *, limit: int, rows: int, first_row: int = 0,
        output_row: int = 0, output_column: int = 0, channels: tuple[int, int] | None = None, adds: bool = False,
        table: IntArray | None = None,
    ) -> None:  # fmt: skip
        """A linear operator, or the `channels` (first, count) of one."""
        first, count = channels or (0, m.trits.shape[0])
        flags, table_at = OP_ADD if adds else 0, 0
        if table is not None:
            flags |= OP_TABLE
            if id(table) not in self._tables:
                entries = np.asarray(table).astype("<i2" if self.per_token else "i1")
                self._tables[id(table)] = self.build.data(entries.tobytes())
            table_at = self._tables[id(table)]
        self.build.operator(
            OpKind.LINEAR, name, [source], output,
            {
                **self.weights(name, m, first, count, 127), "limit": limit, "first_row": first_row, "rows": rows,
                "table_at": table_at, "output_row": output_row, "output_column": output_column,
            },
            flags, (first, count),
        )  # fmt: skip

    def layernorm(
        self, name: str, m: IntegerLayerNorm, source: int, output: int, rows: int, first_row: int = 0
    ) -> None:
        """LayerNorm of some rows, into the rows of the output from 0 on."""
        if id(m) not in self._tables:
            codes = ((np.asarray(m.gamma, int) + 1) * 3 + np.asarray(m.beta, int) + 1).astype(np.uint8)
            codes = np.pad(codes, (0, len(codes) % 2)).reshape(-1, 2) @ np.array([1, 16], np.uint8)
            self._tables[id(m)] = self.build.data(codes.tobytes())
        self.build.operator(
            OpKind.LAYERNORM, name, [source], output,
            {
                "first_row": first_row, "rows": rows, "gamma_beta_at": self._tables[id(m)],
                "c_low": m.c & 0xFFFFFFFF, "c_high": m.c >> 32, "beta_unit": m.beta_unit,
                "epsilon_low": m.epsilon & 0xFFFFFFFF, "epsilon_high": m.epsilon >> 32, "shift": m.shift,
            },
        )  # fmt: skip

    def activation(self, name: str, rows: int, columns: int, per_token: bool | None = None) -> int:
        """An int8 tensor, with multipliers in models of per-token scales unless told otherwise."""
        return self.build.tensor(name, DType.I8, rows, columns, self.per_token if per_token is None else per_token)

    def attention(self, at: str, block: IntegerBlock, stream: int) -> None:
        """LayerNorm, queries, keys, values, attention, projection."""
        vit, schedule = self.vit, self.schedule
        t, d, head_dim = vit.tokens, vit.embed_dim, vit.embed_dim // vit.heads
        groups = token_groups(0, t, schedule.attention_groups)
        normed = max(rows for _, rows in groups)
        x = self.activation(at + "norm1", normed, d)
        constants = {
            "head_dim": head_dim, "score_shift": block.attention.score_shift,
            "exp_multiplier": block.attention.exp_multiplier, "out_multiplier": block.attention.out_multiplier,
            "out_shift": block.attention.out_shift,
        }  # fmt: skip
        if not schedule.heads_split:
            targets = [(self.activation(f"{at}attn.{part}", t, d, per_token=False), 0) for part in "qkv"]
            self.queries_keys_values(at, block, stream, x, groups, targets, (0, d), normalize=True)
            o = self.activation(at + "attn", t, d)
            self.build.operator(OpKind.ATTENTION, at + "attn", [tensor for tensor, _ in targets], o,
                                {"heads": vit.heads, **constants})  # fmt: skip
        else:
            o = self.activation(at + "attn", t, d)
            for head in range(vit.heads):
                columns = [column * head_dim for column in range(head, vit.heads)]
                targets = [(o, columns[0])]
                for i, part in enumerate("kv", 1):
                    free = schedule.keys_in_output and i < len(columns)
                    targets.append((o, columns[i]) if free else (self.activation(f"{at}attn.{part}", t, head_dim), 0))
                again = head > 0 and len(groups) > 1
                if again:  # in a tensor of its own, so that none lies around during the attention of the head before
                    x = self.activation(at + "norm1", normed, d)
                self.queries_keys_values(
                    at, block, stream, x, groups, targets, (columns[0], head_dim), normalize=head == 0 or again
                )
                self.build.operator(
                    OpKind.ATTENTION, at + "attn", [tensor for tensor, _ in targets], o,
                    {
                        "heads": 1, **constants, "q_column": targets[0][1], "k_column": targets[1][1],
                        "v_column": targets[2][1], "output_column": columns[0],
                    },
                )  # fmt: skip
        self.linear(at + "attn.proj", block.proj, o, stream, adds=True, limit=32767, rows=t)

    def queries_keys_values(
        self, at: str, block: IntegerBlock, stream: int, x: int, groups: list[tuple[int, int]],
        targets: list[tuple[int, int]], channels: tuple[int, int], normalize: bool,
    ) -> None:  # fmt: skip
        """Some channels of q, k and v into (tensor, column) each, group by group."""
        for first_row, rows in groups:
            if normalize:
                self.layernorm(at + "norm1", block.norm1, stream, x, rows, first_row)
            parts = zip("qkv", (block.q, block.k, block.v), (block.q_limit, 127, 127), targets, strict=True)
            for part, m, limit, (tensor, column) in parts:
                self.linear(
                    f"{at}attn.{part}", m, x, tensor, limit=limit, rows=rows, output_row=first_row,
                    output_column=column, channels=channels,
                )  # fmt: skip

    def mlp(self, at: str, block: IntegerBlock, stream: int) -> None:
        """LayerNorm, fc1 with GELU, fc2."""
        vit, schedule = self.vit, self.schedule
        for start, count in token_groups(0, vit.tokens, schedule.mlp_passes):
            groups = token_groups(0, count, schedule.fc1_groups)
            x = self.activation(at + "norm2", max(rows for _, rows in groups), vit.embed_dim)
            hidden = self.activation(at + "mlp.fc1", count, vit.mlp_dim)
            for chunk, channels in enumerate(channel_chunks(vit.mlp_dim, schedule.fc1_chunks)):
                for first_row, rows in groups:
                    if chunk == 0 or len(groups) > 1:
                        self.layernorm(at + "norm2", block.norm2, stream, x, rows, start + first_row)
                    self.linear(
                        at + "mlp.fc1", block.fc1, x, hidden, limit=127, rows=rows, table=block.table,
                        output_row=first_row, output_column=channels[0], channels=channels,
                    )  # fmt: skip
            self.linear(at + "mlp.fc2", block.fc2, hidden, stream, adds=True, limit=32767, rows=count, output_row=start)

    def write(self, planner: Planner) -> bytes:
        """The whole file."""
        meta = {"name": self.vit.name, "tool_version": __version__, **self.vit.meta}
        return self.build.finish(self.describe(), meta, planner)

    def draft(self) -> bytes:
        """The file without its plan and META."""
        return self.build.draft(self.describe(), {})

    def describe(self) -> np.ndarray[Any, np.dtype[np.void]]:
        """Make all tensors and operators; the MODL record."""
        vit, build = self.vit, self.build
        t, d, prefix = vit.tokens, vit.embed_dim, len(vit.prefix)
        height, width = vit.image_size
        image = build.tensor("image", DType.U8, height, width * vit.channels)
        stream = build.tensor("stream", DType.I16, t, d)
        build.operator(
            OpKind.PATCH_EMBED, "patch_embed.proj", [image], stream,
            {
                **self.weights("patch_embed.proj", vit.patch_embed, 0, d, 128),
                "position_at": build.data(vit.position.astype(np.int8).tobytes()),
                "position_multiplier": vit.position_multiplier,
                "prefix_at": build.data(vit.prefix.astype("<i2").tobytes()),
            },
        )  # fmt: skip
        for i, block in enumerate(vit.blocks):
            self.attention(f"blocks.{i}.", block, stream)
            self.mlp(f"blocks.{i}.", block, stream)
        source, rows = stream, len(vit.heads_out)
        if vit.mean_pool:
            source, rows = build.tensor("pool", DType.I16, 1, d), 1
            build.operator(OpKind.MEAN_POOL, "pool", [stream], source, {"first_row": prefix, "rows": t - prefix})
        normed = self.activation("norm", rows, d)
        self.layernorm("fc_norm" if vit.mean_pool else "norm", vit.norm, source, normed, rows)
        logits = build.tensor("logits", DType.I16, 1, vit.classes)
        for i, head in enumerate(vit.heads_out):
            self.linear(("head", "head_dist")[i], head, normed, logits, adds=i > 0, limit=32767, rows=1,
                        first_row=0 if vit.mean_pool else i)  # fmt: skip
        model = np.zeros(1, MODEL)
        for key, value in {
            "image_height": height, "image_width": width, "image_channels": vit.channels,
            "patch_size": vit.patch_size, "tokens": t, "prefix_tokens": prefix, "embed_dim": d,
            "depth": len(vit.blocks), "heads": vit.heads, "head_dim": d // vit.heads, "mlp_dim": vit.mlp_dim,
            "classes": vit.classes, "scale_mode": int(vit.scale_mode), "stream": stream, "logits": logits,
            "parameters": vit.parameters, "macs": macs_of(vit), "logit_scale": vit.logit_scale,
            "name": vit.name.encode()[:63],
        }.items():  # fmt: skip
            model[0][key] = value
        return model


def check_schedule(vit: IntegerViT, schedule: Schedule) -> None:
    """Refuse a schedule that this model cannot have.

    Raises:
        InputError: what is in the way.
    """
    if vit.scale_mode is ScaleMode.PER_TOKEN and schedule != Schedule():
        raise InputError(f"{vit.name} has per-token activation scales: its layers are never split")
    head_dim = vit.embed_dim // vit.heads
    if schedule.heads_split and head_dim % BLOCK_TOKENS:
        raise InputError(f"{vit.name} has heads of {head_dim} columns, no multiple of 16: they stay together")
    if schedule.operators(len(vit.blocks), vit.heads) > MAX_OPERATORS:
        raise InputError(f"{vit.name} would have more than {MAX_OPERATORS} operators: split its layers less")


def pack_vit(
    vit: IntegerViT, codec: Codec = Codec.BASE3, planner: Planner | None = None, schedule: Schedule | None = None
) -> bytes:
    """The `.tvit` file of a model.

    Args:
        vit: the integers.
        codec: how the trits are stored.
        planner: plans the memory; the C runtime's by default.
        schedule: how the encoder is cut into operators; by default it is not cut.

    Raises:
        InputError: a channel fails its proof obligation, or the shapes or the schedule do not fit together.
    """
    if planner is None:
        from tvhil.runtime import plan_memory

        planner = plan_memory
    schedule = schedule or Schedule()
    check_schedule(vit, schedule)
    return ModelWriter(vit, codec, schedule).write(planner)


__all__ = [
    "DraftOperator",
    "ModelBuilder",
    "ModelWriter",
    "Planner",
    "check_proof_obligation",
    "check_schedule",
    "macs_of",
    "pack_vit",
]
