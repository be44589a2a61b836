# SPDX-License-Identifier: Apache-2.0
"""The PIE model against the golden vectors, and properties that need no data.

The library is compiled here, natively, three times: as a simulator uses it, with the undefined-behaviour
sanitizer, and with plain pointers as a trap handler uses it.
"""

from __future__ import annotations

import collections
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
from hypothesis import given, settings
from hypothesis import strategies as st

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "device" / "pie_model"
SHARED = Path(os.environ.get("TVHIL_SHARED", REPOSITORY.parent / "shared"))
MAP_32BIT = 0x40  # mmap flag of Linux on x86-64: an address below 2 GiB
STATUS_OK, STATUS_LOAD_ERROR, STATUS_STORE_ERROR, UNDEFINED = 0, 1, 2, -1
MEMORY = 8192
MASK32 = 0xFFFFFFFF


def load_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pie_tables", REPOSITORY / "tools" / "pie_tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["pie_tables"] = module
    spec.loader.exec_module(module)
    return module


pie_tables = load_tables()
OPCODES = pie_tables.read_opcodes()


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


def build(directory: Path, name: str, *flags: str) -> ctypes.CDLL:
    output = directory / f"pie_{name}.so"
    sources = [str(path) for path in sorted(MODEL.glob("*.c"))] + [str(MODEL / "tests" / "pie_driver.c")]
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{MODEL}"]
    subprocess.run([*command, *flags, *sources, "-o", str(output)], check=True)
    return ctypes.CDLL(str(output))


@pytest.fixture(scope="session", params=["pages", "callbacks", "sanitized", "direct"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    if not shutil.which("gcc"):
        pytest.skip("no gcc to build the PIE model with")
    directory = tmp_path_factory.getbasetemp()
    variant = str(request.param)
    if variant == "direct":
        return direct_model(directory)
    if variant == "sanitized":
        library = build(directory, "sanitized", "-O1", "-g", "-fsanitize=undefined")
    else:
        library = optimized(directory)
    memory = aligned_memory()
    return Model(library, memory, 0x4000, variant != "callbacks")


_optimized: list[ctypes.CDLL] = []


def optimized(directory: Path) -> ctypes.CDLL:
    if not _optimized:
        _optimized.append(build(directory, "optimized", "-O3"))
    return _optimized[0]


def aligned_memory() -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * MEMORY).from_buffer(mmap.mmap(-1, MEMORY))


def direct_model(directory: Path) -> Model:
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("plain pointers need memory below 4 GiB: x86-64 Linux only")
    window = mmap.mmap(-1, MEMORY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_32BIT)
    memory = (ctypes.c_char * MEMORY).from_buffer(window)
    library = build(directory, "direct", "-O3", "-DPIE_DIRECT_MEMORY")
    return Model(library, memory, ctypes.addressof(memory), False)


@pytest.fixture(scope="session")
def fast_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    if not shutil.which("gcc"):
        pytest.skip("no gcc to build the PIE model with")
    return Model(optimized(tmp_path_factory.getbasetemp()), aligned_memory(), 0x4000, True)


def shared_file(name: str) -> Path:
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"{path} is not there: set TVHIL_SHARED to the folder that holds data/{name}")
    return path


# ---- golden vectors -----------------------------------------------------------------------------------------


def test_all_golden_encodings_decode_to_the_text_of_objdump(model: Model) -> None:
    lines = [line.split("\t") for line in shared_file("pie_encodings.tsv").read_text().splitlines() if line[0] != "#"]
    assert len(lines) == 2839
    mnemonics = set()
    for code, text in lines:
        opcode, length, got = model.disassemble(bytes.fromhex(code))
        assert (got, length) == (text, len(code) // 2), code
        assert OPCODES[opcode].mnemonic == text.split()[0]
        mnemonics.add(OPCODES[opcode].mnemonic)
    assert len(mnemonics) == 250


def little(text: str) -> int:
    return int.from_bytes(bytes.fromhex(text), "little")


class Case:
    """One line of pie_semantics.jsonl: sets a machine up and says how the one it left differs."""

    BUFFER = 4096 - 256  #: in the middle of the window, across a page

    def __init__(self, line: str) -> None:
        self.data: dict[str, Any] = json.loads(line)
        self.code = bytes.fromhex(self.data["bytes"])
        self.pointers = set(self.data.get("ptr", ()))

    def enter(self, model: Model, state: dict[str, Any]) -> Machine:
        machine = model.machine()
        for n in range(8):
            machine.q[n][:] = bytes.fromhex(state[f"q{n}"])
        machine.qacc_l[:], machine.qacc_h[:] = bytes.fromhex(state["qacc_l"]), bytes.fromhex(state["qacc_h"])
        machine.ua_state[:] = bytes.fromhex(state["ua_state"])
        accx = bytes.fromhex(state["accx"])
        machine.accx[:] = accx + (b"\xff" if accx[4] & 0x80 else b"\0") * 3
        machine.sar, machine.sar_byte = state["sar"], state["sar_byte"]
        machine.fft_bit_width = state["fft_bit_width"]
        for n in range(4, 10):
            value = state[f"a{n}"]
            machine.ar[n] = (value + model.base + self.BUFFER if f"a{n}" in self.pointers else value) & MASK32
        for n, word in enumerate(state.get("f", ())):
            machine.fr[n] = little(word)
        return machine

    def check(self, model: Model) -> list[str]:
        state = dict(self.data["in"])
        memory = bytearray(b"\x5a" * MEMORY)
        if "mem" in state:
            memory[self.BUFFER : self.BUFFER + 512] = bytes.fromhex(state["mem"])
        model.memory[:] = bytes(memory)
        machine = self.enter(model, state)
        status = model.run(machine, self.code)

        out = self.data["out"]
        for offset, text in out.get("mem", ()):
            piece = bytes.fromhex(text)
            memory[self.BUFFER + offset : self.BUFFER + offset + len(piece)] = piece
        wanted = self.enter(model, {**state, **{k: v for k, v in out.items() if k != "mem"}})
        differences = [] if status == STATUS_OK else [f"status {status}"]
        for name in ("qacc_l", "qacc_h", "ua_state", "accx", "ar", "fr"):
            if list(getattr(machine, name)) != list(getattr(wanted, name)):
                differences.append(f"{name} {list(getattr(machine, name))} not {list(getattr(wanted, name))}")
        for n in range(8):
            if bytes(machine.q[n]) != bytes(wanted.q[n]):
                differences.append(f"q{n} {bytes(machine.q[n]).hex()} not {bytes(wanted.q[n]).hex()}")
        for name in ("sar", "sar_byte", "fft_bit_width", "gpio_out"):
            if getattr(machine, name) != getattr(wanted, name):
                differences.append(f"{name} {getattr(machine, name)} not {getattr(wanted, name)}")
        if bytes(model.memory) != bytes(memory):
            differences.append("memory")
        return differences


def test_all_golden_semantics_cases_give_the_state_of_silicon(model: Model, capfd: pytest.CaptureFixture[str]) -> None:
    counts: collections.Counter[str] = collections.Counter()
    failures = []
    with gzip.open(shared_file("pie_semantics.jsonl.gz"), "rt", encoding="utf-8") as lines:
        for line in lines:
            case = Case(line)
            differences = case.check(model)
            counts[case.data["asm"].split()[0]] += 1
            if differences:
                failures.append(f"{case.data['asm']}: {'; '.join(differences)}")
    assert not failures, f"{len(failures)} cases fail, the first: " + "\n".join(failures[:8])
    assert (counts.total(), len(counts)) == (4654, 247)
    assert "runtime error" not in capfd.readouterr().err
