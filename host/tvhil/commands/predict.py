# SPDX-License-Identifier: Apache-2.0
"""Predict what a model will cost on a board before anything is built or flashed: latency from the board's cost model,
operator by operator, memory from the model's plan. A model that does not fit is refused with the numbers.

On boards with the PIE kernels it also tells which layers take a slower way than others of their kind (rows too long to
become instructions, shapes that are no multiple of 16, scales a token) and what that costs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tvhil.commands.common import add_json, add_model, emit, list_table, open_model
from tvhil.errors import ExitCode

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tvhil.prediction.slow_paths import SlowPath

EXAMPLES = """\
examples:
  tvhil predict m.tvit --board esp32s3                     cycles and milliseconds of every layer, both cores
  tvhil predict m.tvit --board esp32s3 --cores 1           the same on one core
  tvhil predict m.tvit --board qemu-xtensa --operators     and each operator's share, in instructions
  tvhil predict m.tvit --board native --json p.json        the keys of an evaluation's report

Latency is that of any inference but the first: what stays in the flash cache from one to the next is not read again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil predict`."""
    add_model(parser, positional=True)
    parser.add_argument("--board", required=True, help="name of a board (see `tvhil boards`)")
    parser.add_argument("--cores", type=int, choices=(1, 2), help="that share the work (default: all of the board's)")
    parser.add_argument(
        "--operators", action="store_true", help="print the latency of each layer; always, where the clock is known"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Predict latency and memory."""
    from tvhil.boards import load_board
    from tvhil.evaluation.prepare import predicted_report
    from tvhil.evaluation.report import render
    from tvhil.prediction.memory import check_fit
    from tvhil.prediction.slow_paths import slow_paths

    model, file = open_model(options.model)
    board = load_board(options.board)
    check_fit(model, board.limits, board.name)
    cores = options.cores or board.cores
    report = predicted_report(model, file, board, cores)
    slow = slow_paths(model, board.cost, cores) if board.cost is not None else []
    mhz = board.cost.mhz if board.cost is not None else 0
    total = report["latency"]["predicted"]
    report["prediction"] = {
        "cores": cores,
        "mhz": mhz or None,
        "milliseconds": round(total / mhz / 1e3, 6) if mhz else None,
        "slow_paths": [
            {"what": path.what, "layers": list(path.layers), "cost": round(path.cost), "remedy": path.remedy}
            for path in slow
        ],
    }
    emit(options, report, [*render(report, layers=options.operators and not mhz), *_tables(report, slow, mhz)])
    return ExitCode.OK


def _tables(report: dict[str, Any], slow: list[SlowPath], mhz: float) -> Iterator[RenderableType]:
    total, unit = report["latency"]["predicted"], report["latency"]["unit"]
    if mhz:
        cores = report["prediction"]["cores"]
        title = f"Layers on {cores} core{'s' * (cores > 1)}, ms at {mhz:g} MHz"
        rows = [_row(layer["name"], layer["predicted"], total, mhz) for layer in report["latency"]["layers"]]
        yield list_table(title, ["layer", unit, "ms", "share"], [*rows, _row("all", total, total, mhz)])
    if slow:
        rows = [
            [path.what, _layers(path.layers), f"{path.cost:,.0f}", f"{path.cost / total:.1%}", path.remedy]
            for path in slow
        ]
        yield list_table("Slower ways", ["what", "layers", f"{unit} more", "of all", "it would take"], rows)


def _row(name: str, cost: float, total: float, mhz: float) -> list[str]:
    return [name, f"{cost:,.0f}", f"{cost / mhz / 1e3:,.3f}", f"{cost / total:.1%}"]


def _layers(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
