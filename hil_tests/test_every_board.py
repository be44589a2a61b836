# SPDX-License-Identifier: Apache-2.0
"""Handshake, echo, bit-exact logits, traces, tensors, memory, reset: the same on silicon, emulators and a process."""

import contextlib

import numpy as np
import pytest

from tvhil.boards.board import KERNELS
from tvhil.evaluation.report import LINK_COUNTERS
from tvhil.link import BoardFaultError, RemoteError
from tvhil.link.messages import Capability, Region, TestFault
from tvhil.packing.format import ScaleMode
from tvhil.prediction import Predictor
from tvhil.prediction.memory import arena_bytes

IMAGES = 4
REPEATS = 20
REPEATS_ON_TWO_CORES = 4  # an emulator's turns may differ in length


@pytest.fixture(scope="session")
def predictor(model):
    return Predictor(model)


@pytest.fixture(scope="session")
def images(model):
    rng = np.random.default_rng(7)
    shape = model.info.input_shape
    noise = rng.integers(0, 256, (IMAGES - 2, *shape), np.uint8)
    return np.concatenate([noise, np.zeros((1, *shape), np.uint8), np.full((1, *shape), 255, np.uint8)])


def test_the_board_names_itself_and_the_model_that_was_flashed(device, model, board):
    facts, info = device.facts(), device.client.info()
    assert facts.signature == model.signature
    assert info.board == board.name
    assert facts.unit in ("cycles", "instructions", "seconds")
    reported, expected = device.client.model_info(), model.info
    for field in (
        "image_height",
        "image_width",
        "image_channels",
        "patch_size",
        "tokens",
        "embed_dim",
        "depth",
        "classes",
    ):
        assert getattr(reported, field) == getattr(expected, field), field
    assert reported.file_bytes == model.file_bytes
    assert reported.operators == len(model.operators)


def test_the_board_runs_the_kernels_of_its_file_or_says_why_not(device, model, board):
    told, why = device.client.model_info(), device.client.info().details.get("portable_kernels_because")
    assert told.kernels in KERNELS
    if why is not None or model.info.scale_mode is not ScaleMode.STATIC:
        assert told.kernels == "portable"
    elif board.kernels == "pie":
        assert told.kernels == "pie"


def test_a_second_handshake_changes_nothing(device, images, predictor):
    device.client.connect()
    assert np.array_equal(device.run(images[0]).output[0], predictor.run(images[:1])[0])


@pytest.mark.parametrize("pattern", ["zeros", "ones", "escape bytes", "counting", "random"])
def test_echo_returns_every_byte(client, pattern):
    room = client.hello.max_payload
    data = {
        "zeros": bytes(room),
        "ones": b"\xff" * room,
        "escape bytes": bytes([0x00, 0x01, 0xC0, 0xDB, 0xDC, 0xDD, 0x7E, 0x11, 0x13]) * (room // 9),
        "counting": bytes(i & 255 for i in range(room)),
        "random": np.random.default_rng(0).bytes(room),
    }[pattern]
    for size in (0, 1, 253, 254, 255, len(data)):
        assert client.echo(data[:size]) == data[:size]


def test_logits_are_those_of_the_prediction_bit_for_bit(device, images, predictor):
    predicted = predictor.run(images)
    for image, expected in zip(images, predicted, strict=True):
        assert device.run(image).output.reshape(-1).tolist() == expected.tolist()


def test_every_operator_computes_what_the_predictor_does(device, images, predictor, model):
    for image in images[:2]:
        expected = predictor.trace(image)
        crcs = device.run(image, crcs=True).crcs
        different = [op.name for op, o, crc in zip(model.operators, expected, crcs, strict=True) if o.crc != crc]
        assert different == []


def test_any_operator_can_be_read_back_as_a_tensor(device, images, predictor, model):
    expected = predictor.trace(images[0])
    for index in {0, len(expected) // 2, len(expected) - 1}:
        device.run(images[0], last=index)
        values, multipliers = device.read_tensor(model.operators[index].output)
        written, scales = expected[index].of(values, multipliers)
        assert np.array_equal(written, expected[index].values)
        if expected[index].multipliers is not None:
            assert np.array_equal(scales, expected[index].multipliers)


def test_the_counters_of_the_operators_add_up_to_the_run(device, images, model, steady):
    run = device.run(images[0])
    assert len(run.layers) == len(model.operators)
    assert all(counter >= 0 for counter in run.layers)
    rest = run.latency - sum(run.layers)
    assert rest >= 0
    if steady:
        assert rest <= 0.02 * run.latency


def test_repeating_an_image_changes_neither_logits_nor_an_instruction_counter(device, images, predictor):
    expected = predictor.run(images[:1])[0].tolist()
    latencies = set()
    cores = device.client.model_info().cores
    for _ in range(REPEATS if cores == 1 else REPEATS_ON_TWO_CORES):
        run = device.run(images[0])
        assert run.output.reshape(-1).tolist() == expected
        latencies.add(run.latency)
    if device.facts().unit == "instructions" and cores == 1:
        assert len(latencies) == 1


def test_the_arena_is_as_large_as_the_board_file_promises(device, board):
    assert device.client.info().arena_bytes >= board.memory.arena


def test_memory_is_as_planned(device, images, model, board):
    for image in images:
        device.run(image)
    memory, told = device.memory(), device.client.model_info()
    assert told.arena_bytes == arena_bytes(model, told.kernels)
    assert 0.7 * told.arena_bytes < memory["arena"]["measured"] <= told.arena_bytes
    if told.kernels == "portable":
        assert memory["arena"]["measured"] == told.arena_bytes, "kernels write all of their scratch"
    second = device.client.memory()
    if told.cores > 1:
        assert 0 < second.second_stack_used < second.second_stack_bytes
    assert second.second_stack_used <= second.second_stack_bytes
    assert 0 < memory["stack"]["measured"] < memory["stack"]["limit"]
    assert memory["model_bytes"] == model.file_bytes


def test_a_clean_line_needs_no_repeats(device, images):
    before = dict(zip(LINK_COUNTERS, device.link_statistics(), strict=True))
    device.run(images[0])
    after = dict(zip(LINK_COUNTERS, device.link_statistics(), strict=True))
    assert after["crc_errors"] == before["crc_errors"]
    assert after["bytes_sent"] > before["bytes_sent"] + images[0].nbytes


def test_reading_outside_a_tensor_is_refused_and_the_board_goes_on(device, images, predictor, model):
    with pytest.raises(RemoteError):
        device.client.read(Region.TENSOR, len(model.tensors), 16)
    with pytest.raises(RemoteError):
        device.client.read(Region.TENSOR, 0, 16, offset=model.tensors[0].value_bytes)
    assert device.run(images[0]).output[0].tolist() == predictor.run(images[:1])[0].tolist()


def test_a_reset_brings_the_board_back_with_its_model(device, images, predictor, model):
    if Capability.RESET not in device.client.hello.capabilities:
        pytest.skip("this board has no reset over the link")
    device.client.reset()
    assert device.facts().signature == model.signature
    assert device.run(images[1]).output[0].tolist() == predictor.run(images[1:2])[0].tolist()


def test_a_crash_of_the_firmware_is_reported_and_the_image_repeated(device, images, predictor, monkeypatch):
    if Capability.TEST_FAULT not in device.client.hello.capabilities:
        pytest.skip("this board is not armed for faults")
    notices = []
    monkeypatch.setattr(device, "_notice", notices.append)
    with contextlib.suppress(BoardFaultError):
        device.client.provoke(TestFault.INVALID_LOAD)
    assert device.run(images[1]).output[0].tolist() == predictor.run(images[1:2])[0].tolist()
    assert len(notices) == 1
    assert "crashed" in notices[0]


def test_a_firmware_that_hangs_is_restarted_by_its_watchdog_and_the_image_repeated(
    device, images, predictor, board, monkeypatch
):
    if Capability.TEST_FAULT not in device.client.hello.capabilities or board.idf is None:
        pytest.skip("this board's firmware has no watchdog, or is not armed for faults")
    if board.kind == "emulator":
        pytest.skip("the watchdogs of this emulator never bite (device/ports/esp_idf/README.md)")
    notices = []
    monkeypatch.setattr(device, "_notice", notices.append)
    device.client.provoke(TestFault.HANG)
    assert device.run(images[1]).output[0].tolist() == predictor.run(images[1:2])[0].tolist()
    assert 1 <= len(notices) <= 3
    assert "was not answered" in notices[0]
