# SPDX-License-Identifier: Apache-2.0
"""Augmentations, optimizers, schedules, moving average and log of the trainer, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tvhil.models import model_config
from tvhil.models.conv_teacher import ConvTeacher, ConvTeacherConfig
from tvhil.models.vision_transformer import VisionTransformer
from tvhil.quantization.training.augmentation import (
    OPERATIONS,
    augment,
    crop_and_flip,
    erase,
    mix,
    random_operation,
    small_affine,
)
from tvhil.quantization.training.log import Log, Row, read_log
from tvhil.quantization.training.models import init_mimetic
from tvhil.quantization.training.optimizers import MovingAverage, Muon, Optimizers, orthogonalize, rate_factor
from tvhil.quantization.training.recipe import Augmentation, Phase

SEEDS = st.integers(0, 2**32 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(seed: int, count: int = 6, size: int = 8, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, size, size), generator=generator(seed), dtype=torch.uint8)


@given(SEEDS, st.integers(0, 4), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_crop_is_a_window_of_the_reflected_image_perhaps_mirrored(seed, border, flip):
    images = pictures(seed)
    out = crop_and_flip(images, border, flip, generator(seed))
    assert out.shape == images.shape
    for image, got in zip(images, out, strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (border, border), (border, border)), mode="reflect")
        windows = [padded[:, y : y + 8, x : x + 8] for y in range(2 * border + 1) for x in range(2 * border + 1)]
        windows += [w[:, :, ::-1] for w in windows] if flip else []
        assert any(np.array_equal(w, got.numpy()) for w in windows)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_erasing_changes_one_box_of_the_chosen_images_and_nothing_else(seed):
    images = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    out = erase(images + 7, 0.5, generator(seed))
    changed = (out != 7).any(1)
    for mask in changed[changed.any(2).any(1)]:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        area = (int(rows[-1] - rows[0]) + 1) * (int(columns[-1] - columns[0]) + 1)
        assert area <= 0.45 * 256 and mask.sum() >= 0.8 * area  # noise is 7 in all channels once in 2^24
    assert torch.equal(erase(images, 0.0, generator(seed)), images)


def test_mixup_and_cutmix_mix_images_as_their_share_says():
    images, labels = pictures(0, size=16), torch.arange(6)
    plain = mix(images, labels, Augmentation(mixup=1.0, mix=0.0), generator(0))
    assert plain.share == 1 and torch.equal(plain.images, images)
    for seed in range(30):
        mixed = mix(images, labels, Augmentation(mixup=0.8), generator(seed))
        expected = images.float() * mixed.share + images.flip(0).float() * (1 - mixed.share)
        assert (mixed.images.float() - expected).abs().max() <= 0.51
        assert torch.equal(mixed.second, labels.flip(0)) and 0 <= mixed.share <= 1
        mixed = mix(images, labels, Augmentation(cutmix=1.0), generator(seed))
        foreign = (mixed.images != images).any(1).float().mean()
        assert float(foreign) == pytest.approx(1 - mixed.share, abs=0.01)


def test_both_mixing_kinds_are_drawn():
    images, labels = pictures(0, size=16), torch.arange(6)
    options = Augmentation(mixup=1.0, cutmix=1.0)
    cut = [bool((mix(images, labels, options, generator(s)).images == images).all(1).any()) for s in range(40)]
    assert 5 < sum(cut) < 40


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_of_randaugment_keeps_shape_and_type_and_mostly_does_nothing_at_magnitude_zero(operation):
    images = pictures(1, count=4, size=16)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0])
    for channels in (1, 3):
        out = operation(images[:, :channels], 0.9, sign)
        assert out.shape == images[:, :channels].shape and out.dtype == torch.uint8
    still = operation(images, 0.0, sign)
    if operation.__name__ not in ("_autocontrast", "_equalize", "_blend"):
        assert (still.int() - images.int()).abs().max() <= 1


def test_randaugment_changes_images_each_in_its_own_way_and_repeats_with_its_seed():
    images = pictures(2, count=1, size=16).expand(64, 3, 16, 16)
    out = random_operation(images, 9, generator(3))
    assert torch.equal(out, random_operation(images, 9, generator(3)))
    assert len({image.numpy().tobytes() for image in out}) > 10


def test_an_affine_map_without_strength_is_the_identity():
    images = pictures(3)
    assert torch.equal(small_affine(images, Augmentation(), generator(0)), images)
    moved = small_affine(images, Augmentation(degrees=20, shift=1, scale=0.2, shear=0.2), generator(0))
    assert moved.shape == images.shape and not torch.equal(moved, images)


def test_a_batch_depends_on_its_seed_alone():
    options = Augmentation(2, True, 10, 1, 0.1, 0.1, 2, 9, 0.5, 0.5, 1.0, 0.5)
    first, again, other = (augment(pictures(4), torch.arange(6), options, generator(s)) for s in (5, 5, 6))
    assert torch.equal(first.images, again.images) and first.share == again.share
    assert not torch.equal(first.images, other.images)
    same = augment(pictures(4), torch.arange(6), Augmentation(), generator(5))
    assert torch.equal(same.images, pictures(4)) and same.share == 1


@pytest.mark.parametrize("shape", [(16, 48), (48, 16)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    out = orthogonalize(matrices)
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.5 and values.max() < 1.35
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    cosine = (out * (u @ v)).sum((1, 2)) / out.norm(dim=(1, 2)) / (u @ v).norm(dim=(1, 2))
    assert cosine.min() > 0.95


def test_muon_takes_stacked_matrices_apart_and_steps_channels_last_filters():
    torch.manual_seed(0)
    stacked, alone = nn.Parameter(torch.randn(12, 6)), [nn.Parameter(torch.empty(4, 6)) for _ in range(3)]
    gradient = torch.randn(12, 6)
    for p, part, g in zip(alone, stacked.detach().chunk(3), gradient.chunk(3), strict=True):
        p.data.copy_(part)
        p.grad = g
    stacked.grad = gradient
    before = stacked.detach().clone()
    Muon([stacked], 0.1, momentum=0.5, parts={id(stacked): 3}).step()
    Muon(alone, 0.1, momentum=0.5).step()
    torch.testing.assert_close(torch.cat([p.detach() for p in alone]), stacked.detach())
    assert not torch.equal(before, stacked.detach())
    plain = nn.Parameter(torch.randn(8, 4, 3, 3))
    last = nn.Parameter(plain.detach().clone().to(memory_format=torch.channels_last))
    plain.grad = torch.randn_like(plain)
    last.grad = plain.grad.clone().to(memory_format=torch.channels_last)
    for p in (plain, last):
        Muon([p], 0.1, fixed_norm=frozenset([id(p)])).step()
    torch.testing.assert_close(plain.detach(), last.detach())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_every_parameter_that_has_a_gradient_is_stepped_once(optimizer, kind):
    torch.manual_seed(0)
    if kind == "vit":
        model: nn.Module = VisionTransformer(model_config("vit_digits", depth=1, embed_dim=32, num_heads=2))
    else:
        model = ConvTeacher(ConvTeacherConfig((8, 8, 8)))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    optimizers = Optimizers(model, Phase("a", 1, optimizer=optimizer, learning_rate=0.1))
    optimizers.set_rate(0.5)
    optimizers.step()
    for name, p in model.named_parameters():
        assert torch.equal(before[name], p) != p.requires_grad, name
        assert p.grad is None


def test_the_learning_rate_warms_up_and_falls_as_its_schedule_says():
    def rates(**options):
        return [rate_factor(Phase("a", 10, **options), step, 100, 10) for step in range(100)]

    assert rates(schedule="constant", warmup=0) == [1.0] * 100
    linear = rates(schedule="linear", warmup=2, final_rate=0.1)
    assert linear[:20] == pytest.approx([(i + 1) / 21 for i in range(20)])
    assert linear[20] == 1.0 and linear[99] == pytest.approx(0.1 + 0.9 / 80)
    cosine = rates(schedule="cosine", warmup=0)
    assert cosine[0] == 1.0 and cosine[50] == pytest.approx(0.5) and sorted(cosine, reverse=True) == cosine
    assert rate_factor(Phase("a", 0.1, warmup=5), 0, 1, 10) > 0  # shorter than its own warm-up


def test_a_moving_average_follows_with_a_decay_that_grows():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = MovingAverage(model, 0.5)
    model.weight.data.fill_(1.0)
    expected = 0.0
    for step in range(20):
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = expected * decay + 1 - decay
        assert float(average.state["weight"]) == pytest.approx(expected, rel=1e-5)


def test_the_log_of_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    log = Log(tmp_path, None)
    for name, step in (("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3)):
        log.write(Row(name, step, step / 2, loss=1 / 3))
    (tmp_path / "log.csv").open("a").write("b,4,2.0,0.3")  # a line that a crash cut off
    Log(tmp_path, (["a"], "b", 2)).write(Row("b", 3, 1.5))
    assert [(row["phase"], row["step"]) for row in read_log(tmp_path / "log.csv")] == [
        ("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"), ("b", "3"),
    ]  # fmt: skip
    assert read_log(tmp_path / "log.csv")[0]["loss"] == "0.333333"
    assert read_log(tmp_path / "none.csv") == []


def test_mimetic_attention_starts_with_each_place_looking_at_itself():
    torch.manual_seed(0)
    config = model_config("vit_cifar_nano", depth=1)
    model = VisionTransformer(config)
    init_mimetic(model)
    weight, dim, size = model.blocks[0].attn.qkv.weight.detach(), config.embed_dim, config.head_dim
    for head in range(config.num_heads):
        rows = slice(head * size, (head + 1) * size)
        product = weight[:dim][rows].T @ weight[dim : 2 * dim][rows]
        assert product.diagonal().mean() > 3 * product.fill_diagonal_(0).abs().mean()
    value = model.blocks[0].attn.proj.weight.detach() @ weight[2 * dim :]
    assert float(value.diagonal().mean()) == pytest.approx(-0.4, abs=0.05)


def test_whitening_makes_patches_of_training_images_uncorrelated():
    torch.manual_seed(0)
    images = nn.functional.avg_pool2d(torch.randn(200, 3, 34, 34), 3, stride=1)
    model = ConvTeacher(ConvTeacherConfig((8, 8, 8)))
    model.whiten(images)
    white = model.whitening(images)[:, :12].transpose(0, 1).flatten(1)
    covariance = white @ white.T / white.shape[1]
    variances = covariance.diagonal().clone()
    assert 0.9 < variances.max() < 1.01 and (covariance - torch.diag(variances)).abs().max() < 0.02
