# SPDX-License-Identifier: Apache-2.0
"""Measure how well a model classifies a dataset: accuracy, precision, recall, F1, calibration and confusion, for every
way to compute it (FP32 and fake-quantized torch, the integer predictor, a board) and how far they agree.

A .tvit file is computed with integers, and with --board on that board. A quantized checkpoint is computed as it was
trained and, converted, with integers. An FP32 checkpoint is made ternary and 1-bit without training, to compare, unless
--as-is says that it is measured alone. Give --compare NAME=FILE to put other models beside it. The report of --html
shows attention maps, training curves and the confusion matrix as well. Ctrl-C ends with a report of the images that are
done."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvhil.commands.common import (
    add_json,
    add_signature,
    emit,
    facts_table,
    list_table,
    notice,
    occasionally,
    stderr,
    write_json,
)
from tvhil.commands.evaluated_models import ONE_BIT, compared, open_implementations
from tvhil.errors import DatasetError, ExitCode, InputError, TvhilError, UsageError
from tvhil.files import output_file, output_folder, write_whole

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tvhil.boards import Board
    from tvhil.datasets import Dataset
    from tvhil.evaluation.implementations import DeviceImplementation, Implementation, TorchImplementation
    from tvhil.evaluation.pictures import AttentionExample
    from tvhil.evaluation.training_log import TrainingLog

EXAMPLES = """\
examples:
  tvhil evaluate digits --html report.html                                     the embedded model
  tvhil evaluate cifar10 --data cifar10-test.zip --json e.json --html report.html
  tvhil evaluate cifar10 --data test.zip --model q.safetensors --compare FP32=fp32.safetensors \\
        --compare 1-bit=binary.safetensors --sensitivity --html report.html    three models side by side
  tvhil evaluate imagenet-val-1k --data val.tar --model timm:deit_tiny_patch16_224 --limit 100
  tvhil evaluate digits --limit 64 --board qemu-xtensa                         and on a board

datasets: digits, cifar10, cifar100, imagenet-val, imagenet-val-1k, folder, synthetic
"""
DEFAULT_EXAMPLES = 6
SENSITIVITY_IMAGES = 512
_BATCH, _BATCH_WITH_BOARD = 32, 4
_SAVE_SECONDS = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil evaluate`."""
    parser.add_argument("dataset", help="name of a dataset")
    parser.add_argument(
        "--model", metavar="FILE", type=Path,
        help=".tvit file, checkpoint, or timm:NAME (default: the embedded model of the dataset)",
    )  # fmt: skip
    parser.add_argument("--data", metavar="PATH", type=Path, help="where the dataset lies: a folder, zip or tar")
    parser.add_argument("--split", help="train, test or val (default: the one that accuracy is usually measured on)")
    parser.add_argument("--limit", metavar="N", type=int, help="a class-balanced subset of N images")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of drawn images (default 0)")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be decoded")
    parser.add_argument(
        "--compare", metavar="NAME=FILE", action="append", default=[],
        help="another model beside it, for example FP32=teacher.safetensors; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--as-is", action="store_true", help="measure an FP32 checkpoint alone, not made ternary and 1-bit as well"
    )
    parser.add_argument(
        "--mirror", action="store_true", help="average an FP32 checkpoint's logits of an image and of its mirror image"
    )
    parser.add_argument("--html", metavar="FILE", type=output_file, help="write the report as one HTML page")
    parser.add_argument(
        "--pictures", metavar="DIR", type=output_folder, help="write the pictures of the page as files: PNG and SVG"
    )
    parser.add_argument(
        "--sensitivity", metavar="N", type=int, nargs="?", const=SENSITIVITY_IMAGES,
        help=f"make one layer after the other of the FP32 model ternary, on N images (default {SENSITIVITY_IMAGES})",
    )  # fmt: skip
    parser.add_argument(
        "--examples", metavar="N", type=int, default=DEFAULT_EXAMPLES,
        help="images whose attention maps are shown (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--log", metavar="FILE", type=Path, action="append", default=[],
        help="training log (CSV) to show (default: those beside the checkpoints, those in packed models)",
    )  # fmt: skip
    parser.add_argument(
        "--calibration-data", metavar="PATH", type=Path,
        help="images of the same dataset's kind that activation scales of an FP32 checkpoint are found on",
    )  # fmt: skip
    group = parser.add_argument_group("checkpoints of others")
    group.add_argument("--arch", metavar="NAME", help="architecture of FP32 checkpoints that do not know theirs")
    group.add_argument("--mapping", metavar="FILE", type=Path, help="TOML file that says which tensors are what")
    group = parser.add_argument_group("board")
    group.add_argument("--board", help="run the model on this board, too (see `tvhil boards`)")
    group.add_argument("--port", metavar="URL", help="serial port or URL of the board")
    group.add_argument("--journal", metavar="FILE", type=Path, help="one row an image (default: beside --json)")
    add_signature(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, report, and tell by the exit code whether a board was bit-exact."""
    from tvhil.boards import load_board
    from tvhil.evaluation import measure
    from tvhil.evaluation.classification_report import classification_report
    from tvhil.evaluation.implementations import check_same_classes
    from tvhil.evaluation.training_log import read_log

    _check(options)
    others = compared(options)
    logs = [read_log(file) for file in options.log]
    board = load_board(options.board) if options.board is not None else None
    implementations = open_implementations(options, board)
    check_same_classes(implementations)
    if options.mirror:
        _mirror(implementations)
    dataset = _dataset(options, implementations[0])
    skipped: list[str] = []
    if options.skip_unreadable:
        dataset = _readable(dataset, skipped)
    if options.sensitivity is not None and _fp32_vit(implementations) is None:
        raise UsageError("--sensitivity needs an FP32 ViT: as --model, or as --compare FP32=FILE")
    stopped: KeyboardInterrupt | TvhilError | None = None
    with ExitStack() as stack:
        device = None
        if board is not None:
            mine = [one for one in implementations if one.name not in others]
            device = _start(options, board, mine, dataset, stack)
            implementations.append(device)
        measurement = measure.start(dataset, implementations)
        own = [i for i, one in enumerate(implementations) if one.name not in others and one.name != ONE_BIT]

        def report_so_far(why: str | None) -> dict[str, Any]:
            return classification_report(
                measurement, own, dataset, seed=options.seed, skipped=skipped, stopped=why, board=board
            )

        batch = _BATCH if board is None else _BATCH_WITH_BOARD
        try:
            with _counting("images", len(dataset)) as progress:
                measure.measure(measurement, dataset, batch, _saving(options, progress, report_so_far))
            if device is not None:
                device.finish()
        except DatasetError as error:
            stopped = DatasetError(f"{error}; --skip-unreadable leaves such images out")
        except (KeyboardInterrupt, TvhilError) as error:
            stopped = error
        if not measurement.images and stopped is not None:
            raise stopped
        report = report_so_far(None if stopped is None else str(stopped) or "interrupted")
    examples: list[AttentionExample] = []
    if stopped is None:
        try:
            logs = _logs(logs, implementations, report)
            if options.sensitivity is not None:
                _add_sensitivity(options, report, implementations, dataset)
            if options.html is not None or options.pictures is not None:
                examples = _examples(options, implementations, dataset)
        except (KeyboardInterrupt, TvhilError) as error:
            stopped = error
    _write(options, report, examples, logs)
    if stopped is not None:
        notice(f"stopped after {measurement.images:,} of {measurement.total:,} images; what is reported is of these")
        raise stopped
    exact = report["logits"]["bit_exact"]
    if device is None or exact == measurement.images:
        return ExitCode.OK
    notice(f"{measurement.images - exact} of {measurement.images} images are not bit-exact on {options.board}")
    return ExitCode.MISMATCH


def _mirror(implementations: list[Implementation]) -> None:
    """Average over mirror images what is full precision; a quantized model is measured as the device computes it."""
    from tvhil.evaluation.implementations import FP32

    full = [one for one in implementations if one.kind == FP32]
    if not full:
        raise UsageError("--mirror is for FP32 checkpoints: as --model, or as --compare FP32=FILE")
    for one in full:
        one.mirrored = True


def _saving(
    options: argparse.Namespace, progress: Callable[[int], None], report: Callable[[str], dict[str, Any]]
) -> Callable[[int], None]:
    """Progress that leaves the report so far on the disk now and then, should the process be killed."""
    last = time.monotonic()

    def tell(done: int) -> None:
        nonlocal last
        progress(done)
        if options.json is not None and str(options.json) != "-" and time.monotonic() - last >= _SAVE_SECONDS:
            last = time.monotonic()
            write_json(report("not finished"), options.json)

    return tell


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot be done before anything is loaded."""
    for option, least in (("sensitivity", 1), ("examples", 0)):
        value = getattr(options, option)
        if value is not None and value < least:
            raise UsageError(f"--{option} must be at least {least}, not {value}")
    if options.board is None and (options.port is not None or options.journal is not None):
        raise UsageError("--port and --journal go with --board")
    if options.mirror and options.sensitivity is not None:
        raise UsageError("--sensitivity compares single forward passes: leave out --mirror")


# -- images and board --------------------------------------------------------------------------------------------------


def _dataset(options: argparse.Namespace, model: Implementation) -> Dataset:
    from tvhil.datasets import open_dataset

    dataset = open_dataset(
        options.dataset, options.data, split=options.split, limit=options.limit, seed=options.seed,
        shape=model.input_shape,
    )  # fmt: skip
    if not len(dataset):
        raise InputError(f"{options.dataset} holds no image")
    if options.limit is None:
        dataset = dataset.draw(len(dataset), options.seed)  # classes in turn, so that a part stands for the whole
    if len(dataset.class_names) != model.classes:
        notice(f"the data has {len(dataset.class_names)} classes, the model {model.classes}: accuracy is not measured")
    return dataset


def _readable(dataset: Dataset, skipped: list[str]) -> Dataset:
    from tvhil.evaluation.inputs import without_unreadable

    def skip(sample: Any, error: DatasetError) -> None:
        notice(f"left out: {error}")
        skipped.append(sample.key)

    return without_unreadable(dataset, skip)


def _start(
    options: argparse.Namespace, board: Board, implementations: list[Implementation], dataset: Dataset, stack: ExitStack
) -> DeviceImplementation:
    """The board, running the model of the first integer implementation; ended with the stack."""
    from tvhil.evaluation.implementations import DeviceImplementation, IntegerImplementation
    from tvhil.evaluation.inputs import dataset_identity
    from tvhil.evaluation.journal import Journal
    from tvhil.evaluation.run import Evaluation
    from tvhil.evaluation.session import open_device

    integer = next((one for one in implementations if isinstance(one, IntegerImplementation)), None)
    if integer is None:
        raise UsageError("a board runs integers, and this model has none")
    header = {
        "model": {"name": integer.tvit.name, "signature": integer.tvit.signature},
        "board": board.name,
        "dataset": dataset_identity(dataset),
        "images": len(dataset),
        "seed": options.seed,
        "limit": options.limit,
    }
    journal = stack.enter_context(Journal.create(_journal_path(options), header, overwrite=True))
    device = stack.enter_context(open_device(board, integer.tvit, port=options.port, notice=notice))
    evaluation = Evaluation(integer.tvit, integer.predictor, journal)
    return DeviceImplementation(f"on {board.name}", integer, evaluation, device)


def _journal_path(options: argparse.Namespace) -> Path:
    if options.journal is not None:
        return Path(options.journal)
    beside = options.json if options.json is not None and str(options.json) != "-" else options.html
    if beside is not None:
        return Path(beside).with_suffix(".board.jsonl")
    return Path("runs") / f"evaluate-{time.strftime('%Y%m%d-%H%M%S')}" / "journal.jsonl"


@contextmanager
def _counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, a line now and then elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        tell = occasionally()
        yield lambda done: tell(f"{done:,} of {total:,} {what}")
        return
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


# -- what is reported -------------------------------------------------------------------------------------------------


def _logs(named: list[TrainingLog], implementations: list[Implementation], report: dict[str, Any]) -> list[TrainingLog]:
    """Training logs that were named, or else lie beside or in the models; a line of each goes into the report."""
    from tvhil.evaluation.implementations import IntegerImplementation
    from tvhil.evaluation.training_log import find_logs, model_log, read_log
    from tvhil.models.published import is_published

    logs = list(named)
    if not logs:
        files = [Path(row["file"]) for row in report["implementations"] if not is_published(row["file"])]
        for file in {log: None for model in files for log in find_logs(model)}:
            try:
                logs.append(read_log(file))
            except InputError as error:
                notice(f"not shown: {error}")
        packed = [one for one in implementations if isinstance(one, IntegerImplementation)]
        logs += [log for one in packed if (log := model_log(Path(one.source), one.tvit.meta)) is not None]
    report["training"] = [
        {
            "file": str(log.file),
            "unit": log.unit,
            "rows": len(log.steps),
            "last": {name: points[-1][1] for name in log.curves if (points := log.points(name))},
        }
        for log in logs
    ]
    return logs


def _fp32_vit(implementations: list[Implementation]) -> TorchImplementation | None:
    """The first FP32 model that has layers as a ViT has them."""
    from tvhil.evaluation.implementations import FP32, TorchImplementation

    for one in implementations:
        if isinstance(one, TorchImplementation) and one.kind == FP32 and one.vit is not None:
            return one
    return None


def _add_sensitivity(
    options: argparse.Namespace, report: dict[str, Any], implementations: list[Implementation], dataset: Dataset
) -> None:
    """Put `sensitivity` into the report, layer by layer, so that an interruption keeps what is done."""
    import numpy as np

    from tvhil.evaluation.inputs import image_loader
    from tvhil.evaluation.sensitivity import LayerSensitivity, layers_of, sensitivity

    model = _fp32_vit(implementations)
    assert model is not None
    assert model.vit is not None
    drawn = dataset.draw(options.sensitivity, options.seed)
    images = np.stack([image_loader(sample, model.preprocessing, model.input_shape)() for sample in drawn])
    labelled = len(dataset.class_names) == model.classes
    labels = np.array([sample.label for sample in drawn]) if labelled else None
    base = None
    if labels is not None:
        answers = [model.logits(images[i : i + _BATCH], []).argmax(1) for i in range(0, len(images), _BATCH)]
        base = float(np.mean(np.concatenate(answers) == labels))
    rows: list[dict[str, Any]] = []
    report["sensitivity"] = {
        "model": model.name, "rule": "twn", "images": len(images), "accuracy": base, "layers": rows,
    }  # fmt: skip
    with _counting("layers", len(layers_of(model.vit))) as progress:

        def keep(row: LayerSensitivity) -> None:
            rows.append(row.to_json())
            progress(len(rows))

        sensitivity(model.vit, images, labels, progress=keep)


def _examples(
    options: argparse.Namespace, implementations: list[Implementation], dataset: Dataset
) -> list[AttentionExample]:
    """Attention maps of a few images, one of each class in turn."""
    from tvhil.evaluation.attention_maps import attention_map, overlay, picture_of, shown
    from tvhil.evaluation.inputs import image_loader
    from tvhil.evaluation.pictures import SIDE, AttentionExample

    if not options.examples:
        return []
    models, out = shown(implementations), []
    drawn = dataset.draw(options.examples, options.seed)
    with _counting("attention maps", len(drawn)) as progress:
        for sample in drawn:
            maps, answers, picture = {}, {}, None
            for model in models:
                image = image_loader(sample, model.preprocessing, model.input_shape)()
                picture = picture or picture_of(image, SIDE)
                shares = attention_map(model, image)
                if shares is None:
                    continue
                answer = int(model.logits(image[None], []).argmax())
                maps[model.name] = overlay(image, shares, SIDE)
                answers[model.name] = (
                    dataset.class_names[answer] if len(dataset.class_names) == model.classes else f"class {answer}"
                )
            label = None if sample.label is None else dataset.class_names[sample.label]
            if picture is not None and maps:
                out.append(AttentionExample(sample.key, label, picture, maps, answers))
            progress(len(out))
    return out


def _write(
    options: argparse.Namespace, report: dict[str, Any], examples: list[AttentionExample], logs: list[TrainingLog]
) -> None:
    from tvhil.evaluation.html_report import render_html
    from tvhil.evaluation.pictures import Pictures, write_pictures

    emit(options, report, _tables(report))
    pictures = Pictures(examples, logs)
    if options.pictures is not None:
        files = write_pictures(options.pictures, report, pictures)
        notice(f"pictures: {', '.join(map(str, files))}")
    if options.html is not None:
        command = "tvhil " + " ".join(shlex.quote(word) for word in sys.argv[1:])
        write_whole(options.html, render_html(report, pictures, command).encode())
        notice(f"report: {options.html}")


def _percent(value: float | None) -> str:
    """A share for people; nothing where it was not measured."""
    return "" if value is None else f"{value:.2%}"


def _tables(report: dict[str, Any]) -> list[RenderableType]:
    """Tables of a report: the figures, who agrees with whom, and what is sensitive."""
    from tvhil.evaluation.html_report import name_text, size_text

    rows = report["implementations"]
    dataset = report["dataset"]
    columns = ["", "accuracy", "top 5", "precision", "recall", "F1", "calibration error", "bytes"]
    shares = ("precision", "recall", "f1", "calibration_error")
    cells = [
        [
            name_text(row),
            *(_percent(row["accuracy"][key]) for key in ("top1", "top5")),
            *(_percent(row[key]) for key in shares),
            size_text(row),
        ]
        for row in rows
    ]
    title = f"{report['model']['name']}: {dataset['images']:,} images of {dataset['name']}, {dataset['split']}"
    tables = [list_table(title, columns, cells)]
    names, same = report["agreement"]["names"], report["agreement"]["top1"]
    if len(names) > 1:
        pairs = [(f"{names[j]} and {names[i]}", _percent(same[i][j])) for i in range(len(names)) for j in range(i)]
        tables.append(facts_table("Same answer", pairs))
    exact = report["logits"]["bit_exact"]
    if exact is not None:
        tables.append(facts_table("Board", [("bit-exact logits", f"{exact:,} of {dataset['images']:,}")]))
    found = report["sensitivity"]
    if found is not None:
        worst = sorted(found["layers"], key=lambda row: -row["kl"])[:10]
        tables.append(
            list_table(
                f"Most sensitive layers of {found['model']} ({found['images']:,} images)",
                ["layer", "parameters", "accuracy", "same answer", "KL divergence"],
                [
                    [r["layer"], r["parameters"], _percent(r["accuracy"]), _percent(r["agreement"]), f"{r['kl']:.4g}"]
                    for r in worst
                ],
            )
        )
    return tables
