# SPDX-License-Identifier: Apache-2.0
"""Board files that extend another's."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from tvhil.boards import BoardFileError, load_board
from tvhil.boards.board import boards_dir


@pytest.fixture
def write(tmp_path):
    """Writes a board file beside a copy of qemu-xtensa's."""
    shutil.copy(boards_dir() / "qemu-xtensa.toml", tmp_path)

    def one(text, name="derived"):
        path = tmp_path / f"{name}.toml"
        path.write_text(f'name = "{name}"\nsummary = "x"\n{text}\n')
        return path

    return one


def test_the_board_with_the_trap_is_qemu_xtensa_with_more_sources_and_flags():
    plain, more = load_board("qemu-xtensa"), load_board("qemu-xtensa-pie")
    assert (more.memory, more.kind) == (plain.memory, plain.kind)
    assert more.start == dataclasses.replace(plain.start, cores=2)
    assert (more.kernels, plain.kernels) == ("pie", "portable")
    assert dataclasses.replace(more.counter, source=plain.counter.source) == plain.counter
    for key in ("sources", "includes", "cflags"):
        own, base = getattr(more.firmware, key), getattr(plain.firmware, key)
        assert own[: len(base)] == base
        assert len(own) > len(base)
    assert (more.firmware.ldflags, more.firmware.compiler) == (plain.firmware.ldflags, plain.firmware.compiler)
    assert "lx7sim" in more.summary


def test_the_latency_of_the_board_with_the_trap_is_not_predicted():
    assert load_board("qemu-xtensa").cost is not None
    assert load_board("qemu-xtensa-pie").cost is None


def test_what_a_board_says_itself_goes_before_the_other_boards(write):
    board = load_board(write('extends = "qemu-xtensa"\n[memory]\narena = 4096\n[firmware]\nlibraries = []'))
    plain = load_board("qemu-xtensa")
    assert board.memory == dataclasses.replace(plain.memory, arena=4096)
    assert board.firmware == dataclasses.replace(plain.firmware, libraries=())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "none"', "extends 'none': there is no such board beside"),
        ('extends = "derived"', "there is no such board beside"),
        ("extends = 3", "there is no such board beside"),
        ('extends = "qemu-xtensa"\nfirmware_of = "qemu-xtensa"', "firmware_of cannot be combined"),
        ('extends = "qemu-xtensa"\n[firmware]\nsources_also = "x.c"', r"\[firmware\] sources_also must be a list"),
        ('extends = "qemu-xtensa"\n[firmware]\nport_also = ["x"]', r"\[firmware\] port_also must be a list"),
        ('extends = "qemu-xtensa"\n[firmware]\nsauces_also = ["x"]', r"unknown key 'sauces'; did you mean 'sources'"),
        ('extends = "qemu-xtensa"\n[memory]\narena_also = ["x"]', r"\[memory\] unknown key 'arena_also'"),
        ('extends = "qemu-xtensa"\nmemory = 3', r"\[memory\] must be a table"),
        ('extends = "qemu-xtensa"\n[start]\ncores = 3', r"\[start\] cores must be 1 or 2"),
        (
            'kind = "silicon"\nkernels = "simd"\n[memory]\narena = 1\nstack = 1\n[counter]\nunit = "cycles"',
            "kernels 'simd' is none of portable, pie",
        ),
        ('[firmware]\nsources_also = ["x"]\n[memory]\narena = 1\nstack = 1\n[counter]\nunit = "cycles"', "unknown key"),
    ],
)
def test_a_board_file_that_extends_wrongly_is_refused_in_one_line(write, text, message):
    path = write(text)
    with pytest.raises(BoardFileError, match=message) as caught:
        load_board(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_board_that_extends_one_that_extends_is_refused(write):
    write('extends = "qemu-xtensa"')
    with pytest.raises(BoardFileError, match="extends cannot be combined with it; name the first board"):
        load_board(write('extends = "derived"', "twice"))


def test_the_other_boards_malformed_file_is_named(write, tmp_path):
    path = write('extends = "qemu-xtensa"')
    (tmp_path / "qemu-xtensa.toml").write_text("[memory")
    with pytest.raises(BoardFileError, match="extends 'qemu-xtensa': Expected"):
        load_board(path)
