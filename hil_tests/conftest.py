# SPDX-License-Identifier: Apache-2.0
"""What must hold on every board.

pytest hil_tests                                       the boards that need nothing but packages
pytest hil_tests --board esp32s3 --port /dev/ttyACM0   a board on the desk
pytest hil_tests --board native --model m.tvit         one's own model
pytest hil_tests --junitxml r.xml --metrics r.prom     reports: JUnit, and the figures as OpenMetrics

pytest-embedded was looked at first, for what it does well: it flashes an IDF app, keeps a port cache, and logs metrics.
It does not fit here: its `dut` is a console whose text is matched by regular expressions (pexpect), and reads the port
in a process of its own, while this link is binary, windowed and needs the port itself; its QEMU service builds the
flash image from an IDF build folder, without our model partition; and most of the boards here are no ESP.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from open_metrics import OpenMetrics
from tvhil.boards import load_board
from tvhil.commands.common import open_model
from tvhil.errors import MissingToolError
from tvhil.evaluation.session import open_device
from tvhil.files import write_whole
from tvhil.packing import pack_vit, read_model
from tvhil.packing.format import ScaleMode
from tvhil.packing.random_vit import random_vit
from tvhil.packing.schedule import Schedule
from tvhil.packing.trits import Codec

METRICS = pytest.StashKey[OpenMetrics]()
RUNS = {"silicon": 1000, "native": 1000, "emulator": 10}  # an emulator is deterministic: what drifts, drifts at once
DEFAULT_BOARDS = ("native", "qemu-xtensa", "qemu-xtensa-pie", "lx7sim")

# Small models that differ in everything that a port could get wrong.
MODELS = {
    "static_base3": lambda: pack_vit(random_vit(11, embed_dim=48, heads=3, depth=2, mlp_dim=100), Codec.BASE3),
    "static_gaps": lambda: pack_vit(random_vit(14, embed_dim=64, heads=2, depth=2, mlp_dim=130), Codec.GAPS),
    "pieces_gaps": lambda: pack_vit(
        random_vit(15, image_size=(24, 24), embed_dim=64, heads=4, depth=1, mlp_dim=200),
        Codec.GAPS,
        schedule=Schedule(heads_split=True, attention_groups=2, mlp_passes=2, fc1_chunks=2, fc1_groups=2),
    ),
    "per_token_2bit": lambda: pack_vit(
        random_vit(
            12, image_size=(24, 16), channels=3, patch_size=8, embed_dim=32, depth=1, prefix_tokens=2,
            scale_mode=ScaleMode.PER_TOKEN,
        ),
        Codec.TWO_BIT,
    ),
    "mean_pool_odd_sizes": lambda: pack_vit(
        random_vit(
            13, image_size=(21, 21), channels=3, patch_size=7, embed_dim=36, heads=3, depth=1, mlp_dim=70, classes=13,
            prefix_tokens=0, mean_pool=True,
        ),
        Codec.BASE3,
    ),
}  # fmt: skip


def pytest_addoption(parser):
    group = parser.getgroup("boards")
    group.addoption(
        "--board", action="append", help=f"board to test, repeatable (default: {', '.join(DEFAULT_BOARDS)})"
    )
    group.addoption("--port", help="serial port or URL of the board")
    group.addoption("--runs", type=int, help="consecutive runs of an image (default: 1000 on a board, fewer elsewhere)")
    group.addoption("--metrics", type=Path, help="write the figures as OpenMetrics text")
    group.addoption("--model", type=Path, help=".tvit file to test with (default: small random ones and vit_digits)")


def pytest_generate_tests(metafunc):
    if "board_name" in metafunc.fixturenames:
        names = metafunc.config.getoption("--board") or DEFAULT_BOARDS
        marks = {name: [pytest.mark.emulator] if name.startswith("qemu") else [] for name in names}
        metafunc.parametrize("board_name", [pytest.param(n, marks=marks[n]) for n in names], scope="session")
    if "model_name" in metafunc.fixturenames:
        own = metafunc.config.getoption("--model")
        names = [str(own)] if own else [*MODELS, "vit_digits"]
        metafunc.parametrize("model_name", names, scope="session")


@pytest.fixture(scope="session")
def board(board_name):
    return load_board(board_name)


@pytest.fixture(scope="session")
def model(model_name, board):
    """The model to test with; a board whose file names trusted keys takes a signed `--model` only."""
    if model_name in MODELS:
        if board.trusted_key_files:
            pytest.skip(f"board {board.name} takes signed models only: give one by --model")
        return read_model(MODELS[model_name]())
    return open_model(None if model_name == "vit_digits" else Path(model_name), board.trusted_key_files)[0]


def scope_of_device(fixture_name, config):
    """A port has room for one host: it is free again for a module that opens the board itself."""
    return "module" if config.getoption("--port") else "session"


@pytest.fixture(scope=scope_of_device)
def device(board, model, request):
    """The board, running the model, as an evaluation sees it."""
    try:
        with open_device(board, model, port=request.config.getoption("--port")) as opened:
            yield opened
    except MissingToolError as error:
        pytest.skip(str(error))


@pytest.fixture
def runs(board, request):
    """How many consecutive runs a test of endurance makes."""
    return request.config.getoption("--runs") or RUNS[board.kind]


@pytest.fixture
def steady(board, device):
    """Whether equal runs count equally: not in seconds of this machine, nor on an emulator that goes by them."""
    return board.counter.steady and device.facts().unit != "seconds"


@pytest.fixture
def figure(request, board, model_name, record_property):
    """Notes a figure of the board in the reports: JUnit (a property of the test) and OpenMetrics."""

    def note(name, unit, help_text, value, **labels):
        record_property("_".join((name, unit, *labels.values())), value)
        labels |= {"board": board.name, "model": Path(model_name).stem, "kind": board.kind}
        request.config.stash[METRICS].add(name, unit, help_text, value, labels)

    return note


def pytest_configure(config):
    config.stash[METRICS] = OpenMetrics()


def pytest_sessionfinish(session):
    path = session.config.getoption("--metrics")
    if path is not None:
        write_whole(path, session.config.stash[METRICS].text().encode())


@pytest.fixture
def client(device):
    """The link to the board."""
    return device.client
