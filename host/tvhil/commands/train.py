# SPDX-License-Identifier: Apache-2.0
"""Train a model by a recipe: a full-precision teacher, or a ternary ViT through the integers that the device computes.
The folder of --out gets the state to resume from, the log, a checkpoint of each phase, the packed model and a report.
Run the same command again to continue what was interrupted."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvhil.commands.common import (
    add_json,
    emit,
    facts_table,
    list_table,
    notice,
    occasionally,
    print_tables,
    stderr,
    write_json,
)
from tvhil.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from tvhil.quantization.training.data import TrainingData
    from tvhil.quantization.training.recipe import Recipe
    from tvhil.quantization.training.trainer import Outcome

EXAMPLES = """\
examples:
  tvhil train --list                                                      the recipes
  tvhil train fp32 --dataset digits --arch vit_digits -o runs/fp32        a teacher, on the embedded digits
  tvhil train ftervit --dataset digits --arch vit_digits --teacher runs/fp32/model.safetensors \\
      --init runs/fp32/model.safetensors -o runs/ternary                  its ternary student
  tvhil train teacher --data cifar10/ -o runs/teacher --device cuda --precision bf16
  tvhil train cifar10 --data cifar10/ --teacher runs/teacher/model.safetensors -o runs/cifar10 --device cuda
  tvhil train my.toml --data data/ -o runs/my --set phase.epochs=5 --set seed=1
  torchrun --nproc-per-node 4 --no-python tvhil train fp32 --data data/ -o runs/fp32 --device cuda
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil train`."""
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a name of --list, or a .toml file")
    parser.add_argument("--list", action="store_true", help="list the recipes and stop")
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, help="folder of the run")
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", metavar="NAME", help="in place of the recipe's (see `tvhil run-eval --help`)")
    group.add_argument("--data", metavar="PATH", type=Path, help="where it lies: both splits, or the training split")
    group.add_argument("--test-data", metavar="PATH", type=Path, help="where the test split lies, if elsewhere")
    group.add_argument("--skip-corrupt", action="store_true", help="leave out images that cannot be read, not stop")
    group = parser.add_argument_group("model")
    group.add_argument("--arch", metavar="NAME", help="architecture in place of the recipe's (see `tvhil models`)")
    group.add_argument("--init", metavar="FILE", type=Path, help="start from this checkpoint, or timm:NAME")
    group.add_argument("--teacher", metavar="FILE", type=Path, help="frozen teacher to distil from, or timm:NAME")
    group.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="changes",
        help="change the recipe: seed=1, phase.epochs=5 (all phases), phase.NAME.batch=64, model.depth=6",
    )  # fmt: skip
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N")
    group.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32",
        help="bf16: mixed precision; the integer layers stay exact (default: fp32)",
    )  # fmt: skip
    group.add_argument("--compile", action="store_true", help="compile the models first: minutes, then faster steps")
    group.add_argument("--accumulate", metavar="N", type=int, default=1, help="split each batch into N parts")
    group.add_argument("--threads", metavar="N", type=int, help="CPU threads")
    group.add_argument("--minutes", metavar="M", type=float, help="stop after so long, to be resumed")
    group.add_argument("--checkpoint-seconds", metavar="S", type=float, default=120.0, help="default: 120")
    group.add_argument(
        "--evaluations", metavar="N", type=int, default=20,
        help="so often a phase, all test images are classified, for the log (default: 20)",
    )  # fmt: skip
    group.add_argument("--restart", action="store_true", help="begin anew in a folder that holds a run")
    group.add_argument("--tensorboard", action="store_true", help="write TensorBoard events beside log.csv")
    group.add_argument(
        "--verify", metavar="N", type=int, default=1000,
        help="test images on which the integer predictor is compared with torch, 0 for all (default: 1000)",
    )  # fmt: skip
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Train."""
    from tvhil.quantization.training.recipe import list_recipes, load_recipe

    if options.list:
        print_tables(list_table("Recipes", ("name", "what"), list(list_recipes().items())))
        return ExitCode.OK
    if options.recipe is None or options.out is None:
        raise UsageError("name a recipe and a folder: tvhil train RECIPE -o DIR (tvhil train --list shows them)")
    changes = list(options.changes)
    changes += [f'dataset="{options.dataset}"'] if options.dataset else []
    changes += [f'architecture="{options.arch}"'] if options.arch else []
    return train(options, load_recipe(options.recipe, changes))


def train(options: argparse.Namespace, recipe: Recipe) -> int:
    """Run a recipe, then pack and verify what it made."""
    try:
        import torch
    except ModuleNotFoundError:
        from tvhil.errors import MissingToolError

        raise MissingToolError("training needs torch: pip install 'tvhil[train]'") from None
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from tvhil.commands.checkpoint_options import fetch
    from tvhil.quantization.training.models import configuration, load_any, save_model
    from tvhil.quantization.training.trainer import Options, Trainer

    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    for name in ("accumulate", "evaluations"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} must be at least 1, not {getattr(options, name)}")
    settings = Options(
        device=device, precision=options.precision, compile=options.compile, accumulate=options.accumulate,
        checkpoint_seconds=options.checkpoint_seconds, evaluations=options.evaluations,
        minutes=options.minutes, restart=options.restart,
        tensorboard=options.tensorboard,
    )  # fmt: skip
    for file in (options.teacher, options.init):
        if file is not None:
            fetch(file)
    teacher = None if options.teacher is None else load_any(options.teacher)
    initial = None if options.init is None else load_any(options.init)
    data = _load_data(options, recipe, configuration(recipe).preprocessing)
    for reason in data.skipped:
        notice(f"left out: {reason}")
    console = stderr()
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "{task.fields[line]}")
    first = os.environ.get("RANK", "0") == "0"  # of the processes under torchrun, the one that speaks
    with Progress(*columns, console=console, disable=not (console.is_terminal and first)) as bar:
        tasks: dict[str, Any] = {}
        tell = occasionally()

        def progress(phase: Any, done: int, total: int, line: str) -> None:
            if phase.name not in tasks:
                tasks[phase.name] = bar.add_task(phase.name, total=total, line="")
            bar.update(tasks[phase.name], completed=done)
            if line:
                bar.update(tasks[phase.name], line=line)
            if line and first and not console.is_terminal:
                tell(f"{phase.name}: step {done} of {total}, {line}")

        trainer = Trainer(
            recipe, data, options.out, settings, initial=initial, initial_path=options.init or Path(),
            teacher=teacher, progress=progress,
        )  # fmt: skip
        outcome = trainer.run()
    if trainer.processes.rank != 0:
        return ExitCode.OK
    if not outcome.finished:
        notice(f"stopped with a state in {options.out}: run the same command again to continue")
        return ExitCode.INTERRUPTED if trainer.interrupted else ExitCode.OK
    assert outcome.model is not None
    save_model(options.out / "model.safetensors", outcome.model)
    result = _finish(options, recipe, data, outcome, torch.__version__)
    write_json(result, options.out / "report.json")
    emit(options, result, _tables(result))
    return ExitCode.OK


def _load_data(options: argparse.Namespace, recipe: Recipe, preprocessing: Any) -> TrainingData:
    from rich.progress import Progress

    from tvhil.quantization.training.data import load_training_data

    console = stderr()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def progress(done: int, total: int, split: str) -> None:
            if split not in tasks:
                tasks[split] = bar.add_task(f"reading {split} images", total=total)
            bar.update(tasks[split], completed=done)

        return load_training_data(
            recipe.dataset, options.data, preprocessing, test_data=options.test_data,
            skip_corrupt=options.skip_corrupt, progress=progress,
        )  # fmt: skip


def _finish(
    options: argparse.Namespace, recipe: Recipe, data: TrainingData, outcome: Outcome, torch_version: str
) -> dict[str, Any]:
    """The report of a finished run; a model that the device can compute is packed and verified."""
    from tvhil.models import VisionTransformer
    from tvhil.quantization import quantization_of

    result: dict[str, Any] = {
        "recipe": recipe.to_json(), "data": data.title, "train_images": len(data.train),
        "test_images": len(data.test), "skipped_images": len(data.skipped), "torch": torch_version,
        "precision": options.precision, "phases": outcome.results, "seconds": round(outcome.seconds, 1),
        "teacher": None if options.teacher is None else str(options.teacher),
        "initial": None if options.init is None else str(options.init),
    }  # fmt: skip
    model = outcome.model
    if not isinstance(model, VisionTransformer):
        return result
    quantization = quantization_of(model)
    if quantization is None or not quantization.grid or quantization.full_precision:
        return result
    from tvhil.quantization.training.verify import pack_and_verify

    with stderr().status("packing, and comparing the integer predictor with torch"):
        result["packed"] = pack_and_verify(model, data, options.out / "model.tvit", result, images=options.verify)
    return result


def _tables(result: dict[str, Any]) -> list[Any]:
    rows = [
        (
            p["phase"],
            p["steps"],
            _percent(p["test_top1"]),
            _percent(p["ema_top1"]) if p["ema_top1"] is not None else "-",
        )
        for p in result["phases"]
    ]
    tables = [list_table(f"{result['recipe']['title']}, {result['data']}", ("phase", "steps", "test", "average"), rows)]
    if "packed" in result:
        packed = result["packed"]
        facts = [
            ("file", packed["file"]),
            ("bytes", f"{packed['bytes']:,}"),
            ("compared on", f"{packed['images']:,} test images"),
            ("torch, fake-quantized", _percent(packed["fake_quantized_top1"])),
            ("integer predictor", _percent(packed["integer_top1"])),
            ("same class", _percent(packed["agreement"])),
        ]
        tables.append(facts_table("Packed", facts))
    return tables


def _percent(value: float) -> str:
    return f"{value:.2%}"
