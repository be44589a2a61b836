# SPDX-License-Identifier: Apache-2.0
"""A model that does not fit the board's internal memory: part of it in PSRAM, the same bits, memory as planned."""

import functools

import numpy as np
import pytest

from tvhil.errors import MissingToolError
from tvhil.evaluation.session import open_device
from tvhil.packing import pack_vit, read_model
from tvhil.packing.random_vit import random_vit
from tvhil.packing.trits import Codec
from tvhil.prediction import Predictor
from tvhil.prediction.memory import arena_bytes, in_psram
from tvhil.runtime import plan_memory


@functools.cache
def wide_model(fast_bytes):
    """1,025 tokens and few weights: a large arena, a small file."""
    vit = random_vit(
        8, image_size=(128, 128), patch_size=4, channels=1, embed_dim=64, heads=2, mlp_dim=64, depth=1, classes=10
    )
    return read_model(pack_vit(vit, Codec.GAPS, functools.partial(plan_memory, fast_bytes=fast_bytes)))


def test_a_model_that_does_not_fit_the_internal_memory_runs_in_psram(board, request):
    if not board.memory.psram_arena:
        pytest.skip("no PSRAM for activations")
    model = wide_model(board.memory.arena)
    if not in_psram(model, board.limits):
        pytest.skip("the internal memory holds the largest model of this test")
    predictor, rng = Predictor(model), np.random.default_rng(8)
    try:
        with open_device(board, model, port=request.config.getoption("--port")) as device:
            client = device.client
            for image in rng.integers(0, 256, (2, *model.info.input_shape), np.uint8):
                run, expected = device.run(image, crcs=True), predictor.trace(image)
                assert list(run.crcs) == [o.crc for o in expected]
                assert np.array_equal(run.output, expected[-1].values)
            told, memory = client.model_info(), client.memory()
    except MissingToolError as error:
        pytest.skip(str(error))
    assert memory.arena_bytes == board.memory.psram_arena
    assert told.arena_bytes == memory.arena_planned == arena_bytes(model, told.kernels)
    assert board.memory.arena < memory.arena_used <= told.arena_bytes
    if told.kernels == "portable":
        assert memory.arena_used == told.arena_bytes, "kernels write all of their scratch"
