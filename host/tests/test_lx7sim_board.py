# SPDX-License-Identifier: Apache-2.0
"""lx7sim as a board: the firmware of an emulated board, the same logits, the same instructions, latency in cycles."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from board_programs import missing_tools, small_model

from tvhil.boards import BoardFileError, build, flash, load_board, start
from tvhil.boards.board import boards_dir
from tvhil.boards.build import build_program
from tvhil.cli import main
from tvhil.commands import common
from tvhil.datasets.digits import embedded_digits
from tvhil.errors import ExitCode
from tvhil.evaluation.session import open_device
from tvhil.link import BoardFaultError, LinkClient
from tvhil.link.messages import TestFault as Provoke
from tvhil.lx7sim import CONFIG, SOURCE, Simulator
from tvhil.packing import pack_vit, read_model
from tvhil.packing.format import ScaleMode
from tvhil.packing.random_vit import random_vit
from tvhil.packing.trits import Codec
from tvhil.prediction import Predictor
from tvhil.profiling.simulated_board import SimulatorTransport
from tvhil.runtime import device_dir

LOCKSTEP_IMAGES = 6


BOARDS = {"lx7sim": "qemu-xtensa-pie", "lx7sim-portable": "qemu-xtensa"}  # and whose firmware they have


@pytest.fixture(scope="module", params=BOARDS)
def lx7sim(request):
    reason = missing_tools("qemu-xtensa")
    if "xtensa-lx106-elf-gcc" in reason:
        pytest.skip(reason)
    return load_board(request.param)


@pytest.fixture(scope="module")
def qemu():
    reason = missing_tools("qemu-xtensa")
    if reason:
        pytest.skip(reason)
    return load_board("qemu-xtensa")


@pytest.fixture(scope="module")
def digits():
    """The embedded model, all 360 test images `[360][8][8][1]`, and their predicted logits."""
    model = read_model(common.EMBEDDED_MODEL)
    images, _, is_test = embedded_digits()
    inputs = images[is_test].reshape(-1, *model.info.input_shape)
    assert len(inputs) == 360
    return model, inputs, Predictor(model).run(inputs)


def images_of(model, count, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (count, *model.info.input_shape), np.uint8)


def test_it_boots_the_very_file_that_qemu_boots(lx7sim):
    qemu = load_board(BOARDS[lx7sim.name])
    assert build(lx7sim).path == build(qemu).path
    assert (lx7sim.memory, lx7sim.kernels, lx7sim.start.cores) == (qemu.memory, qemu.kernels, qemu.start.cores)
    assert (lx7sim.counter.unit, qemu.counter.unit) == ("cycles", "instructions")


def test_it_names_itself_and_computes_what_is_predicted(lx7sim):
    model = small_model()
    images = images_of(model, 3)
    with open_device(lx7sim, model) as device:
        assert device.client.info().board == lx7sim.name
        assert device.client.info().clock_hz == 240_000_000
        runs = [device.run(image) for image in images]
        assert device.facts().unit == "cycles"
    assert np.array_equal(np.concatenate([run.output for run in runs]), Predictor(model).run(images))
    assert all(0 < sum(run.layers) <= run.latency for run in runs)


def with_cores(board, cores):
    return dataclasses.replace(board, start=dataclasses.replace(board.start, cores=cores))


@pytest.mark.parametrize("cores", [1, 2])
def test_cycles_are_the_same_in_every_run(lx7sim, cores):
    model = small_model()
    (image,) = images_of(model, 1)

    def cycles():
        with open_device(with_cores(lx7sim, cores), model) as device:
            return [(run.latency, run.layers) for run in (device.run(image), device.run(image))]

    first, second = cycles(), cycles()
    if cores == 1 or lx7sim.kernels == "portable":
        assert first == second
    else:  # two cores take turns of 64 cycles, and the host decides where a request falls into them
        assert np.allclose([latency for latency, _ in first], [latency for latency, _ in second], rtol=2e-3)


def test_a_crash_is_reported_and_the_board_comes_back(lx7sim):
    model = small_model()
    (image,) = images_of(model, 1)
    with open_device(lx7sim, model) as device:
        device.client.provoke(Provoke.INVALID_LOAD)
        with pytest.raises(BoardFaultError, match="10000000"):
            device.client.info()
        device.client.connect()
        assert np.array_equal(device.run(image).output, Predictor(model).run(image[None]))


def test_a_reset_initializes_the_program_again(lx7sim):
    with open_device(lx7sim, small_model()) as device:
        before = device.client.info()
        device.client.reset()
        assert device.client.info() == before


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ('firmware_of = "none"', "there is no such board"),
        ('firmware_of = "odd"', "there is no such board"),
        ("firmware_of = 3", "there is no such board"),
        ('firmware_of = "qemu-xtensa"\n[memory]\narena = 1\nstack = 1', r"remove \[memory\]"),
    ],
)
def test_a_board_file_that_borrows_a_firmware_wrongly_is_refused(tmp_path, change, text):
    (tmp_path / "qemu-xtensa.toml").write_text((boards_dir() / "qemu-xtensa.toml").read_text())
    path = tmp_path / "odd.toml"
    path.write_text(f'name = "odd"\nkind = "emulator"\nsummary = "x"\n{change}\n[counter]\nunit = "cycles"\n')
    with pytest.raises(BoardFileError, match=text):
        load_board(path)


def unit_cost_config(folder):
    """A cycle model in which every instruction takes one cycle: every parameter at its smallest, all memory SRAM."""
    known = re.findall(r"^PARAMETER\((\w+), (\w+), (\d+), \d+\)", (SOURCE / "parameters.def").read_text(), re.M)
    tables: dict[str, dict[str, int]] = {}
    for section, name, low in known:
        tables.setdefault(section, {})[name] = int(low)
    with Simulator(config=CONFIG) as simulator:
        assert {f"{s}.{n}" for s, table in tables.items() for n in table} == set(simulator.parameters())
    tables["clock"] = {"cpu_mhz": 240, "quantum": 64}
    lines = [f"[{section}]\n" + "".join(f"{n} = {v}\n" for n, v in table.items()) for section, table in tables.items()]
    for base, size in ((0x6000_0000, 0x1000_0000), (0x7000_0000, 0x0800_0000), (0x9000_0000, 0x0800_0000)):
        lines.append(f'[[region]]\nname = "all"\nstart = {base:#x}\nsize = {size:#x}\nclass = "sram"\n')
    path = folder / "unit_cost.toml"
    path.write_text("".join(lines))
    return path


def counted(client, images):
    """Counter of the run and of every operator, for each image."""
    found = []
    for image in images:
        result = client.infer(image.tobytes(), counters=True)
        found.append((result.counter, [record.counter for record in client.trace(result)]))
    return found


@pytest.mark.emulator
def test_lx7sim_and_qemu_execute_the_same_number_of_instructions_in_every_operator(qemu, digits, tmp_path):
    model, inputs, _ = digits
    images = inputs[:: len(inputs) // LOCKSTEP_IMAGES][:LOCKSTEP_IMAGES]
    image = flash(qemu, model)
    with start(qemu, image) as running:
        expected = counted(running.connect(), images)
    # The firmware counts instructions here, too: the same path through counter.c, and a cycle is an instruction.
    simulator = Simulator(
        config=unit_cost_config(tmp_path), flash=image.flash, command_line="board=lx7sim instructions=1>>0"
    )
    simulator.load(image.firmware.path)
    transport = SimulatorTransport(simulator, 240e6)
    with LinkClient(transport, seed=0) as client:
        client.connect()
        assert counted(client, images) == expected
    assert len({total for total, _ in expected}) > 1, "the images must differ in what they execute"


def computed(board, model, inputs):
    with open_device(board, model) as device:
        return np.concatenate([device.run(image).output for image in inputs])


def test_native_computes_the_predicted_logits_of_all_digits(digits):
    model, inputs, expected = digits
    assert np.array_equal(computed(load_board("native"), model, inputs), expected)


def test_lx7sim_computes_the_predicted_logits_of_all_digits(lx7sim, digits):
    model, inputs, expected = digits
    assert np.array_equal(computed(lx7sim, model, inputs), expected)


@pytest.mark.emulator
def test_qemu_computes_the_predicted_logits_of_all_digits(qemu, digits):
    model, inputs, expected = digits
    assert np.array_equal(computed(qemu, model, inputs), expected)


# --- two cores ---------------------------------------------------------------------------------------------------

MODELS = {
    "two layers, three heads": {"embed_dim": 48, "heads": 3, "depth": 2, "mlp_dim": 100},
    "odd sizes, mean pool": {
        "image_size": (21, 21), "channels": 3, "patch_size": 7, "embed_dim": 36, "heads": 3, "depth": 1, "mlp_dim": 70,
        "classes": 13, "prefix_tokens": 0, "mean_pool": True,
    },
    "per token, one core": {"embed_dim": 32, "depth": 1, "scale_mode": ScaleMode.PER_TOKEN},
}  # fmt: skip


def computed_by(board, cores, model, images):
    """Logits and the CRC of every operator's output, by so many cores, and the cycles."""
    with open_device(with_cores(board, cores), model) as device:
        told, shared = device.client.info().cores, device.client.model_info().cores
        runs = [device.run(image, crcs=True) for image in images]
    assert told == cores
    assert shared == (cores if model.info.scale_mode is ScaleMode.STATIC else 1)
    return [(run.output.tolist(), run.crcs) for run in runs], sum(run.latency for run in runs)


def check_cores(board, model, count, seed=4):
    """Both numbers of cores compute what is predicted, in every operator; the cycles of one and of two."""
    images = images_of(model, count, seed)
    predictor = Predictor(model)
    expected = [(predictor.run(image[None]).tolist(), [o.crc for o in predictor.trace(image)]) for image in images]
    (one, cycles), (two, cycles_of_two) = (computed_by(board, cores, model, images) for cores in (1, 2))
    assert one == expected
    assert two == expected
    return cycles, cycles_of_two


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("shape", MODELS)
def test_one_core_and_two_compute_the_same_in_every_operator(shape, codec):
    check_cores(load_board("lx7sim"), read_model(pack_vit(random_vit(31, **MODELS[shape]), codec)), 2)


def test_two_cores_take_little_more_than_half_the_time(digits):
    cycles, cycles_of_two = check_cores(load_board("lx7sim"), digits[0], 2)
    assert 1.6 < cycles / cycles_of_two <= 2


@pytest.mark.emulator
def test_one_core_and_two_compute_the_same_where_vector_instructions_trap(qemu):
    check_cores(load_board("qemu-xtensa-pie"), small_model(), 1)


@pytest.mark.parametrize("name", ["lx7sim-portable", pytest.param("qemu-xtensa", marks=pytest.mark.emulator)])
def test_a_fault_of_the_second_core_is_reported_as_one_of_the_first(name, qemu):
    device, source = device_dir(), "ports/xtensa_qemu/tests/second_core_fault_test.c"
    files = sorted({file for pattern in qemu.firmware.sources for file in device.glob(pattern)})
    firmware = build_program(qemu, "second_core_fault_test", [*files, device / source])
    board = with_cores(load_board(name), 2)
    model = small_model()
    (image,) = images_of(model, 1)
    with start(board, flash(board, model, firmware)) as running:
        client = running.connect()
        for _ in range(2):
            with pytest.raises(
                BoardFaultError, match=r"at 0x6\w+, address 0x10000000 in operator 3 on core 1"
            ) as caught:
                client.infer(image.tobytes())
            assert (caught.value.fault.core, caught.value.fault.operator) == (1, 3)
            client.reset()  # and the second core starts again
        assert client.info().cores == 2


def test_an_evaluation_on_it_reports_cycles(lx7sim, digits, tmp_path):
    file = tmp_path / "r.json"
    assert main(["run-eval", "digits", "--board", lx7sim.name, "--limit", "10", "--json", str(file)]) == ExitCode.OK
    report = json.loads(file.read_text())
    assert report["latency"]["unit"] == "cycles"
    assert report["latency"]["measured"]["mean"] > report["model"]["parameters"] / 16
    assert report["logits"]["bit_exact"] == report["dataset"]["images"] == 10
    assert (report["board"]["name"], report["board"]["kind"]) == (lx7sim.name, "emulator")
