# SPDX-License-Identifier: Apache-2.0
"""A report as far as it can be written without a board: model, board, predicted latency and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvhil.evaluation.report import empty_report, fill_latency_prediction
from tvhil.packing.reader import TvitModel
from tvhil.prediction.memory import predict_memory, static_bytes

if TYPE_CHECKING:
    from tvhil.boards import Board


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


def predicted_report(model: TvitModel, file: Path, board: Board) -> dict[str, Any]:
    """All that is known before a board runs; what only a run can tell is null."""
    report = empty_report()
    report["model"] = model_facts(model, file)
    report["board"] = {"name": board.name, "kind": board.kind, "details": None}
    prediction = board.cost.predict(model) if board.cost is not None else None
    fill_latency_prediction(report, prediction, [op.name for op in model.operators])
    report["memory"] = predict_memory(model, board.limits)
    report["memory"]["static"] = _static_of_last_build(board)
    return report


def _static_of_last_build(board: Board) -> int | None:
    built = sorted(board.build_dir.glob("firmware-*.elf"), key=lambda path: path.stat().st_mtime)
    return static_bytes(built[-1]) if built else None
