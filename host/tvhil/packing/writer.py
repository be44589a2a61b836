# SPDX-License-Identifier: Apache-2.0
"""Write an `IntegerViT` as a `.tvit` file (device/FORMAT.md)."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tvhil import __version__
from tvhil.errors import InputError
from tvhil.packing.format import (
    HEADER,
    LANE_LIMIT,
    MAGIC,
    MODEL,
    NO_TENSOR,
    OP_ADD,
    OP_TABLE,
    OPERATOR,
    PARAMS,
    PLAN,
    SECTION,
    SECTION_TAGS,
    TENSOR,
    TENSOR_PER_TOKEN,
    VERSION,
    DType,
    OpKind,
    ScaleMode,
    align,
)
from tvhil.packing.integer_vit import IntArray, IntegerLayerNorm, IntegerLinear, IntegerViT
from tvhil.packing.trits import Codec, encode_matrix

# (arena_bytes, scratch_offset, scratch_bytes, offset of each tensor) of a file whose PLAN is still zero.
Planner = Callable[[bytes], tuple[int, int, int, list[int]]]


class ModelBuilder:
    """Collects tensors, operators and data, then lays the file out."""

    def __init__(self) -> None:
        self._names = bytearray(b"\0")
        self._name_at: dict[str, int] = {"": 0}
        self._data = bytearray()
        self._tensors: list[tuple[int, int, int, int, int]] = []
        self._operators: list[tuple[int, int, int, list[int], int, list[int]]] = []

    def name(self, text: str) -> int:
        """Offset of a string in NAME."""
        if text not in self._name_at:
            self._name_at[text] = len(self._names)
            self._names += text.encode() + b"\0"
        return self._name_at[text]

    def data(self, content: bytes) -> int:
        """Append to DATA at a multiple of 16; its offset."""
        self._data += bytes(align(len(self._data)) - len(self._data))
        at = len(self._data)
        self._data += content
        return at

    def tensor(self, name: str, dtype: DType, rows: int, columns: int, per_token: bool = False) -> int:
        """Add a tensor; its id."""
        flags = TENSOR_PER_TOKEN if per_token else 0
        self._tensors.append((self.name(name), int(dtype), flags, rows, columns))
        return len(self._tensors) - 1

    def operator(self, kind: OpKind, name: str, inputs: list[int], output: int, flags: int = 0, **params: int) -> None:
        """Append an operator; `params` are named as in `PARAMS`."""
        values = [params.pop(key, 0) & 0xFFFFFFFF for key in PARAMS[kind]]
        if params:
            raise TypeError(f"{kind.name} has no {sorted(params)}")
        padded = inputs + [NO_TENSOR] * (3 - len(inputs))
        self._operators.append((int(kind), flags, self.name(name), padded, output, values + [0] * (12 - len(values))))

    def finish(self, model: np.ndarray[Any, np.dtype[np.void]], meta: dict[str, Any], planner: Planner) -> bytes:
        """Plan the memory and return the file."""
        plan = np.zeros(1, PLAN)
        offsets = np.zeros(len(self._tensors), "<u4")
        draft = self._lay_out(model, plan, offsets, meta)
        arena_bytes, scratch_offset, scratch_bytes, tensor_offsets = planner(draft)
        plan[0] = (arena_bytes, scratch_offset, scratch_bytes, 0)
        offsets[:] = tensor_offsets
        return self._lay_out(model, plan, offsets, meta)

    def _lay_out(
        self,
        model: np.ndarray[Any, np.dtype[np.void]],
        plan: np.ndarray[Any, np.dtype[np.void]],
        offsets: np.ndarray[Any, np.dtype[np.uint32]],
        meta: dict[str, Any],
    ) -> bytes:
        contents = {
            "MODL": (model.tobytes(), 1),
            "TENS": (np.array(self._tensors, TENSOR).tobytes(), len(self._tensors)),
            "OPER": (np.array(self._operators, OPERATOR).tobytes(), len(self._operators)),
            "PLAN": (plan.tobytes() + offsets.tobytes(), 1),
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


def check_proof_obligation(linear: IntegerLinear, xmax: int, name: str) -> None:
    """Refuse a matrix whose accumulators could leave a 20-bit lane (CONTRACT.md, section 1)."""
    nnz = np.count_nonzero(linear.trits, axis=1).astype(np.int64)
    gain, shift, bias = (np.asarray(a, np.int64) for a in (linear.gain, linear.shift, linear.bias))
    if ((gain < 1) | (gain > 127)).any() or ((shift < 0) | (shift > 31)).any():
        raise InputError(f"{name}: a gain outside 1 … 127 or a shift outside 0 … 31")
    bound = gain * xmax * nnz + np.abs(bias)
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


def pack_vit(vit: IntegerViT, codec: Codec = Codec.BASE3, planner: Planner | None = None) -> bytes:
    """The `.tvit` file of a model.

    Args:
        vit: the integers.
        codec: how the trits are stored.
        planner: plans the memory; the C runtime's by default.

    Raises:
        InputError: a channel fails its proof obligation, or the shapes do not fit together.
    """
    if planner is None:
        from tvhil.runtime import plan_memory

        planner = plan_memory
    build = ModelBuilder()
    t, d, f = vit.tokens, vit.embed_dim, vit.mlp_dim
    per_token = vit.scale_mode is ScaleMode.PER_TOKEN
    height, width = vit.image_size
    prefix = len(vit.prefix)

    def linear(
        name: str, m: IntegerLinear, source: int, output: int, *, flags: int = 0, limit: int, rows: int,
        first_row: int = 0, table: IntArray | None = None,
    ) -> None:  # fmt: skip
        check_proof_obligation(m, 127, name)
        n, k = m.trits.shape
        table_at = 0
        if table is not None:
            flags |= OP_TABLE
            table_at = build.data(np.asarray(table).astype("<i2" if per_token else "i1").tobytes())
        build.operator(
            OpKind.LINEAR, name, [source], output, flags, k=k, n=n, codec=codec, limit=limit, first_row=first_row,
            rows=rows, table_at=table_at, trits_at=build.data(encode_matrix(m.trits.astype(np.int8), codec)),
            channels_at=build.data(m.channel_records().tobytes()),
        )  # fmt: skip

    def layernorm(name: str, m: IntegerLayerNorm, source: int, output: int, rows: int) -> None:
        codes = ((np.asarray(m.gamma, int) + 1) * 3 + np.asarray(m.beta, int) + 1).astype(np.uint8)
        codes = np.pad(codes, (0, len(codes) % 2)).reshape(-1, 2) @ np.array([1, 16], np.uint8)
        build.operator(
            OpKind.LAYERNORM, name, [source], output, first_row=0, rows=rows, gamma_beta_at=build.data(codes.tobytes()),
            c_low=m.c & 0xFFFFFFFF, c_high=m.c >> 32, beta_unit=m.beta_unit, epsilon_low=m.epsilon & 0xFFFFFFFF,
            epsilon_high=m.epsilon >> 32, shift=m.shift,
        )  # fmt: skip

    image = build.tensor("image", DType.U8, height, width * vit.channels)
    stream = build.tensor("stream", DType.I16, t, d)
    check_proof_obligation(vit.patch_embed, 128, "patch_embed.proj")
    build.operator(
        OpKind.PATCH_EMBED, "patch_embed.proj", [image], stream, k=vit.patch_embed.trits.shape[1], n=d, codec=codec,
        trits_at=build.data(encode_matrix(vit.patch_embed.trits.astype(np.int8), codec)),
        channels_at=build.data(vit.patch_embed.channel_records().tobytes()),
        position_at=build.data(vit.position.astype(np.int8).tobytes()), position_multiplier=vit.position_multiplier,
        prefix_at=build.data(vit.prefix.astype("<i2").tobytes()),
    )  # fmt: skip
    for i, block in enumerate(vit.blocks):
        at = f"blocks.{i}."

        def activation(name: str, columns: int, per_token: bool = per_token, at: str = at) -> int:
            return build.tensor(at + name, DType.I8, t, columns, per_token)

        x = activation("norm1", d)
        layernorm(at + "norm1", block.norm1, stream, x, t)
        q, k, v = (activation(f"attn.{part}", d, per_token=False) for part in "qkv")
        linear(at + "attn.q", block.q, x, q, limit=block.q_limit, rows=t)
        linear(at + "attn.k", block.k, x, k, limit=127, rows=t)
        linear(at + "attn.v", block.v, x, v, limit=127, rows=t)
        o = activation("attn", d)
        build.operator(
            OpKind.ATTENTION, at + "attn", [q, k, v], o, heads=vit.heads, head_dim=d // vit.heads,
            score_shift=block.attention.score_shift, exp_multiplier=block.attention.exp_multiplier,
            out_multiplier=block.attention.out_multiplier, out_shift=block.attention.out_shift,
        )  # fmt: skip
        linear(at + "attn.proj", block.proj, o, stream, flags=OP_ADD, limit=32767, rows=t)
        x = activation("norm2", d)
        layernorm(at + "norm2", block.norm2, stream, x, t)
        h = activation("mlp.fc1", f)
        linear(at + "mlp.fc1", block.fc1, x, h, limit=127, rows=t, table=block.table)
        linear(at + "mlp.fc2", block.fc2, h, stream, flags=OP_ADD, limit=32767, rows=t)
    source, rows = stream, len(vit.heads_out)
    if vit.mean_pool:
        source, rows = build.tensor("pool", DType.I16, 1, d), 1
        build.operator(OpKind.MEAN_POOL, "pool", [stream], source, first_row=prefix, rows=t - prefix)
    normed = build.tensor("norm", DType.I8, rows, d, per_token)
    layernorm("fc_norm" if vit.mean_pool else "norm", vit.norm, source, normed, rows)
    logits = build.tensor("logits", DType.I16, 1, vit.classes)
    for i, head in enumerate(vit.heads_out):
        linear(
            ("head", "head_dist")[i], head, normed, logits, flags=OP_ADD if i else 0, limit=32767, rows=1,
            first_row=0 if vit.mean_pool else i,
        )  # fmt: skip

    model = np.zeros(1, MODEL)
    for key, value in {
        "image_height": height, "image_width": width, "image_channels": vit.channels, "patch_size": vit.patch_size,
        "tokens": t, "prefix_tokens": prefix, "embed_dim": d, "depth": len(vit.blocks), "heads": vit.heads,
        "head_dim": d // vit.heads, "mlp_dim": f, "classes": vit.classes, "scale_mode": int(vit.scale_mode),
        "stream": stream, "logits": logits, "parameters": vit.parameters, "macs": macs_of(vit),
        "logit_scale": vit.logit_scale, "name": vit.name.encode()[:63],
    }.items():  # fmt: skip
        model[0][key] = value
    meta = {"name": vit.name, "tool_version": __version__, **vit.meta}
    return build.finish(model, meta, planner)


__all__ = ["ModelBuilder", "Planner", "check_proof_obligation", "macs_of", "pack_vit"]
