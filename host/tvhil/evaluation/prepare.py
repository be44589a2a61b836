# SPDX-License-Identifier: Apache-2.0
"""A report as far as it can be written without a board: model, board, predicted latency and memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvhil.boards import Board
from tvhil.evaluation.report import empty_report, fill_latency_prediction
from tvhil.packing.reader import TvitModel
from tvhil.prediction.memory import predict_memory, static_bytes


def model_facts(model: TvitModel, file: Path | str) -> dict[str, Any]:
    """The `model` of a report."""
    info = model.info
    return {
        "name": model.name,
        "file": str(file),
        "sha256": model.sha256,
        "bytes": model.file_bytes,
        "parameters": info.parameters,
        "input": list(info.input_shape),
        "classes": info.classes,
    }


def predicted_report(
    model: TvitModel, file: Path, boards: Board | Sequence[Board], cores: int | None = None
) -> dict[str, Any]:
    """All that is known before a board runs; what only a run can tell is null.

    Args:
        model: what is run.
        file: where it lies.
        boards: one, or those of a rack, each once; different ones have no common prediction of latency.
        cores: that share the work; None: all of the board's.
    """
    every = [boards] if isinstance(boards, Board) else sorted(boards, key=lambda board: board.name)
    board = every[0]
    report = empty_report()
    report["model"] = model_facts(model, file)
    report["board"] = {
        "name": "+".join(one.name for one in every),
        "kind": "+".join(sorted({one.kind for one in every})),
        "details": None,
    }
    prediction = board.cost.predict(model, cores or board.cores) if board.cost is not None and len(every) == 1 else None
    fill_latency_prediction(report, prediction, [op.name for op in model.operators])
    report["memory"] = predict_memory(model, board.limits)
    report["memory"]["static"] = _static_of_last_build(board) if len(every) == 1 else None
    return report


def _static_of_last_build(board: Board) -> int | None:
    built = sorted(board.build_dir.glob("firmware-*.elf"), key=lambda path: path.stat().st_mtime)
    return static_bytes(built[-1]) if built else None
