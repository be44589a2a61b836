# SPDX-License-Identifier: Apache-2.0
"""Build the C tests of kernels and runtime with the sanitizers, and run them."""

import subprocess

import pytest

from tvhil.runtime import device_dir, find_compiler, runtime_sources

FLAGS = (
    "-std=c11 -D_POSIX_C_SOURCE=200809L -g -O1 -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover"
)
SHARED = ("small_model.c", "reference.c")


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """What all test programs share, compiled once."""
    device, folder = device_dir(), tmp_path_factory.mktemp("objects")
    sources = [*runtime_sources(device), *(device / "tests" / name for name in SHARED)]
    command = [find_compiler(), *FLAGS.split(), f"-I{device / 'include'}", "-c", *map(str, sources)]
    subprocess.run(command, cwd=folder, check=True)
    return [str(path) for path in sorted(folder.glob("*.o"))]


@pytest.mark.parametrize("name", ["test_kernels", "test_load", "test_execute"])
def test_the_c_tests_pass_under_the_sanitizers(name, objects, tmp_path):
    device, program = device_dir(), tmp_path / name
    source = device / "tests" / f"{name}.c"
    command = [
        find_compiler(),
        *FLAGS.split(),
        f"-I{device / 'include'}",
        str(source),
        *objects,
        "-lm",
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=300, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert len([line for line in lines if line.startswith("ok ")]) == source.read_text().count("RUN(")


@pytest.mark.parametrize("flags", ["-O2", "-O3", "-O2 -m32 -ffreestanding"])
def test_the_c_sources_compile_without_a_warning(flags, tmp_path):
    device = device_dir()
    probe = subprocess.run(
        [find_compiler(), *flags.split(), "-x", "c", "-", "-c", "-o", str(tmp_path / "probe.o")],
        input="int a;",
        text=True,
        capture_output=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip(f"the compiler does not take {flags}")
    for source in runtime_sources(device):
        command = [find_compiler(), "-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Werror", *flags.split()]
        command += [f"-I{device / 'include'}", "-c", str(source), "-o", str(tmp_path / "out.o")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_device_sources_use_no_allocation_and_no_library():
    for source in runtime_sources(device_dir()):
        text = source.read_text()
        for word in ("malloc", "calloc", "alloca", "stdio.h", "stdlib.h", "float ", "double "):
            assert word not in text, f"{source.name} uses {word}"
