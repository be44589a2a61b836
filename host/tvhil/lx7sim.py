# SPDX-License-Identifier: Apache-2.0
"""Drives lx7sim, the instruction-set simulator with a cycle model (tools/lx7sim), through ctypes.

The library and the command-line program are built with the host's gcc under `build/lx7sim/` on first use, and again
when a source is newer. Counters come as numpy arrays: one row an instruction address.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
from collections.abc import Callable, Mapping
from ctypes import c_char_p, c_int, c_int64, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from tvhil.errors import BoardError, MissingToolError, TvhilError

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = REPOSITORY / "tools" / "lx7sim"
BUILD = REPOSITORY / "build" / "lx7sim"
CONFIG = SOURCE / "esp32s3.toml"

STALLS = (
    *(
        "load",
        "mul",
        "div",
        "fpu",
        "sreg",
        "pie",
        "pie_unit",
        "branch",
        "fetch",
        "loop",
        "icache",
        "dcache",
        "dcache_write",
    ),
    *("bus", "unaligned", "sram", "device", "sync", "exception", "sleep"),
)  # lx7_stall_t
REGIONS = ("sram", "flash", "psram", "device")  # lx7_region_class_t

#: Parameters under which every instruction takes one cycle as long as code and data are in SRAM: CCOUNT counts them.
INSTRUCTION_CLOCK = {
    **{f"latency.{name}": 1 for name in ("load", "mul16", "mul32", "mulh", "div", "special_register", "wfr", "rfr")},
    **{f"latency.fp_{name}": 1 for name in ("add", "mul", "madd", "convert", "compare", "move", "estimate", "load")},
    **{f"transfer.{name}": 0 for name in ("branch_taken", "jump", "jump_register", "call", "call_register", "return")},
    **{f"transfer.{name}": 0 for name in ("return_windowed", "entry", "return_exception", "exception")},
    "transfer.target_crosses_fetch_word": 0,
    "loop.setup": 0,
    "loop.back": 0,
    "loop.back_unbuffered": 0,
    **{f"sync.{name}": 0 for name in ("isync", "rsync", "memw", "s32c1i")},
    **{f"memory.{name}": 0 for name in ("unaligned_crossing", "device_load", "device_store")},
    "sram.conflict": 0,
    "pie.stage1_result": 1,
    "pie.stage2_result": 1,
    "pie.mac_to_reduce": 1,
}

#: One row of `Simulator.pcs()`: lx7_pc_t.
PC_ROW = np.dtype(
    [
        ("pc", "<u4"),
        ("length", "<u4"),
        ("count", "<u8"),
        ("taken", "<u8"),
        ("stall", "<u8", len(STALLS)),
        ("access", "<u8", len(REGIONS)),
        ("bytes", "<u8", len(REGIONS)),
        ("icache_miss", "<u8"),
        ("dcache_miss", "<u8"),
        ("mac", "<u8"),
    ]
)


class Stop(IntEnum):
    """Why `Simulator.run` came back (lx7_stop_t)."""

    BUDGET = 0
    EXIT = 1
    IDLE = 2
    MAX_CYCLES = 3
    ERROR = 4
    BREAK = 5


class SimulatorError(BoardError):
    """The simulator refused a file or an option, or stopped at something the program did."""


class BuildError(TvhilError):
    """The simulator does not compile."""


class Totals(NamedTuple):
    """Counters of one core since reset or `clear_counters`."""

    cycles: int
    instructions: int
    stall: dict[str, int]
    access: dict[str, int]
    bytes: dict[str, int]
    icache_access: int
    icache_miss: int
    dcache_access: int
    dcache_miss: int
    dcache_writeback: int
    exceptions: int
    interrupts: int
    window_overflows: int
    window_underflows: int
    idle_polls: int
    mac: int


class Event(NamedTuple):
    """One issued instruction of a trace."""

    core: int
    pc: int
    cycle: int
    waited: int  # operand and unit stalls before it
    cause: str  # of the longest of them, "" when it did not wait


class _CTotals(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("cycles", c_uint64),
        ("instructions", c_uint64),
        ("stall", c_uint64 * len(STALLS)),
        ("access", c_uint64 * len(REGIONS)),
        ("bytes", c_uint64 * len(REGIONS)),
        *((name, c_uint64) for name in Totals._fields[5:]),
    ]


class _CEvent(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("pc", c_uint32),
        ("core", c_uint32),
        ("cycle", c_uint64),
        ("waited", c_uint32),
        ("cause", c_uint32),
    ]


_TRACE = ctypes.CFUNCTYPE(c_int, c_void_p, ctypes.POINTER(_CEvent))
_WARNING = ctypes.CFUNCTYPE(None, c_void_p, c_char_p)

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "new": (c_void_p, []),
    "free": (None, [c_void_p]),
    "message": (c_char_p, [c_void_p]),
    "set_warning": (None, [c_void_p, _WARNING, c_void_p]),
    "load_config": (c_int, [c_void_p, c_char_p]),
    "set_parameter": (c_int, [c_void_p, c_char_p, c_int64]),
    "get_parameter": (c_int, [c_void_p, c_char_p, ctypes.POINTER(c_int64)]),
    "parameter_name": (c_char_p, [c_int]),
    "set_option": (c_int, [c_void_p, c_char_p, c_int64]),
    "load_flash": (c_int, [c_void_p, c_char_p]),
    "load_elf": (c_int, [c_void_p, c_char_p]),
    "reset": (None, [c_void_p]),
    "reboot": (c_int, [c_void_p]),
    "set_command_line": (c_int, [c_void_p, c_char_p]),
    "run": (c_int, [c_void_p, c_uint64]),
    "uart_send": (None, [c_void_p, c_char_p, c_size_t]),
    "uart_receive": (c_size_t, [c_void_p, c_void_p, c_size_t]),
    "read_memory": (c_int, [c_void_p, c_uint32, c_void_p, c_size_t]),
    "write_memory": (c_int, [c_void_p, c_uint32, c_char_p, c_size_t]),
    "register": (c_uint32, [c_void_p, c_int, c_char_p]),
    "vector_register": (c_size_t, [c_void_p, c_int, c_char_p, c_void_p]),
    "dump_registers": (c_size_t, [c_void_p, c_int, c_char_p, c_size_t]),
    "get_totals": (None, [c_void_p, c_int, ctypes.POINTER(_CTotals)]),
    "get_pcs": (c_size_t, [c_void_p, c_int, c_void_p, c_size_t]),
    "clear_counters": (None, [c_void_p]),
    "disassemble": (c_int, [c_void_p, c_uint32, c_char_p, c_size_t]),
    "set_trace": (None, [c_void_p, _TRACE, c_void_p]),
}


@functools.cache
def build() -> Path:
    """Compiles what is not up to date; the folder with `liblx7sim.so` and the program `lx7sim`.

    Raises:
        MissingToolError: gcc or make is not installed, or this is not a checkout with tools/lx7sim.
        BuildError: the compiler's first error.
    """
    if not (SOURCE / "Makefile").is_file():
        raise MissingToolError(f"lx7sim is built from a checkout of the repository: {SOURCE} is not there")
    for tool in ("gcc", "make"):
        if not shutil.which(tool):
            raise MissingToolError(f"{tool} is needed to build lx7sim: apt-get install build-essential")
    command = ["make", "-s", "-j2", "-C", str(SOURCE), f"BUILD={BUILD}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()[-1:]
        raise BuildError(f"lx7sim does not compile: {errors[0] if errors else 'make failed'}")
    return BUILD


def program() -> Path:
    """The command-line simulator, built."""
    return build() / "lx7sim"


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build() / "liblx7sim.so"))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, f"lx7_{name}")
        function.restype, function.argtypes = result, arguments
    return library


class Simulator:
    """One simulated board.

    Args:
        config: parameters and regions; `esp32s3.toml` of the tool by default.
        cores: 1 or 2.
        pie: execute PIE instructions; without it they raise IllegalInstruction.
        trap: deliver accesses outside the memory map to the program as exceptions instead of stopping.
        max_cycles: stop there with `Stop.MAX_CYCLES`; 0 for no limit.
        parameters: changes to the configuration by name ("latency.load").
        flash: contents of the flash window.
        command_line: for the program, in its boot parameters.
    """

    def __init__(
        self,
        *,
        config: Path = CONFIG,
        cores: int = 1,
        pie: bool = False,
        trap: bool = False,
        max_cycles: int = 0,
        parameters: Mapping[str, int] | None = None,
        flash: Path | None = None,
        command_line: str = "",
    ) -> None:
        self._c = _library()
        handle = self._c.lx7_new()
        if not handle:
            raise SimulatorError("cannot reserve 4 GB of address space for lx7sim")
        self._handle = c_void_p(handle)
        self.cores = cores
        self.warnings: list[str] = []
        self._on_warning = _WARNING(lambda _context, line: self.warnings.append(line.decode()))
        self._on_event: Any = None
        self._c.lx7_set_warning(self._handle, self._on_warning, None)
        self._check(self._c.lx7_load_config(self._handle, str(config).encode()))
        for name, value in (parameters or {}).items():
            self._check(self._c.lx7_set_parameter(self._handle, name.encode(), value))
        for option, number in (("cores", cores), ("pie", pie), ("trap", trap), ("max-cycles", max_cycles)):
            self._check(self._c.lx7_set_option(self._handle, option.encode(), int(number)))
        if flash is not None:
            self._check(self._c.lx7_load_flash(self._handle, str(flash).encode()))
        self._check(self._c.lx7_set_command_line(self._handle, command_line.encode()))

    def __enter__(self) -> Simulator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the memory back; the simulator cannot be used afterwards."""
        if self._handle:
            self._c.lx7_free(self._handle)
            self._handle = c_void_p(None)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    @property
    def message(self) -> str:
        """The latest error, warning or stop in one line."""
        text: bytes = self._c.lx7_message(self._handle)
        return text.decode()

    def _check(self, status: int) -> None:
        if status:
            raise SimulatorError(self.message)

    # --- running ---------------------------------------------------------------------------------------------

    def load(self, elf: Path) -> None:
        """Loads a program and resets the board."""
        self._check(self._c.lx7_load_elf(self._handle, str(elf).encode()))

    def reset(self) -> None:
        """Resets cores, caches, devices and counters; memory is kept."""
        self._c.lx7_reset(self._handle)

    def reboot(self) -> None:
        """The same, and loads again what the program's file initializes: a reset of the board as QEMU does it."""
        self._check(self._c.lx7_reboot(self._handle))

    def run(self, cycles: int = 0) -> Stop:
        """Runs about so many more cycles, 0 without limit; see `Stop` for what ends it earlier."""
        return Stop(self._c.lx7_run(self._handle, cycles))

    def run_to_exit(self) -> bytes:
        """Runs until the program resets the board; what it printed.

        Raises:
            SimulatorError: it stopped otherwise: an error, max_cycles, waiting for input.
        """
        stop = self.run()
        if stop == Stop.IDLE:
            raise SimulatorError(f"the program waits for input after printing {self.receive()[-80:]!r}")
        if stop != Stop.EXIT:
            raise SimulatorError(self.message)
        return self.receive()

    def send(self, data: bytes) -> None:
        """Queues bytes for the program's UART."""
        self._c.lx7_uart_send(self._handle, data, len(data))

    def receive(self) -> bytes:
        """What the program has printed since the last call."""
        buffer, result = ctypes.create_string_buffer(65536), b""
        while n := self._c.lx7_uart_receive(self._handle, buffer, len(buffer)):
            result += buffer.raw[:n]
        return result

    def trace(self, visit: Callable[[Event], bool | None] | None) -> None:
        """Calls `visit` before every instruction; a true result stops the run with `Stop.BREAK`. None ends it."""

        def on_event(_context: Any, event: Any) -> int:
            e = event.contents
            cause = STALLS[e.cause] if e.waited else ""
            return bool(visit and visit(Event(e.core, e.pc, e.cycle, e.waited, cause)))

        self._on_event = _TRACE(on_event) if visit else _TRACE()
        self._c.lx7_set_trace(self._handle, self._on_event, None)

    # --- looking in ------------------------------------------------------------------------------------------

    def read_memory(self, address: int, size: int) -> bytes:
        """Bytes of RAM or flash."""
        buffer = (c_uint8 * size)()
        self._check(self._c.lx7_read_memory(self._handle, address, buffer, size))
        return bytes(buffer)

    def write_memory(self, address: int, data: bytes) -> None:
        """Changes RAM."""
        self._check(self._c.lx7_write_memory(self._handle, address, data, len(data)))

    def register(self, name: str, core: int = 0) -> int:
        """A register by name: pc, a0..a15, ar0..ar63, f0..f15 (bits), or a special register; 0 for an unknown one."""
        return int(self._c.lx7_register(self._handle, core, name.encode()))

    def vector_register(self, name: str, core: int = 0) -> bytes:
        """PIE state by name: q0..q7, qacc_l, qacc_h, accx, ua_state."""
        buffer = ctypes.create_string_buffer(32)
        return buffer.raw[: self._c.lx7_vector_register(self._handle, core, name.encode(), buffer)]

    def dump_registers(self, core: int = 0) -> str:
        """All registers as text."""
        buffer = ctypes.create_string_buffer(8192)
        self._c.lx7_dump_registers(self._handle, core, buffer, len(buffer))
        return buffer.value.decode()

    def disassemble(self, address: int) -> tuple[str, int]:
        """Text and length of the instruction at an address; ("", 0) when it is none."""
        buffer = ctypes.create_string_buffer(128)
        length = self._c.lx7_disassemble(self._handle, address, buffer, len(buffer))
        return (buffer.value.decode(), length) if length else ("", 0)

    def parameters(self) -> dict[str, int]:
        """Every number of the cycle model by name."""
        result, value = {}, c_int64()
        for i in range(1000):
            name = self._c.lx7_parameter_name(i)
            if not name:
                break
            self._c.lx7_get_parameter(self._handle, name, ctypes.byref(value))
            result[name.decode()] = value.value
        return result

    # --- counters --------------------------------------------------------------------------------------------

    def totals(self, core: int = 0) -> Totals:
        """Sums over one core."""
        c = _CTotals()
        self._c.lx7_get_totals(self._handle, core, ctypes.byref(c))
        plain = [int(getattr(c, name)) for name in Totals._fields[5:]]
        stall = dict(zip(STALLS, map(int, c.stall), strict=True))
        access = dict(zip(REGIONS, map(int, c.access), strict=True))
        moved = dict(zip(REGIONS, map(int, c.bytes), strict=True))
        return Totals(int(c.cycles), int(c.instructions), stall, access, moved, *plain)

    def pcs(self, core: int = 0) -> npt.NDArray[Any]:
        """Counters of every executed instruction address, ascending, as an array of `PC_ROW`.

        `stall` columns are in the order of `STALLS`, `access` and `bytes` in that of `REGIONS`; the cycles of a row are
        `count + stall.sum()`.
        """
        n = self._c.lx7_get_pcs(self._handle, core, None, 0)
        rows = np.zeros(n, PC_ROW)
        self._c.lx7_get_pcs(self._handle, core, rows.ctypes.data_as(c_void_p), n)
        return rows

    def clear_counters(self) -> None:
        """Counts from here."""
        self._c.lx7_clear_counters(self._handle)
