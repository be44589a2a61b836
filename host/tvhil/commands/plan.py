# SPDX-License-Identifier: Apache-2.0
"""Fit a .tvit model file into an arena: choose how its layers are cut into pieces (heads one by one, the MLP in passes
over groups of tokens, parts of fc1) so that it needs no more memory than there is and takes the least time. Logits stay
the same to the bit. Without -o, only show what would be chosen."""

from __future__ import annotations

import argparse
from typing import Any

from tvhil.commands.common import add_json, add_model, emit, facts_table, open_model, stderr
from tvhil.commands.planning import add_planning, alternatives_table, plan_for, planned_json
from tvhil.errors import ExitCode
from tvhil.files import output_file, write_whole

EXAMPLES = """\
examples:
  tvhil plan m.tvit                               what the default board's arena allows
  tvhil plan m.tvit --arena 192K -o small.tvit    the fastest schedule within 196,608 bytes
  tvhil plan m.tvit --board esp32s3 --codec gaps -o fast.tvit
  tvhil plan m.tvit --arena 128K --json p.json    every alternative, for machines

The table lists each schedule that nothing beats in both arena and time. 'flash bytes' are read in one inference,
'reads' is how often the weights that are read most often are read. The new file has another signature: sign it again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil plan`."""
    add_model(parser, positional=True)
    add_planning(parser)
    parser.add_argument(
        "--codec", choices=("base3", "2bit", "gaps"), help="store the trits another way (default: as they are)"
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=output_file, help=".tvit file to write")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Plan a model again."""
    from tvhil.packing import read_model
    from tvhil.packing.trits import Codec
    from tvhil.packing.unpack import codec_of, unpack_vit
    from tvhil.prediction.memory import PSRAM_NOTE

    model, path = open_model(options.model)
    codec = codec_of(model) if options.codec is None else Codec.from_name(options.codec)
    with stderr().status("weighing schedules"):
        file, planned = plan_for(options, unpack_vit(model), codec)
        new = read_model(file)
    if options.output is not None:
        write_whole(options.output, file)
    before, after = model.plan.arena_bytes, new.plan.arena_bytes
    result: dict[str, Any] = {
        "model": {"name": model.name, "file": str(path), "signature": model.signature, "arena_bytes": before},
        "output": str(options.output) if options.output is not None else None,
        "signature": new.signature,
        "bytes": new.file_bytes,
        "codec": codec.label,
        **planned_json(planned),
    }
    rows = [
        ("arena bytes", f"{after:,} (before: {before:,})"),
        ("schedule", planned.chosen.schedule.describe()),
        ("in", f"PSRAM, nothing fits the internal memory; {PSRAM_NOTE}" if planned.memory == "psram" else None),
        ("file bytes", f"{new.file_bytes:,} ({codec.label})"),
        ("signature", new.signature),
        ("written", options.output),
    ]
    emit(options, result, [alternatives_table(planned), facts_table(f"{model.name}: {path}", rows)])
    return ExitCode.OK
