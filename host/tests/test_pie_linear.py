# SPDX-License-Identifier: Apache-2.0
"""The PIE linear kernels (device/kernels/pie/linear.c) against CONTRACT.md on lx7sim, and their speed.

``python host/tests/test_pie_linear.py`` prints cycles and MAC/cycle at the shapes of DeiT-Tiny and DeiT-Small.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pie_programs import (
    CASES,
    COMPILER,
    DATA,
    FLASH,
    INCLUDES,
    LANES,
    PIE,
    Memory,
    build,
    from_token_blocks,
    token_blocks,
    tool,
)

from tvhil.lx7sim import Simulator, Stop
from tvhil.packing.trits import Codec, encode_matrix

SOURCES = ["linear.c", "stream.c", "lanes.c", "workspace.c"]
ASSEMBLY = ["stream.S", "stream_trits.S", "lanes.S"]
WINDOWED_ABI = ["-U__XTENSA_CALL0_ABI__", "-D__XTENSA_WINDOWED_ABI__"]

I8, TABLE, I16_SET, I16_ADD = 0, 1, 3, 4  #: tvit_linear_output
CASE = struct.Struct("<19I")

Array = npt.NDArray[np.int64]


# ---- one operator -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear:
    """A linear operator with static scales (CONTRACT.md, section 2)."""

    trits: npt.NDArray[np.int8]  #: [n][k]
    gain: Array  #: [n]
    shift: Array
    bias: Array
    x: npt.NDArray[np.int8]  #: [tokens][k]
    old: npt.NDArray[np.int16]  #: [tokens][n], what an int16 output is added to
    table: npt.NDArray[np.int8]  #: [256]
    codec: Codec = Codec.GAPS
    kind: int = I8
    limit: int = 127
    parts: int = 1
    lane: int | None = None  #: the output is a row, the logits; x is the token in this lane of a block
    first_column: int = 0  #: the output's first column in its tensor
    more_columns: int = 0  #: columns of the output's tensor behind its own

    @property
    def wide(self) -> bool:
        """Whether outputs are int16."""
        return self.kind in (I16_SET, I16_ADD)

    def expected(self) -> Array:
        """[tokens][n]."""
        acc = self.x.astype(np.float64) @ self.trits.T.astype(np.float64)  # exact: below 2^53
        y: Array = (acc.astype(np.int64) * self.gain + self.bias) >> self.shift
        limit = 32767 if self.wide else self.limit
        y = np.clip(y, -limit, limit)
        if self.kind == I16_ADD:
            y = np.clip(self.old + y, -limit, limit)
        if self.kind == TABLE:
            y = self.table[y + 128].astype(np.int64)
        return y


def draw(
    rng: np.random.Generator,
    tokens: int,
    k: int,
    n: int,
    density: float,
    *,
    loud: bool = False,
    pixels: bool = False,
    **options: object,
) -> Linear:
    """Random trits of a density, and for each channel the largest gain that the proof obligation allows.

    `loud`: biases and shifts with which most outputs saturate.
    """
    trits = (rng.choice([-1, 1], size=(n, k)) * (rng.random((n, k)) < density)).astype(np.int8)
    x = rng.integers(-128 if pixels else -127, 128, size=(tokens, k)).astype(np.int8)
    nonzero = np.abs(trits.astype(int)).sum(axis=1) + 1
    gain = np.clip((1 << 19) * 3 // 4 // (128 * nonzero), 1, 127)
    shift = np.floor(np.log2(gain * 73 * np.sqrt(nonzero) / 40)).astype(int) + rng.integers(0, 3, n)
    room = (1 << 19) - 1 - gain * 128 * nonzero
    if loud:
        shift = rng.integers(0, 9, n)
        bias = np.where(rng.random(n) < 0.5, room, -room)
        x = np.where(rng.random(x.shape) < 0.5, 127, -127).astype(np.int8)
    else:
        bias = np.clip(rng.integers(-(1 << 16), 1 << 16, n) + (1 << (shift - 1)), -room, room)
    assert (room >= 0).all()
    assert (gain * 128 * nonzero + np.abs(bias) < 1 << 19).all()
    old = rng.integers(-32767, 32768, size=(tokens, n)).astype(np.int16)
    table = rng.integers(-127, 128, 256).astype(np.int8)
    return Linear(trits, gain, shift, bias, x, old, table, **options)  # type: ignore[arg-type]


# ---- the simulator ------------------------------------------------------------------------------------------


def windowed_objects(folder: Path) -> list[Path]:
    """The assembly sources for the windowed ABI, their functions renamed to windowed_*, and a bridge to them."""
    bridge = PIE / "tests" / "windowed_bridge.S"
    names = [line.split()[1] for line in bridge.read_text().splitlines() if line.startswith("    bridge ")]
    objects = []
    for source in ASSEMBLY:
        objects.append(folder / f"{source}.o")
        tool("gcc", *WINDOWED_ABI, *INCLUDES, "-c", PIE / source, "-o", objects[-1])
        tool("objcopy", *(f"--redefine-sym={name}=windowed_{name}" for name in names), objects[-1])
    return [bridge, *objects]


@functools.cache
def program(*, windowed: bool = False) -> tuple[bytes, dict[str, int]]:
    """The program with the kernels and its driver, and its symbols."""
    with tempfile.TemporaryDirectory(prefix="pie-linear-") as folder:
        assembly = windowed_objects(Path(folder)) if windowed else ASSEMBLY
        return build("linear_driver.c", [*SOURCES, *assembly])


@dataclass(frozen=True)
class Place:
    """Where a case's output lies."""

    address: int
    before: npt.NDArray[np.generic]


def simulate(
    operators: Sequence[Linear],
    *,
    in_flash: bool = False,
    windowed: bool = False,
    parameters: dict[str, int] | None = None,
) -> list[list[int]]:
    """Run the operators, check every byte they may write and all around it; cycles of each part of each."""
    rng = np.random.default_rng(7)
    ram, flash = Memory(DATA), Memory(FLASH)
    model = flash if in_flash else ram
    places, cases = [], []
    for linear in operators:
        tokens, k = linear.x.shape
        n = len(linear.trits)
        records = (linear.bias & 0xFFFFF) << 12 | linear.gain << 5 | linear.shift
        trits_at = model.put(encode_matrix(linear.trits, linear.codec))
        channels_at = model.put(records.astype("<u4").tobytes())
        table_at = model.put(linear.table.tobytes())
        padded = -(-tokens // LANES) * LANES
        lanes = linear.x
        if linear.lane is not None:
            lanes = np.roll(
                np.concatenate([linear.x, rng.integers(-128, 128, (15, k)).astype(np.int8)]), linear.lane, 0
            )
        x = token_blocks(lanes, rng)
        input_at = ram.put(x.tobytes())
        dtype = np.dtype(np.int16 if linear.wide else np.int8)
        most = 32767 if linear.wide else 127
        columns = linear.first_column + n + linear.more_columns
        if linear.lane is None:
            before = rng.integers(-most - 1, most + 1, (padded, columns)).astype(dtype)
            if linear.wide:
                before[:tokens, linear.first_column : linear.first_column + n] = linear.old
            before = token_blocks(before, rng)
            offset = linear.first_column * LANES * dtype.itemsize
        else:
            before, offset = linear.old.copy(), 0
        ram.put(bytes(64))
        output_at = ram.put(before.tobytes())
        ram.put(b"\xa5" * 64, 1)
        places.append(Place(output_at, before))
        cases.append(
            (
                *(trits_at, channels_at, k, n, linear.codec),
                *(input_at, 0, tokens, linear.kind, linear.limit, table_at, output_at + offset, 0),
                *(columns, linear.lane or 0, int(linear.lane is not None), linear.parts, 0, 0),
            )
        )
    flash.put(bytes(4096))
    elf, symbols = program(windowed=windowed)
    with tempfile.TemporaryDirectory(prefix="pie-linear-") as folder:
        image, file = Path(folder) / "flash.bin", Path(folder) / "linear.elf"
        image.write_bytes(flash.data)
        file.write_bytes(elf)
        with Simulator(pie=True, flash=image, parameters=parameters, max_cycles=2_000_000_000) as simulator:
            simulator.load(file)
            simulator.write_memory(DATA, bytes(ram.data))
            simulator.write_memory(CASES, b"".join(CASE.pack(*case) for case in cases))
            simulator.write_memory(symbols["mailbox"], struct.pack("<2I", len(cases), CASES))
            stop = simulator.run()
            assert stop == Stop.EXIT, (stop, simulator.message)
            assert simulator.warnings == []
            results = []
            for i, (linear, place) in enumerate(zip(operators, places, strict=True)):
                after = np.frombuffer(simulator.read_memory(place.address, place.before.nbytes), place.before.dtype)
                check(linear, place.before, after.reshape(place.before.shape))
                assert simulator.read_memory(place.address + place.before.nbytes, 64) == b"\xa5" * 64
                words = CASE.unpack(simulator.read_memory(CASES + i * CASE.size, CASE.size))
                results.append(list(words[17 : 17 + linear.parts]))
            return results


def check(linear: Linear, before: npt.NDArray[np.generic], after: npt.NDArray[np.generic]) -> None:
    """Every output is the contract's, and every other column is as it was."""
    tokens, n = len(linear.x), len(linear.trits)
    if linear.lane is None:
        before, after = from_token_blocks(before), from_token_blocks(after)
        columns = slice(linear.first_column, linear.first_column + n)
        outside = np.ones(before.shape[1], bool)
        outside[columns] = False
        assert (before[:, outside] == after[:, outside]).all(), f"another column was written: {describe(linear)}"
        after = after[:tokens, columns]
    wrong = np.argwhere(after != linear.expected())
    assert wrong.tolist()[:4] == [], f"{len(wrong)} wrong outputs: {describe(linear)}"


def describe(linear: Linear) -> str:
    """The shape in one line."""
    shape = {"tokens": len(linear.x), "k": linear.x.shape[1], "n": len(linear.trits)}
    shape |= {"density": round(float(np.abs(linear.trits).mean()), 3)}
    names = ("codec", "kind", "limit", "parts", "lane", "first_column", "more_columns")
    return ", ".join(f"{key} {value}" for key, value in (shape | {f: getattr(linear, f) for f in names}).items())


# ---- tests --------------------------------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(not shutil.which(COMPILER), reason=f"{COMPILER} is not installed (make setup)")
CODECS = list(Codec)
KINDS = {"i8": I8, "table": TABLE, "i16_set": I16_SET, "i16_add": I16_ADD}


def drawn(rng: np.random.Generator, count: int, codec: Codec, **fixed: object) -> Iterable[Linear]:
    """Operators of every shape, kind, density and split."""
    for _ in range(count):
        k = int(rng.integers(1, rng.choice([24, 200, 500])))
        n = int(rng.integers(1, 70))
        tokens = int(rng.integers(1, 50))
        options: dict[str, object] = {"kind": int(rng.choice([I8, TABLE, I16_SET, I16_ADD])), "codec": codec}
        options |= {"parts": int(rng.integers(1, 3)), "limit": int(rng.choice([127, int(rng.integers(1, 127))]))}
        options |= {"first_column": int(rng.integers(0, 20)), "more_columns": int(rng.integers(0, 3))}
        options |= {"loud": rng.random() < 0.2, "pixels": rng.random() < 0.1}
        if rng.random() < 0.15:
            tokens = 1
            options |= {"lane": int(rng.integers(0, LANES)), "kind": int(rng.choice([I16_SET, I16_ADD]))}
            options |= {"first_column": 0, "more_columns": 0}
        density = float(rng.choice([0.0, 0.02, 0.3, 0.576, 0.69, 1.0, rng.random()]))
        yield draw(rng, tokens, k, n, density, **(options | fixed))  # type: ignore[arg-type]


@needs_compiler
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.label)
def test_linear_operators_of_every_shape_compute_the_bits_of_the_contract(codec: Codec) -> None:
    simulate(list(drawn(np.random.default_rng(11), 150, codec)))


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.label)
def test_every_kind_of_output_saturates_as_the_contract_says(kind: str, codec: Codec) -> None:
    rng = np.random.default_rng(5)
    operators = [
        draw(rng, 33, 192, 32, 0.6, kind=KINDS[kind], codec=codec, loud=True, limit=limit) for limit in (127, 9)
    ]
    most = 32767 if operators[0].wide else 127
    y = dataclasses.replace(operators[0], kind=I16_SET if operators[0].wide else I8).expected()
    assert {-most, most} <= set(y.ravel().tolist())
    simulate(operators)


@needs_compiler
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.label)
def test_long_rows_hold(codec: Codec) -> None:
    rng = np.random.default_rng(6)
    simulate([draw(rng, 17, k, 16, d, codec=codec, kind=I16_ADD) for k in (768, 1536, 1600) for d in (0.01, 0.5, 1.0)])


@needs_compiler
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.label)
def test_rows_that_are_too_long_for_a_stream_are_multiplied(codec: Codec) -> None:
    rng = np.random.default_rng(8)
    longest = 4095 if codec is Codec.GAPS else 14000  # above 6,900 a row is decoded in pieces
    operators = []
    for k in (*range(1601, 1601 + 35, 2), 2048, 3072, longest):
        options: dict[str, object] = {
            "kind": int(rng.choice(list(KINDS.values()))),
            "limit": int(rng.choice([127, 50])),
        }
        n, tokens = int(rng.integers(1, 19)), int(rng.integers(1, 34))
        options |= {"codec": codec, "parts": k % 3 % 2 + 1}
        operators.append(draw(rng, tokens, k, n, min(0.6, 2000 / k), **options))  # type: ignore[arg-type]
    simulate(operators)


@needs_compiler
def test_kernels_built_for_the_windowed_abi_compute_the_same() -> None:
    """What Espressif's toolchain calls: the assembly with ENTRY and RETW, called with CALLX8."""
    rng = np.random.default_rng(12)
    operators = [linear for codec in CODECS for linear in drawn(rng, 15, codec)]
    operators += [draw(rng, 20, 1700, 8, 1.0, codec=codec, kind=kind) for codec in CODECS for kind in KINDS.values()]
    simulate(operators, windowed=True)


@needs_compiler
def test_tiles_of_gaps_become_streams_as_far_as_their_rows_fit() -> None:
    rng = np.random.default_rng(9)
    operators = []
    for kind in KINDS.values():
        linear = draw(rng, 20, 3072, 48, 0.4, kind=kind)
        dense = rng.choice([-1, 1], size=3072).astype(np.int8)
        trits, gain, bias = linear.trits.copy(), linear.gain.copy(), linear.bias.copy()
        trits[20], gain[20], bias[20] = dense, 1, 0  # the second of three tiles has one row that is too long
        operators.append(dataclasses.replace(linear, trits=trits, gain=gain, bias=bias))
    simulate(operators)


def rate(linear: Linear) -> float:
    """MAC/cycle with the model in flash, everything included but what is made once for a codec."""
    warm = dataclasses.replace(draw(np.random.default_rng(2), 1, 8, 8, 0.5), codec=linear.codec)
    (cycles,) = simulate([warm, linear], in_flash=True)[1]
    return linear.x.size * len(linear.trits) / cycles


@needs_compiler
@pytest.mark.parametrize(("k", "at_least"), [(192, 16.0), (384, 17.5), (1536, 18.5)])
def test_the_kernels_reach_the_rates_that_the_project_asks_for(k: int, at_least: float) -> None:
    """Simulated: 197 tokens, density 0.576, weights in flash through the cache, one core, everything included."""
    assert rate(draw(np.random.default_rng(1), 197, k, 96, 0.576)) > at_least


@needs_compiler
@pytest.mark.parametrize(("k", "at_least"), [(192, 12.5), (384, 13.5), (1536, 14.0)])
def test_base3_is_no_slower_than_2bit_and_reaches_the_rates_too(k: int, at_least: float) -> None:
    linear = draw(np.random.default_rng(1), 197, k, 96, 0.576)
    base3, two_bit = (rate(dataclasses.replace(linear, codec=codec)) for codec in (Codec.BASE3, Codec.TWO_BIT))
    assert base3 > two_bit
    assert base3 > at_least


# ---- the table ----------------------------------------------------------------------------------------------

SHAPES: tuple[tuple[int, int, int], ...]
SHAPES = ((192, 576, I8), (192, 192, I16_ADD), (192, 768, TABLE), (768, 192, I16_ADD))
SHAPES += ((384, 1152, I8), (384, 384, I16_ADD), (384, 1536, TABLE), (1536, 384, I16_ADD), (1536, 384, I8))


def main(arguments: list[str]) -> int:
    """Print cycles and MAC/cycle of the kernels at the shapes of DeiT-Tiny and DeiT-Small."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--codec", action="append", choices=[codec.label for codec in Codec], help="default: gaps")
    parser.add_argument("--density", type=float, action="append", help="share of non-zero trits; default 0.576")
    parser.add_argument("--tokens", type=int, default=197)
    parser.add_argument("--limit", type=int, default=127)
    parser.add_argument("--few-channels", action="store_true", help="64 channels of each shape: quick, a little low")
    options = parser.parse_args(arguments)
    names = {value: name for name, value in KINDS.items()}
    head = [
        "codec",
        "output",
        "K",
        "N",
        "density",
        "cycles, SRAM",
        "MAC/cycle, SRAM",
        "cycles, flash",
        "MAC/cycle, flash",
    ]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for label in options.codec or ["gaps"]:
        for k, n, kind in SHAPES:
            for density in options.density or [0.576]:
                n_drawn = 64 if options.few_channels else n
                linear = draw(np.random.default_rng(1), options.tokens, k, n_drawn, density, kind=kind)
                linear = dataclasses.replace(linear, codec=Codec.from_name(label), limit=options.limit)
                cells = [label, names[kind], f"{k}", f"{n_drawn}", f"{density}"]
                for in_flash in (False, True):
                    warm = dataclasses.replace(draw(np.random.default_rng(2), 1, 8, 8, 0.5), codec=linear.codec)
                    (cycles,) = simulate([warm, linear], in_flash=in_flash)[1]  # tables for the codec are there
                    cells += [f"{cycles}", f"{linear.x.size * n_drawn / cycles:.2f}"]
                print("| " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
