#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train every recipe on the same architecture, data and budget, measure each model on all test images, write the table.

    tools/compare_recipes.py --data DIR --out runs/recipes --init fp32.safetensors --teacher teacher.safetensors
    tools/compare_recipes.py … --processes 2 --threads 1 --precision bf16 --compile --activations real
    tools/compare_recipes.py … --optimizer muon --learning-rate 0.01 --set phase.momentum=0.95
    tools/compare_recipes.py --dataset digits --arch vit_digits --epochs 20 --out runs/digits --rows fp32,tervit

Each row is a `tvhil train` and a `tvhil evaluate` in OUT/ROW. What the rows share: data, architecture, seed, first
weights, batch, augmentation (crop and mirror) and the number of images trained on. The phases of a recipe are cut to
the budget in proportion, warm-up and moving averages with them, so that a schedule keeps its shape. Optimizer and
learning rate are the recipe's, or one choice for all rows; the largest rate of a recipe is then the given one, and its
phases keep their proportions. Everything else is the recipe's own, unless --set changes it in all rows.

Run the same command again to continue: finished rows are kept, an interrupted one goes on from its last state. Written
are OUT/table.json (every figure and command), OUT/table.md, and OUT/table.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from recipe_table import TABLE, Json, figures, read_json, tables, write_tables
from tvhil import __version__
from tvhil.commands.common import notice, print_tables, stderr, write_json
from tvhil.errors import ExitCode, InputError, MissingToolError, TvhilError, UsageError
from tvhil.quantization.training.recipe import ACTIVATIONS, OPTIMIZERS, Phase, Recipe, load_recipe

ROWS = ("fp32", "ftervit", "tervit", "tervit-paper", "vit-1.58b", "binary", "learned")
BASE = "cifar10"  # the recipe of the shipped model, whose data set, architecture and model are the default
AUGMENTATION = {"crop": 4, "flip": True}
SETTINGS = "row.json"  # in the folder of a row
VERIFIED = 100  # images that training compares on; the evaluation compares on all
_GRACE = 120.0  # seconds that an interrupted training has to write its state


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    options = parse(arguments)
    try:
        return compare(options, sys.argv[1:] if arguments is None else arguments)
    except TvhilError as error:
        notice(str(error))
        return int(error.exit_code)
    except KeyboardInterrupt:
        notice(f"interrupted: run the same command again to continue; what is done is in {options.out}")
        return ExitCode.INTERRUPTED
    except OSError as error:
        notice(f"{error.strerror or error} ({error.filename or options.out}): run the same command again to continue")
        return ExitCode.BAD_INPUT


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the rows and the table")
    parser.add_argument("--rows", metavar="A,B,…", default=",".join(ROWS), help="recipes (default: %(default)s)")
    parser.add_argument("--epochs", metavar="E", type=float, default=2.0, help="of every row in all (default: 2)")
    parser.add_argument("--dataset", metavar="NAME", help=f"default: that of the recipe {BASE}")
    parser.add_argument("--data", metavar="PATH", type=Path, help="where both splits lie")
    parser.add_argument("--test-data", metavar="PATH", type=Path, help="where the test split lies, if elsewhere")
    parser.add_argument("--arch", metavar="NAME", help=f"default: that of the recipe {BASE}, with its model settings")
    parser.add_argument("--init", metavar="FILE", help="checkpoint that every row starts from (default: fresh weights)")
    parser.add_argument("--teacher", metavar="FILE", help="of the recipes that distil")
    parser.add_argument("--batch", metavar="N", type=int, default=256, help="images a step (default: 256)")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="default: 0")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="of every row, in place of the recipes'")
    parser.add_argument("--learning-rate", metavar="R", type=float, help="of every row, in place of the recipes'")
    parser.add_argument(
        "--activations", choices=ACTIVATIONS,
        help="of quantized phases: 'real' trains weights only, several times faster; rows are measured with integers",
    )  # fmt: skip
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="changes", help="in every row")
    parser.add_argument("--images", metavar="N", type=int, help="measure on a subset of N test images (default: all)")
    group = parser.add_argument_group("machine, as of `tvhil train`")
    group.add_argument("--device", default="auto")
    group.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    group.add_argument("--compile", action="store_true")
    group.add_argument("--threads", metavar="N", type=int, help="CPU threads of a process")
    group.add_argument(
        "--evaluations", metavar="N", type=int, default=2, help="of all test images during a phase (default: 2)"
    )
    group.add_argument("--processes", metavar="N", type=int, default=1, help="of a training, under torchrun")
    return parser.parse_args(arguments)


# -- rows --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One recipe, changed to the common budget.

    Attributes:
        name: of the recipe and its folder.
        recipe: as it is trained.
        changes: `--set` of `tvhil train` that make it so.
        folder: of the run.
    """

    name: str
    recipe: Recipe
    changes: tuple[str, ...]
    folder: Path


def make_rows(options: argparse.Namespace, train_images: int) -> list[Row]:
    """Every row, its schedule cut to the budget.

    Raises:
        UsageError: no such recipe, or options that break what the rows have in common.
        InputError: a recipe that does not take the changes.
    """
    names = [name for name in options.rows.split(",") if name]
    twice = next((name for name in names if names.count(name) > 1), None)
    if not names or twice is not None:
        raise UsageError(f"--rows names {twice} twice" if twice else "--rows names no recipe")
    for name in names:
        if name.endswith(".toml") or "/" in name:
            raise UsageError(f"--rows takes names of `tvhil train --list`, not {name}")
    for change in options.changes:
        key = change.partition("=")[0].strip()
        own = {"seed": "seed", "dataset": "dataset", "architecture": "arch"}.get(key)
        last = key.rpartition(".")[2]
        own = last if key.startswith("phase.") and last in ("epochs", "batch") else own
        if own is not None:
            raise UsageError(f"--set {change}: every row has the same, which --{own} names")
    return [_make_row(options, name, train_images) for name in names]


def _make_row(options: argparse.Namespace, name: str, train_images: int) -> Row:
    base, recipe = load_recipe(BASE), load_recipe(name)
    architecture = options.arch or base.architecture
    settings = base.model if architecture == base.architecture else {}
    changes = [
        f'dataset="{options.dataset or base.dataset}"', f'architecture="{architecture}"', f"seed={options.seed}",
        f'initialization="{base.initialization}"', f"model={_toml(settings)}",
    ]  # fmt: skip
    batch = min(options.batch, train_images)
    per_epoch = train_images // batch
    steps = share_steps(round(options.epochs * per_epoch), [phase.epochs for phase in recipe.phases])
    largest = max(phase.learning_rate for phase in recipe.phases)
    for phase, count in zip(recipe.phases, steps, strict=True):
        keys = _phase_changes(options, phase, count, train_images, batch)
        if options.learning_rate is not None:
            keys["learning_rate"] = options.learning_rate * (phase.learning_rate / largest)
        changes += [f"phase.{phase.name}.{key}={_toml(value)}" for key, value in keys.items()]
    changes += options.changes
    row = Row(name, load_recipe(name, changes), tuple(changes), options.out / name)
    if trained_images(row.recipe, train_images) != batch * round(options.epochs * per_epoch):
        raise UsageError(f"{name}: its phases do not make up the budget of {options.epochs} epochs")
    return row


def _phase_changes(options: argparse.Namespace, phase: Phase, steps: int, images: int, batch: int) -> Json:
    """What is changed in a phase; `steps` is its share of the budget."""
    epochs = steps / (images // batch)
    before = max(1.0, phase.epochs * max(1, images // phase.batch))  # steps that the recipe has in mind
    values: Json = {
        "epochs": epochs,
        "batch": batch,
        "warmup": phase.warmup * epochs / phase.epochs,
        "augmentation": AUGMENTATION,
    }
    if phase.ema:  # an average over the same share of the phase
        values["ema"] = max(0.0, 1 - (1 - phase.ema) * before / steps)
    if options.activations is not None and phase.quantization is not None:
        values["activations"] = options.activations
    if options.optimizer is not None:
        values["optimizer"] = options.optimizer
    return values


def share_steps(total: int, weights: Sequence[float]) -> list[int]:
    """Split steps among phases in proportion, at least one each, by largest remainders.

    Raises:
        UsageError: fewer steps than phases.
    """
    if total < len(weights):
        raise UsageError(f"--epochs makes {total} steps, fewer than a recipe has phases ({len(weights)})")
    spare = total - len(weights)
    exact = [Fraction(w) * spare / sum(map(Fraction, weights)) for w in weights]
    counts = [int(x) for x in exact]
    order = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: spare - sum(counts)]:
        counts[i] += 1
    return [1 + count for count in counts]


def trained_images(recipe: Recipe, train_images: int) -> int:
    """Images that a recipe trains on, counted as the trainer does."""
    total = 0
    for phase in recipe.phases:
        batch = min(phase.batch, train_images)
        total += batch * max(1, round(phase.epochs * max(1, train_images // batch)))
    return total


def _toml(value: Any) -> str:
    """A value as TOML; JSON is the same but for tables."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


# -- running -----------------------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Check, train, measure, write."""
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingToolError("training needs torch: pip install 'tvhil[train]'") from None
    from tvhil.quantization.training.data import open_splits, split_places

    for name, least in (("batch", 1), ("processes", 1), ("images", 1), ("threads", 1), ("evaluations", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} must be at least {least}, not {value}")
    if not 0 < options.epochs < float("inf"):
        raise UsageError(f"--epochs must be positive, not {options.epochs}")
    train, test = open_splits(options.dataset or load_recipe(BASE).dataset, options.data, options.test_data)
    rows = make_rows(options, len(train))
    files = _check(options, rows, len(train), len(train.class_names))
    place = split_places(options.data, options.test_data)[1]
    shared = {
        "command": shlex.join(["tools/compare_recipes.py", *arguments]), "tool_version": __version__,
        "torch": torch.__version__, "data": train.title, "train_images": len(train), "test_images": len(test),
        "architecture": rows[0].recipe.architecture, "model": dict(rows[0].recipe.model),
        "initialization": rows[0].recipe.initialization, "seed": options.seed, "epochs": options.epochs,
        "batch": min(options.batch, len(train)), "images": trained_images(rows[0].recipe, len(train)),
        "augmentation": asdict(rows[0].recipe.phases[0].augmentation),
        "optimizer": _common(rows, "optimizer"), "learning_rate": _common(rows, "learning_rate"),
        "changes": options.changes, "precision": options.precision, "processes": options.processes, **files,
    }  # fmt: skip
    measured = min(options.images or len(test), len(test))
    limit = None if measured == len(test) else measured
    settings = {row.name: {"recipe": row.recipe.to_json(), "precision": options.precision, **files} for row in rows}
    for row in rows:
        _check_settings(row.folder, settings[row.name])
    done: list[Json] = []
    failed: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        title = f"row {number} of {len(rows)}, {row.name}"
        command, evaluation = train_command(options, row), evaluate_command(row, test.split, place, limit)
        try:
            write_json(settings[row.name], row.folder / SETTINGS)
            if not (row.folder / "report.json").is_file():
                run_child(command, row.folder, f"{title}: training", row.folder / "report.json")
            else:
                notice(f"{title}: is trained already")
            if not _is_measured(row, measured):
                kind = evaluation(_packed(row))
                run_child(kind, row.folder, f"{title}: measuring", row.folder / "evaluation.json")
            commands = [shlex.join(["python", *words[1:]]) for words in (command, evaluation(_packed(row)))]
            done.append(figures(row.recipe, row.folder, commands))
        except TvhilError as error:
            failed[row.name] = str(error)
            notice(f"{title}: {error}")
        write_tables(options.out, shared, done, failed)
    if done:
        print_tables(*tables(read_json(options.out / TABLE)))
    for name, why in failed.items():
        notice(f"no row {name}: {why}")
    return ExitCode.BAD_INPUT if failed else ExitCode.OK


def _common(rows: Sequence[Row], key: str) -> Any:
    """A setting of all rows, of the first phases; None where they differ."""
    values = {getattr(row.recipe.phases[0], key) for row in rows}
    return values.pop() if len(values) == 1 else None


def _check(options: argparse.Namespace, rows: Sequence[Row], train_images: int, classes: int) -> Json:
    """Refuse what cannot be trained before hours of work; the digests of the checkpoints.

    Raises:
        TvhilError: no teacher, checkpoints that do not fit, a batch that does not divide.
    """
    from tvhil.models.published import fetch_published, is_published, sha256_of
    from tvhil.quantization.training.models import check_initial, check_teacher, configuration, load_any

    batch = min(options.batch, train_images)
    if batch % options.processes:
        raise UsageError(f"a batch of {batch} images does not divide among {options.processes} processes")
    pupils = [row.name for row in rows if row.recipe.needs_teacher]
    if pupils and options.teacher is None:
        raise UsageError(f"{pupils[0]} distils: name its teacher with --teacher, or leave the row out of --rows")
    config = configuration(rows[0].recipe, classes)
    if options.init is not None:
        check_initial(load_any(options.init), config, Path(options.init))
    if pupils:
        check_teacher(load_any(options.teacher), config, classes)
    found: Json = {}
    for role in ("init", "teacher"):
        name = getattr(options, role)
        file = None if name is None else fetch_published(name) if is_published(name) else Path(name)
        found[role] = None if file is None else {"file": str(name), "sha256": sha256_of(file)}
    return found


def _check_settings(folder: Path, settings: Json) -> None:
    """Refuse a folder that holds a row of other settings."""
    file = folder / SETTINGS
    if not file.is_file():
        return
    try:
        same = json.loads(file.read_bytes()) == json.loads(json.dumps(settings))
    except ValueError:
        same = False
    if not same:
        raise UsageError(f"{folder} holds a row of other settings: choose another --out, or remove the folder")


def train_command(options: argparse.Namespace, row: Row) -> list[str]:
    """`tvhil train`, under torchrun where there are several processes."""
    start = [sys.executable]
    if options.processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.processes)]
    words = [*start, "-m", "tvhil.cli", "train", row.name, "-o", str(row.folder), "--verify", str(VERIFIED)]
    words += ["--evaluations", str(options.evaluations), "--device", options.device, "--precision", options.precision]
    given = {
        "--data": options.data, "--test-data": options.test_data, "--init": options.init, "--threads": options.threads,
        "--teacher": options.teacher if row.recipe.needs_teacher else None,
    }  # fmt: skip
    words += [word for key, value in given.items() if value is not None for word in (key, str(value))]
    words += ["--compile"] if options.compile else []
    return words + [word for change in row.changes for word in ("--set", change)]


def evaluate_command(row: Row, split: str, place: Path | None, limit: int | None) -> Callable[[bool], list[str]]:
    """`tvhil evaluate` of a row: of its integers beside torch where it is packed, else of its checkpoint alone."""

    def words(packed: bool) -> list[str]:
        checkpoint = row.folder / "model.safetensors"
        model = ["--model", str(row.folder / "model.tvit"), "--compare", f"torch={checkpoint}"]
        command = [sys.executable, "-m", "tvhil.cli", "evaluate", row.recipe.dataset, "--split", split]
        command += model if packed else ["--model", str(checkpoint), "--as-is"]
        command += ["--data", str(place)] if place is not None else []
        command += ["--limit", str(limit)] if limit is not None else []
        return [*command, "--json", str(row.folder / "evaluation.json")]

    return words


def run_child(command: list[str], folder: Path, title: str, result: Path) -> None:
    """Run a command, its output in OUT/ROW/output.txt, its last words shown; Ctrl-C lets it write its state first.

    Raises:
        InputError: it failed, with its own words, or made no result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "output.txt"
    with log.open("ab") as out, telling(title) as tell:
        out.write(f"$ {shlex.join(command)}\n".encode())
        out.flush()
        begin = log.stat().st_size
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while True:
                try:
                    code = child.wait(1.0)
                    break
                except subprocess.TimeoutExpired:
                    tell(last_words(log, begin))
        except KeyboardInterrupt:
            notice("stopping after this step; Ctrl-C again ends it at once")
            _stop(child)
            raise
    if code != 0:
        raise InputError(f"{last_words(log, begin) or 'failed'} (exit code {code}; all of its output is in {log})")
    if not result.is_file():
        raise InputError(f"made no {result}, see {log}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Let a child end by itself; kill it when it takes too long, or when asked again."""
    child.send_signal(signal.SIGINT)
    try:
        child.wait(_GRACE)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        child.terminate()  # torchrun ends its processes then
        try:
            child.wait(5)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def last_words(log: Path, begin: int) -> str:
    """The last line behind `begin` in which tvhil says something; empty without."""
    with log.open("rb") as stream:
        stream.seek(begin)
        lines = stream.read().decode("utf-8", "replace").splitlines()
    return next((line.partition("tvhil: ")[2].strip() for line in reversed(lines) if line.startswith("tvhil: ")), "")


@contextmanager
def telling(title: str) -> Any:
    """A line that changes on a terminal, and new lines elsewhere."""
    console = stderr()
    if console.is_terminal:
        with console.status(title) as status:
            yield lambda words: status.update(f"{title}: {words}" if words else title)
        return
    notice(title)
    told = ""

    def tell(words: str) -> None:
        nonlocal told
        if words and words != told:
            told = words
            notice(f"{title}: {words}")

    yield tell


def _packed(row: Row) -> bool:
    return "packed" in read_json(row.folder / "report.json")


def _is_measured(row: Row, images: int) -> bool:
    file = row.folder / "evaluation.json"
    if not file.is_file():
        return False
    report = read_json(file)
    return report["progress"]["stopped"] is None and report["dataset"]["images"] == images


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
