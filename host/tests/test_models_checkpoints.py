# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: every key migration, resampling, round trips, and refusals in one line."""

import argparse
import dataclasses
import errno
import os
import pickle
import threading
import warnings
import zipfile

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvhil.errors import CheckpointError
from tvhil.models import Preprocessing, VisionTransformer, ViTConfig, model_config
from tvhil.models.checkpoints import (
    CONFIG_KEY,
    load_model,
    load_state,
    read_checkpoint,
    resample_pos_embed,
    save_checkpoint,
    to_timm_keys,
)

TINY = ViTConfig(
    image_size=16,
    patch_size=4,
    num_classes=7,
    embed_dim=24,
    depth=2,
    num_heads=3,
    preprocessing=Preprocessing(16),
)
DEIT3 = TINY.replace(no_embed_class=True, layer_scale=0.5)


def random_state(config: ViTConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in VisionTransformer(config).state_dict().items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def assert_same(ours, theirs) -> None:
    assert set(ours) == set(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_tvhil_checkpoint_round_trips_with_its_configuration_and_metadata(tmp_path):
    state = random_state(DEIT3)
    save_checkpoint(tmp_path / "m.safetensors", state, DEIT3, {"recipe": "ftervit"})
    checkpoint = read_checkpoint(tmp_path / "m.safetensors")
    assert_same(checkpoint.state, state)
    assert checkpoint.config == DEIT3
    assert checkpoint.metadata == {"recipe": "ftervit"}
    model, report = load_model(tmp_path / "m.safetensors")
    assert model.config == DEIT3
    assert report.notes == ()
    assert_same(model.state_dict(), state)
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "args": argparse.Namespace(lr=1e-4), "epoch": 3},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {"state_dict_ema": s, "arch": "deit"},
        lambda s: {"model": {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}}},
    ],
    ids=["bare", "deit", "ddp", "ema", "nested"],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_torch_files_are_unwrapped(tmp_path, wrap, legacy):
    state = random_state(TINY)
    torch.save(wrap(state), tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
    assert_same(read_checkpoint(tmp_path / "c.pth").state, state)


def test_original_deit3_gammas_become_layer_scale(tmp_path):
    state = random_state(DEIT3)
    original = {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t for name, t in state.items()}
    assert "blocks.1.gamma_2" in original
    torch.save({"model": original}, tmp_path / "deit3.pth")
    assert_same(read_checkpoint(tmp_path / "deit3.pth").state, state)


def published_transformers_names(state, prefix):
    """timm's names to those in the ViT and DeiT files published for transformers before version 5."""
    names = {
        "cls_token": "embeddings.cls_token",
        "dist_token": "embeddings.distillation_token",
        "pos_embed": "embeddings.position_embeddings",
        "norm.": "layernorm.",
        "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
        "blocks.": "encoder.layer.",
        ".norm1.": ".layernorm_before.",
        ".norm2.": ".layernorm_after.",
        ".attn.proj.": ".attention.output.dense.",
        ".mlp.fc1.": ".intermediate.dense.",
        ".mlp.fc2.": ".output.dense.",
    }
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("head"):
            renamed[name.replace("head_dist", "distillation_classifier").replace("head.", "cls_classifier.")] = tensor
            continue
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[prefix + name.replace(".attn.qkv.", f".attention.attention.{part}.")] = piece
        else:
            renamed[prefix + name] = tensor
    return renamed


@pytest.mark.parametrize("distilled", [False, True])
def test_published_transformers_files_load_by_their_old_names(distilled):
    state = random_state(TINY.replace(distilled=distilled))
    theirs = published_transformers_names(state, "deit." if distilled else "vit.")
    theirs["vit.pooler.dense.weight"] = torch.zeros(24, 24)
    assert_same(to_timm_keys(theirs), state)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([TINY, DEIT3, TINY.replace(distilled=True), TINY.replace(pool="avg")]))
def test_timms_own_names_pass_through_unchanged(config):
    state = random_state(config)
    assert_same(to_timm_keys(state), state)


def test_position_embedding_is_resampled_to_a_larger_grid_keeping_the_prefix_rows(tmp_path):
    state = random_state(TINY)
    torch.save(state, tmp_path / "c.pth")
    save_checkpoint(tmp_path / "c.safetensors", state, TINY)
    model, report = load_model(tmp_path / "c.safetensors", image_size=32)
    assert model.config.grid_size == 8
    assert report.notes == ("position embedding resampled from 17 rows to 65",)
    assert torch.equal(model.pos_embed[:, :1], state["pos_embed"][:, :1])
    mean = state["pos_embed"][:, 1:].mean(dim=1)
    torch.testing.assert_close(model.pos_embed[:, 1:].mean(dim=1), mean, atol=0.15, rtol=0)


def test_a_constant_position_embedding_stays_constant_when_resampled():
    config = DEIT3.replace(image_size=24)
    out = resample_pos_embed(torch.full((1, 16, 24), 0.75), config)
    assert out.shape == (1, 36, 24)
    torch.testing.assert_close(out, torch.full((1, 36, 24), 0.75))


def test_resampling_equals_timms():
    timm_layers = pytest.importorskip("timm.layers", reason="timm needs a torchvision beside this torch")
    pos_embed = torch.randn(1, 17, 24, generator=torch.Generator().manual_seed(0))
    for size in (8, 12, 28):
        theirs = timm_layers.resample_abs_pos_embed(pos_embed, [size // 4] * 2, num_prefix_tokens=1)
        assert torch.equal(resample_pos_embed(pos_embed, TINY.replace(image_size=size)), theirs)


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"]
)
def test_a_checkpoint_that_timm_wrote_gives_timms_logits_also_at_another_size(tmp_path, name):
    timm = pytest.importorskip("timm", reason="timm needs a torchvision beside this torch")
    theirs = timm.create_model(name, depth=2).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    variant = dataclasses.replace(model_config(name), depth=2)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "c.safetensors")
    for size in (224, 160):
        model = VisionTransformer(variant.replace(image_size=size)).eval()
        load_state(model, read_checkpoint(tmp_path / "c.safetensors").state)
        theirs.set_input_size((size, size))
        x = torch.randn(1, 3, size, size, generator=generator)
        with torch.no_grad():
            torch.testing.assert_close(model(x), theirs(x), atol=1e-4, rtol=1e-4)


def test_weights_that_are_not_finite_are_refused_by_name():
    state = random_state(TINY)
    state["blocks.1.mlp.fc2.bias"][3] = torch.nan
    with pytest.raises(CheckpointError, match=r"not finite .*: blocks\.1\.mlp\.fc2\.bias"):
        load_state(VisionTransformer(TINY), state)


def test_image_patch_and_class_counts_of_a_foreign_file_come_from_its_shapes(tmp_path):
    config = model_config("deit_tiny", image_size=24, patch_size=8, num_classes=5)
    state = dict(VisionTransformer(config).state_dict())
    safetensors.torch.save_file(state, tmp_path / "c.safetensors")
    model, report = load_model(tmp_path / "c.safetensors", arch="deit_tiny")
    assert model.config == config
    assert report.notes == ()


def test_a_file_without_configuration_asks_for_the_architecture(tmp_path):
    safetensors.torch.save_file(random_state(TINY), tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="does not say what model it is of: name it with --arch"):
        load_model(tmp_path / "c.safetensors")


def test_another_class_count_is_refused_unless_a_new_head_is_asked_for(tmp_path):
    save_checkpoint(tmp_path / "c.safetensors", random_state(TINY), TINY)
    with pytest.raises(CheckpointError, match=r"head.weight is \[7, 24\], wants \[3, 24\].*new_head"):
        load_model(tmp_path / "c.safetensors", num_classes=3)
    model, report = load_model(tmp_path / "c.safetensors", num_classes=3, new_head=True)
    assert model.head.weight.shape == (3, 24)
    assert len(report.notes) == 2
    assert "head.weight had [7, 24]: starts afresh as [3, 24]" in report.notes


def test_missing_unexpected_and_misshaped_tensors_are_named_with_their_shapes():
    state = random_state(TINY)
    del state["blocks.1.mlp.fc2.bias"]
    state["blocks.7.norm1.weight"] = torch.zeros(24)
    state["norm.weight"] = torch.zeros(23)
    with pytest.raises(CheckpointError) as caught:
        load_state(VisionTransformer(TINY), state)
    assert str(caught.value) == (
        "does not fit vit: missing: blocks.1.mlp.fc2.bias [24]; unexpected: blocks.7.norm1.weight [24]; "
        "mis-shaped: norm.weight is [23], wants [24]"
    )


def test_a_long_list_of_faults_stays_one_readable_line():
    with pytest.raises(CheckpointError) as caught:
        load_state(VisionTransformer(TINY), {"blocks.0.x": torch.zeros(1)})
    message = str(caught.value)
    assert "and 28 more" in message
    assert len(message) < 400
    assert "\n" not in message


def test_tensors_that_may_be_lacking_keep_the_models_values():
    state = random_state(TINY)
    del state["norm.weight"]
    model = VisionTransformer(TINY)
    load_state(model, state, may_lack=r"^norm\.")
    assert torch.equal(model.norm.weight, torch.ones(24))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_torch_file_is_never_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"model": {"x": torch.zeros(1)}, "extra": Hostile()}, tmp_path / "zip.pth")
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(Hostile(), protocol=4))
    for name in ("zip.pth", "bare.pkl"):
        with warnings.catch_warnings(), pytest.raises(CheckpointError, match="never unpickled"):
            warnings.simplefilter("error")  # torch warns of the protocol
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


def test_damaged_empty_and_absent_files_are_refused_in_one_line(tmp_path):
    save_checkpoint(tmp_path / "good.safetensors", random_state(TINY), TINY)
    torch.save(random_state(TINY), tmp_path / "good.pth")
    for good in ("good.safetensors", "good.pth"):
        content = (tmp_path / good).read_bytes()
        for length in (0, 5, 100, len(content) // 2, len(content) - 1):
            (tmp_path / "cut").write_bytes(content[:length])
            with pytest.raises(CheckpointError) as caught:
                read_checkpoint(tmp_path / "cut")
            assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "absent")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list, not named tensors"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "none that torch.save wrote"),
        (["hello.txt"], "none that torch.save wrote"),
        (["photos/1.jpg"], "none that torch.save wrote"),
        (["a/data.pkl", "a/version", "b/data.pkl"], "none that torch.save wrote"),
        (["a/data.pkl", "a/version", "a/constants.pkl"], "a TorchScript program: save its state_dict"),
        (["a/data.pkl", "a/version"], "is damaged, or no torch file"),
    ],
)
def test_a_zip_archive_that_is_no_torch_file_is_refused_without_words_of_torch(tmp_path, names, message):
    file = tmp_path / "c.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "hello")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(file)
    assert "PyTorch" not in str(caught.value)


def test_a_zip_archive_that_is_cut_off_is_refused_as_one(tmp_path):
    torch.save(random_state(TINY), tmp_path / "c.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "c.pth").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="a zip archive without its end"):
        read_checkpoint(tmp_path / "cut.pth")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


def test_a_malformed_configuration_in_the_metadata_is_refused_with_the_file(tmp_path):
    metadata = {CONFIG_KEY: TINY.to_json().replace('"depth": 2', '"depth": -2')}
    safetensors.torch.save_file(random_state(TINY), tmp_path / "c.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"c\.safetensors: model configuration: depth must be at least 1"):
        read_checkpoint(tmp_path / "c.safetensors")


def test_a_checkpoint_that_cannot_be_written_is_reported_and_leaves_nothing(tmp_path):
    (tmp_path / "a file").write_text("not a folder")
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(tmp_path / "a file" / "c.safetensors", random_state(TINY), TINY)
    assert [file.name for file in tmp_path.iterdir()] == ["a file"]


def test_a_checkpoint_is_written_into_a_pipe_or_device_not_in_its_place(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    save_checkpoint(pipe, random_state(TINY), TINY)
    assert pipe.is_fifo()
    reader.join(10)
    (tmp_path / "c.safetensors").write_bytes(read[0])
    assert_same(read_checkpoint(tmp_path / "c.safetensors").state, random_state(TINY))


def test_a_disk_that_is_full_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    file = tmp_path / "c.safetensors"
    save_checkpoint(file, random_state(TINY), TINY)
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(file, random_state(TINY, 1), TINY)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
