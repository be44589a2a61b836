# SPDX-License-Identifier: Apache-2.0
"""Programs that boards need: found, or named with the package that holds them."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
from pathlib import Path

from tvhil.errors import MissingToolError
from tvhil.runtime import find_compiler


def find_program(name: str, package: str, needed_for: str) -> str:
    """Path of a program; `cc` is the machine's own C compiler.

    Raises:
        MissingToolError: it is not installed; tells how to get it.
    """
    if name == "cc":
        return find_compiler()
    found = shutil.which(name)
    if found is None:
        raise MissingToolError(f"{name} is not installed, {needed_for} needs it: {how_to_get(package)}")
    return found


def find_espressif_qemu(name: str, machine: str, needed_for: str) -> str:
    """Path of Espressif's QEMU, which has the name of the distribution's but knows its chips.

    `$TVHIL_QEMU` names it; else the newest one of ESP-IDF's tools is taken, else one in the PATH.

    Raises:
        MissingToolError: there is none, or it does not know the machine.
    """
    named = os.environ.get("TVHIL_QEMU")
    tools = Path(os.environ.get("IDF_TOOLS_PATH") or Path.home() / ".espressif") / "tools" / "qemu-xtensa"
    candidates = [named] if named else [*map(str, sorted(tools.glob(f"*/qemu/bin/{name}"), reverse=True)), name]
    for candidate in candidates:
        program = shutil.which(candidate)
        if program is not None and _knows_machine(program, machine):
            return program
    raise MissingToolError(
        f"no {name} that knows the machine {machine}, {needed_for} needs it: python "
        "$IDF_PATH/tools/idf_tools.py install qemu-xtensa, or name Espressif's QEMU in TVHIL_QEMU"
    )


@functools.cache
def _knows_machine(program: str, machine: str) -> bool:
    try:
        listed = subprocess.run([program, "-M", "help"], capture_output=True, text=True, check=False, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return False
    return any(line.split()[:1] == [machine] for line in listed.splitlines())


def how_to_get(package: str) -> str:
    """How to install a package of the distribution."""
    return f"sudo apt-get install {package}"


def program_version(command: list[str]) -> str:
    """First line that a program prints about its version, empty where it does not."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=20, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return (done.stdout or done.stderr).strip().partition("\n")[0].strip()


def keep_newest(folder: Path, pattern: str, count: int) -> None:
    """Delete all but the files that were written or used last; others may be doing the same."""
    ages: list[tuple[float, Path]] = []
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            ages.append((path.stat().st_mtime, path))
    for _, path in sorted(ages, reverse=True)[count:]:
        with contextlib.suppress(OSError):
            path.unlink()
