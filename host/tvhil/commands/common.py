# SPDX-License-Identifier: Apache-2.0
"""What commands share: the `--json` option, reading models, tables on stdout and progress on stderr."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvhil.errors import InputError, UsageError
from tvhil.files import output_file, write_whole

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from tvhil.models import Preprocessing
    from tvhil.packing import TvitModel

EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "embedded" / "vit_digits.tvit"
_WIDTH_OF_FILES = 140  # columns where stdout is no terminal
_NOTICE_SECONDS = 30.0


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json FILE`."""
    parser.add_argument("--json", metavar="FILE", type=output_file, help="write the result as JSON ('-': to stdout)")


def emit(options: argparse.Namespace, result: Mapping[str, Any], tables: Iterable[RenderableType]) -> None:
    """Print tables for people, unless JSON goes to stdout, and write the JSON that was asked for."""
    if options.json is not None and str(options.json) == "-":
        with _unless_nobody_reads():
            json.dump(result, sys.stdout, ensure_ascii=False, indent=2)
            print()
        return
    print_tables(*tables)
    if options.json is not None:
        write_json(result, options.json)


def write_json(result: Mapping[str, Any], path: Path) -> None:
    """Write a result as JSON, whole or not at all."""
    write_whole(path, (json.dumps(result, ensure_ascii=False, indent=2) + "\n").encode())


def print_tables(*tables: RenderableType) -> None:
    """Print tables on stdout."""
    with _unless_nobody_reads():
        console = stdout()
        for table in tables:
            console.print(table)


@contextmanager
def _unless_nobody_reads() -> Iterator[None]:
    """A reader who has seen enough (`| head`) ends the printing, not the command, nor what its exit code tells."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # the second is what rich makes of the first
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stdout() -> Console:
    """Where results go."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_WIDTH_OF_FILES)


def stderr() -> Console:
    """Where progress and notices go."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def building() -> Iterator[Callable[[int, int, str], None]]:
    """Progress of a build: a bar on a terminal, which appears with the first compiled file."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress

    console = stderr()
    with Progress(
        "building", BarColumn(), MofNCompleteColumn(), "{task.description}", console=console, transient=True,
        disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=None, visible=False)
        yield lambda done, total, name: bar.update(
            task, completed=done, total=total or None, description=name, visible=True
        )


def notice(text: str) -> None:
    """One line for people on stderr."""
    print(f"tvhil: {text}", file=sys.stderr, flush=True)


def occasionally() -> Callable[[str], None]:
    """`notice`, but not more often than every 30 seconds: progress of long work where there is no terminal."""
    last = time.monotonic()

    def tell(text: str) -> None:
        nonlocal last
        if time.monotonic() - last > _NOTICE_SECONDS:
            last = time.monotonic()
            notice(text)

    return tell


def facts_table(title: str, rows: Sequence[tuple[str, object]]) -> RenderableType:
    """A table of two columns; rows without a value are left out."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, box=SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in rows:
        if value is not None:
            table.add_row(name, str(value))
    return table


def list_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> RenderableType:
    """A table with a header; numbers are aligned to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    cells = [list(row) for row in rows]
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[i], int | float) for row in cells)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=i < len(columns) - 1)
    for row in cells:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    return table


def preprocessing_of(model: TvitModel) -> Preprocessing | None:
    """How the model wants its images, from the file's META; None where it does not say.

    Raises:
        InputError: it says nonsense, or makes images of another size than the model takes.
    """
    from tvhil.models import Preprocessing

    values = model.meta.get("preprocessing")
    if values is None:
        return None
    if not isinstance(values, dict):
        raise InputError(f"model {model.name}: the preprocessing in META is no object")
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        result = Preprocessing(**fields)
    except (TypeError, ValueError, UsageError) as error:
        raise InputError(f"model {model.name}: the preprocessing in META is malformed: {error}") from None
    made = (result.image_size, result.image_size, result.channels)
    if made != model.info.input_shape:
        raise InputError(
            f"model {model.name}: its preprocessing makes {made} images, it takes {model.info.input_shape}"
        )
    return result


def add_model(parser: argparse.ArgumentParser, *, positional: bool = False) -> None:
    """`--model FILE`, or the file as a positional argument; the embedded digits model by default."""
    text = ".tvit file (default: the embedded vit_digits)"
    if positional:
        parser.add_argument("model", metavar="MODEL", type=Path, nargs="?", help=text)
    else:
        parser.add_argument("--model", metavar="FILE", type=Path, help=text)


def open_model(path: Path | None, *trusted: Sequence[Path]) -> tuple[TvitModel, Path]:
    """The model of `--model`, or the embedded one, and its file.

    Args:
        path: the file, or None.
        trusted: sets of public key files; a key of each set that is not empty must have signed the file. That is
            checked before anything else is read from it.

    Raises:
        InputError: no such file, or not signed.
        ModelError: it is malformed.
    """
    from tvhil.packing import read_model
    from tvhil.packing.reader import read_model_file

    file = path or EMBEDDED_MODEL
    content = read_model_file(file)
    for keys in trusted:
        if keys:
            from tvhil.packing.signing import require_signature

            require_signature(file, content, keys)
    return read_model(content), file


def add_signature(parser: argparse.ArgumentParser) -> None:
    """`--require-signature PUBKEY`."""
    parser.add_argument(
        "--require-signature", metavar="PUBKEY", type=Path, action="append", default=[],
        help="refuse a model that this key, or another one given so, has not signed (see `tvhil sign`)",
    )  # fmt: skip
