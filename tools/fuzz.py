#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Search for inputs that crash, hang or break a property of whatever reads bytes: the C targets of device/fuzz/ under
clang's libFuzzer with AddressSanitizer and UBSan, and the readers of the package under hypothesis.

    make fuzz FUZZ_SECONDS=60               all of them, each for a minute, two at a time
    tools/fuzz.py --seconds 600 model       one of them for ten minutes

Inputs found on the way are kept in build/fuzz/corpus/ and begun from the next time; findings in build/fuzz/findings/.
Replay a finding: tools/fuzz.py --replay FILE TARGET. Exit codes: 0 nothing found, 1 a finding or a parser that is
covered too little, 4 something to install.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "host" / "tests"))

import fuzz_readers as readers  # noqa: E402
import fuzz_targets as targets  # noqa: E402
from link_boards import environment  # noqa: E402

FOLDER = ROOT / "build" / "fuzz"
FINDINGS = FOLDER / "findings"
LEAST_COVERED = 95.0  # % of the lines of a parser
HANG_SECONDS = 20
CLANG_FLAGS = ("-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", "-DTVIT_LIBFUZZER")
_PROGRAM = "#include <stddef.h>\nint LLVMFuzzerTestOneInput(const char *d, size_t n) { return n && *d == 1 ? 0 : 0; }\n"


@dataclass
class Result:
    """What one target came to."""

    name: str
    executions: int = 0
    seconds: float = 0.0
    findings: tuple[str, ...] = ()


def missing_packages() -> str:
    """What has to be installed for libFuzzer; empty when it works."""
    clang = shutil.which("clang")
    if clang is None:
        return "clang and libFuzzer are not installed: sudo apt-get install clang libclang-rt-14-dev"
    with tempfile.TemporaryDirectory() as folder:
        command = [clang, "-fsanitize=fuzzer,address", "-x", "c", "-", "-o", f"{folder}/probe"]
        if subprocess.run(command, input=_PROGRAM, text=True, capture_output=True, check=False).returncode == 0:
            return ""
    version = subprocess.run([clang, "-dumpversion"], capture_output=True, text=True, check=False).stdout
    return f"clang has no libFuzzer: sudo apt-get install libclang-rt-{version.partition('.')[0] or '14'}-dev"


def fuzz_c(target: str, seconds: int) -> Result:
    """Run one C target under libFuzzer."""
    program = targets.build_c(f"fuzz_{target}", "clang", CLANG_FLAGS)
    found = FOLDER / "corpus" / target
    for folder in (found, FINDINGS):
        folder.mkdir(parents=True, exist_ok=True)
    for i, data in enumerate(targets.server_inputs(200, seed=0) if target == "server" else ()):
        (found / f"drawn-{i}").write_bytes(data)
    before = set(FINDINGS.glob(f"{target}-*"))
    command = [str(program), f"-max_total_time={seconds}", f"-max_len={targets.C_TARGETS[target]}"]
    command += [f"-timeout={HANG_SECONDS}", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=1"]
    command += [f"-artifact_prefix={FINDINGS}/{target}-", str(found), str(targets.corpus(target))]
    start, log = time.monotonic(), FOLDER / f"{target}.log"
    with log.open("w") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment(), check=False)
    text = log.read_text(errors="replace")
    count = re.search(r"stat::number_of_executed_units: (\d+)", text)
    findings = tuple(str(path) for path in sorted(set(FINDINGS.glob(f"{target}-*")) - before))
    if done.returncode and not findings:
        findings = (f"libFuzzer ended with {done.returncode}: {log}",)
    return Result(target, int(count[1]) if count else 0, time.monotonic() - start, findings)


def fuzz_reader(name: str, seconds: int) -> Result:
    """Run one reader in a process of its own."""
    start, counts = time.monotonic(), _counts(name)
    FOLDER.mkdir(parents=True, exist_ok=True)
    counts.unlink(missing_ok=True)
    modules = ",".join(str(readers.PACKAGE / module) for module in readers.READERS[name].modules)
    command = [sys.executable, "-m", "coverage", "run", f"--data-file={counts}", f"--include={modules}"]
    command += [__file__, "--in-process", "--seconds", str(seconds), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout.strip():
        log = FOLDER / f"{name}.log"
        log.write_text(done.stdout + done.stderr)
        return Result(name, 0, time.monotonic() - start, findings=(f"ended with {done.returncode}: {log}",))
    fields = json.loads(done.stdout.splitlines()[-1])
    findings = (fields["finding"],) if fields["finding"] else ()
    return Result(name, fields["executions"], time.monotonic() - start, findings)


def _counts(name: str) -> Path:
    """What a reader executed, as `coverage` writes it."""
    return FOLDER / f"{name}.coverage"


def fuzz_in_process(name: str, seconds: int) -> int:
    """Draw inputs for a reader until the time is over or one is a finding; prints the result as JSON."""
    from hypothesis import HealthCheck, given, seed, settings

    reader = readers.READERS[name]
    executions, failing = 0, b""
    finding, end, start_seed = None, time.monotonic() + seconds, int.from_bytes(os.urandom(4), "little")
    with tempfile.TemporaryDirectory() as scratch:

        def offer(data: bytes) -> None:
            nonlocal executions, failing
            executions += 1
            failing = data  # of the last call, which hypothesis makes with the smallest input that fails
            begun = time.monotonic()
            reader.offer(data, Path(scratch))
            assert time.monotonic() - begun < HANG_SECONDS, "it hangs"

        check = settings(
            max_examples=200, deadline=None, database=None, report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        strategy = readers.inputs(name)
        for number in range(sys.maxsize):
            try:
                for data in readers.beginnings(name) if number == 0 else ():
                    offer(data)
                seed(start_seed + number)(check(given(strategy)(offer)))()
            except Exception as error:
                path = FINDINGS / f"{name}-{hashlib.sha256(failing).hexdigest()[:16]}"
                FINDINGS.mkdir(parents=True, exist_ok=True)
                path.write_bytes(failing)
                finding = f"{path}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if finding or time.monotonic() > end:
                break
    print(json.dumps({"executions": executions, "finding": finding}))
    return 1 if finding else 0


def run(names: list[str], seconds: int) -> list[Result]:
    """Fuzz several targets, two at a time, under a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool, Progress(*columns, console=console) as progress:

        def work(name: str, task: int) -> Result:
            progress.update(progress.task_ids[task], state="running")
            fuzz: Callable[[str, int], Result] = fuzz_c if name in targets.C_TARGETS else fuzz_reader
            result = fuzz(name, seconds)
            state = f"{len(result.findings)} findings" if result.findings else "nothing found"
            progress.update(progress.task_ids[task], completed=1, state=f"{result.executions:,} executions, {state}")
            if not console.is_terminal:
                print(f"{name}: {result.executions:,} executions, {state}", file=sys.stderr, flush=True)
            return result

        futures: list[Future[Result]] = []
        for i, name in enumerate(names):
            progress.add_task(name, total=1, state="waiting")
            futures.append(pool.submit(work, name, i))
        return [future.result() for future in futures]


def parser_coverage(names: list[str]) -> dict[str, tuple[int, int]]:
    """Lines executed and lines in each parser all of whose targets ran: they share the parsers.

    In C by everything found so far, in Python by what was drawn just now.
    """
    covered = {}
    if set(names) >= set(targets.C_TARGETS):
        inputs = {name: [targets.corpus(name), FOLDER / "corpus" / name] for name in targets.C_TARGETS}
        for name, figures in targets.line_coverage("gcc", inputs).items():
            covered[f"device/{name}"] = figures
    of = {m: [name for name, reader in readers.READERS.items() if m in reader.modules] for m in readers.PARSERS}
    for module, users in of.items():
        if set(names) >= set(users):  # where one had no time to begin, there is nothing
            ((executed, missed),) = readers.line_coverage(map(_counts, users), [module]).values()
            covered[f"host/tvhil/{module}"] = len(executed), len(executed | missed)
    return covered


def main() -> int:
    """Fuzz what is named, or everything; print a table."""
    known = [*targets.C_TARGETS, *readers.READERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="*", help=f"what to fuzz (default: all): {', '.join(known)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input through one target instead")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.target or known
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no target {unknown[0]!r}; known: {', '.join(known)}")
    if options.in_process:
        return fuzz_in_process(names[0], options.seconds)
    if options.replay is not None:
        if len(names) != 1:
            parser.error("--replay takes one target")
        if names[0] in targets.C_TARGETS:
            targets.replay(names[0], "gcc", [options.replay])
        else:
            with tempfile.TemporaryDirectory() as scratch:
                readers.READERS[names[0]].offer(options.replay.read_bytes(), Path(scratch))
        print("nothing found")
        return 0
    in_c = [name for name in names if name in targets.C_TARGETS]
    if in_c and (missing := missing_packages()):
        print(f"fuzz: {missing}", file=sys.stderr)
        return 4
    try:
        results = run(names, options.seconds)
    except KeyboardInterrupt:
        print(f"fuzz: interrupted; what was found is in {FOLDER}", file=sys.stderr)
        return 130
    print(f"{'target':<16}{'executions':>13}{'seconds':>9}  findings")
    for result in results:
        print(f"{result.name:<16}{result.executions:>13,}{result.seconds:>9.0f}  {len(result.findings)}")
    covered = {name: 100 * hit / lines for name, (hit, lines) in parser_coverage(names).items()}
    for name, percent in covered.items():
        print(f"{name:<52}{percent:6.1f} % of the parser's lines")
    for result in results:
        for finding in result.findings:
            print(f"finding in {result.name}: {finding}", file=sys.stderr)
    if low := [name for name, percent in covered.items() if percent < LEAST_COVERED]:
        print(f"covered by less than {LEAST_COVERED:.0f} %: {', '.join(low)}", file=sys.stderr)
    return 1 if low or any(result.findings for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
