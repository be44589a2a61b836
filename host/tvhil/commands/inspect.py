# SPDX-License-Identifier: Apache-2.0
"""Check a .tvit model file completely and show what is in it: shape, signature, sections, operators, memory plan.
A malformed file is refused with the section and the reason."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvhil.commands.common import add_json, emit, facts_table, list_table
from tvhil.errors import ExitCode

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tvhil.packing import TvitModel

EXAMPLES = """\
examples:
  tvhil inspect m.tvit                  the figures
  tvhil inspect m.tvit --operators      every operator with its shape and its share of the weights
  tvhil inspect m.tvit --json m.json    everything, for machines
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil inspect`."""
    parser.add_argument("model", type=Path, help=".tvit file")
    parser.add_argument("--operators", action="store_true", help="list the operators")
    parser.add_argument("--tensors", action="store_true", help="list the tensors with their places in the arena")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Show a model file."""
    from tvhil.packing import read_model

    model = read_model(options.model)
    result = describe(model, options.model)
    emit(options, result, tables(result, options))
    return ExitCode.OK


def describe(model: TvitModel, file: Path) -> dict[str, Any]:
    """Everything about a model file, as `--json` writes it."""
    from tvhil.evaluation.prepare import model_facts
    from tvhil.packing.format import VERSION, OpKind
    from tvhil.packing.trits import Codec

    operators, weights, stored, nonzeros = [], 0, 0, 0
    codecs: Counter[str] = Counter()
    seen: dict[int, tuple[int, float]] = {}  # bytes and zeros by offset: pieces may share their weights
    for i, op in enumerate(model.operators):
        region = model.output_region(op)
        entry: dict[str, Any] = {
            "index": i,
            "kind": op.kind.name,
            "name": op.name,
            "inputs": [model.tensors[t].name for t in op.inputs],
            "output": model.tensors[op.output].name,
            "writes": {
                "row": region.row, "rows": region.rows, "column": region.column, "columns": region.columns,
            },
            "adds": op.adds,
            "table": op.has_table,
            "params": dict(op.params),
            "scratch_bytes": model.plan.scratches[i][1],
        }  # fmt: skip
        if op.kind in (OpKind.PATCH_EMBED, OpKind.LINEAR):
            if op["trits_at"] not in seen:
                read = model.weights(op)
                count = int((read.trits != 0).sum())
                codecs[Codec(op["codec"]).label] += 1
                weights, stored, nonzeros = weights + read.trits.size, stored + read.bytes, nonzeros + count
                seen[op["trits_at"]] = read.bytes, round(1 - count / read.trits.size, 6)
            entry["weight_bytes"], entry["zeros"] = seen[op["trits_at"]]
        operators.append(entry)
    return {
        "model": model_facts(model, file),
        "signature": model.signature,
        "format_version": VERSION,
        "scale_mode": model.info.scale_mode.name.lower(),
        "codecs": dict(codecs),
        "macs": model.info.macs,
        "ternary_weights": weights,
        "bits_per_weight": round(8 * stored / weights, 4),
        "zeros": round(1 - nonzeros / weights, 6),
        "logit_scale": model.info.logit_scale,
        "shape": {
            key: getattr(model.info, key)
            for key in ("patch_size", "tokens", "prefix_tokens", "embed_dim", "depth", "heads", "head_dim", "mlp_dim")
        },
        "memory": {
            "arena_bytes": model.plan.arena_bytes,
            "scratch_bytes": model.plan.scratch_bytes,
        },
        "sections": [
            {"tag": tag, "bytes": len(content), "count": count} for tag, (content, count) in model.sections.items()
        ],
        "tensors": [
            {
                "id": i,
                "name": tensor.name,
                "dtype": tensor.dtype.name.lower(),
                "per_token": tensor.per_token,
                "shape": [tensor.rows, tensor.columns],
                "bytes": tensor.bytes,
                "offset": offset,
            }
            for i, (tensor, offset) in enumerate(zip(model.tensors, model.plan.offsets, strict=True))
        ],
        "operators": operators,
        "meta": model.meta,
    }


def tables(result: dict[str, Any], options: argparse.Namespace) -> Iterator[RenderableType]:
    """The tables for people."""
    model, shape, memory = result["model"], result["shape"], result["memory"]
    yield facts_table(
        f"{model['name']} ({model['file']})",
        [
            ("bytes", f"{model['bytes']:,}"),
            ("signature", result["signature"]),
            ("parameters", f"{model['parameters']:,}"),
            ("ternary weights", f"{result['ternary_weights']:,}, {result['zeros']:.1%} zeros"),
            ("stored as", f"{', '.join(result['codecs'])}, {result['bits_per_weight']} bits a weight"),
            ("multiply-accumulates", f"{result['macs']:,}"),
            ("input", "x".join(map(str, model["input"]))),
            ("patches", f"{shape['patch_size']}x{shape['patch_size']}, {shape['tokens']} tokens"),
            ("encoder", f"{shape['depth']} blocks, width {shape['embed_dim']}, {shape['heads']} heads, "
                        f"MLP {shape['mlp_dim']}"),
            ("classes", model["classes"]),
            ("activation scales", result["scale_mode"].replace("_", " ")),
            ("arena", f"{memory['arena_bytes']:,} bytes, {memory['scratch_bytes']:,} of them scratch"),
            ("recipe", result["meta"].get("recipe")),
            ("operators", f"{len(result['operators'])}, tensors {len(result['tensors'])}"),
        ],
    )  # fmt: skip
    yield list_table("Sections", ["tag", "bytes", "records"], [list(s.values()) for s in result["sections"]])
    if options.operators:
        yield list_table(
            "Operators",
            ["first", "name", "kind", "pieces", "inputs", "output", "writes", "weights", "zeros"],
            [_row(pieces) for pieces in _pieces(result["operators"])],
        )
    if options.tensors:
        yield list_table(
            "Tensors",
            ["id", "name", "type", "shape", "bytes", "offset"],
            [
                [t["id"], t["name"], t["dtype"], "x".join(map(str, t["shape"])), t["bytes"], t["offset"]]
                for t in result["tensors"]
            ],
        )


def _pieces(operators: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Operators by name, in the order in which each name comes first: a layer may be cut into several."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for op in operators:
        groups.setdefault((op["name"], op["kind"]), []).append(op)
    return list(groups.values())


def _row(pieces: list[dict[str, Any]]) -> list[object]:
    """One layer in the table: the weights of all its pieces, each counted once."""
    first = pieces[0]
    stored = {op["params"]["trits_at"]: op for op in pieces if "weight_bytes" in op}
    shape = zeros = ""
    if stored:
        n, k = sum(op["params"]["n"] for op in stored.values()), first["params"]["k"]
        shape = f"{n}x{k}"
        zeros = f"{sum(op['zeros'] * op['params']['n'] for op in stored.values()) / n:.1%}"
    largest = max(pieces, key=lambda op: op["writes"]["rows"] * op["writes"]["columns"])["writes"]
    return [
        first["index"], first["name"], first["kind"].lower(), len(pieces), " ".join(first["inputs"]), first["output"],
        f"{largest['rows']}x{largest['columns']}", shape, zeros,
    ]  # fmt: skip
