# SPDX-License-Identifier: Apache-2.0
"""Builds the PIE model natively and drives it through ctypes, for the tests of the model."""

from __future__ import annotations

import ctypes
import gzip
import importlib.util
import json
import mmap
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "device" / "pie_model"
SHARED = Path(os.environ.get("TVHIL_SHARED", REPOSITORY.parent / "shared"))
MAP_32BIT = 0x40  # mmap flag of Linux on x86-64: an address below 2 GiB
STATUS_OK, STATUS_LOAD_ERROR, STATUS_STORE_ERROR, UNDEFINED = 0, 1, 2, -1
BASE = 0x4000  #: address of the memory window as the instructions see it
MEMORY = 8192  #: its size
MASK32 = 0xFFFFFFFF
VARIANTS = {  # name: compiler flags
    "pages": ["-O3"],  # as the simulator uses it
    "callbacks": ["-O3"],
    "sanitized": ["-O0", "-fsanitize=undefined"],
    "direct": ["-O1", "-DPIE_DIRECT_MEMORY"],  # as a trap handler uses it
}


def load_tables() -> ModuleType:
    """tools/pie_tables.py as a module."""
    spec = importlib.util.spec_from_file_location("pie_tables", REPOSITORY / "tools" / "pie_tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["pie_tables"] = module
    spec.loader.exec_module(module)
    return module


pie_tables = load_tables()
OPCODES = pie_tables.read_opcodes()
BY_NAME = {opcode.mnemonic: opcode for opcode in OPCODES}


class Machine(ctypes.Structure):
    """driver_machine_t of device/pie_model/tests/pie_driver.c."""

    _fields_ = [
        ("q", ctypes.c_uint8 * 16 * 8),
        ("qacc_l", ctypes.c_uint8 * 20),
        ("qacc_h", ctypes.c_uint8 * 20),
        ("ua_state", ctypes.c_uint8 * 16),
        ("accx", ctypes.c_uint8 * 8),
        ("sar", ctypes.c_uint32),
        ("sar_byte", ctypes.c_uint32),
        ("fft_bit_width", ctypes.c_uint32),
        ("gpio_out", ctypes.c_uint32),
        ("gpio_in", ctypes.c_uint32),
        ("ar", ctypes.c_uint32 * 64),
        ("ar_base", ctypes.c_uint32),
        ("ar_mask", ctypes.c_uint32),
        ("fr", ctypes.c_uint32 * 16),
        ("memory_base", ctypes.c_uint32),
        ("memory_size", ctypes.c_uint32),
        ("use_pages", ctypes.c_uint32),
        ("access_address", ctypes.c_uint32),
        ("misaligned_count", ctypes.c_uint32),
        ("misaligned_address", ctypes.c_uint32),
        ("misaligned_size", ctypes.c_uint32),
        ("qacc_form", ctypes.c_uint32),
        ("memory", ctypes.c_void_p),
    ]


@dataclass
class Model:
    """One build of the library with its memory window."""

    library: ctypes.CDLL
    memory: ctypes.Array[ctypes.c_char]
    base: int  #: address of memory[0] as the instructions see it
    use_pages: bool

    def machine(self) -> Machine:
        machine = Machine(ar_mask=15, memory_base=self.base, memory_size=MEMORY, use_pages=self.use_pages)
        machine.memory = ctypes.addressof(self.memory)
        return machine

    def run(self, machine: Machine, code: bytes) -> int:
        return int(self.library.driver_run(ctypes.byref(machine), code + b"\0", len(code)))

    def disassemble(self, code: bytes) -> tuple[int, int, str]:
        """Opcode (-1: undefined), length, text."""
        length = ctypes.c_uint32(0)
        text = ctypes.create_string_buffer(128)
        padded = code + bytes(4 - len(code))
        opcode = self.library.driver_disassemble(padded, ctypes.byref(length), text, len(text))
        return opcode, length.value, text.value.decode()

    def usage(self, code: bytes) -> list[int]:
        words = (ctypes.c_uint32 * 16)()
        assert self.library.driver_usage(code + b"\0", words) >= 0
        return list(words)


_libraries: dict[str, ctypes.CDLL] = {}


def library(directory: Path, *flags: str) -> ctypes.CDLL:
    """The model built with these flags; once a session."""
    name = "pie_" + "".join(flags).replace("/", "_") + ".so"
    if name not in _libraries:
        sources = [str(path) for path in sorted(MODEL.glob("*.c"))] + [str(MODEL / "tests" / "pie_driver.c")]
        command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{MODEL}", *flags]
        subprocess.run([*command, *sources, "-o", str(directory / name)], check=True)
        _libraries[name] = ctypes.CDLL(str(directory / name))
    return _libraries[name]


def open_model(variant: str, directory: Path) -> Model:
    """One of VARIANTS; skips the test where it cannot be built."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc to build the PIE model with")
    direct = variant == "direct"
    if direct and (sys.platform != "linux" or os.uname().machine != "x86_64"):
        pytest.skip("plain pointers need memory below 4 GiB: x86-64 Linux only")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (MAP_32BIT if direct else 0)
    memory = (ctypes.c_char * MEMORY).from_buffer(mmap.mmap(-1, MEMORY, flags=flags))
    base = ctypes.addressof(memory) if direct else BASE
    return Model(library(directory, *VARIANTS[variant]), memory, base, variant in ("pages", "sanitized"))


def shared_file(name: str) -> Path:
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"{path} is not there: set TVHIL_SHARED to the folder that holds data/{name}")
    return path


BUFFER = 4096 - 256  #: offset of a case's 512 bytes in the window: across a page
COMPARED = Machine.ar_base.offset  #: every register lies before this member
FLOATS = slice(Machine.fr.offset, Machine.fr.offset + 64)


def registers(state: dict[str, Any]) -> tuple[bytes, bytes]:
    """The bytes of a Machine up to its ar_base, and its FPU registers, for one state of the vectors."""
    machine = Machine()
    for n in range(8):
        machine.q[n][:] = bytes.fromhex(state[f"q{n}"])
    machine.qacc_l[:], machine.qacc_h[:] = bytes.fromhex(state["qacc_l"]), bytes.fromhex(state["qacc_h"])
    machine.ua_state[:] = bytes.fromhex(state["ua_state"])
    accx = bytes.fromhex(state["accx"])
    machine.accx[:] = accx + (b"\xff" if accx[4] & 0x80 else b"\0") * 3
    machine.sar, machine.sar_byte = state["sar"], state["sar_byte"]
    machine.fft_bit_width = state["fft_bit_width"]
    for n in range(4, 10):
        machine.ar[n] = state[f"a{n}"] & MASK32
    return bytes(machine)[:COMPARED], bytes.fromhex("".join(state["f"])) if "f" in state else bytes(64)


@dataclass
class Case:
    """One line of pie_semantics.jsonl."""

    assembly: str
    code: bytes
    pointers: list[int]  #: registers whose value is an offset from the buffer
    before: tuple[bytes, bytes]
    after: tuple[bytes, bytes]
    memory_before: bytes
    memory_after: bytes

    def differences(self, model: Model) -> list[str]:
        model.memory[:] = self.memory_before
        machine, wanted = self.machine(model, self.before), self.machine(model, self.after)
        status = model.run(machine, self.code)
        found = [] if status == STATUS_OK else [f"status {status}"]
        got, expected = bytes(machine), bytes(wanted)
        if got[:COMPARED] != expected[:COMPARED] or got[FLOATS] != expected[FLOATS]:
            for name in ("qacc_l", "qacc_h", "ua_state", "accx", "ar", "fr"):
                a, b = list(getattr(machine, name)), list(getattr(wanted, name))
                found += [f"{name} {a} not {b}"] if a != b else []
            for n in range(8):
                a, b = list(machine.q[n]), list(wanted.q[n])
                found += [f"q{n} {a} not {b}"] if a != b else []
            for name in ("sar", "sar_byte", "fft_bit_width", "gpio_out"):
                a, b = getattr(machine, name), getattr(wanted, name)
                found += [f"{name} {a} not {b}"] if a != b else []
        return found + (["memory"] if bytes(model.memory) != self.memory_after else [])

    def machine(self, model: Model, state: tuple[bytes, bytes]) -> Machine:
        machine = model.machine()
        ctypes.memmove(ctypes.addressof(machine), state[0], COMPARED)
        ctypes.memmove(ctypes.addressof(machine.fr), state[1], 64)
        for n in self.pointers:
            machine.ar[n] = (machine.ar[n] + model.base + BUFFER) & MASK32
        return machine


def read_cases() -> list[Case]:
    """All golden cases; skips the test where they are not."""
    result = []
    with gzip.open(shared_file("pie_semantics.jsonl.gz"), "rt", encoding="utf-8") as lines:
        for line in lines:
            data = json.loads(line)
            before, out = data["in"], data["out"]
            memory = bytearray(b"\x5a" * MEMORY)
            if "mem" in before:
                memory[BUFFER : BUFFER + 512] = bytes.fromhex(before["mem"])
            memory_before = bytes(memory)
            for offset, text in out.get("mem", ()):
                piece = bytes.fromhex(text)
                memory[BUFFER + offset : BUFFER + offset + len(piece)] = piece
            result.append(
                Case(
                    assembly=data["asm"],
                    code=bytes.fromhex(data["bytes"]),
                    pointers=[int(name[1:]) for name in data.get("ptr", ())],
                    before=registers(before),
                    after=registers({**before, **out}),
                    memory_before=memory_before,
                    memory_after=bytes(memory),
                )
            )
    return result
