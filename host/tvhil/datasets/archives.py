# SPDX-License-Identifier: Apache-2.0
"""Files of a folder, zip or tar, read in place: nothing is extracted, every size and name is checked first."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Protocol

from PIL import Image, UnidentifiedImageError

from tvhil.errors import DatasetError

MAX_FILES = 2_000_000  # ImageNet's training set has 1.3 million
MAX_FILE_BYTES = 64 << 20  # one encoded image
MAX_TAR_BYTES = 512 << 20  # a compressed tar is unpacked in memory
MAX_PIXELS = 100_000_000

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".gif", ".tif", ".tiff")
_PIL_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "GIF", "TIFF")
_DECOMPRESSORS: dict[bytes, type[gzip.GzipFile] | type[bz2.BZ2File] | type[lzma.LZMAFile]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZ": bz2.BZ2File,
    b"\xfd7": lzma.LZMAFile,
}
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)


class FileTree(Protocol):
    """Files by name: '/'-separated relative paths, sorted, without duplicates, none leading outside."""

    path: Path
    names: tuple[str, ...]

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """The whole content of one file. Raises `DatasetError` when it is larger than `limit` or damaged."""


def open_tree(path: Path) -> FileTree:
    """Open a folder, a zip, or a tar (plain, or compressed and at most 512 MiB when unpacked)."""
    try:
        if path.is_dir():
            return _Folder(path)
        if not path.exists():
            raise DatasetError(f"no dataset at {path}")
        if zipfile.is_zipfile(path):
            return _Zip(path)
        return _Tar(path)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from None


def image_names(tree: FileTree) -> list[str]:
    """Names of the image files, without those in hidden folders and macOS's resource forks."""
    return [
        name
        for name in tree.names
        if name.lower().endswith(IMAGE_SUFFIXES)
        and not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
    ]


def load_image(tree: FileTree, name: str) -> Image.Image:
    """Decode one image file completely. Raises `DatasetError` naming archive and file."""
    data = tree.read(name)
    try:
        with Image.open(io.BytesIO(data), formats=_PIL_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DatasetError(f"{tree.path}: {name} has {image.width}x{image.height} pixels, too many")
            image.load()
            return image.copy()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "not an image of a known format" if isinstance(error, UnidentifiedImageError) else error
        raise DatasetError(f"{tree.path}: {name} is not a readable image: {reason}") from None


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = _checked_names(path, self._walk())

    def _walk(self) -> Iterable[str]:
        """Every file below; symbolic links are followed, loops are not."""
        seen = set()
        for folder, subfolders, files in os.walk(self.path, followlinks=True):
            seen.add(os.path.realpath(folder))
            subfolders[:] = [s for s in subfolders if os.path.realpath(Path(folder, s)) not in seen]
            for file in files:
                yield Path(folder, file).relative_to(self.path).as_posix()

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        file = self.path / name
        try:
            with file.open("rb") as stream:
                return _read_bounded(stream, limit, f"{file}")
        except OSError as error:
            raise DatasetError(f"cannot read {file}: {error.strerror}") from None


class _Zip:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise DatasetError(f"{path} is a damaged zip archive: {error}") from None
        self.names = _checked_names(path, [n for n in self._zip.namelist() if not n.endswith("/")])

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        try:
            with self._zip.open(name) as stream:
                return _read_bounded(stream, limit, f"{self.path}: {name}")
        except (*_DAMAGE, zipfile.BadZipFile, struct.error, UnicodeDecodeError) as error:  # the last two: of its header
            raise DatasetError(f"{self.path}: {name} is damaged: {error}") from None
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unknown compression
            raise DatasetError(f"{self.path}: cannot read {name}: {error}") from None


class _Tar:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = _open_tar_stream(path)
        try:
            with tarfile.open(fileobj=self._stream, mode="r:") as tar:
                # Links and devices are left out: only regular files can be read in place.
                members = [member for member in tar if member.isreg() and not member.issparse()]
            self._stream.seek(tar.offset)
            ended = self._stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            raise DatasetError(f"{path} is neither a folder nor a readable zip or tar: {error}") from None
        if not ended:  # tarfile takes a damaged header for the end
            raise DatasetError(f"{path} is truncated or damaged at byte {tar.offset}, after {len(members)} files")
        self.names = _checked_names(path, [member.name.removeprefix("./") for member in members])
        self._places = {m.name.removeprefix("./"): (m.offset_data, m.size) for m in members}

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        offset, size = self._places[name]
        if size > limit:
            raise DatasetError(f"{self.path}: {name} is larger than {limit >> 20} MiB")
        self._stream.seek(offset)
        data = self._stream.read(size)
        if len(data) != size:
            raise DatasetError(f"{self.path} is truncated: {name} is incomplete")
        return data


def _open_tar_stream(path: Path) -> IO[bytes]:
    """The uncompressed bytes of a tar: the file itself, or a compressed one unpacked into memory."""
    stream = path.open("rb")
    decompress = _DECOMPRESSORS.get(stream.read(2))
    stream.seek(0)
    if decompress is None:
        return stream
    stream.close()
    try:
        with decompress(path) as packed:
            data = packed.read(MAX_TAR_BYTES + 1)
    except _DAMAGE as error:
        raise DatasetError(f"{path} is damaged: {error}") from None
    if len(data) > MAX_TAR_BYTES:
        raise DatasetError(f"{path} is larger than {MAX_TAR_BYTES >> 20} MiB unpacked: decompress it to a plain .tar")
    return io.BytesIO(data)


def _read_bounded(stream: IO[bytes], limit: int, what: str) -> bytes:
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise DatasetError(f"{what} is larger than {limit >> 20} MiB")
    return data


def _checked_names(path: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Sort names; refuse too many, duplicates, and any that would lead out of the archive."""
    checked: set[str] = set()
    for name in names:
        if len(checked) >= MAX_FILES:
            raise DatasetError(f"{path} holds more than {MAX_FILES} files")
        parts = name.split("/")
        if not name or ".." in parts or name.startswith("/") or re.search(r"[\\\x00-\x1f]|^[A-Za-z]:", name):
            raise DatasetError(f"{path} is hostile: its member {name!r} points outside it or has no plain name")
        if name in checked:
            raise DatasetError(f"{path} holds {name} twice")
        checked.add(name)
    return tuple(sorted(checked))
