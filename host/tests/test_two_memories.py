# SPDX-License-Identifier: Apache-2.0
"""Models that do not fit the arena of a board and lie in its external one: the same bits, memory as predicted."""

from __future__ import annotations

import functools
import re
import shutil
from contextlib import ExitStack

import numpy as np
import pytest
from board_programs import missing_tools
from link_boards import environment, native_board

from tvhil.boards import list_boards, load_board
from tvhil.boards.board import boards_dir
from tvhil.errors import InputError
from tvhil.evaluation.session import open_device
from tvhil.link import LinkClient, RemoteError
from tvhil.link.transports import ProcessTransport
from tvhil.packing import pack_vit, read_model
from tvhil.packing.format import ScaleMode, Status
from tvhil.packing.random_vit import random_vit
from tvhil.packing.trits import Codec
from tvhil.prediction import Predictor
from tvhil.prediction.memory import MemoryLimits, arena_bytes, check_fit, in_psram, predict_memory
from tvhil.runtime import device_dir

EXTERNAL = 1 << 18


@functools.cache
def large_model(mode=ScaleMode.STATIC, codec=Codec.BASE3):
    """A model that needs more than 16 KB."""
    size = (24, 24) if mode is ScaleMode.STATIC else (32, 32)
    vit = random_vit(5, image_size=size, embed_dim=48, heads=3, mlp_dim=96, depth=2, scale_mode=mode)
    model = read_model(pack_vit(vit, codec))
    assert model.plan.arena_bytes > 16384
    return model


def images_of(model, count=2):
    return np.random.default_rng(1).integers(0, 256, (count, *model.info.input_shape), np.uint8)


# --- the native board, with sanitizers -----------------------------------------------------------------------------


@pytest.fixture
def native(monkeypatch):
    """Starts a native board with arenas of so many bytes; a client."""
    for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS"):
        monkeypatch.setenv(name, environment()[name])
    with ExitStack() as stack:

        def start(arena, external=EXTERNAL):
            sizes = {"arena": arena, "external-arena": external, "model-ram": 1 << 20}
            options = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
            command = [str(native_board(sanitized=True)), "--fd", "{fd}", "--die-with-parent", *options]
            client = LinkClient(stack.enter_context(ProcessTransport(command, "native")))
            client.connect()
            return client

        yield start


def check(client, model):
    images = images_of(model)
    for image, logits in zip(images, Predictor(model).run(images), strict=True):
        result = client.infer(image.tobytes())
        assert (np.frombuffer(client.read_output(result, 2 * logits.size), "<i2") == logits).all()


@pytest.mark.parametrize("mode", list(ScaleMode))
@pytest.mark.parametrize("arena", [16, 1024, 16384])
def test_a_model_that_does_not_fit_the_arena_runs_in_the_external_one(native, arena, mode):
    model = large_model(mode)
    client = native(arena)
    client.upload_model(model.file)
    check(client, model)
    assert client.info().arena_bytes == arena
    memory, needed = client.memory(), arena_bytes(model, "portable")
    assert client.model_info().arena_bytes == memory.arena_planned == memory.arena_used == needed
    assert memory.arena_bytes == EXTERNAL


def test_what_fits_the_arena_stays_there(native):
    model = large_model()
    client = native(arena_bytes(model, "portable"))
    client.upload_model(model.file)
    check(client, model)
    memory = client.memory()
    assert memory.arena_bytes == memory.arena_used == arena_bytes(model, "portable")


def test_a_model_that_fits_neither_arena_is_refused(native):
    model = large_model()
    client = native(16384, model.plan.arena_bytes - 16)
    with pytest.raises(RemoteError) as caught:
        client.upload_model(model.file)
    assert caught.value.runtime_status == Status.ARENA_TOO_SMALL


# --- emulated boards: the vector kernels, and lx7sim's PSRAM -------------------------------------------------------


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    """Loads a board of bare metal with arenas of so many bytes."""
    reason = missing_tools("qemu-xtensa")
    if reason:
        pytest.skip(reason)

    def load(name, arena, external=EXTERNAL):
        folder = tmp_path_factory.mktemp("boards")
        for path in boards_dir().glob("*.toml"):
            shutil.copy(path, folder)
        path = folder / "qemu-xtensa.toml"
        text, before = path.read_text(), "arena = 0x0400_0000"
        assert text.count(before) == 1
        path.write_text(text.replace(before, f"arena = {arena}\npsram_arena = {external}"))
        return load_board(folder / f"{name}.toml")

    return load


@pytest.mark.parametrize(
    ("name", "arena", "codec"),
    [
        ("qemu-xtensa-pie", 16384, Codec.GAPS),
        ("qemu-xtensa", 1024, Codec.TWO_BIT),
        ("lx7sim", 16384, Codec.BASE3),
        ("lx7sim", 1024, Codec.GAPS),
    ],
)
def test_an_emulated_board_computes_the_predicted_bits_in_its_external_arena(variant, name, arena, codec):
    model, board = large_model(codec=codec), variant(name, arena)
    assert in_psram(model, board.limits)
    predictor = Predictor(model)
    with open_device(board, model) as device:
        for image in images_of(model):
            run = device.run(image, crcs=True)
            assert np.array_equal(run.output, predictor.run(image[None]))
            assert list(run.crcs) == [o.crc for o in predictor.trace(image)]
        memory, told = device.client.memory(), device.client.model_info()
        needed = arena_bytes(model, board.kernels)
        assert device.client.info().arena_bytes == arena
        assert told.kernels == board.kernels
        assert told.arena_bytes == memory.arena_planned == needed
        assert memory.arena_bytes == EXTERNAL
        assert 0.7 * needed < memory.arena_used <= needed
        if board.kernels == "portable":
            assert memory.arena_used == needed


# --- what the host knows before ------------------------------------------------------------------------------------


def test_a_model_is_held_against_the_arena_that_it_lies_in():
    model = large_model()
    need = arena_bytes(model, "portable")
    check_fit(model, MemoryLimits(arena=need), "b")
    small = MemoryLimits(arena=16384, psram_arena=need)
    assert in_psram(model, small) and not in_psram(model, MemoryLimits(arena=need, psram_arena=need))
    check_fit(model, small, "b")
    with pytest.raises(InputError, match=f"in PSRAM, needs {need:,} bytes, b has {need - 16:,}"):
        check_fit(model, MemoryLimits(arena=16384, psram_arena=need - 16), "b")
    with pytest.raises(InputError, match=f"the arena needs {need:,} bytes, b has 16,384"):
        check_fit(model, MemoryLimits(arena=16384), "b")
    assert predict_memory(model, small)["arena"] == {"measured": None, "predicted": need, "in_psram": True}


@pytest.mark.parametrize("name", sorted(board.name for board in list_boards([]) if board.idf is not None))
def test_the_firmware_has_the_arena_in_psram_that_the_board_file_promises(name):
    memory = load_board(name).memory
    (reserved,) = re.findall(r"PSRAM_ARENA = (\w+)", (device_dir() / "ports/esp_idf/main/memory.c").read_text())
    assert memory.psram_arena == (int(reserved, 0) if memory.psram else 0)
    assert memory.arena < memory.psram_arena < memory.psram or not memory.psram
