# SPDX-License-Identifier: Apache-2.0
"""Constants and records of the `.tvit` file; mirrors device/include/tvit/format.h, and a test compares the two."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from tvhil.errors import InputError

MAGIC = 0x54495654
VERSION = 2
ALIGN = 16
MAX_SECTIONS = 16
MAX_TENSORS = 1024
MAX_OPERATORS = 1024
NO_TENSOR = 0xFFFF
BLOCK_TOKENS = 16  # tokens of a block: what rows of static-scale models are rounded up to in memory
SECTION_TAGS = ("MODL", "TENS", "OPER", "PLAN", "NAME", "DATA", "META")
TENSOR_PER_TOKEN = 1
OP_ADD = 1
OP_TABLE = 2

# Accumulators stay below this in magnitude: the lanes of PIE's QACC (CONTRACT.md, section 1).
LANE_LIMIT = 1 << 19


class ScaleMode(IntEnum):
    """How linear inputs are scaled."""

    STATIC = 0
    PER_TOKEN = 1


class DType(IntEnum):
    """Element type of a tensor."""

    U8 = 0
    I8 = 1
    I16 = 2

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The numpy type."""
        return np.dtype(("u1", "i1", "<i2")[self])


class OpKind(IntEnum):
    """Operators of the graph."""

    PATCH_EMBED = 1
    LAYERNORM = 2
    LINEAR = 3
    ATTENTION = 4
    MEAN_POOL = 5


class Status(IntEnum):
    """Codes of the C runtime (device/include/tvit/runtime.h)."""

    OK = 0
    BAD_MAGIC = 1
    BAD_VERSION = 2
    BAD_SIZE = 3
    BAD_CRC = 4
    BAD_SECTION = 5
    BAD_NAME = 6
    BAD_MODEL = 7
    BAD_TENSOR = 8
    BAD_OPERATOR = 9
    BAD_PARAMETER = 10
    BAD_CHANNEL = 11
    BAD_PLAN = 12
    ARENA_TOO_SMALL = 13
    MISALIGNED = 14
    BAD_ARGUMENT = 15
    STOPPED = 16


HEADER = np.dtype(
    [
        ("magic", "<u4"),
        ("version", "<u2"),
        ("header_bytes", "<u2"),
        ("file_bytes", "<u4"),
        ("section_count", "<u4"),
        ("signature", "V32"),
        ("table_crc", "<u4"),
        ("reserved", "<u4", 2),
        ("header_crc", "<u4"),
    ]
)
SECTION = np.dtype(
    [
        ("tag", "S4"),
        ("offset", "<u4"),
        ("bytes", "<u4"),
        ("crc", "<u4"),
        ("count", "<u4"),
        ("reserved", "<u4", 3),
    ]
)
MODEL = np.dtype(
    [(name, "<u2") for name in ("image_height", "image_width", "image_channels", "patch_size")]
    + [(name, "<u2") for name in ("tokens", "prefix_tokens", "embed_dim", "depth")]
    + [(name, "<u2") for name in ("heads", "head_dim", "mlp_dim", "classes")]
    + [(name, "<u2") for name in ("scale_mode", "stream", "logits", "reserved0")]
    + [("parameters", "<u8"), ("macs", "<u8"), ("logit_scale", "<f4"), ("reserved1", "<u4", 3), ("name", "S64")]
)
TENSOR = np.dtype([("name", "<u4"), ("dtype", "<u2"), ("flags", "<u2"), ("rows", "<u4"), ("columns", "<u4")])
OPERATOR = np.dtype(
    [
        ("kind", "<u2"),
        ("flags", "<u2"),
        ("name", "<u4"),
        ("input", "<u2", 3),
        ("output", "<u2"),
        ("param", "<u4", 12),
    ]
)
PLAN = np.dtype([("arena_bytes", "<u4"), ("scratch_bytes", "<u4"), ("reserved", "<u4", 2)])
PLAN_SCRATCH = np.dtype([("offset", "<u4"), ("bytes", "<u4")])

# Names of an operator's params, in order; `_at` are offsets into DATA.
PARAMS: dict[OpKind, tuple[str, ...]] = {
    OpKind.PATCH_EMBED: (
        "k",
        "n",
        "codec",
        "trits_at",
        "channels_at",
        "position_at",
        "position_multiplier",
        "prefix_at",
    ),
    OpKind.LAYERNORM: (
        "first_row",
        "rows",
        "gamma_beta_at",
        "c_low",
        "c_high",
        "beta_unit",
        "epsilon_low",
        "epsilon_high",
        "shift",
    ),
    OpKind.LINEAR: (
        "k",
        "n",
        "codec",
        "trits_at",
        "channels_at",
        "limit",
        "table_at",
        "first_row",
        "rows",
        "output_row",
        "output_column",
    ),
    OpKind.ATTENTION: (
        "heads",
        "head_dim",
        "score_shift",
        "exp_multiplier",
        "out_multiplier",
        "out_shift",
        "q_column",
        "k_column",
        "v_column",
        "output_column",
    ),
    OpKind.MEAN_POOL: ("first_row", "rows"),
}


@dataclass(frozen=True)
class Plan:
    """The memory plan.

    Attributes:
        arena_bytes: of the whole arena.
        scratch_bytes: the largest scratch of an operator.
        offsets: of each tensor in the arena.
        scratches: (offset, bytes) of each operator's scratch, which is alive only there.
    """

    arena_bytes: int
    scratch_bytes: int
    offsets: tuple[int, ...]
    scratches: tuple[tuple[int, int], ...]


class ModelError(InputError):
    """A model file that a reader refuses: the status code, the section, the record in it, and the reason."""

    def __init__(self, status: Status, section: str, index: int | None, reason: str) -> None:
        self.status, self.section, self.index, self.reason = status, section, index, reason
        where = section or "header"
        if index is not None:
            where += f" {index}"
        super().__init__(f"the model file is refused: {where}: {reason} ({status.name})")


def align(value: int, to: int = ALIGN) -> int:
    """Round up to a multiple of `to`."""
    return -(-value // to) * to
