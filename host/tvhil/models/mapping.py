# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other projects: a mapping file (TOML) says which tensor is what.

FTerViT-style checkpoints hold latent weights, or trits and their scales, beside the steps of activation quantizers,
under names of their own. A mapping file turns them into timm's names and into weights:

    arch = "deit_small"                    # the architecture (see `tvhil models`); optional
    ternarizer = "twn"                     # rule that makes trits of the latent weights; optional
    scale_mode = "per-token"               # or "static"; optional

    drop = ['^teacher[.]', 'num_batches_tracked$']

    [[rename]]                             # regular expressions, in order, each on what the one before left
    pattern = '^backbone[.]'
    to = ""

    [[scaled]]                             # trits (or their packing in floats) and their scales are stored apart
    weight = '(.*)[.]weight$'              # names after the renaming
    scale = '\\1.weight_scale'
    round = false                          # true: `weight` is latent, trits are clamp(round(weight / scale), -1, 1)

    [[activation]]                         # steps of activation quantizers, for static scales
    pattern = '(blocks[.]\\d+)[.]attn[.]input_step'
    to = '\\1.quant_norm1.scale'
    unit = "step"                          # real value of one unit; "absmax": of 127 units; "inverse": units per one

A tensor named by no rule is a latent weight and keeps its value. A weight that is trits times scale is a fixed point of
the rule `twn`: it comes out as the same trits and the same scale.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvhil.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

UNITS = ("step", "absmax", "inverse")
ACTIVATION_SCALE = re.compile(r"(^|\.)quant_\w+\.scale$")
_INT8_LIMIT = 127
_FIXED_POINT_RULES = ("twn", "binary")  # rules that give back the trits and the scale of weights which are trits
_TOP: dict[str, type] = {"arch": str, "ternarizer": str, "scale_mode": str}
_TOP |= dict.fromkeys(("drop", "rename", "scaled", "activation"), list)
_RULES: dict[str, dict[str, type]] = {
    "rename": {"pattern": str, "to": str},
    "scaled": {"weight": str, "scale": str, "round": bool},
    "activation": {"pattern": str, "to": str, "unit": str},
}
_REQUIRED = {"rename": ("pattern", "to"), "scaled": ("weight", "scale"), "activation": ("pattern", "to")}


@dataclass(frozen=True)
class Rename:
    """`to` takes the place of what `pattern` finds in a name."""

    pattern: re.Pattern[str]
    to: str


@dataclass(frozen=True)
class Scaled:
    """The weight that `weight` matches has its scale in the tensor called `scale`; `round`: the weight is latent."""

    weight: re.Pattern[str]
    scale: str
    round: bool


@dataclass(frozen=True)
class Activation:
    """The activation scale that `pattern` matches is called `to` in tvhil, and its value means `unit`."""

    pattern: re.Pattern[str]
    to: str
    unit: str


@dataclass(frozen=True)
class KeyMapping:
    """What a mapping file says.

    Attributes:
        path: the file.
        arch: architecture, or None.
        ternarizer: rule of `tvhil.quantization.ternarizers`, or None.
        scale_mode: 'static', 'per-token' or None.
        drop: names that play no part.
        rename: in order.
        scaled: weights with scales apart.
        activation: scales of activations.
    """

    path: Path
    arch: str | None = None
    ternarizer: str | None = None
    scale_mode: str | None = None
    drop: tuple[re.Pattern[str], ...] = ()
    rename: tuple[Rename, ...] = ()
    scaled: tuple[Scaled, ...] = ()
    activation: tuple[Activation, ...] = ()

    def apply(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the names and with the meaning that tvhil gives them.

        Raises:
            CheckpointError: two tensors get one name, a scale is missing or has a shape that does not fit, or a weight
                that should be trits is none.
        """
        named: dict[str, Tensor] = {}
        origin: dict[str, str] = {}
        for old, tensor in state.items():
            if any(pattern.search(old) for pattern in self.drop):
                continue
            name = old
            for rename in self.rename:
                name = rename.pattern.sub(rename.to, name)
            if name in named:
                raise CheckpointError(f"{self.path.name} gives {origin[name]} and {old} the same name {name}")
            named[name], origin[name] = tensor, old
        for rule in self.scaled:
            self._put_scales_in(named, rule)
        for step in self.activation:
            for name in [name for name in named if step.pattern.fullmatch(name)]:
                value = named.pop(name)
                named[step.pattern.sub(step.to, name)] = _unit(value, step.unit, name)
        return named

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without the activation scales: what an FP32 model loads."""
        return {name: tensor for name, tensor in state.items() if not ACTIVATION_SCALE.search(name)}

    def activation_scales(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The activation scales alone."""
        return {name: tensor for name, tensor in state.items() if ACTIVATION_SCALE.search(name)}

    def _put_scales_in(self, named: dict[str, Tensor], rule: Scaled) -> None:
        used = set()
        for name in list(named):
            found = rule.weight.fullmatch(name)
            if found is None:
                continue
            scale_name = found.expand(rule.scale)
            if scale_name not in named:
                continue  # a layer that this project keeps in full precision
            used.add(scale_name)
            named[name] = _scaled(name, named[name], scale_name, named[scale_name], latent=rule.round)
        if not used:
            raise CheckpointError(
                f"a rule [[scaled]] of {self.path.name} finds no weight {rule.weight.pattern!r} "
                f"with a scale {rule.scale!r}"
            )
        for name in used:
            del named[name]


def read_mapping(path: str | os.PathLike[str]) -> KeyMapping:
    """Read a mapping file.

    Raises:
        InputError: unreadable, or a rule that is unknown, incomplete or no regular expression (named).
    """
    file = Path(path)
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the mapping {file}: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, RecursionError) as error:  # of a number and of nesting, too
        raise InputError(f"the mapping {file} is not TOML: {error}") from None
    for key, value in content.items():
        if key not in _TOP:
            raise InputError(f"{file}: there is no key {key!r}; known: {', '.join(_TOP)}")
        if not isinstance(value, _TOP[key]):
            raise InputError(f"{file}: {key} must be a {_TOP[key].__name__}, not {value!r}")
    scale_mode = content.get("scale_mode")
    if scale_mode not in (None, "static", "per-token"):
        raise InputError(f"{file}: scale_mode is 'static' or 'per-token', not {scale_mode!r}")
    if content.get("scaled") and content.get("ternarizer", "twn") not in _FIXED_POINT_RULES:
        raise InputError(
            f"{file}: weights with scales apart keep them only under {' or '.join(_FIXED_POINT_RULES)}, not under "
            f"{content['ternarizer']!r}; leave the ternarizer out"
        )
    tables = {kind: [_rule(file, kind, entry) for entry in content.get(kind, [])] for kind in _RULES}
    drop = content.get("drop", [])
    return KeyMapping(
        path=file,
        arch=content.get("arch"),
        ternarizer=content.get("ternarizer"),
        scale_mode=scale_mode,
        drop=tuple(_expression(file, "drop", pattern) for pattern in drop),
        rename=tuple(Rename(e["pattern"], e["to"]) for e in tables["rename"]),
        scaled=tuple(Scaled(e["weight"], e["scale"], e.get("round", False)) for e in tables["scaled"]),
        activation=tuple(Activation(e["pattern"], e["to"], e.get("unit", "step")) for e in tables["activation"]),
    )


def load_activation_scales(model: nn.Module, scales: Mapping[str, Tensor]) -> int:
    """Put activation scales of a checkpoint into a fake-quantized model in place of the calibrated ones; how many.

    Raises:
        CheckpointError: the model has no such scale, or one is not positive and finite.
    """
    import torch

    own = dict(model.named_parameters())
    unknown = sorted(name for name in scales if name not in own)
    if unknown:
        raise CheckpointError(
            f"the model has no activation scale {unknown[0]}; see the names in a quantized checkpoint"
        )
    for name, scale in scales.items():
        if not (bool(torch.isfinite(scale).all()) and float(scale) > 0):
            raise CheckpointError(f"the activation scale {name} is {float(scale)}: it must be positive")
        own[name].data.copy_(scale.reshape(own[name].shape))
    return len(scales)


def _rule(file: Path, kind: str, entry: Any) -> dict[str, Any]:
    known = _RULES[kind]
    if not isinstance(entry, dict):
        raise InputError(f"{file}: {kind} is a list of tables ([[{kind}]])")
    for key, value in entry.items():
        if key not in known or not isinstance(value, known[key]):
            raise InputError(f"{file}: {key} = {value!r} is unknown in [[{kind}]], or of the wrong type")
    lacking = [key for key in _REQUIRED[kind] if key not in entry]
    if lacking:
        raise InputError(f"{file}: a rule [[{kind}]] has no {' and no '.join(lacking)}")
    if entry.get("unit", "step") not in UNITS:
        raise InputError(f"{file}: unit is one of {', '.join(UNITS)}, not {entry['unit']!r}")
    result = dict(entry)
    for key, template in (("pattern", "to"), ("weight", "scale")):
        if key in entry:
            result[key] = _expression(file, f"{kind}.{key}", entry[key])
            _check_template(file, result[key], entry[template])
    return result


def _expression(file: Path, where: str, pattern: Any) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise InputError(f"{file}: {where} {pattern!r} is no regular expression: {error}") from None


def _check_template(file: Path, pattern: re.Pattern[str], template: str) -> None:
    """Groups that a template takes from its expression must be there."""
    for group in re.findall(r"\\(\d+)", template):
        if int(group) > pattern.groups:
            raise InputError(f"{file}: {template!r} takes group {group}, which {pattern.pattern!r} does not have")
    try:
        pattern.sub(template, "")
    except (re.error, IndexError) as error:
        raise InputError(f"{file}: {template!r} cannot take the place of a match: {error}") from None


def _scaled(name: str, weight: Tensor, scale_name: str, scale: Tensor, *, latent: bool) -> Tensor:
    import torch

    weight, scale = weight.float(), scale.float()
    rows = weight.shape[0] if weight.ndim else 1
    if scale.numel() not in (1, rows):
        raise CheckpointError(
            f"{scale_name} has {scale.numel()} values for the {rows} rows of {name}: it must have one, or one a row"
        )
    shaped = scale.reshape(-1, *[1] * (weight.ndim - 1)) if weight.ndim > 1 or scale.numel() > 1 else scale.reshape(())
    if latent:
        weight = (weight / shaped.clamp_min(torch.finfo(torch.float32).tiny)).round().clamp(-1, 1)
    elif not bool(((weight == 0) | (weight.abs() == 1)).all()):
        raise CheckpointError(f"{name} holds other values than -1, 0 and 1: is it latent (round = true)?")
    return weight * shaped


def _unit(value: Tensor, unit: str, name: str) -> Tensor:
    if value.numel() != 1:
        raise CheckpointError(f"{name} has {value.numel()} values; activations of tvhil have one static scale")
    value = value.float().reshape(())
    return value if unit == "step" else value / _INT8_LIMIT if unit == "absmax" else 1 / value
