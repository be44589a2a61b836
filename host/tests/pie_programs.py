# SPDX-License-Identifier: Apache-2.0
"""Bare programs that run PIE operators on lx7sim: how they are built, and what lies in their memory."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

DEVICE = Path(__file__).resolve().parents[2] / "device"
PIE = DEVICE / "kernels" / "pie"
PORT = DEVICE / "ports" / "xtensa_qemu"
TOOLS = "xtensa-lx106-elf-"
COMPILER = f"{TOOLS}gcc"
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-mlongcalls"]
FLAGS += ["-fno-tree-loop-distribute-patterns", "-Wl,--no-warn-rwx-segments"]
INCLUDES = [f"-I{DEVICE}", f"-I{DEVICE / 'include'}", f"-I{PIE}", "-isystem", str(PORT / "include")]
LIBRARY = [PORT / name for name in ("arithmetic.S", "arithmetic.c", "memory.c")]  #: of the emulated board
LIBRARY += [DEVICE / "kernels" / "portable" / "trits.c"]

FLASH, CASES, DATA = 0x70000000, 0x60110000, 0x60200000
LANES = 16

AnyArray = npt.NDArray[Any]


def tool(name: str, *arguments: str | Path) -> str:
    """Run a tool of the toolchain; what it prints."""
    command = [TOOLS + name, *(str(argument) for argument in arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def build(driver: str, kernels: Sequence[str | Path]) -> tuple[bytes, dict[str, int]]:
    """A program of kernels and a driver of device/kernels/pie/tests: its ELF file and its symbols.

    Args:
        kernels: sources or objects; relative paths start at device/kernels/pie.
    """
    with tempfile.TemporaryDirectory(prefix="pie-program-") as folder:
        elf = Path(folder) / "program.elf"
        sources = [*(PIE / kernel for kernel in kernels), *LIBRARY, PIE / "tests" / driver]
        script = PIE / "candidates" / "link.ld"
        sources.append(PIE / "candidates" / "start.S")
        tool("gcc", *FLAGS, *INCLUDES, "-T", script, *sources, "-lgcc", "-o", elf)
        lines = tool("nm", elf).splitlines()
        return elf.read_bytes(), {name: int(address, 16) for address, _, name in map(str.split, lines)}


def token_blocks(x: AnyArray, rng: np.random.Generator) -> AnyArray:
    """[tokens][columns] to [tokens / 16][columns][16], any values in the padding."""
    info = np.iinfo(x.dtype)
    padding = rng.integers(info.min, info.max + 1, (-len(x) % LANES, x.shape[1])).astype(x.dtype)
    padded = np.concatenate([x, padding])
    return np.ascontiguousarray(padded.reshape(-1, LANES, x.shape[1]).transpose(0, 2, 1))


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
