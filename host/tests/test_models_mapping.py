# SPDX-License-Identifier: Apache-2.0
"""Mapping files: checkpoints of other projects become timm's names, weights and activation scales."""

import numpy as np
import pytest
import torch
from test_models_checkpoints import TINY, random_state

from tvhil.cli import main
from tvhil.errors import CheckpointError, InputError
from tvhil.models import VisionTransformer, load_model, read_checkpoint
from tvhil.models.mapping import load_activation_scales, read_mapping
from tvhil.quantization import load_quantized, quantize_model
from tvhil.quantization.ternarizers import twn

ARCH = 'arch = "vit_digits"\n'
RULES = r"""
drop = ['^teacher[.]', 'step_count$']

[[rename]]
pattern = '^backbone[.]'
to = ""

[[rename]]
pattern = 'layers[.](\d+)[.]'
to = 'blocks.\1.'

[[scaled]]
weight = '(blocks[.].*)[.]weight'
scale = '\1.alpha'
"""


def write(path, text):
    path.write_text(text)
    return read_mapping(path)


def foreign(state):
    """Latent or ternary weights by another project's names, scales of the blocks' matrices apart."""
    theirs = {"teacher.x": torch.zeros(3), "step_count": torch.zeros(())}
    for name, tensor in state.items():
        new = "backbone." + name.replace("blocks.", "layers.")
        if name.startswith("blocks.") and name.endswith("weight") and tensor.ndim == 2:
            ternary = twn(tensor)
            theirs[new], theirs[new.replace(".weight", ".alpha")] = ternary.trits.to(torch.int8), ternary.scale[:, None]
        else:
            theirs[new] = tensor
    return theirs


def test_trits_with_scales_apart_become_weights_that_ternarize_to_themselves(tmp_path):
    state = random_state(TINY)
    torch.save(foreign(state), tmp_path / "c.pth")
    mapping = write(tmp_path / "m.toml", RULES)
    mapped = read_checkpoint(tmp_path / "c.pth", mapping).state
    assert set(mapped) == set(state)
    matrices = 0
    for name, tensor in mapped.items():
        if name.startswith("blocks.") and name.endswith("weight") and tensor.ndim == 2:
            theirs = twn(state[name])
            ours = twn(tensor)
            assert torch.equal(ours.trits, theirs.trits)
            assert torch.equal(ours.scale, theirs.scale)
            matrices += 1
        else:
            assert torch.equal(tensor, state[name])
    assert matrices == 8


def test_a_learned_step_rounds_latent_weights(tmp_path):
    mapping = write(tmp_path / "m.toml", "[[scaled]]\nweight='(.*)[.]w'\nscale='\\1.s'\nround=true\n")
    out = mapping.apply({"a.w": torch.tensor([[0.2, 0.6, -3.0]]), "a.s": torch.tensor(0.5), "b.w": torch.ones(2, 2)})
    assert out["a.w"].tolist() == [[0.0, 0.5, -0.5]]
    assert set(out) == {"a.w", "b.w"}


def test_activation_steps_take_the_place_of_calibrated_scales(tmp_path):
    rules = "[[activation]]\npattern='(blocks[.]\\d+)[.]in_{}'\nto='\\1.quant_norm1.scale'\nunit='{}'\n"
    text = "".join(rules.format(unit, unit) for unit in ("step", "absmax", "inverse"))
    mapping = write(tmp_path / "m.toml", text)
    state = {"blocks.0.in_step": 0.5, "blocks.1.in_absmax": 12.7, "blocks.2.in_inverse": 8.0}
    scales = mapping.apply({name: torch.tensor([value]) for name, value in state.items()})
    assert {name: float(v) for name, v in scales.items()} == pytest.approx(
        {"blocks.0.quant_norm1.scale": 0.5, "blocks.1.quant_norm1.scale": 0.1, "blocks.2.quant_norm1.scale": 0.125}
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    model = quantize_model(VisionTransformer(TINY), images)
    del scales["blocks.2.quant_norm1.scale"]
    assert load_activation_scales(model, scales) == 2
    assert float(model.blocks[1].quant_norm1.scale) == pytest.approx(0.1)
    with pytest.raises(CheckpointError, match=r"no activation scale blocks\.9\.quant_norm1\.scale"):
        load_activation_scales(model, {"blocks.9.quant_norm1.scale": torch.ones(())})
    with pytest.raises(CheckpointError, match="is nan: it must be positive"):
        load_activation_scales(model, {"blocks.0.quant_norm1.scale": torch.tensor(float("nan"))})


def test_the_command_quantizes_a_mapped_checkpoint_with_its_scales(tmp_path, capsys):
    from tvhil.models import model_config

    config = model_config("vit_digits")
    theirs = foreign(random_state(config)) | {"backbone.layers.0.input_step": torch.tensor(0.03125)}
    torch.save({"model": theirs}, tmp_path / "c.pth")
    activation = "[[activation]]\npattern='(blocks[.]0)[.]input_step'\nto='\\1.quant_norm1.scale'\n"
    (tmp_path / "m.toml").write_text(ARCH + RULES + activation)
    arguments = ["quantize", tmp_path / "c.pth", "--mapping", tmp_path / "m.toml", "-o", tmp_path / "q.safetensors"]
    assert main([str(a) for a in [*arguments, "--calibrate", "digits", "--limit", 8]]) == 0
    assert "1 activation scales are the checkpoint's" in capsys.readouterr().err
    quantized = load_quantized(tmp_path / "q.safetensors")
    assert float(quantized.blocks[0].quant_norm1.scale) == 0.03125
    trits = twn(random_state(config)["blocks.0.mlp.fc1.weight"]).trits
    assert torch.equal(quantized.blocks[0].mlp.fc1.integers().trits.abs(), trits.abs())
    model, _ = load_model(tmp_path / "c.pth", mapping=read_mapping(tmp_path / "m.toml"))
    assert model.config.arch == "vit_digits"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = ", "is not TOML"),
        ("archs = 'x'", "there is no key 'archs'; known: arch, ternarizer"),
        ("arch = 3", "arch must be a str, not 3"),
        ("rename = ['a']", "rename is a list of tables"),
        ("[[rename]]\npattern='a'", "has no to"),
        ("[[rename]]\npattern='('\nto=''", r"rename.pattern '\(' is no regular expression"),
        ("[[rename]]\npattern='a'\nto='\\2'", "takes group 2, which 'a' does not have"),
        ("[[rename]]\npattern='a'\nto=1", "to = 1 is unknown in .*, or of the wrong type"),
        ("drop = ['[']", "is no regular expression"),
        ("scale_mode = 'dynamic'", "scale_mode is 'static' or 'per-token'"),
        ("[[activation]]\npattern='a'\nto='b'\nunit='volt'", "unit is one of step, absmax, inverse"),
        ("ternarizer='absmean'\n[[scaled]]\nweight='a'\nscale='b'", "keep them only under twn or binary"),
    ],
)
def test_a_malformed_mapping_is_refused_with_what_is_wrong(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        write(tmp_path / "m.toml", text)
    assert "m.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mapping_that_does_not_fit_the_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the mapping .*absent\.toml: No such file"):
        read_mapping(tmp_path / "absent.toml")
    scaled = write(tmp_path / "m.toml", "[[scaled]]\nweight='(.*)[.]w'\nscale='\\1.s'\n")
    for state, message in [
        ({"a.w": torch.ones(2, 3)}, "finds no weight"),
        ({"a.w": torch.ones(2, 3), "a.s": torch.ones(3)}, "a.s has 3 values for the 2 rows of a.w"),
        ({"a.w": torch.full((2, 3), 0.5), "a.s": torch.ones(2)}, "holds other values than -1, 0 and 1"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            scaled.apply(state)
    same = write(tmp_path / "m.toml", "[[rename]]\npattern='[ab]'\nto='c'\n")
    with pytest.raises(CheckpointError, match=r"gives a\.x and b\.x the same name c\.x"):
        same.apply({"a.x": torch.ones(1), "b.x": torch.ones(1)})
