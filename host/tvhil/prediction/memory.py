# SPDX-License-Identifier: Apache-2.0
"""Does a model fit a board, and what memory will it use there: known before anything is flashed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvhil.errors import InputError
from tvhil.packing.format import ScaleMode
from tvhil.packing.reader import TvitModel

PSRAM_NOTE = "some activations in PSRAM: the time of reading and writing them there is not in the cost model"


@dataclass(frozen=True)
class MemoryLimits:
    """What a board offers, in bytes; None where it is not known.

    Attributes:
        arena: for activations.
        psram_arena: of models that do not fit the former, which then takes the place of its first bytes; 0 for none.
        model: for the model file, in flash.
        stack: of the inference.
        static: data and bss of the firmware without the arena, as its build states them.
        heap: of the firmware.
        kernels: 'pie' or 'portable', which of them the firmware has.
    """

    arena: int | None = None
    model: int | None = None
    stack: int | None = None
    static: int | None = None
    heap: int | None = None
    kernels: str = "portable"
    psram_arena: int = 0

    def continued(self, need: int) -> bool:
        """Whether an arena of so many bytes lies in PSRAM, too: the internal one is too small, and there is PSRAM."""
        return bool(self.psram_arena) and self.arena is not None and need > self.arena


def arena_bytes(model: TvitModel, kernels: str) -> int:
    """The arena that a model needs on boards with these kernels.

    Memory is planned for the PIE kernels where scales are static. What other kernels need beyond that lies behind the
    plan; the C runtime says how much it is, because scratch is the kernels' own business.
    """
    from tvhil.runtime import default_runtime

    pie = kernels == "pie" and model.info.scale_mode is ScaleMode.STATIC
    return default_runtime().arena_bytes(model.file, as_planned=pie)


def in_psram(model: TvitModel, limits: MemoryLimits) -> bool:
    """Whether some of the model's activations lie in PSRAM."""
    return limits.continued(arena_bytes(model, limits.kernels))


def check_fit(model: TvitModel, limits: MemoryLimits, board: str) -> None:
    """Refuse a model that is too big for a board.

    Raises:
        InputError: with both numbers, for flash and arena alike.
    """
    need = arena_bytes(model, limits.kernels)
    arena = ("the arena", need, limits.arena)
    if limits.continued(need):
        arena = ("the arena, continued in PSRAM,", need, limits.psram_arena)
    excess = [
        f"{what} needs {need:,} bytes, {board} has {room:,}"
        for what, need, room in (("the file", model.file_bytes, limits.model), arena)
        if room is not None and need > room
    ]
    if excess:
        raise InputError(f"model {model.name} does not fit {board}: {'; '.join(excess)}")


def predict_memory(model: TvitModel, limits: MemoryLimits) -> dict[str, Any]:
    """The `memory` of a report, before anything is measured."""
    need = arena_bytes(model, limits.kernels)
    return {
        "arena": {"measured": None, "predicted": need, "in_psram": limits.continued(need)},
        "stack": {"measured": None, "limit": limits.stack},
        "static": limits.static,
        "model_bytes": model.file_bytes,
        "heap": limits.heap,
    }


def static_bytes(elf: Path) -> int | None:
    """Data and bss of a firmware, from the symbols `__data_start` and `__bss_end` of its linker script.

    Returns:
        None where the file is no ELF or its linker script names other ends.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    try:
        with elf.open("rb") as file:
            table = ELFFile(file).get_section_by_name(".symtab")
            if not isinstance(table, SymbolTableSection):
                return None
            ends = [table.get_symbol_by_name(name) for name in ("__data_start", "__bss_end")]
    except (OSError, ELFError):
        return None
    values = [int(found[0]["st_value"]) for found in ends if found]
    return values[1] - values[0] if len(values) == 2 else None
