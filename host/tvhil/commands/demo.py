# SPDX-License-Identifier: Apache-2.0
"""Run the embedded model, a fully ternary ViT for handwritten digits, on 64 images of its test set: build the firmware
of an emulated Xtensa core, flash the model, stream the images, compare every logit with the prediction. Where the
emulator or its compiler is not installed, a process of this machine takes its place."""

from __future__ import annotations

import argparse

from tvhil.commands import run_eval
from tvhil.commands.common import add_json, notice
from tvhil.errors import MissingToolError

DEFAULT_BOARD = "qemu-xtensa"
FALLBACK_BOARD = "native"
IMAGES = 64
EXAMPLES = """\
examples:
  tvhil demo                     on the default emulator, qemu-xtensa
  tvhil demo --board native      on a process of this machine
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil demo`."""
    parser.add_argument("--board", help=f"another board than {DEFAULT_BOARD}")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate 64 digits."""
    if options.board is not None:
        return _evaluate(options, options.board)
    try:
        return _evaluate(options, DEFAULT_BOARD)
    except MissingToolError as error:
        notice(f"{error}")
        notice(f"running on {FALLBACK_BOARD} instead: a process of this machine, not an emulated Xtensa core")
        return _evaluate(options, FALLBACK_BOARD)


def _evaluate(options: argparse.Namespace, board: str) -> int:
    parser = argparse.ArgumentParser()
    run_eval.add_arguments(parser)
    arguments = ["digits", "--board", board, "--limit", str(IMAGES), "--overwrite", "--each"]
    if options.json is not None:
        arguments += ["--json", str(options.json)]
    return run_eval.run(parser.parse_args(arguments))
