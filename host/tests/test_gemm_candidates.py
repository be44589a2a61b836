# SPDX-License-Identifier: Apache-2.0
"""The inner loops that compete for the ternary GEMM, on lx7sim: same bits as the contract, cycles as documented.

``python host/tests/test_gemm_candidates.py`` prints the table of device/kernels/IDEAS.md.
"""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import functools
import itertools
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PIE = REPOSITORY / "device" / "kernels" / "pie"
SIMULATOR = REPOSITORY / "tools" / "lx7sim"
SIMULATOR_BUILD = REPOSITORY / "build" / "lx7sim"
COMPILER = "xtensa-lx106-elf-gcc"
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-mlongcalls"]
LINKER_FLAGS = ["-Wl,--no-warn-rwx-segments"]

FLASH, SRAM, INPUT, OUTPUT = 0x70000000, 0x60400000, 0x60200000, 0x60300000
MAILBOX = ("candidate", "tokens", "k", "n", "limit", "input", "output", "weights", "channels", "headers", "table")
RESULTS = ("cycles", "decode_cycles", "inner_cycles")
CANDIDATES = ("token_lanes", "token_lanes_192", "channel_lanes", "channel_lanes_192", "instruction_stream")
CANDIDATES += ("instruction_stream_add", "instruction_stream_table", "instruction_segments", "row_table")
LONGEST_GAP = 7  #: rows an instruction of a stream can move on
LONGEST_SEGMENT = 55  #: instructions: with 36 bytes around them they are the loop buffer's 256
HEADER_GAP = 31  #: rows the two loads before a stream can move on
STOP_EXIT = 1


# ---- the operator -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear:
    """One linear operator with static scales (CONTRACT.md, section 2)."""

    trits: np.ndarray  #: int8 [N][K]
    gain: np.ndarray  #: [N]
    shift: np.ndarray
    bias: np.ndarray
    x: np.ndarray  #: int8 [tokens][K]
    old: np.ndarray  #: int16 [tokens][N], what an int16 output is added to
    table: np.ndarray  #: int8 [256]
    limit: int = 127

    def expected(self, candidate: str) -> np.ndarray:
        """[tokens][N], int16 where the candidate adds to the residual stream, else int8."""
        acc = self.x.astype(np.int64) @ self.trits.T.astype(np.int64)
        y = (acc * self.gain + self.bias) >> self.shift
        if candidate.endswith("_add"):
            return np.clip(self.old + np.clip(y, -32767, 32767), -32767, 32767).astype(np.int16)
        y = np.clip(y, -self.limit, self.limit)
        return self.table[y + 128] if candidate.endswith("_table") and candidate != "row_table" else y.astype(np.int8)


def draw(tokens: int, k: int, n: int, density: float, *, equal_shifts: bool, seed: int = 1) -> Linear:
    """Random trits of a density, and for each channel the largest gain that the proof obligation allows."""
    rng = np.random.default_rng(seed)
    trits = (rng.choice([-1, 1], size=(n, k)) * (rng.random((n, k)) < density)).astype(np.int8)
    x = rng.integers(-127, 128, size=(tokens, k)).astype(np.int8)
    nonzero = np.abs(trits.astype(int)).sum(axis=1)
    gain = np.clip((1 << 19) * 3 // 4 // (127 * np.maximum(nonzero, 1)), 1, 127)
    shift = np.floor(np.log2(gain * 73 * np.sqrt(np.maximum(nonzero, 1)) / 40)).astype(int)
    if equal_shifts:
        shift[:] = shift.max()
    else:
        shift = shift + rng.integers(0, 3, n)
    bias = rng.integers(-(1 << 16), 1 << 16, n) + (1 << (shift - 1))
    assert (gain * 127 * nonzero + np.abs(bias) < 1 << 19).all()
    old = rng.integers(-32767, 32768, size=(tokens, n)).astype(np.int16)
    table = rng.integers(-127, 128, 256).astype(np.int8)
    return Linear(trits, gain, shift, bias, x, old, table)


def token_blocks(x: np.ndarray, size: int) -> np.ndarray:
    """[tokens][K] to [tokens/size][K][size], the last block padded with zeros."""
    tokens, k = x.shape
    padded = np.zeros((-(-tokens // size) * size, k), x.dtype)
    padded[:tokens] = x
    return np.ascontiguousarray(padded.reshape(-1, size, k).transpose(0, 2, 1))


def from_token_blocks(blocks: np.ndarray, tokens: int) -> np.ndarray:
    """The inverse."""
    return blocks.transpose(0, 2, 1).reshape(-1, blocks.shape[1])[:tokens]


def two_bit(trits: np.ndarray) -> bytes:
    """Codec 0 of FORMAT.md for a stream of trits whose length is a multiple of four."""
    codes = (trits.reshape(-1, 4).astype(np.int64) & 3).astype(np.uint8)
    return (codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6).astype(np.uint8).tobytes()


def stream_codes(row: np.ndarray, start: int) -> tuple[list[int], list[int], list[int]]:
    """The nibble codes of a stream (candidates/stream_macros.h), its rows, and the gaps between them.

    The first row is at most ``HEADER_GAP`` after ``start``.
    """
    rows: list[int] = []
    signs: list[int] = []
    at = start
    for k in np.flatnonzero(row):
        while k - at > (longest := LONGEST_GAP if len(rows) >= 3 else HEADER_GAP):  # the first gaps are in the header
            at += longest
            rows += [at, at]
            signs += [0, 1]  # the same vector added and subtracted
        at = int(k)
        rows.append(at)
        signs.append(int(row[k] < 0))
    while len(rows) < 3:
        rows += [at, at]
        signs += [0, 1]
    gaps = [b - a for a, b in itertools.pairwise(rows)] + [0, 0, 0]
    codes = [gaps[i + 2] | signs[i] << 3 for i in range(len(rows))]
    assert all(0 <= gap <= LONGEST_GAP for gap in gaps[2:])
    assert max(gaps[:2]) <= HEADER_GAP
    return codes, rows, gaps


def nibbles(codes: list[int]) -> bytes:
    """Two codes a byte, the first in the low bits."""
    padded = codes + [0] * (len(codes) % 2)
    return bytes(a | b << 4 for a, b in zip(padded[::2], padded[1::2], strict=True))


def stream_row(row: np.ndarray) -> tuple[bytes, list[int]]:
    """Codes and header of one channel."""
    codes, rows, gaps = stream_codes(row, 0)
    return nibbles(codes), [len(rows) | rows[0] << 12 | gaps[0] << 17 | gaps[1] << 22]


def segmented_row(row: np.ndarray) -> tuple[bytes, list[int]]:
    """Codes and headers of the segments of one channel; none is longer than the loop buffer."""
    parts: list[tuple[list[int], list[int], list[int]]] = []
    left = np.flatnonzero(row)
    while len(left) or not parts:
        take = min(LONGEST_SEGMENT, len(left))
        while True:
            masked = np.zeros_like(row)
            masked[left[:take]] = row[left[:take]]
            part = stream_codes(masked, int(left[0]) if take else 0)
            if len(part[0]) <= LONGEST_SEGMENT:
                break
            take -= 1
        parts.append(part)
        left = left[take:]
    data, headers = b"", []
    for i, (codes, rows, gaps) in enumerate(parts):
        last = i == len(parts) - 1
        kind = (3 if last else 0) if i == 0 else 2 if last else 1
        headers.append(len(codes) | gaps[0] << 6 | gaps[1] << 11 | rows[0] << 16 | kind << 28)
        data += nibbles(codes)
    return data, headers


# ---- the simulator ------------------------------------------------------------------------------------------


@functools.cache
def library() -> ctypes.CDLL:
    """The simulator as a shared library."""
    target = SIMULATOR_BUILD
    subprocess.run(["make", "-s", "-C", str(SIMULATOR), f"BUILD={target}"], check=True)
    lib = ctypes.CDLL(str(target / "liblx7sim.so"))
    lib.lx7_new.restype = ctypes.c_void_p
    lib.lx7_message.restype = ctypes.c_char_p
    lib.lx7_set_option.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64]
    for name in ("lx7_load_config", "lx7_load_flash", "lx7_load_elf"):
        getattr(lib, name).argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    lib.lx7_free.argtypes = lib.lx7_message.argtypes = [ctypes.c_void_p]
    lib.lx7_set_parameter.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64]
    lib.lx7_run.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    for name in ("lx7_read_memory", "lx7_write_memory"):
        getattr(lib, name).argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t]
    return lib


@functools.cache
def program() -> tuple[Path, int]:
    """The program with all candidates, and the address of its mailbox."""
    folder = tempfile.mkdtemp(prefix="gemm-candidates-")
    atexit.register(shutil.rmtree, folder)
    elf = Path(folder) / "candidates.elf"
    code = PIE / "candidates"
    sources = [*sorted(code.glob("*.S")), *sorted(code.glob("*.c"))]
    command = [COMPILER, *FLAGS, *LINKER_FLAGS, f"-I{PIE}", f"-I{code}", "-T", code / "link.ld", *sources, "-lgcc"]
    subprocess.run([str(part) for part in [*command, "-o", elf]], check=True)
    symbols = subprocess.run(["xtensa-lx106-elf-nm", str(elf)], check=True, capture_output=True, text=True).stdout
    address = next(int(line.split()[0], 16) for line in symbols.splitlines() if line.endswith(" mailbox"))
    return elf, address


def simulate(
    candidate: str, linear: Linear, place: int, parameters: dict[str, int]
) -> tuple[np.ndarray, dict[str, int]]:
    """Output as [tokens][N], and the results of the mailbox; the model lies at ``place``."""
    lib, (elf, mailbox) = library(), program()
    tokens, k = linear.x.shape
    n = len(linear.trits)
    on_tokens = not candidate.startswith("channel")
    headers = b""
    add = candidate.endswith("_add")
    if candidate.startswith("instruction"):
        pack = segmented_row if candidate == "instruction_segments" else stream_row
        rows = [pack(row) for row in linear.trits]
        weights = b"".join(codes for codes, _ in rows)
        headers = b"".join(struct.pack(f"<{len(words)}I", *words) for _, words in rows)
    elif candidate == "row_table":
        digits = (linear.trits.astype(int) + 1).reshape(n, k // 32, 8, 4) @ np.array([1, 3, 9, 27])
        weights = np.ascontiguousarray(digits.transpose(1, 0, 2).astype(np.uint8)).tobytes()
    elif on_tokens:
        weights = two_bit(linear.trits)
    else:
        weights = two_bit(np.ascontiguousarray(linear.trits.reshape(n // 16, 16, k).transpose(0, 2, 1)))
    records = (linear.bias & 0xFFFFF) << 12 | linear.gain << 5 | linear.shift
    flash = bytearray(weights)
    places = {"weights": place}
    for name, data in (
        ("channels", records.astype("<u4").tobytes()),
        ("headers", headers),
        ("table", linear.table.tobytes()),
    ):
        flash += bytes(-len(flash) % 64)
        places[name] = place + len(flash)
        flash += data
    flash += bytes(4096 + -len(flash) % 64)
    size = 40 if candidate == "row_table" else 16
    inputs = token_blocks(linear.x, size) if on_tokens else linear.x
    shape = (len(inputs), n, size) if on_tokens else (tokens, n)
    out = token_blocks(linear.old, size) if add else np.zeros(shape, np.int8)
    values = {"candidate": CANDIDATES.index(candidate), "tokens": tokens, "k": k, "n": n, "limit": linear.limit}
    values |= places | {"input": INPUT, "output": OUTPUT}
    mail = struct.pack(f"<{len(MAILBOX)}I", *(values[name] for name in MAILBOX)) + bytes(4 * len(RESULTS))
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(flash)
        file.flush()
        sim: Any = lib.lx7_new()
        try:

            def check(status: int) -> None:
                assert status == 0, lib.lx7_message(sim)

            check(lib.lx7_load_config(sim, str(SIMULATOR / "esp32s3.toml").encode()))
            for name, value in parameters.items():
                check(lib.lx7_set_parameter(sim, name.encode(), value))
            check(lib.lx7_set_option(sim, b"pie", 1))
            check(lib.lx7_set_option(sim, b"max-cycles", 400_000_000))
            check(lib.lx7_load_flash(sim, file.name.encode()))
            check(lib.lx7_load_elf(sim, str(elf).encode()))
            data = inputs.tobytes()
            check(lib.lx7_write_memory(sim, INPUT, data, len(data)))
            check(lib.lx7_write_memory(sim, OUTPUT, out.ctypes.data, out.nbytes))
            check(lib.lx7_write_memory(sim, SRAM, bytes(flash), len(flash)))
            check(lib.lx7_write_memory(sim, mailbox, mail, len(mail)))
            stop = lib.lx7_run(sim, 0)
            assert stop == STOP_EXIT, (stop, lib.lx7_message(sim))
            check(lib.lx7_read_memory(sim, OUTPUT, out.ctypes.data, out.nbytes))
            results = (ctypes.c_uint32 * len(RESULTS))()
            check(lib.lx7_read_memory(sim, mailbox + 4 * len(MAILBOX), results, ctypes.sizeof(results)))
        finally:
            lib.lx7_free(sim)
    return from_token_blocks(out, tokens) if on_tokens else out, dict(zip(RESULTS, results, strict=True))


# ---- tests --------------------------------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(not shutil.which(COMPILER), reason=f"{COMPILER} is not installed (make setup)")


def check_exact(
    candidate: str, linear: Linear, place: int = SRAM, parameters: dict[str, int] | None = None
) -> dict[str, int]:
    out, results = simulate(candidate, linear, place, parameters or {})
    expected = linear.expected(candidate)
    assert out.dtype == expected.dtype
    assert np.argwhere(out != expected).tolist() == []
    return results


@needs_compiler
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("place", [SRAM, FLASH], ids=["sram", "flash"])
def test_every_candidate_computes_the_bits_of_the_contract(candidate: str, place: int) -> None:
    linear = draw(45, 192, 32, 0.6, equal_shifts=candidate.startswith("channel"))
    check_exact(candidate, dataclasses.replace(linear, limit=90), place)


@needs_compiler
@pytest.mark.parametrize("name", ["decode_2bit", "lanes", "stream", "stream_segments", "table_rows"])
def test_every_candidate_assembles_for_the_windowed_abi_too(name: str, tmp_path: Path) -> None:
    source, target = PIE / "candidates" / f"{name}.S", tmp_path / "windowed.o"
    define = ["-U__XTENSA_CALL0_ABI__", "-D__XTENSA_WINDOWED_ABI__"]
    subprocess.run([COMPILER, *define, f"-I{PIE}", "-c", str(source), "-o", str(target)], check=True)
    assert b"\x90\x00\x00" in target.read_bytes()  # retw


@needs_compiler
@pytest.mark.parametrize("k", [64, 384, 1536])
@pytest.mark.parametrize("candidate", [c for c in CANDIDATES if "192" not in c and c != "row_table"])
def test_every_candidate_holds_at_other_depths(candidate: str, k: int) -> None:
    check_exact(candidate, draw(17, k, 16, 0.5, equal_shifts=candidate.startswith("channel"), seed=k))


@needs_compiler
@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("candidate", [c for c in CANDIDATES if c.startswith("instruction")])
def test_an_instruction_stream_bridges_long_runs_of_zeros(candidate: str, density: float) -> None:
    check_exact(candidate, draw(16, 192, 32, density, equal_shifts=False))


@needs_compiler
def test_adding_to_the_stream_saturates_where_the_sum_leaves_sixteen_bits() -> None:
    linear = draw(64, 192, 64, 0.6, equal_shifts=False)
    shift = np.arange(64) % 8
    bias = np.where(np.arange(64) % 3 == 0, (1 << 17) - 1, -(1 << 17)) + np.where(
        shift, 1 << np.maximum(shift - 1, 0), 0
    )
    linear = dataclasses.replace(linear, shift=shift, bias=bias)
    y = linear.expected("instruction_stream_add")
    assert (y == 32767).sum() > 100
    assert (y == -32767).sum() > 100
    check_exact("instruction_stream_add", linear)


@needs_compiler
def test_the_figures_of_the_ideas_page_hold() -> None:
    """Simulated, 197 tokens, 192 x 192, density 0.576, model in SRAM; see device/kernels/IDEAS.md."""
    rate = {}
    for candidate in ("token_lanes", "channel_lanes", "instruction_stream", "instruction_stream_add"):
        linear = draw(197, 192, 192, 0.576, equal_shifts=candidate.startswith("channel"))
        rate[candidate] = linear.x.size * len(linear.trits) / check_exact(candidate, linear)["cycles"]
    assert 12 < rate["token_lanes"] < rate["channel_lanes"] < 15.06
    assert rate["instruction_stream"] > 1.4 * rate["channel_lanes"]
    assert rate["instruction_stream_add"] > 16


# ---- the table ----------------------------------------------------------------------------------------------

SHAPES = ((192, 192), (192, 576), (384, 384), (1536, 384))
LAYERS = {  # of one block: candidate, K, N
    "DeiT-Tiny": (("", 192, 576), ("_add", 192, 192), ("_table", 192, 768), ("_add", 768, 192)),
    "DeiT-Small": (("", 384, 1152), ("_add", 384, 384), ("_table", 384, 1536), ("_add", 1536, 384)),
}


def row(candidate: str, k: int, n: int, density: float, tokens: int = 197) -> None:
    """One line of the table, model in SRAM and in flash."""
    linear = draw(tokens, k, n, density, equal_shifts=candidate.startswith("channel"))
    cells = [candidate, f"{tokens}", f"{k}", f"{n}", f"{density}"]
    for place in (SRAM, FLASH):
        results = check_exact(candidate, linear, place)
        total = results["cycles"]
        if candidate == "row_table":
            total = results["inner_cycles"] + results["decode_cycles"]
        cells += [f"{total}", f"{tokens * k * n / results['inner_cycles']:.2f}", f"{tokens * k * n / total:.2f}"]
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> int:
    """Print cycles and MAC/cycle of every candidate at the shapes of DeiT-Tiny and DeiT-Small."""
    head = ["candidate", "tokens", "K", "N", "density"]
    head += [f"{what}, {place}" for place in ("SRAM", "flash") for what in ("cycles", "inner", "all")]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for candidate in CANDIDATES:
        streams = candidate.startswith("instruction")
        for k, n in SHAPES:
            if (candidate.endswith("_192") and k != 192) or (candidate == "row_table" and k > 384):
                continue
            for density in (0.5, 0.576, 0.69) if streams else (0.576,):
                row(candidate, k, n, density)
    row("instruction_stream", 192, 192, 0.576, 104)
    for name, layers in LAYERS.items():
        print(name)
        for suffix, k, n in layers:
            row("instruction_stream" + suffix, k, n, 0.576)
    return 0


if __name__ == "__main__":
    sys.exit(main())
