# SPDX-License-Identifier: Apache-2.0
"""FP32 to fake-quantized to integers: the shapes stay, and the integer model computes what the torch model does."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import trivial_planner

from tvhil.datasets.digits import embedded_digits
from tvhil.errors import CheckpointError, InputError, UsageError
from tvhil.models import ViTConfig, model_config, save_checkpoint
from tvhil.models.config import Preprocessing
from tvhil.packing import pack_vit, read_model
from tvhil.packing.format import ScaleMode
from tvhil.prediction import Predictor
from tvhil.quantization import (
    QuantizationConfig,
    load_quantized,
    quantize_model,
    random_model,
    save_quantized,
    to_integer,
    untrained_integer_vit,
)
from tvhil.quantization.activations import real_arithmetic
from tvhil.quantization.convert import normalize, synthetic_images

# The stated bound between fake-quantized and integer logits, in units of a logit. Both compute the contract; the
# torch model passes real values between layers, whose float32 rounding is read off as integers again.
LOGIT_BOUND = 0


pytestmark = pytest.mark.usefixtures("one_thread")


@st.composite
def drawn_models(draw: st.DrawFn) -> tuple[ViTConfig, QuantizationConfig]:
    heads = draw(st.integers(1, 3))
    patch = draw(st.sampled_from([2, 3, 4]))
    channels = draw(st.sampled_from([1, 3]))
    kind = draw(st.sampled_from(["vit", "distilled", "deit3", "pooled", "no_token"]))
    size = patch * draw(st.integers(1, 4))
    pre = Preprocessing(size) if channels == 3 else Preprocessing(size).grayscale()
    config = ViTConfig(
        image_size=size, patch_size=patch, in_channels=channels, num_classes=draw(st.integers(2, 12)),
        embed_dim=heads * draw(st.sampled_from([8, 16, 20])), depth=draw(st.integers(1, 2)), num_heads=heads,
        mlp_ratio=draw(st.sampled_from([1.0, 2.5, 4.0])), qkv_bias=draw(st.booleans()),
        distilled=kind == "distilled", no_embed_class=kind == "deit3",
        layer_scale=draw(st.sampled_from([None, 0.1])), pool="avg" if kind in ("pooled", "no_token") else "token",
        class_token=kind != "no_token", preprocessing=pre,
    )  # fmt: skip
    options = QuantizationConfig(
        ternarizer=draw(st.sampled_from(["twn", "absmean", "absmean_channel", "binary"])),
        scale_mode=draw(st.sampled_from(list(ScaleMode))),
        calibration=draw(st.sampled_from(["absmax", "percentile", "mse"])),
    )
    return config, options


def integer_logits(vit, images):
    return Predictor(read_model(pack_vit(vit, planner=trivial_planner))).run(images)


@given(drawn_models(), st.integers(0, 1000))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_integer_model_gives_the_fake_quantized_logits_within_the_bound(drawn, seed):
    config, options = drawn
    model = quantize_model(random_model(config, seed), synthetic_images(config, 3, seed), options)
    vit = to_integer(model)
    images = synthetic_images(config, 4, seed + 1)
    images[-1] = np.random.default_rng(seed).integers(0, 256, images[-1].shape)
    with torch.no_grad():
        fake = model(normalize(images, config.preprocessing)).double().numpy() / vit.logit_scale
    logits = integer_logits(vit, images)
    assert np.abs(np.rint(fake) - logits).max() <= LOGIT_BOUND
    assert np.abs(logits).max() > 0


def test_mixed_precision_changes_no_logit():
    config = model_config("vit_digits", depth=2)
    images = synthetic_images(config, 8, 0)
    model = quantize_model(random_model(config, 0), images)
    x = normalize(images, config.preprocessing)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(x), expected)


@pytest.mark.parametrize("mode", list(ScaleMode))
@pytest.mark.parametrize(
    "options", [{}, {"distilled": True}, {"layer_scale": 0.1, "no_embed_class": True}, {"pool": "avg"}]
)
def test_the_integer_model_follows_the_ternary_model_in_real_arithmetic(mode, options):
    """What activation quantization and the grid of scales cost an untrained model, relative to its logits."""
    config = model_config("vit_digits", depth=2, **options)
    model = quantize_model(
        random_model(config, 5), synthetic_images(config, 32, 6), QuantizationConfig(scale_mode=mode)
    )
    images = synthetic_images(config, 32, 7)
    vit = to_integer(model)
    with torch.no_grad(), real_arithmetic(model):
        real = model(normalize(images, config.preprocessing)).numpy()
    logits = integer_logits(vit, images) * vit.logit_scale
    assert np.sqrt(np.mean((logits - real) ** 2)) < 0.08 * real.std()


def test_conversion_keeps_the_shapes():
    config = model_config("vit_digits", depth=2, layer_scale=0.1)
    vit = to_integer(
        quantize_model(random_model(config, 0), synthetic_images(config, 2, 0)), class_names=tuple("0123456789")
    )
    assert (vit.tokens, vit.embed_dim, vit.mlp_dim, vit.classes, vit.patches) == (17, 64, config.hidden_dim, 10, 16)
    assert [block.q.trits.shape for block in vit.blocks] == [(64, 64)] * 2
    assert vit.blocks[0].fc2.trits.shape == (64, config.hidden_dim) and vit.patch_embed.trits.shape == (64, 4)
    assert vit.parameters == sum(p.numel() for p in random_model(config, 0).parameters())
    assert vit.meta["classes"] == list("0123456789")


def test_a_negative_layer_scale_flips_the_trits_of_its_branch():
    config = model_config("vit_digits", depth=1, layer_scale=0.1)
    fp32 = random_model(config, 0)
    fp32.blocks[0].ls1.gamma.data.fill_(0.2)
    up = to_integer(quantize_model(fp32, synthetic_images(config, 2, 0)))
    fp32.blocks[0].ls1.gamma.data.fill_(-0.2)
    down = to_integer(quantize_model(fp32, synthetic_images(config, 2, 0)))
    np.testing.assert_array_equal(up.blocks[0].proj.trits, -down.blocks[0].proj.trits)


def test_a_fake_quantized_checkpoint_comes_back_as_the_same_integers(tmp_path):
    config = model_config("vit_digits", depth=1)
    options = QuantizationConfig("absmean", ScaleMode.PER_TOKEN)
    model = quantize_model(random_model(config, 0), synthetic_images(config, 2, 0), options)
    save_quantized(tmp_path / "q.safetensors", model, {"note": "kept"})
    again = load_quantized(tmp_path / "q.safetensors")
    files = [pack_vit(to_integer(m), planner=trivial_planner) for m in (model, again)]
    assert files[0] == files[1]


def test_an_fp32_checkpoint_is_not_taken_for_a_quantized_one(tmp_path):
    config = model_config("vit_digits", depth=1)
    save_checkpoint(tmp_path / "f.safetensors", random_model(config, 0).state_dict(), config)
    with pytest.raises(CheckpointError, match="quantize it first"):
        load_quantized(tmp_path / "f.safetensors")


def test_what_cannot_be_converted_is_refused_with_the_reason():
    config = model_config("vit_digits", depth=1)
    fp32, images = random_model(config, 0), synthetic_images(config, 2, 0)
    with pytest.raises(UsageError, match="quantize_model"):
        to_integer(fp32)
    quantized = quantize_model(fp32, images)
    with pytest.raises(UsageError, match="already"):
        quantize_model(quantized, images)
    with pytest.raises(UsageError, match="grid"):
        to_integer(quantize_model(fp32, images, QuantizationConfig(grid=False)))
    with pytest.raises(UsageError, match="3 class names"):
        to_integer(quantized, class_names=("a", "b", "c"))
    with pytest.raises(InputError, match="8x8x1"):
        quantize_model(fp32, np.zeros((1, 9, 9, 1), np.uint8))


def test_an_untrained_model_is_the_same_for_the_same_seed_and_not_trivial():
    config = replace(model_config("vit_digits", depth=1), arch="vit_digits")
    a, b, c = (pack_vit(untrained_integer_vit(config, seed), planner=trivial_planner) for seed in (0, 0, 1))
    assert a == b != c
    logits = Predictor(read_model(a)).run(synthetic_images(config, 8, 3))
    assert len(set(logits.argmax(1).tolist())) > 1 or np.ptp(logits) > 1000


def test_the_embedded_model_is_small_and_reads_97_percent_of_the_held_out_digits():
    model = read_model((files("tvhil") / "embedded" / "vit_digits.tvit").read_bytes())
    assert model.file_bytes < 64 * 1024
    images, labels, held_out = embedded_digits()
    correct = Predictor(model).run(images[held_out][..., None]).argmax(1) == labels[held_out]
    assert correct.mean() >= 0.97
    recipe = model.meta["recipe"]
    assert recipe["held_out_top1"]["integer"] == pytest.approx(correct.mean())
    assert "--seed" in recipe["arguments"]
