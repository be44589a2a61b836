# SPDX-License-Identifier: Apache-2.0
"""The parts of `evaluate`: attention rollout, sensitivity, training logs, charts and the page."""

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_models_checkpoints import TINY

from tvhil.datasets import Dataset
from tvhil.datasets.dataset import Sample, reindex
from tvhil.errors import DatasetError, InputError
from tvhil.evaluation import svg
from tvhil.evaluation.attention_maps import attention_map, overlay, patch_map, picture_of, rollout, shown
from tvhil.evaluation.implementations import (
    Answers,
    IntegerImplementation,
    TorchImplementation,
    check_finite,
    estimated_bytes,
)
from tvhil.evaluation.inputs import without_unreadable
from tvhil.evaluation.pictures import Pictures, write_pictures
from tvhil.evaluation.run import Input
from tvhil.evaluation.sensitivity import layers_of, sensitivity, ternary_layer
from tvhil.evaluation.training_log import TrainingLog, find_logs, model_log, read_log
from tvhil.packing import pack_vit, read_model
from tvhil.packing.random_vit import random_vit
from tvhil.packing.schedule import Schedule
from tvhil.quantization import QuantizationConfig, quantize_model, random_model, to_integer
from tvhil.quantization.ternarizers import twn


def images(count=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)


# -- attention ---------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 9), st.integers(0, 1000))
def test_each_row_of_a_rollout_is_a_distribution(depth, heads, tokens, seed):
    p = np.random.default_rng(seed).random((depth, heads, tokens, tokens))
    total = rollout(list(p / p.sum(-1, keepdims=True)))
    assert (total >= 0).all()
    np.testing.assert_allclose(total.sum(-1), 1, rtol=1e-12)


def test_attention_to_itself_alone_keeps_every_token_where_it_is():
    assert np.array_equal(rollout([np.eye(5)[None]] * 3), np.eye(5))


def test_the_map_is_read_from_the_class_token_or_the_mean_of_the_patches():
    total = np.zeros((5, 5))
    total[0] = [0.2, 0.0, 0.1, 0.3, 0.4]
    total[1:] = np.eye(5)[3]
    assert np.allclose(patch_map(total, 1, pooled=False), [[0, 0.25], [0.75, 1]])
    assert np.allclose(patch_map(total, 1, pooled=True), [[0, 0], [1, 0]])


def test_fp32_attention_is_what_the_models_own_softmax_makes():
    model = random_model(TINY, 0).eval()
    seen = []
    hooks = [block.attn.softmax.register_forward_hook(lambda m, i, out: seen.append(out)) for block in model.blocks]
    implementation = TorchImplementation("FP32", model, "f")
    maps = implementation.attention(images(1)[0])
    for hook in hooks:
        hook.remove()
    assert len(maps) == 2
    for ours, theirs in zip(maps, seen, strict=True):
        np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-6)


@pytest.fixture(scope="module")
def ternary():
    """One model three ways: fake-quantized torch and the integers it is packed to."""
    fake = quantize_model(random_model(TINY, 0).eval(), images(8, 1), QuantizationConfig())
    packed = read_model(pack_vit(to_integer(fake)))
    return (
        TorchImplementation("fake", fake, "f", twin="t"),
        IntegerImplementation("integers", packed, TINY.preprocessing, "f", "t"),
    )


def test_the_integer_predictors_attention_is_close_to_that_of_real_arithmetic(ternary):
    fake, integers = ternary
    for image in images(2, 3):
        for a, b in zip(fake.attention(image), integers.attention(image), strict=True):
            np.testing.assert_allclose(b.sum(-1), 1, rtol=1e-12)
            assert np.abs(a - b).max() < 0.02
        assert attention_map(integers, image).shape == (4, 4)


def test_attention_is_the_same_of_layers_in_pieces():
    vit = random_vit(4, image_size=(20, 20), depth=2)
    schedule = Schedule(heads_split=True, attention_groups=2, mlp_passes=2)
    whole, pieces = (
        IntegerImplementation("i", read_model(pack_vit(vit, schedule=s)), None, "f") for s in (None, schedule)
    )
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 1)).astype(np.uint8)
    maps = pieces.attention(image)
    assert [layer.shape for layer in maps] == [(2, 26, 26)] * 2
    for a, b in zip(whole.attention(image), maps, strict=True):
        assert (a == b).all()


def test_integers_and_fake_quantized_torch_give_the_same_real_logits(ternary):
    fake, integers = ternary
    batch = images(5, 4)
    np.testing.assert_allclose(fake.logits(batch, []), integers.logits(batch, []), rtol=1e-6)


def test_maps_are_shown_once_for_each_model(ternary):
    fp32 = TorchImplementation("FP32", random_model(TINY, 1), "g")
    assert shown([fp32, *ternary]) == [fp32, ternary[1]]
    assert shown([ternary[0]]) == [ternary[0]]


def test_a_map_over_a_picture_has_its_size_and_colours():
    shares = np.zeros((4, 4))
    shares[0, 0] = 1
    picture = overlay(np.full((8, 8, 1), 128, np.uint8), shares, 64)
    assert picture.size == (64, 64)
    r, g, b = picture.getpixel((2, 2))
    assert r > b
    assert g > b  # yellow
    r, g, b = picture.getpixel((60, 60))
    assert b > r
    assert b > g  # violet
    assert picture_of(np.zeros((300, 300, 3), np.uint8), 64).size == (64, 64)


# -- implementations ---------------------------------------------------------------------------------------------------


def test_answers_hold_the_class_its_probability_and_the_rank_of_the_label():
    answers = Answers()
    answers.add(np.array([[0.0, math.log(3), 0.0], [5.0, 5.0, 1.0]]), [2, None])
    assert answers.top1 == [1, 0]
    assert answers.confidence[0] == pytest.approx(0.6)
    assert answers.rank == [2, -1]


def test_a_model_that_cannot_be_packed_has_an_estimated_size(ternary):
    packed = ternary[1].tvit
    weights = sum(op["n"] * -(-op["k"] // 5) + 4 * op["n"] for op in packed.operators if "k" in op.params)
    estimate = estimated_bytes(ternary[0].vit)
    assert weights < estimate < packed.file_bytes
    eight = quantize_model(random_model(TINY, 0).eval(), images(4), QuantizationConfig(ternarizer="int8"))
    assert 4 * estimate > estimated_bytes(eight) > 2 * estimate
    kept = QuantizationConfig(full_precision=("patch_embed", "norm", "head"))
    extra = estimated_bytes(quantize_model(random_model(TINY, 0).eval(), images(4), kept)) - estimate
    real = 4 * (24 * 48 + 24) + 4 * (24 * 7 + 7) + 5 * 4 * 2 * 24
    assert real * 0.8 < extra < real


def test_logits_that_are_not_finite_are_refused_with_the_image(ternary):
    items = [Input(i, f"img{i}", None, lambda: None) for i in range(2)]
    check_finite(ternary[0], np.zeros((2, 3)), items)
    with pytest.raises(InputError, match="f: the logits of fake for image img1 are not finite"):
        check_finite(ternary[0], np.array([[0.0, 1], [np.nan, 1]]), items)


def test_images_that_cannot_be_decoded_are_left_out_and_named():
    def broken():
        raise DatasetError("z.zip: b.png is not a readable image")

    good = Image.new("L", (8, 8))
    samples = [Sample(0, key, 0, broken if key == "b" else lambda: good) for key in "abc"]
    dataset = Dataset("d", "D", "test", ("x",), reindex(samples))
    told = []
    kept = without_unreadable(dataset, lambda sample, error: told.append((sample.key, str(error))))
    assert [(s.index, s.key) for s in kept] == [(0, "a"), (1, "c")]
    assert told == [("b", "z.zip: b.png is not a readable image")]
    with pytest.raises(DatasetError, match="none of the 1 images of d can be read"):
        without_unreadable(Dataset("d", "D", "test", (), reindex(samples[1:2])), lambda *_: None)


# -- sensitivity -------------------------------------------------------------------------------------------------------


def test_one_layer_is_ternary_inside_and_as_before_afterwards():
    model = random_model(TINY, 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in layers_of(model):
        with ternary_layer(model, name, twn) as count:
            changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
            assert changed <= {f"{name}.weight", f"{name}.bias"}
            assert f"{name}.weight" in changed
            assert count == sum(before[n].numel() for n in changed)
        if "norm" not in name and "patch" not in name:
            with ternary_layer(model, name, twn):
                assert all(len(row.abs().unique()) <= 2 for row in model.get_submodule(name).weight)
        assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


def test_the_ternary_patch_embedding_is_the_one_that_the_device_applies():
    model = random_model(TINY, 0)
    quantized = quantize_model(model, images(2))
    theirs, _ = quantized.patch_embed.proj.effective()
    std = torch.tensor(TINY.preprocessing.std) * 255
    with ternary_layer(model, "patch_embed.proj", twn):
        ours = (model.patch_embed.proj.weight.permute(0, 2, 3, 1) / std).flatten(1)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_sensitivity_tells_of_every_layer_and_of_none_that_is_ternary_already():
    model = random_model(TINY, 0).eval()
    with torch.no_grad():
        weight = model.blocks[0].mlp.fc1.weight
        weight.copy_(twn(weight).values())
    told = []
    rows = sensitivity(model, images(6), np.arange(6) % 7, progress=told.append)
    assert rows == told
    assert [row.layer for row in rows] == layers_of(model)
    assert len(rows) == 1 + 2 * 6 + 2
    by_name = {row.layer: row for row in rows}
    assert by_name["blocks.0.mlp.fc1"].kl == pytest.approx(0, abs=1e-9)
    assert by_name["blocks.0.mlp.fc1"].agreement == 1
    assert by_name["blocks.0.attn.qkv"].kl > 1e-4
    assert all(row.kl > -1e-9 and 0 <= row.agreement <= 1 for row in rows)


# -- training logs -----------------------------------------------------------------------------------------------------


def test_a_log_is_read_with_gaps_and_without_its_torn_last_line(tmp_path):
    log = tmp_path / "model.csv"
    log.write_text("epoch,step,loss,val_accuracy,note\n0,10,2.5,,warm\n0,20,nan,0.25,\n1,30,1.5,0.5,x\n1,4")
    found = read_log(log)
    assert (found.unit, found.steps) == ("step", (10, 20, 30))
    assert found.points("loss") == [(10, 2.5), (30, 1.5)]
    assert found.points("val_accuracy") == [(20, 0.25), (30, 0.5)]
    assert found.points("learning_rate") == []
    assert set(found.curves) == {"epoch", "loss", "val_accuracy"}


def test_steps_count_on_over_the_phases_of_a_run(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("phase,step,epoch,loss,test_top1\na,5,0.5,3,\na,10,1,2,\na,10,1,,0.5\nb,5,0.5,1,\nb,10,1,0.5,0.75\n")
    found = read_log(log)
    assert found.points("loss") == [(5, 3), (10, 2), (15, 1), (20, 0.5)]
    assert found.points("test_top1") == [(10, 0.5), (20, 0.75)]


def test_long_logs_are_thinned_and_keep_their_last_point(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("step,loss\n" + "".join(f"{i},{i / 7}\n" for i in range(4321)))
    points = read_log(log).points("loss")
    assert 100 < len(points) <= 501
    assert points[0] == (0, 0)
    assert points[-1] == (4320, 4320 / 7)


def test_logs_beside_a_checkpoint_are_found_by_name_or_by_their_columns(tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\n")
    (tmp_path / "log.csv").write_text("epoch,loss\n0,1\n")
    assert find_logs(tmp_path / "model.safetensors") == [tmp_path / "log.csv"]
    (tmp_path / "model.csv").write_text("epoch,loss\n0,1\n")
    assert find_logs(tmp_path / "model.safetensors") == [tmp_path / "model.csv"]
    assert find_logs(tmp_path / "no" / "model.safetensors") == []


def test_what_is_no_log_is_refused_in_one_line(tmp_path):
    (tmp_path / "x.csv").write_text("image,label\n")
    with pytest.raises(InputError, match=r"x\.csv has no column step or epoch; it has image, label"):
        read_log(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_bytes(b"")
    with pytest.raises(InputError, match="no column"):
        read_log(tmp_path / "x.csv")
    with pytest.raises(InputError, match="cannot read the training log"):
        read_log(tmp_path / "absent.csv")


# -- charts ------------------------------------------------------------------------------------------------------------


numbers = st.floats(-1e9, 1e9) | st.just(math.nan)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=8), st.lists(st.tuples(numbers, numbers), max_size=6), max_size=3))
def test_a_line_chart_is_well_formed_and_stays_inside_its_frame(series):
    chart = svg.line_chart("a <title> & more", {n.replace("\x00", ""): p for n, p in series.items()})
    if not chart:
        assert not any(math.isfinite(x) and math.isfinite(y) for points in series.values() for x, y in points)
        return
    root = parse(chart)
    for line in root.iter("{http://www.w3.org/2000/svg}polyline"):
        for pair in line.get("points").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 460
            assert 0 <= y <= 240


def test_the_log_in_a_packed_model_counts_on_over_its_phases():
    log = {"columns": ["epoch", "loss"], "teacher": [[9, 2.0], [19, 1.5]], "student": [[4, 3]]}
    found = model_log(Path("m.tvit"), {"recipe": {"log": log}})
    assert (found.unit, found.steps) == ("epoch", (9, 19, 23))
    assert found.points("loss") == [(9, 2.0), (19, 1.5), (23, 3.0)]


@pytest.mark.parametrize(
    "log",
    [
        None, [], {}, {"columns": "epoch"}, {"columns": ["loss"], "rows": [[1]]}, {"columns": ["epoch"], "rows": 5},
        {"columns": ["epoch", "loss"], "rows": [[1]]}, {"columns": ["epoch", "loss"], "rows": [[1, "x"]]},
        {"columns": ["epoch", "loss"], "rows": [[1, 10**400]]}, {"columns": ["epoch", "loss"], "rows": [[1e400, 1]]},
        {"columns": ["epoch", {}], "rows": [[1, 1]]}, {"columns": ["epoch", "loss", "loss"], "rows": [[1, 1, 1]]},
    ],
)  # fmt: skip
def test_metadata_that_are_no_log_are_none(log):
    assert model_log(Path("m.tvit"), {"recipe": {"log": log}}) is None
    assert model_log(Path("m.tvit"), {"recipe": log}) is None


def test_the_logs_of_models_of_one_name_become_a_picture_each(tmp_path):
    logs = [
        TrainingLog(Path(f"{name}/model.tvit"), "epoch", (1, 2), {"loss": (2, 1)}) for name in ("ternary", "binary")
    ]
    row = {"confusion": None, "calibration": None}
    report = {"implementations": [row], "primary": 0, "sensitivity": None}
    files = write_pictures(tmp_path, report, Pictures(logs=[*logs, replace(logs[0], file=Path("a/log.csv"))]))
    assert [file.name for file in files] == [
        "training-1-ternary-model-loss.svg", "training-2-binary-model-loss.svg", "training-a-loss.svg",
    ]  # fmt: skip


def parse(chart):
    return ElementTree.fromstring("".join(c for c in chart if c.isprintable() and not 0xD800 <= ord(c) < 0xE000))


def test_bars_and_heat_maps_are_well_formed():
    bars = parse(svg.bar_chart("b", [("blocks.0<&>", 0.5, "0.5"), ("c", -1.0, "-1"), ("zero", 0.0, "")]))
    assert len(bars.findall("{http://www.w3.org/2000/svg}rect")) == 4
    heat = parse(svg.heat_map("h", [[3, 1], [0, 0]], ["a<b", "c"]))
    tips = [t.text for t in heat.iter("{http://www.w3.org/2000/svg}title")]
    assert tips[:2] == ["a<b answered as a<b: 3 (75.0%)", "a<b answered as c: 1 (25.0%)"]
    assert svg.bar_chart("b", []) == ""
