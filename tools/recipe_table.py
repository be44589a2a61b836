# SPDX-License-Identifier: Apache-2.0
"""The table of `compare_recipes.py`: what `tvhil train` and `tvhil evaluate` reported, as JSON, Markdown and SVG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tvhil.commands.common import list_table, write_json
from tvhil.errors import InputError
from tvhil.evaluation.svg import bar_chart
from tvhil.files import write_whole
from tvhil.quantization.training.recipe import Phase, Recipe

TABLE = "table.json"
FULL_PRECISION_ROW = "fp32"
_RULES = {
    "twn": "ternary, threshold",
    "absmean": "ternary, absmean",
    "learned": "ternary, learned threshold and scale",
    "binary": "1 bit",
    "int8": "8 bits",
}
_PARTS = {"patch_embed": "patch embedding", "norm": "LayerNorm", "head": "head"}
Json = dict[str, Any]


def read_json(file: Path) -> Json:
    """A file of JSON that a row left.

    Raises:
        InputError: it cannot be read.
    """
    try:
        values: Json = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not readable: {error}; remove it to have it made again") from None
    return values


def figures(recipe: Recipe, folder: Path, commands: Sequence[str]) -> Json:
    """What training and evaluation reported of a row."""
    trained, measured = read_json(folder / "report.json"), read_json(folder / "evaluation.json")
    main_row, *others = measured["implementations"]
    phases = recipe.phases
    batches = {phase.name: min(phase.batch, trained["train_images"]) for phase in phases}
    weights, activations, ternary = describe(phases[-1])
    how = ".tvit file" if others else "counted: trits at five a byte, parts in float32"
    return {
        "recipe": recipe.name, "title": recipe.title, "weights": weights, "activations": activations,
        "fully_ternary": ternary, "top1": main_row["accuracy"]["top1"],
        **{key: main_row[key] for key in ("f1", "precision", "recall", "calibration_error", "bytes", "kind")},
        "how": how if phases[-1].quantization is not None else "counted: float32",
        "test_images": measured["dataset"]["images"],
        "torch_top1": others[0]["accuracy"]["top1"] if others else main_row["accuracy"]["top1"],
        "agreement": measured["agreement"]["top1"][0][1] if others else None,
        "images": sum(p["steps"] * batches[p["phase"]] for p in trained["phases"]),
        "seconds": trained["seconds"], "torch": trained["torch"],
        "teacher": trained["teacher"], "initial": trained["initial"],
        "phases": trained["phases"], "commands": list(commands), "settings": trained["recipe"],
    }  # fmt: skip


def describe(phase: Phase) -> tuple[str, str, bool]:
    """Weights and activations of a row for people, and whether everything is ternary."""
    config = phase.quantization
    if config is None:
        return "float32", "float32", False
    rule, _, of = config.ternarizer.partition("_")
    per = of or ("matrix" if rule == "absmean" else "channel")
    weights = f"{_RULES[rule]}, a scale a {per}"
    if config.full_precision:
        weights += f"; {', '.join(_PARTS[part] for part in config.full_precision)} float32"
    activations = "8 bits, a scale a token" if config.per_token else "8 bits, static"
    if phase.activations == "real":  # weights alone were trained, learned steps too are only found then
        activations += " (found at the end)"
    elif config.learn_scales:
        activations = "8 bits, learned"
    return weights, activations, rule in ("twn", "absmean", "learned") and not config.full_precision


def write_tables(out: Path, shared: Json, rows: Sequence[Json], failed: dict[str, str]) -> None:
    """The table of the rows so far as JSON, Markdown and a picture."""
    full = next((row["top1"] for row in rows if row["recipe"] == FULL_PRECISION_ROW), None)
    for row in rows:
        row["below_fp32_points"] = None if full is None else round(100 * (full - row["top1"]), 4)
    ternary = max((row for row in rows if row["fully_ternary"]), key=lambda row: row["top1"], default=None)
    table = {
        **shared, "created": datetime.now(UTC).isoformat(timespec="seconds"), "rows": list(rows), "failed": failed,
        "full_precision_minus_fully_ternary": None if full is None or ternary is None else {
            "points": ternary["below_fp32_points"], "recipe": ternary["recipe"],
        },
    }  # fmt: skip
    write_json(table, out / TABLE)
    if rows:
        write_whole(out / "table.md", markdown(table).encode())
        write_whole(out / "table.svg", chart(table).encode())


COLUMNS = ("recipe", "top-1", "F1", "bytes", "size is", "integers as torch", "FP32 minus it", "weights", "activations")


def cells(row: Json) -> list[str]:
    """One row for people, in the order of `COLUMNS`."""
    below, same = row["below_fp32_points"], row["agreement"]
    return [
        row["recipe"], f"{row['top1']:.2%}", f"{row['f1']:.2%}", f"{row['bytes']:,}", row["how"],
        "" if same is None else f"{same:.2%}",
        "" if below is None or row["recipe"] == FULL_PRECISION_ROW else f"{below:.2f} points",
        row["weights"], row["activations"],
    ]  # fmt: skip


def sentences(table: Json) -> list[str]:
    """What the rows have in common, and the distance between full precision and ternary."""
    start = "fresh weights" if table["init"] is None else "one checkpoint"
    optimizer, rate = table["optimizer"] or "each recipe's", table["learning_rate"] or "each recipe's"
    common = (
        f"Each row: {table['architecture']}, {table['data']}, {table['images']:,} images trained on "
        f"({table['epochs']:g} epochs), batch {table['batch']}, seed {table['seed']}, from {start}; optimizer: "
        f"{optimizer}, learning rate: {rate}{''.join(f', {change}' for change in table['changes'])}; measured on "
        f"{table['rows'][0]['test_images']:,} test images, packed models by the integer predictor."
    )
    distance = table["full_precision_minus_fully_ternary"]
    if distance is None:
        return [common]
    words = f"full precision minus fully ternary: {distance['points']:.2f} points ({distance['recipe']})"
    return [common, words]


def tables(table: Json) -> list[Any]:
    """For the terminal."""
    rows = [[*line[:4], line[5], line[6], f"{line[7]}; {line[8]}"] for line in map(cells, table["rows"])]
    columns = [*COLUMNS[:4], *COLUMNS[5:7], "weights; activations"]
    return [list_table(f"Recipes on {table['data']}", columns, rows), *sentences(table)]


def markdown(table: Json) -> str:
    """For a README."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(cells(row) for row in table["rows"])]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([text, *sentences(table), f"    {table['command']}"]) + "\n"


def chart(table: Json) -> str:
    """What each recipe costs in accuracy, as SVG: points below full precision, or accuracy without another row."""
    rows = table["rows"]
    full = next((row for row in rows if row["recipe"] == FULL_PRECISION_ROW), None)
    if full is None or rows == [full]:
        return bar_chart(f"top-1, {table['data']}", [(r["recipe"], r["top1"], _told(r)) for r in rows])
    bars = [
        (row["recipe"], row["below_fp32_points"], f"{row['below_fp32_points']:.2f} ({_told(row)})")
        for row in rows
        if row is not full
    ]
    title = f"points of top-1 below full precision ({_told(full)}), {table['data']}"
    return bar_chart(title, sorted(bars, key=lambda bar: bar[1]))


def _told(row: Json) -> str:
    return f"{row['top1']:.2%}, {row['bytes']:,} bytes"
