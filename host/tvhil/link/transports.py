# SPDX-License-Identifier: Apache-2.0
"""Ways to carry bytes to a board: serial ports (also rfc2217://), TCP, a process of ours, a test double."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import serial

from tvhil.link.errors import LinkClosedError, LinkError

_READ = 65536
_WRITE_TIMEOUT = 10.0
_SETTLING = 0.02  # seconds until both ends of a serial line have changed their rate


class Transport(ABC):
    """A stream of bytes in both directions.

    Attributes:
        name: how messages call it.
        seconds_per_byte: that the line takes, as far as it is known.
        baud: rate of the line, 0 where it has none.
    """

    name: str
    seconds_per_byte: float = 0.0
    baud: int = 0

    @abstractmethod
    def read(self, timeout: float) -> bytes:
        """What has arrived, at least one byte, waiting up to `timeout` seconds; empty after that.

        Raises:
            LinkClosedError: the other side is gone.
        """

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send all bytes.

        Raises:
            LinkClosedError: the other side is gone.
            LinkError: it takes no bytes any more.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the port back. May be called twice."""

    def reopen(self) -> None:
        """Open the line again after it was closed or lost; a board that is a process of ours may be started again.

        Raises:
            LinkClosedError: it cannot be opened, now or at all.
        """
        raise LinkClosedError(f"{self.name}: this line cannot be opened again")

    def set_baud(self, baud: int) -> None:  # noqa: B027 -- most lines have none
        """Change the rate of the line; nothing to do where it has none.

        Raises:
            LinkError: it does not know this rate.
        """

    def fileno(self) -> int:
        """Descriptor to wait for bytes on, -1 where there is none."""
        return -1

    def clock(self) -> float:
        """Seconds on the clock that timeouts count on."""
        return time.monotonic()

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SerialTransport(Transport):
    """Anything pyserial opens: a device, a pty, `rfc2217://host:port`."""

    def __init__(self, url: str, baud: int = 115200) -> None:
        self.name = url
        self.baud = baud
        self.seconds_per_byte = 10 / baud  # start and stop bit
        self._gone = f"{url}: the port is gone (cable unplugged, or the emulator ended)"
        self._open()

    def _open(self) -> None:
        url, baud = self.name, self.baud
        try:
            # A short timeout: to change it later would set up the port again. Two hosts would share the bytes.
            local = {} if "://" in url else {"exclusive": True, "write_timeout": _WRITE_TIMEOUT}
            self._port = serial.serial_for_url(url, baud, timeout=0.02, **local)
        except (serial.SerialException, OSError, ValueError) as error:
            raise LinkClosedError(f"{url}: cannot open the port: {_reason(error)}") from error
        self._waitable = False
        with contextlib.suppress(Exception):
            self._waitable = self._port.fileno() >= 0

    def read(self, timeout: float) -> bytes:
        """As `Transport.read`."""
        deadline = time.monotonic() + timeout
        try:
            if self._waitable:
                ready, _, _ = select.select([self._port], [], [], max(0.0, timeout))
                if not ready:
                    return b""
                data: bytes = self._port.read(max(1, self._port.in_waiting))
                return data
            while True:
                data = self._port.read(max(1, self._port.in_waiting))
                if data or time.monotonic() >= deadline:
                    return data
        except (serial.SerialException, OSError, ValueError, TypeError) as error:
            raise LinkClosedError(self._gone) from error

    def write(self, data: bytes) -> None:
        """As `Transport.write`."""
        try:
            self._port.write(data)
        except serial.SerialTimeoutException as error:
            raise LinkError(f"{self.name}: the board takes no bytes (is its firmware running?)") from error
        except (serial.SerialException, OSError, ValueError, TypeError) as error:
            raise LinkClosedError(self._gone) from error

    def set_baud(self, baud: int) -> None:
        """As `Transport.set_baud`."""
        if baud == self.baud:
            return
        try:
            self._port.flush()
            self._port.baudrate = baud
        except (serial.SerialException, OSError, ValueError, TypeError) as error:
            raise LinkError(f"{self.name}: this port does not go up to {baud:,} baud") from error
        self.baud = baud
        self.seconds_per_byte = 10 / baud
        time.sleep(_SETTLING)

    def close(self) -> None:
        """As `Transport.close`."""
        with contextlib.suppress(Exception):
            self._port.close()

    def reopen(self) -> None:
        """As `Transport.reopen`: the port of the same name."""
        self.close()
        self._open()

    def fileno(self) -> int:
        """As `Transport.fileno`."""
        return int(self._port.fileno()) if self._waitable else -1


class SocketTransport(Transport):
    """A connected stream socket.

    Args:
        stream: connected.
        name: how messages call it.
        again: makes another one when the line is opened again; may raise a `LinkClosedError`.
    """

    def __init__(self, stream: socket.socket, name: str, again: Callable[[], socket.socket] | None = None) -> None:
        self.name = name
        self._again = again
        self._take(stream)

    def _take(self, stream: socket.socket) -> None:
        self._stream = stream
        self._stream.setblocking(False)
        self._arrived = b""  # while writing

    @classmethod
    def connect(cls, host: str, port: int, timeout: float = 5.0) -> SocketTransport:
        """Open a TCP connection."""
        name = f"tcp://{host}:{port}"

        def connected() -> socket.socket:
            try:
                stream = socket.create_connection((host, port), timeout)
            except OSError as error:
                raise LinkClosedError(f"{name}: cannot connect: {error}") from error
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return stream

        return cls(connected(), name, connected)

    def read(self, timeout: float) -> bytes:
        """As `Transport.read`."""
        if self._arrived:
            data, self._arrived = self._arrived, b""
            return data
        try:
            ready, _, _ = select.select([self._stream], [], [], max(0.0, timeout))
            return self._receive() if ready else b""
        except (OSError, ValueError) as error:
            raise LinkClosedError(f"{self.name}: the connection is gone ({error})") from error

    def _receive(self) -> bytes:
        data = self._stream.recv(_READ)
        if not data:
            raise LinkClosedError(f"{self.name}: the board closed the connection")
        return data

    def write(self, data: bytes) -> None:
        """As `Transport.write`. Takes what arrives meanwhile: the board may not read on before it has answered."""
        left = memoryview(data)
        deadline = time.monotonic() + _WRITE_TIMEOUT
        try:
            while left:
                with contextlib.suppress(BlockingIOError):
                    left = left[self._stream.send(left) :]
                    continue
                patience = deadline - time.monotonic()
                readable, writable, _ = select.select([self._stream], [self._stream], [], max(0.0, patience))
                if readable:
                    self._arrived += self._receive()
                elif not writable:
                    raise LinkError(f"{self.name}: the board takes no bytes (is its firmware running?)")
        except (OSError, ValueError) as error:
            raise LinkClosedError(f"{self.name}: the connection is gone ({error})") from error

    def close(self) -> None:
        """As `Transport.close`."""
        self._stream.close()

    def reopen(self) -> None:
        """As `Transport.reopen`."""
        if self._again is None:
            super().reopen()
            return
        self._stream.close()
        self._take(self._again())

    def fileno(self) -> int:
        """As `Transport.fileno`."""
        return self._stream.fileno()


class ProcessTransport(SocketTransport):
    """A board that is a process of ours: started with one end of a socket pair, ended with the transport.

    The arguments are those of the program; `{fd}` stands for the number of its socket.
    """

    def __init__(self, arguments: Sequence[str], name: str | None = None) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [argument.replace("{fd}", str(theirs.fileno())) for argument in arguments]
            try:
                self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            except OSError as error:
                ours.close()
                raise LinkClosedError(f"{arguments[0]}: cannot start: {error}") from error
        super().__init__(ours, name or arguments[0])

    def close(self) -> None:
        """As `Transport.close`."""
        super().close()
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class LoopbackTransport(Transport):
    """A board that is a function from the bytes it gets to the bytes it sends, on a clock that only waiting moves."""

    def __init__(self, device: Callable[[bytes], bytes], name: str = "loopback") -> None:
        self.name = name
        self._device = device
        self._arrived = bytearray()
        self._now = 0.0
        self._closed = False

    def read(self, timeout: float) -> bytes:
        """As `Transport.read`."""
        if self._closed:
            raise LinkClosedError(f"{self.name}: closed")
        if not self._arrived:
            self._now += max(0.0, timeout)
        data = bytes(self._arrived)
        self._arrived.clear()
        return data

    def write(self, data: bytes) -> None:
        """As `Transport.write`."""
        if self._closed:
            raise LinkClosedError(f"{self.name}: closed")
        self._arrived += self._device(data)

    def close(self) -> None:
        """As `Transport.close`."""
        self._closed = True

    def clock(self) -> float:
        """Seconds spent waiting."""
        return self._now


def _reason(error: Exception) -> str:
    """Why a port does not open, without the layers that have wrapped it."""
    number = getattr(error, "errno", None)
    if number in (errno.EAGAIN, errno.EBUSY):
        return "another program has it open"
    return os.strerror(number) if number else str(error)


def open_transport(url: str, baud: int = 115200) -> Transport:
    """Open `socket://host:port` (`tcp://` is the same), or what else pyserial understands: a device path, `rfc2217://`."""
    scheme, separator, place = url.partition("://")
    if not separator or scheme not in ("tcp", "socket"):
        return SerialTransport(url, baud)
    host, _, port = place.partition("?")[0].rstrip("/").rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise LinkError(f"{url}: expected {scheme}://HOST:PORT")
    return SocketTransport.connect(host.strip("[]"), int(port))
