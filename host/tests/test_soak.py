# SPDX-License-Identifier: Apache-2.0
"""Soaks find what changes over time, and nothing where nothing does; long evaluations need no more memory."""

import itertools
import json
import tracemalloc

import pytest
from evaluation_fakes import FakeDevice, random_inputs, small_model

from tvhil.cli import main
from tvhil.errors import BoardError, ExitCode
from tvhil.evaluation.journal import Journal
from tvhil.evaluation.run import Evaluation
from tvhil.evaluation.soak import MOST_POINTS, Soak, draw_timeline
from tvhil.packing import pack_vit
from tvhil.packing.random_vit import random_vit
from tvhil.prediction import Predictor

IMAGES = 4


class WornDevice(FakeDevice):
    """A board that can slow down, use more stack or heap, and get warm."""

    def __init__(self, model, slower=0.0, stack=0, heap=0, warmer=None, **options):
        super().__init__(model, **options)
        self.slower, self.stack, self.heap, self.warmer = slower, stack, heap, warmer

    def run(self, image, **options):
        number = self.runs
        result = super().run(image, **options)
        return type(result)(result.output, 1000.0 * (1 + self.slower * number), None, result.crcs)

    def memory(self):
        stack = {"measured": 300 + self.stack * self.runs, "limit": 4096}
        return {"stack": stack, "heap": 100 + self.heap * self.runs}

    def temperature(self):
        return None if self.warmer is None else 40 + self.warmer * self.runs


def soak(device, seconds=20, watch=None):
    """On a clock on which every look takes a tenth of a second."""
    ticks = itertools.count()
    found = Soak(device, Predictor(device.model), random_inputs(device.model, IMAGES), lambda: next(ticks) / 10)
    found.run(seconds, watch)
    return found


def test_a_board_that_does_not_change_gives_no_finding():
    found = soak(WornDevice(small_model()))
    result = found.to_json()
    assert (result["findings"], result["mismatches"], result["first_mismatch"]) == ([], 0, None)
    assert result["runs"] == sum(point["runs"] for point in result["timeline"]) > 2 * IMAGES
    assert 10 < len(result["timeline"]) <= MOST_POINTS
    assert result["latency"] == {"unit": "instructions", "growth": 0.0}
    assert result["temperature_c"] is None
    json.dumps(result, allow_nan=False)


def test_one_changed_bit_in_a_long_run_is_found_with_its_time_and_place():
    def corrupt(run, outputs):
        if run == 37:
            outputs[-1].values[0, 2] ^= 1

    result = soak(WornDevice(small_model(), corrupt=corrupt)).to_json()
    assert result["mismatches"] == 1
    assert result["first_mismatch"]["run"] == 38
    assert result["first_mismatch"]["image"] == f"image {37 % IMAGES}"
    assert "does not repeat itself" in result["first_mismatch"]["divergence"]["reason"]
    assert [point["mismatches"] for point in result["timeline"]].count(1) == 1
    assert "1 of" in result["findings"][0]


@pytest.mark.parametrize(
    ("worn", "finding"),
    [
        ({"slower": 1e-3}, "latency grew by"),
        ({"stack": 1}, "the deepest stack grew from"),
        ({"heap": 1}, "the heap in use grew from"),
    ],
)
def test_growing_latency_stack_and_heap_are_findings(worn, finding):
    findings = soak(WornDevice(small_model(), **worn)).findings
    assert len(findings) == 1
    assert finding in findings[0]


def test_the_temperature_is_told_where_the_board_reports_it():
    result = soak(WornDevice(small_model(), warmer=0.01)).to_json()
    assert 40 <= result["temperature_c"]["min"] < result["temperature_c"]["max"]
    assert result["timeline"][3]["temperature_c"] is not None


def test_a_long_soak_has_a_short_time_line():
    assert len(soak(WornDevice(small_model()), seconds=1000).points) <= MOST_POINTS


def test_every_image_runs_twice_however_short_the_time():
    assert soak(WornDevice(small_model()), seconds=0.01).runs == 2 * IMAGES


def test_a_board_that_dies_leaves_what_was_measured():
    device = WornDevice(small_model(), dead_from=20)
    ticks = itertools.count()
    found = Soak(device, Predictor(device.model), random_inputs(device.model, IMAGES), lambda: next(ticks) / 10)
    with pytest.raises(BoardError):
        found.run(100)
    assert found.to_json()["runs"] == 20


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_time_line_is_drawn(suffix, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install 'tvhil[plot]')")
    result = soak(WornDevice(small_model(), warmer=0.01)).to_json()
    draw_timeline(result, "m on b", tmp_path / f"soak{suffix}")
    start = (tmp_path / f"soak{suffix}").read_bytes()[:8]
    assert start == b"\x89PNG\r\n\x1a\n" if suffix == ".png" else start.startswith(b"<?xml")


def test_the_command_writes_json_and_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install 'tvhil[plot]')")
    file, out = tmp_path / "m.tvit", tmp_path / "soak.json"
    file.write_bytes(pack_vit(random_vit(21, patch_size=2, depth=1)))
    arguments = ["soak", "--board", "native", "--model", str(file), "--minutes", "0.03", "--json", str(out)]
    assert main([*arguments, "--faults", "count=10,kinds=flip+reset"]) in (
        ExitCode.OK,
        ExitCode.BOARD,
    )  # a busy machine
    result = json.loads(out.read_text())
    assert result["mismatches"] == 0
    assert result["runs"] >= 32
    assert result["latency"]["unit"] == "seconds"
    assert result["timeline"][0]["stack"] > 0
    assert (tmp_path / "soak.png").stat().st_size > 1000
    assert "soak.png" in capsys.readouterr().out
    assert main(["soak", "--board", "native", "--minutes", "0"]) == ExitCode.USAGE
    assert main([*arguments, "--picture", "x.jpeg"]) == ExitCode.USAGE


def test_an_evaluation_needs_no_more_memory_for_more_images(tmp_path):
    model = small_model()
    inputs = random_inputs(model, 400)
    inputs = [type(one)(i, one.id, one.label, one.load) for i, one in enumerate(inputs * 5)]
    sizes = {}

    def finished(summary, row):
        if summary.images in (500, 2000):
            sizes[summary.images] = tracemalloc.get_traced_memory()[0]

    class Forgetful(FakeDevice):
        def run(self, image, **options):
            self.images.clear()
            return super().run(image, **options)

    with Journal.create(tmp_path / "j", {"model": "m"}) as journal:
        evaluation = Evaluation(model, Predictor(model), journal)
        tracemalloc.start()
        try:
            evaluation.run(Forgetful(model), inputs, finished)
        finally:
            tracemalloc.stop()
    # 50,000 images at this slope would need less than 5 MB.
    assert (sizes[2000] - sizes[500]) / 1500 * 50_000 < 5e6
