# SPDX-License-Identifier: Apache-2.0
"""Runs PIE operators other than linear ones and attention on lx7sim, one after the other, and counts their cycles.

Operators are put into memory as the structures of tvit/kernels.h; the program of
device/kernels/pie/tests/operators_driver.c calls them.
"""

from __future__ import annotations

import functools
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvhil.lx7sim import Simulator, Stop
from tvhil.packing.trits import Codec, encode_matrix

REPOSITORY = Path(__file__).resolve().parents[2]
DEVICE = REPOSITORY / "device"
PIE = DEVICE / "kernels" / "pie"
COMPILER = "xtensa-lx106-elf-gcc"
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-mlongcalls"]
FLAGS += ["-fno-tree-loop-distribute-patterns"]
LINKER_FLAGS = ["-Wl,--no-warn-rwx-segments"]
KERNELS = ("layernorm*", "patch_embed*", "mean_pool*", "stream*", "lanes*", "decode*", "workspace*", "buffer_sizes*")
ARITHMETIC = ("arithmetic.S", "arithmetic.c")  #: division, of the emulated board

FLASH, CASES, DATA = 0x70000000, 0x60110000, 0x60200000
FLASH_PAGE = 65536
CASE = struct.Struct("<7I")
LAYERNORM, PATCH_EMBED, MEAN_POOL, LAYERNORM_SCALE = range(4)
LANES = 16
GUARD = b"\xa5" * 64

AnyArray = npt.NDArray[Any]


@functools.cache
def program() -> tuple[bytes, int]:
    """The program with the kernels and its driver, and the address of its mailbox."""
    sources = [path for pattern in KERNELS for path in sorted(PIE.glob(pattern)) if path.suffix in (".c", ".S")]
    sources += [DEVICE / "ports" / "xtensa_qemu" / name for name in ARITHMETIC]
    sources += [DEVICE / "kernels" / "portable" / "trits.c"]
    sources += [PIE / "tests" / "operators_driver.c", PIE / "candidates" / "start.S"]
    with tempfile.TemporaryDirectory(prefix="pie-operators-") as folder:
        elf = Path(folder) / "operators.elf"
        objects = []
        for index, source in enumerate(sources):
            target = Path(folder) / f"{index}.o"
            command: list[str | Path] = [COMPILER, *FLAGS, f"-I{DEVICE}", f"-I{DEVICE}/include", f"-I{PIE}"]
            command += ["-isystem", DEVICE / "ports" / "xtensa_qemu" / "include", "-c", source, "-o", target]
            subprocess.run([str(part) for part in command], check=True)
            objects.append(target)
        command = [COMPILER, *FLAGS, *LINKER_FLAGS, "-T", PIE / "candidates" / "link.ld", *objects, "-lgcc", "-o", elf]
        subprocess.run([str(part) for part in command], check=True)
        symbols = subprocess.run(["xtensa-lx106-elf-nm", elf], check=True, capture_output=True, text=True).stdout
        address = next(int(line.split()[0], 16) for line in symbols.splitlines() if line.endswith(" mailbox"))
        return elf.read_bytes(), address


def token_blocks(x: AnyArray, rng: np.random.Generator) -> AnyArray:
    """[tokens][columns] to [tokens / 16][columns][16], any values in the padding."""
    tokens, columns = x.shape
    info = np.iinfo(x.dtype)
    padded = rng.integers(info.min, info.max + 1, (-(-tokens // LANES) * LANES, columns)).astype(x.dtype)
    padded[:tokens] = x
    return np.ascontiguousarray(padded.reshape(-1, LANES, columns).transpose(0, 2, 1))


def from_token_blocks(blocks: AnyArray) -> AnyArray:
    """The inverse, padding included."""
    return blocks.transpose(0, 2, 1).reshape(-1, blocks.shape[1])


@dataclass
class Memory:
    """Bytes at rising addresses."""

    start: int
    data: bytearray = field(default_factory=bytearray)

    def put(self, data: bytes, align: int = 64) -> int:
        """Append; the address."""
        self.data += bytes(-len(self.data) % align)
        self.data += data
        return self.start + len(self.data) - len(data)

    def output(self, blocks: AnyArray, behind: int = 0) -> int:
        """Append what an operator writes to and memory behind it, between guards; the address."""
        self.put(GUARD)
        address = self.put(blocks.tobytes() + bytes(behind))
        self.put(GUARD, 1)
        return address


@dataclass
class Case:
    """One operator in memory."""

    kind: int
    args: bytes
    scratch_bytes: int
    output: int  #: address
    before: AnyArray  #: the output's token blocks before the run
    parts: int = 1
    behind: int = 0  #: bytes of something else that lies behind the output


@dataclass(frozen=True)
class Result:
    """What an operator left in its output tensor, and its cycles part by part."""

    blocks: AnyArray
    cycles: tuple[int, ...]


def matrix(model: Memory, trits: AnyArray, gain: AnyArray, shift: AnyArray, bias: AnyArray, codec: Codec) -> bytes:
    """A `tvit_ternary_matrix` with trits [n][k]."""
    trits_at = model.put(encode_matrix(trits, codec))
    channels = (bias & 0xFFFFF) << 12 | gain << 5 | shift
    channels_at = model.put(channels.astype("<u4").tobytes())
    return struct.pack("<5I", trits_at, channels_at, trits.shape[1], len(trits), codec)


def run(cases: Sequence[Case], ram: Memory, flash: Memory, parameters: dict[str, int] | None = None) -> list[Result]:
    """Run the operators; each must leave the guards around its output and its scratch memory alone."""
    elf, mailbox = program()
    heads = []
    for case in cases:
        ram.put(GUARD)
        args_at = ram.put(case.args)
        scratch_at = ram.put(bytes(case.scratch_bytes))
        ram.put(GUARD, 1)
        heads.append(CASE.pack(case.kind, args_at, scratch_at, 0, case.parts, 0, 0))
    assert len(heads) * CASE.size < DATA - CASES
    with tempfile.TemporaryDirectory(prefix="pie-operators-") as folder:
        path = Path(folder) / "operators.elf"
        path.write_bytes(elf)
        image = Path(folder) / "flash.bin"
        image.write_bytes(flash.data + bytes(FLASH_PAGE - len(flash.data) % FLASH_PAGE))
        with Simulator(pie=True, flash=image, parameters=parameters, max_cycles=4_000_000_000) as simulator:
            simulator.load(path)
            simulator.write_memory(DATA, bytes(ram.data))
            simulator.write_memory(CASES, b"".join(heads))
            simulator.write_memory(mailbox, struct.pack("<2I", len(heads), CASES))
            stop = simulator.run()
            assert stop is Stop.EXIT, (stop, simulator.message)
            assert simulator.warnings == []
            after = simulator.read_memory(DATA, len(ram.data))
            heads = [simulator.read_memory(CASES + CASE.size * i, CASE.size) for i in range(len(cases))]
    results = []
    for case, head in zip(cases, heads, strict=True):
        _, _, scratch_at, asked, _, *cycles = CASE.unpack(head)
        assert asked == case.scratch_bytes
        offset, scratch = case.output - DATA, scratch_at - DATA
        blocks = np.frombuffer(after[offset : offset + case.before.nbytes], case.before.dtype)
        for at in (offset - 64, offset + case.before.nbytes + case.behind, scratch + case.scratch_bytes):
            assert after[at : at + 64] == GUARD, "written outside of the output or the scratch memory"
        results.append(Result(blocks.reshape(case.before.shape), tuple(cycles[: case.parts])))
    return results


def differences(found: AnyArray, expected: AnyArray) -> list[list[int]]:
    """Where they differ: the first few places, then what was found and expected."""
    assert found.shape == expected.shape
    places = np.argwhere(found != expected)[:8]
    return [[*place, found[tuple(place)], expected[tuple(place)]] for place in places.tolist()]
