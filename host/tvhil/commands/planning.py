# SPDX-License-Identifier: Apache-2.0
"""What `pack` and `plan` share: options that name an arena, and the alternatives that the planner weighed."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tvhil.commands.common import list_table, notice
from tvhil.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tvhil.packing.integer_vit import IntegerViT
    from tvhil.packing.planner import Alternative, Planned
    from tvhil.packing.trits import Codec

DEFAULT_BOARD = "esp32s3"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20}


def add_planning(parser: argparse.ArgumentParser) -> None:
    """`--board NAME` or `--arena SIZE`."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--board", metavar="NAME",
        help=f"plan for the arena of this board (default: {DEFAULT_BOARD}, as far as the model fits it)",
    )  # fmt: skip
    group.add_argument(
        "--arena", metavar="SIZE", type=parse_size, help="plan for an arena of this size: 196608, 192K, 1M"
    )


def parse_size(text: str) -> int:
    """Bytes of '196608', '0x30000', '192K', '192KB' or '1M' (K is 1024).

    Raises:
        argparse.ArgumentTypeError: it is none of these.
    """
    match = re.fullmatch(r"(?i)(0x[0-9a-f]+|\d+)\s*(?:([KM])(?:I?B)?|B)?", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 196608, 192K or 1M")
    return int(match[1], 0) * _UNITS[(match[2] or "").upper()]


def plan_for(options: argparse.Namespace, vit: IntegerViT, codec: Codec) -> tuple[bytes, Planned]:
    """Pack a model for the arena that the options name.

    Raises:
        NothingFitsError: it does not fit the board or the arena that was asked for.
    """
    from tvhil.boards.board import board_names, load_board
    from tvhil.packing.planner import NothingFitsError, plan

    if options.arena is not None:
        if options.arena < 1:
            raise UsageError("--arena: an arena of no bytes")
        return plan(vit, codec, options.arena)
    name = options.board or (DEFAULT_BOARD if DEFAULT_BOARD in board_names() else None)
    if name is None:
        return plan(vit, codec)
    board = load_board(name)
    memory = board.memory
    cost = board.cost if board.cost is not None and board.cost.kernels == "pie" else None
    try:
        return plan(vit, codec, memory.arena, memory.psram_arena or None, cost=cost)
    except NothingFitsError as error:
        if options.board is not None:
            raise
        notice(f"{error}; packed without a limit, for boards with more memory than {name}")
        return plan(vit, codec)


def planned_json(planned: Planned) -> dict[str, Any]:
    """What was weighed, for machines."""
    return {
        "arena_limit": planned.arena_bytes,
        "memory": planned.memory,
        "chosen": _entry(planned.chosen),
        "alternatives": [_entry(alternative) for alternative in planned.alternatives],
    }


def _entry(alternative: Alternative) -> dict[str, Any]:
    return {
        "schedule": asdict(alternative.schedule),
        "description": alternative.schedule.describe(),
        "arena_bytes": alternative.arena_bytes,
        "flash_bytes": alternative.flash_bytes,
        "reads": alternative.reads,
        "operators": alternative.operators,
        "predicted_cycles": None if alternative.cycles is None else round(alternative.cycles),
    }


def alternatives_table(planned: Planned) -> RenderableType:
    """What was weighed, for people: from the largest arena, which is the fastest, to the smallest."""
    limit = "any arena" if planned.arena_bytes is None else f"an arena of {planned.arena_bytes:,} bytes"
    rows = []
    for a in planned.alternatives:
        chosen = a.schedule == planned.chosen.schedule
        shown = planned.chosen if chosen else a
        fits = planned.arena_bytes is None or shown.arena_bytes <= planned.arena_bytes
        note = "chosen" if chosen else "yes" if fits else "no"
        rows.append(
            [
                f"{shown.arena_bytes:,}", f"{a.flash_bytes:,}", f"{a.reads}x",
                "" if a.cycles is None else f"{a.cycles / 1e6:,.1f} M", f"{a.operators:,}", note,
                a.schedule.describe(),
            ]
        )  # fmt: skip
    title = f"Alternatives for {limit}, cycles of two cores estimated"
    columns = ["arena bytes", "flash bytes", "reads", "cycles", "operators", "fits", "schedule"]
    return list_table(title, columns, rows)
