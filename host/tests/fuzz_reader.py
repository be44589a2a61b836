# SPDX-License-Identifier: Apache-2.0
"""A reader of the package as the fuzzer sees it, and mutations of its files."""

from __future__ import annotations

import copy
import functools
import json
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

import tvhil
from tvhil.errors import TvhilError

PACKAGE = Path(tvhil.__file__).parent


@dataclass(frozen=True)
class Reader:
    """A reader of the package: it takes any bytes, or refuses them as a `TvhilError`; anything else is a finding.

    Attributes:
        modules: keys of `PARSERS` that it reaches.
        read: uses the bytes, given a folder to put files into.
        seeds: complete files to begin from.
        odd: files that are odd in one way each, most of which are refused; they are begun from, too.
        repair: makes checksums right again, so that mutations get past them.
        tree: for files that are a tree of tables and lists, its parser and its writer: values of those seeds that are
            one are exchanged as well.
        drawn: further complete inputs.
    """

    modules: tuple[str, ...]
    read: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    odd: Callable[[], list[bytes]] = field(default=list)
    repair: Callable[[bytes], bytes] | None = None
    tree: tuple[Callable[[str], Any], Callable[[Any], str]] | None = None
    drawn: Callable[[], st.SearchStrategy[bytes]] | None = None

    def offer(self, data: bytes, folder: Path) -> bool:
        """Whether the bytes were taken."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)  # numpy's silent overflows
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # one, too; we refuse below its limit
            try:
                self.read(data, folder)
            except TvhilError as error:
                assert str(error).strip(), "a refusal without a word"
                assert "\n" not in str(error)
                return False
        return True


def _edits(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    out = bytearray(data)
    for kind, place, content in edits:
        at = place % (len(out) + 1)
        if kind == 0:
            out[at : at + len(content)] = content
        elif kind == 1:
            out[at:at] = content
        elif kind == 2:
            del out[at : at + max(len(content), 1)]
        elif kind == 3:
            del out[at:]
        else:  # a piece of the file, somewhere else
            piece = out[at : at + 8 * len(content)]
            to = (place // 7) % (len(out) + 1)
            out[to : to + (len(piece) if kind == 4 else 0)] = piece
    return bytes(out)


_WORDS = (b"\0", b"\xff" * 4, b"\0\0\0\x80", b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'"', b"../", b"\n")
_VALUES = (0, 1, -1, 2, 1 << 63, -(10**30), 0.5, float("nan"), float("inf"), True, False, "", "x", "..", "\\1", "(", [])
_VALUES += ([1], ["a"], [[]], [{}], {}, {"a": 1}, {"x": {"y": []}})


def _nodes(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value below."""
    found: list[tuple[Any, Any]] = []
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        found += [(tree, key), *_nodes(tree[key])]
    return found


def _tree_edits(tree: Any, edits: list[tuple[int, int, int]]) -> Any:
    for kind, place, choice in edits:
        nodes = _nodes(tree)
        if not nodes:
            return tree
        container, key = nodes[place % len(nodes)]
        other, name = nodes[choice % len(nodes)]
        if kind == 0:
            container[key] = copy.deepcopy(_VALUES[choice % len(_VALUES)])
        elif kind == 1:
            del container[key]
        elif kind == 2:
            container[key] = copy.deepcopy(other[name])
        elif isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:  # under another name
            known = [str(k) for table, k in nodes if isinstance(table, dict)]
            container[known[choice % len(known)] if kind == 3 else f"{key}s"] = container.pop(key)
    return tree


def _is_tree(data: bytes, loads: Callable[[str], Any]) -> bool:
    try:
        loads(data.decode())
    except ValueError:
        return False
    return True


def toml_text(values: dict[str, Any]) -> str:
    """A tree of tables as TOML, a line a key."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {text(one)}" for key, one in value.items()) + "}"
        if isinstance(value, list):
            return f"[{', '.join(map(text, value))}]"
        return repr(value) if isinstance(value, float) else json.dumps(value)

    return "".join(f"{json.dumps(key)} = {text(value)}\n" for key, value in values.items())


TOML = (tomllib.loads, toml_text)
JSON = (json.loads, json.dumps)


@functools.cache
def beginnings_of(reader: Reader) -> tuple[bytes, ...]:
    """What is offered to a reader first, and then mutated."""
    return (*reader.seeds(), *reader.odd())


def inputs_of(reader: Reader) -> st.SearchStrategy[bytes]:
    """Mutations of a reader's seeds, and now and then bytes from nowhere."""
    content = st.one_of(st.binary(max_size=6), st.sampled_from(_WORDS))
    edits = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1 << 16), content), max_size=4)
    changed = st.builds(_edits, st.sampled_from(beginnings_of(reader)), edits)
    if reader.repair is not None:
        changed = st.one_of(changed.map(reader.repair), changed.map(reader.repair), changed)
    kinds = [changed, changed, changed, st.sampled_from(beginnings_of(reader)), st.binary(max_size=100)]
    if reader.tree is not None:
        loads, dumps = reader.tree
        numbers = st.integers(0, 1 << 16)
        steps = st.lists(st.tuples(st.integers(0, 4), numbers, numbers), min_size=1, max_size=3)
        texts = [seed.decode() for seed in reader.seeds() if _is_tree(seed, loads)]
        kinds += 4 * [st.builds(lambda t, e: dumps(_tree_edits(loads(t), e)).encode(), st.sampled_from(texts), steps)]
    if reader.drawn is not None:
        kinds += 3 * [reader.drawn()]
    return st.one_of(*kinds)
