# SPDX-License-Identifier: Apache-2.0
"""Recipes: what is trained, in which phases, as TOML files. Needs no torch.

A recipe names an architecture and a list of phases. Each phase starts from the weights that the one before ended with.
Unknown keys and values of the wrong type are refused with the nearest key that exists.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from tvhil.errors import InputError, UsageError
from tvhil.packing.format import ScaleMode
from tvhil.quantization.config import QuantizationConfig

CONV_TEACHER = "conv_teacher"  # the architecture that is no ViT
OPTIMIZERS = ("adamw", "sgd", "muon")
SCHEDULES = ("cosine", "linear", "constant")
ACTIVATIONS = ("integer", "real")
INITIALIZATIONS = ("scaled", "timm", "mimetic")


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied. Everything is off by default.

    Attributes:
        crop: pixels of reflected border in which the image is shifted.
        flip: mirror left and right, half of the images.
        degrees, shift, scale, shear: largest rotation, translation in pixels, relative change of size, and shear of a
            bilinear affine map.
        randaugment: operations an image (RandAugment, Cubuk et al., arXiv 1909.13719).
        magnitude: of these operations, 0 to 10.
        mixup: alpha of the Beta distribution (Zhang et al., arXiv 1710.09412).
        cutmix: the same (Yun et al., arXiv 1905.04899). With both, each batch draws which.
        mix: share of the batches that are mixed at all.
        erasing: probability that a random box of an image is filled with noise (Zhong et al., arXiv 1708.04896).
    """

    crop: int = 0
    flip: bool = False
    degrees: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    randaugment: int = 0
    magnitude: float = 9.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix: float = 1.0
    erasing: float = 0.0


@dataclass(frozen=True)
class Phase:
    """One stretch of training with its own schedule.

    Attributes:
        name: of the phase and of its checkpoint.
        epochs: passes over the training images; a fraction is fine.
        batch: images an optimizer step, over all processes and accumulated parts.
        optimizer: 'adamw'; 'sgd' with Nesterov momentum; 'muon' (Jordan, 2024), which steps along the orthogonalized
            momentum of each matrix inside the network, and leaves the rest to AdamW.
        learning_rate: its largest value; with 'muon' that of the matrices.
        adamw_learning_rate: of what 'muon' leaves to AdamW.
        schedule: from the end of the warm-up to the end: 'cosine', 'linear' or 'constant'.
        warmup: epochs in which the learning rate rises linearly.
        final_rate: share of the learning rate that is left at the end.
        weight_decay: decoupled, of matrices.
        momentum: of 'sgd' and 'muon'.
        clip_norm: largest norm of the gradient; 0 does not clip.
        label_smoothing: of the cross-entropy.
        distillation: share of the KL divergence from the teacher's probabilities (Hinton et al., arXiv 1503.02531) in
            the loss; the rest is the cross-entropy.
        temperature: of the distillation.
        ema: decay a step of the moving average of the weights, which is then what the phase hands on; 0 for none.
        recalibrations: how often activation scales are found anew, evenly over the first three quarters.
        activations: of a quantized phase: 'integer' computes as the device does; 'real' quantizes weights only, several
            times faster, for the long first part of a schedule whose end is 'integer'.
        quantization: None trains full precision.
        augmentation: of the training images.
    """

    name: str
    epochs: float
    batch: int = 128
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    adamw_learning_rate: float = 2e-3
    schedule: str = "cosine"
    warmup: float = 0.0
    final_rate: float = 0.0
    weight_decay: float = 0.05
    momentum: float = 0.9
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    distillation: float = 0.0
    temperature: float = 1.0
    ema: float = 0.0
    recalibrations: int = 0
    activations: str = "integer"
    quantization: QuantizationConfig | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        where = f"phase {self.name!r}"
        _choose(where, "optimizer", self.optimizer, OPTIMIZERS)
        _choose(where, "schedule", self.schedule, SCHEDULES)
        _choose(where, "activations", self.activations, ACTIVATIONS)
        _require(self.epochs > 0, f"{where}: epochs must be positive, not {self.epochs}")
        _require(self.batch >= 1, f"{where}: batch must be at least 1, not {self.batch}")
        _require(self.learning_rate > 0, f"{where}: learning_rate must be positive, not {self.learning_rate}")
        _require(self.temperature > 0, f"{where}: temperature must be positive, not {self.temperature}")
        _require(self.warmup >= 0, f"{where}: warmup must not be negative, it is {self.warmup}")
        for name in ("final_rate", "label_smoothing", "distillation"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"{where}: {name} must be 0 to 1, not {value}")
        for name in ("momentum", "ema"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"{where}: {name} must be 0 or more and below 1, not {value}")


@dataclass(frozen=True)
class Recipe:
    """What `tvhil train` runs.

    Attributes:
        name: of the file, without its suffix.
        title: one line.
        source: where the recipe comes from.
        dataset: a name of `tvhil.datasets`.
        architecture: a registered ViT, or 'conv_teacher'.
        model: changes to its configuration.
        initialization: of a model that starts from nothing: 'scaled' keeps the variance of each layer's input, 'timm'
            is timm's, 'mimetic' starts attention as a trained one looks (Trockman and Kolter, arXiv 2305.09828).
        seed: of weights, order and augmentation.
        phases: in order.
    """

    name: str
    title: str
    source: str
    dataset: str
    architecture: str
    phases: tuple[Phase, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    initialization: str = "scaled"
    seed: int = 0

    def __post_init__(self) -> None:
        _choose(f"recipe {self.name}", "initialization", self.initialization, INITIALIZATIONS)
        _require(len(self.phases) > 0, f"recipe {self.name} has no phase: add a [[phase]] table")
        names = [phase.name for phase in self.phases]
        twice = next((n for n in names if names.count(n) > 1), None)
        _require(twice is None, f"recipe {self.name} has two phases called {twice!r}")
        quantized = [phase.name for phase in self.phases if phase.quantization is not None]
        if self.architecture == CONV_TEACHER and quantized:
            raise InputError(f"recipe {self.name}: phase {quantized[0]!r} quantizes, {CONV_TEACHER} is full precision")

    @property
    def needs_teacher(self) -> bool:
        """Whether a phase distils."""
        return any(phase.distillation > 0 for phase in self.phases)

    def to_json(self) -> dict[str, Any]:
        """Every field, for reports, checkpoints and the model file."""
        values = dataclasses.asdict(self)
        for phase in values["phases"]:
            if phase["quantization"] is not None:
                phase["quantization"]["scale_mode"] = phase["quantization"]["scale_mode"].name.lower()
                phase["quantization"]["full_precision"] = list(phase["quantization"]["full_precision"])
        values["phases"] = list(values["phases"])
        values["model"] = dict(values["model"])
        return values


def list_recipes() -> dict[str, str]:
    """Name and title of the recipes in the package, sorted."""
    folder = files("tvhil.quantization.training") / "recipes"
    names = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return {name: load_recipe(name).title for name in names}


def load_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe of the package by name, or a TOML file.

    Args:
        name: a name of `list_recipes()`, or a path that ends in '.toml'.
        changes: 'KEY=VALUE', the value in TOML (a bare word is a string): `seed=1`, `phase.batch=64` for every phase,
            `phase.distil.epochs=10` for the phase of that name, `phase.augmentation.crop=2`, `model.depth=4`.

    Raises:
        UsageError: no such recipe, or a malformed change.
        InputError: not TOML, unknown keys, wrong types or values.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"no recipe at {path}")
        text, stem = path.read_text(encoding="utf-8", errors="replace"), path.stem
    else:
        folder = files("tvhil.quantization.training") / "recipes"
        known = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}, or a .toml file"
            raise UsageError(f"no recipe is called {name!r}; {hint}")
        text, stem = (folder / f"{name}.toml").read_text(encoding="utf-8"), name
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of a number and of nesting, too
        raise InputError(f"recipe {name} is not TOML: {error}") from None
    for change in changes:
        _apply(values, change)
    return parse_recipe(values, stem)


def parse_recipe(values: dict[str, Any], name: str) -> Recipe:
    """A recipe from the tables of its TOML file.

    Raises:
        InputError: unknown keys, wrong types or values.
    """
    values = dict(values)
    phases = values.pop("phase", [])
    if not isinstance(phases, list) or not all(isinstance(phase, dict) for phase in phases):
        raise InputError(f"recipe {name}: phases are [[phase]] tables")
    values["phases"] = tuple(_phase(dict(phase), i) for i, phase in enumerate(phases))
    recipe: Recipe = _build(Recipe, {"name": name, "title": name, "source": "", **values}, f"recipe {name}")
    return recipe


def _phase(values: dict[str, Any], index: int) -> Phase:
    where = f"phase {values.get('name', index)!r}"
    if "quantization" in values:
        table = dict(_table(values["quantization"], f"{where}, quantization"))
        mode = str(table.get("scale_mode", "static"))
        _choose(where, "scale_mode", mode, [m.name.lower() for m in ScaleMode])
        table["scale_mode"] = ScaleMode[mode.upper()]
        if isinstance(table.get("full_precision"), list):
            table["full_precision"] = tuple(table["full_precision"])
        values["quantization"] = _build(QuantizationConfig, table, f"{where}, quantization")
    if "augmentation" in values:
        table = _table(values["augmentation"], f"{where}, augmentation")
        values["augmentation"] = _build(Augmentation, table, f"{where}, augmentation")
    phase: Phase = _build(Phase, values, where)
    return phase


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be a table, not {value!r}")
    return value


def _build(cls: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a table, every key and type checked."""
    known = {f.name: f for f in dataclasses.fields(cls)}
    arguments = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"{where}: there is no key {key!r}; {hint}")
        kind = str(known[key].type)
        if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        expected = {"int": int, "float": float, "bool": bool, "str": str}.get(kind)
        if expected is not None and (not isinstance(value, expected) or (expected is int and isinstance(value, bool))):
            raise InputError(f"{where}: {key} must be {kind}, not {value!r}")
        if kind == "float" and not math.isfinite(value):
            raise InputError(f"{where}: {key} must be finite, not {value}")
        if kind.startswith("tuple") and not isinstance(value, tuple):
            raise InputError(f"{where}: {key} must be a list, not {value!r}")
        if kind.startswith("Mapping"):
            _table(value, f"{where}, {key}")
        arguments[key] = value
    missing = [
        f.name
        for f in known.values()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in arguments
    ]
    if missing:
        raise InputError(f"{where}: {missing[0]!r} is missing")
    try:
        return cls(**arguments)
    except UsageError as error:
        raise InputError(f"{where}: {error}") from None


def _apply(values: dict[str, Any], change: str) -> None:
    """Put one 'KEY=VALUE' into the tables of a recipe."""
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise UsageError(f"--set takes KEY=VALUE, not {change!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    first, *rest = key.strip().split(".")
    if first != "phase" or not rest:
        _assign(values, [first, *rest], value, change)
        return
    phases = values.get("phase", [])
    chosen = [phase for phase in phases if phase.get("name") == rest[0]]
    if chosen:
        rest = rest[1:]
    for phase in chosen or phases:
        _assign(phase, rest, copy.deepcopy(value), change)  # a later change of one phase is not one of all


def _assign(table: dict[str, Any], path: Sequence[str], value: Any, change: str) -> None:
    for key in path[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {change}: {key} is no table")
    if not path:
        raise UsageError(f"--set {change}: name a key of the phase")
    table[path[-1]] = value


def recipe_text(recipe: Recipe) -> str:
    """The recipe as canonical JSON: two runs with equal texts do the same."""
    return json.dumps(recipe.to_json(), sort_keys=True)


def _choose(where: str, key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise InputError(f"{where}: {key} {value!r} does not exist; {hint}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)
