# SPDX-License-Identifier: Apache-2.0
"""The cost model: amounts of work from the shapes, the fit, and the board file that holds it."""

import importlib.util
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from evaluation_fakes import plan_without_reuse, small_model
from hypothesis import given, settings
from hypothesis import strategies as st

from tvhil.errors import InputError
from tvhil.packing import pack_vit, read_model
from tvhil.packing.format import OpKind, ScaleMode
from tvhil.packing.random_vit import random_vit
from tvhil.packing.trits import Codec
from tvhil.prediction.latency import RUN, CostModel, run_features
from tvhil.prediction.memory import MemoryLimits, arena_bytes, check_fit, predict_memory
from tvhil.prediction.portable_work import dot_features, operator_features
from tvhil.prediction.work import OperatorWork, kind_of, model_work

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def calibrate():
    spec = importlib.util.spec_from_file_location("calibrate", ROOT / "tools" / "calibrate_cost_model.py")
    module = sys.modules["calibrate"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_of(codec=Codec.BASE3, **options):
    return read_model(pack_vit(random_vit(3, **options), codec, plan_without_reuse))


def operators_named(model, name):
    return next(op for op in model.operators if op.name == name)


@given(st.integers(1, 1000), st.integers(1, 20))
def test_the_steps_of_a_dot_product_cover_every_input_once(terms, calls):
    features = dot_features(calls, terms)
    assert 4 * features["dot_quads"] + features["dot_singles"] == calls * terms
    assert features["dot_chunks"] == calls * -(-terms // 128)


def test_amounts_of_a_linear_operator_follow_its_shape():
    model = model_of(embed_dim=32, mlp_dim=44, depth=1)  # 5 tokens
    features = operator_features(model, operators_named(model, "blocks.0.mlp.fc1"))
    assert features["trits_base3"] == 44 * 32
    assert features["groups"] == 6
    assert features["absent_trits"] == 2 * 32  # four missing channels are two pairs
    assert features["dots"] == features["rows_table"] == 5 * 6
    assert features["outputs_table"] == 5 * 44


def test_every_output_of_a_linear_operator_has_its_own_cost():
    model = model_of(depth=1)
    kinds = {op.name.rsplit(".", 1)[-1]: set(operator_features(model, op)) for op in model.operators}
    assert "outputs_i8" in kinds["q"]
    assert "outputs_i16_add" in kinds["proj"]
    assert "outputs_table" in kinds["fc1"]
    assert "outputs_i16_set" in kinds["head"]
    per_token = model_of(depth=1, scale_mode=ScaleMode.PER_TOKEN)
    kinds = {op.name.rsplit(".", 1)[-1]: set(operator_features(per_token, op)) for op in per_token.operators}
    assert {"scaled_outputs", "quantized_outputs"} <= kinds["fc1"]
    assert "scaled_outputs" in kinds["q"]
    assert "quantized_values" in kinds["norm1"] & kinds["attn"]


@pytest.mark.parametrize("codec", [Codec.BASE3, Codec.TWO_BIT])
def test_codecs_of_all_trits_have_their_own_decoding_cost(codec):
    model = model_of(codec)
    assert f"trits_{codec.label}" in operator_features(model, model.operators[0])


def test_codec_gaps_is_decoded_by_the_instruction():
    model = model_of(Codec.GAPS, depth=1)
    op = operators_named(model, "blocks.0.mlp.fc1")
    features = operator_features(model, op)
    nonzero = np.count_nonzero(model.weights(op).trits)
    assert nonzero <= features["instructions"] < 1.1 * nonzero
    assert features["cleared_inputs"] == features["groups"] * op["k"]
    assert not any(name.startswith("trits_") for name in features)


def test_attention_is_counted_by_groups_of_four_queries():
    model = model_of(embed_dim=32, heads=2, depth=1)  # 5 tokens: two groups a head
    features = operator_features(model, operators_named(model, "blocks.0.attn"))
    assert features["groups"] == 4
    assert features["group_keys"] == 4 * 5
    assert features["score_quads"] == 4 * 5 * 4 and features["score_singles"] == 0
    assert features["value_pairs"] == 4 * 5 * 8 and features["value_singles"] == 0
    assert features["outputs"] == 5 * 32


def test_mean_pooling_counts_the_patch_tokens_only():
    model = model_of(mean_pool=True)
    op = next(op for op in model.operators if op.kind is OpKind.MEAN_POOL)
    assert operator_features(model, op) == {"operators": 1, "outputs": 32, "values": 4 * 32}


def random_models():
    for seed, mode in enumerate([*ScaleMode] * 6):
        rng = np.random.default_rng(seed)
        heads, head_dim, patch = int(rng.integers(1, 4)), (24, 13, 6, 31)[seed % 4], int(rng.choice([2, 4, 8]))
        vit = random_vit(
            seed, image_size=(patch * int(rng.integers(1, 7)),) * 2, patch_size=patch, embed_dim=head_dim * heads,
            heads=heads, depth=1, mlp_dim=int(rng.integers(20, 300)), classes=int(rng.integers(2, 90)), scale_mode=mode,
            prefix_tokens=seed % 3, mean_pool=seed % 3 == 0,
        )  # fmt: skip
        yield read_model(pack_vit(vit, Codec(seed // 2 % 3), plan_without_reuse))


def test_a_fit_predicts_other_models_when_costs_are_linear_in_the_amounts(calibrate):
    rng = np.random.default_rng(5)
    true: dict[str, dict[str, float]] = {}

    def cost(kind, features):
        table = true.setdefault(kind, {})
        return sum(table.setdefault(name, float(rng.uniform(2, 30))) * amount for name, amount in features.items())

    models = list(random_models())
    rows = []
    for model in models:
        rows += [calibrate.Measurement(work, cost(work.kind, work.phases[0][0])) for work in model_work(model)]
        rest = run_features(model)
        rows.append(calibrate.Measurement(OperatorWork("", RUN, ((rest,),)), cost(RUN, rest)))
    fitted = CostModel("cycles", "portable", calibrate.fit(rows))
    assert max(found.worst for found in calibrate.errors(rows, fitted).values()) < 1e-4
    other = model_of(image_size=(56, 56), channels=3, patch_size=8, embed_dim=96, heads=3, depth=2, mlp_dim=384)
    features = [(kind_of(op), operator_features(other, op)) for op in other.operators]
    expected = sum(cost(kind, f) for kind, f in features if kind in true) + cost(RUN, run_features(other))
    assert fitted.predict(other).total == pytest.approx(expected, rel=0.02)


def test_the_prediction_of_a_model_is_the_sum_of_its_operators_and_the_rest():
    model = small_model()
    table = {kind.name.lower(): {} for kind in OpKind}
    for op in model.operators:
        table[kind_of(op)] |= dict.fromkeys(operator_features(model, op), 2.0)
    cost = CostModel.from_table(
        {"unit": "cycles", "kernels": "portable", **table, RUN: {"inferences": 5, "operators": 3}}
    )
    prediction = cost.predict(model)
    layers = [2 * sum(operator_features(model, op).values()) for op in model.operators]
    assert [value for _, value in prediction.layers] == layers
    assert prediction.total == sum(layers) + 5 + 3 * len(model.operators)


def test_a_cost_model_without_a_needed_coefficient_names_it():
    cost = CostModel.from_table({"unit": "cycles", "kernels": "portable", "patch_embed": {"groups": 1.0}})
    with pytest.raises(InputError, match=r"\[cost.patch_embed\] \w+.*calibrate_cost_model"):
        cost.predict(small_model())


@pytest.mark.parametrize(
    "table",
    [
        {"unit": "parsecs", "kernels": "portable"},
        {"unit": "cycles", "kernels": "unknown"},
        {"unit": "cycles", "kernels": "portable", "linear": 3},
        {"unit": "cycles", "kernels": "portable", "mhz": "fast"},
        {"unit": "seconds", "kernels": "portable", "mhz": 240},
        {"unit": "cycles", "kernels": "pie", "flash": {"lines": 456}},
        {"unit": "cycles", "kernels": "portable", "linear": {"rows": "many"}},
    ],
)
def test_a_malformed_cost_table_is_refused(table):
    with pytest.raises(InputError, match="cost"):
        CostModel.from_table(table)


def test_writing_the_cost_table_leaves_the_rest_of_the_board_file_alone(calibrate):
    cost = CostModel("cycles", "portable", {"run": {"operators": 12.5}, "linear": {"rows": 1e-9}}, 240)
    board = '# a board\nname = "x"\n\n# memories\n[[memory]]\nbytes = 5\n'
    once = calibrate.replace_cost_table(board, calibrate.cost_table(cost, ["Fitted: once"]))
    twice = calibrate.replace_cost_table(
        once + "\n# after\n[link]\nbaud = 1\n", calibrate.cost_table(cost, ["Fitted: twice"])
    )
    assert twice.startswith(board)
    assert "# after\n[link]\nbaud = 1\n" in twice
    assert "once" not in twice
    assert tomllib.loads(twice)["cost"] == {
        "unit": "cycles", "kernels": "portable", "mhz": 240, "run": {"operators": 12.5}, "linear": {"rows": 1e-9},
    }  # fmt: skip
    assert CostModel.from_table(tomllib.loads(twice)["cost"]) == cost


@settings(max_examples=20)
@given(st.sampled_from(["arena", "model"]), st.integers(1, 1000))
def test_a_model_too_big_for_a_board_is_refused_with_both_numbers(what, missing):
    model = small_model()
    need = {"arena": arena_bytes(model, "pie"), "model": model.file_bytes}[what]
    check_fit(model, MemoryLimits(**{what: need}, kernels="pie"), "b")
    with pytest.raises(InputError, match=f"needs {need:,} bytes, b has {need - missing:,}"):
        check_fit(model, MemoryLimits(**{what: need - missing}, kernels="pie"), "b")


def test_kernels_that_need_more_scratch_than_was_planned_have_it_behind_the_plan():
    model = read_model(pack_vit(random_vit(0, depth=1)))
    assert arena_bytes(model, "pie") == model.plan.arena_bytes
    bare = small_model()  # planned without any scratch
    assert arena_bytes(bare, "pie") == bare.plan.arena_bytes + model.plan.scratch_bytes
    need = arena_bytes(model, "portable")
    assert need > model.plan.arena_bytes
    check_fit(model, MemoryLimits(arena=need), "b")
    with pytest.raises(InputError, match=f"needs {need:,} bytes"):
        check_fit(model, MemoryLimits(arena=need - 1), "b")
    per_token = small_model(0, ScaleMode.PER_TOKEN)  # runs on the portable kernels everywhere
    assert arena_bytes(per_token, "pie") == arena_bytes(per_token, "portable") > per_token.plan.arena_bytes


def test_memory_is_predicted_from_the_plan():
    model = small_model()
    memory = predict_memory(model, MemoryLimits(stack=8192, static=100, kernels="pie"))
    assert memory["arena"] == {"measured": None, "predicted": arena_bytes(model, "pie"), "in_psram": False}
    assert memory["stack"] == {"measured": None, "limit": 8192}
    assert (memory["static"], memory["model_bytes"], memory["heap"]) == (100, model.file_bytes, None)
