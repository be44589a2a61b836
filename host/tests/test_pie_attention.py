# SPDX-License-Identifier: Apache-2.0
"""The PIE attention kernel (device/kernels/pie/attention.c) against CONTRACT.md on lx7sim, and its speed.

``python host/tests/test_pie_attention.py`` prints cycles and MAC/cycle, and where the cycles go.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pie_programs import CASES, COMPILER, DATA, LANES, PIE, build, from_token_blocks, token_blocks

from tvhil.lx7sim import Simulator, Stop
from tvhil.prediction.operators import attention

SOURCES = ["attention.c", "attention_keys.S", "attention_scores.S", "attention_values.S", "softmax.S", "buffer_sizes.c"]
ASSEMBLY = [name for name in SOURCES if name.endswith(".S")]

CASE = struct.Struct("<20I")

Int8 = npt.NDArray[np.int8]


# ---- one operator -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    """An operator of CONTRACT.md, section 6, and where its operands lie."""

    q: Int8  #: [tokens][heads * head_dim]
    k: Int8
    v: Int8
    heads: int = 1
    score_shift: int = 2
    exp_multiplier: int = 20000
    out_multiplier: int = 16 << 16
    out_shift: int = 16
    over_q: bool = True  #: the output lies where q does
    spare: int = 0  #: columns in front of and behind those of each operand

    def expected(self) -> Int8:
        """[tokens][heads * head_dim]."""
        split = (self.q[None], self.k[None], self.v[None])
        constants = (self.score_shift, self.exp_multiplier, self.out_multiplier, self.out_shift)
        return np.asarray(attention(*split, self.heads, *constants, 127)[0]).astype(np.int8)

    @property
    def macs(self) -> int:
        """Of both products."""
        return 2 * len(self.q) * self.q.size


def exact_limit(head_dim: int) -> int:
    """The largest limit of q that the packer gives: its products fit 20 bits."""
    return min(127, ((1 << 19) - 1) // (127 * head_dim))


def draw(
    rng: np.random.Generator, tokens: int, head_dim: int, heads: int = 1, limit: int | None = None, **options: object
) -> Attention:
    """Uniform operands; q within the packer's limit."""
    limit = exact_limit(head_dim) if limit is None else limit
    shape = (tokens, heads * head_dim)
    q, k, v = (rng.integers(-most, most + 1, shape).astype(np.int8) for most in (limit, 127, 127))
    return Attention(q, k, v, heads, **options)  # type: ignore[arg-type]


# ---- the simulator ------------------------------------------------------------------------------------------


@functools.cache
def program() -> tuple[bytes, dict[str, int]]:
    """The program with the kernel and its driver, and its symbols."""
    return build("attention_driver.c", SOURCES)


@dataclass(frozen=True)
class Result:
    """Of one operator."""

    cycles: int
    scratch: int


def simulate(
    operators: Sequence[Attention], parameters: dict[str, int] | None = None
) -> tuple[list[Result], dict[str, int]]:
    """Run the operators and check every byte they may write and all around it; also the cycles by function."""
    rng = np.random.default_rng(5)
    data = bytearray()

    def put(content: bytes) -> int:
        at = len(data)
        data.extend(content + bytes(-len(content) % 16) + b"\xa5" * 64)
        return DATA + at

    cases, places = [], []
    for a in operators:
        tokens, width = a.q.shape
        padded, columns = -(-tokens // LANES) * LANES, width + 2 * a.spare
        at, before = [], []
        for operand in (a.q, a.k, a.v, np.zeros((0, width), np.int8)):
            tensor = rng.integers(-128, 128, (padded, columns)).astype(np.int8)
            tensor[: len(operand), a.spare : a.spare + width] = operand
            before.append(tensor)
            at.append(put(token_blocks(tensor, rng).tobytes()))
        head_dim = width // a.heads
        rows, padded_dim = (tokens + 1 & ~1) + 2, -(-head_dim // LANES) * LANES
        part = 832 + 16 * (2 + rows + max(rows + padded_dim + 2, 2 * head_dim + 2))
        scratch = 4096 + (padded * padded_dim if head_dim % LANES else 0) + 2 * part
        scratch_at = put(rng.integers(0, 256, scratch, np.uint8).tobytes())
        first = [address + a.spare * LANES for address in at]
        output = first[0] if a.over_q else first[3]
        places.append((at, before, scratch, scratch_at))
        cases.append(
            (
                *(*first[:3], *[columns] * 4, tokens, a.heads, head_dim, a.score_shift, a.exp_multiplier),
                *(a.out_multiplier, a.out_shift, output, 0, 0, scratch_at, 0, 0),
            )
        )
    packed = b"".join(CASE.pack(*case) for case in cases)
    elf, symbols = program()
    with tempfile.NamedTemporaryFile(suffix=".elf") as file, Simulator(pie=True, parameters=parameters) as simulator:
        file.write(elf)
        file.flush()
        simulator.load(Path(file.name))
        simulator.write_memory(DATA, bytes(data))
        simulator.write_memory(CASES, packed)
        simulator.write_memory(symbols["mailbox"], struct.pack("<2I", len(cases), CASES))
        stop = simulator.run()
        assert stop == Stop.EXIT, (stop, simulator.message)
        assert simulator.warnings == []
        results = []
        for i, (a, (at, before, scratch, scratch_at)) in enumerate(zip(operators, places, strict=True)):
            words = CASE.unpack(simulator.read_memory(CASES + i * CASE.size, CASE.size))
            assert words[19] == scratch
            assert simulator.read_memory(scratch_at + scratch + -scratch % 16, 64) == b"\xa5" * 64
            results.append(Result(words[18], scratch))
            check(a, before, [simulator.read_memory(address, before[0].size + 64) for address in at])
        pcs = simulator.pcs()
    names = sorted((address, name) for name, address in symbols.items() if not name.startswith("."))
    starts = np.array([address for address, _ in names])
    cycles: dict[str, int] = {}
    for row in pcs:
        name = names[int(np.searchsorted(starts, row["pc"], "right")) - 1][1]
        cycles[name] = cycles.get(name, 0) + int(row["count"] + row["stall"].sum())
    return results, cycles


def check(a: Attention, before: Sequence[Int8], after: Sequence[bytes]) -> None:
    """The outputs are the contract's, and everything else but k's columns is as it was."""
    tokens, width = a.q.shape
    own = slice(a.spare, a.spare + width)
    shape = describe(a)
    for i, (name, tensor, content) in enumerate(zip("qkvo", before, after, strict=True)):
        assert content[tensor.size :] == b"\xa5" * 64, f"written behind {name}: {shape}"
        blocks = np.frombuffer(content[: tensor.size], np.int8).reshape(-1, tensor.shape[1], LANES)
        got = from_token_blocks(blocks)
        if i == (0 if a.over_q else 3):
            wrong = np.argwhere(got[:tokens, own] != a.expected())
            assert wrong.tolist()[:4] == [], f"{len(wrong)} wrong outputs: {shape}"
        elif i != 1:
            assert (got[:, own] == tensor[:, own]).all(), f"{name} was written: {shape}"
        assert (np.delete(got, np.r_[own], 1) == np.delete(tensor, np.r_[own], 1)).all(), f"columns of {name}: {shape}"


def describe(a: Attention) -> str:
    """The shape and the constants in one line."""
    values = {"tokens": len(a.q), "head_dim": a.q.shape[1] // a.heads}
    values |= {field.name: getattr(a, field.name) for field in dataclasses.fields(a)[3:]}
    return ", ".join(f"{name} {value}" for name, value in values.items())


# ---- tests --------------------------------------------------------------------------------------------------

pytestmark = pytest.mark.skipif(not shutil.which(COMPILER), reason=f"{COMPILER} is not installed (make setup)")


def draw_any(rng: np.random.Generator, tokens: int, head_dim: int, heads: int) -> Attention:
    """Any constants that the contract allows, and those that a packer chooses."""
    out_shift = int(rng.choice([17, int(rng.integers(1, 25))]))
    return draw(
        rng,
        tokens,
        head_dim,
        heads,
        score_shift=int(rng.choice([1, 2, int(rng.integers(16))])),
        exp_multiplier=int(rng.choice([int(rng.integers(1, 32768)), int(rng.integers(16384, 32768))])),
        out_multiplier=int(min((1 << 28) - 1, (1 << out_shift) * rng.uniform(4, 64) + 1)),
        out_shift=out_shift,
        over_q=bool(rng.integers(2)),
        spare=int(rng.integers(4)) * 16,
    )


def test_drawn_shapes_and_constants_give_the_bits_of_the_contract() -> None:
    rng = np.random.default_rng(11)
    head_dims = [16, 32, 48, 64, 64, 80]
    simulate(
        [
            draw_any(
                rng,
                int(rng.integers(1, 70)),
                int(rng.choice([*head_dims, int(rng.integers(1, 100))])),
                int(rng.integers(1, 4)),
            )
            for _ in range(60)
        ]
    )


def test_every_number_of_tokens_up_to_three_blocks_is_exact() -> None:
    """Each number of keys in the last block, with 0, 1 and 2 blocks before it; both ways of the last queries."""
    rng = np.random.default_rng(12)
    simulate([draw_any(rng, tokens, 16, 1) for tokens in range(1, 49)])


def test_head_dimensions_of_one_and_of_no_multiple_of_sixteen_are_exact() -> None:
    rng = np.random.default_rng(13)
    simulate([draw_any(rng, 20, head_dim, 2) for head_dim in (1, 2, 3, 7, 15, 17, 31, 33, 63, 65, 127, 128, 191)])


def test_2048_tokens_are_exact() -> None:
    rng = np.random.default_rng(14)
    simulate([draw(rng, tokens, 16, score_shift=2) for tokens in (2047, 2048)])


def constant(value: int, tokens: int = 37, head_dim: int = 64) -> Int8:
    """Every element equal."""
    return np.full((tokens, head_dim), value, np.int8)


def test_extreme_operands_are_exact() -> None:
    """Zeros; equal scores; one score above all others; scores that saturate upwards, downwards, on both sides."""
    rng = np.random.default_rng(15)
    base = draw(rng, 37, 64)
    limit = exact_limit(64)
    one_key = np.zeros_like(base.k)
    one_key[20] = 127
    signs = np.where(rng.random((37, 1)) < 0.5, 127, -127).astype(np.int8) * np.ones((1, 64), np.int8)
    operands = [
        {"q": constant(0), "k": constant(0), "v": constant(0)},
        {"q": constant(0)},
        {"q": constant(limit), "k": constant(127), "v": constant(127)},
        {"q": constant(limit), "k": constant(-127), "v": constant(-127)},
        {"q": constant(limit), "k": one_key},
        {"q": constant(limit), "k": -one_key},
        {"q": constant(-limit), "k": signs},
        {"q": np.where(base.q > 0, limit, -limit).astype(np.int8), "k": signs, "v": signs},
        {"q": constant(limit), "k": np.where(rng.random((37, 64)) < 0.5, -127, -126).astype(np.int8)},
    ]
    simulate(
        [
            dataclasses.replace(base, **changes, score_shift=shift, exp_multiplier=multiplier)  # type: ignore[arg-type]
            for changes in operands
            for shift in (0, 3, 4, 15)
            for multiplier in (1, 15360, 15361, 32767)
        ]
    )


def test_scores_at_their_lower_end_are_exact() -> None:
    """All scores of a query near or below -32767: saturated ones count as -32767, not as the vectors' -32768."""
    rng = np.random.default_rng(18)
    cases = []
    for multiplier in (20000, 30000, 32767):
        base = draw(rng, 45, 64, score_shift=3, exp_multiplier=multiplier)
        q = rng.integers(62, exact_limit(64) + 1, base.q.shape).astype(np.int8)
        k = rng.choice([-127, -65, -64], (45, 1)).astype(np.int8) * np.ones((1, 64), np.int8)
        cases.append(dataclasses.replace(base, q=q, k=k))
    simulate(cases)


def test_scores_beyond_twenty_bits_are_exact() -> None:
    """The contract allows any q; the packer's limit, with which scores fit the lanes, is not among the arguments."""
    rng = np.random.default_rng(16)
    cases = [draw(rng, tokens, 64, limit=127, score_shift=shift) for tokens in (5, 16, 29) for shift in (0, 4, 8)]
    steps = rng.integers(60, 128, (29, 1)).astype(np.int8) * np.ones((1, 64), np.int8)
    loud = dataclasses.replace(cases[-1], q=constant(127, 29), k=steps)
    simulate([*cases, loud, dataclasses.replace(loud, k=-steps), dataclasses.replace(loud, q=constant(-127, 29))])


def test_outputs_saturate_at_127_on_both_sides() -> None:
    rng = np.random.default_rng(17)
    cases = [
        draw(rng, 21, 16, out_multiplier=multiplier, out_shift=shift)
        for shift in (1, 7, 8, 9, 15, 16, 17, 24)
        for multiplier in (1, min((1 << 28) - 1, 1000 << shift), (1 << 28) - 1)
    ]
    assert all((np.abs(case.expected()) <= 127).all() for case in cases)
    assert {-127, 127} <= set(np.unique(np.concatenate([case.expected() for case in cases])).tolist())
    simulate(cases)


def test_the_figures_of_the_ideas_page_hold() -> None:
    """Simulated, 197 tokens, 64 dimensions, one core, everything in SRAM; see device/kernels/IDEAS.md."""
    a = draw(np.random.default_rng(3), 197, 64)
    (result,), cycles = simulate([a])
    assert a.macs / result.cycles > 8.7
    assert cycles["tvit_softmax_pie"] + cycles["tvit_softmax_narrow_pie"] < 0.22 * result.cycles


@pytest.mark.parametrize("name", ASSEMBLY)
def test_every_source_assembles_for_the_windowed_abi_too(name: str, tmp_path: Path) -> None:
    target = tmp_path / "windowed.o"
    define = ["-U__XTENSA_CALL0_ABI__", "-D__XTENSA_WINDOWED_ABI__"]
    subprocess.run([COMPILER, *define, f"-I{PIE}", "-c", str(PIE / name), "-o", str(target)], check=True)
    assert b"\x90\x00\x00" in target.read_bytes()  # retw


def report(tokens: int, head_dim: int, heads: int) -> None:
    rng = np.random.default_rng(3)
    a = draw(rng, tokens, head_dim, heads)
    (result,), cycles = simulate([a])
    print(f"{tokens} tokens, {heads} x {head_dim}: {result.cycles:,} cycles, {a.macs / result.cycles:.2f} MAC/cycle")
    for name, count in sorted(cycles.items(), key=lambda item: -item[1]):
        if count > result.cycles // 500:
            per_row = count / (heads * -(-tokens // LANES) * tokens)
            print(f"    {name:36} {count:>10,}  {100 * count / result.cycles:5.1f} %  {per_row:6.1f} a key and block")


def main() -> int:
    """Print the table."""
    for tokens, head_dim, heads in ((197, 64, 3), (197, 64, 1), (197, 32, 1), (197, 60, 1), (65, 64, 3)):
        report(tokens, head_dim, heads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
