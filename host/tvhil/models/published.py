# SPDX-License-Identifier: Apache-2.0
"""timm's published weights by name: where they lie, how they are fetched, and the check of what arrived.

`timm:deit_tiny_patch16_224.fb_in1k` names weights as timm does (`ARCH_patchP_SIZE.TAG`; without a tag the one that
timm takes by default; `tvhil models --weights` lists them). DeiT's originals have the first digits of their SHA-256 in
their file's name, as torch.hub checks them; all others come from the `timm` organization of the Hugging Face Hub, which
tells the SHA-256 of a file in its answer. Every file is kept in a cache beside its digest and is checked again whenever
it is used.

Two variables of the environment matter: TVHIL_CACHE, the folder of the cache (default: `~/.cache/tvhil`), and
TVHIL_MIRROR, a URL (`https://…`, `file:///…`) under which the same files lie as `NAME/FILE`, for machines without
access to the originals.
"""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tvhil.errors import CheckpointError, UsageError
from tvhil.files import write_whole
from tvhil.models.config import Preprocessing
from tvhil.models.registry import list_models

PREFIX = "timm:"
HUB = "https://huggingface.co/timm"
DEIT = "https://dl.fbaipublicfiles.com/deit"
WEIGHTS, HUB_CONFIG = "model.safetensors", "config.json"

_NAME = re.compile(r"(?P<arch>[a-z0-9_]+?)_patch(?P<patch>\d+)_(?P<size>\d+)(?:\.(?P<tag>[a-z0-9_]+))?")
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20
_MOST_BYTES = 4 << 30
_MOST_CONFIG = 1 << 20
_DIGEST = re.compile(r'"?([0-9a-f]{64})"?')

# timm's weights that classify (its version 1.0.31): the tags of every name, the one that is taken by default first.
_AUGREG = "augreg_in21k_ft_in1k"
TAGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224", "deit_base_patch16_384",
            "deit_tiny_distilled_patch16_224", "deit_small_distilled_patch16_224", "deit_base_distilled_patch16_224",
            "deit_base_distilled_patch16_384",
        ),
        ("fb_in1k",),
    ),
    **dict.fromkeys(
        ("deit3_small_patch16_224", "deit3_small_patch16_384", "deit3_base_patch16_224", "deit3_base_patch16_384"),
        ("fb_in1k", "fb_in22k_ft_in1k"),
    ),
    "vit_tiny_patch16_224": (_AUGREG, "augreg_in21k"),
    "vit_tiny_patch16_384": (_AUGREG,),
    "vit_small_patch16_224": (_AUGREG, "augreg_in1k", "augreg_in21k"),
    "vit_small_patch16_384": (_AUGREG, "augreg_in1k"),
    "vit_small_patch32_224": (_AUGREG, "augreg_in21k"),
    "vit_small_patch32_384": (_AUGREG,),
    "vit_base_patch8_224": ("augreg2_in21k_ft_in1k", "augreg_in21k", _AUGREG),
    "vit_base_patch16_224": (
        "augreg2_in21k_ft_in1k", "augreg_in1k", "augreg_in21k", _AUGREG, "bamboo", "orig_in21k_ft_in1k", "sam_in1k",
    ),
    "vit_base_patch16_384": (_AUGREG, "augreg_in1k", "orig_in21k_ft_in1k"),
    "vit_base_patch32_224": (_AUGREG, "augreg_in1k", "augreg_in21k", "sam_in1k"),
    "vit_base_patch32_384": (_AUGREG, "augreg_in1k"),
}  # fmt: skip
# DeiT's original files; what follows the last '-' are the first digits of the file's SHA-256.
_ORIGINALS = {
    "deit_tiny_patch16_224.fb_in1k": "deit_tiny_patch16_224-a1311bcf.pth",
    "deit_small_patch16_224.fb_in1k": "deit_small_patch16_224-cd65a155.pth",
    "deit_base_patch16_224.fb_in1k": "deit_base_patch16_224-b5f2ef4d.pth",
    "deit_base_patch16_384.fb_in1k": "deit_base_patch16_384-8de9b5d1.pth",
    "deit_tiny_distilled_patch16_224.fb_in1k": "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
    "deit_small_distilled_patch16_224.fb_in1k": "deit_small_distilled_patch16_224-649709d9.pth",
    "deit_base_distilled_patch16_224.fb_in1k": "deit_base_distilled_patch16_224-df68dfff.pth",
    "deit_base_distilled_patch16_384.fb_in1k": "deit_base_distilled_patch16_384-d0272ac0.pth",
}

Progress = Callable[[int, int | None], None]  # bytes that have arrived, of how many where that is known


@dataclass(frozen=True)
class Published:
    """Weights that are published under a name.

    Attributes:
        name: timm's, with the tag.
        arch: the registered architecture.
        urls: of the weights, and of a Hub configuration where there is one, by the file's name.
        weights: which of the files holds the weights.
        sha256: the first digits of that file's digest, where they are known beforehand.
    """

    name: str
    arch: str
    urls: dict[str, str]
    weights: str
    sha256: str | None = None


@dataclass(frozen=True)
class HubConfig:
    """What a `config.json` of the Hub says of the weights beside it.

    Attributes:
        arch: timm's name of the architecture, such as `deit3_small_patch16_384`.
        preprocessing: fields of `Preprocessing` that it gives.
    """

    arch: str
    preprocessing: dict[str, Any]

    def apply(self, preprocessing: Preprocessing) -> Preprocessing:
        """The preprocessing of an architecture with what the published weights want."""
        values = {name: getattr(preprocessing, name) for name in preprocessing.__dataclass_fields__}
        return Preprocessing(**(values | self.preprocessing))


def is_published(name: str | os.PathLike[str]) -> bool:
    """Whether this is a name of published weights, not a file."""
    return str(name).startswith(PREFIX)


def find_published(name: str) -> Published:
    """Where the weights of a name lie.

    Raises:
        UsageError: no name that timm could have, or of an architecture that is not registered.
    """
    name = name.removeprefix(PREFIX)
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise UsageError(
            f"{name!r} is no name of timm's weights; they look like deit_tiny_patch16_224 or "
            "deit3_small_patch16_384.fb_in1k"
        )
    if parts["arch"] not in list_models():
        known = ", ".join(arch for arch in list_models() if re.match(r"(vit|deit3?)_(tiny|small|base)", arch))
        raise UsageError(f"{parts['arch']!r} of {name!r} is no architecture of tvhil; known: {known}")
    bare = name.partition(".")[0]
    if parts["tag"] is None and bare not in TAGS:
        near = ", ".join(difflib.get_close_matches(bare, TAGS, n=3))
        raise UsageError(f"timm has no weights {bare!r} that classify; there are {near}")
    full = f"{bare}.{parts['tag'] or TAGS[bare][0]}"
    mirror = os.environ.get("TVHIL_MIRROR", "").rstrip("/")
    if full in _ORIGINALS:
        file = _ORIGINALS[full]
        url = f"{mirror}/{full}/{file}" if mirror else f"{DEIT}/{file}"
        return Published(full, bare, {file: url}, file, file.removesuffix(".pth").rpartition("-")[2])
    base = f"{mirror}/{full}" if mirror else f"{HUB}/{full}/resolve/main"
    return Published(full, bare, {file: f"{base}/{file}" for file in (HUB_CONFIG, WEIGHTS)}, WEIGHTS)


def published_names() -> list[str]:
    """Names of all weights that timm publishes for the registered architectures, with their tags."""
    return [f"{name}.{tag}" for name, tags in TAGS.items() for tag in tags]


def cache_folder() -> Path:
    """Where downloads are kept."""
    chosen = os.environ.get("TVHIL_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "tvhil"


def fetch_published(name: str, progress: Progress = lambda _done, _total: None) -> Path:
    """The file of published weights, downloaded where the cache does not hold it.

    A download that was interrupted continues where it stopped.

    Raises:
        UsageError: no such name.
        CheckpointError: no access, no such file, or its SHA-256 is another one.
    """
    published = find_published(name)
    folder = cache_folder() / "timm" / published.name
    expected = {file: published.sha256 if file == published.weights else None for file in published.urls}
    if all(_is_cached(folder / file, expected[file]) for file in published.urls):
        return folder / published.weights
    with _alone(folder):
        for file, url in published.urls.items():
            if not _is_cached(folder / file, expected[file]):
                most = _MOST_BYTES if file == WEIGHTS else None
                _download(url, folder / file, expected[file], progress, most)
    return folder / published.weights


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process after the other download into a folder: the processes of a training all ask for the same."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # free again when it is closed, or the process ends
        yield
    finally:
        os.close(lock)


def read_hub_config(weights: Path) -> HubConfig | None:
    """The `config.json` beside a file of weights, as timm puts it on the Hub; None where there is no such file.

    Raises:
        CheckpointError: it is malformed.
    """
    file = weights.with_name(HUB_CONFIG)
    try:
        if not file.is_file() or file.stat().st_size > _MOST_CONFIG:
            return None
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not readable JSON: {error}") from None
    arch = content.get("architecture") if isinstance(content, dict) else None
    if not isinstance(arch, str):
        return None  # of another library: transformers has files of this name too
    told = content.get("pretrained_cfg")
    told = told if isinstance(told, dict) else {}
    values = {key: told[key] for key in ("crop_pct", "interpolation", "mean", "std", "crop_mode") if key in told}
    size = told.get("input_size")
    if isinstance(size, list) and len(size) == 3:
        values["image_size"] = size[2]
    try:
        for key in ("mean", "std"):
            if key in values:
                values[key] = tuple(values[key])
        Preprocessing(**({"image_size": 224} | values))
    except (TypeError, ValueError, UsageError) as error:
        raise CheckpointError(f"{file}: its pretrained_cfg is malformed: {error}") from None
    return HubConfig(arch, values)


def _digest_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _is_cached(file: Path, expected: str | None) -> bool:
    """Whether the cache holds a file that is as it was when it was downloaded."""
    try:
        known = _digest_file(file).read_text().strip()
        if not file.is_file():
            return False
    except OSError:
        return False
    return sha256_of(file) == known and known.startswith(expected or "")


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Recording(urllib.request.HTTPRedirectHandler):
    """Follows redirections and keeps the digest that the Hub tells before it sends one on to its store."""

    def __init__(self) -> None:
        self.digest: str | None = None

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        self.digest = self.digest or _told_digest(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _told_digest(headers: Any) -> str | None:
    found = _DIGEST.fullmatch(headers.get("X-Linked-ETag") or "")
    return found[1] if found else None


def _download(url: str, file: Path, expected: str | None, progress: Progress, most: int | None) -> None:
    part = file.with_name(f"{file.name}.part")
    told: str | None = None
    try:
        told = _receive(url, part, progress, most or _MOST_BYTES)
    except urllib.error.HTTPError as error:
        advice = " (timm has no weights of that name and tag)" if error.code in (401, 403, 404) else ""
        raise CheckpointError(f"{url} answers {error.code} {error.reason}{advice}") from None
    except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise CheckpointError(
            f"cannot download {url}: {reason}. Where this machine has no access, fetch the file elsewhere and name it, "
            "or set TVHIL_MIRROR"
        ) from None
    digest = sha256_of(part)
    wanted = expected or told
    if wanted is not None and not digest.startswith(wanted):
        part.unlink()
        raise CheckpointError(
            f"{url} has SHA-256 {digest}, not {wanted}{'' if len(wanted) == 64 else '…'} as published: "
            "it was damaged on the way, or replaced; nothing was kept"
        )
    part.replace(file)
    write_whole(_digest_file(file), f"{digest}\n".encode())


def _receive(url: str, part: Path, progress: Progress, most: int) -> str | None:
    """Download into a file, after what it already holds; the digest that the server tells."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "tvhil", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    recording = _Recording()
    opener = urllib.request.build_opener(recording)
    try:
        answer = opener.open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # nothing is left to send, or the part is no part of this file
            raise
        part.unlink()
        return _receive(url, part, progress, most)
    with answer:
        if answer.status != 206:  # a file: URL, or a server that always sends everything
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with part.open("r+b" if have else "wb") as out:
            out.seek(have)
            while chunk := answer.read(_CHUNK):
                have += len(chunk)
                if have > most:
                    raise ValueError(f"it is larger than {most >> 30} GiB")
                out.write(chunk)
                progress(have, total)
        if total is not None and have < total:
            raise http.client.IncompleteRead(b"", total - have)
        return recording.digest or _told_digest(answer.headers)


__all__ = [
    "HubConfig",
    "Published",
    "cache_folder",
    "fetch_published",
    "find_published",
    "is_published",
    "published_names",
    "read_hub_config",
    "sha256_of",
]
