# SPDX-License-Identifier: Apache-2.0
"""The client and the native board, a process built with sanitizers, over sockets, ptys and TCP."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import serial
from link_boards import environment, native_board, tiny_model
from serial.rfc2217 import PortManager

from tvhil.link import (
    BoardFaultError,
    LinkClient,
    LinkClosedError,
    LinkError,
    LinkTimeoutError,
    LinkTimeouts,
    RemoteError,
    open_transport,
)
from tvhil.link.faults import Corrupter, FaultyTransport
from tvhil.link.messages import CounterUnit, Layout, Region, TestFault
from tvhil.link.transports import ProcessTransport
from tvhil.packing.format import Status
from tvhil.packing.reader import read_model
from tvhil.prediction.predictor import Predictor

OPTIONS = ("--arena", "1048576", "--stack", "1048576", "--die-with-parent")


@pytest.fixture(autouse=True)
def quiet_sanitizers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS"):
        monkeypatch.setenv(name, environment()[name])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tvit"
    path.write_bytes(tiny_model())
    return path


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(stack: ExitStack, *options: str) -> ProcessTransport:
    command = [str(native_board(sanitized=True)), "--fd", "{fd}", *OPTIONS, *options]
    return stack.enter_context(ProcessTransport(command, "native"))  # type: ignore[return-value]


def spawn(stack: ExitStack, *options: str) -> tuple[subprocess.Popen[str], str]:
    """Start a board that prints where it listens; the process and that line."""
    process = subprocess.Popen([native_board(sanitized=True), *OPTIONS, *options], stdout=subprocess.PIPE, text=True)
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    return process, process.stdout.readline().strip()


def run_images(client: LinkClient, count: int) -> None:
    model = read_model(tiny_model())
    images = np.random.default_rng(0).integers(0, 256, (count, *model.info.input_shape), np.uint8)
    for image, logits in zip(images, Predictor(model).run(images), strict=True):
        result = client.infer(image.tobytes())
        assert (np.frombuffer(client.read_output(result, 20), "<i2") == logits).all()


def test_the_native_board_tells_what_it_is_and_runs_a_model_exactly(stack: ExitStack, model: Path) -> None:
    client = LinkClient(start(stack, "--model", str(model)))
    client.connect()
    info = client.info()
    assert (info.board, info.counter_unit, info.latency_unit) == ("native", CounterUnit.NANOSECONDS, "seconds")
    assert info.details["sanitizers"] == "address,undefined"
    assert {memory.name for memory in info.memories} == {"arena", "model"}
    run_images(client, 20)
    memory = client.memory()
    told = client.model_info()
    assert (told.layout, told.cores, told.kernels) == (Layout.ROWS, 1, "portable")
    assert (info.cores, info.layouts) == (1, (Layout.ROWS,))
    assert memory.arena_used == memory.arena_planned == told.arena_bytes >= read_model(tiny_model()).plan.arena_bytes
    assert 0 < memory.stack_used < memory.stack_bytes == 1 << 20
    assert memory.model_bytes == len(tiny_model())
    assert client.statistics.retries == client.statistics.crc_errors == 0


def test_a_pty_serves_one_host_after_another_through_pyserial(stack: ExitStack, model: Path) -> None:
    _, path = spawn(stack, "--pty", "--model", str(model))
    for _ in range(2):
        with LinkClient(open_transport(path)) as client:
            client.connect()
            run_images(client, 3)
            pattern = bytes(range(256)) * 4
            assert client.echo(pattern) == pattern  # every byte passes a raw line


def test_a_pty_can_have_one_host_at_a_time(stack: ExitStack) -> None:
    _, path = spawn(stack, "--pty")
    with open_transport(path), pytest.raises(LinkClosedError, match="cannot open"):
        open_transport(path)


@pytest.mark.parametrize("scheme", ["tcp", "socket"])
def test_a_tcp_port_serves_one_host_after_another(stack: ExitStack, model: Path, scheme: str) -> None:
    _, address = spawn(stack, "--tcp", "0", "--model", str(model))
    for _ in range(2):
        with LinkClient(open_transport(f"{scheme}://{address}")) as client:
            client.connect()
            run_images(client, 3)


class PtySerial(serial.Serial):
    """A pty has no modem lines; an RFC 2217 server asks for them."""

    cts = dsr = cd = True
    ri = False

    def _update_dtr_state(self) -> None:
        pass

    def _update_rts_state(self) -> None:
        pass

    def _update_break_state(self) -> None:
        pass


class Rfc2217Server:
    """One host at a time on a serial port, as `esp_rfc2217_server` and labgrid's exporters serve it."""

    def __init__(self, path: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rfc2217://127.0.0.1:{self._listener.getsockname()[1]}"
        self._serial = PtySerial(path, timeout=0)
        self._running = True
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        host, _ = self._listener.accept()
        with host:
            host.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.write = host.sendall  # where the manager sends its negotiation
            manager = PortManager(self._serial, self)
            while self._running:
                ready, _, _ = select.select([host, self._serial], [], [], 0.05)
                if host in ready:
                    data = host.recv(4096)
                    if not data:
                        return
                    self._serial.write(b"".join(manager.filter(data)))
                if self._serial in ready:
                    host.sendall(b"".join(manager.escape(self._serial.read(4096))))

    def close(self) -> None:
        self._running = False
        self._thread.join()
        self._serial.close()
        self._listener.close()


def test_a_board_is_reached_over_the_network_by_rfc_2217(stack: ExitStack, model: Path) -> None:
    _, path = spawn(stack, "--pty", "--model", str(model), "--window", "2048")
    server = Rfc2217Server(path)
    stack.callback(server.close)
    with LinkClient(open_transport(server.url)) as client:
        client.connect()
        run_images(client, 3)
        pattern = bytes(range(256)) * 4  # 0xff is an escape there
        assert client.echo(pattern) == pattern


def test_a_host_that_dies_in_the_middle_of_a_transfer_leaves_a_board_that_serves_the_next(
    stack: ExitStack, model: Path
) -> None:
    _, address = spawn(stack, "--tcp", "0", "--model", str(model), "--model-ram", "1048576")
    for _ in range(3):
        with open_transport(f"tcp://{address}") as line:
            client = LinkClient(line)
            client.connect()
            line.write(b"\0\xff\x05" + bytes(range(1, 200)))  # half a frame
    with LinkClient(open_transport(f"tcp://{address}")) as client:
        client.connect()
        run_images(client, 1)


def test_hundreds_of_faults_over_a_real_pty_lose_no_image(stack: ExitStack, model: Path) -> None:
    _, path = spawn(stack, "--pty", "--model", str(model))
    line = FaultyTransport(open_transport(path), Corrupter(1, 1 / 300), Corrupter(2, 1 / 300))
    with LinkClient(line, LinkTimeouts(least_repeat=0.02), seed=3) as client:
        client.connect()
        while line.faults < 300:
            run_images(client, 20)
        assert client.statistics.retries > 50
    assert len(line.outward.counts) == len(line.inward.counts) == 7


def test_a_crash_is_reported_with_its_place_and_a_reset_brings_the_board_back(stack: ExitStack, model: Path) -> None:
    client = LinkClient(start(stack, "--model", str(model), "--test-faults"))
    client.connect()
    run_images(client, 1)
    client.provoke(TestFault.INVALID_LOAD)
    with pytest.raises(BoardFaultError, match="SIGSEGV") as report:
        client.info()
    assert (report.value.fault.cause, report.value.fault.address) == (signal.SIGSEGV, 16)
    assert report.value.fault.pc != 0
    with pytest.raises(BoardFaultError):
        client.connect(reset_after_fault=False)
    client.connect()
    run_images(client, 1)


def test_a_crash_is_reported_again_when_the_first_report_was_lost(stack: ExitStack) -> None:
    transport = start(stack, "--test-faults")
    client = LinkClient(transport)
    client.connect()
    client.provoke(TestFault.INVALID_LOAD)
    while transport.read(0.2):  # nobody is listening
        pass
    with pytest.raises(BoardFaultError):
        client.info()


def test_a_model_truncated_while_it_is_mapped_is_a_reported_fault(stack: ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "big.tvit"
    path.write_bytes(tiny_model(6, mlp_dim=2048))
    client = LinkClient(start(stack, "--model", str(path)))
    client.connect()
    size = client.model_info().file_bytes
    assert size > 8192
    os.truncate(path, 4096)
    with pytest.raises(BoardFaultError, match="SIGBUS"):
        client.read(Region.MODEL, 0, size)
    with pytest.raises(RemoteError) as refusal:
        client.connect()
        client.model_info()
    assert refusal.value.runtime_status == Status.BAD_SIZE


def test_a_board_that_hangs_is_reported_after_the_time_allowed(stack: ExitStack) -> None:
    transport = start(stack, "--test-faults")
    client = LinkClient(transport, LinkTimeouts(request=0.3))
    client.connect()
    client.provoke(TestFault.HANG)
    with pytest.raises(LinkTimeoutError, match=r"INFO was not answered for 0\.3 s"):
        client.info()
    transport.process.kill()


def test_faults_are_provoked_only_where_the_board_is_armed(stack: ExitStack) -> None:
    client = LinkClient(start(stack))
    client.connect()
    with pytest.raises(RemoteError, match="not offered by this board"):
        client.provoke(TestFault.INVALID_LOAD)


def test_a_process_that_was_killed_is_a_closed_line(stack: ExitStack) -> None:
    transport = start(stack)
    client = LinkClient(transport)
    client.connect()
    transport.process.kill()
    with pytest.raises(LinkClosedError):
        client.info()


def test_a_board_whose_pty_is_gone_is_a_closed_line(stack: ExitStack) -> None:
    process, path = spawn(stack, "--pty")
    client = LinkClient(open_transport(path))
    client.connect()
    process.kill()
    process.wait()
    with pytest.raises(LinkClosedError, match="the port is gone"):
        client.info()


def test_the_process_ends_with_its_host(stack: ExitStack) -> None:
    transport = start(stack)
    LinkClient(transport).connect()
    transport.close()
    assert transport.process.returncode == 0


@pytest.mark.parametrize("content", [b"", b"TVIT", bytes(100), b"\xff" * 4096])
def test_a_file_that_is_no_model_is_refused_by_the_board_and_told_to_the_host(
    stack: ExitStack, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "no.tvit"
    path.write_bytes(content)
    client = LinkClient(start(stack, "--model", str(path)))
    client.connect()
    with pytest.raises(RemoteError) as refusal:
        client.model_info()
    assert refusal.value.runtime_status in (Status.BAD_MAGIC, Status.BAD_SIZE)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "--pty, --tcp PORT and --fd N"),
        (["--nonsense"], 2, "unknown option"),
        (["--tcp", "70000"], 2, "not a port"),
        (["--tcp"], 2, "not a number"),
        (["--fd", "-1"], 2, "not a number"),
        (["--fd", "77"], 2, "--fd"),
        (["--pty", "--arena", "12k"], 2, "not a number"),
        (["--pty", "--stack", "100"], 2, "65536"),
        (["--pty", "--model", "missing.tvit"], 3, "missing.tvit"),
        (["--pty", "--model", "/"], 3, "not a file"),
        (["--pty", "--counter", "sundial"], 2, "time or instructions"),
    ],
)
def test_wrong_options_of_the_native_board_are_one_line_and_an_exit_code(
    options: list[str], code: int, message: str
) -> None:
    done = subprocess.run([native_board(True), *options], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_program_that_cannot_be_started_is_named() -> None:
    with pytest.raises(LinkError, match="/no/such/program: cannot start"):
        ProcessTransport(["/no/such/program"])
