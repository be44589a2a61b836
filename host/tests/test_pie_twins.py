# SPDX-License-Identifier: Apache-2.0
"""Each PIE kernel and its portable twin, over drawn shapes, by one core and by two."""

from __future__ import annotations

import shutil

import pytest
from board_programs import missing_tools
from pie_twins import OPERATORS, kernel_sources, on_lx7sim, on_qemu, program

from tvhil.runtime import device_dir

ROUNDS_ON_LX7SIM = 200
ROUNDS_ON_QEMU = 48

needs_compiler = pytest.mark.skipif(
    not shutil.which("xtensa-lx106-elf-gcc"), reason="xtensa-lx106-elf-gcc not installed: make setup"
)
needs_qemu = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools() or "-")

# A kernel in plain C, so that the program itself can be tested: channels are shared by turns, and the parts meet.
MEAN_POOL = """\
#include "kernels/pie/pie_kernels.h"
void tvit_mean_pool_pie(const tvit_mean_pool_args *args, void *scratch, const tvit_team *team) {
    static int32_t sums[256];
    (void)scratch;
    for (uint32_t c = team->part; c < args->n; c += team->parts) {
        int32_t sum = (int32_t)(args->rows >> 1);
        for (uint32_t t = args->input_lane; t < args->input_lane + args->rows; t++)
            sum += args->input[t / 16 * args->n * 16 + c * 16 + t % 16];
        sums[c] = sum;
    }
    if (team->parts > 1) team->barrier(team);
    for (uint32_t c = 0; c < args->n; c++) { // those that the other part has summed
        if (team->parts > 1 && c % 2 == team->part) continue;
        int32_t rows = (int32_t)args->rows, mean = sums[c] / rows - (sums[c] % rows < 0);
        args->output[c * 16] = (int16_t)(mean > 32767 ? 32767 : mean < -32767 ? -32767 : mean);
    }
    MISTAKE
}
"""


def test_every_operator_has_a_kernel_once_there_is_a_table_of_them():
    """The table names all five; until it is there, operators without a kernel are passed over."""
    if not (device_dir() / "kernels" / "pie" / "table.c").is_file():
        pytest.skip("no table of PIE kernels yet")
    text = "".join(path.read_text() for path in kernel_sources())
    assert [operator for operator in OPERATORS if f"tvit_{operator}_pie" not in text] == []


def check(outcome, rounds):
    if outcome.absent:
        pytest.skip("no PIE kernel yet")
    assert outcome.different == 0, "\n".join(outcome.lines)
    assert outcome.rounds == rounds
    assert outcome.compared > 20 * rounds


@needs_compiler
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_kernel_and_its_portable_twin_agree_on_every_bit(operator, parts):
    check(on_lx7sim(operator, rounds=ROUNDS_ON_LX7SIM, parts=parts), ROUNDS_ON_LX7SIM)


@needs_compiler
@needs_qemu
@pytest.mark.emulator
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_kernel_and_its_portable_twin_agree_where_vector_instructions_trap(operator, parts):
    check(on_qemu(operator, seed=2, rounds=ROUNDS_ON_QEMU, parts=parts), ROUNDS_ON_QEMU)


@needs_compiler
@needs_qemu
@pytest.mark.emulator
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_kernel_and_its_portable_twin_agree_where_both_cores_run_at_the_same_time(operator):
    check(on_qemu(operator, seed=3, rounds=ROUNDS_ON_QEMU, parts=2, threads=True), ROUNDS_ON_QEMU)


# --- the program itself ------------------------------------------------------------------------------------------


def kernel(folder, mistake=""):
    """The program with a mean pooling in plain C as its only kernel."""
    source = folder / "mean_pool.c"
    source.write_text(MEAN_POOL.replace("MISTAKE", mistake))
    return program((source, device_dir() / "kernels" / "pie" / "buffer_sizes.c"))


@needs_compiler
@pytest.mark.parametrize("parts", [1, 2])
def test_a_kernel_in_plain_c_agrees(tmp_path, parts):
    check(on_lx7sim("mean_pool", rounds=100, parts=parts, elf=kernel(tmp_path)), 100)


@needs_compiler
@needs_qemu
@pytest.mark.emulator
@pytest.mark.parametrize("parts", [1, 2])
def test_a_kernel_in_plain_c_agrees_on_qemu(tmp_path, parts):
    check(on_qemu("mean_pool", rounds=100, parts=parts, elf=kernel(tmp_path)), 100)


@needs_compiler
@pytest.mark.parametrize(
    ("mistake", "text"),
    [
        ("args->output[16 * (args->n - 1)] ^= 1;", "output: token 0, channel "),
        ("if (args->n > 90) args->output[16 * args->n] = 1;", "written behind its end"),
        ("if (!team->part) ((int16_t *)args->input)[args->input_lane] ^= 1;", "input: token "),
    ],
)
def test_a_kernel_with_a_mistake_is_reported_with_shape_place_and_values(tmp_path, mistake, text):
    outcome = on_lx7sim("mean_pool", rounds=100, parts=2, elf=kernel(tmp_path, mistake))
    assert 0 < outcome.different <= 100
    assert outcome.lines[0].startswith("mean_pool round ")
    assert " (n " in outcome.lines[0]
    assert all(text in line for line in outcome.lines)


@needs_compiler
def test_a_single_round_can_be_repeated(tmp_path):
    elf = kernel(tmp_path, "if (args->n == 50) args->output[0] ^= 1;")
    outcome = on_lx7sim("mean_pool", rounds=400, elf=elf)
    rounds = [int(line.split()[2]) for line in outcome.lines]
    assert outcome.different == len(rounds) > 0
    for number in rounds:
        again = on_lx7sim("mean_pool", first=number, elf=elf)
        assert again.lines == tuple(line for line in outcome.lines if line.split()[2] == str(number))
