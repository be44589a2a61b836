# SPDX-License-Identifier: Apache-2.0
"""Serial ports that could be a board's, told by the USB ids in its board file."""

from __future__ import annotations

import os
from dataclasses import dataclass

from serial.tools import list_ports as pyserial_ports

from tvhil.boards.board import Board, list_boards
from tvhil.errors import NoBoardError, SeveralBoardsError, UsageError


@dataclass(frozen=True)
class Port:
    """A serial port of this machine.

    Attributes:
        device: its path or name.
        usb_id: "VID:PID" in small hexadecimal digits, empty where it is not on USB.
        serial_number: of the USB device, empty where it has none.
        description: what the device calls itself.
        boards: that it could be.
        may_open: whether this user may.
    """

    device: str
    usb_id: str
    serial_number: str
    description: str
    boards: tuple[str, ...]
    may_open: bool


def list_ports(boards: list[Board] | None = None) -> list[Port]:
    """Every serial port of this machine, with the boards that it could be; all boards that have a file by default."""
    known = list_boards([]) if boards is None else boards
    ports = []
    for info in sorted(pyserial_ports.comports(), key=lambda one: one.device):
        usb_id = f"{info.vid:04x}:{info.pid:04x}" if info.vid is not None and info.pid is not None else ""
        matching = tuple(board.name for board in known if board.usb is not None and usb_id in board.usb.ids)
        ports.append(
            Port(
                info.device,
                usb_id,
                info.serial_number or "",
                " ".join(part for part in (info.manufacturer, info.product) if part) or info.description or "",
                matching,
                os.access(info.device, os.R_OK | os.W_OK),
            )
        )
    return ports


def find_port(board: Board, port: str | None = None) -> str:
    """The port of a board.

    Args:
        board: which one.
        port: what the user named: a device or URL, taken as it is, or the serial number of a USB device.

    Raises:
        NoBoardError: there is none.
        SeveralBoardsError: there are several and none was named.
        UsageError: the board is never on a port of this machine.
    """
    if port is not None:
        named = [one.device for one in list_ports([board]) if one.serial_number and one.serial_number == port]
        return named[0] if named else port
    if board.usb is None or not board.usb.ids:
        raise UsageError(f"{board.name} is on a port: name it with --port (a serial device, or rfc2217://host:port)")
    found = [one for one in list_ports([board]) if one.boards]
    if not found:
        raise NoBoardError(
            f"no {board.name} found (USB {', '.join(board.usb.ids)}): plug it in with a cable that carries data, not "
            "only power; or name its port with --port (`tvhil boards --ports` lists them)"
        )
    if len(found) > 1:
        choices = ", ".join(one.device + (f" ({one.serial_number})" if one.serial_number else "") for one in found)
        raise SeveralBoardsError(f"{len(found)} ports could be {board.name}: {choices}; name one with --port")
    return found[0].device
