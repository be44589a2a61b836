# SPDX-License-Identifier: Apache-2.0
"""Every quantizer of weights and activations against its formula, written out in numpy, and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvhil.errors import InputError, UsageError
from tvhil.models import model_config
from tvhil.quantization import QuantizationConfig, build_quantized, quantize_model, random_model, to_integer
from tvhil.quantization.activations import ActivationQuantizer, TokenQuantizer
from tvhil.quantization.config import RULES
from tvhil.quantization.convert import load_quantized, save_quantized, synthetic_images
from tvhil.quantization.ternarizers import (
    LEARNED,
    TERNARIZERS,
    LearnedTernary,
    make_quantizer,
    straight_through,
    substitute,
)

TINY = model_config("vit_digits", depth=1, embed_dim=32, num_heads=2)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32 - 1))


def groups(weights: np.ndarray, per_channel: bool) -> list[np.ndarray]:
    """The weights that share a scale: rows, or the whole matrix for every row."""
    return list(weights) if per_channel else [weights] * len(weights)


def twn(row, group):
    threshold = 0.7 * np.abs(group).mean()
    scale = np.abs(group)[np.abs(group) > threshold].mean() if (np.abs(group) > threshold).any() else 0.0
    return np.sign(row) * (np.abs(row) > threshold), scale


def absmean(row, group):
    scale = np.abs(group).mean()
    return np.clip(np.rint(row / scale), -1, 1), scale


def binary(row, group):
    return np.where(row < 0, -1, 1), np.abs(group).mean()


def int8(row, group):
    scale = np.abs(group).max() / 127
    return np.clip(np.rint(row / scale), -127, 127), scale


FORMULAS = {
    "twn": (twn, True), "twn_matrix": (twn, False), "absmean": (absmean, False), "absmean_channel": (absmean, True),
    "binary": (binary, True), "binary_matrix": (binary, False), "int8": (int8, True), "int8_matrix": (int8, False),
}  # fmt: skip


def test_every_rule_has_a_formula_here():
    assert set(FORMULAS) == set(TERNARIZERS)
    assert set(RULES) == {*TERNARIZERS, *LEARNED}


@pytest.mark.parametrize("name", FORMULAS)
@given(SHAPES)
@settings(max_examples=25, deadline=None)
def test_a_weight_quantizer_is_its_formula(name, shape):
    rows, columns, seed = shape
    weights = np.random.default_rng(seed).normal(size=(rows, columns))
    formula, per_channel = FORMULAS[name]
    levels, scale = TERNARIZERS[name](torch.tensor(weights))
    for i, group in enumerate(groups(weights, per_channel)):
        expected, expected_scale = formula(weights[i], group)
        np.testing.assert_array_equal(levels[i].numpy(), expected)
        assert float(scale[i]) == pytest.approx(expected_scale, rel=1e-12)


@pytest.mark.parametrize("name", TERNARIZERS)
def test_clipped_gradients_stop_at_weights_beyond_two_scales(name):
    weight = torch.randn(6, 50, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(6, 50, dtype=torch.float64)
    out = straight_through(weight, TERNARIZERS[name], clipped=True)
    quantized = TERNARIZERS[name](weight.detach())
    assert torch.equal(out, quantized.values())
    (out * gradient).sum().backward()
    inside = weight.detach().abs() <= 2 * quantized.scale[:, None]
    assert torch.equal(weight.grad, gradient * inside)
    if name not in ("int8", "int8_matrix"):
        assert 0 < inside.sum() < inside.numel()


@pytest.mark.parametrize(("name", "per_channel"), LEARNED.items())
def test_a_learned_rule_starts_as_twn_and_has_the_gradients_of_its_formula(name, per_channel):
    torch.manual_seed(0)
    weight = torch.randn(4, 30, dtype=torch.float64, requires_grad=True)
    rule = make_quantizer(name, 4).double()
    assert isinstance(rule, LearnedTernary)
    rule.start_from(weight.detach())
    expected = TERNARIZERS["twn" if per_channel else "twn_matrix"](weight.detach())
    torch.testing.assert_close(rule(weight).values(), expected.values())
    gradient = torch.randn(4, 30, dtype=torch.float64)
    out = straight_through(weight, rule)
    torch.testing.assert_close(out.detach(), expected.values())
    (out * gradient).sum().backward()
    w, g = weight.detach().numpy(), gradient.numpy()
    t, s = (p.detach().numpy().repeat(1 if per_channel else 4)[:, None] for p in (rule.threshold, rule.scale))
    v = w / (2 * t)
    levels, inside = np.clip(np.rint(v), -1, 1), np.abs(v) <= 1
    np.testing.assert_allclose(weight.grad.numpy(), g * s / (2 * t) * inside)
    axis, shared = (1, 30) if per_channel else (None, 120)
    np.testing.assert_allclose(rule.scale.grad.numpy(), (g * levels).sum(axis) / shared**0.5)
    np.testing.assert_allclose(rule.threshold.grad.numpy(), (g * s * -v / t * inside).sum(axis) / shared**0.5)


@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.floats(1e-3, 1.0))
@settings(max_examples=40, deadline=None)
def test_a_static_quantizer_rounds_to_a_learned_step_and_clamps(count, seed, step):
    quantizer = ActivationQuantizer(learn=True, produced=False)
    quantizer.scale.data.fill_(step)
    x = torch.tensor(np.random.default_rng(seed).normal(size=count) * 60 * step, dtype=torch.float32).requires_grad_()
    y = quantizer(x)
    unit = float(quantizer.scale)
    v = (x.detach() / quantizer.scale.detach()).numpy()
    np.testing.assert_array_equal(y.detach().numpy(), np.clip(np.rint(v), -127, 127) * np.float32(unit))
    y.sum().backward()
    inside = np.abs(v) <= 127
    np.testing.assert_allclose(x.grad.numpy(), inside, rtol=1e-6)
    # LSQ: round(v) - v inside, the limit outside.
    expected = np.where(inside, np.rint(v) - v, np.sign(v) * 127).sum()
    assert float(quantizer.scale.grad) == pytest.approx(expected, abs=1e-3 * count)


@given(st.integers(1, 8), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_token_quantizer_scales_each_row_by_its_largest_magnitude(rows, channels, seed):
    quantizer = TokenQuantizer(produced=False)
    quantizer.scale.data.fill_(2.0**-8)
    x = torch.tensor(np.random.default_rng(seed).normal(size=(rows, channels)) * 20, dtype=torch.float32)
    y = quantizer(x).double().numpy()
    g = np.rint(x.numpy() * 2.0**8)
    m = np.abs(g).max(1, keepdims=True).clip(1)
    levels = y * 2.0**8 / m * 127
    assert np.abs(levels - np.rint(levels)).max() < 1e-3
    # The contract multiplies by a reciprocal cut to 20 bits.
    assert (np.abs(np.rint(levels) - g / m * 127) <= 0.5 + np.abs(g) / 2**20 + 1e-9).all()
    assert np.abs(levels).max() <= 127.001


def test_a_substituted_value_has_the_gradient_of_the_ideal_one():
    x = torch.tensor([0.3, 1.7], requires_grad=True)
    y = substitute(x * 3, torch.tensor([1.0, 5.0]))
    assert y.tolist() == [1.0, 5.0]
    y.sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("name", ["learned", "learned_matrix"])
def test_learned_thresholds_are_saved_loaded_and_converted(name, tmp_path):
    images = synthetic_images(TINY, 4, 0)
    model = quantize_model(random_model(TINY, 0), images, QuantizationConfig(name))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LearnedTernary):
                module.threshold *= 1.1
    save_quantized(tmp_path / "m.safetensors", model)
    again = load_quantized(tmp_path / "m.safetensors")
    first, second = (to_integer(m).blocks[0] for m in (model, again))
    np.testing.assert_array_equal(first.q.trits, second.q.trits)
    np.testing.assert_array_equal(first.q.gain, second.q.gain)


@pytest.mark.parametrize("kept", [("patch_embed",), ("norm",), ("head",), ("patch_embed", "norm", "head")])
@pytest.mark.parametrize("mode", ["static", "per_token"])
def test_layers_kept_in_full_precision_train_and_are_not_converted(kept, mode):
    from tvhil.packing.format import ScaleMode

    quantization = QuantizationConfig(scale_mode=ScaleMode[mode.upper()], full_precision=kept)
    model = quantize_model(random_model(TINY, 0), synthetic_images(TINY, 4, 0), quantization)
    model(torch.randn(2, 1, 8, 8)).square().sum().backward()
    for name in ("patch_embed.proj.weight", "blocks.0.norm1.weight", "head.weight"):
        assert model.get_parameter(name).grad.abs().sum() > 0
    with pytest.raises(UsageError, match=f"keeps {', '.join(kept)} in full precision"):
        to_integer(model)
    assert QuantizationConfig.from_json(quantization.to_json()) == quantization


def test_unknown_options_are_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"'tnw'.*twn, twn_matrix"):
        QuantizationConfig("tnw")
    with pytest.raises(UsageError, match=r"'straight'.*straight_through"):
        QuantizationConfig(gradient="straight")
    with pytest.raises(UsageError, match=r"'attention' cannot keep full precision, only patch_embed"):
        QuantizationConfig(full_precision=("attention",))
    with pytest.raises(InputError, match="tnw"):
        QuantizationConfig.from_json('{"ternarizer": "tnw"}')


def test_a_built_model_names_its_options_whatever_keeps_full_precision():
    from tvhil.quantization import quantization_of

    options = QuantizationConfig(full_precision=("head", "norm"))
    assert quantization_of(build_quantized(TINY, options)) == options
