# SPDX-License-Identifier: Apache-2.0
"""The PIE LayerNorm (device/kernels/pie/layernorm.c) against CONTRACT.md on lx7sim, and its speed.

``python host/tests/test_pie_layernorm.py`` prints cycles at the shapes of DeiT-Tiny and DeiT-Small.
"""

from __future__ import annotations

import dataclasses
import math
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pie_operators import LAYERNORM, LAYERNORM_SCALE, Case, GuardedMemory, differences, run
from pie_programs import COMPILER, DATA, DEVICE, FLASH, LANES, AnyArray, Memory, from_token_blocks, token_blocks

from tvhil.prediction.operators import layernorm
from tvhil.quantization.grid import layernorm_constants

WORKSPACE_CHANNELS = 1372  #: more pointers than these go to the scratch memory


@dataclass(frozen=True)
class LayerNorm:
    """One operator (CONTRACT.md, section 5)."""

    x: AnyArray  #: int16 [rows][n]
    gamma: AnyArray  #: trits [n]
    beta: AnyArray
    c: int
    beta_unit: int
    epsilon: int
    shift: int
    parts: int = 1

    def expected(self) -> AnyArray:
        """[rows][n]."""
        y = layernorm(self.x, self.gamma, self.beta, self.c, self.beta_unit, self.epsilon, self.shift, 127)
        return y.astype(np.int8)


def check(operators: Sequence[LayerNorm]) -> list[tuple[int, ...]]:
    """Run them and compare every bit; cycles of each, part by part."""
    rng = np.random.default_rng(3)
    ram, flash = GuardedMemory(DATA), Memory(FLASH)
    cases = []
    for operator in operators:
        rows, n = operator.x.shape
        codes = (operator.gamma + 1) * 3 + operator.beta + 1
        codes = np.append(codes, 0)[: n + n % 2].astype(np.uint8)
        x_at = ram.put(token_blocks(operator.x, rng).tobytes())
        before = token_blocks(rng.integers(-128, 128, (rows, n)).astype(np.int8), rng)
        output = ram.output(before)
        parameters_at = flash.put((codes[::2] | codes[1::2] << 4).tobytes(), 4)
        values = (x_at, parameters_at, rows, n, operator.c, operator.epsilon, operator.beta_unit, operator.shift)
        args = struct.pack("<4I2QiI3I4x", *values, output, 0, 0)
        scratch = 0 if n <= WORKSPACE_CHANNELS else 2 * (4 * n + 15 & ~15)
        cases.append(Case(LAYERNORM, args, scratch, output, before, operator.parts))
    results = run(cases, ram, flash)
    for number, (operator, result) in enumerate(zip(operators, results, strict=True)):
        found = from_token_blocks(result.blocks)[: len(operator.x)]
        place = differences(found, operator.expected())
        assert not place, (number, operator.x.shape, operator.shift, operator.c, operator.beta_unit, place)
    return [result.cycles for result in results]


def packed(rng: np.random.Generator, rows: int, n: int, *, parts: int = 1) -> LayerNorm:
    """As the packer makes them: 30 units of output a standard deviation; rows of any mean and spread."""
    spread = np.exp(rng.uniform(np.log(20), np.log(3000), (rows, 1)))
    x = rng.normal(rng.normal(0, 1, (rows, 1)) * spread, spread, (rows, n)) * (1 + 9 * (rng.random(n) < 0.02))
    gamma = rng.choice([-1, 0, 1], n, p=[0.05, 0.15, 0.8])
    beta = rng.choice([-1, 0, 1], n, p=[0.2, 0.5, 0.3])
    c, beta_unit, epsilon, shift = (int(v) for v in layernorm_constants(1.0, 0.3, 1 / 300, 1 / 30, n, 1e-6))  # type: ignore[arg-type]
    return LayerNorm(
        np.clip(np.round(x), -32767, 32767).astype(np.int16), gamma, beta, c, beta_unit, epsilon, shift, parts
    )


def drawn(rng: np.random.Generator, count: int, widths: Sequence[int] = ()) -> Iterator[LayerNorm]:
    """Any operator that the contract allows, its edges included."""
    for _ in range(count):
        n = int(rng.choice(widths)) if widths else int(rng.integers(1, rng.choice([8, 40, 200])))
        rows = int(rng.integers(1, 50)) if n < 500 else int(rng.integers(1, 20))
        shift = int(rng.integers(1, 25)) if rng.random() < 0.4 else int(rng.integers(8, 20))
        room = (1 << 30) - (1 << shift) - 3
        share = rng.random()
        most = int(room * share * n / (math.isqrt(n - 1) + 1)) << 15
        c = max(1, min(most, (1 << 52) - 1) >> int(rng.integers(0, 40) * rng.integers(0, 2)))
        beta_unit = int(room * (1 - share)) >> int(rng.integers(0, 30) * rng.integers(0, 2))
        epsilon = 1 + int(rng.integers(0, 1 << 53) >> int(rng.integers(0, 54)))
        largest = int(rng.choice([1, 30, 2000, 32767]))
        x = rng.integers(-largest, largest + 1, (rows, n))
        kind = rng.random(rows)
        x[kind < 0.1] = rng.choice([-32767, 32767, 0, 5])  # no variance
        x[(kind >= 0.1) & (kind < 0.2)] = np.where(np.arange(n) % 2, 32767, -32767)  # the largest
        x[(kind >= 0.2) & (kind < 0.3), :1] = 32767  # one value that differs
        x[(kind >= 0.3) & (kind < 0.4)] //= 500
        x[(kind >= 0.3) & (kind < 0.4)] += rng.integers(-32000, 32000)  # a mean far larger than the spread
        codes = rng.integers(0, 9, n)
        sign = -1 if rng.random() < 0.5 else 1
        parts = int(rng.integers(1, 3))
        x = np.clip(x, -32767, 32767).astype(np.int16)
        yield LayerNorm(x, codes // 3 - 1, codes % 3 - 1, c, sign * beta_unit, epsilon, shift, parts)


# ---- tests --------------------------------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(not shutil.which(COMPILER), reason=f"{COMPILER} is not installed (make setup)")


@needs_compiler
def test_operators_of_every_shape_and_constant_compute_the_bits_of_the_contract() -> None:
    check(list(drawn(np.random.default_rng(1), 300)))


@needs_compiler
def test_operators_as_the_packer_makes_them_compute_the_bits_of_the_contract() -> None:
    rng = np.random.default_rng(2)
    check([packed(rng, 33, n, parts=1 + n % 2) for n in (3, 4, 5, 16, 191, 192, 384, 513)])


@needs_compiler
def test_squares_of_more_channels_than_forty_bits_hold_are_summed_exactly() -> None:
    rng = np.random.default_rng(4)
    wide = list(drawn(rng, 12, (511, 512, 513, 1024, 1372, 1373, 4095, 4096)))
    loud = dataclasses.replace(wide[0], x=np.full_like(wide[0].x, -32767))
    check([*wide, loud])


@needs_compiler
def test_tokens_whose_offset_does_not_fit_the_lanes_are_computed_one_by_one() -> None:
    """A mean far from zero and almost no variance: A at its cap, B near 2^45."""
    n = 8
    x = np.full((20, n), -32767, np.int16)
    x[::2, 0] += 1
    x[1::3] = np.arange(n)
    operator = LayerNorm(x, np.tile([-1, 1], 4), np.arange(n) % 3 - 1, (1 << 44) - 1, 1 << 27, 1, 10)
    a = operator.c // math.isqrt(7 + 1)
    assert 32767 * min(a, (1 << 30) - 1) >> 15 > (1 << 30) - (1 << 27) - (1 << 15)
    assert len(np.unique(operator.expected())) > 3
    check([operator])


def draw_sums(rng: random.Random, n: int) -> tuple[int, int]:
    """Sums of n values and of their squares that there can be, small and large variances alike."""
    largest = rng.choice([1, 40, 3000, 32767])
    s1 = rng.choice([rng.randint(-largest * n, largest * n), -largest * n, largest * n, 0])
    least, most = -(-s1 * s1 // n), n * 32767**2
    return s1, min(most, least + (rng.randint(0, most - least) >> rng.randint(0, 45)))


@needs_compiler
def test_root_quotient_and_offset_of_a_token_are_exact_to_the_last_bit() -> None:
    """What the eight bits of an output would hide: A, and B in two parts, of 9600 tokens, at squares and multiples."""
    rng = random.Random(8)
    ram, flash = GuardedMemory(DATA), Memory(FLASH)
    cases, expected = [], []
    for _ in range(600):
        n = rng.choice([rng.randint(1, 4096), 1 << rng.randint(0, 12), 192])
        sums = [draw_sums(rng, n) for _ in range(LANES)]
        variance = n * sums[0][1] - sums[0][0] ** 2
        epsilon = 1 + (rng.getrandbits(54) - 1 >> rng.randint(0, 54))
        if rng.random() < 0.5:  # the first token's V at a square
            epsilon = max(1, (math.isqrt(variance + epsilon) + 1) ** 2 - variance - rng.randint(0, 1))
        epsilon = min(epsilon, (1 << 54) - 1)
        d = math.isqrt(variance + epsilon)
        c = rng.choice([rng.getrandbits(52), rng.getrandbits(52) >> rng.randint(0, 51), (1 << 52) - 1])
        if rng.random() < 0.5:  # C at a multiple of its root
            c = d * rng.randint(1, 1 << 30) - rng.randint(0, 1)
        c = min(max(c, 1), (1 << 52) - 1)
        words = np.array([*(s for s, _ in sums), *(s & 0xFFFFFFFF for _, s in sums), *(s >> 32 for _, s in sums)])
        sums_at = ram.put((words & 0xFFFFFFFF).astype("<u4").tobytes() + bytes(48))
        before = np.zeros(52, np.uint32)
        output = ram.output(before)
        cases.append(Case(LAYERNORM_SCALE, struct.pack("<2Q3I", c, epsilon, n, sums_at, output), 0, output, before))
        factors = []
        for s1, s2 in sums:
            a = min(c // math.isqrt(n * s2 - s1 * s1 + epsilon), (1 << 30) - 1)
            factors.append((a, -(s1 * a // n)))
        expected.append(factors)
    for number, (result, factors) in enumerate(zip(run(cases, ram, flash), expected, strict=True)):
        a, not_e0, offset = result.blocks[:48].reshape(3, LANES).tolist()
        offset = [value - (value >> 31 << 32) for value in offset]
        found = [(a[i], (offset[i] << 15) + (~not_e0[i] & 0x7FFF)) for i in range(LANES)]
        assert found == factors, number


@needs_compiler
@pytest.mark.parametrize("name", ["layernorm_lanes", "layernorm_scale", "mean_pool_lanes", "patch_embed_lanes"])
def test_the_lanes_assemble_for_the_windowed_abi_too(name: str, tmp_path: Path) -> None:
    target = tmp_path / "windowed.o"
    define = ["-U__XTENSA_CALL0_ABI__", "-D__XTENSA_WINDOWED_ABI__"]
    source = DEVICE / "kernels" / "pie" / f"{name}.S"
    subprocess.run([COMPILER, *define, "-c", str(source), "-o", str(target)], check=True)
    assert b"\x90\x00\x00" in target.read_bytes()  # retw


@needs_compiler
def test_a_layernorm_of_deit_tiny_stays_below_a_hundred_thousand_cycles() -> None:
    """Simulated, one core; the portable twin takes 2.40 million (device/kernels/IDEAS.md)."""
    ((cycles,),) = check([packed(np.random.default_rng(5), 197, 192)])
    assert cycles < 100_000


# ---- the table ----------------------------------------------------------------------------------------------


def main() -> int:
    """Print the cycles of one LayerNorm."""
    rng = np.random.default_rng(6)
    print("| tokens | N | cycles | a token | 8 values |\n|---|---|---|---|---|")
    for tokens, n in ((197, 192), (197, 384), (1, 192), (208, 192), (208, 4)):
        ((cycles,),) = check([packed(rng, tokens, n)])
        padded = -(-tokens // LANES) * LANES
        print(f"| {tokens} | {n} | {cycles:,} | {cycles / tokens:.0f} | {cycles / padded / n * 8:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
