# SPDX-License-Identifier: Apache-2.0
"""Make a key to sign models with: an Ed25519 private key, readable by its owner only, and its public half beside it.
The private key is never printed. Whoever has it can sign: keep it where only the models' owner gets at it."""

from __future__ import annotations

import argparse
from pathlib import Path

from tvhil.commands.common import add_json, emit, facts_table
from tvhil.errors import ExitCode

EXAMPLES = """\
examples:
  tvhil keygen lab.key              writes lab.key (keep it) and lab.key.pub (give it to whoever checks)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil keygen`."""
    parser.add_argument("key", type=Path, help="file of the private key; the public one gets .pub behind its name")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Make a key."""
    from tvhil.packing.signing import fingerprint, generate_key, write_key

    key = generate_key()
    public = write_key(key, options.key)
    result = {"private_key": str(options.key), "public_key": str(public), "fingerprint": fingerprint(key.public_key())}
    rows = [("private key", f"{options.key}, readable by its owner only"), ("public key", public)]
    emit(options, result, [facts_table("Signing key", [*rows, ("fingerprint", result["fingerprint"])])])
    return ExitCode.OK
