# SPDX-License-Identifier: Apache-2.0
"""Sign a .tvit model file, or check its signature. The signature is a file of its own, MODEL.tvit.sig, beside the
model, which stays as it is. `run-eval`, `flash` and `profile` insist on one with --require-signature; a board whose
file has trusted_keys = ["lab.key.pub"] always does."""

from __future__ import annotations

import argparse
from pathlib import Path

from tvhil.commands.common import add_json, emit, facts_table
from tvhil.errors import ExitCode

EXAMPLES = """\
examples:
  tvhil sign m.tvit --key lab.key                                       writes m.tvit.sig
  tvhil sign m.tvit --check lab.key.pub                                 says whether m.tvit.sig is good
  tvhil run-eval digits --board native --model m.tvit --require-signature lab.key.pub
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil sign`."""
    parser.add_argument("model", type=Path, help=".tvit file")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--key", metavar="FILE", type=Path, help="private key (see `tvhil keygen`)")
    what.add_argument(
        "--check",
        metavar="PUBKEY",
        type=Path,
        action="append",
        help="check against this public key; repeatable",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Sign, or check."""
    from tvhil.packing import read_model, signing
    from tvhil.packing.reader import read_model_file

    if options.check:
        content = read_model_file(options.model)
        key = signing.require_signature(options.model, content, options.check)
        made = signing.signature_path(options.model)
    else:
        private = signing.read_private_key(options.key)
        content = read_model_file(options.model)
        read_model(content)  # what no board would take is not signed
        key = signing.fingerprint(private.public_key())
        made = signing.write_signature(options.model, content, private)
    result = {
        "model": str(options.model), "signature": str(made), "key": key, "signed": not options.check, "good": True
    }  # fmt: skip
    state = "good" if options.check else "written"
    rows = [("model", options.model), ("signature", f"{made}, {state}"), ("key", key)]
    emit(options, result, [facts_table("Signature", rows)])
    return ExitCode.OK
