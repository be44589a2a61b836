# SPDX-License-Identifier: Apache-2.0
"""Randomly drawn configurations: not one bit of any operator differs from the predictor, whatever the shape."""

from collections import Counter

import numpy as np
import pytest

from tvhil.errors import MissingToolError
from tvhil.evaluation.link_device import LinkDevice
from tvhil.evaluation.session import open_device
from tvhil.link.messages import Capability
from tvhil.packing import pack_vit, read_model
from tvhil.packing.format import ScaleMode
from tvhil.packing.random_vit import random_vit
from tvhil.packing.schedule import Schedule
from tvhil.packing.trits import Codec
from tvhil.prediction import Predictor

SEEDS = range(24)


def draw_model(seed):
    """Width, depth, heads, patch, tokens, prefix, pooling, codec, scale mode and schedule, all from the seed."""
    rng = np.random.default_rng(1000 + seed)
    heads = int(rng.integers(1, 5))
    patch = int(rng.choice([1, 2, 3, 4, 7, 8, 16]))
    rows, columns = (int(n) for n in rng.integers(1, 7, 2))
    mean_pool = bool(rng.random() < 0.3)
    scale_mode = ScaleMode(int(rng.integers(0, 2)))
    head_dim, schedule = int(rng.integers(1, 33)), Schedule()
    if scale_mode is ScaleMode.STATIC and rng.random() < 0.7:
        split = bool(rng.random() < 0.6)
        head_dim = int(rng.choice([16, 32])) if split else head_dim
        schedule = Schedule(split, bool(rng.integers(0, 2)), *(int(n) for n in rng.integers(1, 4, 4)))
    vit = random_vit(
        seed,
        image_size=(patch * rows, patch * columns),
        channels=int(rng.choice([1, 3])),
        patch_size=patch,
        embed_dim=heads * head_dim,
        depth=int(rng.integers(1, 4)),
        heads=heads,
        mlp_dim=int(rng.integers(1, 200)),
        classes=int(rng.integers(1, 60)),
        prefix_tokens=int(rng.integers(0 if mean_pool else 1, 3)),
        mean_pool=mean_pool,
        scale_mode=scale_mode,
    )
    return read_model(pack_vit(vit, Codec(int(rng.integers(0, 3))), schedule=schedule))


@pytest.fixture(scope="module")
def client(board, request):
    """A board that models are uploaded to."""
    try:
        with open_device(board, draw_model(0), port=request.config.getoption("--port")) as device:
            if Capability.MODEL_RAM not in device.client.hello.capabilities:
                pytest.skip("this board has no RAM for an uploaded model")
            yield device.client
    except MissingToolError as error:
        pytest.skip(str(error))


def test_the_draw_covers_codecs_scale_modes_and_classifiers():
    models = [draw_model(seed) for seed in SEEDS]
    assert {model.operators[0]["codec"] for model in models} == set(Codec)
    assert {model.info.scale_mode for model in models} == set(ScaleMode)
    assert {model.info.prefix_tokens for model in models} == {0, 1, 2}
    assert any(op.kind.name == "MEAN_POOL" for model in models for op in model.operators)
    pieces = [max(Counter(op.name for op in model.operators).values()) for model in models]
    assert 6 <= sum(most > 1 for most in pieces) <= 18


@pytest.mark.parametrize("seed", SEEDS)
def test_no_bit_of_any_operator_differs(client, seed):
    model = draw_model(seed)
    client.upload_model(model.file)
    device, predictor = LinkDevice(client, model), Predictor(model)
    assert device.facts().signature == model.signature
    rng = np.random.default_rng(seed)
    for image in rng.integers(0, 256, (2, *model.info.input_shape), np.uint8):
        run, expected = device.run(image, crcs=True), predictor.trace(image)
        different = [op.name for op, o, crc in zip(model.operators, expected, run.crcs, strict=True) if o.crc != crc]
        assert different == []
        assert np.array_equal(run.output, expected[-1].values)
    assert device.memory()["arena"]["measured"] <= client.model_info().arena_bytes
