# SPDX-License-Identifier: Apache-2.0
"""Run a few images on a board again and again, for minutes or days, and watch for what changes: a bit of any logit,
growing latency, a deeper stack, a fuller heap, the temperature where the board reports it. The result is JSON with a
time line, and a picture of it; both are on disk all the time. Exit code 6: a bit changed; 5: something grew."""

from __future__ import annotations

import argparse
import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvhil.commands.common import (
    add_json,
    add_model,
    emit,
    facts_table,
    notice,
    open_model,
    preprocessing_of,
    stderr,
    write_json,
)
from tvhil.errors import ExitCode, MissingToolError, UsageError

if TYPE_CHECKING:
    from tvhil.evaluation.soak import Soak

EXAMPLES = """\
examples:
  tvhil soak --board native --minutes 5 --json soak.json                  and soak.png beside it
  tvhil soak --board lx7sim --port socket://lab:4000 --minutes 600 --json soak.json
  tvhil soak --board native --minutes 1 --faults seed=1,count=200         on a bad line
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil soak`."""
    parser.add_argument("--board", required=True, help="name of a board (see `tvhil boards`)")
    parser.add_argument("--minutes", type=float, required=True, help="how long")
    add_model(parser)
    parser.add_argument("--images", metavar="N", type=int, default=16, help="synthetic images in turn (default 16)")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the images (default 0)")
    parser.add_argument("--port", metavar="URL", help="serial port or URL of the board")
    parser.add_argument("--faults", metavar="PLAN", help="a bad line on purpose, as for run-eval")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="time line (default: the --json file as .png)")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Soak, write, tell by the exit code what was found."""
    from tvhil.boards import load_board
    from tvhil.datasets import open_dataset
    from tvhil.evaluation.inputs import make_inputs
    from tvhil.evaluation.session import open_device
    from tvhil.evaluation.soak import Soak
    from tvhil.link.faults import FaultPlan
    from tvhil.prediction import Predictor

    if not 0 < options.minutes < math.inf or options.images < 1:
        raise UsageError("--minutes must be positive, and --images 1 at least")
    picture = _picture(options)
    board = load_board(options.board)
    model, _ = open_model(options.model)
    plan = None
    if options.faults is not None:
        plan = FaultPlan.parse(options.faults, math.prod(model.info.input_shape))
    dataset = open_dataset(
        "synthetic", None, split=None, limit=options.images, seed=options.seed, shape=model.info.input_shape
    )
    inputs = make_inputs(dataset, model, preprocessing_of(model))
    tell = None if plan is not None else notice  # faults on purpose need no notice each
    with open_device(board, model, port=options.port, notice=tell, faults=plan.around if plan else None) as device:
        soak = Soak(device, Predictor(model), inputs)
        try:
            _watch(soak, options, f"{model.name} on {board.name}", picture)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        except BaseException:
            _keep(soak.to_json(), options, f"{model.name} on {board.name}", picture)
            raise
    result = _keep(soak.to_json(), options, f"{model.name} on {board.name}", picture)
    facts = [
        ("runs", f"{result['runs']:,} of {result['images']} images in {result['seconds'] / 60:.1f} minutes"),
        ("not bit-exact", f"{result['mismatches']}"),
        ("latency growth", None if soak.latency_growth is None else f"{soak.latency_growth:+.3%}"),
        ("temperature", None if result["temperature_c"] is None else f"{result['temperature_c']} °C"),
        ("findings", "; ".join(result["findings"]) or "none"),
        ("picture", picture),
    ]
    emit(options, result, [facts_table(f"Soak of {model.name} on {board.name}", facts)])
    if soak.mismatches:
        return ExitCode.MISMATCH
    if result["findings"]:
        return ExitCode.BOARD
    return ExitCode.INTERRUPTED if interrupted else ExitCode.OK


def _picture(options: argparse.Namespace) -> Path | None:
    """Where the picture goes; refused before hours are spent where it cannot be drawn."""
    if options.picture is None and options.json is None:
        return None
    if importlib.util.find_spec("matplotlib") is None:
        if options.picture is not None:
            raise MissingToolError("--picture needs matplotlib: pip install 'tvhil[plot]'")
        notice("no picture: matplotlib is not installed (pip install 'tvhil[plot]')")
        return None
    if options.picture is not None:
        if options.picture.suffix not in (".png", ".svg", ".pdf"):
            raise UsageError(f"--picture {options.picture}: .png, .svg or .pdf")
        return Path(options.picture)
    return Path(options.json).with_suffix(".png") if str(options.json) != "-" else None


def _watch(soak: Soak, options: argparse.Namespace, title: str, picture: Path | None) -> None:
    from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    seconds = 60 * options.minutes
    columns = ("{task.description}", BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), transient=True) as progress:
        task = progress.add_task("soaking", total=seconds)

        def watch(soak: Soak) -> None:
            _keep(soak.to_json(), options, title, picture if len(soak.points) % 10 == 0 else None)
            state = "all bit-exact" if not soak.mismatches else f"{soak.mismatches} not bit-exact"
            progress.update(task, completed=soak.seconds, description=f"{soak.runs:,} runs, {state}")

        soak.run(seconds, watch)


def _keep(result: dict[str, Any], options: argparse.Namespace, title: str, picture: Path | None) -> dict[str, Any]:
    """Write what there is so far, and return it."""
    from tvhil.evaluation.soak import draw_timeline

    if options.json is not None and str(options.json) != "-":
        write_json(result, options.json)
    if picture is not None and result["timeline"]:
        draw_timeline(result, title, picture)
    return result
