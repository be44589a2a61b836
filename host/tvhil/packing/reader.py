# SPDX-License-Identifier: Apache-2.0
"""Read and validate a `.tvit` file: the same refusals, with the same codes, as the C runtime."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from tvhil.errors import InputError
from tvhil.packing.format import (
    ALIGN,
    BLOCK_TOKENS,
    HEADER,
    LANE_LIMIT,
    MAGIC,
    MAX_OPERATORS,
    MAX_SECTIONS,
    MAX_TENSORS,
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
    ModelError,
    OpKind,
    Plan,
    ScaleMode,
    Status,
    align,
)
from tvhil.packing.trits import (
    GAPS_MOST_INPUTS,
    Codec,
    decode_matrix,
    gaps_instructions,
    gaps_row_instructions,
    matrix_bytes,
)

_PLAN_BLOCK = 64  # tensors that the C runtime checks together: the order of its refusals
_MOST_BYTES = 0xFFFFFFFF  # the header's file_bytes has 32 bits


@dataclass(frozen=True)
class ModelInfo:
    """The MODL record."""

    image_height: int
    image_width: int
    image_channels: int
    patch_size: int
    tokens: int
    prefix_tokens: int
    embed_dim: int
    depth: int
    heads: int
    head_dim: int
    mlp_dim: int
    classes: int
    scale_mode: ScaleMode
    stream: int
    logits: int
    parameters: int
    macs: int
    logit_scale: float
    name: str

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`[H, W, C]` of the uint8 image."""
        return self.image_height, self.image_width, self.image_channels


@dataclass(frozen=True)
class Tensor:
    """A TENS record: `rows x columns` values, and a u16 multiplier a row where `per_token`.

    In memory the tensor has `rows_in_memory`: whole blocks of 16 tokens, but for image, logits and models with
    per-token scales.
    """

    name: str
    dtype: DType
    per_token: bool
    rows: int
    columns: int
    rows_in_memory: int

    @property
    def value_bytes(self) -> int:
        """Bytes of the values alone, row by row without padding: what a board sends."""
        return self.rows * self.columns * self.dtype.numpy.itemsize

    @property
    def bytes(self) -> int:
        """Bytes in the arena: values, padded to 16, then the multipliers."""
        values = self.rows_in_memory * self.columns * self.dtype.numpy.itemsize
        return align(values) + 2 * self.rows if self.per_token else values


@dataclass(frozen=True)
class Region:
    """A part of a tensor."""

    tensor: int
    row: int
    rows: int
    column: int
    columns: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Of its rows and its columns."""
        return slice(self.row, self.row + self.rows), slice(self.column, self.column + self.columns)

    def whole(self, tensor: Tensor) -> bool:
        """Whether it is all of the tensor."""
        return (self.rows, self.columns) == (tensor.rows, tensor.columns)


@dataclass(frozen=True)
class Operator:
    """An OPER record; `params` by the names in `format.PARAMS`."""

    kind: OpKind
    name: str
    inputs: tuple[int, ...]
    output: int
    adds: bool
    has_table: bool
    params: dict[str, int]

    def __getitem__(self, key: str) -> int:
        return self.params[key]


@dataclass(frozen=True)
class LinearWeights:
    """Decoded weights of a linear operator.

    Attributes:
        trits: int8 `[N][K]`.
        gain, shift, bias: `[N]`.
        terms: `[N]`, the most products that an accumulator holds at once (`trits.Matrix`).
        bytes: of the trits in the file.
    """

    trits: npt.NDArray[np.int8]
    gain: npt.NDArray[np.int32]
    shift: npt.NDArray[np.int32]
    bias: npt.NDArray[np.int32]
    terms: npt.NDArray[np.int64]
    bytes: int


class TvitModel:
    """A validated model file.

    Args:
        file: the bytes of the file.
        check_plan: also validate PLAN (off while the packer is still computing it).

    Raises:
        ModelError: with the status code, the section, the record and the reason.
    """

    def __init__(self, file: bytes, check_plan: bool = True) -> None:
        self.file = file
        self.sections = self._read_sections()
        self.info = self._read_info()
        self.tensors = self._read_tensors()
        self.operators = self._read_operators()
        self._check_info()
        self._check_graph()
        self.plan = self._read_plan(check_plan)
        try:
            self.meta: dict[str, Any] = json.loads(bytes(self.sections["META"][0]).decode())
            if not isinstance(self.meta, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            raise ModelError(Status.BAD_SECTION, "META", None, f"not JSON: {error}") from None

    # -- what people ask for ------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The model's name."""
        return self.info.name

    @property
    def signature(self) -> str:
        """SHA-256 of the file behind its header, in hex; a board reports the same."""
        return self.file[16:48].hex()

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return len(self.file)

    @property
    def sha256(self) -> str:
        """SHA-256 of the whole file, in hex."""
        return hashlib.sha256(self.file).hexdigest()

    @property
    def classes(self) -> list[str]:
        """Class names, `class 0` … where the file has none."""
        names = self.meta.get("classes")
        names = names if isinstance(names, list) else []
        return [str(names[i]) if i < len(names) else f"class {i}" for i in range(self.info.classes)]

    def weights(self, op: Operator) -> LinearWeights:
        """Decode the weights of a PATCH_EMBED or LINEAR operator."""
        n, k = op["n"], op["k"]
        matrix = decode_matrix(self._data_from(op["trits_at"]), n, k, Codec(op["codec"]))
        records = np.frombuffer(self.data(op["channels_at"], 4 * n), "<i4")
        return LinearWeights(matrix.trits, records >> 5 & 127, records & 31, records >> 12, matrix.terms, matrix.bytes)

    def instructions(self, op: Operator) -> int:
        """Instructions of a PATCH_EMBED or LINEAR operator's matrix, which is stored in codec gaps."""
        return gaps_instructions(self._data_from(op["trits_at"]), op["n"])

    def row_instructions(self, op: Operator) -> npt.NDArray[np.int64]:
        """The same for each output channel, `[n]`."""
        return gaps_row_instructions(self._data_from(op["trits_at"]), op["n"])

    def output_region(self, op: Operator) -> Region:
        """What an operator writes."""
        output = self.tensors[op.output]
        if op.kind is OpKind.LINEAR:
            return Region(op.output, op["output_row"], op["rows"], op["output_column"], op["n"])
        if op.kind is OpKind.LAYERNORM:
            return Region(op.output, 0, op["rows"], 0, output.columns)
        if op.kind is OpKind.ATTENTION:
            return Region(op.output, 0, output.rows, op["output_column"], op["heads"] * op["head_dim"])
        return Region(op.output, 0, output.rows, 0, output.columns)

    def table(self, op: Operator) -> npt.NDArray[np.integer[Any]]:
        """The 256 entries of an operator's table."""
        dtype = np.dtype("<i2" if self.tensors[op.output].per_token else "i1")
        return np.frombuffer(self.data(op["table_at"], 256 * dtype.itemsize), dtype)

    def gamma_beta(self, op: Operator) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The trits of gamma and beta of a LAYERNORM operator."""
        n = self.tensors[op.inputs[0]].columns
        pairs = np.frombuffer(self.data(op["gamma_beta_at"], (n + 1) // 2), np.uint8).astype(np.int64)
        codes = np.stack([pairs & 15, pairs >> 4], 1).reshape(-1)[:n]
        return codes // 3 - 1, codes % 3 - 1

    def position(self, op: Operator) -> npt.NDArray[np.int8]:
        """The int8 position embedding `[patches][N]` of PATCH_EMBED."""
        patches = self.info.tokens - self.info.prefix_tokens
        return np.frombuffer(self.data(op["position_at"], patches * op["n"]), np.int8).reshape(patches, op["n"])

    def prefix(self, op: Operator) -> npt.NDArray[np.int16]:
        """The int16 prefix tokens `[prefix][N]` of PATCH_EMBED."""
        rows, n = self.info.prefix_tokens, op["n"]
        return np.frombuffer(self.data(op["prefix_at"], 2 * rows * n), "<i2").reshape(rows, n)

    def data(self, at: int, size: int) -> memoryview:
        """`size` bytes at offset `at` of DATA."""
        content = self.sections["DATA"][0]
        if at + size > len(content) or at % ALIGN:
            reason = f"data at {at} (+{size}) is outside DATA or misaligned"
            raise ModelError(Status.BAD_PARAMETER, "OPER", None, reason)
        return content[at : at + size]

    def _data_from(self, at: int) -> memoryview:
        return self.data(at, len(self.sections["DATA"][0]) - at if at <= len(self.sections["DATA"][0]) else 0)

    def attention_inputs(self, op: Operator) -> tuple[Region, Region, Region]:
        """The queries, keys and values that an ATTENTION operator reads."""
        width = op["heads"] * op["head_dim"]
        q, k, v = (
            Region(t, 0, self.tensors[t].rows, op[f"{part}_column"], width)
            for t, part in zip(op.inputs, "qkv", strict=True)
        )
        return q, k, v

    def input_regions(self, op: Operator) -> tuple[Region, ...]:
        """What an operator reads, the tensor it adds to included."""
        if op.kind is OpKind.ATTENTION:
            return self.attention_inputs(op)
        source = op.inputs[0]
        first, rows = op.params.get("first_row", 0), op.params.get("rows", self.tensors[source].rows)
        region = Region(source, first, rows, 0, self.tensors[source].columns)
        return (region, self.output_region(op)) if op.adds else (region,)

    # -- validation ---------------------------------------------------------------------------------------

    def _read_sections(self) -> dict[str, tuple[memoryview, int]]:
        file = self.file
        if len(file) < HEADER.itemsize:
            raise ModelError(Status.BAD_SIZE, "", None, f"{len(file)} bytes are too few for a header")
        header = np.frombuffer(file, HEADER, 1)[0]
        if header["magic"] != MAGIC:
            raise ModelError(Status.BAD_MAGIC, "", None, "this is no .tvit file")
        if zlib.crc32(file[:60]) != header["header_crc"]:
            raise ModelError(Status.BAD_CRC, "", 0, "the header's CRC-32 does not match")
        if header["version"] != VERSION:
            raise ModelError(
                Status.BAD_VERSION, "", None, f"version {header['version']}; this tvhil reads version {VERSION}"
            )
        count = int(header["section_count"])
        if header["header_bytes"] != HEADER.itemsize or header["reserved"].any():
            raise ModelError(Status.BAD_SECTION, "", None, "a header field is out of range")
        if header["file_bytes"] != len(file) or len(file) % ALIGN:
            raise ModelError(Status.BAD_SIZE, "", None, f"{header['file_bytes']} bytes announced, {len(file)} there")
        table_end = HEADER.itemsize + count * SECTION.itemsize
        if not 5 <= count <= MAX_SECTIONS or table_end > len(file):
            raise ModelError(Status.BAD_SECTION, "", None, f"{count} sections")
        table_bytes = file[HEADER.itemsize : table_end]
        if zlib.crc32(table_bytes) != header["table_crc"]:
            raise ModelError(Status.BAD_CRC, "", 1, "the section table's CRC-32 does not match")
        sections: dict[str, tuple[memoryview, int]] = {}
        end = table_end
        for i, entry in enumerate(np.frombuffer(table_bytes, SECTION)):
            tag = entry["tag"].decode("latin-1")
            at, size = int(entry["offset"]), int(entry["bytes"])
            if tag not in SECTION_TAGS or tag in sections:
                raise ModelError(Status.BAD_SECTION, "", i, f"section {tag!r} is unknown or repeated")
            if at % ALIGN or at < end or at + size > len(file) or entry["reserved"].any():
                raise ModelError(Status.BAD_SECTION, tag, None, f"misplaced: offset {at}, {size} bytes")
            if zlib.crc32(file[at : at + size]) != entry["crc"]:
                raise ModelError(Status.BAD_CRC, tag, 2 + i, "the section's CRC-32 does not match")
            end = at + size
            sections[tag] = memoryview(file)[at:end], int(entry["count"])
        for tag in SECTION_TAGS:
            if tag not in sections:
                raise ModelError(Status.BAD_SECTION, tag, None, "the section is missing")
        if hashlib.sha256(file[HEADER.itemsize :]).digest() != header["signature"].tobytes():
            raise ModelError(Status.BAD_CRC, "", None, "the signature does not match the content")
        return sections

    def _records(self, tag: str, dtype: np.dtype[np.void], most: int) -> npt.NDArray[np.void]:
        content, count = self.sections[tag]
        if not 1 <= count <= most or count * dtype.itemsize != len(content):
            raise ModelError(Status.BAD_SECTION, tag, None, f"{count} records in {len(content)} bytes")
        return np.frombuffer(content, dtype)

    def _text(self, tag: str, index: int, at: int) -> str:
        names = bytes(self.sections["NAME"][0])
        if not names or names[0] or names[-1] or at >= len(names):
            raise ModelError(Status.BAD_NAME, tag, index, f"name at {at} is outside NAME")
        return names[at : names.index(b"\0", at)].decode("utf-8", "replace")

    def _read_info(self) -> ModelInfo:
        record = self._records("MODL", MODEL, 1)[0]
        if record["scale_mode"] > 1:
            raise ModelError(Status.BAD_MODEL, "MODL", None, f"scale mode {record['scale_mode']}")
        if record["name"][-1:] and len(record["name"]) == 64:
            raise ModelError(Status.BAD_MODEL, "MODL", None, "the name is not terminated")
        if record["reserved0"] or record["reserved1"].any():
            raise ModelError(Status.BAD_MODEL, "MODL", None, "a reserved field is not zero")
        values = {
            key: int(record[key])
            for key in MODEL.names or ()
            if not key.startswith("reserved") and key not in ("name", "logit_scale", "scale_mode")
        }
        return ModelInfo(
            **values,
            scale_mode=ScaleMode(int(record["scale_mode"])),
            logit_scale=float(record["logit_scale"]),
            name=record["name"].decode("utf-8", "replace"),
        )

    def _read_tensors(self) -> tuple[Tensor, ...]:
        tensors = []
        for i, record in enumerate(self._records("TENS", TENSOR, MAX_TENSORS)):
            name = self._text("TENS", i, int(record["name"]))
            rows, columns = int(record["rows"]), int(record["columns"])
            if record["dtype"] > 2 or record["flags"] > TENSOR_PER_TOKEN:
                raise ModelError(Status.BAD_TENSOR, "TENS", i, f"{name}: unknown type or flags")
            if not 1 <= rows <= 1 << 20 or not 1 <= columns <= 1 << 20 or rows * columns > 1 << 28:
                raise ModelError(Status.BAD_TENSOR, "TENS", i, f"{name}: {rows} x {columns} is out of range")
            per_token = bool(record["flags"])
            if per_token and record["dtype"] != DType.I8:
                raise ModelError(Status.BAD_TENSOR, "TENS", i, f"{name}: only int8 tensors have per-token scales")
            dtype = DType(int(record["dtype"]))
            blocks = dtype is not DType.U8 and i != self.info.logits and not per_token
            blocks = blocks and self.info.scale_mode is ScaleMode.STATIC
            in_memory = align(rows, BLOCK_TOKENS) if blocks else rows
            tensors.append(Tensor(name, dtype, per_token, rows, columns, in_memory))
        return tuple(tensors)

    def _read_operators(self) -> tuple[Operator, ...]:
        operators = []
        inputs_of = {OpKind.ATTENTION: 3}
        for i, record in enumerate(self._records("OPER", OPERATOR, MAX_OPERATORS)):
            name = self._text("OPER", i, int(record["name"]))
            if record["kind"] not in list(OpKind):
                raise ModelError(Status.BAD_OPERATOR, "OPER", i, f"{name}: unknown operator {record['kind']}")
            kind = OpKind(int(record["kind"]))
            flags = int(record["flags"])
            if flags & ~(OP_ADD | OP_TABLE) or (flags and kind is not OpKind.LINEAR):
                raise ModelError(Status.BAD_OPERATOR, "OPER", i, f"{name}: unknown flags {flags}")
            used = inputs_of.get(kind, 1)
            inputs = [int(t) for t in record["input"]]
            ids = [*inputs[:used], int(record["output"])]
            if any(t >= len(self.tensors) for t in ids) or any(t != NO_TENSOR for t in inputs[used:]):
                raise ModelError(Status.BAD_OPERATOR, "OPER", i, f"{name}: a tensor that does not exist")
            keys = PARAMS[kind]
            params = dict(zip(keys, (int(v) for v in record["param"]), strict=False))
            if record["param"][len(keys) :].any():
                raise ModelError(Status.BAD_PARAMETER, "OPER", i, f"{name}: an unused parameter is not zero")
            if "beta_unit" in params and params["beta_unit"] >= 1 << 31:
                params["beta_unit"] -= 1 << 32
            adds, has_table = bool(flags & OP_ADD), bool(flags & OP_TABLE)
            operators.append(Operator(kind, name, tuple(inputs[:used]), ids[-1], adds, has_table, params))
        return tuple(operators)

    def _check_info(self) -> None:
        info = self.info

        def require(ok: bool, reason: str) -> None:
            if not ok:
                raise ModelError(Status.BAD_MODEL, "MODL", None, reason)

        p = info.patch_size
        require(p > 0 and info.image_channels > 0, "a patch of no pixels")
        require(info.image_height % p == 0 and info.image_width % p == 0, "the image is no whole number of patches")
        patches = (info.image_height // p) * (info.image_width // p)
        require(patches > 0 and info.tokens == patches + info.prefix_tokens, "tokens do not match the patches")
        require(info.tokens <= 2048 and 1 <= info.embed_dim <= 4096, "more than 2048 tokens or a width above 4096")
        require(info.stream < len(self.tensors) and info.logits < len(self.tensors), "stream or logits do not exist")
        image, stream, logits = self.tensors[0], self.tensors[info.stream], self.tensors[info.logits]
        for tensor, reason, expected in (
            (image, "tensor 0 is not the image", (DType.U8, info.image_height, info.image_width * info.image_channels)),
            (stream, "the stream's shape", (DType.I16, info.tokens, info.embed_dim)),
            (logits, "the logits' shape", (DType.I16, 1, info.classes)),
        ):
            require((tensor.dtype, tensor.rows, tensor.columns) == expected, reason)

    def _check_graph(self) -> None:
        written, matrices = _Written(self), set[tuple[int, ...]]()
        for i, op in enumerate(self.operators):
            _OperatorCheck(self, i, op, matrices).run(written)
            written.run(op)
        if not written.covers(Region(self.info.logits, 0, 1, 0, self.info.classes)):
            raise ModelError(Status.BAD_OPERATOR, "OPER", None, "no operator writes the logits")

    def _read_plan(self, check: bool) -> Plan:
        content, count = self.sections["PLAN"]
        tensors, operators = len(self.tensors), len(self.operators)
        sizes = (PLAN.itemsize, 4 * tensors, PLAN_SCRATCH.itemsize * operators)
        if count != 1 or len(content) != sum(sizes):
            reason = f"{len(content)} bytes for {tensors} tensors and {operators} operators"
            raise ModelError(Status.BAD_SECTION, "PLAN", None, reason)
        record = np.frombuffer(content, PLAN, 1)[0]
        offsets = np.frombuffer(content, "<u4", tensors, sizes[0])
        scratches = np.frombuffer(content, PLAN_SCRATCH, operators, sizes[0] + sizes[1])
        plan = Plan(
            int(record["arena_bytes"]),
            int(record["scratch_bytes"]),
            tuple(int(o) for o in offsets),
            tuple((int(s["offset"]), int(s["bytes"])) for s in scratches),
        )
        if check:
            self._check_plan(plan, bool(record["reserved"].any()))
        return plan

    def _check_plan(self, plan: Plan, reserved: bool) -> None:
        def refuse(index: int | None, reason: str) -> NoReturn:
            raise ModelError(Status.BAD_PLAN, "PLAN", index, reason)

        def placed(at: int, size: int) -> bool:
            return at % ALIGN == 0 and at + size <= plan.arena_bytes

        if reserved or plan.arena_bytes % ALIGN or plan.scratch_bytes != max(size for _, size in plan.scratches):
            refuse(None, "the plan's record does not hold")
        if not all(placed(*scratch) for scratch in plan.scratches):
            refuse(None, "a scratch outside the arena or misaligned")
        for t, (tensor, at) in enumerate(zip(self.tensors, plan.offsets, strict=True)):
            if not placed(at, tensor.bytes):
                refuse(t, f"{tensor.name} lies outside the arena or is misaligned")
        first, last = np.array(list(self.lifetimes())).T
        start = np.array(plan.offsets)
        end = start + np.array([tensor.bytes for tensor in self.tensors])
        scratch_start = np.array([at for at, _ in plan.scratches])
        scratch_end = scratch_start + np.array([size for _, size in plan.scratches])
        partner, lead = self.image_partner(), self.image_lead()
        for block in range(0, len(self.tensors), _PLAN_BLOCK):
            tensors = range(block, min(block + _PLAN_BLOCK, len(self.tensors)))
            for t in tensors:
                alive = slice(max(int(first[t]), 0), int(last[t]) + 1)
                meets = (scratch_start[alive] < end[t]) & (scratch_end[alive] > start[t])
                if (meets & (scratch_end[alive] > scratch_start[alive])).any():
                    refuse(t, f"{self.tensors[t].name} overlaps a scratch while it is alive")
            for others in range(0, block + 1, _PLAN_BLOCK):
                for t in tensors:
                    u = slice(others, min(t, others + _PLAN_BLOCK))
                    meets = (first[u] <= last[t]) & (first[t] <= last[u]) & (start[u] < end[t]) & (start[t] < end[u])
                    if others == 0 and t == partner and lead is not None and start[0] >= start[t] + lead:
                        meets[0] = False
                    if meets.any():
                        other = self.tensors[others + int(meets.argmax())]
                        refuse(t, f"{self.tensors[t].name} overlaps {other.name} while both are alive")

    def image_partner(self) -> int | None:
        """The tensor that may overlap the image: written by the image's last reader, untouched before."""
        embeddings = [i for i, op in enumerate(self.operators) if op.kind is OpKind.PATCH_EMBED]
        if not embeddings or self.info.scale_mode is ScaleMode.PER_TOKEN:
            return None
        tensor = self.operators[embeddings[-1]].output
        touched = [i for i, op in enumerate(self.operators) if tensor in (*op.inputs, op.output)]
        return tensor if touched[0] == embeddings[-1] else None

    def image_lead(self) -> int | None:
        """How far behind the start of the stream the image must at least begin where the two overlap; None: nowhere.

        The most that the stream is ahead of the image, in bytes: over the blocks of 16 tokens, the stream's blocks so
        far less the image's rows of patches that have been read completely when the block is gathered.
        """
        info = self.info
        if self.image_partner() is None:
            return None
        per_line, patches = info.image_width // info.patch_size, info.tokens - info.prefix_tokens
        line_bytes = info.image_width * info.image_channels * info.patch_size
        lead = 0
        for end in range(BLOCK_TOKENS, info.tokens + BLOCK_TOKENS, BLOCK_TOKENS):
            read = min(max(end - info.prefix_tokens, 0), patches) // per_line * line_bytes
            lead = max(lead, end * info.embed_dim * DType.I16.numpy.itemsize - read)
        return align(lead)

    def lifetimes(self) -> Iterator[tuple[int, int]]:
        """First and last operator at which each tensor is alive; the image from -1, the logits to the end."""
        first: dict[int, int] = {0: -1}
        last: dict[int, int] = {0: -1}
        for i, op in enumerate(self.operators):
            for t in (*op.inputs, op.output):
                first.setdefault(t, i)
                last[t] = i
        last[self.info.logits] = len(self.operators)
        for t in range(len(self.tensors)):
            yield first.get(t, 0), last.get(t, 0)


class _Written:
    """Which rows and columns of each tensor hold what an operator wrote, while the operators run one after the other.

    Not what an attention has used up: the columns of its keys are memory to its kernel. Nor, in token blocks, rows
    behind the last one that is written, up to a multiple of 16.
    """

    def __init__(self, model: TvitModel) -> None:
        self.model = model
        # What happened to each tensor: regions that were written (True) or spoilt, the later ones over the earlier.
        self._events: dict[int, list[tuple[Region, bool]]] = {0: []}

    def __contains__(self, tensor: int) -> bool:
        return tensor in self._events

    def run(self, op: Operator) -> None:
        """Take an operator's effects into account."""
        model = self.model
        if op.kind is OpKind.ATTENTION:
            keys = model.attention_inputs(op)[1]
            self._events[keys.tensor].append((keys, False))
        region = model.output_region(op)
        if region.whole(model.tensors[region.tensor]):
            self._events[region.tensor] = [(region, True)]
            return
        events = self._events.setdefault(region.tensor, [])
        end = region.row + region.rows
        if model.info.scale_mode is ScaleMode.STATIC and region.tensor != model.info.logits and end % BLOCK_TOKENS:
            events.append((replace(region, row=end, rows=-end % BLOCK_TOKENS), False))
        events.append((region, True))

    def covers(self, region: Region) -> bool:
        """Whether all of a region was written and is still as it was."""
        if region.tensor == 0:
            return True  # the image is there from the start
        events = self._events.get(region.tensor, [])
        everything = [region, *(event for event, _ in events)]
        rows = np.unique([edge for r in everything for edge in (r.row, r.row + r.rows)])
        columns = np.unique([edge for r in everything for edge in (r.column, r.column + r.columns)])

        def cells(r: Region) -> tuple[slice, slice]:
            row, row_end = np.searchsorted(rows, [r.row, r.row + r.rows])
            column, column_end = np.searchsorted(columns, [r.column, r.column + r.columns])
            return slice(row, row_end), slice(column, column_end)

        held = np.zeros((len(rows), len(columns)), bool)
        for event, kept in events:
            held[cells(event)] = kept
        return bool(held[cells(region)].all())


class _OperatorCheck:
    """The checks of one operator against the contract."""

    def __init__(self, model: TvitModel, index: int, op: Operator, matrices: set[tuple[int, ...]]) -> None:
        self.model, self.index, self.op = model, index, op
        self.matrices = matrices  # that were found well-formed: operators may share them
        self.static = model.info.scale_mode is ScaleMode.STATIC
        self.source, self.output = model.tensors[op.inputs[0]], model.tensors[op.output]

    def fail(self, status: Status, reason: str) -> NoReturn:
        raise ModelError(status, "OPER", self.index, f"{self.op.name}: {reason}")

    def shape(self, ok: bool, reason: str = "a tensor of the wrong type or shape") -> None:
        if not ok:
            self.fail(Status.BAD_OPERATOR, reason)

    def range(self, ok: bool, reason: str) -> None:
        if not ok:
            self.fail(Status.BAD_PARAMETER, reason)

    def data(self, at: int, size: int) -> memoryview:
        content = self.model.sections["DATA"][0]
        if at % ALIGN or at + size > len(content):
            self.fail(Status.BAD_PARAMETER, f"data at {at} (+{size}) is outside DATA or misaligned")
        return content[at : at + size]

    def run(self, written: _Written) -> None:
        op, info = self.op, self.model.info
        for t in op.inputs:
            self.shape(t in written, f"reads {self.model.tensors[t].name} before it is written")
        self.shape(not op.adds or op.output in written, f"adds to {self.output.name} before it is written")
        self.shape(op.kind is OpKind.ATTENTION or op.output not in op.inputs, "writes its own input")
        misuse = info.logits in op.inputs or (op.output == info.logits and op.kind is not OpKind.LINEAR)
        self.shape(not misuse, "the logits are written by LINEAR and read by no operator")
        {
            OpKind.PATCH_EMBED: self.patch_embed,
            OpKind.LAYERNORM: self.layernorm,
            OpKind.LINEAR: self.linear,
            OpKind.ATTENTION: self.attention,
            OpKind.MEAN_POOL: self.mean_pool,
        }[op.kind]()
        for region in self.model.input_regions(op):
            self.shape(written.covers(region), "reads what no operator has written, or what one has used up")

    def matrix(self, n: int, k: int, xmax: int) -> None:
        op = self.op
        self.range(1 <= n <= 1 << 16 and 1 <= k <= 1 << 16, f"a matrix of {n} x {k}")
        self.range(op["codec"] in list(Codec), f"unknown codec {op['codec']}")
        codec = Codec(op["codec"])
        key = n, k, codec, op["trits_at"], op["channels_at"], xmax
        if key in self.matrices:
            return
        self.range(codec is not Codec.GAPS or k <= GAPS_MOST_INPUTS, f"{k} inputs are too many for codec gaps")
        self.data(op["trits_at"], 0 if codec is Codec.GAPS else matrix_bytes(codec, n, k))
        self.data(op["channels_at"], 4 * n)
        try:
            weights = self.model.weights(op)
        except ValueError as error:
            self.fail(Status.BAD_PARAMETER, str(error))
        gain, bias = weights.gain.astype(np.int64), weights.bias.astype(np.int64)
        bound = gain * xmax * weights.terms + np.abs(bias)
        if (gain < 1).any() or (bound >= LANE_LIMIT).any():
            row = int(np.argmax((gain < 1) | (bound >= LANE_LIMIT)))
            raise ModelError(
                Status.BAD_CHANNEL, "DATA", self.index, f"{op.name}: channel {row} can leave its 20-bit accumulator"
            )
        self.matrices.add(key)

    def patch_embed(self) -> None:
        op, info = self.op, self.model.info
        patches = info.tokens - info.prefix_tokens
        self.shape(op.inputs[0] == 0 and op.output == info.stream)
        self.shape(op["n"] == info.embed_dim and op["k"] == info.patch_size**2 * info.image_channels)
        self.matrix(op["n"], op["k"], 128)
        self.range(1 <= op["position_multiplier"] <= 255, "position_multiplier")
        position = np.frombuffer(self.data(op["position_at"], patches * op["n"]), np.int8)
        prefix = np.frombuffer(self.data(op["prefix_at"], 2 * info.prefix_tokens * op["n"]), "<i2")
        self.range(not (position == -128).any() and not (prefix == -32768).any(), "a value at the excluded minimum")

    def rows(self) -> tuple[int, int]:
        op = self.op
        first, rows = op["first_row"], op["rows"]
        self.range(rows >= 1 and first + rows <= self.source.rows, f"rows {first} … {first + rows - 1}")
        return first, rows

    def starts_block(self, row: int) -> None:
        self.range(not self.static or row % BLOCK_TOKENS == 0, f"row {row} is no multiple of {BLOCK_TOKENS}")

    def layernorm(self) -> None:
        op, source, output = self.op, self.source, self.output
        first_row, rows = self.rows()
        self.shape(source.dtype is DType.I16 and output.dtype is DType.I8 and source.columns == output.columns)
        self.shape((output.rows >= rows if self.static else output.rows == rows) and source.columns <= 4096)
        self.shape(output.per_token != self.static)
        self.starts_block(first_row)
        codes = np.frombuffer(self.data(op["gamma_beta_at"], (source.columns + 1) // 2), np.uint8)
        self.range(not ((codes & 15 > 8) | (codes >> 4 > 8)).any(), "a gamma_beta code above 8")
        self.range(source.columns % 2 == 0 or codes[-1] >> 4 == 0, "the padding of gamma_beta is not zero")
        c, epsilon = op["c_high"] << 32 | op["c_low"], op["epsilon_high"] << 32 | op["epsilon_low"]
        n, shift, beta_unit = source.columns, op["shift"], op["beta_unit"]
        self.range(1 <= shift <= 24, f"shift {shift}")
        self.range(1 <= c < 1 << 62 and 1 <= epsilon < 1 << 54, "the constants C or epsilon")
        # sqrt(N) * C / (N * 2^15), with sqrt(N) rounded up to an integer.
        root = int(np.ceil(np.sqrt(n)))
        self.range((root * c // n >> 15) + abs(beta_unit) + (1 << shift) < 1 << 30, "C or beta_unit is too large")

    def linear(self) -> None:
        op, source, output = self.op, self.source, self.output
        first_row, rows = self.rows()
        row, column = op["output_row"], op["output_column"]
        self.shape(source.dtype is DType.I8 and source.columns == op["k"])
        self.shape(source.per_token != self.static)
        if self.static:
            inside = row + rows <= output.rows and column + op["n"] <= output.columns
            self.range(inside, "rows or columns outside the output")
            if op.output != self.model.info.logits:
                self.starts_block(first_row)
                self.starts_block(row)
        else:
            self.shape(output.columns == op["n"])
            self.shape(output.rows >= rows if op.adds else output.rows == rows)
            self.range(row == column == 0, "a piece of a tensor with per-token scales")
        if output.dtype is DType.I16:
            self.shape(not op.has_table, "a table before an int16 output")
            self.range(op["limit"] == 32767, f"limit {op['limit']}")
        else:
            self.shape(output.dtype is DType.I8 and not op.adds)
            self.range(1 <= op["limit"] <= 127, f"limit {op['limit']}")
        self.shape(not output.per_token or op.has_table, "per-token output without a table")
        self.matrix(op["n"], op["k"], 127)
        if op.has_table:
            size = 512 if output.per_token else 256
            table = np.frombuffer(self.data(op["table_at"], size), "<i2" if output.per_token else "i1")
            self.range(not (table == np.iinfo(table.dtype).min).any() and table[0] == 0, "a table entry out of range")
        else:
            self.range(op["table_at"] == 0, "a table offset without a table")

    def attention(self) -> None:
        op, output, model = self.op, self.output, self.model
        heads, head_dim = op["heads"], op["head_dim"]
        self.range(heads >= 1 and head_dim >= 1 and heads * head_dim <= output.columns, "heads times head_dim")
        for t in op.inputs:
            tensor = model.tensors[t]
            self.shape(tensor.dtype is DType.I8 and not tensor.per_token and tensor.rows == output.rows)
        self.shape(output.dtype is DType.I8 and output.rows <= 2048)
        self.shape(output.per_token != self.static)
        places = [*model.attention_inputs(op), model.output_region(op)]
        for place in places:
            columns = model.tensors[place.tensor].columns
            inside = place.column + place.columns <= columns
            self.range(inside and (self.static or place.columns == columns), "columns outside a tensor")
        for i, place in enumerate(places):
            for j, other in enumerate(places[:i]):
                apart = place.tensor != other.tensor or abs(place.column - other.column) >= place.columns
                self.shape(apart or ((i, j) == (3, 0) and place.column == other.column), "the same columns twice")
        self.range(op["score_shift"] <= 15 and 1 <= op["exp_multiplier"] <= 32767, "score_shift or exp_multiplier")
        self.range(1 <= op["out_multiplier"] < 1 << 28 and 1 <= op["out_shift"] <= 24, "out_multiplier or out_shift")

    def mean_pool(self) -> None:
        source, output = self.source, self.output
        _, rows = self.rows()
        self.range(rows <= 65535, "rows out of range")
        self.shape(source.dtype is DType.I16 and output.dtype is DType.I16)
        self.shape(output.rows == 1 and output.columns == source.columns)


def read_model(source: Path | str | bytes, check_plan: bool = True) -> TvitModel:
    """Read and validate a model file.

    Raises:
        InputError: the file can't be read.
        ModelError: it is malformed.
    """
    return TvitModel(source if isinstance(source, bytes) else read_model_file(source), check_plan)


def read_model_file(source: Path | str) -> bytes:
    """The bytes of a model file. Of a file that is none, or larger than any, only the start is read.

    Raises:
        InputError: the file can't be read.
        ModelError: it is larger than the format allows.
    """
    try:
        with Path(source).open("rb") as file:
            head = file.read(HEADER.itemsize)
            if head[:4] != MAGIC.to_bytes(4, "little"):
                return head  # which is refused for that
            size = os.fstat(file.fileno()).st_size
            if size > _MOST_BYTES:
                raise ModelError(Status.BAD_SIZE, "", None, f"{size} bytes are more than a model file can have")
            return head + file.read()
    except OSError as error:
        raise InputError(f"cannot read the model {source}: {error.strerror}") from None


__all__ = ["LinearWeights", "ModelInfo", "Operator", "Plan", "Tensor", "TvitModel", "read_model", "read_model_file"]
