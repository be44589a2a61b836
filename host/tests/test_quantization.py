# SPDX-License-Identifier: Apache-2.0
"""Ternarizers and quantizers against their formulas, integer arithmetic against numpy's, training in small."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tvhil.errors import InputError, UsageError
from tvhil.models import model_config
from tvhil.models.config import Preprocessing
from tvhil.packing.format import ScaleMode
from tvhil.prediction import operators
from tvhil.quantization import QuantizationConfig, build_quantized, integer_ops, quantize_model, random_model
from tvhil.quantization.activations import ActivationQuantizer, TokenQuantizer, find_scale, real_arithmetic
from tvhil.quantization.convert import normalize, synthetic_images
from tvhil.quantization.grid import SIGMA_MIN, attention_constants, layernorm_constants, max_score_scale
from tvhil.quantization.layers import TernaryConv2d, TernaryLinear
from tvhil.quantization.ternarizers import (
    absmean,
    absmean_channel,
    binary,
    straight_through,
    substitute_clamped,
    ternarizer,
    twn,
)
from tvhil.quantization.train import TrainingOptions, classify, small_affine, train

pytestmark = pytest.mark.usefixtures("one_thread")


WEIGHT = torch.tensor([[1.0, -0.1, 0.6, -2.0], [0.0, 0.0, 0.0, 0.0], [0.5, 0.5, -0.5, 0.5]])


def test_twn_keeps_what_exceeds_seven_tenths_of_the_mean_magnitude_of_its_row():
    trits, scale = twn(WEIGHT)
    assert trits.tolist() == [[1, 0, 0, -1], [0, 0, 0, 0], [1, 1, -1, 1]]  # thresholds 0.6475, 0, 0.35
    assert scale.tolist() == [1.5, 0.0, 0.5]


def test_absmean_rounds_by_the_mean_magnitude_of_the_matrix():
    trits, scale = absmean(WEIGHT)
    mean = 5.7 / 12
    assert scale.tolist() == pytest.approx([mean] * 3)
    expected = np.clip(np.round(WEIGHT.numpy() / mean), -1, 1)
    np.testing.assert_array_equal(trits.numpy(), expected)


def test_absmean_by_channel_rounds_by_the_mean_magnitude_of_the_row_and_survives_an_empty_one():
    trits, scale = absmean_channel(WEIGHT)
    assert scale.tolist() == pytest.approx([0.925, 0.0, 0.5])
    assert trits.tolist() == [[1, 0, 1, -1], [0, 0, 0, 0], [1, 1, -1, 1]]


def test_binary_has_no_zeros():
    trits, scale = binary(WEIGHT)
    assert trits.tolist() == [[1, -1, 1, -1], [1, 1, 1, 1], [1, 1, -1, 1]]
    assert scale.tolist() == pytest.approx([0.925, 0.0, 0.5])


def test_an_unknown_ternarizer_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="twn"):
        ternarizer("tnw")


@pytest.mark.parametrize("rule", [twn, absmean, absmean_channel, binary])
def test_ternary_weights_pass_their_gradient_straight_to_the_latent_weights(rule):
    weight = torch.randn(5, 7, requires_grad=True)
    gradient = torch.randn(5, 7)
    out = straight_through(weight, rule)
    assert torch.equal(out, rule(weight.detach()).values())
    (out * gradient).sum().backward()
    assert torch.equal(weight.grad, gradient)


def test_a_clamped_value_has_no_gradient():
    x = torch.tensor([-200.0, -3.4, 5.6, 127.2], requires_grad=True)
    y = substitute_clamped(x, x.detach().round(), 127)
    y.sum().backward()
    assert y.tolist() == [-127, -3, 6, 127]
    assert x.grad.tolist() == [0, 1, 1, 0]


@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.floats(0.2, 60), st.floats(0.1, 30))
@settings(max_examples=60, deadline=None)
def test_the_integer_layernorm_is_the_predictors(channels, seed, ratio, spread):
    rng = np.random.default_rng(seed)
    x = np.clip(np.round(rng.normal(rng.normal() * 100, 30 * spread, (6, channels))), -32767, 32767)
    gamma, beta = rng.integers(-1, 2, (2, channels))
    grid = layernorm_constants(*(torch.tensor(v).double() for v in (ratio, ratio / 3, 1e-3, 1.0)), channels, 1e-6)
    got = integer_ops.layernorm(torch.tensor(x), torch.tensor(gamma), torch.tensor(beta), grid, 32767)
    c, beta_unit, epsilon, shift = (int(v) for v in grid)
    expected = operators.layernorm(x.astype(np.int16), gamma, beta, c, beta_unit, epsilon, shift, 32767)
    np.testing.assert_array_equal(got.numpy(), expected)


@given(st.integers(2, 300), st.integers(0, 2**32 - 1), st.floats(1, 60), st.floats(20, 5000))
@settings(max_examples=60, deadline=None)
def test_layernorm_stays_within_its_bound_of_the_real_one(channels, seed, ratio, spread):
    """CONTRACT.md, section 5: relative error of 1/sigma, two floors, and half a unit for the last rounding."""
    rng = np.random.default_rng(seed)
    x = np.clip(np.round(rng.normal(rng.normal() * 100, spread, (6, channels))), -32767, 32767)
    gamma, beta = rng.integers(-1, 2, (2, channels))
    stream = 1e-3
    grid = layernorm_constants(*(torch.tensor(v).double() for v in (ratio, ratio / 3, stream, 1.0)), channels, 1e-6)
    got = integer_ops.layernorm(torch.tensor(x), torch.tensor(gamma), torch.tensor(beta), grid, 32767).numpy()
    variance = x.var(1, keepdims=True)
    normal = (x - x.mean(1, keepdims=True)) / np.sqrt(variance + 1e-6 / stream**2)
    real = ratio * (gamma * normal + beta / 3)
    d = np.sqrt(channels**2 * variance + float(grid.epsilon))
    a = float(grid.c) / d
    relative = 1 / d + 1 / a + 0.5 / float(grid.epsilon) + 1 / float(grid.c)
    bound = 0.5 + 2.0 ** (1 - float(grid.shift)) + abs(ratio * normal) * relative * 1.01 + 2.0 ** -float(grid.shift)
    assert (abs(got - real) <= bound + 1e-9)[variance[:, 0] >= SIGMA_MIN**2].all()


@given(st.integers(1, 70), st.integers(1, 32), st.integers(0, 2**32 - 1), st.floats(0.01, 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_integer_attention_is_the_predictors(tokens, head_dim, seed, fineness, per_token):
    rng = np.random.default_rng(seed)
    # Scores stay below 32768, where the contract clamps them.
    q, k, v = (rng.integers(-m, m + 1, (1, tokens, head_dim)).astype(np.int8) for m in (31, 31, 100))
    scales = (max_score_scale(head_dim) * fineness, 0.02, 1e-4 if per_token else 0.015)
    grid = attention_constants(*(torch.tensor(s).double() for s in scales), head_dim)
    limit = 32767 if per_token else 127
    qt, kt, vt = (torch.tensor(x).float() for x in (q, k, v))
    p = integer_ops.probabilities(qt @ kt.transpose(-2, -1), grid)
    got = integer_ops.context(p.float() @ vt, p.sum(-1, keepdim=True, dtype=torch.int32), grid, limit)
    expected = operators.attention(q, k, v, 1, *(int(x) for x in grid), limit)
    np.testing.assert_array_equal(got.numpy(), expected)
    real = (qt.double() @ kt.double().transpose(-2, -1) * scales[0] * head_dim**-0.5).softmax(-1) @ vt.double()
    real = (real * scales[1] / scales[2]).clamp(-limit, limit)
    # Each probability is off by half a unit of 1/127 of the largest (and exp2's error); v spans 200 units.
    bound = 0.6 * tokens / p.sum(-1, keepdim=True) * 200 * scales[1] / scales[2]
    assert ((got - real).abs() <= bound * 1.01 + 0.01 * abs(real) + 1).all()


@given(st.integers(0, 2**32 - 1), st.floats(1e-4, 1.0))
@settings(max_examples=40, deadline=None)
def test_per_token_rows_are_read_back_exactly_from_real_values(seed, scale):
    rng = np.random.default_rng(seed)
    g = np.round(rng.normal(0, 1, (5, 40)) * rng.choice([0, 1, 300, 9000], (5, 1)))
    quantizer = TokenQuantizer()
    quantizer.scale.data.fill_(scale)
    real = quantizer.to_grid(torch.zeros(5, 40), torch.tensor(g))
    x, m = quantizer.rows(real)
    expected_x, expected_m = operators.quantize_rows(np.clip(g, -32767, 32767))
    np.testing.assert_array_equal(x.numpy(), expected_x)
    np.testing.assert_array_equal(m[..., 0].numpy(), expected_m)


@pytest.mark.parametrize("method", ["absmax", "percentile", "mse"])
def test_each_calibration_finds_the_scale_of_its_definition(method):
    values = torch.cat([torch.tensor([50.0]), torch.randn(20000, generator=torch.Generator().manual_seed(0)).abs()])
    scale = find_scale(values, 127, method)
    if method == "absmax":
        assert scale == pytest.approx(50 / 127)
    elif method == "percentile":
        assert scale == pytest.approx(float(values.quantile(0.9999)) / 127)
    else:
        errors = [
            float(((values / s).round().clamp_max(127) * s - values).square().sum())
            for s in (scale / 2, scale, 50 / 127)
        ]
        assert errors[1] == min(errors)


def test_a_learned_scale_gets_the_gradient_of_lsq():
    quantizer = ActivationQuantizer(7, learn=True, produced=False)
    quantizer.scale.data.fill_(0.5)
    x = torch.tensor([0.3, 1.4, -9.0, 9.0])
    quantizer(x).sum().backward()
    inside = [round(0.3 / 0.5) - 0.3 / 0.5, round(1.4 / 0.5) - 1.4 / 0.5]
    assert float(quantizer.scale.grad) == pytest.approx(sum(inside) - 7 + 7)


def test_the_patch_embedding_folds_mean_and_standard_deviation_exactly():
    pre = Preprocessing(8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    conv = TernaryConv2d(3, 5, QuantizationConfig(), pre, kernel_size=4)
    conv.weight.data.normal_()
    conv.bias.data.normal_()
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    x = normalize(images, pre)
    np.testing.assert_array_equal(conv.patches(x).flatten(1, 2).detach().numpy(), operators.image_to_patches(images, 4))
    with real_arithmetic(conv):
        got = conv(x)
    weight = (twn(conv.matrix()).values() * conv.std.repeat(16)).view(5, 4, 4, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(got, F.conv2d(x, weight, conv.bias, stride=4), rtol=1e-4, atol=1e-4)


def test_a_linear_layer_trains_towards_a_function_that_trits_can_express():
    torch.manual_seed(0)
    config = QuantizationConfig()
    layer = TernaryLinear(16, 4, config)
    source, output = ActivationQuantizer(), ActivationQuantizer()
    source.scale.data.fill_(1 / 127)
    output.scale.data.fill_(4 / 127)
    layer.connect(source, (output,))
    target = torch.randint(-1, 2, (4, 16)).float() * 0.5
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(300):
        x = torch.randint(-127, 128, (64, 16)) / 127
        loss = (layer(x) - F.linear(x, target)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trits, _ = twn(layer.weight.detach())
    assert float((trits == target.sign()).float().mean()) > 0.95


def test_a_row_too_wide_for_a_20_bit_accumulator_is_refused():
    with pytest.raises(UsageError, match="4128"):
        TernaryLinear(4129, 2, QuantizationConfig())


def test_options_survive_json_and_malformed_ones_are_refused_by_name():
    options = QuantizationConfig("absmean", ScaleMode.PER_TOKEN, "absmax", learn_scales=True)
    assert QuantizationConfig.from_json(options.to_json()) == options
    for text, word in (("{", "JSON"), ('{"speed": 1}', "speed"), ('{"scale_mode": "x"}', "X"), ("[]", "object")):
        with pytest.raises(InputError, match=word):
            QuantizationConfig.from_json(text)
    with pytest.raises(UsageError, match="mse"):
        QuantizationConfig(calibration="mean")


@pytest.mark.parametrize("mode", list(ScaleMode))
def test_every_parameter_of_a_quantized_model_gets_a_gradient(mode):
    config = model_config("vit_digits", depth=1, layer_scale=0.3, embed_dim=32, num_heads=2)
    images = synthetic_images(config, 8, 0)
    options = QuantizationConfig(scale_mode=mode, learn_scales=True)
    model = quantize_model(random_model(config, 0), images, options)
    model(normalize(images, config.preprocessing)).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


def test_training_is_deterministic_and_learns_what_its_teacher_knows():
    config = model_config("vit_digits", depth=1, embed_dim=16, num_heads=1, patch_size=4)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 48)
    images = (rng.integers(0, 128, (48, 8, 8, 1)) + 127 * labels[:, None, None, None]).astype(np.uint8)
    runs = []
    for _ in range(2):
        teacher = random_model(config, 0)
        train(teacher, images, labels, TrainingOptions(5, 16, 3e-3, warmup=1), augment=small_affine(2, 0.1, 0, 0))
        student = quantize_model(teacher, images)
        reports = []
        options = TrainingOptions(3, 16, 2e-3, warmup=1, recalibrations=2, label_weight=0.3)
        train(student, images, labels, options, teacher=teacher, report=reports.append)
        runs.append((student.state_dict(), reports))
    assert all(torch.equal(runs[0][0][name], runs[1][0][name]) for name in runs[0][0])
    assert (classify(teacher, images) == labels).mean() > 0.9
    assert (classify(student, images) == labels).mean() > 0.9
    assert [r.epoch for r in runs[0][1]] == list(range(3))


def test_a_fresh_quantized_model_has_timms_names_beside_its_scales():
    config = model_config("vit_digits", depth=1)
    from tvhil.models import VisionTransformer

    own = set(build_quantized(config, QuantizationConfig()).state_dict())
    plain = set(VisionTransformer(config).state_dict())
    assert plain < own
    assert all(name.endswith((".scale", ".profile")) for name in own - plain)


def test_a_copy_of_a_quantized_model_is_wired_to_its_own_scales():
    config = model_config("vit_digits", depth=1)
    images = synthetic_images(config, 2, 0)
    model = quantize_model(random_model(config, 0), images)
    twin = copy.deepcopy(model)
    x = normalize(images, config.preprocessing)
    with torch.no_grad():
        before = model(x)
        assert torch.equal(twin(x), before)
        for name, p in twin.named_parameters():
            if name.endswith(".scale"):
                p *= 3
        assert torch.equal(model(x), before)
        assert not torch.equal(twin(x), before)
