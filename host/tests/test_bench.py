# SPDX-License-Identifier: Apache-2.0
"""The bench: what is derived is right, what cannot be compared is refused, nothing measured is lost."""

from __future__ import annotations

import json
from contextlib import contextmanager

import numpy as np
import pytest
from evaluation_fakes import FakeDevice, small_model
from model_files import small_file

from tvhil.boards import load_board
from tvhil.cli import main
from tvhil.errors import BoardError, ExitCode, InputError, MismatchError, UsageError
from tvhil.evaluation.device import Run
from tvhil.models import model_config
from tvhil.packing.format import OpKind
from tvhil.packing.trits import Codec
from tvhil.profiling import benchmark
from tvhil.profiling.benchmark import (
    Width,
    block_model,
    changed_parameters,
    compare,
    measure,
    measure_kernels,
    operator_rows,
    parameters,
    put_beside,
    read_bench,
    untrained_model,
)
from tvhil.profiling.published import PUBLISHED

SMALL = Width("small", 32, 2, 96)


class CountingDevice(FakeDevice):
    """A board whose operators cost exactly: each matrix its decoding, each row its products, each GELU its look-up."""

    DECODE, ROW, LOOK_UP = 3, 5, 7

    def run(self, image, **options):
        run = super().run(image, **options)
        layers = []
        for op in self.model.operators:
            cost = 11.0
            if op.kind is OpKind.LINEAR:
                weights = op["n"] * op["k"]
                cost = (self.DECODE + op["codec"]) * weights + self.ROW * weights * op["rows"]
                cost += self.LOOK_UP * op["rows"] * op["n"] if op.has_table else 0
            layers.append(cost)
        return Run(run.output, sum(layers), layers)


def opened(kind=CountingDevice, **options):
    @contextmanager
    def open_device(model):
        yield kind(model, **options)

    return open_device


def test_decoding_and_gelu_are_what_two_measurements_differ_by():
    rows, facts = measure_kernels(opened(), SMALL, images=1, size=64)
    assert facts.unit == "instructions"
    decode = {
        (row["shape"]["k"], row["shape"]["n"], row["shape"]["codec"]): row for row in rows if row["kernel"] == "decode"
    }
    for k, n in ((32, 32), (32, 96), (96, 32)):
        for codec in Codec:
            row = decode[k, n, codec.label]
            # fc1 also looks up a table for each row, which a line through two row counts takes out as well.
            assert row["cost"] == pytest.approx((CountingDevice.DECODE + codec) * k * n)
            assert row["per_value"] == pytest.approx(CountingDevice.DECODE + codec)
            assert row["derived"]
    (gelu,) = (row for row in rows if row["kernel"] == "gelu")
    assert gelu["per_value"] == pytest.approx(CountingDevice.LOOK_UP)


def test_kernels_have_their_shapes_and_multiply_accumulates():
    model = block_model(SMALL, Codec.BASE3, (64, 64), pool=False)
    rows = {row["id"]: row for row in operator_rows(measure(opened(), model, 1))}
    assert sum(row["macs"] * row["operators"] for row in rows.values()) == model.info.macs
    square = rows["linear_i8 rows=17 k=32 n=32 codec=base3"]
    assert (square["operators"], square["macs"], square["values"]) == (3, 17 * 32 * 32, 17 * 32)
    assert square["per_mac"] == pytest.approx(square["cost"] / square["macs"])
    assert square["mac_per_unit"] == pytest.approx(1 / square["per_mac"])
    assert rows["attention tokens=17 heads=2 head_dim=16"]["macs"] == 2 * 17 * 17 * 32
    assert rows["layernorm rows=17 n=32"]["per_mac"] is None


def test_what_the_same_kernel_costs_otherwise_is_put_beside_it_whatever_its_codec():
    measured, _ = measure_kernels(opened(), SMALL, images=1, size=64, codec=Codec.GAPS)
    rows = {row["id"]: row for row in measured}
    others, _ = measure_kernels(opened(), SMALL, images=1, size=64, decoding=False)
    assert not any(row["kernel"] == "decode" for row in others)
    put_beside(measured, others, "portable")
    row = rows["linear_i8 rows=17 k=32 n=32 codec=gaps"]
    other = next(other for other in others if other["id"] == "linear_i8 rows=17 k=32 n=32 codec=base3")
    assert row["cost"] != other["cost"]
    assert row["portable"] == {
        "cost": other["cost"],
        "mac_per_unit": other["mac_per_unit"],
        "ratio": other["cost"] / row["cost"],
    }
    assert all(row["portable"] is None for row in measured if row["derived"])
    assert all(row["portable"] is not None for row in measured if not row["derived"])


def test_an_architecture_is_planned_for_the_board_that_is_simulated():
    config = model_config("deit_tiny", image_size=64)
    whole = untrained_model("deit_tiny", config, Codec.GAPS)
    planned = untrained_model("deit_tiny", config, Codec.GAPS, whole.plan.arena_bytes - 16)
    assert planned.plan.arena_bytes < whole.plan.arena_bytes
    assert planned.operators[0]["codec"] == Codec.GAPS


def test_published_figures_have_a_source_and_are_those_of_silicon():
    assert all(figure.source and figure.what and figure.memory for figure in PUBLISHED)
    best = max(figure.mac_per_cycle for figure in PUBLISHED if figure.kind == "operator")
    assert best == pytest.approx(6.63, abs=0.01)
    two = next(figure for figure in PUBLISHED if figure.cores == 2)
    assert two.cycles / 240e3 == pytest.approx(867)
    assert {figure.to_json()["measured_on"] for figure in PUBLISHED} == {"silicon"}


def test_the_simulated_board_has_one_to_stand_for_and_one_to_be_compared_with():
    board = load_board("lx7sim")
    assert load_board(board.stands_for).kind == "silicon"
    assert load_board(board.reference).kernels == "portable"
    assert (board.kernels, board.start.cores) == ("pie", 2)
    assert load_board(board.reference).cycle_model == board.cycle_model


def test_the_kernels_of_the_default_are_those_of_deit():
    shapes = {(w.name, w.embed_dim, w.heads, w.mlp_dim) for w in benchmark.WIDTHS}
    for name, width, heads, mlp in shapes:
        config = model_config(name)
        assert (config.embed_dim, config.num_heads, int(config.embed_dim * config.mlp_ratio)) == (width, heads, mlp)


def test_an_untrained_model_has_the_shape_of_its_architecture():
    model = untrained_model("deit_tiny", model_config("deit_tiny", image_size=32))
    assert (model.info.embed_dim, model.info.depth, model.info.heads, model.info.tokens) == (192, 12, 3, 5)
    assert model.info.classes == 1000


def test_a_kernel_that_computes_something_else_is_not_measured():
    def corrupt(run, outputs):
        outputs[-1].values[0, 0] += 1

    with pytest.raises(MismatchError, match="2 of 2 images are not bit-exact"):
        measure(opened(FakeDevice, corrupt=corrupt), small_model(), 2)


def bench(unit="cycles", values=None, cost=10.0, **ids):
    content = {
        "schema": benchmark.SCHEMA,
        "latency": {"unit": unit},
        "board": {"name": "b"},
        "commit": None,
        "parameters": {"sha256": json.dumps(values), "values": values} if values else None,
        "kernels": [{"id": name, "cost": cost * factor} for name, factor in ids.items()],
        "models": [],
    }
    return json.loads(json.dumps(content))


def test_the_comparison_has_ratios_and_their_geometric_mean():
    result = compare(bench(a=1, b=1, gone=1), bench(a=2, b=8, new=1))
    assert result.rows == (("a", 10, 20), ("b", 10, 80))
    assert result.mean_ratio == pytest.approx(4)
    assert result.missing == ("gone", "new")


@pytest.mark.parametrize("damage", ["kernels", "models", "latency", "parameters"])
def test_a_bench_that_lacks_what_is_compared_is_refused_with_its_name(damage, tmp_path):
    path = tmp_path / "b.json"
    path.write_text(json.dumps(bench(a=1)))
    assert benchmark.read_bench(path)["kernels"]
    path.write_text(json.dumps({key: value for key, value in bench(a=1).items() if key != damage}))
    with pytest.raises(InputError, match=f"b.json: a damaged result.*{damage}"):
        benchmark.read_bench(path)


def test_another_unit_is_not_compared():
    with pytest.raises(UsageError, match="one bench counts cycles, the other seconds"):
        compare(bench("cycles", a=1), bench("seconds", a=1))


def test_another_cycle_model_is_not_compared_and_the_changed_parameter_is_named():
    values = {"latency": {"load": 2, "div": 13}, "flash": {"mhz": 80}}
    changed = {"latency": {"load": 3, "div": 13}, "flash": {"mhz": 80}}
    with pytest.raises(UsageError, match=r"the cycle models differ \(latency.load\)"):
        compare(bench(values=values, a=1), bench(values=changed, a=1))
    assert compare(bench(values=values, a=1), bench(values=values, a=1)).mean_ratio == 1
    # Cycles of silicon, which has no parameters, may be held against simulated ones.
    assert compare(bench(values=values, a=1), bench(a=1)).mean_ratio == 1


def test_models_of_the_same_name_but_another_content_are_not_compared():
    before, after = bench(), bench()
    for content, signature in ((before, "0" * 64), (after, "1" * 64)):
        content["models"] = [{"id": "m", "signature": signature, "latency": {"measured": {"mean": 1.0}}}]
    assert compare(before, after).rows == ()


def test_changed_parameters_are_named_wherever_they_are():
    before = {"a": {"x": 1, "y": 2}, "b": 1, "gone": 0}
    assert list(changed_parameters(before, {"a": {"x": 1, "y": 3}, "b": 1, "new": 0})) == ["a.y", "gone", "new"]


def test_the_hash_of_parameters_does_not_see_comments_or_order(tmp_path):
    files = {
        "a": "[x]\none = 1\ntwo = 2\n",
        "b": "# why\n[x]\ntwo = 2\none = 1 # said who\n",
        "c": "[x]\none = 1\ntwo = 3\n",
    }
    hashes = {}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        hashes[name] = parameters(tmp_path / name)["sha256"]
    assert hashes["a"] == hashes["b"] != hashes["c"]
    assert parameters(None) is None
    assert parameters(load_board("lx7sim").cycle_model)["values"]["clock"]["cpu_mhz"] == 240


@pytest.mark.parametrize("content", ["", "[1]", '{"schema": "tvhil.report/1"}', "{"])
def test_what_is_no_bench_is_refused(tmp_path, content):
    path = tmp_path / "b.json"
    path.write_text(content)
    with pytest.raises(InputError, match=str(path)):
        read_bench(path)


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "m.tvit"
    path.write_bytes(small_file(3))
    return path


@pytest.fixture
def fake_board(monkeypatch):
    """`open_device` with a fake, whatever the board."""
    state = {"kind": CountingDevice}

    @contextmanager
    def open_device(board, model, **options):
        yield state["kind"](model)

    monkeypatch.setattr("tvhil.evaluation.session.open_device", open_device)
    monkeypatch.setattr(benchmark, "WIDTHS", (SMALL,))
    return state


def test_a_bench_writes_its_keys_and_compares_with_itself(fake_board, model_file, tmp_path, capsys):
    file = tmp_path / "b.json"
    assert run("bench", "--board", "qemu-xtensa", "--kernels", "--model", model_file, "--json", file) == ExitCode.OK
    content = json.loads(file.read_text())
    assert set(content) == {
        *(
            "schema",
            "tool_version",
            "created",
            "commit",
            "board",
            "latency",
            "parameters",
            "complete",
            "kernels",
            "models",
            "published",
        ),
    }
    assert content["published"] == [], "of another machine"
    assert content["complete"] and content["board"]["name"] == "qemu-xtensa" and len(content["models"]) == 1
    assert set(content["models"][0]["latency"]) == {"unit", "measured", "predicted", "relative_error", "layers"}
    assert content["models"][0]["logits"] == {"bit_exact": 1, "images": 1}
    capsys.readouterr()
    assert run("bench", "--compare", file, "--with", file) == ExitCode.OK
    assert "geometric mean" in capsys.readouterr().out


def test_a_bench_of_the_simulated_chip_has_both_numbers_of_cores_portable_kernels_and_what_others_published(
    fake_board, model_file, tmp_path, capsys
):
    file = tmp_path / "b.json"
    assert run("bench", "--board", "lx7sim", "--kernels", "--model", model_file, "--json", file) == ExitCode.OK
    content = json.loads(file.read_text())
    assert (content["board"]["measured_on"], content["board"]["stands_for"]) == ("simulated", "esp32s3")
    measured = [row for row in content["kernels"] if not row["derived"]]
    assert measured and all(row["two_cores"]["ratio"] == 1 for row in measured), "the fake board has one speed"
    assert all(row["portable"]["cost"] > 0 for row in measured)
    (model,) = content["models"]
    assert model["cores"] == 2
    assert model["one_core"]["ratio"] == model["portable"]["ratio"] == 1
    assert len(content["published"]) == len(PUBLISHED)
    out = capsys.readouterr().out
    assert "simulated" in out and "silicon" in out and "ESP-DL" in out
    alone = tmp_path / "a.json"
    assert run("bench", "--board", "lx7sim", "--alone", "--model", model_file, "--json", alone) == ExitCode.OK
    assert "portable" not in json.loads(alone.read_text())["models"][0]


def test_a_bench_that_is_stopped_keeps_what_it_has_measured(fake_board, model_file, tmp_path, capsys):
    class Second(CountingDevice):
        seen = 0

        def run(self, image, **options):
            Second.seen += 1
            if Second.seen > 1:
                raise BoardError("the board stopped answering")
            return super().run(image, **options)

    fake_board["kind"] = Second
    file = tmp_path / "b.json"
    code = run("bench", "--board", "qemu-xtensa", "--model", model_file, "--model", model_file, "--json", file)
    assert code == ExitCode.BOARD
    content = json.loads(file.read_text())
    assert (content["complete"], len(content["models"])) == (False, 1)
    assert str(file) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["bench"], "name a board"),
        (["bench", "--board", "qemu-xtensa", "--images", "0"], "at least 1"),
        (["bench", "--board", "qemu-xtensa", "--model", "deit_tinny"], "neither a .tvit file, nor digits"),
        (["bench", "--with", "x.json"], "--compare"),
        (["profile", "--board", "native"], "has no cycle model"),
        (["profile", "--loops", "-1"], "numbers of rows"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, text, tmp_path, capsys):
    if "--with" in arguments:
        path = tmp_path / "x.json"
        path.write_text(json.dumps(bench(a=1)))
        arguments = [str(path) if word == "x.json" else word for word in arguments]
    assert main(arguments) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_an_earlier_bench_in_another_unit_is_refused_before_anything_is_measured(tmp_path, capsys):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(bench("seconds", a=1)))
    assert run("bench", "--board", "qemu-xtensa", "--compare", path) == ExitCode.USAGE
    assert "one bench counts seconds, the other instructions" in capsys.readouterr().err


def test_kernels_are_measured_on_a_real_process(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "WIDTHS", (SMALL,))
    file = tmp_path / "b.json"
    assert run("bench", "--board", "native", "--kernels", "--images", "3", "--json", file) == ExitCode.OK
    content = json.loads(file.read_text())
    assert content["latency"]["unit"] == "seconds"
    assert content["parameters"] is None
    costs = np.array([row["cost"] for row in content["kernels"] if not row["derived"]])
    assert (costs > 0).all()
