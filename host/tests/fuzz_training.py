# SPDX-License-Identifier: Apache-2.0
"""Fuzzed readers: checkpoints and what describes them, recipes, states and logs of training."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from fuzz_files import zip_archive
from fuzz_reader import JSON, PACKAGE, TOML, Reader

from tvhil.errors import CheckpointError, TvhilError, UsageError


def _torch_file(content: object, **options: Any) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def _checkpoint_seeds() -> list[bytes]:
    import torch
    from safetensors.torch import save

    from tvhil.models import model_config
    from tvhil.models.checkpoints import CONFIG_KEY

    state = {"head.weight": torch.zeros(2, 3), "pos_embed": torch.ones(1, 5, 3), "gamma_1": torch.zeros(0)}
    layer = "module.vit.encoder.layer.0."
    theirs = {f"{layer}attention.attention.{part}.weight": torch.zeros(2, 2) for part in ("query", "key", "value")}
    theirs |= {"module.vit.encoder.layer.1.attention.k_proj.weight": torch.zeros(1)}
    theirs |= {"module.vit.pooler.dense.bias": torch.zeros(1)}
    theirs |= {"module.vit.embeddings.patch_embeddings.projection.bias": torch.zeros(2)}
    found = [save(state, {CONFIG_KEY: model_config("deit_tiny").to_json()}), save(state), save(theirs)]
    found += [_torch_file({"model": state, "epoch": 3}, _use_new_zipfile_serialization=new) for new in (True, False)]
    return found


def _checkpoint_odd() -> list[bytes]:
    import torch
    from safetensors.torch import save

    from tvhil.models import model_config
    from tvhil.models.checkpoints import CONFIG_KEY

    huge = torch.zeros(1).expand(1 << 20)
    huge_model = model_config("deit_tiny").to_json().replace('"depth": 12', '"depth": 1200000')
    odd = {f"layers.0.attention.{part}_proj.weight": torch.zeros(2, 2 + (part == "v")) for part in "qkv"}
    odd["embeddings.patch_embeddings.projection.bias"] = torch.zeros(2)
    names = ("a/data.pkl", "a/version", "a/constants.pkl", "b/data.pkl")
    archives = [zip_archive(dict.fromkeys(names[:count], b"x")) for count in (1, 2, 3, 4)]
    packed = zip_archive(dict.fromkeys(names[:2], b"x"), zipfile.ZIP_DEFLATED)
    found = [_torch_file(content) for content in ({"a": huge}, [1], {"model": {"a": 1}}, {"a": Path("x")})]
    found += [*archives, packed, archives[1][:-30], b"PK\3\4", b"\x80\2}q."]
    return [*found, save(odd), *(save({"a": torch.zeros(1)}, {CONFIG_KEY: text}) for text in ("{}", huge_model))]


def _read_checkpoint(data: bytes, folder: Path) -> None:
    from tvhil.models.checkpoints import read_checkpoint
    from tvhil.models.mapping import read_mapping

    file, rules = folder / "checkpoint", folder / "names.toml"
    file.write_bytes(data)
    rules.write_text("[[rename]]\npattern = 'k'\nto = 'q'\n")
    for odd in (folder, folder / "none"):
        with contextlib.suppress(CheckpointError):
            read_checkpoint(odd)
            raise AssertionError("there is no such file")
    read_checkpoint(file)
    read_checkpoint(file, read_mapping(rules))


_STATE = {
    "net.layers.0.weight": (2, 3), "net.layers.0.alpha": (2, 1), "net.layers.1.weight": (2, 3), "net.head.bias": (2,),
    "net.layers.0.step": (1,), "net.scalar": (), "net.empty": (0, 3), "other.x": (1,),
}  # fmt: skip
_MAPPING = r"""
arch = "vit_digits"
ternarizer = "twn"
scale_mode = "static"
drop = ['^other[.]']
rename = [{pattern = '^net[.]', to = ""}, {pattern = 'layers[.](\d+)[.]', to = 'blocks.\1.'}]
scaled = [{weight = '(blocks[.].*)[.]weight', scale = '\1.alpha', round = true}]
activation = [{pattern = '(blocks[.]\d+)[.]step', to = '\1.quant_norm1.scale', unit = "absmax"}]
"""


def _mapping_seeds() -> list[bytes]:
    found = [_MAPPING, "", "drop = ['x', '(a+)+$']", _MAPPING.replace("round = true", "round = false")]
    return [text.encode() for text in (*found, _MAPPING.replace("absmax", "inverse"), 'scale_mode = "per-token"')]


def _mapping_odd() -> list[bytes]:
    changes = [
        ("twn", "absmean"), ("static", "none"), ("arch", "march"), ('"vit_digits"', "1"), ("'^other[.]'", "'('"),
        ("'^other[.]'", "1"), ("absmax", "furlong"), (", unit", ", units"), ('to = ""', "to = 1"), ("to =", "from ="),
        (r"'\1.alpha'", r"'\2.alpha'"), (r"'\1.alpha'", r"'\1.beta'"), (r"'\1.alpha'", "'head.bias'"),
        (r'\1.alpha', "empty"), ("blocks.*)[.]weight", "blocks.*)[.]weight|head[.]bia(s)"), ('to = ""', r"to = '\q'"),
        ('to = ""', r"to = '\g<a>'"), (r"layers[.](\d+)[.]'", ".*'"), (r"(blocks[.]\d+)[.]step", "(head)[.]bias"),
        ("{pattern = '^net[.]', to = \"\"}", "1"),
    ]  # fmt: skip
    found = [_MAPPING.replace(old, new) for old, new in changes]
    return [*(text.encode() for text in found), b"x", b"\xff", b"x = " + b"[" * 2000, b"x = " + b"1" * 5000]


def _read_mapping(data: bytes, folder: Path) -> None:
    import torch

    from tvhil.models.mapping import read_mapping

    file = folder / "names.toml"
    file.write_bytes(data)
    mapping = read_mapping(file)
    state = mapping.apply({name: torch.ones(shape) for name, shape in _STATE.items()})
    assert set(mapping.weights(state)) | set(mapping.activation_scales(state)) == set(state)
    with contextlib.suppress(CheckpointError):
        mapping.apply({name: torch.full(shape, 0.5) for name, shape in _STATE.items()})  # no trits


def _recipe_seeds() -> list[bytes]:
    folder = PACKAGE / "quantization" / "training" / "recipes"
    changes = "seed=1", "phase.batch=64", "phase.distil.epochs=10", "phase.augmentation.crop=2", "model.depth=4"
    text = (folder / "ftervit.toml").read_text()
    found = [path.read_text() for path in sorted(folder.glob("*.toml"))]
    return [text.encode() for text in (*found, *(f"{text}\n#set {change}\n" for change in changes))]


def _recipe_odd() -> list[bytes]:
    start = 'dataset = "digits"\narchitecture = "conv_teacher"\n'
    phase = '[[phase]]\nname = "a"\nepochs = 1\n'
    keys = ("nothing", "epoch", "optimizer", "schedule", "activations", "learning_rate", "temperature", "warmup",
            "momentum", "quantization", "augmentation")  # fmt: skip
    values = "1", '"x"', "-1", "2.0", "nan", "true", "[]", "{}", "{x = 1}"
    quantization = [
        ("scale_mode", '"x"'), ("full_precision", '["norm"]'), ("full_precision", "1"), ("full_precision", "[[]]"),
        ("full_precision", '["x"]'), ("ternarizer", '"x"'), ("calibration", '"x"'), ("gradient", '"x"'),
    ]  # fmt: skip
    changes = "x", "=1", "phase.a=1", "seed=x", "seed.a=1", "phase.b.c.d=1", "phase=1", "a=["
    found = [start + phase + f"{key} = {value}\n" for key in keys for value in values]
    found += [start + phase + f"quantization = {{ {key} = {value} }}\n" for key, value in quantization]
    found += [start + phase + f"#set {change}\n" for change in changes]
    found += [start, start + phase + phase, start + "phase = 1", start + "model = 1\n" + phase, phase, "x"]
    found.append(start + "initialization = 'x'\n" + phase)
    return [*(text.encode() for text in found), b"\xff", b"x = " + b"[" * 2000, b"x = " + b"1" * 5000]


def _read_recipe(data: bytes, folder: Path) -> None:
    from tvhil.quantization.training.recipe import load_recipe, parse_recipe, recipe_text

    for name in ("teacher", "none"):
        with contextlib.suppress(UsageError):
            load_recipe(name)
    file = folder / "recipe.toml"
    file.write_bytes(data)
    text = data.decode(errors="replace")
    recipe = load_recipe(str(file), [line[5:] for line in text.splitlines() if line.startswith("#set ")])
    values = _without_none(json.loads(recipe_text(recipe)))
    name, values["phase"] = values.pop("name"), values.pop("phases")
    assert recipe_text(parse_recipe(values, name)) == recipe_text(recipe)


def _without_none(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_none(value) for key, value in tree.items() if value is not None}
    return [_without_none(value) for value in tree] if isinstance(tree, list) else tree


def _options_seeds() -> list[bytes]:
    from tvhil.models import model_config
    from tvhil.quantization import QuantizationConfig

    hub = {"architecture": "deit_tiny_patch16_224", "pretrained_cfg": {
        "input_size": [3, 224, 224], "crop_pct": 0.9, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}  # fmt: skip
    quantization = QuantizationConfig(full_precision=("norm",)).to_json()
    return [text.encode() for text in (model_config("deit_tiny").to_json(), json.dumps(hub), quantization)]


def _options_odd() -> list[bytes]:
    hub = {"architecture": "x", "pretrained_cfg": {"mean": 1}}
    options = [
        {"ternarizer": "x"},
        {"scale_mode": "x"},
        {"calibration": "x"},
        {"gradient": "x"},
        {"full_precision": ["x"]},
    ]
    return [b"", b"1", b"[" * 9999, json.dumps(hub).encode(), *(json.dumps(one).encode() for one in options)]


def _read_options(data: bytes, folder: Path) -> None:
    """Everything in a checkpoint, and beside one, that is JSON: the last refusal where all are refused."""
    from tvhil.models.config import ViTConfig
    from tvhil.models.published import read_hub_config
    from tvhil.quantization import QuantizationConfig

    (folder / "config.json").write_bytes(data)
    text, refusal, taken = data.decode(errors="replace"), None, 0
    for read in (
        lambda: ViTConfig.from_json(text).to_json(),
        lambda: QuantizationConfig.from_json(text).to_json(),
        lambda: read_hub_config(folder / "weights"),
    ):
        try:
            taken += read() is not None
        except TvhilError as error:
            assert "\n" not in str(error)
            refusal = error
    if refusal is not None and not taken:
        raise refusal


def _training_state_seeds() -> list[bytes]:
    """A file, and the text in one."""
    import torch

    from tvhil.quantization.training.checkpoint import TrainingState

    state = {"a": torch.zeros(2)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state"
        TrainingState("{}", 1, 2, 3.0, state, {}, state, [{"accuracy": 0.5}]).save(file)
        text = {"recipe": "{}", "phase": 0, "step": 3, "seconds": 4.5, "results": [{"accuracy": 0.5}]}
        return [file.read_bytes(), json.dumps(text).encode()]


def _training_state_odd() -> list[bytes]:
    import torch
    from safetensors.torch import save

    found = [save({"model/a": torch.zeros(1)}, {"tvhil.training": text}) for text in ("1", "[" * 9999)]
    negative = b'{"recipe": "", "phase": -1, "step": 0, "seconds": 0, "results": []}'
    return [
        *found,
        save({}),
        negative,
        b"{}",
        b'{"recipe": 1, "phase": "x", "step": null, "seconds": [], "results": {}}',
    ]


def _read_training_state(data: bytes, folder: Path) -> None:
    import torch
    from safetensors.torch import save

    from tvhil.quantization.training.checkpoint import TrainingState

    file = folder / "state"
    text = {"tvhil.training": data.decode(errors="replace")}
    file.write_bytes(save({"model/a": torch.zeros(1)}, text) if data[:1] == b"{" else data)
    state = TrainingState.load(file)
    assert isinstance(state.recipe, str) and isinstance(state.results, list)
    assert state.phase >= 0 and state.step >= 0 and state.seconds >= 0


def _teacher_seeds() -> list[bytes]:
    from tvhil.models.conv_teacher import ConvTeacherConfig

    config = dataclasses.asdict(ConvTeacherConfig((2, 3, 4), num_classes=2))
    return [json.dumps(config).encode()]


def _teacher_odd() -> list[bytes]:
    good = json.loads(_teacher_seeds()[0])
    changes = [
        ("widths", "x"), ("widths", ["x", 1, 1]), ("widths", [-1, 1, 1]), ("widths", [10**9] * 3), ("x", 1),
        ("num_classes", 10**12), ("num_classes", 10**30), ("preprocessing", 1), ("preprocessing", {}),
    ]  # fmt: skip
    return [
        b"1",
        b"[" * 9999,
        b"\0",
        _checkpoint_seeds()[1],
        *(json.dumps(good | {key: value}).encode() for key, value in changes),
    ]


def _read_teacher(data: bytes, folder: Path) -> None:
    """A text is the configuration beside the tensors of a small teacher."""
    from safetensors.torch import save

    from tvhil.models.conv_teacher import ConvTeacher, ConvTeacherConfig
    from tvhil.quantization.training.models import load_any

    tensors = ConvTeacher(ConvTeacherConfig((2, 3, 4), num_classes=2)).state_dict()
    file = folder / "teacher"
    text = {"tvhil.conv_teacher": data.decode(errors="replace")}
    file.write_bytes(save(tensors, text) if data[:1] in (b"{", b"[", b"1") else data)
    load_any(file)


def _log_seeds() -> list[bytes]:
    curves = "step,loss,accuracy,phase\n" + "".join(f"{i},{2 - i / 999},{i},one\n" for i in range(20))
    phases = b"epoch,loss,phase\r\n1,0.5,one\r\n2,nan,one\r\n1,0.2,two\r\n2,"
    return [curves.encode(), phases, b"step,loss\n" + b"1,2\n" * 1100 + b'"3,', b"step, loss, loss\n1,x,3\n"]


def _read_training_log(data: bytes, folder: Path) -> None:
    from tvhil.evaluation.training_log import find_logs, read_log

    own, other = folder / "own", folder / "other"
    for place in (own, other):
        place.mkdir(exist_ok=True)
        (place / "run.csv").write_bytes(data)
        (place / "folder.csv").mkdir(exist_ok=True)
    assert find_logs(own / "run.pt") == [own / "run.csv"]
    for file in {*find_logs(other / "x.pt"), own / "run.csv"}:
        log = read_log(file)
        for column in log.curves:
            assert 0 < len(log.points(column)) <= 502


_CONFIG = ("models/config.py", "quantization/config.py")
_LOG_ODD = [b"", b"a,b\n1,2\n", b"step," + b"x" * (1 << 18)]

TRAINING_READERS = {
    "checkpoints": Reader(("models/checkpoints.py",), _read_checkpoint, _checkpoint_seeds, _checkpoint_odd),
    "options": Reader((*_CONFIG, "models/published.py"), _read_options, _options_seeds, _options_odd, tree=JSON),
    "mappings": Reader(("models/mapping.py",), _read_mapping, _mapping_seeds, _mapping_odd, tree=TOML),
    "recipes": Reader(("quantization/training/recipe.py",), _read_recipe, _recipe_seeds, _recipe_odd, tree=TOML),
    "training_state": Reader(
        ("quantization/training/checkpoint.py",),
        _read_training_state,
        _training_state_seeds,
        _training_state_odd,
        tree=JSON,
    ),
    "teachers": Reader(("quantization/training/models.py",), _read_teacher, _teacher_seeds, _teacher_odd, tree=JSON),
    "training_log": Reader(("evaluation/training_log.py",), _read_training_log, _log_seeds, lambda: _LOG_ODD),
}
