# SPDX-License-Identifier: Apache-2.0
"""The PIE patch embedding and mean pooling against CONTRACT.md on lx7sim, and their speed.

``python host/tests/test_pie_patch_embed.py`` prints the cycles of a patch embedding of DeiT-Tiny and DeiT-Small.
"""

from __future__ import annotations

import dataclasses
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from pie_operators import MEAN_POOL, PATCH_EMBED, Case, GuardedMemory, differences, matrix, run
from pie_programs import COMPILER, DATA, FLASH, LANES, AnyArray, Memory, from_token_blocks, token_blocks

from tvhil.packing.trits import Codec
from tvhil.prediction.operators import image_to_patches, mean_pool


@dataclass(frozen=True)
class PatchEmbed:
    """One operator (CONTRACT.md, section 4)."""

    image: AnyArray  #: uint8 [height][width][channels]
    patch: int
    trits: AnyArray  #: int8 [n][k]
    gain: AnyArray  #: [n]
    shift: AnyArray
    bias: AnyArray
    position: AnyArray  #: int8 [patches][n]
    multiplier: int
    prefix: AnyArray  #: int16 [prefix tokens][n]
    codec: Codec = Codec.GAPS
    misaligned: int = 0  #: bytes from a multiple of 16 to the image and to the position embedding

    @property
    def blocks(self) -> int:
        """Token blocks of the output."""
        return -(-(len(self.prefix) + len(self.position)) // LANES)

    @property
    def blocks_together(self) -> int:
        """Blocks that are gathered before the weights' rows run."""
        n, k = self.trits.shape
        stream = self.blocks * n * 2 * LANES
        mlp = stream + -(-self.blocks // 2) * n * 5 * LANES
        room = mlp - max(stream, self.image.nbytes)
        return max(1, min(room // (k * LANES), -(-self.blocks // 2)))

    @property
    def scratch_bytes(self) -> int:
        """Memory for them."""
        return self.blocks_together * self.trits.shape[1] * LANES

    def expected(self) -> AnyArray:
        """[tokens][n]."""
        x = image_to_patches(self.image[None], self.patch)[0].astype(np.int64)
        y = (x @ self.trits.T.astype(np.int64) * self.gain + self.bias) >> self.shift
        y = np.clip(y, -32767, 32767) + self.position.astype(np.int64) * self.multiplier
        return np.concatenate([self.prefix, np.clip(y, -32767, 32767)]).astype(np.int16)


def check(operators: Sequence[PatchEmbed], *, overlap: bool = False) -> list[int]:
    """Run them and compare every bit; the cycles of each. `overlap`: the image lies in its output, as far as it may."""
    rng = np.random.default_rng(3)
    ram, flash = GuardedMemory(DATA), Memory(FLASH)
    cases = []
    for operator in operators:
        expected, image = operator.expected(), operator.image.tobytes()
        before = token_blocks(rng.integers(-32768, 32768, expected.shape).astype(np.int16), rng)
        lead = image_lead(operator)
        behind = max(lead + len(image) - before.nbytes, 0) if overlap else 0
        output = ram.output(before, behind)
        if overlap:
            image_at = output + lead
            ram.data[image_at - DATA : image_at - DATA + len(image)] = image
        else:
            image_at = ram.put(bytes(operator.misaligned) + image) + operator.misaligned
        height, width, channels = operator.image.shape
        values = [image_at, height, width, channels, operator.patch]
        position = operator.position.tobytes()
        values += [flash.put(bytes(operator.misaligned) + position) + operator.misaligned, operator.multiplier]
        values += [flash.put(operator.prefix.tobytes()), len(operator.prefix), output]
        weights = matrix(flash, operator.trits, operator.gain, operator.shift, operator.bias, operator.codec)
        args = weights + struct.pack("<10I", *values)
        cases.append(Case(PATCH_EMBED, args, operator.scratch_bytes, output, before, behind=behind))
    results = run(cases, ram, flash)
    for number, (operator, result) in enumerate(zip(operators, results, strict=True)):
        expected = operator.expected()
        place = differences(from_token_blocks(result.blocks)[: len(expected)], expected)
        assert not place, (number, operator.image.shape, operator.patch, expected.shape, operator.codec, place)
    return [result.cycles[0] for result in results]


def image_lead(operator: PatchEmbed) -> int:
    """How far behind the output the image must begin (`tvit_image_lead`)."""
    _, width, channels = operator.image.shape
    patches, across, n = len(operator.position), width // operator.patch, len(operator.trits)
    lead = 0
    for block in range(-(-(len(operator.prefix) + patches) // LANES)):
        read = min(max(LANES * (block + 1) - len(operator.prefix), 0), patches)
        ahead = LANES * (block + 1) * n * 2 - read // across * operator.patch * width * channels
        lead = max(lead, ahead)
    return -(-lead // 16) * 16


def draw(
    rng: np.random.Generator, patch: int, channels: int, lines: int, across: int, n: int, prefix: int, **options: object
) -> PatchEmbed:
    """Random pixels and trits; gains as large as the proof obligation allows; some outputs saturate."""
    k = patch * patch * channels
    density = float(rng.choice([0.1, 0.5, 0.576, 1.0]))
    trits = (rng.choice([-1, 1], size=(n, k)) * (rng.random((n, k)) < density)).astype(np.int8)
    nonzero = np.abs(trits.astype(int)).sum(axis=1) + 1
    gain = np.clip((1 << 19) * 3 // 4 // (128 * nonzero), 1, 127)
    room = (1 << 19) - 1 - gain * 128 * nonzero
    bias = (rng.uniform(-1, 1, n) * room).astype(int)
    shift = rng.integers(0, 8, n)
    image = rng.integers(0, 256, (lines * patch, across * patch, channels)).astype(np.uint8)
    if rng.random() < 0.2:
        image[:] = rng.choice([0, 255])
    position = rng.integers(-127, 128, (lines * across, n)).astype(np.int8)
    prefixes = rng.integers(-32767, 32768, (prefix, n)).astype(np.int16)
    multiplier = int(rng.integers(1, 256))
    return PatchEmbed(image, patch, trits, gain, shift, bias, position, multiplier, prefixes, **options)  # type: ignore[arg-type]


def drawn(rng: np.random.Generator, count: int) -> Iterator[PatchEmbed]:
    """Operators of every shape: patches of 1 to 16 pixels, aligned and not, one block of tokens and many."""
    for _ in range(count):
        patch, channels = ((4, 4), (16, 1), (8, 2), (16, 3))[int(rng.integers(0, 4))]
        if rng.random() < 0.5:
            patch, channels = int(rng.integers(1, 8)), int(rng.integers(1, 5))
        n = int(rng.choice([16, 32, 48])) if rng.random() < 0.5 else int(rng.integers(1, 50))
        most = 5 if patch > 8 else 9
        misaligned = int(rng.integers(1, 16)) if rng.random() < 0.2 else 0
        lines, across, prefix = int(rng.integers(1, most)), int(rng.integers(1, most)), int(rng.integers(0, 3))
        yield draw(
            rng, patch, channels, lines, across, n, prefix, codec=Codec(rng.integers(0, 3)), misaligned=misaligned
        )


# ---- tests --------------------------------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(not shutil.which(COMPILER), reason=f"{COMPILER} is not installed (make setup)")


@needs_compiler
def test_patch_embeddings_of_every_shape_compute_the_bits_of_the_contract() -> None:
    check(list(drawn(np.random.default_rng(1), 200)))


@needs_compiler
@pytest.mark.parametrize("prefix", [0, 1, 2, 17])
def test_more_tokens_than_are_gathered_at_a_time_go_through_in_groups(prefix: int) -> None:
    operators = [draw(np.random.default_rng(2), 16, 3, 9, 8, n, prefix) for n in (32, 208, 512)]
    assert [operator.blocks_together for operator in operators] == [1, 2, 3]
    check([*operators, dataclasses.replace(operators[1], misaligned=1)])


@needs_compiler
def test_the_image_may_lie_in_the_output_that_replaces_it() -> None:
    rng = np.random.default_rng(4)
    operators = [draw(rng, 4, 4, lines, 8, n, prefix) for lines in (4, 9, 12) for prefix in (0, 1, 2) for n in (16, 40)]
    operators += [draw(rng, 8, 2, 10, 10, 80, 1), draw(rng, 16, 3, 9, 8, 160, 1)]
    for operator in operators:
        assert image_lead(operator) < operator.expected().nbytes
    check(operators, overlap=True)


@needs_compiler
def test_means_of_every_shape_compute_the_bits_of_the_contract() -> None:
    rng = np.random.default_rng(5)
    ram, flash = GuardedMemory(DATA), Memory(FLASH)
    cases, expected = [], []
    for _ in range(200):
        rows, n, lane = int(rng.integers(1, 70)), int(rng.integers(1, 40)), int(rng.integers(0, 3))
        x = rng.integers(-32767, 32768, (lane + rows, n)).astype(np.int16)
        if rng.random() < 0.3:
            x[:] = rng.choice([-32767, 32767, -1, 0])
        x_at = ram.put(token_blocks(x, rng).tobytes())
        before = rng.integers(-32768, 32768, (1, n, LANES)).astype(np.int16)
        output = ram.output(before)
        args = struct.pack("<5I", x_at, rows, n, output, lane)
        cases.append(Case(MEAN_POOL, args, 0, output, before, int(rng.integers(1, 3))))
        expected.append(mean_pool(x[lane:])[0])
    for result, mean in zip(run(cases, ram, flash), expected, strict=True):
        assert differences(result.blocks[0, :, 0], mean) == []


@needs_compiler
def test_a_patch_embedding_of_deit_tiny_takes_little_of_its_cycles() -> None:
    """Simulated, one core, weights in flash: DeiT-Tiny takes about 55 million."""
    (cycles,) = check([deit(np.random.default_rng(6), 192)])
    assert cycles < 3_500_000


# ---- the table ----------------------------------------------------------------------------------------------


def deit(rng: np.random.Generator, n: int) -> PatchEmbed:
    """224 x 224 pixels in patches of 16, one class token, weights of density 0.576."""
    operator = draw(rng, 16, 3, 14, 14, n, 1)
    trits = (rng.choice([-1, 1], size=(n, 768)) * (rng.random((n, 768)) < 0.576)).astype(np.int8)
    ones = np.ones(n, int)
    return dataclasses.replace(operator, trits=trits, gain=ones, shift=4 * ones, bias=ones)


def main() -> int:
    """Print the cycles of one patch embedding."""
    print("| N | cycles | MAC/cycle |\n|---|---|---|")
    for n in (192, 384):
        (cycles,) = check([deit(np.random.default_rng(6), n)])
        print(f"| {n} | {cycles:,} | {196 * 768 * n / cycles:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
