# SPDX-License-Identifier: Apache-2.0
"""Build the C tests of kernels and runtime with the sanitizers, and run them."""

import subprocess

import pytest

from tvhil.runtime import device_dir, find_compiler, runtime_sources

FLAGS = (
    "-std=c11 -D_POSIX_C_SOURCE=200809L -g -O1 -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover"
)
SHARED = ("model_builder.c", "small_model.c", "piece_model.c", "model_reference.c", "reference.c")
# A build with a second kernel table, and that table made of portable kernels.
TEAMS = ("-DTVIT_KERNELS_PIE", "-pthread")


def compile_shared(folder, flags=()):
    """What all test programs share, compiled once."""
    device = device_dir()
    sources = [*runtime_sources(device), *(device / "tests" / name for name in SHARED)]
    command = [find_compiler(), *FLAGS.split(), *flags, f"-I{device / 'include'}", "-c", *map(str, sources)]
    subprocess.run(command, cwd=folder, check=True)
    return [str(path) for path in sorted(folder.glob("*.o"))]


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    return compile_shared(tmp_path_factory.mktemp("objects"))


def run_c_tests(name, others, folder):
    """Build `device/tests/<name>.c` with other objects, sources and flags, and run it."""
    device, program = device_dir(), folder / name
    source = device / "tests" / f"{name}.c"
    command = [find_compiler(), *FLAGS.split(), f"-I{device / 'include'}", str(source), *others, "-lm"]
    subprocess.run([*command, "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=300, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert len([line for line in lines if line.startswith("ok ")]) == source.read_text().count("RUN(")


@pytest.mark.parametrize("name", ["test_kernels", "test_load", "test_execute", "test_gaps", "test_plan"])
def test_the_c_tests_pass_under_the_sanitizers(name, objects, tmp_path):
    run_c_tests(name, objects, tmp_path)


def test_a_second_kernel_table_in_token_blocks_runs_on_one_core_and_on_two(tmp_path):
    others = compile_shared(tmp_path, TEAMS)
    run_c_tests("test_teams", [str(device_dir() / "tests" / "block_kernels.c"), *TEAMS, *others], tmp_path)


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
