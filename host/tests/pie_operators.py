# SPDX-License-Identifier: Apache-2.0
"""Runs PIE operators other than linear ones and attention on lx7sim, one after the other, and counts their cycles.

Operators are put into memory as the structures of tvit/kernels.h; the program of
device/kernels/pie/tests/operators_driver.c calls them.
"""

from __future__ import annotations

import functools
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pie_programs import CASES, DATA, PIE, AnyArray, Memory, build

from tvhil.lx7sim import Simulator, Stop
from tvhil.packing.trits import Codec, encode_matrix

KERNELS = ("layernorm*", "patch_embed*", "mean_pool*", "stream*", "lanes*", "workspace*", "buffer_sizes*")
FLASH_PAGE = 65536
CASE = struct.Struct("<7I")
LAYERNORM, PATCH_EMBED, MEAN_POOL, LAYERNORM_SCALE = range(4)
GUARD = b"\xa5" * 64


@functools.cache
def program() -> tuple[bytes, dict[str, int]]:
    """The program with the kernels and its driver, and its symbols."""
    kernels = [path for pattern in KERNELS for path in sorted(PIE.glob(pattern)) if path.suffix in (".c", ".S")]
    return build("operators_driver.c", kernels)


class GuardedMemory(Memory):
    """Memory whose outputs lie between guards."""

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


def run(
    cases: Sequence[Case], ram: GuardedMemory, flash: Memory, parameters: dict[str, int] | None = None
) -> list[Result]:
    """Run the operators; each must leave the guards around its output and its scratch memory alone."""
    elf, symbols = program()
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
            simulator.write_memory(symbols["mailbox"], struct.pack("<2I", len(heads), CASES))
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
