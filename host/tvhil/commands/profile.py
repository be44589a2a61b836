# SPDX-License-Identifier: Apache-2.0
"""Show where the cycles of an inference go, on a board that is simulated with a cycle model.

Cycles and instructions by operator, function, source line and loop; stalls by cause; memory traffic; the schedule of
the hottest loops, cycle by cycle. --flame writes a flame graph that a browser opens, --speedscope and --trace files for
speedscope.app, chrome://tracing and Perfetto. The figures are those of the cycle model, not measured on silicon."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tvhil.commands.common import add_json, add_model, add_signature, emit, notice, open_model, stderr
from tvhil.errors import ExitCode, InputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tvhil.packing import TvitModel
    from tvhil.profiling.program import Program
    from tvhil.profiling.record import Recording

EXAMPLES = """\
examples:
  tvhil profile                                        the embedded model on lx7sim
  tvhil profile --model m.tvit --flame f.html --json p.json
  tvhil profile --board lx7sim-portable --of tvit_linear_portable --loops 1    the schedule of a function's hottest loop
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil profile`."""
    add_model(parser)
    add_signature(parser)
    parser.add_argument("--board", default="lx7sim", help="a board with a cycle model (default: lx7sim)")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the random image (default 0)")
    parser.add_argument("--functions", metavar="N", type=int, default=15, help="rows of functions (default 15)")
    parser.add_argument("--lines", metavar="N", type=int, default=15, help="rows of source lines (default 15)")
    parser.add_argument("--loops", metavar="N", type=int, default=3, help="loops, with their schedules (default 3)")
    parser.add_argument("--of", metavar="FUNCTION", help="schedules of the loops of this function only")
    parser.add_argument("--flame", metavar="FILE", type=Path, help="write a flame graph (HTML)")
    parser.add_argument("--speedscope", metavar="FILE", type=Path, help="write the call stacks for speedscope.app")
    parser.add_argument("--trace", metavar="FILE", type=Path, help="write Chrome trace events")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Profile one inference."""
    import numpy as np

    from tvhil.boards import flash, load_board
    from tvhil.commands.common import building
    from tvhil.errors import MismatchError
    from tvhil.evaluation.prepare import predicted_report
    from tvhil.prediction import Predictor
    from tvhil.profiling.benchmark import commit, parameters
    from tvhil.profiling.record import Recorder
    from tvhil.profiling.report import SCHEMA, fill_latency, profile_json, tables

    board = load_board(options.board)
    if board.cycle_model is None:
        raise UsageError(f"{board.name} has no cycle model to profile with; lx7sim has")
    if min(options.functions, options.lines, options.loops) < 0:
        raise UsageError("--functions, --lines and --loops take numbers of rows")
    model, file = open_model(options.model, options.require_signature, board.trusted_key_files)
    with building() as progress:
        image = flash(board, model, progress=progress)
    sample = _image(model, options.seed)
    with stderr().status("simulating"), Recorder(board, image) as recorder:
        program = recorder.program
        recording = recorder.record(sample, options.loops, options.of)
    expected = Predictor(model).run(sample[None])[0]
    if not np.array_equal(recording.logits, expected):
        raise MismatchError(f"the logits are not the predicted ones: `tvhil run-eval --board {board.name}` tells where")
    report = predicted_report(model, file, board)
    report |= {"schema": SCHEMA, "commit": commit(), "parameters": parameters(board.cycle_model)}
    fill_latency(report["latency"], recording)
    report["profile"] = profile_json(recording, program, model)
    _write_drawings(options, f"{model.name} on {board.name}", recording, program)
    shown = tables(
        report, recording, program, functions=options.functions, lines=options.lines, loops=options.loops
    )  # fmt: skip
    emit(options, report, shown)
    return ExitCode.OK


def _image(model: TvitModel, seed: int) -> npt.NDArray[np.uint8]:
    import numpy as np

    return np.random.default_rng(seed).integers(0, 256, model.info.input_shape, np.uint8)


def _write_drawings(options: argparse.Namespace, title: str, recording: Recording, program: Program) -> None:
    from tvhil import __version__
    from tvhil.profiling.aggregate import cycles_by_function
    from tvhil.profiling.flame import dump, flame_html, speedscope, trace_events
    from tvhil.profiling.stacks import weigh

    if not (options.flame or options.speedscope or options.trace):
        return
    if not program.has_unwind:
        raise InputError(f"{program.path}: no call frame information, so no call stacks: build with -g")
    weights = weigh(recording.samples, cycles_by_function(recording.rows, program))
    if options.flame:
        _write(options.flame, flame_html(title, weights))
    if options.speedscope:
        _write(options.speedscope, dump(speedscope(title, weights, recording.samples, f"tvhil {__version__}")))
    if options.trace:
        mhz = recording.parameters["clock.cpu_mhz"]
        _write(options.trace, dump(trace_events(recording.timeline(), recording.samples, mhz)))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    notice(f"{path} written")
