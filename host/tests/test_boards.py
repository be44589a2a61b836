# SPDX-License-Identifier: Apache-2.0
"""Board files, building, flashing and starting, on boards that need no emulator."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from board_programs import small_model

from tvhil.boards import BoardFileError, FirmwareImage, board_facts, build, flash, list_boards, load_board, start
from tvhil.boards.build import FirmwareError, build_program
from tvhil.cli import main
from tvhil.errors import BoardError, ExitCode, InputError, MissingToolError, UsageError
from tvhil.evaluation.link_device import LinkDevice
from tvhil.link.errors import LinkClosedError
from tvhil.packing import pack_vit, read_model
from tvhil.packing.random_vit import random_vit
from tvhil.prediction import Predictor

MINIMAL = """
name = "mini"
kind = "native"
summary = "a board file with nothing optional in it"
[memory]
arena = 4096
stack = 1024
[counter]
unit = "seconds"
"""

NO_FIRMWARE = FirmwareImage(Path("/nonexistent"), "none")


@pytest.fixture
def native():
    return load_board("native")


@pytest.fixture
def own_build_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TVHIL_BUILD_DIR", str(tmp_path / "build"))
    return tmp_path / "build"


def write_board(tmp_path, text, name="mini"):
    path = tmp_path / f"{name}.toml"
    path.write_text(text)
    return path


# --- board files -----------------------------------------------------------------------------------------------


def test_every_board_file_loads_and_is_named_like_its_file():
    boards = list_boards()
    assert {"native", "qemu-xtensa"} <= {board.name for board in boards}
    assert all(board.path.stem == board.name and board.summary for board in boards)


def test_the_memories_of_the_emulated_board_fit_into_its_ram():
    memory = load_board("qemu-xtensa").memory
    program = 1 << 20
    assert memory.arena + memory.model_ram + memory.stack + program < memory.ram


def test_the_minimal_board_file_loads_from_its_path(tmp_path):
    board = load_board(write_board(tmp_path, MINIMAL))
    assert (board.name, board.limits.arena, board.limits.model, board.cost) == ("mini", 4096, None, None)


def test_an_unknown_board_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean 'qemu-xtensa'") as caught:
        load_board("qemu-xtenza")
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("arena = 4096", "arean = 4096"), r"\[memory\] unknown key 'arean'; did you mean 'arena'"),
        (("arena = 4096", 'arena = "big"'), r"\[memory\] arena must be a number"),
        (("arena = 4096", "arena = -1"), r"\[memory\] arena must be a number of at least 0"),
        (("arena = 4096", ""), r"\[memory\] missing: 'arena'"),
        (('kind = "native"', 'kind = "toaster"'), "kind 'toaster' is none of"),
        (('name = "mini"', 'name = "maxi"'), "name and file must agree"),
        (("[counter]", "[counters]"), r"\[counter\] is missing"),
        (("[memory]", "[memory"), "Expected"),
        (('unit = "seconds"', 'unit = "seconds"\n[start]\ncommand = "qemu"'), r"\[start\] command must be a list"),
        (
            ('unit = "seconds"', 'unit = "seconds"\n[cost]\nunit = "cycles"\nkernels = "portable"'),
            "cost.* is in cycles",
        ),
        (('unit = "seconds"', 'unit = "seconds"\n[cost]\nunit = "parsecs"'), r"\[cost\]: unit 'parsecs'"),
        (('unit = "seconds"', 'unit = "seconds"\ntick_time = 33\ninstruction_shift = 5'), "longer than an instruction"),
        (('name = "mini"', 'name = "mini"\nfirmware_of = "other"'), "firmware_of"),
    ],
)
def test_a_malformed_board_file_is_refused_in_one_line_with_file_and_key(tmp_path, change, message):
    path = write_board(tmp_path, MINIMAL.replace(*change))
    with pytest.raises(BoardFileError, match=message) as caught:
        load_board(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_boards_whose_firmware_is_each_others_are_refused(tmp_path):
    text = MINIMAL.replace("[memory]\narena = 4096\nstack = 1024\n", "")
    for name, other in (("mini", "maxi"), ("maxi", "mini")):
        write_board(tmp_path, text.replace('name = "mini"', f'name = "{name}"\nfirmware_of = "{other}"'), name)
    with pytest.raises(BoardFileError, match="firmware_of"):
        load_board(tmp_path / "mini.toml")


@pytest.fixture
def own_boards_dir(tmp_path, monkeypatch):
    """Board files: mini, fine; nano, malformed; a folder that is called like one."""
    folder = tmp_path / "boards"
    folder.mkdir()
    monkeypatch.setenv("TVHIL_BOARDS_DIR", str(folder))
    write_board(folder, MINIMAL)
    write_board(folder, MINIMAL.replace("arena", "arean"), "nano")
    (folder / "dir.toml").mkdir()
    return folder


def test_a_folder_is_no_board(own_boards_dir):
    with pytest.raises(UsageError, match="there is no board 'dir'; known: mini, nano"):
        load_board("dir")
    with pytest.raises(BoardFileError, match=r"dir\.toml is a folder, not a board file"):
        load_board(own_boards_dir / "dir.toml")


def test_a_malformed_board_file_leaves_the_other_boards_in_the_list(own_boards_dir):
    malformed: list[BoardFileError] = []
    assert [board.name for board in list_boards(malformed)] == ["mini"]
    assert len(malformed) == 1
    assert "nano.toml" in str(malformed[0])
    with pytest.raises(BoardFileError, match=r"nano\.toml"):
        list_boards()


@pytest.mark.parametrize("command", ["boards", "doctor"])
def test_commands_about_all_boards_name_the_malformed_file_and_do_the_rest(own_boards_dir, command, capsys):
    assert main([command]) == ExitCode.BAD_INPUT
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "nano.toml: [memory] unknown key 'arean'" in captured.err
    assert ("mini" if command == "boards" else "python") in captured.out


def test_an_unknown_name_in_braces_is_refused_with_the_known_ones(native):
    assert native.expand("{arena}/{fd}", fd=7) == f"{native.memory.arena}/7"
    with pytest.raises(BoardFileError, match=r"unknown 'arrena'; known: arena, "):
        native.expand("{arrena}")


# --- building --------------------------------------------------------------------------------------------------


def small_program(board, tmp_path, text="int main(void) { return 0; }\n"):
    source = tmp_path / "program.c"
    source.write_text(text)
    return build_program(board, "program", [source])


def test_a_program_is_built_once_and_again_when_its_source_changes(native, tmp_path, own_build_dir):
    first = small_program(native, tmp_path)
    assert first.fresh
    again = small_program(native, tmp_path)
    assert (again.fresh, again.path, again.build_id) == (False, first.path, first.build_id)
    changed = small_program(native, tmp_path, "int main(void) { return 1; }\n")
    assert changed.fresh
    assert changed.build_id != first.build_id
    assert sorted(own_build_dir.rglob("program-*")) == sorted([first.path, changed.path])


def test_a_program_that_does_not_compile_is_told_with_file_and_first_error(native, tmp_path, own_build_dir):
    with pytest.raises(FirmwareError, match=r"program\.c failed .*undeclared") as caught:
        small_program(native, tmp_path, "int main(void) { return nothing; }\n")
    assert "\n" not in str(caught.value)
    assert not list(own_build_dir.rglob("*program*"))


def test_a_missing_compiler_is_told_with_its_package(native, tmp_path):
    firmware = dataclasses.replace(native.firmware, compiler="no-such-compiler", package="gcc-of-dreams")
    with pytest.raises(
        MissingToolError, match=r"no-such-compiler is not installed.*apt-get install gcc-of-dreams"
    ) as caught:
        build(dataclasses.replace(native, firmware=firmware))
    assert caught.value.exit_code == ExitCode.MISSING_TOOL


def test_a_source_pattern_without_files_is_refused(native):
    firmware = dataclasses.replace(native.firmware, sources=("ports/typewriter/*.c",))
    with pytest.raises(FirmwareError, match="ports/typewriter"):
        build(dataclasses.replace(native, firmware=firmware))


def test_progress_counts_every_file(native, tmp_path, own_build_dir):
    files = []
    for i in range(5):
        files.append(tmp_path / f"part{i}.c")
        files[-1].write_text(
            "int main(void) { return 0; }\n" if i == 0 else f"int f{i}(void);\nint f{i}(void) {{ return 0; }}\n"
        )
    seen = []
    build_program(native, "parts", files, lambda done, total, name: seen.append((done, total, name)))
    assert seen == [(i + 1, 5, f"part{i}.c") for i in range(5)]


# --- flashing --------------------------------------------------------------------------------------------------


def test_the_flash_image_begins_with_the_model_and_is_as_large_as_the_flash(native, own_build_dir):
    board = dataclasses.replace(
        native,
        memory=dataclasses.replace(native.memory, flash=1 << 20),
        start=dataclasses.replace(native.start, pad_flash=True),
    )
    image = flash(board, small_model().file, NO_FIRMWARE)
    content = image.flash.read_bytes()
    assert content[: small_model().file_bytes] == small_model().file
    assert len(content) == 1 << 20
    assert not any(content[small_model().file_bytes :])


def test_the_flash_image_is_written_once_and_again_when_it_was_damaged(native, own_build_dir):
    first = flash(native, small_model(), NO_FIRMWARE)
    assert first.fresh
    assert not flash(native, small_model(), NO_FIRMWARE).fresh
    damaged = bytearray(first.flash.read_bytes())
    damaged[100] ^= 1
    first.flash.write_bytes(damaged)
    assert flash(native, small_model(), NO_FIRMWARE).fresh
    assert first.flash.read_bytes() == small_model().file


@pytest.mark.parametrize("limit", ["flash", "arena"])
def test_a_model_too_big_for_the_board_is_refused_with_the_numbers_and_nothing_is_written(native, own_build_dir, limit):
    board = dataclasses.replace(native, memory=dataclasses.replace(native.memory, **{limit: 64}))
    with pytest.raises(InputError, match=r"needs [\d,]+ bytes, native has 64"):
        flash(board, small_model())
    assert not own_build_dir.exists()


def test_a_truncated_model_is_not_flashed(native, own_build_dir):
    with pytest.raises(InputError):
        flash(native, small_model().file[:-16])
    assert not own_build_dir.exists()


def test_old_flash_images_are_forgotten(native, own_build_dir):
    for seed in range(20):
        flash(native, pack_vit(random_vit(seed)), NO_FIRMWARE)
    assert len(list(own_build_dir.rglob("flash-*.img"))) == 16


def test_a_flash_image_that_cannot_be_written_is_told_with_its_path(native, own_build_dir):
    own_build_dir.write_text("a file where a directory is needed")
    with pytest.raises(InputError, match="the flash image cannot be written"):
        flash(native, small_model(), NO_FIRMWARE)


# --- starting --------------------------------------------------------------------------------------------------


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # what is dead, and nobody's child, may wait for long in a container


def test_the_native_board_computes_the_predicted_logits_and_its_process_ends_with_the_context(native):
    images = np.random.default_rng(3).integers(0, 256, (2, *small_model().info.input_shape), np.uint8)
    with start(native, flash(native, small_model())) as running:
        pid = running._process.pid
        device = LinkDevice(running.connect(), small_model())
        outputs = np.stack([device.run(image).output[0] for image in images])
        assert is_alive(pid)
    assert not Path(f"/proc/{pid}").exists(), "ended and waited for"
    assert running.log is not None
    assert not running.log.exists(), "nothing went wrong, so no log is left"
    assert np.array_equal(outputs, Predictor(small_model()).run(images))


def test_a_board_whose_process_is_killed_says_so(native):
    with start(native, flash(native, small_model())) as running:
        client = running.connect()
        running._process.kill()
        with pytest.raises(LinkClosedError):
            client.info()
        with pytest.raises(BoardError, match=r"ended \(signal SIGKILL\)"):
            running.check()


def test_no_emulator_is_left_behind_when_the_host_is_killed(native, own_build_dir):
    program = """
import dataclasses, os, sys
from tvhil.boards import load_board
from tvhil.boards.start import start_program
native = load_board("native")
board = dataclasses.replace(native, start=dataclasses.replace(native.start, command=("sleep", "600", "{fd}")))
running = start_program(board, "", "")
print(running._process.pid, flush=True)
sys.stdin.read()
"""
    host = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    emulator = int(host.stdout.readline())
    assert is_alive(emulator)
    host.kill()
    host.communicate()
    deadline = time.monotonic() + 10
    while is_alive(emulator) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(emulator)


def test_closing_twice_is_harmless(native):
    running = start(native, flash(native, small_model()))
    running.close()
    running.close()


def test_an_emulator_that_ends_at_once_is_told_with_its_last_line_and_the_log_is_kept(native, own_build_dir):
    command = ("sh", "-c", "echo first >&2; echo no such machine >&2; exit 3", "{fd}")
    board = dataclasses.replace(native, start=dataclasses.replace(native.start, command=command))
    with start(board, flash(board, small_model(), NO_FIRMWARE)) as running:
        with pytest.raises(
            BoardError, match=r"native: the emulator ended \(exit code 3\): no such machine; log: "
        ) as caught:
            running.connect()
        assert caught.value.exit_code == ExitCode.BOARD
    assert running.log.read_text() == "first\nno such machine\n"


def test_a_program_that_talks_over_stdin_and_stdout_is_a_board_too(native, own_build_dir):
    board = dataclasses.replace(native, start=dataclasses.replace(native.start, command=("cat",)))
    with start(board, flash(board, small_model(), NO_FIRMWARE)) as running:
        running.transport.write(b"there and back")
        assert running.transport.read(5.0) == b"there and back"


def test_a_missing_emulator_is_told_with_its_package(native, own_build_dir):
    missing = dataclasses.replace(native.start, command=("no-such-qemu",), package="qemu-of-dreams")
    board = dataclasses.replace(native, start=missing)
    with pytest.raises(MissingToolError, match=r"no-such-qemu is not installed.*apt-get install qemu-of-dreams"):
        start(board, flash(board, small_model(), NO_FIRMWARE))


def test_a_board_on_a_port_needs_its_name(tmp_path):
    board = load_board(write_board(tmp_path, MINIMAL))
    with pytest.raises(UsageError, match="--port"):
        start(board)
    with pytest.raises(LinkClosedError, match="cannot open the port"):
        start(board, port="/dev/no-such-port")


# --- doctor ----------------------------------------------------------------------------------------------------


def test_the_facts_name_every_program_that_boards_need_and_how_to_get_it():
    facts = {fact.name: fact for fact in board_facts()}
    assert {"cc", "xtensa-lx106-elf-gcc", "qemu-system-xtensa"} <= set(facts)
    assert facts["cc"].found
    assert "qemu-xtensa" in facts["xtensa-lx106-elf-gcc"].needed_for
    assert facts["qemu-system-xtensa"].get == "sudo apt-get install qemu-system-misc"


def test_a_missing_program_is_a_fact_without_a_version(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CC", raising=False)
    assert all(fact.found is None for fact in board_facts())


def test_the_sizes_of_the_board_file_are_those_that_the_board_reports(native):
    with start(native, flash(native, small_model())) as running:
        info = running.connect().info()
        assert info.arena_bytes == native.memory.arena
        assert info.model_ram_bytes == native.memory.model_ram
        assert running.client.memory().stack_bytes == native.memory.stack


def test_the_packages_are_those_that_setup_installs():
    script = (Path(__file__).resolve().parents[2] / "tools" / "install_system_packages.sh").read_text()
    for board in list_boards():
        text = tomllib.loads(board.path.read_text())
        packages = {text[key]["package"] for key in ("firmware", "start") if text.get(key, {}).get("package")}
        assert all(package in script for package in packages), (board.name, packages)


def test_the_model_is_read_from_a_file_too(native, tmp_path, own_build_dir):
    path = tmp_path / "m.tvit"
    path.write_bytes(small_model().file)
    assert flash(native, path, NO_FIRMWARE).model.signature == read_model(small_model().file).signature
