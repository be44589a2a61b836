# SPDX-License-Identifier: Apache-2.0
"""A bad line between any host and any board: a pty or TCP port whose bytes go to a board through a `FaultyTransport`.

A cable that is pulled out closes the host's side. A TCP host connects again; behind a pty a new one takes the place,
and the symbolic link by which the host knows it is moved over, as udev does with /dev/serial/by-id.
"""

from __future__ import annotations

import os
import pty
import select
import socket
import tty
from abc import ABC, abstractmethod
from pathlib import Path

from tvhil.errors import InputError
from tvhil.link.errors import LinkClosedError
from tvhil.link.faults import FaultyTransport

_CHUNK = 65536
_TICK = 0.005  # seconds between two looks at a line that cannot be waited on


class HostSide(ABC):
    """Where hosts connect.

    Attributes:
        name: what a host opens.
    """

    name: str

    @abstractmethod
    def fileno(self) -> int:
        """Descriptor that becomes readable when a host is there or has sent something."""

    @abstractmethod
    def read(self) -> bytes:
        """What the host has sent; empty when it has gone, or has just come."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """To the host; lost where there is none."""

    @abstractmethod
    def unplug(self) -> None:
        """Take the line away from the host, which may open it again."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""


class TcpSide(HostSide):
    """A TCP port of this machine; 0 for any that is free."""

    def __init__(self, port: int = 0) -> None:
        try:
            self._listener = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"port {port}: cannot listen: {error.strerror}") from None
        self.name = f"socket://127.0.0.1:{self._listener.getsockname()[1]}"
        self._host: socket.socket | None = None

    def fileno(self) -> int:
        """As `HostSide.fileno`."""
        return (self._host or self._listener).fileno()

    def read(self) -> bytes:
        """As `HostSide.read`."""
        if self._host is None:
            self._host, _ = self._listener.accept()
            self._host.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return b""
        try:
            data = self._host.recv(_CHUNK)
        except OSError:
            data = b""
        if not data:
            self.unplug()
        return data

    def write(self, data: bytes) -> None:
        """As `HostSide.write`."""
        if self._host is not None:
            try:
                self._host.sendall(data)
            except OSError:
                self.unplug()

    def unplug(self) -> None:
        """As `HostSide.unplug`."""
        if self._host is not None:
            self._host.close()
            self._host = None

    def close(self) -> None:
        """As `HostSide.close`."""
        self.unplug()
        self._listener.close()


class PtySide(HostSide):
    """A pty behind a symbolic link."""

    def __init__(self, link: Path) -> None:
        self.name = str(link)
        self._link = link
        if link.exists() and not link.is_symlink():
            raise InputError(f"{link} is there already and is no symbolic link: choose another name")
        self._open()

    def _open(self) -> None:
        # Our own descriptor of the other end keeps the pty alive, and its settings raw, while no host has it open.
        self._ours, self._theirs = pty.openpty()
        tty.setraw(self._theirs)
        part = self._link.with_name(f".{self._link.name}.{os.getpid()}")
        part.symlink_to(os.ttyname(self._theirs))
        part.replace(self._link)

    def fileno(self) -> int:
        """As `HostSide.fileno`."""
        return self._ours

    def read(self) -> bytes:
        """As `HostSide.read`."""
        try:
            return os.read(self._ours, _CHUNK)
        except OSError:
            return b""

    def write(self, data: bytes) -> None:
        """As `HostSide.write`. Without a host the pty fills up; the rest is lost."""
        while data:
            _, ready, _ = select.select([], [self._ours], [], 1.0)
            if not ready:
                return
            data = data[os.write(self._ours, data) :]

    def unplug(self) -> None:
        """As `HostSide.unplug`."""
        os.close(self._ours)
        os.close(self._theirs)
        self._open()

    def close(self) -> None:
        """As `HostSide.close`."""
        self._link.unlink(missing_ok=True)
        os.close(self._ours)
        os.close(self._theirs)


def pump(side: HostSide, line: FaultyTransport) -> None:
    """Carry bytes between hosts and the board until the board's line is gone.

    Raises:
        LinkClosedError: it is gone, and not because of a fault on purpose.
    """
    waitable = line.fileno() >= 0
    while True:
        ready, _, _ = select.select([side] + [line] * waitable, [], [], _TICK)
        try:
            if side in ready and (data := side.read()):
                line.write(data)
            if data := line.read(0.0):
                side.write(data)
        except LinkClosedError:
            if line.plugged:
                raise
            side.unplug()
            line.reopen()
