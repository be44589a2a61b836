# SPDX-License-Identifier: Apache-2.0
"""Reading and writing checkpoints, and every key migration there is.

Read: tvhil's own files (safetensors with the configuration in the metadata), timm's, Meta's DeiT and DeiT-III
originals, Hugging Face transformers' ViT and DeiT; as safetensors or as torch files, which are only ever read
with `weights_only=True`, so no code in them runs; by their file, or by timm's name (`timm:deit_tiny_patch16_224`).
Checkpoints of other projects are read with the help of a mapping file (`tvhil.models.mapping`).
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save as serialize
from torch import Tensor
from torch.nn import functional as F

from tvhil.errors import CheckpointError, InputError
from tvhil.files import write_whole
from tvhil.models.config import ViTConfig
from tvhil.models.mapping import KeyMapping
from tvhil.models.published import HubConfig, fetch_published, find_published, is_published, read_hub_config
from tvhil.models.registry import model_config
from tvhil.models.vision_transformer import Layers, VisionTransformer

CONFIG_KEY = "tvhil.config"  # metadata entry of a tvhil checkpoint: the ViTConfig as JSON
State = dict[str, Tensor]

_HEADS = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
_WRAPPERS = ("model", "state_dict", "model_state_dict", "state_dict_ema", "model_ema")  # first found wins
_PREFIXES = ("module.", "_orig_mod.", "model.")  # DistributedDataParallel, torch.compile, trainers
_MAX_LISTED = 4
_CLAIM_TAKEN = 1 << 26  # weights that a configuration may speak of whatever the file holds
_LEAST_OF_BLOCK = 1 << 10  # what a block counts for at least, so that there are not too many


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it lies in its file: tensors with timm's keys, and what the file says about itself."""

    path: Path
    state: State
    config: ViTConfig | None  # None unless tvhil wrote the file
    metadata: dict[str, str] = field(default_factory=dict)  # the other metadata entries of a safetensors file
    hub: HubConfig | None = None  # what timm's config.json beside the file, or its published name, says of it


@dataclass(frozen=True)
class LoadReport:
    """What had to be changed to fit a checkpoint to a model, each as a sentence for the user."""

    notes: tuple[str, ...] = ()


def read_checkpoint(path: str | os.PathLike[str], mapping: KeyMapping | None = None) -> Checkpoint:
    """Read a checkpoint file and rename its tensors to timm's keys.

    Args:
        path: the file; or `timm:NAME`, weights that timm publishes, which are downloaded once.
        mapping: rules for a checkpoint of another project; they see the tensors' names as they are in the file, without
            the prefixes of wrappers.

    Raises:
        CheckpointError: not a readable checkpoint, or its metadata holds a malformed configuration.
        UsageError: timm has no such name.
    """
    published = find_published(str(path)) if is_published(path) else None
    file = fetch_published(str(path)) if published else Path(path)
    if file.is_dir():
        raise CheckpointError(f"{file} is a folder: name the checkpoint file in it")
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {file}")
    metadata: dict[str, str] = {}
    if _is_torch_file(file):
        state = _read_torch(file)
    else:
        state, metadata = _read_safetensors(file)
    text = metadata.pop(CONFIG_KEY, None)
    try:
        config = None if text is None else ViTConfig.from_json(text)
    except InputError as error:
        raise CheckpointError(f"{file}: {error}") from None
    if config is not None:
        _refuse_empty_claims(file, config, state)
    hub = None if config is not None else read_hub_config(file)
    if hub is None and published is not None:
        hub = HubConfig(published.arch, {})
    try:
        if mapping is not None:
            state = mapping.apply(_strip_prefixes(state))
        state = to_timm_keys(state)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return Checkpoint(file, state, config, metadata, hub)


def save_checkpoint(
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    config: ViTConfig,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a tvhil checkpoint: safetensors with the configuration, and any other text, in the metadata.

    The file appears under its name only when it is complete, so an interrupted write loses nothing. Folders in front
    of it are made.

    Raises:
        CheckpointError: the file cannot be written.
    """
    file = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    try:
        # Not safetensors' save_file, which moves a file of its own into the place of whatever is there, devices too.
        write_whole(file, serialize(tensors, {**(metadata or {}), CONFIG_KEY: config.to_json()}))
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"cannot write {file}: {error}") from None


def load_model(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    new_head: bool = False,
    layers: Layers | None = None,
    mapping: KeyMapping | None = None,
) -> tuple[VisionTransformer, LoadReport]:
    """Build the model that a checkpoint is of, and load it.

    Args:
        path: checkpoint file, or `timm:NAME`.
        arch: registered variant; needed when neither the file, nor a `config.json` of timm's beside it, nor the
            mapping tells.
        image_size: side of the input if it differs from the checkpoint's; resamples the position embedding.
        num_classes: classes if they differ from the checkpoint's (needs `new_head`).
        new_head: allow a freshly initialized head where the checkpoint's does not fit or is absent.
        layers: constructors as in `VisionTransformer`.
        mapping: rules for a checkpoint of another project; activation scales among its tensors are left out.

    Raises:
        CheckpointError: unreadable, of unknown architecture, or not fitting it.
    """
    checkpoint = read_checkpoint(path, mapping)
    hub = checkpoint.hub
    if arch is None and checkpoint.config is None:
        arch = (mapping.arch if mapping is not None else None) or (hub.arch if hub is not None else None)
    if checkpoint.config is not None and arch in (None, checkpoint.config.arch):
        changes = {"image_size": image_size, "num_classes": num_classes}
        config = checkpoint.config.replace(**{k: v for k, v in changes.items() if v is not None})
    elif arch is not None:
        sizes = _infer_sizes(checkpoint.state, model_config(arch))
        changes = {"image_size": image_size, "num_classes": num_classes}
        config = model_config(arch, **{**sizes, **{k: v for k, v in changes.items() if v is not None}})
        if hub is not None and config.in_channels == config.preprocessing.channels == 3:
            wanted = replace(hub.apply(config.preprocessing), image_size=config.image_size)
            config = config.replace(preprocessing=wanted)
    else:
        raise CheckpointError(f"{checkpoint.path} does not say what model it is of: name it with --arch")
    model = VisionTransformer(config, layers)
    try:
        state = checkpoint.state if mapping is None else mapping.weights(checkpoint.state)
        report = load_state(model, state, new_head=new_head)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None
    return model, report


def load_state(
    model: VisionTransformer,
    state: Mapping[str, Tensor],
    *,
    new_head: bool = False,
    may_lack: str | None = None,
) -> LoadReport:
    """Load tensors with timm's keys into a model, resampling the position embedding to the model's grid.

    Args:
        model: any model of this package, FP32 or quantized.
        state: tensors by timm's names, as `read_checkpoint` returns them.
        new_head: keep the model's own head where the checkpoint's is missing or has another class count.
        may_lack: regular expression of names that the checkpoint may lack, such as a quantizer's scales;
            they keep the model's values.

    Raises:
        CheckpointError: missing, unexpected or mis-shaped tensors, each named with its shapes, or some that hold values
            which are not finite.
    """
    state, notes = dict(state), []
    own = model.state_dict()
    resampled = resample_pos_embed(state.get("pos_embed"), model.config)
    if resampled is not None:
        rows = state["pos_embed"].shape[1]
        notes.append(f"position embedding resampled from {rows} rows to {resampled.shape[1]}")
        state["pos_embed"] = resampled
    if new_head:
        for name in (name for name in _HEADS if name in own):
            if name not in state or state[name].shape != own[name].shape:
                had = f"had {_shape(state[name])}" if name in state else "was missing"
                notes.append(f"{name} {had}: starts afresh as {_shape(own[name])}")
                state[name] = own[name]
    missing = [name for name in own if name not in state and not (may_lack and re.search(may_lack, name))]
    unexpected = [name for name in state if name not in own]
    misshaped = [
        f"{name} is {_shape(state[name])}, wants {_shape(own[name])}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults = _listed("missing", missing, own) + _listed("unexpected", unexpected, state)
    faults += [f"mis-shaped: {_shorten(misshaped)}"] if misshaped else []
    broken = [name for name in own if name in state and not bool(torch.isfinite(state[name]).all())]
    faults += [f"not finite (NaN or infinite values): {_shorten(broken)}"] if broken else []
    if faults:
        if any(name in " ".join((*missing, *misshaped)) for name in _HEADS) and not new_head:
            faults.append("a head of another class count has to be asked for (new_head)")
        raise CheckpointError(f"does not fit {model.config.arch}: {'; '.join(faults)}")
    model.load_state_dict(state, strict=False)
    return LoadReport(tuple(notes))


def _infer_sizes(state: Mapping[str, Tensor], variant: ViTConfig) -> dict[str, int]:
    """Image size, patch size, channels and classes as the shapes of a checkpoint tell them."""
    sizes = {}
    head, patches, pos_embed = (state.get(n) for n in ("head.weight", "patch_embed.proj.weight", "pos_embed"))
    if head is not None and head.ndim == 2:
        sizes["num_classes"] = head.shape[0]
    if patches is not None and patches.ndim == 4:
        sizes["in_channels"], sizes["patch_size"] = patches.shape[1], patches.shape[3]
    if pos_embed is not None and pos_embed.ndim == 3:
        side = math.isqrt(pos_embed.shape[1])  # rounds the prefix tokens away
        rows = side**2 + variant.pos_embed_tokens - variant.num_patches
        if rows == pos_embed.shape[1]:
            sizes["image_size"] = side * sizes.get("patch_size", variant.patch_size)
    return sizes


def resample_pos_embed(pos_embed: Tensor | None, config: ViTConfig) -> Tensor | None:
    """The position embedding [1, rows, D] of a square grid for the grid of `config`, as timm resamples it.

    Bicubic with antialiasing; rows of prefix tokens are kept. None when nothing has to change, or when the
    rows are not those of a square grid (the shape check then names the tensor).
    """
    if pos_embed is None or pos_embed.ndim != 3 or pos_embed.shape[1] == config.pos_embed_tokens:
        return None
    prefix = config.pos_embed_tokens - config.num_patches
    side = math.isqrt(max(pos_embed.shape[1] - prefix, 0))
    if side < 1 or side**2 != pos_embed.shape[1] - prefix:
        return None
    grid = pos_embed[:, prefix:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    size = (config.grid_size, config.grid_size)
    grid = F.interpolate(grid, size=size, mode="bicubic", antialias=True, align_corners=False)
    patches = grid.permute(0, 2, 3, 1).reshape(1, config.num_patches, -1).to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :prefix], patches], dim=1)


def to_timm_keys(state: Mapping[str, Tensor]) -> State:
    """Rename the tensors of a DeiT-III original or a transformers ViT or DeiT to timm's names.

    Separate query, key and value projections are concatenated to `attn.qkv`. Keys that are timm's already
    pass through, as do unknown ones, which `load_state` then reports.

    Raises:
        CheckpointError: projections of different shapes.
    """
    state = _strip_prefixes(state)
    if any("patch_embeddings.projection" in name for name in state):
        state = _from_transformers(state)
    return {re.sub(r"\bgamma_([12])$", r"ls\1.gamma", name): tensor for name, tensor in state.items()}


# transformers' names, in the spelling of the published files and in that of version 5, to timm's.
_TRANSFORMERS = (
    (r"^(vit|deit)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.)?(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.(q|k|v)_proj\.", lambda m: f".attn.{ {'q': 'query', 'k': 'key', 'v': 'value'}[m[1]] }."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
# Weights of transformers that play no part in classification.
_TRANSFORMERS_UNUSED = re.compile(r"^(pooler\.|embeddings\.mask_token$|decoder\.)")


def _from_transformers(state: Mapping[str, Tensor]) -> State:
    renamed: State = {}
    for name, tensor in state.items():
        for pattern, replacement in _TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        if not _TRANSFORMERS_UNUSED.match(name):
            renamed[name] = tensor
    for query in [name for name in renamed if ".attn.query." in name]:
        parts = [query.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in renamed for part in parts):
            shapes = [_shape(renamed[part]) for part in parts]
            if len(set(shapes)) > 1:
                raise CheckpointError(f"{query}, key and value must have one shape, they have {', '.join(shapes)}")
            renamed[query.replace(".query.", ".qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def _strip_prefixes(state: Mapping[str, Tensor]) -> State:
    """Drop prefixes that every key shares, such as 'module.'."""
    stripped = dict(state)
    while stripped:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in stripped)), None)
        if prefix is None:
            break
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
    return stripped


def _refuse_empty_claims(file: Path, config: ViTConfig, state: Mapping[str, Tensor]) -> None:
    """Refuse a configuration of a far larger model than the tensors beside it, before memory is taken for that model.

    A few missing tensors are not meant: `load_state` names them.
    """
    width = config.embed_dim
    matrices = 4 * width + 2 * config.hidden_dim + _LEAST_OF_BLOCK
    claimed = width * (config.depth * matrices + config.num_classes + config.num_tokens + config.patch_size**2)
    held = sum(tensor.numel() for tensor in state.values())
    if claimed > max(4 * held, _CLAIM_TAKEN):
        raise CheckpointError(
            f"{file}: its configuration is of a model with {claimed:,} weights or more, and it holds {held:,}"
        )


def _is_torch_file(file: Path) -> bool:
    """A zip archive or a bare pickle, by its first bytes.

    Safetensors starts with the length of its header, which may look like either, and goes on with a JSON object.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from None
    if head[4:] == b"\0\0\0\0{":
        return False
    return head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _read_safetensors(file: Path) -> tuple[State, dict[str, str]]:
    try:
        with safetensors.safe_open(file, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}, dict(handle.metadata() or {})  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is neither a safetensors nor a torch file: {error}") from None


def _refuse_other_archives(file: Path) -> None:
    """Refuse a zip archive that `torch.save` did not write: one folder with `data.pkl` and `version` in it.

    One that unpacks to more than it holds is among them: torch stores its records as they are.
    """
    with file.open("rb") as stream:
        if stream.read(2) != b"PK":
            return  # a bare pickle
    if not zipfile.is_zipfile(file):
        raise CheckpointError(f"{file} is a zip archive without its end: copy or download it again")
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
    names = {info.filename.partition("/")[2] for info in records}
    if len({info.filename.partition("/")[0] for info in records}) != 1 or not {"data.pkl", "version"} <= names:
        raise CheckpointError(f"{file} is a zip archive, but none that torch.save wrote: name the checkpoint itself")
    if "constants.pkl" in names:
        raise CheckpointError(f"{file} is a TorchScript program: save its state_dict alone, best as safetensors")
    if any(info.compress_type != zipfile.ZIP_STORED for info in records):
        raise CheckpointError(f"{file} is a compressed archive, not a torch file: unpack it first")


def _read_torch(file: Path) -> State:
    try:
        _refuse_other_archives(file)
        # DeiT's training checkpoints keep their command line beside the weights: a plain bag of attributes.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, with a request to tell torch's authors
            content = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file} is damaged or holds Python objects beside its tensors, which are never unpickled; "
            "save its state_dict alone, best as safetensors"
        ) from None
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = re.split(r"[.\n] |\n| \(", str(error).strip())[0]  # the rest is advice to callers of torch
        raise CheckpointError(
            f"{file} is damaged, or no torch file: {type(error).__name__}{': ' if reason else ''}{reason}"
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not named tensors")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{file} holds no tensors (its keys: {_shorten([str(k) for k in content])})")
    # A view with strides of 0 claims any size and takes no room, until something copies it.
    room = file.stat().st_size
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > room:
            raise CheckpointError(f"{file}: {name} {_shape(tensor)} is larger than the file, or no plain tensor")
    return state


def _shape(tensor: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"


def _listed(what: str, names: list[str], tensors: Mapping[str, Tensor]) -> list[str]:
    return [f"{what}: {_shorten([f'{name} {_shape(tensors[name])}' for name in names])}"] if names else []


def _shorten(items: Iterable[str]) -> str:
    items = list(items)
    rest = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return ", ".join(items[:_MAX_LISTED]) + rest
