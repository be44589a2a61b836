# SPDX-License-Identifier: Apache-2.0
"""hil_tests on a board at a port that has room for one host, as every serial port."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tvhil.boards import build, load_board

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("second_handshake and static_gaps", "host_that_expects and static_gaps", "operator_differs and 3]")


@pytest.fixture
def port():
    """Where the native board listens, for one host at a time."""
    board = load_board("native")
    options = ("--arena", str(board.memory.arena), "--model-ram", str(board.memory.model_ram), "--die-with-parent")
    command = [str(build(board).path), "--tcp", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"tcp://{process.stdout.readline().strip()}"
        finally:
            process.kill()


def test_modules_that_open_the_board_themselves_find_its_port_free(port):
    chosen = " or ".join(f"({one})" for one in TESTS)
    command = [sys.executable, "-m", "pytest", "hil_tests", "--board", "native", "--port", port, "-k", chosen]
    done = subprocess.run([*command, "-q", "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert re.search(r"^5 passed", done.stdout, re.MULTILINE), done.stdout[-2000:]
