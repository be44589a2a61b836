# SPDX-License-Identifier: Apache-2.0
"""The board that Espressif's QEMU is: found among QEMUs of the same name, started from the flash image of the chip."""

import contextlib
import json

import pytest
from board_programs import small_model

from tvhil.boards import board_facts, flash, idf_build, load_board, start, tools
from tvhil.boards.flash_plan import board_partitions
from tvhil.boards.partitions import parse_partition_image, partition_image
from tvhil.boards.start import RunningBoard
from tvhil.boards.tools import find_espressif_qemu
from tvhil.errors import MissingToolError
from tvhil.link import LinkClient, LinkClosedError, LinkTimeouts
from tvhil.link.transports import LoopbackTransport

LISTS = "#!/bin/sh\n[ \"$2\" = help ] && printf 'Supported machines are:\\n%s  a machine\\n' {machine} && exit\n"
TELLS = LISTS + "printf '%s\\n' \"$@\" > {told}\nexec sleep 60\n"


@pytest.fixture
def qemus(tmp_path, monkeypatch):
    """Makes QEMUs: in the PATH, and in the tools folder of ESP-IDF by version."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("IDF_TOOLS_PATH", str(tmp_path / "idf"))
    monkeypatch.delenv("TVHIL_QEMU", raising=False)

    def make(machine, version=None, text=LISTS):
        folder = tmp_path / "bin" if version is None else tmp_path / f"idf/tools/qemu-xtensa/{version}/qemu/bin"
        folder.mkdir(parents=True, exist_ok=True)
        program = folder / "qemu-system-xtensa"
        program.write_text(text.format(machine=machine, told=tmp_path / "told"))
        program.chmod(0o755)
        tools._knows_machine.cache_clear()
        return str(program)

    return make


def find():
    return find_espressif_qemu("qemu-system-xtensa", "esp32s3", "qemu-esp32s3")


def test_the_newest_of_the_tools_of_esp_idf_is_taken_before_the_path(qemus):
    in_path = qemus("esp32s3")
    assert find() == in_path
    qemus("esp32s3", "esp_develop_9.0.0")
    newest = qemus("esp32s3", "esp_develop_9.2.2")
    assert find() == newest


def test_a_qemu_of_the_distribution_is_passed_over(qemus):
    qemus("kc705-nommu")
    with pytest.raises(MissingToolError, match=r"no qemu-system-xtensa that knows the machine esp32s3.*TVHIL_QEMU"):
        find()
    (fact,) = board_facts([load_board("qemu-esp32s3")])
    assert (fact.found, fact.needed_for) == (None, "board qemu-esp32s3")


def test_the_one_that_is_named_is_the_only_one_tried(qemus, monkeypatch):
    qemus("esp32s3", "esp_develop_9.2.2")
    monkeypatch.setenv("TVHIL_QEMU", qemus("kc705-nommu"))
    with pytest.raises(MissingToolError):
        find()
    monkeypatch.setenv("TVHIL_QEMU", qemus("esp32s3"))
    assert find().endswith("bin/qemu-system-xtensa")


@pytest.fixture
def board(tmp_path, monkeypatch):
    """The board, with a firmware where the build leaves it."""
    monkeypatch.setenv("TVHIL_BUILD_DIR", str(tmp_path / "build"))
    board = load_board("qemu-esp32s3")
    folder = board.build_dir / f"idf-{idf_build._digest(board)}"
    folder.mkdir(parents=True)
    (folder / "bootloader.bin").write_bytes(b"\xe9 boot loader")
    (folder / "partition-table.bin").write_bytes(partition_image(board_partitions(board)))
    (folder / "tvhil.bin").write_bytes(b"\xe9 firmware")
    return board


def test_the_flash_image_is_the_chips_whole_flash(board):
    image = flash(board, small_model())
    content = image.flash.read_bytes()
    assert len(content) == 16 << 20
    assert content[:13] == b"\xe9 boot loader"
    assert parse_partition_image(content[0x8000:0x9000]) == board_partitions(board)
    assert content[0x10000:0x1000A] == b"\xe9 firmware"
    assert content[0x110000:].startswith(small_model().file)
    assert set(content[0x110000 + small_model().file_bytes :]) == {0xFF}
    assert not flash(board, small_model()).fresh


def test_it_is_started_with_its_psram_and_the_image_as_flash_that_stays_as_it_is(board, qemus, tmp_path):
    qemus("esp32s3", "esp_develop_9.2.2", TELLS)
    image = flash(board, small_model())
    with start(board, image) as running:
        for _ in range(500):
            if (tmp_path / "told").exists() and (told := (tmp_path / "told").read_text().split("\n"))[-1] == "":
                break
            running.transport.read(0.01)
    assert told[told.index("-M") + 1] == "esp32s3"
    assert told[told.index("-m") + 1] == f"{8 << 20}B"
    assert f"file={image.flash},if=mtd,format=raw,snapshot=on" in told
    assert any(word.startswith("socket,id=link,fd=") for word in told)
    assert json.dumps(told).count("nic") == 1


# Writes a window of bytes one by one, and takes no notice of those that its socket does not take, as esp32_uart.c does.
WRITES = (
    LISTS
    + r"""exec python3 - "$@" << 'END'
import contextlib, os, re, sys
link = int(re.search(r"fd=(\d+)", " ".join(sys.argv))[1])
os.set_blocking(link, False)
for _ in range(4096):
    with contextlib.suppress(BlockingIOError):
        os.write(link, b"x")
END
"""
)


def test_its_line_keeps_a_window_of_bytes_that_come_one_by_one_before_anybody_reads(board, qemus):
    qemus("esp32s3", "esp_develop_9.2.2", WRITES)
    with start(board, flash(board, small_model())) as running:
        assert running._process.wait(30) == 0
        got = b""
        with contextlib.suppress(LinkClosedError):
            while data := running.transport.read(1):
                got += data
    assert got == b"x" * 4096


def test_its_handshake_is_as_patient_as_the_board_file_says(board, monkeypatch):
    given = []
    monkeypatch.setattr(LinkClient, "connect", lambda client: given.append(client.timeouts.connect))
    RunningBoard(board, LoopbackTransport(bytes)).connect()
    RunningBoard(board, LoopbackTransport(bytes)).connect(LinkTimeouts(connect=3))
    assert given == [board.serial.patience, 3]
    assert board.serial.patience > LinkTimeouts().connect
