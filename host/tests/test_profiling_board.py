# SPDX-License-Identifier: Apache-2.0
"""Profiles of the firmware on lx7sim: exact where they must be, and consistent with what the board itself says."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from board_programs import missing_tools, small_model

from tvhil.boards import flash, load_board
from tvhil.cli import main
from tvhil.errors import ExitCode, UsageError
from tvhil.evaluation.session import open_device
from tvhil.link import LinkClosedError
from tvhil.lx7sim import STALLS
from tvhil.prediction import Predictor
from tvhil.profiling.aggregate import by_function, by_line, cost_of, cycles_by_function
from tvhil.profiling.record import Recorder
from tvhil.profiling.stacks import weigh

IMAGE = np.random.default_rng(0).integers(0, 256, small_model().info.input_shape, np.uint8)


@pytest.fixture(scope="module")
def board():
    reason = missing_tools("qemu-xtensa")
    if "xtensa-lx106-elf-gcc" in reason:
        pytest.skip(reason)
    return load_board("lx7sim-portable")


def recorder(board, parameters=None):
    return Recorder(board, flash(board, small_model()), parameters)


@pytest.fixture(scope="module")
def recorded(board):
    with recorder(board) as made:
        return made.record(IMAGE), made.program


def test_the_profiled_inference_computes_the_predicted_logits(recorded):
    recording, _ = recorded
    assert np.array_equal(recording.logits, Predictor(small_model()).run(IMAGE[None])[0])


def test_the_profile_is_the_inference_that_the_board_runs(board, recorded):
    recording, _ = recorded
    with open_device(board, small_model()) as device:
        run = device.run(IMAGE)
    assert recording.latency == pytest.approx(run.latency, rel=1e-3)
    assert [name for name, _ in recording.operators] == [op.name for op in small_model().operators]
    cycles = [cycles for _, cycles in recording.operators]
    assert cycles == pytest.approx(run.layers, rel=0.01)
    assert sum(cycles) <= recording.latency <= cost_of(recording.rows).cycles
    # What is left is the protocol around the run.
    assert recording.latency > 0.97 * cost_of(recording.rows).cycles


def test_functions_and_lines_add_up_to_the_whole(recorded):
    recording, program = recorded
    whole = cost_of(recording.rows)
    for groups in (by_function(recording.rows, program), by_line(recording.rows, program)):
        assert sum(cost.cycles for _, cost in groups) == whole.cycles
        assert sum(cost.instructions for _, cost in groups) == whole.instructions == recording.totals.instructions
    assert whole.cycles == recording.totals.cycles - recording.totals.stall["sleep"]
    names = dict(by_function(recording.rows, program))
    assert {"tvit_linear_portable", "tvit_attention_portable", "tvit_layernorm_portable"} <= set(names)
    assert "(unknown)" not in names
    lines = [line for (_, line), _ in by_line(recording.rows, program) if line is not None]
    assert any(line.file.endswith("kernels/portable/linear.c") and line.text for line in lines)


def test_generated_code_has_the_name_of_the_memory_that_it_was_written_to(board):
    with recorder(load_board("lx7sim")) as made:
        recording, program = made.record(IMAGE, 0), made.program
    assert np.array_equal(recording.logits, Predictor(small_model()).run(IMAGE[None])[0])
    costs = dict(by_function(recording.rows, program))
    assert costs["tvit_pie_workspaces (generated code)"].pie_macs > 0
    assert "(unknown)" not in costs


def test_every_stall_is_booked_once(recorded):
    recording, _ = recorded
    expected = {name: n for name, n in recording.totals.stall.items() if n and name != "sleep"}
    assert cost_of(recording.rows).stalls == expected
    assert set(expected) <= set(STALLS)


def test_the_hottest_loops_have_a_schedule_of_their_mean_length(recorded):
    recording, _ = recorded
    assert len(recording.schedules) == 3
    for schedule in recording.schedules:
        assert schedule.loop.innermost
        assert 0.3 < schedule.cycles / schedule.loop.cycles_per_iteration < 3
        assert all(sum(slot.causes.values()) == slot.waited for slot in schedule.slots)


def test_stacks_lead_from_the_start_through_the_operator_to_its_kernel(recorded):
    recording, program = recorded
    samples = recording.samples
    assert samples.cut <= len(samples.sequence) / 50
    operators = {op.name for op in small_model().operators}
    running = [stack for _, stack in samples.sequence if "tvit_run" in stack[:-1]]
    assert len(running) > 0.9 * len(samples.sequence)
    for stack in running:
        assert stack[0] == "_start"
        assert stack[stack.index("tvit_run") + 1] in operators | {"observe"}
    shares = {name: sum(name in stack for stack in running) / len(running) for name in operators}
    for name, cycles in recording.operators:
        assert shares[name] == pytest.approx(cycles / recording.latency, abs=0.02)
    weights = weigh(samples, cycles_by_function(recording.rows, program))
    assert sum(weights.values()) == cost_of(recording.rows).cycles


def test_the_timeline_puts_the_operators_one_behind_the_other(recorded):
    recording, _ = recorded
    spans = recording.timeline()
    for (_, start, cycles), (_, following, _) in pairwise(spans):
        assert following == pytest.approx(start + cycles, abs=1)
    assert len(spans) == len(small_model().operators)


def test_two_recordings_are_equal(board, recorded):
    first, _ = recorded
    with recorder(board) as made:
        second = made.record(IMAGE)
    assert np.array_equal(first.rows, second.rows)
    assert first.samples.sequence == second.samples.sequence
    assert (first.latency, first.operators) == (second.latency, second.operators)


def test_slower_loads_cost_cycles_and_no_instruction(board, recorded):
    recording, _ = recorded
    with recorder(board, {"latency.load": 4}) as made:
        slower = made.record(IMAGE, schedules=0)
    # Polling the line is all that may differ.
    assert slower.totals.instructions == pytest.approx(recording.totals.instructions, rel=1e-3)
    assert cost_of(slower.rows).stalls["load"] > 2 * cost_of(recording.rows).stalls["load"]
    assert slower.latency > recording.latency
    assert slower.schedules == []


def test_a_closed_simulator_says_so(board):
    with recorder(board) as made:
        transport = made.transport
    with pytest.raises(LinkClosedError, match="closed"):
        transport.write(b"x")


def test_profile_writes_everything_it_is_asked_for(board, tmp_path, capsys):
    model = tmp_path / "m.tvit"
    model.write_bytes(small_model().file)
    files = {option: tmp_path / option for option in ("json", "flame", "speedscope", "trace")}
    options = [word for option, file in files.items() for word in (f"--{option}", str(file))]
    options += ["--board", board.name]
    assert main(["profile", "--model", str(model), *options]) == ExitCode.OK
    report = json.loads(files["json"].read_text())
    assert report["schema"] == "tvhil.profile/1"
    assert report["latency"]["unit"] == "cycles"
    assert abs(report["latency"]["relative_error"]) < 0.1
    assert all(row["measured"] > 0 for row in report["latency"]["layers"][: len(small_model().operators)])
    profile = report["profile"]
    assert profile["totals"]["macs"] == small_model().info.macs
    assert profile["totals"]["mac_per_cycle"] == pytest.approx(
        small_model().info.macs / report["latency"]["measured"]["mean"]
    )
    assert sum(row["cycles"] for row in profile["functions"]) == profile["totals"]["cycles"]
    assert sum(loop["schedule"] is not None for loop in profile["loops"]) == 3
    assert "<div" in files["flame"].read_text()
    assert json.loads(files["speedscope"].read_text())["$schema"].startswith("https://www.speedscope.app")
    assert json.loads(files["trace"].read_text())["traceEvents"]
    shown = capsys.readouterr().out
    for text in ("multiply-accumulates", "stalls", "cycles an iteration", "tvit_linear_portable"):
        assert text in shown


def test_the_loops_of_one_function_can_be_asked_for(board):
    with recorder(board) as made:
        recording = made.record(IMAGE, 2, "tvit_layernorm_portable")
        assert {schedule.loop.function for schedule in recording.schedules} == {"tvit_layernorm_portable"}
        with pytest.raises(UsageError, match="no function 'none' ran"):
            made.record(IMAGE, 2, "none")


def test_a_drawing_that_cannot_be_written_is_one_line(board, tmp_path, capsys):
    model = tmp_path / "m.tvit"
    model.write_bytes(small_model().file)
    target = tmp_path / "none" / "f.html"
    assert main(["profile", "--model", str(model), "--loops", "0", "--flame", str(target)]) == ExitCode.BAD_INPUT
    assert f"{target}: cannot be written" in capsys.readouterr().err
