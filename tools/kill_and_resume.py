#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kill an evaluation with SIGKILL at random moments, resume it each time, and compare its report and journal with those
of an evaluation that nobody disturbed.

    tools/kill_and_resume.py --board native --kills 100
    tools/kill_and_resume.py --board lx7sim --kills 20 --images 360

Equal must be: every key of the report but `created` and `link`, and, on a board that counts seconds, the measured
latency; every row of the journal but what it says of the link and of seconds. Exit code 1 where anything else differs.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tvhil.evaluation.journal import read_journal

DURING_START = 0.2  # share of the kills that come before the first image; the others are spread over the evaluation
OF_TIME = ("link", "seconds")  # in a row of the journal
LATENCY = ("latency", "layers")  # likewise, where the board counts seconds


def main() -> int:
    """Run, kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", default="native")
    parser.add_argument("--boards", type=int, help="a rack of so many instances")
    parser.add_argument("--model", type=Path, help="default: a small drawn one")
    parser.add_argument(
        "--images", type=int, default=40000, help="synthetic ones, enough for all kills (default 40000)"
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-and-resume-") as folder:
        return compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> int:
    """0 where both evaluations report the same."""
    model = options.model or drawn_model(folder / "model.tvit")
    command = [sys.executable, "-m", "tvhil.cli", "run-eval", "synthetic", "--board", options.board, "--model", model]
    command += ["--limit", options.images, *(["--boards", options.boards] if options.boards else [])]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    whole, cut = folder / "whole" / "r.json", folder / "cut" / "r.json"
    began = time.monotonic()
    undisturbed = subprocess.Popen([*map(str, command), "--json", str(whole)], **quiet)
    while undisturbed.poll() is None and not journal_bytes(whole):
        time.sleep(0.02)
    startup = time.monotonic() - began
    if undisturbed.wait():
        print(f"the undisturbed evaluation failed with exit code {undisturbed.returncode}", file=sys.stderr)
        return 1
    stretch = 0.9 * journal_bytes(whole) / (options.kills + 1)
    draw, resume = random.Random(options.seed), [*map(str, command), "--resume", "--json", str(cut)]
    for kill in range(options.kills):
        process = subprocess.Popen(resume, **quiet)
        if draw.random() < DURING_START:
            time.sleep(draw.uniform(0, startup))
        else:
            until = journal_bytes(cut) + draw.uniform(0, stretch)
            while process.poll() is None and journal_bytes(cut) <= until:
                time.sleep(draw.uniform(0, 0.004))
        if process.poll() is not None:
            print(f"finished before kill {kill + 1}: more --images are needed", file=sys.stderr)
            return 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"\rkill {kill + 1}: {journal_bytes(cut):,} bytes of journal", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    finished = subprocess.run(resume, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if finished.returncode:
        print(f"the last resume failed with exit code {finished.returncode}: {finished.stderr.strip()}")
        return 1
    differences = different_reports(json.loads(whole.read_text()), json.loads(cut.read_text()))
    differences += different_journals(whole, cut)
    for difference in differences:
        print(difference)
    print(f"{options.kills} kills, {options.images} images, {len(differences)} differences")
    return 1 if differences else 0


def drawn_model(path: Path) -> Path:
    """A model that a board runs thousands of times in a second or two."""
    from tvhil.packing import pack_vit
    from tvhil.packing.random_vit import random_vit

    path.write_bytes(pack_vit(random_vit(21, patch_size=4, embed_dim=16, heads=1, mlp_dim=16, depth=1)))
    return path


def journal_bytes(report: Path) -> int:
    """Size of a journal so far."""
    journal = report.with_suffix(".journal.jsonl")
    return journal.stat().st_size if journal.exists() else 0


def different_reports(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Keys of two reports that should be equal and are not."""
    for report in (left, right):
        del report["created"], report["link"]
        report.pop("rack", None)
        if report["latency"]["unit"] == "seconds":
            for row in [report["latency"], *report["latency"]["layers"]]:
                row["measured"] = row.pop("relative_error", None)
    return [f"report: {key} is {left[key]} and {right.get(key)}" for key in left if left[key] != right.get(key)]


def different_journals(left: Path, right: Path) -> list[str]:
    """Images that are not in both journals exactly once with the same figures."""
    rows = []
    for report in (left, right):
        _, every = read_journal(report.with_suffix(".journal.jsonl"))
        seconds = json.loads(report.read_text())["latency"]["unit"] == "seconds"
        dropped = {*OF_TIME, "on", *(LATENCY if seconds else ())}
        images = [{k: v for k, v in row.items() if k not in dropped} for row in every if "image" in row]
        rows.append(sorted(images, key=lambda row: row["image"]))
    if len(rows[0]) != len(rows[1]):
        return [f"journal: {len(rows[0])} and {len(rows[1])} rows"]
    return [f"journal: {one} and {other}" for one, other in zip(*rows, strict=True) if one != other]


if __name__ == "__main__":
    sys.exit(main())
