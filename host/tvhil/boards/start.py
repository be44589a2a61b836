# SPDX-License-Identifier: Apache-2.0
"""Start a board that is a process of this machine, and open the link to one that is not."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tvhil import lx7sim
from tvhil.boards.board import Board
from tvhil.boards.build import no_firmware
from tvhil.boards.flash import BootImage
from tvhil.boards.ports import find_port
from tvhil.boards.tools import find_espressif_qemu, find_program, keep_newest, program_version
from tvhil.errors import BoardError, UsageError
from tvhil.link import LinkClient, LinkTimeouts, Transport, open_transport
from tvhil.link.errors import LinkClosedError
from tvhil.link.transports import SocketTransport

_END_PATIENCE = 2.0  # seconds until a process that does not end is killed
_LOGS_KEPT = 16
_PR_SET_PDEATHSIG = 1

Launched = tuple[socket.socket, subprocess.Popen[bytes], Path]  # our end of the line, the process, its log


class RunningBoard:
    """A board with an open line to it; ended by `close` or as a context.

    Attributes:
        board: which one.
        transport: the line.
        log: what the emulator printed; None for a board on a port.
    """

    def __init__(
        self,
        board: Board,
        transport: Transport,
        process: subprocess.Popen[bytes] | None = None,
        log: Path | None = None,
        launch: Callable[[], Launched] | None = None,
    ) -> None:
        self.board, self.transport, self.log = board, transport, log
        self._process = process
        self._launch = launch
        self._client: LinkClient | None = None

    def connect(
        self, timeouts: LinkTimeouts | None = None, seed: int | None = None, log: Callable[[str], None] | None = None
    ) -> LinkClient:
        """The link to the board, with a session open. Closed with the board.

        Args:
            timeouts: how patient to be; None for the patience of the board file.
            seed, log: as `LinkClient` takes them.

        Raises:
            LinkError: the board does not answer.
            BoardError: its process ended.
        """
        timeouts = timeouts or LinkTimeouts(connect=self.board.serial.patience)
        self._client = LinkClient(self.transport, timeouts, seed, log, self.board.serial.link_rates)
        try:
            self._client.connect()
        except LinkClosedError:
            self.check()
            raise
        return self._client

    @property
    def details(self) -> dict[str, str]:
        """What the board cannot know of itself: program and version of its emulator."""
        start = self.board.start
        if self._process is None or start is None or not start.version:
            return {}
        program = start.command[0]
        if start.machine:
            program = find_espressif_qemu(program, start.machine, self.board.name)
        return {"emulator": program_version([program, *start.version])}

    @property
    def client(self) -> LinkClient:
        """The link of `connect`."""
        return self._client if self._client is not None else self.connect()

    def check(self) -> None:
        """Tell why the board's process ended, if it did.

        Raises:
            BoardError: it ended; with the last line that it printed.
        """
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)  # it closes its end of the line before it is gone
        code = self._process.poll()
        if code is not None:
            how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
            raise BoardError(f"{self.board.name}: the emulator ended ({how}): {self._last_line()}; log: {self.log}")

    def restart(self) -> socket.socket:
        """End the process if it still runs, and start it again: our end of its new line.

        Raises:
            LinkClosedError: the board was closed, or is no process of ours.
        """
        if self._process is None or self._launch is None:
            raise LinkClosedError(f"{self.board.name}: the board is closed")
        _end(self._process)
        if self.log is not None:
            self.log.unlink(missing_ok=True)
        stream, self._process, self.log = self._launch()
        return stream

    def close(self) -> None:
        """End the process, give the line back. May be called twice."""
        process, self._process = self._process, None
        ended_by_itself = process is not None and process.poll() is not None
        self.transport.close()
        if process is None:
            return
        _end(process)
        if self.log is not None and not ended_by_itself:
            self.log.unlink(missing_ok=True)

    def __enter__(self) -> RunningBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _last_line(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines() if self.log is not None else []
        except OSError:
            lines = []
        return lines[-1] if lines else "it printed nothing"


def start(board: Board, image: BootImage | None = None, port: str | None = None) -> RunningBoard:
    """Start an emulator, or open the port of a board that runs already.

    Args:
        board: which one.
        image: from `flash`; needed for boards that are started here.
        port: serial device, URL, or serial number of a USB device; a board that runs elsewhere, whatever its kind. By
            default the one port that could be that of a board on USB.

    Raises:
        MissingToolError: the emulator is not installed.
        BoardError: it does not start, or the port cannot be opened.
        UsageError: no port, or no image.
    """
    if port is not None or (board.start is None and board.usb is not None):
        return RunningBoard(board, open_transport(find_port(board, port), board.serial.baud))
    if board.start is None:
        raise UsageError(f"{board.name} is on a port: name it with --port (a serial device, or rfc2217://host:port)")
    if board.firmware is None and board.idf is None:
        raise UsageError(no_firmware(board))
    if image is None:
        raise UsageError(f"{board.name} needs a flash image to start from")
    return start_program(board, image.firmware.path, image.flash)


def start_program(board: Board, program: Path, flash_image: Path) -> RunningBoard:
    """Start a board's emulator with any program: `start`, tests and bare-metal tools."""

    def launch() -> Launched:
        ours, theirs = _tcp_pair() if board.start is not None and board.start.machine else socket.socketpair()
        try:
            with theirs:
                return ours, *_launch(board, program, flash_image, theirs.fileno())
        except BaseException:
            ours.close()
            raise

    stream, process, log = launch()
    transport = SocketTransport(stream, board.name, lambda: running.restart())
    running = RunningBoard(board, transport, process, log, launch)
    return running


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, for the UART of Espressif's QEMU.

    It writes every byte by itself and drops what the socket does not take (`uart_transmit` in its esp32_uart.c). A
    socket pair of Linux takes 278 such writes, a quarter of our largest frame, until we have read them; TCP, megabytes.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, peer = server.accept()
    if peer != ours.getsockname():  # another process of this machine was faster
        ours.close()
        theirs.close()
        raise BoardError("a stranger connected to the line of the emulator: start it again")
    for end in (ours, theirs):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


def _launch(board: Board, program: Path, flash_image: Path, link: int) -> tuple[subprocess.Popen[bytes], Path]:
    assert board.start is not None
    values: dict[str, object] = {"firmware": program, "flash": flash_image, "fd": link}
    if board.cycle_model is not None:
        values |= {"lx7sim": lx7sim.program(), "cycle_model": board.cycle_model}
    command = [board.expand(argument, **values) for argument in board.start.command]
    if board.start.machine:
        command[0] = find_espressif_qemu(command[0], board.start.machine, board.name)
    elif board.start.package:
        command[0] = find_program(command[0], board.start.package, board.name)
    over_stdio = not any("{fd}" in argument for argument in board.start.command)
    board.build_dir.mkdir(parents=True, exist_ok=True)
    keep_newest(board.build_dir, "emulator-*.log", _LOGS_KEPT)
    log = board.build_dir / f"emulator-{os.getpid()}-{time.monotonic_ns()}.log"
    with log.open("wb") as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=link if over_stdio else subprocess.DEVNULL,
                stdout=link if over_stdio else errors,
                stderr=errors,
                pass_fds=[link],
                start_new_session=True,  # Ctrl-C is for us: we end the board in order
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        except OSError as error:
            raise BoardError(f"{board.name}: cannot start {command[0]}: {error.strerror}") from None
    return process, log


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """Even when we are killed, no emulator is left behind: it ends with the thread that started it (prctl(2)). Runs
    between fork and exec."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
