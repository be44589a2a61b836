# SPDX-License-Identifier: Apache-2.0
"""Evaluations that are killed, run out of disk, or meet another one on their journal."""

import json
import shutil
import subprocess
import sys

import pytest

from tvhil.evaluation.journal import Journal, read_journal
from tvhil.packing import pack_vit
from tvhil.packing.random_vit import random_vit
from tvhil.runtime import device_dir

TOOL = device_dir().parent / "tools" / "kill_and_resume.py"


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.tvit"
    path.write_bytes(pack_vit(random_vit(21, patch_size=4, embed_dim=16, heads=1, mlp_dim=16, depth=1)))
    return path


def command(model_file, folder, *extra):
    arguments = ["run-eval", "synthetic", "--board", "native", "--model", model_file, "--limit", 300]
    return [sys.executable, "-m", "tvhil.cli", *map(str, arguments), "--json", str(folder / "r.json"), *extra]


def run(arguments, **options):
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120, **options)


@pytest.mark.parametrize(
    ("kills", "extra"),
    [(8, ["--images", "2000"]), (3, ["--images", "800", "--boards", "2"])],
    ids=["one board", "a rack"],
)
def test_an_evaluation_that_was_killed_again_and_again_reports_what_an_undisturbed_one_does(kills, extra):
    done = run([sys.executable, str(TOOL), "--kills", str(kills), *extra])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} kills" in done.stdout
    assert "0 differences" in done.stdout


def test_a_file_that_may_not_grow_keeps_its_rows_and_the_evaluation_goes_on_elsewhere(model_file, tmp_path):
    run(command(model_file, tmp_path))  # the firmware is built, the flash image written
    shutil.rmtree(tmp_path / "cut", ignore_errors=True)
    limit = 20_000
    arguments = command(model_file, tmp_path / "cut")
    # In the new process, not between fork and exec: a library with threads of its own may be in this one.
    limited = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    done = run([sys.executable, "-c", f"{limited}; os.execv(sys.argv[1], sys.argv[1:])", *arguments])
    assert done.returncode == 3
    assert "may not grow" in done.stderr
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    journal = tmp_path / "cut" / "r.journal.jsonl"
    kept = [row["image"] for row in read_journal(journal)[1] if "image" in row]
    assert kept == list(range(len(kept)))
    assert 10 < len(kept) < 300
    assert journal.stat().st_size <= limit
    assert run([*arguments, "--resume"]).returncode == 0
    assert json.loads((tmp_path / "cut" / "r.json").read_text())["logits"]["bit_exact"] == 300


SMALL_DISK = """
mount -t tmpfs -o size=32k tmpfs "$1" || exit 77
folder=$1; shift
"$@" 2> "$folder.errors"; echo $? > "$folder.code"
cp "$folder/r.journal.jsonl" "$folder.journal"
mount -o remount,size=10m "$folder"
"$@" --resume
"""


def test_a_full_disk_keeps_every_row_and_says_what_to_do_and_resume_finishes(model_file, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shutil.which("unshare"):
        pytest.skip("unshare (util-linux) is not installed, which makes the small disk")
    shell = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, "sh", str(disk)]
    done = run([*shell, *command(model_file, disk)])
    if done.returncode == 77 or not (tmp_path / "disk.code").exists():
        pytest.skip(f"this machine does not let us mount a small disk: {done.stderr.strip()}")
    assert (tmp_path / "disk.code").read_text().strip() == "3"
    errors = (tmp_path / "disk.errors").read_text()
    assert "the disk is full: free some space" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    kept = [row["image"] for row in read_journal(tmp_path / "disk.journal")[1] if "image" in row]
    assert kept == list(range(len(kept)))
    assert 10 < len(kept) < 300
    assert done.returncode == 0
    assert "300 of 300" in done.stdout


def test_a_second_evaluation_on_the_same_journal_is_refused_and_changes_nothing(model_file, tmp_path):
    assert run(command(model_file, tmp_path)).returncode == 0
    path = tmp_path / "r.journal.jsonl"
    header, _ = read_journal(path)
    before = path.read_bytes()
    with Journal.resume(path, {key: value for key, value in header.items() if key != "schema"}):
        for extra in ("--resume", "--overwrite"):
            done = run(command(model_file, tmp_path, extra))
            assert done.returncode == 3
            assert f"writes {path}" in done.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [(["--limit", "299"], "dataset"), (["--seed", "5"], "dataset"), (["--board", "lx7sim"], "board")],
)
def test_a_journal_of_another_evaluation_is_refused_with_what_changed(change, named, model_file, tmp_path):
    assert run(command(model_file, tmp_path)).returncode == 0
    done = run(command(model_file, tmp_path, "--resume", *change))
    assert done.returncode == 3
    assert f"its {named} is" in done.stderr
