# SPDX-License-Identifier: Apache-2.0
"""Flashing an ESP32-S3 with esptool itself, against a double of the chip that speaks the loader's protocol."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import serial
from board_programs import small_model
from esptool_double import ESP32C3, EsptoolDouble, Faults

from tvhil.boards import FlashPart, board, esptool_flash, flash_board, flash_plan, idf_build, load_board, plan_flash
from tvhil.boards.flash_plan import board_partitions, flash_image
from tvhil.boards.partitions import partition_image
from tvhil.cli import main
from tvhil.errors import (
    BadFlashError,
    BoardLostError,
    ExitCode,
    FlashTooSmallError,
    NoAnswerError,
    NoBoardError,
    NoPermissionError,
    PortInUseError,
    UsageError,
    WrongChipError,
)


@pytest.fixture(autouse=True)
def own_build_dir(tmp_path, monkeypatch):
    """Nothing is kept; esptool gives up soon."""
    monkeypatch.setenv("TVHIL_BUILD_DIR", str(tmp_path / "build"))
    settings = tmp_path / "esptool.cfg"
    settings.write_text("[esptool]\ntimeout = 0.4\nreset_delay = 0.01\nconnect_attempts = 1\n")
    monkeypatch.setenv("ESPTOOL_CFGFILE", str(settings))
    monkeypatch.setattr(esptool_flash, "_CONNECT_ATTEMPTS", 2)
    return tmp_path / "build"


@pytest.fixture
def esp32s3():
    return load_board("esp32s3")


def app_image(payload: bytes, entry: int = 0x4037_0000) -> bytes:
    """An image as ESP-IDF makes it: header, extended header, one segment, checksum, SHA-256.

    Source: esptool's documentation, "Firmware Image Format".
    """
    payload = payload.ljust(-(-len(payload) // 4) * 4, b"\0")
    header = struct.pack("<BBBBI", 0xE9, 1, 2, 0x4F, entry)
    extended = struct.pack("<B3xHBHHI1x", 0xEE, 9, 0, 0, 0xFFFF, 0)[:15] + b"\1"  # chip 9, with a SHA-256
    image = header + extended + struct.pack("<II", 0x3FC8_8000, len(payload)) + payload
    checksum = 0xEF
    for byte in payload:
        checksum ^= byte
    image += b"\0" * (15 - len(image) % 16) + bytes([checksum])
    return image + hashlib.sha256(image).digest()


@pytest.fixture
def firmware(esp32s3, own_build_dir):
    """Three images where the build leaves them."""
    folder = esp32s3.build_dir / f"idf-{idf_build._digest(esp32s3)}"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(1)
    (folder / "bootloader.bin").write_bytes(app_image(noise.bytes(9000)))
    (folder / "partition-table.bin").write_bytes(partition_image(board_partitions(esp32s3)))
    (folder / "tvhil.bin").write_bytes(app_image(noise.bytes(40_000)))
    return idf_build.built_firmware(esp32s3)


def part(name: str, offset: int, content: bytes, tmp_path) -> FlashPart:
    path = tmp_path / f"{name}.bin"
    path.write_bytes(content)
    return FlashPart(name, offset, 1 << 20, path, content)


@pytest.fixture
def parts(tmp_path):
    """Two parts, the first compressible."""
    return [part("firmware", 0x10000, b"tvhil" * 2000, tmp_path), part("model", 0x110000, os.urandom(50_000), tmp_path)]


def holds(double: EsptoolDouble, one: FlashPart) -> bool:
    return double.flash[one.offset : one.offset + len(one.content)] == one.content


# --- what works ------------------------------------------------------------------------------------------------


def test_everything_is_written_and_verified_and_the_second_time_nothing(esp32s3, firmware):
    seen = []
    parts = plan_flash(esp32s3, small_model(), firmware)
    with EsptoolDouble() as double:
        first = flash_board(esp32s3, parts, double.port, progress=lambda one, done: seen.append((one.name, done)))
        assert [one.name for one in first.written] == ["boot loader", "partition table", "firmware", "model"]
        assert all(holds(double, one) for one in parts)
        assert (first.chip, first.flash_bytes, first.baud) == ("ESP32-S3", 16 << 20, esp32s3.serial.flash_rates[0])
        writes = len(double.writes)
        second = flash_board(esp32s3, parts, double.port)
        assert second.written == ()
        assert second.unchanged == tuple(parts)
        assert len(double.writes) == writes
    finished = dict(seen)
    assert finished == {one.name: len(one.content) for one in parts}


def test_a_changed_model_rewrites_nothing_else(esp32s3, parts, tmp_path):
    other = part("model", 0x110000, os.urandom(60_000), tmp_path / "..")
    with EsptoolDouble() as double:
        for one in parts:
            double.flash[one.offset : one.offset + len(one.content)] = one.content
        done = flash_board(esp32s3, [parts[0], other], double.port)
        assert done.written == (other,)
        assert {offset for offset, _ in double.writes} == {0x110000}
        assert holds(double, other)
        assert holds(double, parts[0])


def test_the_boot_rom_alone_writes_over_a_socket(esp32s3, parts):
    with EsptoolDouble(over_socket=True) as double:
        done = flash_board(esp32s3, parts, double.port.replace("socket://", "tcp://"), stub=False, baud=115200)
        assert done.written == tuple(parts)
        assert all(holds(double, one) for one in parts)


def test_a_dry_run_on_a_port_compares_and_writes_nothing(esp32s3, parts):
    with EsptoolDouble() as double:
        double.flash[0x10000 : 0x10000 + len(parts[0].content)] = parts[0].content
        done = flash_board(esp32s3, parts, double.port, dry_run=True)
        assert (done.unchanged, done.written) == ((parts[0],), (parts[1],))
        assert double.writes == []


# --- what goes wrong -------------------------------------------------------------------------------------------


def test_another_chip_is_refused_before_anything_is_written(esp32s3, parts):
    with EsptoolDouble(chip=ESP32C3) as double:
        with pytest.raises(WrongChipError, match="this is an ESP32-C3, esp32s3 has an ESP32-S3") as caught:
            flash_board(esp32s3, parts, double.port)
        assert double.writes == []
    assert caught.value.exit_code == ExitCode.WRONG_CHIP


def test_a_4_mb_flash_for_a_5_mb_model_is_refused_before_anything_is_written(esp32s3, tmp_path):
    model = part("model", 0x110000, bytes(5 << 20), tmp_path)
    with EsptoolDouble(flash_size=4 << 20) as double:
        with pytest.raises(FlashTooSmallError, match=r"4 MB of flash, the model ends at 6,356,992 bytes") as caught:
            flash_board(esp32s3, [model], double.port)
        assert double.writes == []
    assert caught.value.exit_code == ExitCode.FLASH_TOO_SMALL


def test_a_silent_port_is_told_with_what_to_press(esp32s3, parts):
    with EsptoolDouble(faults=Faults(silent=True)) as double, pytest.raises(NoAnswerError, match="hold BOOT") as caught:
        flash_board(esp32s3, parts, double.port)
    assert caught.value.exit_code == ExitCode.NO_ANSWER
    assert "only charges" in str(caught.value)


def test_one_lost_answer_is_repeated_by_esptool_or_by_a_slower_try(esp32s3, parts):
    with EsptoolDouble(faults=Faults(at_block=1, lose_sync=1)) as double:
        done = flash_board(esp32s3, parts, double.port)
        assert all(holds(double, one) for one in parts)
    assert done.baud in esp32s3.serial.flash_rates


def test_a_line_too_bad_for_the_highest_rate_falls_back(esp32s3, parts):
    notices = []
    with EsptoolDouble(faults=Faults(highest_baud=500_000)) as double:
        done = flash_board(esp32s3, parts, double.port, notice=notices.append)
        assert all(holds(double, one) for one in parts)
    assert done.baud == 460_800
    assert len(notices) == 1
    assert "trying again with 460800 baud" in notices[0]


def test_where_the_stub_does_not_start_the_boot_rom_writes(esp32s3, parts, monkeypatch):
    monkeypatch.setattr(esptool_flash, "_PATIENCE", 2.0)
    slow = dataclasses.replace(esp32s3, serial=board.SerialLine(flash_rates=(115200,)))
    notices = []
    with EsptoolDouble(faults=Faults(no_stub=True)) as double:
        flash_board(slow, parts, double.port, notice=notices.append)
        assert all(holds(double, one) for one in parts)
    assert "the boot ROM alone" in notices[0]


@pytest.mark.parametrize(("fault", "message"), [("unplug", "was unplugged"), ("reset", "was lost while writing")])
def test_a_board_lost_in_the_middle_is_told_and_the_next_try_completes(esp32s3, parts, fault, message):
    with EsptoolDouble(faults=Faults(at_block=1, **{fault: True})) as double:
        with pytest.raises(BoardLostError, match=message) as caught:
            flash_board(esp32s3, parts, double.port, baud=115200)
        assert caught.value.exit_code == ExitCode.BOARD_LOST
        assert not holds(double, parts[1])
        half = bytes(double.flash)
    with EsptoolDouble() as again:
        again.flash[:] = half
        flash_board(esp32s3, parts, again.port)
        assert all(holds(again, one) for one in parts)


def test_a_flash_that_does_not_hold_what_was_written_is_told_with_its_place(esp32s3, parts):
    with EsptoolDouble(faults=Faults(bad_flash=0x110100)) as double:
        with pytest.raises(BadFlashError, match=r"the flash at 0x00110000 does not hold what was written") as caught:
            flash_board(esp32s3, parts, double.port)
        assert caught.value.exit_code == ExitCode.BAD_FLASH


def test_a_port_in_use_is_told(esp32s3, parts):
    with EsptoolDouble() as double, serial.Serial(double.port, exclusive=True):
        with pytest.raises(PortInUseError, match="another program has it open") as caught:
            flash_board(esp32s3, parts, double.port)
        assert caught.value.exit_code == ExitCode.PORT_IN_USE


@pytest.mark.parametrize(
    ("port", "error"),
    [
        ("/dev/no-such-port", NoBoardError),
        ("/etc/passwd", NoBoardError),
        ("socket://127.0.0.1:1", NoBoardError),
        ("carrier-pigeon://roof", UsageError),
    ],
)
def test_what_is_no_port_is_told_in_one_line(esp32s3, parts, port, error):
    with pytest.raises(error) as caught:
        flash_board(esp32s3, parts, port)
    assert str(caught.value).startswith(f"{port}: ")
    assert "\n" not in str(caught.value)


def test_a_port_without_permission_is_told_with_the_group(esp32s3):
    driver = esptool_flash._Esptool(esp32s3, "/dev/ttyACM0", None)
    said = ["Could not open /dev/ttyACM0, the port is busy or doesn't exist.", "([Errno 13] could not open port ...)"]
    error = driver._failure(2, said, "flash-id", 40)
    assert isinstance(error, NoPermissionError)
    assert error.exit_code == ExitCode.NO_PERMISSION
    assert "dialout" in str(error)


def test_a_line_over_the_network_gets_more_time_for_an_answer_unless_the_user_has_set_it(esp32s3, monkeypatch):
    own = os.environ["ESPTOOL_CFGFILE"]
    remote, local = (esptool_flash._Esptool(esp32s3, port, None) for port in ("socket://lab:5555", "/dev/ttyACM0"))
    assert remote._environment()["ESPTOOL_CFGFILE"] == own
    monkeypatch.delenv("ESPTOOL_CFGFILE")
    assert "ESPTOOL_CFGFILE" not in local._environment()
    assert Path(remote._environment()["ESPTOOL_CFGFILE"]).read_text() == "[esptool]\ntimeout = 30\n"


# --- what lies where -------------------------------------------------------------------------------------------


def esptool(*arguments: object) -> str:
    done = subprocess.run([sys.executable, "-m", "esptool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_flash_image_is_the_one_that_esptool_merges_byte_for_byte(esp32s3, firmware, tmp_path):
    parts = plan_flash(esp32s3, small_model(), firmware)
    places = [text for one in parts for text in (hex(one.offset), one.path)]
    merged = tmp_path / "merged.bin"
    esptool("--chip", "esp32s3", "merge-bin", "--output", merged, "--pad-to-size", "16MB", *places)
    assert merged.read_bytes() == flash_image(esp32s3, parts)


def test_esptools_image_reader_finds_the_firmware_valid_at_its_place_in_the_flash_image(esp32s3, firmware, tmp_path):
    image = flash_image(esp32s3, plan_flash(esp32s3, small_model(), firmware))
    for name, offset, room in (("boot", 0, 0x8000), ("app", 0x10000, 0x100000)):
        path = tmp_path / f"{name}.bin"
        path.write_bytes(image[offset : offset + room])
        told = esptool("--chip", "esp32s3", "image-info", path)
        assert told.count("(valid)") == 2, "checksum and SHA-256"
        assert "invalid" not in told


def test_what_is_larger_than_its_partition_is_refused_with_the_numbers(esp32s3, firmware):
    firmware.app.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(Exception, match=r"the firmware has 1,048,577 bytes, esp32s3 has 1,048,576 for it"):
        plan_flash(esp32s3, None, firmware)


def test_a_firmware_with_another_partition_table_is_refused(esp32s3, firmware):
    firmware.table.write_bytes(partition_image(board_partitions(load_board("esp32s3-n8"))))
    with pytest.raises(Exception, match="built with another partition table"):
        plan_flash(esp32s3, small_model(), firmware)


def test_the_model_alone_is_one_part_at_its_partition(esp32s3):
    (model,) = plan_flash(esp32s3, small_model(), None, model_only=True)
    assert (model.name, model.offset, model.content) == ("model", 0x110000, small_model().file)
    assert flash_plan.SECTOR == 0x1000


# --- the command -----------------------------------------------------------------------------------------------


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "m.tvit"
    path.write_bytes(small_model().file)
    return path


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def test_a_dry_run_says_what_would_be_written_where_without_a_firmware(model_file, tmp_path, capsys):
    out = tmp_path / "r.json"
    assert run("flash", "--board", "esp32s3", "--model", model_file, "--dry-run", "--json", out) == 0
    parts = {row["name"]: row for row in json.loads(out.read_text())["parts"]}
    assert [(row["offset"], row["state"]) for row in parts.values()] == [
        (0, "not built here"), (0x8000, "would be written"),
        (0x10000, "not built here"), (0x110000, "would be written"),
    ]  # fmt: skip
    assert parts["model"]["sha256"] == hashlib.sha256(small_model().file).hexdigest()
    assert parts["partition table"]["bytes"] == 0xC00
    told = capsys.readouterr()
    assert "0x110000" in told.out
    assert "has not been built here: `tvhil build --board esp32s3`" in told.err
    assert len(told.err.splitlines()) == 1


def test_a_dry_run_with_a_firmware_tells_sizes_and_hashes_of_all_parts(model_file, firmware, tmp_path, capsys):
    out = tmp_path / "r.json"
    assert run("flash", "--board", "esp32s3", "--model", model_file, "--dry-run", "--json", out) == 0
    parts = json.loads(out.read_text())["parts"]
    assert [row["state"] for row in parts] == ["would be written"] * 4
    for row in parts:
        content = Path(row["file"]).read_bytes()
        assert (row["bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    told = capsys.readouterr()
    assert all(row["sha256"] in "".join(told.out.split()) for row in parts)
    assert told.err == ""


def test_the_command_flashes_and_tells_what_it_did(model_file, firmware, tmp_path, capsys):
    out = tmp_path / "r.json"
    with EsptoolDouble() as double:
        command = ["flash", "--board", "esp32s3", "--model", model_file, "--port", double.port, "--json", out]
        assert run(*command) == 0
        assert {row["state"] for row in json.loads(out.read_text())["parts"]} == {"written"}
        assert run(*command, "--model-only") == 0
        report = json.loads(out.read_text())
    assert [(row["name"], row["state"]) for row in report["parts"]] == [("model", "already there")]
    assert (report["written"], report["chip"]) == (False, "ESP32-S3")
    assert "Traceback" not in capsys.readouterr().err


def test_options_of_ports_are_refused_for_a_board_that_boots_from_a_file(model_file, capsys):
    assert run("flash", "--board", "native", "--model", model_file, "--model-only") == ExitCode.USAGE
    assert "--model-only is for boards on a port" in capsys.readouterr().err
