# SPDX-License-Identifier: Apache-2.0
"""List the architectures that can be packed, with their sizes. Any of them takes another image size, patch size
and number of classes."""

from __future__ import annotations

import argparse

from tvhil.commands.common import add_json, emit, list_table
from tvhil.errors import ExitCode, UsageError

EXAMPLES = """\
examples:
  tvhil models                    every architecture
  tvhil models 'deit*' --json -   those that match, for machines
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil models`."""
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, for example 'deit3_*'")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """List the architectures."""
    from tvhil.models import describe_model, list_models, model_config

    names = list_models(options.pattern)
    if not names:
        raise UsageError(f"no model matches {options.pattern!r}; known: {', '.join(list_models())}")
    configs = {name: model_config(name) for name in names}
    columns = ["name", "input", "patch", "width", "depth", "heads", "tokens", "classes", "description"]
    cells = [
        [
            name, "x".join(map(str, c.input_shape)), c.patch_size, c.embed_dim, c.depth, c.num_heads, c.num_tokens,
            c.num_classes, describe_model(name),
        ]
        for name, c in configs.items()
    ]  # fmt: skip
    result = {
        "models": [
            {
                "name": name,
                "description": describe_model(name),
                "input": list(c.input_shape),
                "patch_size": c.patch_size,
                "embed_dim": c.embed_dim,
                "depth": c.depth,
                "heads": c.num_heads,
                "tokens": c.num_tokens,
                "classes": c.num_classes,
            }
            for name, c in configs.items()
        ]
    }
    emit(options, result, [list_table("Architectures", columns, cells)])
    return ExitCode.OK
