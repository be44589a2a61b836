# SPDX-License-Identifier: Apache-2.0
"""The torch models: equality with transformers and timm, the registry, configurations, layer factories."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tvhil.errors import InputError, UsageError
from tvhil.models import (
    Layers,
    Preprocessing,
    VisionTransformer,
    ViTConfig,
    create_model,
    list_models,
    model_config,
)
from tvhil.models.checkpoints import load_state, to_timm_keys

TINY = ViTConfig(
    image_size=16,
    patch_size=4,
    num_classes=7,
    embed_dim=24,
    depth=2,
    num_heads=3,
    preprocessing=Preprocessing(16),
)


def randomize(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def images(config: ViTConfig, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, config.in_channels, config.image_size, config.image_size, generator=generator)


def transformers_config(kind: str, config: ViTConfig):
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, f"{kind}Config")(
        hidden_size=config.embed_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        **({"mlp_ratio": int(config.mlp_ratio)} if kind == "Dinov2" else {"intermediate_size": config.hidden_dim}),
        layer_norm_eps=config.norm_eps,
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_channels=config.in_channels,
        qkv_bias=config.qkv_bias,
        num_labels=config.num_classes,
        attn_implementation="eager",
    )


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_vit_logits_equal_those_of_transformers(qkv_bias):
    transformers = pytest.importorskip("transformers")
    config = TINY.replace(qkv_bias=qkv_bias)
    theirs = transformers.ViTForImageClassification(transformers_config("ViT", config)).eval()
    randomize(theirs)
    ours = VisionTransformer(config).eval()
    report = load_state(ours, to_timm_keys(theirs.state_dict()))
    assert report.notes == ()
    x = images(config)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).logits, atol=1e-5, rtol=1e-5)


def test_vit_tokens_equal_those_of_the_bare_transformers_model():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ViTModel(transformers_config("ViT", TINY)).eval()
    randomize(theirs)
    ours = VisionTransformer(TINY).eval()
    report = load_state(ours, to_timm_keys(theirs.state_dict()), new_head=True)
    assert len(report.notes) == 2  # the weight and the bias of the head that the bare model lacks
    x = images(TINY)
    with torch.no_grad():
        tokens = ours.norm(ours.blocks(ours.embed(x)))
        torch.testing.assert_close(tokens, theirs(x).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_distilled_deit_logits_equal_those_of_transformers_with_both_heads():
    transformers = pytest.importorskip("transformers")
    config = TINY.replace(distilled=True)
    theirs = transformers.DeiTForImageClassificationWithTeacher(transformers_config("DeiT", config)).eval()
    randomize(theirs)
    ours = VisionTransformer(config).eval()
    load_state(ours, to_timm_keys(theirs.state_dict()))
    x = images(config)
    with torch.no_grad():
        output = theirs(x)
        logits, logits_dist = ours.classify(ours.blocks(ours.embed(x)))
        torch.testing.assert_close(logits, output.cls_logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits_dist, output.distillation_logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(x), output.logits, atol=1e-5, rtol=1e-5)


TOKEN_OPTIONS = [{}, {"no_embed_class": True}, {"pool": "avg"}, {"no_embed_class": True, "pool": "avg"}]


def dinov2_to_timm_keys(state):
    """Names of transformers' Dinov2, a ViT with LayerScale: here alone, as its checkpoints are no classifiers."""
    return to_timm_keys({re.sub(r"layer_scale([12])\.lambda1$", r"ls\1.gamma", n): t for n, t in state.items()})


@pytest.mark.parametrize("options", TOKEN_OPTIONS, ids=lambda o: "-".join(o) or "default")
@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
def test_logits_equal_those_computed_from_the_tokens_of_transformers(kind, options):
    """The parts of DeiT-III and of average pooling, one by one and together.

    LayerScale is Dinov2's. A class token without a position is one whose position is zero. With average pooling timm
    has no norm before the mean over the patch tokens, and `fc_norm` after it.
    """
    transformers = pytest.importorskip("transformers")
    config = TINY.replace(**options, layer_scale=1.0 if kind == "Dinov2" else None)
    theirs = getattr(transformers, f"{kind}Model")(transformers_config(kind, config)).eval()
    randomize(theirs)
    if config.no_embed_class:
        with torch.no_grad():
            theirs.embeddings.position_embeddings[:, 0] = 0
    state = (dinov2_to_timm_keys if kind == "Dinov2" else to_timm_keys)(theirs.state_dict())
    if config.no_embed_class:
        state["pos_embed"] = state["pos_embed"][:, 1:]
    if config.pool == "avg":
        state = {re.sub(r"^norm\.", "fc_norm.", name): tensor for name, tensor in state.items()}
    head = nn.Linear(config.embed_dim, config.num_classes)
    randomize(head, seed=2)
    ours = VisionTransformer(config).eval()
    assert load_state(ours, {**state, "head.weight": head.weight, "head.bias": head.bias}).notes == ()
    x = images(config)
    norm, theirs.layernorm = theirs.layernorm, nn.Identity()
    with torch.no_grad():
        tokens = theirs(x).last_hidden_state
        expected = head(norm(tokens[:, 1:].mean(dim=1) if config.pool == "avg" else tokens[:, 0]))
        assert expected.abs().mean() > 0.1
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


OPTIONS = [
    {},
    {"in_channels": 1},
    {"no_embed_class": True, "layer_scale": 0.1},
    {"pool": "avg"},
    {"pool": "avg", "class_token": False},
    {"pool": "avg", "no_embed_class": True},
    {"qkv_bias": False, "mlp_ratio": 2.6},
    {"distilled": True, "layer_scale": 0.3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "default")
def test_logits_and_parameter_names_equal_those_of_timm(options):
    pytest.importorskip("timm", reason="timm needs a torchvision beside this torch")
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

    config = TINY.replace(**options)
    arguments = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.in_channels,
        "num_classes": config.num_classes,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "init_values": config.layer_scale,
    }
    if config.distilled:
        theirs = VisionTransformerDistilled(**arguments)
    else:
        theirs = TimmVisionTransformer(
            **arguments,
            class_token=config.class_token,
            no_embed_class=config.no_embed_class,
            global_pool=config.pool,
        )
    randomize(theirs.eval())
    ours = VisionTransformer(config).eval()
    assert sorted(ours.state_dict()) == sorted(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = images(config)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_parameter_names_and_shapes_are_those_of_timms_deit3():
    state = VisionTransformer(TINY.replace(no_embed_class=True, layer_scale=1e-6)).state_dict()
    block = {
        "norm1.weight": (24,), "norm1.bias": (24,), "attn.qkv.weight": (72, 24), "attn.qkv.bias": (72,),
        "attn.proj.weight": (24, 24), "attn.proj.bias": (24,), "ls1.gamma": (24,), "norm2.weight": (24,),
        "norm2.bias": (24,), "mlp.fc1.weight": (96, 24), "mlp.fc1.bias": (96,), "mlp.fc2.weight": (24, 96),
        "mlp.fc2.bias": (24,), "ls2.gamma": (24,),
    }  # fmt: skip
    expected = {
        "cls_token": (1, 1, 24), "pos_embed": (1, 16, 24), "patch_embed.proj.weight": (24, 3, 4, 4),
        "patch_embed.proj.bias": (24,), "norm.weight": (24,), "norm.bias": (24,), "head.weight": (7, 24),
        "head.bias": (7,), **{f"blocks.{i}.{name}": shape for i in range(2) for name, shape in block.items()},
    }  # fmt: skip
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("deit_tiny", 5_717_416),
        ("deit_small", 22_050_664),
        ("deit_base", 86_567_656),
        ("deit_tiny_distilled", 5_910_800),
        ("deit_small_distilled", 22_436_432),
        ("deit3_small", 22_059_496),
        ("deit3_base", 86_585_320),
    ],
)
def test_parameter_counts_are_the_published_ones(name, parameters):
    with torch.device("meta"):
        model = VisionTransformer(model_config(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_digits_model_leaves_a_tenth_of_64_kilobytes_free_at_five_trits_a_byte():
    parameters = list(create_model("vit_digits").parameters())
    trits = sum(p.numel() for p in parameters if p.ndim in (2, 4))
    rows = sum(p.shape[0] for p in parameters if p.ndim in (2, 4))
    others = sum(p.numel() for p in parameters if p.ndim not in (2, 4)) - rows  # the rows' biases
    # A row has a 4-byte scale and a 4-byte bias; position embedding, tokens and norms have 2 bytes a value.
    assert trits / 5 + 8 * rows + 2 * others < 0.9 * 64 * 1000


def test_every_variant_builds_a_valid_configuration_that_survives_json():
    for name in list_models():
        config = model_config(name)
        assert config.arch == name
        assert ViTConfig.from_json(config.to_json()) == config


def test_a_shell_pattern_lists_variants_in_order():
    assert list_models("deit3_*") == ["deit3_base", "deit3_small"]
    assert "vit_digits" in list_models()


def test_timm_spelling_sets_patch_and_image_size():
    config = model_config("deit3_small_patch16_384")
    assert (config.arch, config.patch_size, config.image_size) == ("deit3_small", 16, 384)
    assert config.preprocessing == Preprocessing(384, crop_pct=1.0)


def test_options_change_the_configuration_and_its_preprocessing():
    config = model_config("deit_tiny", image_size=32, patch_size=4, num_classes=10, in_channels=1)
    assert config.input_shape == (32, 32, 1)
    assert (config.num_tokens, config.num_classes) == (65, 10)
    assert config.preprocessing.mode == "L"
    assert len(config.preprocessing.mean) == 1
    logits = create_model("deit_tiny", image_size=32, patch_size=4, num_classes=10, in_channels=1, depth=1)(
        torch.zeros(2, 1, 32, 32)
    )
    assert logits.shape == (2, 10)


def test_an_unknown_model_is_refused_with_near_names():
    with pytest.raises(UsageError, match="deit_smal'; did you mean deit_small"):
        model_config("deit_smal")
    with pytest.raises(UsageError, match="no such model option: depht"):
        model_config("deit_small", depht=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 5}, "image_size 16 is not a multiple of patch_size 5"),
        ({"num_heads": 5}, "embed_dim 24 is not a multiple of num_heads 5"),
        ({"class_token": False}, "without a class token, pool must be 'avg'"),
        ({"pool": "max"}, "pool 'max' is neither"),
        ({"distilled": True, "pool": "avg"}, "a distilled model needs"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"preprocessing": Preprocessing(32)}, "preprocessing makes 32x32x3 images"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        TINY.replace(**changes)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"depth": 2', '"depth": "2"', "depth must be int, not '2'"),
        ('"depth": 2', '"depth": true', "depth must be int, not True"),
        ('"depth": 2', '"depth": 0', "depth must be at least 1"),
        ('"depth": 2', '"dept": 2', "unknown ViTConfig field 'dept'"),
        ('"mean": [', '"mean": ["x", ', "mean must be tuple"),
        ('"norm_eps": 1e-06', '"norm_eps": NaN', "norm_eps must be float"),
        ("{", "[", "not JSON"),
    ],
)
def test_a_malformed_json_configuration_is_refused_by_field(old, new, message):
    text = TINY.to_json()
    assert old in text
    with pytest.raises(InputError, match=message):
        ViTConfig.from_json(text.replace(old, new))


@pytest.mark.parametrize("text", ["3", "null", "[]", "{}", '{"preprocessing": 1}'])
def test_json_that_is_no_configuration_is_refused(text):
    with pytest.raises(InputError, match="model configuration"):
        ViTConfig.from_json(text)


@settings(max_examples=25, deadline=None)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 8),
    depth=st.integers(1, 2),
    grid=st.integers(1, 3),
    patch=st.integers(1, 4),
    options=st.sampled_from(OPTIONS),
)
def test_fused_attention_computes_the_same_logits(heads, head_dim, depth, grid, patch, options):
    size = grid * patch
    config = replace(
        TINY, image_size=size, patch_size=patch, embed_dim=heads * head_dim, num_heads=heads, depth=depth,
        preprocessing=Preprocessing(size),
    ).replace(**options)  # fmt: skip
    model = VisionTransformer(config).eval()
    randomize(model)
    x = images(config)
    with torch.no_grad():
        plain = model(x)
        assert plain.shape == (3, config.num_classes)
        model.use_fused_attention()
        torch.testing.assert_close(model(x), plain, atol=1e-4, rtol=1e-4)


class Recorder(nn.Module):
    """An activation hook that notes the names and shapes of what passes through."""

    def __init__(self, name: str, channels: int, log: list) -> None:
        super().__init__()
        self.name, self.channels, self.log = name, channels, log

    def forward(self, x):
        self.log.append((self.name, tuple(x.shape), self.channels))
        return x


def test_every_activation_passes_its_hook_once_in_the_documented_order():
    log = []
    config = TINY.replace(depth=1, distilled=True)
    layers = Layers(activation=lambda name, channels: Recorder(name, channels, log))
    VisionTransformer(config, layers)(images(config, 2))
    T, b = 18, "blocks.0."
    stream, heads = (2, T, 24), (2, 3, T, 8)
    square, hidden = (2, 3, T, T), (2, T, 96)
    assert [(name, shape) for name, shape, _ in log] == [
        ("patch_embed", (2, 16, 24)), ("pos_embed", (1, T, 24)), ("cls_token", (1, 1, 24)),
        ("dist_token", (1, 1, 24)), ("embed", stream), (b + "norm1", stream), (b + "attn.q", heads),
        (b + "attn.k", heads), (b + "attn.v", heads), (b + "attn.scores", square), (b + "attn.probs", square),
        (b + "attn.context", stream), (b + "attn.proj", stream), (b + "residual1", stream),
        (b + "norm2", stream), (b + "mlp.fc1", hidden), (b + "mlp.gelu", hidden), (b + "mlp.fc2", stream),
        (b + "residual2", stream), ("norm", stream), ("head", (2, 7)), ("head_dist", (2, 7)),
    ]  # fmt: skip
    per_head = ("attn.q", "attn.k", "attn.v")
    for name, shape, channels in log:
        assert channels == (shape[1] * shape[3] if name.endswith(per_head) else shape[-1])


def test_layer_factories_are_asked_for_every_layer_by_its_state_dict_name():
    asked = []
    plain = Layers()

    def note(factory):
        def make(name, *args, **kwargs):
            asked.append(name)
            return factory(name, *args, **kwargs)

        return make

    model = VisionTransformer(TINY, Layers(note(plain.linear), note(plain.conv), note(plain.norm)))
    with_weights = {name.removesuffix(".weight") for name in model.state_dict() if name.endswith(".weight")}
    assert sorted(asked) == sorted(with_weights)


def test_fused_attention_is_refused_when_it_would_skip_a_quantizer():
    layers = Layers(activation=lambda name, channels: Recorder(name, channels, []))
    with pytest.raises(UsageError, match="FP32 only"):
        VisionTransformer(TINY, layers, fused_attention=True)


def test_configurations_need_no_torch():
    program = (
        "import sys; from tvhil.models import list_models, model_config; model_config('deit_tiny');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
