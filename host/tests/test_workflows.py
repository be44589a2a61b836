# SPDX-License-Identifier: Apache-2.0
"""The workflow that repositories copy: what it runs exists, with these options."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tvhil.boards import load_board
from tvhil.cli import _parser

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "hil.yml").read_text())
VALUES = {"BOARD": "esp32s3", "PORT": "/dev/ttyACM0", "MODEL": "m.tvit"}


def commands() -> list[list[str]]:
    """The words of every command, as the shell makes them where all variables are set."""
    found = []
    for job in WORKFLOW["jobs"].values():
        for step in job["steps"]:
            text = re.sub(r"\$\{\{ matrix\.board \}\}", "native", step.get("run", ""))
            text = re.sub(r"\$\{(\w+):\+(.*?)\}", r"\2", text)
            text = re.sub(r"\$(\w+)", lambda match: VALUES[match[1]], text)
            if text:
                found.append(shlex.split(text))
    return found


def test_every_emulator_of_the_matrix_is_a_board_that_starts_here():
    boards = WORKFLOW["jobs"]["emulator"]["strategy"]["matrix"]["board"]
    assert "qemu-xtensa" in boards
    assert all(load_board(name).start is not None for name in boards)


@pytest.mark.parametrize("words", [words for words in commands() if words[0].endswith("/tvhil")], ids=" ".join)
def test_a_command_is_one_that_tvhil_takes(words):
    assert callable(_parser(words[1:]).parse_args(words[1:]).run)


def test_pytest_knows_the_options_that_it_is_given():
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "hil_tests", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    options = {word for words in commands() if words[0].endswith("/pytest") for word in words if word.startswith("--")}
    assert {"--board", "--port", "--model", "--junitxml", "--metrics"} == options
    assert all(option in told for option in options - {"--junitxml"}), "pytest's own, which it lists as --junit-xml"


def test_a_pull_request_never_gets_the_board_and_jobs_share_it_one_by_one():
    board = WORKFLOW["jobs"]["board"]
    assert "github.event_name != 'pull_request'" in board["if"]
    assert board["concurrency"]["cancel-in-progress"] is False
    assert "self-hosted" in board["runs-on"]
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_variables_are_quoted_or_left_out_where_they_are_empty():
    for job in WORKFLOW["jobs"].values():
        for step in job["steps"]:
            text = step.get("run", "")
            assert "${{ vars." not in text, "an expression in a command would be run by the shell"
            assert not re.search(r'(?<!")\$(BOARD|PORT|MODEL)\b(?!")', text)
