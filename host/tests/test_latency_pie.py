# SPDX-License-Identifier: Apache-2.0
"""The cost model of the PIE kernels: amounts of work, lines of flash, whole models against lx7sim, the board
file that holds it, slower ways."""

import json
import re
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import drawn_options

from tvhil.boards import load_board
from tvhil.boards.board import checkout
from tvhil.cli import main
from tvhil.evaluation.session import open_device
from tvhil.packing import pack_vit, read_model
from tvhil.packing.format import OpKind, ScaleMode
from tvhil.packing.random_vit import random_vit
from tvhil.packing.schedule import Schedule
from tvhil.packing.trits import Codec
from tvhil.prediction import pie_work
from tvhil.prediction.flash_reads import Cache, CacheShape, flash_lines, patches_of
from tvhil.prediction.slow_paths import slow_paths
from tvhil.prediction.work import Matrices, model_work, pie_phases

BOARD_FILE = checkout() / "boards" / "esp32s3.toml"
CACHE = CacheShape(65536, 64, 8)


@pytest.fixture(scope="module")
def cost():
    return load_board("esp32s3").cost


def model_of(codec=Codec.GAPS, schedule=None, seed=3, **options):
    return read_model(pack_vit(random_vit(seed, **options), codec, schedule=schedule or Schedule()))


def run_twice(board, cores, model):
    """An inference that is not the first."""
    image = np.random.default_rng(4).integers(0, 256, model.info.input_shape, np.uint8)
    with open_device(replace(board, start=replace(board.start, cores=cores)), model) as device:
        device.run(image)
        return device.run(image)


# --- amounts -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 300), st.sampled_from(list(Codec)), st.booleans(), st.integers(0, 99))
def test_both_cores_together_multiply_every_row_once(n, k, codec, as_row, seed):
    trits = np.random.default_rng(seed).integers(-1, 2, (n, k)).astype(np.int8)
    rows = pie_work.Rows(k, codec, pie_work.row_instructions(trits), 3, "i8", as_row)
    (alone,), (both,) = pie_work.linear(rows, 1), pie_work.linear(rows, 2)
    together = pie_work.total(both)
    for name in ("tiles", f"rows_{codec.label}", "instructions", "blocks_i8"):
        assert together[name] == alone[0][name]
    assert together[f"rows_{codec.label}"] == n
    assert together["instructions"] >= 3 * np.count_nonzero(trits)


@given(st.integers(1, 300), st.integers(1, 4), st.sampled_from([16, 20, 48, 64]))
def test_both_cores_together_attend_every_block_once(tokens, heads, head_dim):
    amounts = [
        pie_work.total(part for phase in pie_work.attention(tokens, heads, head_dim, parts) for part in phase)
        for parts in (1, 2)
    ]
    for found in amounts:
        assert found.get("wide_blocks", 0) + found.get("narrow_blocks", 0) == heads * pie_work.blocks_of(tokens)
        assert found.get("narrow_blocks", 0) == heads * (0 < tokens % 16 <= 8)
        assert found["turned_blocks"] == heads * pie_work.blocks_of(tokens)


@given(st.integers(1, 300), st.integers(8, 600))
def test_both_cores_together_normalize_every_channel_once(rows, n):
    (alone,), (both,) = pie_work.layernorm(n, rows, 1), pie_work.layernorm(n, rows, 2)
    assert pie_work.total(both)["channels"] == alone[0]["channels"] == n * pie_work.blocks_of(rows)


@settings(max_examples=30)
@given(drawn_options(), st.sampled_from(list(Codec)))
def test_patches_are_gathered_as_many_at_a_time_as_the_plan_has_room_for(options, codec):
    model = model_of(codec, **options | {"scale_mode": ScaleMode.STATIC})
    op = model.operators[0]
    assert op.kind is OpKind.PATCH_EMBED
    assert model.plan.scratches[0][1] == -(-patches_of(model).together(op["n"]) * op["k"] * 16 // 16) * 16


def test_instructions_of_base3_are_the_trits_that_are_not_zero_and_what_fills_short_rows():
    trits = np.zeros((5, 100), np.int8)
    trits[1, [3]], trits[2, [3, 5]], trits[3, [3, 5, 9]], trits[4, ::2] = 1, 1, -1, 1
    assert pie_work.row_instructions(trits).tolist() == [4, 3, 4, 3, 50]


# --- flash -------------------------------------------------------------------------------------------------------


def test_a_line_is_read_from_flash_once_as_long_as_it_stays_in_the_cache():
    cache = Cache(CacheShape(1024, 64, 2))  # 8 sets
    assert cache.read((0, 1024)) == 16
    assert cache.read((0, 1024)) == cache.read((10, 11)) == 0
    assert cache.read((1024, 1088)) == 1  # in the place of the line used longest ago
    assert cache.read((512, 576)) == 1
    assert cache.read((0, 64)) == 1


def test_a_model_smaller_than_the_cache_is_not_read_again_and_a_larger_one_once_an_inference():
    def lines(model, parts):
        work = model_work(model, "pie", parts, CACHE)
        return sum(sum(map(sum, one.lines)) for one in work)

    small = model_of(depth=1)
    assert lines(small, 1) == lines(small, 2) == 0
    large = model_of(Codec.BASE3, embed_dim=256, heads=4, mlp_dim=1024, depth=4)
    weights = sum(large.weights(op).bytes for op in large.operators if "trits_at" in op.params)
    for parts in (1, 2):
        assert weights / 64 < lines(large, parts) < 1.1 * weights / 64


def test_every_phase_of_every_operator_has_the_lines_of_each_core():
    model = model_of(image_size=(64, 64), channels=3, patch_size=8, embed_dim=64, heads=4, prefix_tokens=2)
    matrices = Matrices(model)
    for cores in (1, 2):
        phases = [pie_phases(model, op, cores, matrices) for op in model.operators]
        lines = flash_lines(model, CACHE, [len(found) for found in phases], cores)
        for found, read in zip(phases, lines, strict=True):
            assert [len(parts) for parts in found] == [len(parts) for parts in read] == [cores] * len(found)


# --- against the simulator ---------------------------------------------------------------------------------------

UNSEEN = {
    "digits-like": (Codec.BASE3, Schedule(), {"depth": 3, "embed_dim": 64, "heads": 2, "mlp_dim": 128}),
    "distilled, 83 tokens": (
        Codec.GAPS,
        Schedule(heads_split=True, mlp_passes=2),
        {"image_size": (72, 72), "channels": 3, "patch_size": 8, "embed_dim": 160, "heads": 5, "mlp_dim": 400,
         "prefix_tokens": 2, "classes": 100},
    ),
    "pooled, heads of 18": (
        Codec.TWO_BIT,
        Schedule(),
        {"image_size": (49, 49), "patch_size": 7, "embed_dim": 72, "heads": 4, "mlp_dim": 150, "mean_pool": True,
         "prefix_tokens": 0, "depth": 1},
    ),
    "larger than the cache": (
        Codec.BASE3,
        Schedule(),
        {"image_size": (64, 64), "channels": 3, "patch_size": 16, "embed_dim": 224, "heads": 7, "mlp_dim": 896},
    ),
    "rows that do not become instructions": (
        Codec.BASE3, Schedule(), {"image_size": (24, 24), "embed_dim": 48, "mlp_dim": 1800, "depth": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("name", list(UNSEEN))
def test_an_unseen_model_takes_what_was_predicted(cost, name, cores):
    codec, schedule, options = UNSEEN[name]
    model = model_of(codec, schedule, seed=77, **options)
    run = run_twice(load_board("lx7sim"), cores, model)
    prediction = cost.predict(model, cores)
    assert prediction.total == pytest.approx(run.latency, rel=0.05)
    for kind in ("LINEAR", "ATTENTION"):
        pairs = [
            (predicted, measured)
            for op, (_, predicted), measured in zip(model.operators, prediction.layers, run.layers, strict=True)
            if op.kind is OpKind[kind]
        ]
        predicted, measured = np.sum(pairs, axis=0)
        # What takes little of the time may be told less well: where the two cores wait for each other depends on
        # when the bytes of the image arrived.
        assert predicted == pytest.approx(measured, rel=0.12, abs=0.01 * run.latency)


def test_an_unseen_model_with_scales_a_token_takes_what_was_predicted(cost):
    model = model_of(Codec.TWO_BIT, seed=78, scale_mode=ScaleMode.PER_TOKEN, embed_dim=48, heads=3, mlp_dim=100)
    run = run_twice(load_board("lx7sim"), 2, model)
    assert cost.predict(model, 2).total == pytest.approx(run.latency, rel=0.05)


# --- the board file ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn_options(), st.sampled_from(list(Codec)), st.integers(1, 2))
def test_the_board_file_has_a_coefficient_for_all_that_a_drawn_model_does(cost, options, codec, cores):
    model = model_of(codec, **options)
    prediction = cost.predict(model, cores)
    assert len(prediction.layers) == len(model.operators)
    assert all(layer > 0 for _, layer in prediction.layers)
    assert all(0 < path.cost < prediction.total for path in slow_paths(model, cost, cores))


def test_the_board_file_tells_how_it_was_fitted_and_how_well():
    text = BOARD_FILE.read_text()
    assert re.search(r"^# Fitted: tools/calibrate_cost_model.py --board lx7sim --kernels pie --seed \d+$", text, re.M)
    assert re.search(r"^# lx7sim of commit [0-9a-f]{7,}", text, re.M)
    for title in ("one core", "two cores"):
        rms = [float(value) for value in re.findall(rf"^# {title} +whole models +([\d.]+)% ", text, re.M)]
        assert len(rms) == 1 and rms[0] < 3
    table = tomllib.loads(text)["cost"]
    assert table["unit"] == "cycles" and table["kernels"] == "pie" and table["mhz"] == 240
    cycle_model = tomllib.loads((checkout() / "tools" / "lx7sim" / "esp32s3.toml").read_text())
    dcache = cycle_model["dcache"]
    flash = table["flash"]
    assert [flash["cache_bytes"], flash["cache_line_bytes"], flash["cache_ways"]] == [
        dcache["size"], dcache["line"], dcache["ways"],
    ]  # fmt: skip


def test_the_other_boards_of_the_chip_and_its_simulator_have_the_same_cost_model(cost):
    for name in ("lx7sim", "esp32s3-n8", "xiao-esp32s3"):
        assert load_board(name).cost == cost
    assert load_board("qemu-xtensa-pie").cost is None


# --- slower ways -------------------------------------------------------------------------------------------------


def whats(model, cost, cores=2):
    return {path.what: path for path in slow_paths(model, cost, cores)}


def test_a_model_of_usual_shapes_takes_no_slower_way(cost):
    model = model_of(image_size=(64, 64), channels=3, patch_size=16, prefix_tokens=0, mean_pool=True)
    assert whats(model, cost) == {}


def test_every_slower_way_is_told_with_its_layers_and_its_price(cost):
    odd = model_of(Codec.BASE3, image_size=(28, 28), patch_size=7, embed_dim=40, heads=2, mlp_dim=1700, depth=2)
    found = whats(odd, cost)
    assert found["rows too long to become instructions"].layers == ("blocks.0.mlp.fc2", "blocks.1.mlp.fc2")
    assert found["pixels or positions gathered one by one"].layers == ("patch_embed.proj",)
    assert found["keys copied and padded, head by head"].layers == ("blocks.0.attn", "blocks.1.attn")
    assert len(found["tokens padded to blocks of 16"].layers) == 2 * 6
    assert all(path.cost > 0 and path.remedy for path in found.values())


def test_scales_a_token_cost_the_difference_to_the_pie_kernels(cost):
    options = {"embed_dim": 64, "heads": 2, "mlp_dim": 128, "depth": 2}
    slow = model_of(Codec.BASE3, scale_mode=ScaleMode.PER_TOKEN, **options)
    (path,) = slow_paths(slow, cost, 2)
    assert len(path.layers) == len(slow.operators)
    fast = cost.predict(model_of(Codec.BASE3, **options), 2).total
    assert path.cost == pytest.approx(cost.predict(slow, 2).total - fast, rel=0.1)


def test_predict_prints_every_layer_in_cycles_and_milliseconds_and_what_is_slow(tmp_path, capsys):
    file, report = tmp_path / "m.tvit", tmp_path / "p.json"
    file.write_bytes(pack_vit(random_vit(3, depth=1), Codec.GAPS))
    assert main(["predict", str(file), "--board", "esp32s3", "--cores", "1", "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert "ms at 240 MHz" in out and "blocks.0.mlp.fc2" in out and "tokens padded" in out
    found = json.loads(report.read_text())
    one, total = found["prediction"], found["latency"]["predicted"]
    assert one["cores"] == 1
    assert one["milliseconds"] == pytest.approx(total / 240e3)
    assert sum(layer["predicted"] for layer in found["latency"]["layers"]) == pytest.approx(total)
    assert main(["predict", str(file), "--board", "esp32s3", "--json", str(report)]) == 0
    both = json.loads(report.read_text())
    assert both["prediction"]["cores"] == 2
    assert 1.3 < total / both["latency"]["predicted"] < 2
