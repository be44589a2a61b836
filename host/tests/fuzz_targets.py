# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed in C: the targets of device/fuzz/. The tests replay corpora and a fixed set of mutations;
tools/fuzz.py searches for as long as it is told. The readers of the package are in fuzz_readers.py."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
import zlib
from collections.abc import Iterable
from pathlib import Path

from link_boards import environment

from tvhil.runtime import device_dir

C_TARGETS = {"model": 16384, "framing": 4096, "server": 1024}  # with the most bytes of an input
# What reads bytes that anybody may have written.
C_PARSERS = (
    *("runtime/load.c", "runtime/validate.c", "runtime/validate_matrix.c", "runtime/validate_order.c"),
    *("runtime/plan.c", "runtime/bind.c"),
    *("app/framing.c", "app/server.c", "app/regions.c", "app/model.c", "app/run.c", "app/info.c"),
)
_SHARED = (
    *("runtime/*.c", "kernels/portable/*.c", "kernels/pie/buffer_sizes.c", "app/*.c", "fuzz/model_mutator.c"),
    *("tests/link_board.c", "tests/model_builder.c", "tests/small_model.c", "tests/piece_model.c", "tests/reference.c"),
)
SEED_MODELS = 10  # of device/fuzz/seed_model.h
SANITIZE = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def corpus(target: str) -> Path:
    """The inputs of a C target that are kept in the tree."""
    return device_dir() / "fuzz" / "corpus" / target


def build_c(program: str, compiler: str, flags: Iterable[str], extra: Iterable[str] = ()) -> Path:
    """Compile `device/fuzz/<program>.c` (and `extra` files of device/) once for each state of the sources."""
    device = device_dir()
    patterns = (*_SHARED, f"fuzz/{program}.c", *extra)
    sources = sorted(path for pattern in patterns for path in device.glob(pattern))
    headers = sorted(p for folder in ("include", "runtime", "kernels", "app", "tests", "fuzz")
                     for p in (device / folder).rglob("*.h"))  # fmt: skip
    command = [compiler, "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-g", "-Wall", "-Wextra", "-Werror", *flags]
    command += [f"-I{device / folder}" for folder in ("include", ".", "tests")]
    digest = hashlib.sha256(" ".join([*command, *map(str, sources)]).encode())
    for path in [*sources, *headers]:
        digest.update(path.read_bytes())
    folder = device.parent / "build" / "fuzz" / f"{program}-{digest.hexdigest()[:16]}"
    output = folder / program
    if not output.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = folder / f"{program}.{os.getpid()}"  # in this folder: gcov's notes and counts lie beside the program
        done = subprocess.run(
            [*command, *map(str, sources), "-lm", "-o", str(made)],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr)
        made.replace(output)
    return output


def replay(target: str, compiler: str, inputs: Iterable[Path], flags: Iterable[str] = SANITIZE) -> int:
    """Run inputs (files, folders) through a C target built by any compiler; how many there were.

    Raises:
        RuntimeError: with what the sanitizer or the target says of the last one.
    """
    program = build_c(f"fuzz_{target}", compiler, flags, ["fuzz/replay.c"])
    command = [str(program), *map(str, inputs)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{target}: exit {done.returncode}: {done.stderr[-4000:]}")
    return int(done.stdout)


def line_coverage(compiler: str, inputs: dict[str, list[Path]]) -> dict[str, tuple[int, int]]:
    """Lines of each C parser that the inputs of all targets together execute, and lines that there are. Needs gcc."""
    lines: dict[str, dict[int, bool]] = {name: {} for name in C_PARSERS}
    for target, files in inputs.items():
        flags = ("-O0", "--coverage", "-fprofile-update=single")
        folder = build_c(f"fuzz_{target}", compiler, flags, ["fuzz/replay.c"]).parent
        for counts in folder.rglob("*.gcda"):
            counts.unlink()
        replay(target, compiler, files, flags)
        for counts in sorted(folder.rglob("*.gcda")):
            command = ["gcov", "--json-format", "--stdout", str(counts)]
            done = subprocess.run(command, cwd=folder, capture_output=True, check=True)
            for text in done.stdout.splitlines():
                for file in json.loads(text)["files"]:
                    name = "/".join(Path(file["file"]).parts[-2:])
                    for line in file["lines"] if name in lines else []:
                        known = lines[name].get(line["line_number"], False)
                        lines[name][line["line_number"]] = known or line["count"] > 0
    return {name: (sum(hit.values()), len(hit)) for name, hit in lines.items()}


def mutated_models(compiler: str, count: int, seed: int) -> list[bytes]:
    """Model files mutated by device/fuzz/model_mutator.c, always the same for the same seed."""
    return run_mutator(build_c("mutate_models", compiler, SANITIZE), count, seed)


def run_mutator(program: Path, count: int, seed: int) -> list[bytes]:
    """What a built device/fuzz/mutate_models.c writes: mutations of each of the `SEED_MODELS` in turn."""
    command = [str(program), str(count), str(seed)]
    raw = subprocess.run(command, capture_output=True, env=environment(), timeout=600, check=True).stdout
    files, at = [], 0
    while at < len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        files.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return files


def server_inputs(count: int, seed: int) -> list[bytes]:
    """Drawn inputs of the server's target (device/fuzz/fuzz_server.c): awkward offsets, lengths, regions, orders."""
    rng = random.Random(seed)
    numbers = (0, 1, 4, 15, 16, 63, 64, 1023, 1024, 1032, 1033, 4095, 4096, 8191, 8192, 8193)
    numbers += (0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF)

    def number() -> int:
        return rng.choice(numbers) if rng.random() < 0.6 else rng.randrange(3000)

    def step() -> bytes:
        control = rng.choice((0, 0, 0, 0, 16, 16, 32, 32, 8, 40, 2, 1, 64))
        kind = rng.choice((5, 6, 7, 13, 13, *range(1, 14), *range(16)))
        payload = struct.pack("<BBHII", rng.randrange(7), 0, rng.choice((0, rng.randrange(16))), number(), number())
        payload = payload[: rng.randrange(13)] if control & 16 else payload + rng.randbytes(rng.randrange(40))
        if control == 64:
            payload = struct.pack("<I", rng.randrange(4) if rng.random() < 0.5 else rng.getrandbits(32))
        return bytes((control, kind, len(payload))) + payload

    boards = (3, 7, 11, 15, 131, 1, 2, 0)
    return [
        bytes((rng.choice(boards), rng.choice((0, 0, 0, 4, 8, 16, 32, 2)))) + b"".join(step() for _ in range(24))
        for _ in range(count)
    ]


def resign(file: bytes) -> bytes:
    """Put the right SHA-256 into a mutated file, which C cannot; its CRCs stay as right or wrong as they were."""
    out = bytearray(file)
    if len(out) >= 64:
        right = zlib.crc32(out[:60]) == struct.unpack_from("<I", out, 60)[0]
        out[16:48] = hashlib.sha256(out[64:]).digest()
        if right:
            struct.pack_into("<I", out, 60, zlib.crc32(out[:60]))
    return bytes(out)
