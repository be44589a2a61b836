# SPDX-License-Identifier: Apache-2.0
"""Stream a dataset to a board, image by image, and compare every logit with the host's prediction, bit for bit.

Each finished image is a row of a journal (JSON Lines, beside the --json file, or in runs/). Whatever stops an
evaluation, --resume continues it. When logits differ, the first operator, token and channel that do are found by
reading tensors back from the board; the exit code is then 6."""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvhil.commands.common import (
    add_json,
    add_model,
    add_signature,
    building,
    emit,
    notice,
    occasionally,
    open_model,
    preprocessing_of,
    stderr,
)
from tvhil.commands.evaluated_models import default_model
from tvhil.errors import BoardError, ExitCode, InputError, UsageError

if TYPE_CHECKING:
    from tvhil.boards import Board
    from tvhil.evaluation.device import Device
    from tvhil.evaluation.journal import Journal
    from tvhil.evaluation.report import Summary
    from tvhil.evaluation.run import Input
    from tvhil.link import LinkTimeouts
    from tvhil.link.faults import FaultPlan
    from tvhil.packing import TvitModel
    from tvhil.rack.pool import Slot

EXAMPLES = """\
examples:
  tvhil run-eval digits --board qemu-xtensa --limit 64 --json r.json      the embedded model on an emulated Xtensa
  tvhil run-eval cifar10 --board native --model m.tvit --data cifar-10-batches-bin.zip --limit 100
  tvhil run-eval imagenet-val-1k --board qemu-xtensa --model m.tvit --data val.tar --json r.json
  tvhil run-eval imagenet-val-1k --board qemu-xtensa --model m.tvit --data val.tar --json r.json --resume

  tvhil run-eval digits --board lx7sim --port socket://lab:4000 --port socket://lab:4001             two boards on ports
  tvhil run-eval digits --board qemu-xtensa --boards 4                                       four emulators
  tvhil run-eval digits --board native --faults seed=1,count=1000 --json r.json              a bad line on purpose

pool files: [[board]] tables with board = "NAME" and port = "URL", or instances = N of an emulator
fault kinds: flip, drop, duplicate, insert, truncate, repeat, delay, stall, disconnect, reset
datasets: digits, synthetic, cifar10, cifar100, imagenet-val, imagenet-val-1k, folder
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil run-eval`."""
    parser.add_argument("dataset", help="name of a dataset")
    parser.add_argument("--board", help="name of a board (see `tvhil boards`)")
    add_model(parser)
    add_signature(parser)
    parser.add_argument("--data", metavar="PATH", type=Path, help="where the dataset lies: a folder, zip or tar")
    parser.add_argument("--split", help="train, test or val (default: the one that accuracy is usually measured on)")
    parser.add_argument("--limit", metavar="N", type=int, help="run a class-balanced subset of N images")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the subset (default 0)")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be decoded")
    parser.add_argument(
        "--port", action="append", default=[], metavar="URL",
        help="serial port or URL of the board; given several times, images are dealt to all of them",
    )  # fmt: skip
    parser.add_argument("--boards", metavar="N", type=int, help="deal the images to N instances of an emulated board")
    parser.add_argument("--pool", metavar="FILE", type=Path, help="deal the images to the boards of a pool file (TOML)")
    parser.add_argument(
        "--distrust", action="store_true", help="quarantine a board of a rack at its first image that is not bit-exact"
    )
    parser.add_argument(
        "--faults", metavar="PLAN", help="a bad line on purpose: seed=1,count=1000[,every=BYTES][,kinds=flip+reset+...]"
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, help="give up on a board that shows no sign of life for so long"
    )
    parser.add_argument("--journal", metavar="FILE", type=Path, help="journal (default: beside --json, or in runs/)")
    parser.add_argument("--resume", action="store_true", help="continue the journal of an earlier run")
    parser.add_argument("--overwrite", action="store_true", help="start over although the journal is not finished")
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first image that is not bit-exact")
    parser.add_argument("--each", action="store_true", help="print a line for each image")
    parser.add_argument("--operators", action="store_true", help="print the latency of each operator")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate, report, and tell by the exit code whether every image was bit-exact."""
    from tvhil.datasets import open_dataset
    from tvhil.evaluation.inputs import dataset_identity, labels_fit, make_inputs, without_unreadable
    from tvhil.evaluation.prepare import predicted_report
    from tvhil.evaluation.report import render
    from tvhil.link.faults import FaultPlan
    from tvhil.prediction.memory import check_fit

    if options.resume and options.overwrite:
        raise UsageError("--resume continues a journal, --overwrite discards it: choose one")
    _timeouts(options)
    slots = _slots(options)
    boards = {slot.board.name: slot.board for slot in slots}
    trusted = [options.require_signature, *(board.trusted_key_files for board in boards.values())]
    model, file = open_model(options.model or default_model(options.dataset), *trusted)
    image_bytes = math.prod(model.info.input_shape)
    faults = FaultPlan.parse(options.faults, image_bytes) if options.faults is not None else None
    for board in boards.values():
        check_fit(model, board.limits, board.name)
    dataset = open_dataset(
        options.dataset, options.data, split=options.split, limit=options.limit, seed=options.seed,
        shape=model.info.input_shape,
    )  # fmt: skip
    if not len(dataset):
        raise InputError(f"{options.dataset} holds no image")
    if options.skip_unreadable:
        dataset = without_unreadable(dataset, lambda _, error: notice(f"left out: {error}"))
    if dataset.class_names and not labels_fit(dataset, model):
        notice(
            f"the data has {len(dataset.class_names)} classes, the model {model.info.classes}: accuracy is not measured"
        )
    inputs = make_inputs(dataset, model, preprocessing_of(model))
    header = {
        "model": {"name": model.name, "signature": model.signature},
        "board": "+".join(sorted(boards)),
        "dataset": dataset_identity(dataset),
        "images": len(inputs),
        "seed": options.seed,
        "limit": options.limit,
    }
    path = _journal_path(options, header)
    report = predicted_report(model, file, list(boards.values()))
    report["dataset"] |= {"name": dataset.title, "split": dataset.split, "seed": options.seed}
    with _open_journal(path, header, options) as journal:
        summary = _evaluate(options, slots, faults, model, journal, inputs)
        board_row = next((row["board"] for row in journal.rows() if "board" in row), None)
    _finish_report(report, summary, board_row, path, options.json)
    emit(options, report, render(report, layers=options.operators))
    if summary.bit_exact == summary.images:
        return ExitCode.OK
    notice(f"{summary.images - summary.bit_exact} of {summary.images} images are not bit-exact; journal: {path}")
    return ExitCode.MISMATCH


def _slots(options: argparse.Namespace) -> list[Slot]:
    """The boards that are asked for: one, or a rack."""
    from tvhil.boards import load_board
    from tvhil.rack import pool

    chosen = [name for name in ("port", "boards", "pool") if getattr(options, name)]
    if len(chosen) > 1:
        raise UsageError(f"--{chosen[0]} and --{chosen[1]} both say which boards: choose one")
    if options.pool is not None:
        if options.board is not None:
            raise UsageError("a pool file names its boards: leave --board out")
        return pool.read_pool(options.pool)
    if options.board is None:
        raise UsageError("which board? --board NAME (see `tvhil boards`) or --pool FILE")
    board = load_board(options.board)
    if options.boards is not None:
        return pool.instances(board, options.boards)
    return pool.ports(board, options.port) if options.port else [pool.Slot(board.name, board)]


def _evaluate(
    options: argparse.Namespace,
    slots: list[Slot],
    faults: FaultPlan | None,
    model: TvitModel,
    journal: Journal,
    inputs: list[Input],
) -> Summary:
    from tvhil.evaluation.run import Evaluation
    from tvhil.prediction import Predictor
    from tvhil.rack.dealing import Rack

    evaluation = Evaluation(model, Predictor(model), journal, fail_fast=options.fail_fast)
    left = len(inputs) - len(evaluation.done)
    if evaluation.done:
        notice(f"{journal.path}: {len(evaluation.done)} images are done, {left} are left")
    if not left and evaluation.summary.memory is not None:
        return evaluation.summary
    open_slot = _opener(options, model, faults)
    try:
        for board in {slot.board.name: slot.board for slot in slots if slot.port is None}.values():
            _make_ready(board)
        with _progress(len(inputs), evaluation.summary.images, each=options.each) as finished:
            if len(slots) > 1:
                rack = Rack(evaluation, slots, open_slot, notice, distrust=options.distrust)
                return rack.run(inputs, finished)
            with open_slot(slots[0]) as device:
                return evaluation.run(device, inputs, finished)
    except (KeyboardInterrupt, BoardError, OSError):
        notice(
            f"{evaluation.summary.images} of {len(inputs)} images are done and kept in {journal.path}; "
            "run the same command with --resume to continue"
        )
        raise


def _opener(
    options: argparse.Namespace, model: TvitModel, faults: FaultPlan | None
) -> Callable[[Slot], AbstractContextManager[Device]]:
    from tvhil.evaluation.session import open_device
    from tvhil.link.faults import FaultBudget

    budget = FaultBudget(faults.count) if faults is not None else None
    numbers = itertools.count()

    def open_slot(slot: Slot) -> AbstractContextManager[Device]:
        if faults is None:
            return open_device(slot.board, model, port=slot.port, timeouts=_timeouts(options), notice=notice)
        around = functools.partial(faults.around, number=next(numbers), budget=budget)
        # Thousands of recoveries are expected, and counted in the report.
        return open_device(slot.board, model, port=slot.port, timeouts=_timeouts(options), faults=around)

    return open_slot


def _make_ready(board: Board) -> None:
    """Build the firmware under a progress bar of its own, but not for an emulator that is not there."""
    from tvhil.boards import build
    from tvhil.boards.tools import find_program

    if board.start is not None and board.start.package:
        find_program(board.start.command[0], board.start.package, board.name)
    if board.firmware is not None:
        with building() as progress:
            build(board, progress)


def _timeouts(options: argparse.Namespace) -> LinkTimeouts | None:
    if options.timeout is None:
        return None
    if not options.timeout > 0:
        raise UsageError(f"--timeout must be positive, not {options.timeout}")
    from tvhil.link import LinkTimeouts

    return LinkTimeouts(**dict.fromkeys(("connect", "request", "run", "load"), options.timeout))


@contextmanager
def _progress(total: int, done: int, *, each: bool) -> Iterator[Callable[[Summary, dict[str, Any]], None]]:
    """A progress bar on a terminal, a line now and then elsewhere; with `each` a line an image."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        tell = occasionally()

        def line(summary: Summary, row: dict[str, Any]) -> None:
            if each:
                print(_image_line(row), file=sys.stderr, flush=True)
            else:
                tell(f"{summary.images} of {total} images, {_state(summary)}")

        yield line
        return
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), transient=True) as progress:
        task = progress.add_task("running", total=total, completed=done)

        def advance(summary: Summary, row: dict[str, Any]) -> None:
            if each:
                progress.console.print(_image_line(row), markup=False)
            progress.update(task, completed=summary.images, description=_state(summary))

        yield advance


def _image_line(row: dict[str, Any]) -> str:
    from tvhil.evaluation.report import human

    label = "" if row["label"] is None else f"  label {row['label']}"
    verdict = "bit-exact" if row["exact"] else f"DIFFERS by up to {row['error']}"
    latency = "" if row["latency"] is None else f"  latency {human(row['latency'])}"
    answers = f"predicted {row['predicted_top1']}  got {row['top1']}"
    return f"{row['image']:>6}  {row['id']}{label}  {answers}  {verdict}{latency}"


def _state(summary: Summary) -> str:
    return "all bit-exact" if summary.bit_exact == summary.images else f"{summary.bit_exact} bit-exact"


def _journal_path(options: argparse.Namespace, header: dict[str, Any]) -> Path:
    """Where the journal lies: as told, beside the report, or in runs/."""
    if options.journal is not None:
        return Path(options.journal)
    if options.json is not None and str(options.json) != "-":
        return Path(options.json).with_suffix(".journal.jsonl")
    if not options.resume:
        return _new_run() / "journal.jsonl"
    from tvhil.evaluation.journal import JournalError, read_journal

    for path in sorted(Path("runs").glob("*/journal.jsonl"), reverse=True):
        try:
            found, _ = read_journal(path)
        except JournalError:
            continue
        if all(found.get(key) == value for key, value in header.items()):
            return path
    raise UsageError("runs/ holds no journal of this evaluation to resume: name it with --journal FILE")


def _new_run() -> Path:
    """A folder of its own in runs/, also for evaluations that start in the same second; later ones sort behind."""
    started = Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    for folder in (started, *(started.with_name(f"{started.name}-{n:02}") for n in range(2, 100))):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise UsageError(f"{started} and 98 more are taken: name a journal with --journal FILE")


def _open_journal(path: Path, header: dict[str, Any], options: argparse.Namespace) -> Journal:
    from tvhil.evaluation.journal import Journal, JournalError, read_journal

    if options.resume:
        return Journal.resume(path, header)
    overwrite = options.overwrite
    if not overwrite and path.exists():
        # A finished journal is replaced as its report is; an unfinished one is work that somebody may want to keep.
        try:
            found, rows = read_journal(path)
            overwrite = len({row["image"] for row in rows if "image" in row}) == found.get("images")
        except JournalError:
            overwrite = False
    return Journal.create(path, header, overwrite=overwrite)


def _finish_report(
    report: dict[str, Any], summary: Summary, board_row: dict[str, Any] | None, journal: Path, json_file: Path | None
) -> None:
    from tvhil.evaluation.report import fill_measured

    if board_row is not None:
        report["board"]["details"] = board_row["details"]
        report["latency"]["unit"] = report["latency"]["unit"] or board_row["unit"]
    fill_measured(report, summary)
    beside = json_file is not None and journal.parent == Path(json_file).parent
    report["images"] = journal.name if beside else str(journal)
