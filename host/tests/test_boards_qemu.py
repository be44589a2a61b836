# SPDX-License-Identifier: Apache-2.0
"""The xtensa_qemu port on the distribution's emulator."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from board_programs import Program, emulated, small_model  # noqa: F401 - a fixture

from tvhil.boards import flash, start
from tvhil.errors import BoardError
from tvhil.evaluation.link_device import LinkDevice
from tvhil.link import BoardFaultError, LinkError, RemoteError
from tvhil.link.messages import TestFault as Provoke
from tvhil.prediction import Predictor
from tvhil.prediction.memory import arena_bytes

pytestmark = pytest.mark.emulator
M32, M64 = 1 << 32, 1 << 64


@pytest.fixture
def blank_flash(emulated, tmp_path):  # noqa: F811
    path = tmp_path / "flash.img"
    with path.open("wb") as file:
        file.truncate(emulated.memory.flash)
    return path


@pytest.fixture(scope="module")
def image(emulated):  # noqa: F811
    return flash(emulated, small_model())


def _images(count=3):
    return np.random.default_rng(5).integers(0, 256, (count, *small_model().info.input_shape), np.uint8)


def test_the_counter_is_exact_to_the_instruction_before_and_after_sleeps(emulated, blank_flash):  # noqa: F811
    overheads = set()
    with Program(emulated, "counter_test", blank_flash) as program:
        for sleep in range(4):
            rows = [line.split() for line in program.lines("asleep")]
            assert len(rows) > 60
            overheads |= {int(count, 16) - 2 * int(rounds, 16) for _, rounds, count in rows}
            program.send(b"wake"[: sleep + 1])
    assert len(overheads) == 1, "reading the counter costs the same every time, so every loop was counted exactly"


def _signed(value, bits):
    return value - (1 << bits) if value >> (bits - 1) else value


def _divide(a, b):
    quotient = abs(a) // abs(b)
    quotient = quotient if (a < 0) == (b < 0) else -quotient
    return quotient, a - quotient * b


def test_arithmetic_and_memory_functions_are_right(emulated, blank_flash):  # noqa: F811
    with Program(emulated, "library_test", blank_flash) as program:
        lines = program.lines("end")
    assert all(line.startswith("arithmetic ") for line in lines), [x for x in lines if not x.startswith("arith")][:5]
    assert len(lines) == 200
    for line in lines:
        x, y, *results = (int(word, 16) for word in line.split()[1:])
        sx, sy = _signed((x << 1) % M64, 64), _signed((y << 1 | 1) % M64, 64)
        a, b = x % M32, y % M32 | 1
        sa, sb = _signed(a, 32), _signed(b, 32)
        expected = [x * y, x // y, x % y, *_divide(sx, sy), a * b, sa * sb, a // b, a % b]
        assert results == [value % M64 for value in expected] + [value % M32 for value in _divide(sa, sb)]


def test_logits_are_the_predicted_ones(emulated, image):  # noqa: F811
    images = _images()
    with start(emulated, image) as running:
        device = LinkDevice(running.connect(), small_model())
        outputs = [device.run(one).output for one in images]
        assert device.memory()["arena"]["measured"] == arena_bytes(small_model(), emulated.kernels)
        assert running.details["emulator"].startswith("QEMU")
    assert np.array_equal(np.stack(outputs)[:, 0], Predictor(small_model()).run(images))


def test_instruction_counts_are_the_same_in_every_run(emulated, image):  # noqa: F811
    found = []
    for _ in range(2):
        with start(emulated, image) as running:
            client = running.connect()
            assert client.info().latency_unit == "instructions"
            device = LinkDevice(client, small_model())
            runs = [device.run(one) for one in _images()]
            found.append([(run.latency, tuple(run.layers)) for run in runs])
    assert found[0] == found[1]
    assert all(latency >= sum(layers) > 0 for latency, layers in found[0])


def test_a_fault_is_reported_with_cause_and_address_and_the_board_comes_back(emulated, image):  # noqa: F811
    with start(emulated, image) as running:
        client = running.connect()
        invalid = 0x10000000
        client.provoke(Provoke.INVALID_LOAD)
        with pytest.raises(BoardFaultError) as caught:
            client.info()
        assert "LoadStorePIFAddrError" in str(caught.value)
        assert f"{invalid:x}" in str(caught.value)
        client.connect()
        output = LinkDevice(client, small_model()).run(_images(1)[0]).output
    assert np.array_equal(output, Predictor(small_model()).run(_images(1)))


def test_an_empty_flash_is_refused_by_the_board_and_it_still_answers(emulated, image, blank_flash):  # noqa: F811
    with start(emulated, dataclasses.replace(image, flash=blank_flash)) as running:
        client = running.connect()
        assert client.info().board == emulated.name
        with pytest.raises(RemoteError, match="no model"):
            client.model_info()


def test_an_emulator_that_refuses_its_flash_is_told_in_one_line(emulated, image, tmp_path):  # noqa: F811
    short = tmp_path / "short.img"
    short.write_bytes(bytes(1 << 20))
    with start(emulated, dataclasses.replace(image, flash=short)) as running:
        with pytest.raises(BoardError, match=r"the emulator ended \(exit code 1\).*requires 134217728 bytes") as caught:
            running.connect()
        assert not isinstance(caught.value, LinkError)
        assert "\n" not in str(caught.value)
