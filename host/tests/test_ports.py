# SPDX-License-Identifier: Apache-2.0
"""Finding the port of a board by its USB ids."""

import json
import sys
import types

import pytest

from tvhil.boards import find_port, list_ports, load_board, ports, start
from tvhil.boards.board import BoardFileError
from tvhil.cli import main
from tvhil.errors import ExitCode, NoBoardError, SeveralBoardsError, UsageError


def usb(device, vid, pid, number="", product="USB JTAG/serial debug unit"):
    return types.SimpleNamespace(
        device=device, vid=vid, pid=pid, serial_number=number, manufacturer="Espressif", product=product,
        description="",
    )  # fmt: skip


S3 = usb("/dev/ttyACM0", 0x303A, 0x1001, "7C:DF:A1:00:00:01")
OTHER_S3 = usb("/dev/ttyACM1", 0x303A, 0x1001, "7C:DF:A1:00:00:02")
BRIDGE = usb("/dev/ttyUSB0", 0x10C4, 0xEA60, "0001", "CP2102N")
MODEM = usb("/dev/ttyUSB9", 0x12D1, 0x1001, "", "modem")
ON_BOARD = types.SimpleNamespace(
    device="/dev/ttyS0", vid=None, pid=None, serial_number=None, manufacturer=None, product=None, description="ttyS0"
)


@pytest.fixture
def plugged(monkeypatch):
    """Says which ports there are."""

    def plug(*found):
        monkeypatch.setattr(ports.pyserial_ports, "comports", lambda: list(found))

    return plug


def test_the_one_board_that_is_plugged_in_is_found(plugged):
    plugged(ON_BOARD, MODEM, S3)
    assert find_port(load_board("esp32s3")) == "/dev/ttyACM0"
    plugged(BRIDGE)
    assert find_port(load_board("esp32s3")) == "/dev/ttyUSB0"


def test_no_board_is_told_with_the_ids_and_the_cable(plugged):
    plugged(ON_BOARD, MODEM)
    with pytest.raises(NoBoardError, match=r"no esp32s3 found \(USB 303a:1001.* not only power") as caught:
        find_port(load_board("esp32s3"))
    assert caught.value.exit_code == ExitCode.NO_BOARD


def test_two_boards_are_told_with_their_serial_numbers(plugged):
    plugged(S3, OTHER_S3)
    with pytest.raises(SeveralBoardsError, match=r"2 ports could be esp32s3: .*ACM0 \(7C:.*:01\).*ACM1") as caught:
        find_port(load_board("esp32s3"))
    assert caught.value.exit_code == ExitCode.SEVERAL_BOARDS


def test_a_port_is_named_by_device_url_or_serial_number(plugged):
    plugged(S3, OTHER_S3)
    board = load_board("esp32s3")
    assert find_port(board, "7C:DF:A1:00:00:02") == "/dev/ttyACM1"
    assert find_port(board, "/dev/ttyACM7") == "/dev/ttyACM7"
    assert find_port(board, "rfc2217://lab:4000") == "rfc2217://lab:4000"


def test_a_board_without_usb_ids_needs_its_port_named(plugged):
    plugged(S3)
    with pytest.raises(UsageError, match="--port"):
        find_port(load_board("native"))


def test_ports_are_listed_with_the_boards_that_they_could_be(plugged, capsys, tmp_path):
    plugged(MODEM, S3, ON_BOARD)
    listed = {port.device: port for port in list_ports()}
    assert "esp32s3" in listed["/dev/ttyACM0"].boards
    assert "xiao-esp32s3" in listed["/dev/ttyACM0"].boards
    assert "qemu-esp32s3" not in listed["/dev/ttyACM0"].boards
    assert listed["/dev/ttyUSB9"].boards == listed["/dev/ttyS0"].boards == ()
    out = tmp_path / "p.json"
    assert main(["boards", "--ports", "--json", str(out)]) == ExitCode.OK
    assert json.loads(out.read_text())["ports"][0]["usb_id"] == "303a:1001"
    assert "7C:DF:A1:00:00:01" in capsys.readouterr().out


def test_a_board_port_that_may_not_be_opened_is_told_with_the_group(plugged, monkeypatch, capsys):
    plugged(S3)
    monkeypatch.setattr(ports.os, "access", lambda *_: False)
    assert main(["boards", "--ports"]) == ExitCode.OK
    assert "/dev/ttyACM0: no permission to open it: sudo usermod --append --groups dialout" in capsys.readouterr().err


def test_no_port_at_all_is_told(plugged, capsys):
    plugged()
    assert main(["boards", "--ports"]) == ExitCode.OK
    assert "a cable that carries data" in capsys.readouterr().err


def test_a_board_on_usb_is_opened_where_it_is_found(plugged, monkeypatch):
    plugged(S3)
    opened = []
    monkeypatch.setattr(
        sys.modules["tvhil.boards.start"], "open_transport", lambda url, baud: opened.append((url, baud))
    )
    start(load_board("esp32s3"))
    assert opened == [("/dev/ttyACM0", 115200)]


@pytest.mark.parametrize("wrong", ['"303A:1001"', '"303a1001"', '"303a:1001:1"'])
def test_a_malformed_usb_id_is_refused(tmp_path, wrong):
    path = tmp_path / "esp32s3.toml"
    path.write_text(load_board("esp32s3").path.read_text().replace('"303a:1001"', wrong))
    with pytest.raises(BoardFileError, match=r"\[usb\] ids: .* is not VID:PID"):
        load_board(path)
