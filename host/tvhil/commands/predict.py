# SPDX-License-Identifier: Apache-2.0
"""Predict what a model will cost on a board before anything is built or flashed: latency from the board's cost model,
operator by operator, memory from the model's plan. A model that does not fit is refused with the numbers."""

from __future__ import annotations

import argparse

from tvhil.commands.common import add_json, add_model, emit, open_model
from tvhil.errors import ExitCode

EXAMPLES = """\
examples:
  tvhil predict m.tvit --board qemu-xtensa                 the figures
  tvhil predict m.tvit --board qemu-xtensa --operators     and each operator's share
  tvhil predict m.tvit --board native --json p.json        the keys of an evaluation's report
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil predict`."""
    add_model(parser, positional=True)
    parser.add_argument("--board", required=True, help="name of a board (see `tvhil boards`)")
    parser.add_argument("--operators", action="store_true", help="print the latency of each operator")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Predict latency and memory."""
    from tvhil.boards import load_board
    from tvhil.evaluation.prepare import predicted_report
    from tvhil.evaluation.report import render
    from tvhil.prediction.memory import check_fit

    model, file = open_model(options.model)
    board = load_board(options.board)
    check_fit(model, board.limits, board.name)
    report = predicted_report(model, file, board)
    emit(options, report, render(report, layers=options.operators))
    return ExitCode.OK
