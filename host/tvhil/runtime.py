# SPDX-License-Identifier: Apache-2.0
"""The C runtime (device/runtime, device/kernels/portable) as a shared library of the host.

It is built on first use with the machine's C compiler and kept under `build/native/`, named by a hash of its sources.
The packer plans a model's memory with it, so host and device cannot disagree, and tests run whole models and single
kernels.

`TVHIL_DEVICE_DIR` names another `device/` directory than the checkout's; `CC` another compiler.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from ctypes import POINTER, c_int, c_int32, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

import tvhil
from tvhil.errors import InputError, MissingToolError, TvhilError
from tvhil.packing.format import (
    ALIGN,
    MODEL,
    OPERATOR,
    PLAN,
    PLAN_SCRATCH,
    TENSOR,
    TENSOR_PER_TOKEN,
    DType,
    ModelError,
    Plan,
    Status,
    align,
)
from tvhil.packing.reader import Region

CFLAGS = ("-std=c11", "-O3", "-fPIC", "-shared", "-Wall", "-Wextra")
SOURCE_PATTERNS = ("runtime/*.c", "kernels/portable/*.c", "kernels/pie/buffer_sizes.c", "app/crc32.c")
HEADER_PATTERNS = ("include/tvit/*.h", "runtime/*.h", "kernels/portable/*.h", "kernels/pie/*.h", "app/crc32.h")
NO_INDEX = 0xFFFFFFFF

# Called after each operator with its index; a true result stops the run.
Observer = Callable[[int], bool | None]


class RuntimeBuildError(TvhilError):
    """The C runtime does not compile."""


class StoppedError(Exception):
    """The observer asked to stop."""


# --- the C structures (device/include/tvit/runtime.h, kernels.h) ---------------------------------------------


class CModel(ctypes.Structure):
    """`tvit_model`."""

    _fields_: ClassVar = [
        *((name, c_void_p) for name in ("file", "header", "info", "tensors", "operators", "plan")),
        ("tensor_offsets", POINTER(c_uint32)),
        ("scratches", c_void_p),
        *((name, c_void_p) for name in ("names", "data", "meta")),
        *((name, c_uint32) for name in ("tensor_count", "operator_count", "names_bytes", "data_bytes", "meta_bytes")),
    ]


class CError(ctypes.Structure):
    """`tvit_error`."""

    _fields_: ClassVar = [
        ("status", c_int),
        ("section", ctypes.c_char * 5),
        ("index", c_uint32),
        ("reason", ctypes.c_char_p),
    ]


class CPlanResult(ctypes.Structure):
    """`tvit_plan_result`."""

    _fields_: ClassVar = [("arena_bytes", c_uint32), ("scratch_bytes", c_uint32)]


class CPlanScratch(ctypes.Structure):
    """`tvit_plan_scratch`."""

    _fields_: ClassVar = [("offset", c_uint32), ("bytes", c_uint32)]


class CRegion(ctypes.Structure):
    """`tvit_region`."""

    _fields_: ClassVar = [(name, c_uint32) for name in ("tensor", "row", "rows", "column", "columns")]


class CContext(ctypes.Structure):
    """`tvit_context`."""

    _fields_: ClassVar = [
        ("model", POINTER(CModel)),
        ("arena", c_void_p),
        ("arena_bytes", c_size_t),
        ("fast", c_void_p),
        ("fast_bytes", c_size_t),
        ("cores", c_void_p),
    ]


class CTernaryMatrix(ctypes.Structure):
    """`tvit_ternary_matrix`."""

    _fields_: ClassVar = [
        ("trits", c_void_p),
        ("channels", c_void_p),
        ("k", c_uint32),
        ("n", c_uint32),
        ("codec", c_uint32),
    ]


class CPatchEmbedArgs(ctypes.Structure):
    """`tvit_patch_embed_args`."""

    _fields_: ClassVar = [
        ("weights", CTernaryMatrix),
        ("image", c_void_p),
        ("image_height", c_uint32),
        ("image_width", c_uint32),
        ("image_channels", c_uint32),
        ("patch_size", c_uint32),
        ("position", c_void_p),
        ("position_multiplier", c_int32),
        ("prefix", c_void_p),
        ("prefix_tokens", c_uint32),
        ("output", c_void_p),
    ]


class CLayernormArgs(ctypes.Structure):
    """`tvit_layernorm_args`."""

    _fields_: ClassVar = [
        ("input", c_void_p),
        ("gamma_beta", c_void_p),
        ("rows", c_uint32),
        ("n", c_uint32),
        ("c", c_uint64),
        ("epsilon", c_uint64),
        ("beta_unit", c_int32),
        ("shift", c_uint32),
        ("output", c_void_p),
        ("per_token", c_uint32),
        ("output_multipliers", c_void_p),
    ]


class CLinearArgs(ctypes.Structure):
    """`tvit_linear_args`."""

    _fields_: ClassVar = [
        ("weights", CTernaryMatrix),
        ("input", c_void_p),
        ("input_multipliers", c_void_p),
        ("rows", c_uint32),
        ("kind", c_int),
        ("limit", c_int32),
        ("table", c_void_p),
        ("output", c_void_p),
        ("output_multipliers", c_void_p),
        ("output_columns", c_uint32),
        ("input_lane", c_uint32),
        ("output_is_row", c_uint32),
    ]


class CAttentionArgs(ctypes.Structure):
    """`tvit_attention_args`."""

    _fields_: ClassVar = [
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("q_columns", c_uint32),
        ("k_columns", c_uint32),
        ("v_columns", c_uint32),
        ("output_columns", c_uint32),
        ("tokens", c_uint32),
        ("heads", c_uint32),
        ("head_dim", c_uint32),
        ("score_shift", c_uint32),
        ("exp_multiplier", c_int32),
        ("out_multiplier", c_uint32),
        ("out_shift", c_uint32),
        ("output", c_void_p),
        ("per_token", c_uint32),
        ("output_multipliers", c_void_p),
    ]


class CMeanPoolArgs(ctypes.Structure):
    """`tvit_mean_pool_args`."""

    _fields_: ClassVar = [
        ("input", c_void_p),
        ("rows", c_uint32),
        ("n", c_uint32),
        ("output", c_void_p),
        ("input_lane", c_uint32),
    ]


# Kernels by the stem of their names, with their arguments: tvit_<stem>_portable, tvit_<stem>_buffer_size_portable.
KERNELS: dict[str, type[ctypes.Structure]] = {
    "patch_embed": CPatchEmbedArgs,
    "layernorm": CLayernormArgs,
    "linear": CLinearArgs,
    "attention": CAttentionArgs,
    "mean_pool": CMeanPoolArgs,
}

_OBSERVER = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_uint32)


# --- building ------------------------------------------------------------------------------------------------


def device_dir() -> Path:
    """The `device/` directory with the C sources.

    Raises:
        InputError: there is none.
    """
    override = os.environ.get("TVHIL_DEVICE_DIR")
    path = Path(override) if override else Path(tvhil.__file__).resolve().parents[2] / "device"
    if not (path / "include" / "tvit" / "runtime.h").is_file():
        raise InputError(
            f"no C sources in {path}: install tvhil from a checkout (pip install --editable .), "
            "or set TVHIL_DEVICE_DIR to its device directory"
        )
    return path


def runtime_sources(device: Path) -> list[Path]:
    """The C files of runtime and portable kernels: what a port compiles."""
    return sorted(path for pattern in SOURCE_PATTERNS for path in device.glob(pattern))


def find_compiler() -> str:
    """The C compiler of the host.

    Raises:
        MissingToolError: there is none.
    """
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        path = shutil.which(name)
        if path:
            return path
    raise MissingToolError("no C compiler found (cc, gcc or clang): install the package gcc")


def build_library(device: Path | None = None, build_dir: Path | None = None) -> Path:
    """Build the shared library unless it is there already; its path.

    Raises:
        MissingToolError: no C compiler.
        RuntimeBuildError: it does not compile, or there is no room for it.
    """
    device = device or device_dir()
    build_dir = build_dir or device.parent / "build" / "native"
    compiler = find_compiler()
    sources = runtime_sources(device)
    digest = hashlib.sha256(f"{compiler} {' '.join(CFLAGS)}".encode())
    for path in [*sources, *sorted(p for pattern in HEADER_PATTERNS for p in device.glob(pattern))]:
        digest.update(f"\0{path.relative_to(device)}\0".encode() + path.read_bytes())
    library = build_dir / f"libtvit-{digest.hexdigest()[:16]}.so"
    if library.is_file():
        return library
    try:
        build_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=build_dir) as scratch:
            # Built aside and moved: two processes may build at the same time.
            output = Path(scratch) / library.name
            command = [compiler, *CFLAGS, f"-I{device / 'include'}", *map(str, sources), "-o", str(output)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                first = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
                raise RuntimeBuildError(f"the C runtime does not compile with {compiler}: {first}")
            output.replace(library)
    except OSError as error:
        raise RuntimeBuildError(f"cannot build the C runtime in {build_dir}: {error.strerror}") from None
    return library


# --- using it ------------------------------------------------------------------------------------------------


def aligned_bytes(size: int) -> npt.NDArray[np.uint8]:
    """`size` zero bytes at a multiple of 16."""
    raw = np.zeros(size + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start : start + size]


class Runtime:
    """The library, loaded.

    Args:
        path: a shared library built by `build_library`; built when missing.
    """

    def __init__(self, path: Path | None = None) -> None:
        lib = ctypes.CDLL(str(path or build_library()))
        model, error = POINTER(CModel), POINTER(CError)
        prototypes: dict[str, tuple[Any, list[Any]]] = {
            "tvit_load": (c_int, [model, c_void_p, c_size_t, error]),
            "tvit_load_unplanned": (c_int, [model, c_void_p, c_size_t, error]),
            "tvit_status_text": (ctypes.c_char_p, [c_int]),
            "tvit_plan": (c_int, [model, POINTER(CPlanResult), POINTER(c_uint32), POINTER(CPlanScratch)]),
            "tvit_plan_split": (
                c_int,
                [model, c_uint32, POINTER(CPlanResult), POINTER(c_uint32), POINTER(CPlanScratch)],
            ),
            "tvit_operator_scratch_bytes": (c_size_t, [model, c_uint32]),
            "tvit_planned_scratch_bytes": (c_size_t, [model, c_uint32]),
            "tvit_arena_bytes": (c_size_t, [model]),
            "tvit_tensor_bytes": (c_size_t, [model, c_uint32]),
            "tvit_image_lead": (c_uint32, [model]),
            "tvit_operator_output": (CRegion, [model, c_uint32]),
            "tvit_init": (c_int, [POINTER(CContext), model, c_void_p, c_size_t]),
            "tvit_tensor_data": (c_void_p, [POINTER(CContext), c_uint32]),
            "tvit_tensor_multipliers": (c_void_p, [POINTER(CContext), c_uint32]),
            "tvit_run": (c_int, [POINTER(CContext), c_uint32, _OBSERVER, c_void_p]),
            "tvit_tile_bytes": (c_uint32, [c_uint32] * 3),
            "tvit_matrix_bytes": (c_uint32, [c_uint32] * 3),
            "tvit_trits_decode_portable": (None, [POINTER(CTernaryMatrix), c_uint32, c_uint32, c_void_p, c_void_p]),
            "tvit_ternary_dot_portable": (None, [c_void_p, c_void_p, c_void_p, c_uint32, c_uint32]),
            "tvit_exp2_q14_portable": (c_int32, [c_int32]),
            "tvit_softmax_portable": (c_int32, [c_void_p, c_uint32, c_uint32, c_int32, c_int32]),
            "tvit_token_quantize_portable": (c_uint16, [c_void_p, c_void_p, c_uint32]),
        }
        for stem, arguments in KERNELS.items():
            prototypes[f"tvit_{stem}_portable"] = (None, [POINTER(arguments), c_void_p])
            prototypes[f"tvit_{stem}_buffer_size_portable"] = (c_size_t, [POINTER(arguments)])
        for name, (result, arguments_) in prototypes.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments_
        self.lib = lib

    def status_text(self, status: int) -> str:
        """A status in words."""
        return str(self.lib.tvit_status_text(status).decode())

    def load(self, file: bytes) -> LoadedModel:
        """Validate a model file as the device does, and get ready to run it.

        Raises:
            ModelError: it is malformed.
        """
        return LoadedModel(self, file)

    def plan(self, file: bytes, fast_bytes: int | None = None) -> Plan:
        """The memory plan of a model whose PLAN need not be filled in yet.

        Args:
            file: the model.
            fast_bytes: of an arena in slow memory that are in fast memory; what is read most is put there.

        Raises:
            ModelError: it is malformed, or needs more than 4 GB.
        """
        _file, model = self._open(file, self.lib.tvit_load_unplanned)
        result = CPlanResult()
        offsets = (c_uint32 * model.tensor_count)()
        scratches = (CPlanScratch * model.operator_count)()
        if fast_bytes is None:
            status = self.lib.tvit_plan(model, result, offsets, scratches)
        else:
            status = self.lib.tvit_plan_split(model, fast_bytes, result, offsets, scratches)
        if status != Status.OK:
            raise ModelError(Status(status), "PLAN", None, self.status_text(status))
        places = tuple((int(s.offset), int(s.bytes)) for s in scratches)
        return Plan(int(result.arena_bytes), int(result.scratch_bytes), tuple(offsets), places)

    def arena_bytes(self, file: bytes, as_planned: bool = False) -> int:
        """The arena that a model needs.

        Args:
            file: the model.
            as_planned: with the kernels that memory is planned for, whose scratch may have grown since the file was
                packed; by default with those of this library, the portable ones.

        Raises:
            ModelError: it is malformed.
        """
        image, model = self._open(file, self.lib.tvit_load)
        if not as_planned:
            return int(self.lib.tvit_arena_bytes(model))
        start = model.scratches - image.ctypes.data
        planned = image[start : start + PLAN_SCRATCH.itemsize * model.operator_count].view(PLAN_SCRATCH)["bytes"]
        needs = [int(self.lib.tvit_planned_scratch_bytes(model, i)) for i in range(model.operator_count)]
        arena = int(image[model.plan - image.ctypes.data :][: PLAN.itemsize].view(PLAN)[0]["arena_bytes"])
        return arena + align(max((need for need, room in zip(needs, planned, strict=True) if need > room), default=0))

    def call_kernel(self, stem: str, arguments: ctypes.Structure) -> None:
        """Run a portable kernel on its arguments, with as much scratch as it asks for and not a byte more."""
        size = getattr(self.lib, f"tvit_{stem}_buffer_size_portable")(ctypes.byref(arguments))
        scratch = aligned_bytes(size + ALIGN)
        scratch[size:] = 0xA5
        getattr(self.lib, f"tvit_{stem}_portable")(ctypes.byref(arguments), scratch.ctypes.data)
        if (scratch[size:] != 0xA5).any():
            raise AssertionError(f"tvit_{stem}_portable writes behind its {size} bytes of scratch")

    def _open(self, file: bytes, loader: Any) -> tuple[npt.NDArray[np.uint8], CModel]:
        image = aligned_bytes(len(file))
        image[:] = np.frombuffer(file, np.uint8)
        model, error = CModel(), CError()
        status = loader(model, image.ctypes.data, len(file), error)
        if status != Status.OK:
            index = None if error.index == NO_INDEX else int(error.index)
            raise ModelError(Status(status), error.section.decode(), index, error.reason.decode())
        return image, model


class LoadedModel:
    """A model in the C runtime: its file, its arena, and what is in them.

    Attributes:
        tensors, operators: the TENS and OPER records (`packing.format.TENSOR`, `OPERATOR`).
        arena: the arena's bytes.
    """

    def __init__(self, runtime: Runtime, file: bytes) -> None:
        self.runtime = runtime
        self._file, self._model = runtime._open(file, runtime.lib.tvit_load)
        self.tensors = self._records(self._model.tensors, TENSOR, self._model.tensor_count)
        self.operators = self._records(self._model.operators, OPERATOR, self._model.operator_count)
        arena_bytes = int(runtime.lib.tvit_arena_bytes(self._model))
        self.arena = aligned_bytes(arena_bytes)
        self._context = CContext()
        self._check(runtime.lib.tvit_init(self._context, self._model, self.arena.ctypes.data, arena_bytes))
        self.logits_tensor = int(self._records(self._model.info, MODEL, 1)[0]["logits"])

    def run(
        self,
        image: npt.NDArray[np.uint8],
        stop_after: int | None = None,
        observer: Observer | None = None,
    ) -> npt.NDArray[np.int16]:
        """Run the model on one image.

        Args:
            image: uint8 `[H][W][C]`.
            stop_after: index of the last operator to run; all of them by default.
            observer: called after each operator with its index; a true result stops the run.

        Returns:
            The logits `[classes]` (whatever lies there when the run stopped before the head).

        Raises:
            InputError: an image of another size or type.
            StoppedError: the observer stopped the run.
        """
        expected = int(self.tensors[0]["rows"]) * int(self.tensors[0]["columns"])
        if image.dtype != np.uint8 or image.size != expected:
            raise InputError(f"an image of {expected} uint8 values is needed, not {image.size} of {image.dtype}")
        self._view(0)[:] = image.reshape(self._view(0).shape)
        failure: list[BaseException] = []

        def observe(_user: int, _context: int, index: int) -> int:
            try:
                return int(bool(observer(index))) if observer else 0
            except BaseException as error:
                failure.append(error)  # it can't pass through C
                return 1

        callback = _OBSERVER(observe) if observer else _OBSERVER()
        if stop_after is not None and not 0 <= stop_after < len(self.operators):
            raise IndexError(f"the model has no operator {stop_after}")
        last = NO_INDEX if stop_after is None else stop_after
        status = self.runtime.lib.tvit_run(self._context, last, callback, None)
        if failure:
            raise failure[0]
        if status == Status.STOPPED:
            raise StoppedError
        self._check(status)
        logits: npt.NDArray[np.int16] = self.tensor(self.logits_tensor)[0]
        return logits

    def tensor(self, tensor: int) -> npt.NDArray[Any]:
        """A copy of a tensor's values, `[rows][columns]`, as they are in the arena now."""
        return self._view(tensor).copy()

    def multipliers(self, tensor: int) -> npt.NDArray[np.uint16] | None:
        """A copy of a tensor's per-token multipliers `[rows]`, or None where it has none."""
        record = self._record(tensor)
        if not record["flags"] & TENSOR_PER_TOKEN:
            return None
        at = self.runtime.lib.tvit_tensor_multipliers(self._context, tensor) - self.arena.ctypes.data
        return self.arena[at : at + 2 * int(record["rows"])].view("<u2").copy()

    def output(self, operator: int) -> Region:
        """What an operator writes."""
        region = self.runtime.lib.tvit_operator_output(self._model, operator)
        return Region(region.tensor, region.row, region.rows, region.column, region.columns)

    def image_lead(self) -> int | None:
        """How far behind the stream's start the image must at least begin where the two overlap; None: nowhere."""
        lead = int(self.runtime.lib.tvit_image_lead(self._model))
        return None if lead == NO_INDEX else lead

    def scratch_bytes(self, operator: int) -> int:
        """Bytes of scratch that an operator's kernel needs in this library, which has the portable kernels."""
        return int(self.runtime.lib.tvit_operator_scratch_bytes(self._model, operator))

    def planned_scratch_bytes(self, operator: int) -> int:
        """Bytes of scratch that a plan reserves for an operator: of the kernels that plans are made for."""
        return int(self.runtime.lib.tvit_planned_scratch_bytes(self._model, operator))

    def _record(self, tensor: int) -> Any:
        if not 0 <= tensor < len(self.tensors):
            raise IndexError(f"the model has no tensor {tensor}")
        return self.tensors[tensor]

    def _view(self, tensor: int) -> npt.NDArray[Any]:
        record = self._record(tensor)
        rows, columns = int(record["rows"]), int(record["columns"])
        dtype = DType(int(record["dtype"])).numpy
        at = self.runtime.lib.tvit_tensor_data(self._context, tensor) - self.arena.ctypes.data
        return self.arena[at : at + rows * columns * dtype.itemsize].view(dtype).reshape(rows, columns)

    def _records(self, address: int, dtype: np.dtype[np.void], count: int) -> npt.NDArray[np.void]:
        at = address - self._file.ctypes.data
        return np.frombuffer(self._file[at : at + count * dtype.itemsize].tobytes(), dtype)

    def _check(self, status: int) -> None:
        if status != Status.OK:
            raise ModelError(Status(status), "", None, self.runtime.status_text(status))


@functools.cache
def default_runtime() -> Runtime:
    """The runtime of this checkout, built and loaded once a process."""
    return Runtime()


def plan_memory(file: bytes, fast_bytes: int | None = None) -> Plan:
    """The memory plan of a model file whose PLAN is still zero: what `packing.writer` asks for."""
    return default_runtime().plan(file, fast_bytes)


__all__ = [
    "LoadedModel",
    "Observer",
    "Plan",
    "Runtime",
    "RuntimeBuildError",
    "StoppedError",
    "build_library",
    "default_runtime",
    "device_dir",
    "find_compiler",
    "plan_memory",
    "runtime_sources",
]
