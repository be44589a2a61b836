# SPDX-License-Identifier: Apache-2.0
"""Measure kernels alone and whole models on a board: what each costs for a multiply-accumulate.

Kernels run at the shapes of DeiT-Tiny's and DeiT-Small's blocks, whole models with random weights where they are no
file; every logit is checked against the prediction. The unit is the board's: cycles in lx7sim and on silicon,
instructions in QEMU, seconds on the host. On a board with two cores kernels are measured by one and by two.

lx7sim stands for the ESP32-S3: models are planned for that board's memory, and beside the simulated figures are those
of the portable kernels and what other projects published for the chip. The JSON names commit, board, unit and the
parameters of the cycle model, and --compare refuses figures that mean different things."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvhil.commands.common import add_json, emit, notice, open_model, print_tables, write_json
from tvhil.errors import BoardError, ExitCode, InputError, MismatchError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tvhil.boards import Board
    from tvhil.evaluation.device import Device, DeviceFacts
    from tvhil.packing import TvitModel
    from tvhil.profiling.benchmark import Width

EXAMPLES = """\
examples:
  tvhil bench --board lx7sim --json b.json                  kernels, digits, untrained DeiT-Tiny and -Small
  tvhil bench --board lx7sim --kernels --compare b.json     kernels only, against an earlier result
  tvhil bench --board qemu-xtensa --model m.tvit --model digits --json q.json
  tvhil bench --compare b.json --with c.json                two results, nothing is run
"""
_DEFAULT_MODELS = ("digits", "deit_tiny", "deit_small")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil bench`."""
    parser.add_argument("--board", help="name of a board (see `tvhil boards`)")
    parser.add_argument("--kernels", action="store_true", help="kernels alone; with --model both")
    parser.add_argument(
        "--model", metavar="M", action="append", default=[],
        help="a .tvit file, an architecture (see `tvhil models`; random weights), or digits; repeatable",
    )  # fmt: skip
    parser.add_argument("--images", metavar="N", type=int, help="of each model (default: 1 on an emulator, else 5)")
    parser.add_argument("--port", help="serial port or URL of the board, where there is a choice")
    parser.add_argument("--compare", metavar="FILE", type=Path, help="JSON of an earlier bench: print the ratios to it")
    parser.add_argument("--with", metavar="FILE", type=Path, dest="other", help="compare that result, run nothing")
    parser.add_argument("--alone", action="store_true", help="do not measure the portable kernels for comparison")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, report, compare."""
    from tvhil.boards import load_board
    from tvhil.profiling.benchmark import check_comparable, parameters, read_bench

    earlier = read_bench(options.compare) if options.compare is not None else None
    if options.other is not None:
        if earlier is None or options.board is not None:
            raise UsageError("--with FILE compares two results: name the earlier one with --compare, and no board")
        report = read_bench(options.other)
        emit(options, report, _comparison(earlier, report))
        return ExitCode.OK
    if options.board is None:
        raise UsageError("name a board with --board (see `tvhil boards`)")
    if options.images is not None and options.images < 1:
        raise UsageError("--images must be at least 1")
    board = load_board(options.board)
    if earlier is not None:
        # Before minutes of measuring, not after.
        check_comparable(earlier, board.counter.unit, parameters(board.cycle_model))
    report = _measure(options, board)
    emit(options, report, _tables(report))
    if earlier is not None and str(options.json) != "-":
        print_tables(*_comparison(earlier, report))
    return ExitCode.OK


def _measure(options: argparse.Namespace, board: Board) -> dict[str, Any]:
    """Measure what was asked for. What is measured already is written when something stops it."""
    from tvhil.boards import load_board
    from tvhil.evaluation.prepare import model_facts
    from tvhil.profiling.benchmark import WIDTHS, bench_report, measure, model_row, put_model_beside

    images = options.images or (1 if board.kind == "emulator" else 5)
    wanted = options.model or ([] if options.kernels else _DEFAULT_MODELS)
    models = [_model(name, board) for name in wanted]
    _check_models(models, board)
    reference = load_board(board.reference) if board.reference and not options.alone and options.port is None else None
    one_core = _with_cores(board, 1) if board.start is not None and board.start.cores > 1 else None
    widths = WIDTHS if options.kernels or not options.model else ()
    facts: DeviceFacts | None = None
    kernels: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []

    try:
        for width in widths:
            try:
                found, facts = _measure_kernels(options, width, images, board, one_core, reference)
            except InputError as error:
                notice(f"the shapes of {width.name} are left out: {error}")
                continue
            kernels += found
        for name, (model, file) in zip(wanted, models, strict=True):
            notice(f"{model.name}: {model.info.macs:,} multiply-accumulates, {images} image{'s' * (images > 1)}")
            measured = measure(_opener(options, board), model, images)
            facts = measured.facts
            row = model_row(measured, model_facts(model, file), board.cost, board.cores)
            row["cores"] = board.cores
            if one_core is not None:
                put_model_beside(row, measure(_opener(options, one_core), model, images), "one_core")
            if reference is not None:
                notice(f"{model.name}: portable kernels")
                plain = _model(name, reference)[0]
                put_model_beside(row, measure(_opener(options, reference), plain, images), "portable")
            rows.append(row)
    except (KeyboardInterrupt, BoardError, MismatchError):
        if options.json is not None and str(options.json) != "-" and (kernels or rows):
            write_json(bench_report(board, facts, kernels, rows, complete=False), options.json)
            notice(f"what was measured before is in {options.json}")
        raise
    return bench_report(board, facts, kernels, rows, complete=True)


def _opener(options: argparse.Namespace, board: Board) -> Callable[[TvitModel], AbstractContextManager[Device]]:
    from tvhil.evaluation.session import open_device

    return lambda model: open_device(board, model, port=options.port, notice=notice)


def _with_cores(board: Board, cores: int) -> Board:
    assert board.start is not None
    return dataclasses.replace(board, start=dataclasses.replace(board.start, cores=cores))


def _measure_kernels(
    options: argparse.Namespace,
    width: Width,
    images: int,
    board: Board,
    one_core: Board | None,
    reference: Board | None,
) -> tuple[list[dict[str, Any]], DeviceFacts]:
    """The kernels of one width by one core; beside them by two, and the portable ones."""
    from tvhil.packing.trits import Codec
    from tvhil.profiling.benchmark import measure_kernels, put_beside

    codec = Codec.GAPS if board.kernels == "pie" else Codec.BASE3
    rows, facts = measure_kernels(_opener(options, one_core or board), width, images, notice=notice, codec=codec)
    if one_core is not None:
        both, _ = measure_kernels(_opener(options, board), width, images, codec=codec, decoding=False)
        put_beside(rows, both, "two_cores")
    if reference is not None:
        notice(f"{width.name}: portable kernels")
        portable, _ = measure_kernels(_opener(options, reference), width, images, decoding=False)
        put_beside(rows, portable, "portable")
    return rows, facts


def _check_models(models: list[tuple[TvitModel, str]], board: Board) -> None:
    from tvhil.prediction.memory import check_fit

    for model, _ in models:
        check_fit(model, board.limits, board.name)


def _model(name: str, board: Board) -> tuple[TvitModel, str]:
    """A model by file (signed, where the board insists), architecture or `digits`, and what to call its file."""
    from tvhil.boards import load_board
    from tvhil.models import list_models, model_config
    from tvhil.packing.trits import Codec
    from tvhil.profiling.benchmark import untrained_model

    if name == "digits" or name.endswith(".tvit") or Path(name).is_file():
        model, file = open_model(None if name == "digits" else Path(name), board.trusted_key_files)
        return model, str(file)
    try:
        config = model_config(name)
    except UsageError:
        raise UsageError(
            f"--model {name}: neither a .tvit file, nor digits, nor an architecture ({', '.join(list_models())})"
        ) from None
    if board.kernels != "pie":
        return untrained_model(name, config), f"{name}, random weights"
    planned_for = load_board(board.stands_for) if board.stands_for else board
    model = untrained_model(name, config, Codec.GAPS, planned_for.memory.arena)
    return model, f"{name}, random weights, planned for {planned_for.name}"


def _tables(report: dict[str, Any]) -> Iterator[RenderableType]:
    from tvhil.profiling.report import table

    unit, board = report["latency"]["unit"], report["board"]
    one = {"cycles": "cycle", "instructions": "instruction", "seconds": "second"}.get(unit, "unit")
    where = f"{board['name']}, {board['measured_on']}"
    for key, title, columns in (
        ("kernels", f"Kernels on {where}; *: the difference of two measurements", ("kernel",)),
        ("models", f"Models on {where}", ("model", "predicted", "bit-exact")),
    ):
        rows = report[key]
        variants = [name for name in _VARIANTS if any(row.get(name) for row in rows)]
        head = (columns[0], unit, *([] if variants else ["MAC", f"{unit}/MAC"]), f"MAC/{one}", *columns[1:])
        head += tuple(column for name in variants for column in (f"{_VARIANTS[name]}: MAC/{one}", "time x"))
        if key == "kernels" and not variants:
            head += (f"{unit}/value",)
        if rows:
            yield table(title, head, [_cells(row, variants) for row in rows], (columns[0],))
    if report.get("published"):
        cells = [
            [row["what"], row["source"], f"{row['cores']}", row["memory"]]
            + [_number(row[key]) for key in ("cycles", "macs", "mac_per_cycle")]
            for row in report["published"]
        ]
        published = ("int8 operator or network", "published by", "cores", "memory", "cycles", "MAC", "MAC/cycle")
        yield table("Published for the ESP32-S3 at 240 MHz, silicon", published, cells, (*published[:2], "memory"))


_VARIANTS = {"two_cores": "two cores", "one_core": "one core", "portable": "portable"}


def _cells(row: dict[str, Any], variants: Sequence[str]) -> list[str]:
    """Kernels are those of one core, models those of all; what was measured otherwise is behind them."""
    rate = _number(row["mac_per_unit"])
    shared = [rate] if variants else [_number(row["macs"]), _number(row["per_mac"]), rate]
    if "latency" in row:
        cells = [row["id"], _number(row["latency"]["measured"]["mean"]), *shared, *_against_prediction(row)]
    else:
        cells = [row["id"] + " *" * row["derived"], _number(row["cost"]), *shared]
    for name in variants:
        other = row.get(name)
        cells += [_number(other["mac_per_unit"]), _number(other["ratio"])] if other else ["", ""]
    return cells if variants or "latency" in row else [*cells, _number(row["per_value"])]


def _against_prediction(row: dict[str, Any]) -> list[str]:
    error, logits = row["latency"]["relative_error"], row["logits"]
    return ["" if error is None else f"{error:+.2%}", f"{logits['bit_exact']} of {logits['images']}"]


def _comparison(earlier: dict[str, Any], report: dict[str, Any]) -> Iterator[RenderableType]:
    from tvhil.profiling.benchmark import compare
    from tvhil.profiling.report import table

    comparison = compare(earlier, report)
    names = [_bench_name(bench) for bench in (earlier, report)]
    rows = [[name, _number(a), _number(b), f"{b / a:.4f}" if a else ""] for name, a, b in comparison.rows]
    if comparison.mean_ratio is not None:
        rows.append(["geometric mean", "", "", f"{comparison.mean_ratio:.4f}"])
    yield table(f"{names[1]} against {names[0]}", ("what", "before", "after", "ratio"), rows, ("what",))
    if comparison.missing:
        some = ", ".join(comparison.missing[:3]) + (" …" if len(comparison.missing) > 3 else "")
        notice(f"{len(comparison.missing)} figures are in one of the two only: {some}")


def _bench_name(bench: dict[str, Any]) -> str:
    commit = bench["commit"]
    suffix = f" at {commit['hash'][:8]}{' (changed)' * commit['dirty']}" if commit else ""
    return f"{bench['board']['name']}{suffix}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
