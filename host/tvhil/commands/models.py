# SPDX-License-Identifier: Apache-2.0
"""List the architectures that can be packed, with their sizes. Any of them takes another image size, patch size
and number of classes. With --weights, the weights that timm publishes for them: every command that reads a checkpoint
takes such a name in place of a file, and downloads it once."""

from __future__ import annotations

import argparse

from tvhil.commands.common import add_json, emit, list_table
from tvhil.errors import ExitCode, UsageError

EXAMPLES = """\
examples:
  tvhil models                    every architecture
  tvhil models 'deit*' --json -   those that match, for machines
  tvhil models --weights          names of timm's weights
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil models`."""
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, for example 'deit3_*'")
    parser.add_argument("--weights", action="store_true", help="list timm's weights that match, not architectures")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """List the architectures."""
    from tvhil.models import describe_model, list_models, model_config

    if options.weights:
        return _list_weights(options)
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


def _list_weights(options: argparse.Namespace) -> int:
    from fnmatch import fnmatchcase

    from tvhil.models.published import PREFIX, find_published, published_names

    found = [find_published(name) for name in published_names() if fnmatchcase(name, options.pattern)]
    if not found:
        raise UsageError(f"none of timm's weights matches {options.pattern!r}; `tvhil models --weights` lists all")
    rows = [(f"{PREFIX}{one.name}", one.urls[one.weights]) for one in found]
    result = {"weights": [{"name": name, "url": url} for name, url in rows]}
    emit(options, result, [list_table("Weights that timm publishes", ["name", "where they lie"], rows)])
    return ExitCode.OK
