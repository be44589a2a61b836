# SPDX-License-Identifier: Apache-2.0
"""What must still hold after many runs, after a reset in the middle, and after what a board should refuse."""

import dataclasses
import zlib

import numpy as np
import pytest

from tvhil.errors import BoardError
from tvhil.evaluation.link_device import LinkDevice
from tvhil.evaluation.report import LINK_COUNTERS
from tvhil.link import BoardResetError, RemoteError
from tvhil.link.messages import Capability, ErrorCode, ModelSource, Region, Request
from tvhil.link.session import Ask
from tvhil.packing import pack_vit, read_model
from tvhil.packing.random_vit import random_vit
from tvhil.prediction import Predictor

LEAST_FREE_HEAP = 512  # bytes; a few of the small blocks that an operating system takes while it runs
DRIFT = 0.02  # of the mean of cycles between the first and the last quarter


@pytest.fixture(scope="module")
def image(model):
    return np.random.default_rng(11).integers(0, 256, model.info.input_shape, np.uint8)


@pytest.fixture(scope="module")
def expected(model, image):
    return Predictor(model).run(image[None])[0].tolist()


def test_consecutive_runs_do_not_drift(device, image, expected, runs, figure, steady):
    def state():
        memory = device.client.memory()
        return memory.arena_used, memory.stack_used, memory.second_stack_used, memory.heap_used

    device.run(image)  # the first one touches what the others only use again
    before, line = state(), dict(zip(LINK_COUNTERS, device.link_statistics(), strict=True))
    latencies = []
    for _ in range(runs):
        run = device.run(image)
        assert run.output.reshape(-1).tolist() == expected
        latencies.append(run.latency)
    after = dict(zip(LINK_COUNTERS, device.link_statistics(), strict=True))
    assert state() == before
    assert after["crc_errors"] == line["crc_errors"]
    unit = device.facts().unit
    mean, quarter = float(np.mean(latencies)), max(1, runs // 4)
    drift = abs(float(np.mean(latencies[-quarter:]) / np.mean(latencies[:quarter])) - 1)
    if steady:
        assert drift <= DRIFT
    figure("tvhil_run", unit, "mean of consecutive runs of one image", mean)
    figure("tvhil_run_drift", "ratio", "last quarter of the runs against the first", drift)
    figure("tvhil_runs", "count", "consecutive runs with equal logits", runs)


def test_the_heap_has_never_been_full(device, image, figure):
    device.run(image)
    told = device.client.info().details.get("least_free_heap")
    if told is None:
        pytest.skip("this board has no heap, or does not tell what it has left")
    figure("tvhil_least_free_heap", "bytes", "the least that the heap ever had left", int(told))
    assert int(told) >= LEAST_FREE_HEAP


def test_operators_and_the_remainder_are_the_whole_run(device, image, model, figure, steady):
    run, unit = device.run(image), device.facts().unit
    rows = [*zip((op.name for op in model.operators), run.layers, strict=True)]
    rows.append(("remainder", run.latency - sum(run.layers)))
    assert sum(ticks for _, ticks in rows) == pytest.approx(run.latency, rel=1e-9)
    assert all(ticks >= 0 for _, ticks in rows)
    if steady:
        assert rows[-1][1] <= 0.02 * run.latency
    for name, ticks in rows:
        figure("tvhil_operator", unit, "one operator of a run, and what is in none of them", ticks, operator=name)


def test_a_reset_between_image_and_run_is_told_and_the_board_recovers(device, image, expected):
    if Capability.RESET not in device.client.hello.capabilities:
        pytest.skip("this board has no reset over the link")
    device.client.load_image(image.tobytes())
    device.client.reset()
    with pytest.raises((RemoteError, BoardResetError)):
        device.client.run(zlib.crc32(image.tobytes()))
    assert device.run(image).output.reshape(-1).tolist() == expected


def test_a_host_that_expects_another_model_is_refused(device, image, expected):
    other = read_model(pack_vit(random_vit(99)))
    assert other.signature != device.client.model_info().signature.hex()
    stranger = LinkDevice(device.client, other)
    with pytest.raises(BoardError, match="another model"):
        stranger._reconnect(BoardResetError("restarted"))
    assert device.run(image).output.reshape(-1).tolist() == expected


def test_an_image_that_is_not_the_announced_one_is_not_run(device, image, expected):
    client = device.client
    client.load_image(image.tobytes())
    with pytest.raises(RemoteError) as caught:
        client.run(zlib.crc32(image.tobytes()) ^ 1)
    assert caught.value.code == ErrorCode.IMAGE_CRC
    assert device.run(image).output.reshape(-1).tolist() == expected


@pytest.mark.parametrize("damage", ["truncated", "a bit in the middle", "no model at all"])
def test_a_damaged_model_is_refused_and_the_one_in_use_comes_back(device, model, image, expected, damage, request):
    client = device.client
    if Capability.MODEL_RAM not in client.hello.capabilities:
        pytest.skip("this board has no RAM for an uploaded model")
    wrong = bytearray(model.file)
    if damage == "truncated":
        del wrong[-16:]
    elif damage == "a bit in the middle":
        wrong[len(wrong) // 2] ^= 0x10
    else:
        wrong = bytearray(b"\xff" * 256)
    client.write(Region.MODEL_RAM, 0, bytes(wrong))
    with pytest.raises(RemoteError) as caught:
        client.load_model(ModelSource.RAM, len(wrong))
    assert caught.value.runtime_status is not None
    with pytest.raises(RemoteError):
        client.model_info()
    if request.config.getoption("--port"):  # what its flash holds is not known
        client.upload_model(model.file)
    else:
        client.load_model(ModelSource.FLASH)
    assert device.run(image).output.reshape(-1).tolist() == expected


def test_the_frames_of_an_upload_cost_less_than_3_percent(device, model, image, expected, request, figure):
    client = device.client
    if Capability.MODEL_RAM not in client.hello.capabilities:
        pytest.skip("this board has no RAM for an uploaded model")
    before = dataclasses.replace(client.statistics)
    client.write(Region.MODEL_RAM, 0, model.file)
    overhead = (client.statistics.bytes_sent - before.bytes_sent) / model.file_bytes - 1
    assert client.checksum(Region.MODEL_RAM, size=model.file_bytes)[0] == zlib.crc32(model.file)
    client.load_model(ModelSource.RAM, model.file_bytes)
    assert device.run(image).output.reshape(-1).tolist() == expected
    if not request.config.getoption("--port"):
        client.load_model(ModelSource.FLASH)
    figure("tvhil_upload_overhead", "ratio", "bytes on the line for a byte of the model, less 1", overhead)
    if client.statistics.retries == before.retries:
        assert overhead < 0.03


def test_every_core_of_the_board_takes_part(device, board):
    cores = device.client.info().cores
    if board.start is not None:
        assert cores == board.start.cores
    told = device.client.model_info()
    assert told.cores == (cores if told.kernels == "pie" else 1)


def test_a_frame_of_the_largest_size_goes_both_ways(client):
    room = client.hello.max_payload
    assert client.session.ask(Ask(Request.ECHO, b"\0" * room)) == b"\0" * room


def test_the_latency_is_within_the_band_that_the_board_file_states(device, board, image, model, figure):
    if board.cost is None or not board.counter.band_percent:
        pytest.skip("the board file states no band (no [cost], or no band_percent in [counter])")
    predicted = board.cost.predict(model, device.client.model_info().cores).total
    measured = device.run(image).latency
    figure("tvhil_latency_error", "ratio", "measured latency against the predicted one", measured / predicted - 1)
    assert abs(measured / predicted - 1) <= board.counter.band_percent / 100
