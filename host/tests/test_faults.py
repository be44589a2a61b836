# SPDX-License-Identifier: Apache-2.0
"""Faults made on purpose: bad lines, pulled cables, board resets, killed processes. Every image survives them."""

import contextlib
import itertools
import json
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from link_boards import native_board, tiny_model

from tvhil.boards import flash, load_board, start
from tvhil.cli import main
from tvhil.errors import ExitCode, UsageError
from tvhil.evaluation.journal import read_journal
from tvhil.evaluation.link_device import LinkDevice
from tvhil.evaluation.session import open_device
from tvhil.link import LinkClient, LinkClosedError, LinkTimeouts, open_transport
from tvhil.link.fault_proxy import PtySide, TcpSide, pump
from tvhil.link.faults import ALL_KINDS, FaultBudget, FaultKind, FaultPlan, PacedTransport
from tvhil.link.messages import TestFault
from tvhil.link.transports import LoopbackTransport, ProcessTransport
from tvhil.packing import pack_vit, read_model
from tvhil.packing.random_vit import random_vit
from tvhil.prediction import Predictor
from tvhil.prediction.memory import arena_bytes

FAST = "flip+drop+duplicate+insert+repeat+delay+disconnect+reset"  # the others cost a time-out each


@pytest.fixture(scope="module")
def model():
    return read_model(pack_vit(random_vit(21, patch_size=2, depth=1)))


@pytest.fixture(scope="module")
def model_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.tvit"
    path.write_bytes(model.file)
    return path


def images_of(model, count):
    return np.random.default_rng(0).integers(0, 256, (count, *model.info.input_shape), np.uint8)


def assert_exact(device, model, count):
    images = images_of(model, count)
    for image, logits in zip(images, Predictor(model).run(images), strict=True):
        assert device.run(image).output[0].tolist() == logits.tolist()


def test_a_plan_is_read_and_what_is_left_out_has_a_default():
    plan = FaultPlan.parse("seed=3,count=10,every=500,baud=9600,kinds=flip+reset")
    assert plan == FaultPlan(3, 10, 500, (FaultKind.FLIP, FaultKind.RESET), 9600)
    assert FaultPlan.parse("", image_bytes=3072) == FaultPlan(every=6144)
    assert FaultPlan().kinds == ALL_KINDS == tuple(FaultKind)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kinds=flop", "did you mean 'flip'"),
        ("kinds=", "known: flip"),
        ("count=many", "'count=many' is not understood"),
        ("seeds=1", "'seeds=1' is not understood"),
        ("every=1", "2 bytes at least"),
    ],
)
def test_a_plan_that_is_not_understood_is_refused_with_the_part(text, message):
    with pytest.raises(UsageError, match=message):
        FaultPlan.parse(text)


@pytest.mark.parametrize("kind", FaultKind)
def test_a_native_board_survives_every_kind_of_fault(kind, model):
    count = 4 if kind in (FaultKind.STALL, FaultKind.TRUNCATE) else 40
    plan = FaultPlan(seed=5, count=count, every=2000, kinds=(kind,))
    with open_device(load_board("native"), model, faults=plan.around) as device:
        while sum(device.injected_faults().values()) < count:
            assert_exact(device, model, 5)
        assert device.injected_faults() == {kind: count}
        assert device.memory()["arena"]["measured"] == arena_bytes(model, "portable")


def test_an_evaluation_under_faults_of_all_kinds_has_every_image_once_and_exact(model_file, tmp_path, capsys):
    out = tmp_path / "r.json"
    arguments = ["run-eval", "digits", "--board", "native", "--model", model_file, "--limit", 40, "--json", out]
    assert main([str(a) for a in [*arguments, "--faults", "seed=2,count=60"]]) == ExitCode.OK
    report = json.loads(out.read_text())
    assert report["logits"]["bit_exact"] == report["dataset"]["images"] == 40
    assert 50 <= report["faults"]["injected"] <= 60
    assert len(report["faults"]["kinds"]) == len(FaultKind)
    assert report["faults"]["images_struck"] > 5
    rows = [row for row in read_journal(tmp_path / "r.journal.jsonl")[1] if "image" in row]
    assert sorted(row["image"] for row in rows) == list(range(40))
    assert "faults on purpose" in capsys.readouterr().out


def test_the_same_seed_strikes_the_same_bytes_and_boards_have_schedules_of_their_own():
    def struck(seed, number):
        plan, data = FaultPlan(seed, 50, 20, (FaultKind.FLIP,)), bytes(range(256))
        line = plan.around(LoopbackTransport(lambda sent: sent), number)
        out = b""
        for _ in range(8):
            line.write(data)
            out += line.read(0.0)
        assert line.faults == 50
        return out

    assert struck(1, 0) == struck(1, 0)
    assert len({struck(1, 0), struck(1, 1), struck(2, 0)}) == 3


def test_several_lines_share_one_budget():
    budget, plan = FaultBudget(30), FaultPlan(1, 30, 10, (FaultKind.DROP,))
    lines = [plan.around(LoopbackTransport(lambda sent: sent), number, budget) for number in range(2)]
    for line in lines * 4:
        line.write(bytes(100))
        line.read(0.0)
    assert sum(line.faults for line in lines) == 30
    assert all(line.faults for line in lines)


def test_a_cable_that_is_out_takes_and_gives_nothing_until_it_is_in_again():
    line = FaultPlan(0, 1, 2, (FaultKind.DISCONNECT,)).around(LoopbackTransport(lambda sent: sent))
    with pytest.raises(LinkClosedError, match="the cable is out"):
        for _ in range(100):
            line.write(bytes(10))
    for action in (lambda: line.write(b"x"), lambda: line.read(0.0)):
        with pytest.raises(LinkClosedError):
            action()
    line.reopen()
    assert line.read(0.0) == b""
    line.write(b"hello")
    assert line.read(0.0) == b"hello"


def test_a_paced_line_takes_the_time_of_its_baud_rate():
    line = PacedTransport(LoopbackTransport(lambda sent: sent), 10_000)
    line.write(b"123456789\0")  # ten bytes there, ten back: 1 ms each
    found = b""
    while len(found) < 10:
        found += line.read(1.0)
    assert found == b"123456789\0"
    assert line.clock() == pytest.approx(0.02)


def test_a_process_that_is_killed_again_and_again_is_started_again(model):
    board, notices = load_board("native"), []
    with start(board, flash(board, model)) as running:
        device = LinkDevice(running.connect(), model, notices.append)
        for _ in range(3):
            assert_exact(device, model, 2)
            running._process.kill()
        assert_exact(device, model, 2)
    assert len(notices) == 3
    assert all("repeating the image" in notice for notice in notices)


def test_a_board_that_hangs_is_started_again_after_the_time_allowed(model):
    with open_device(load_board("native"), model, timeouts=LinkTimeouts(request=0.3, run=0.3)) as device:
        device.client.provoke(TestFault.HANG)
        assert_exact(device, model, 2)


def test_a_board_that_crashes_at_every_image_is_given_up(model, monkeypatch):
    with open_device(load_board("native"), model) as device:
        runs = itertools.count()

        def crash(*_):
            next(runs)
            device.client.provoke(TestFault.INVALID_LOAD)
            device.client.info()

        monkeypatch.setattr(device, "_run", crash)
        with pytest.raises(Exception, match="crashed"):
            device.run(images_of(model, 1)[0])
        assert next(runs) == 3


@pytest.fixture
def tcp_board():
    arguments = ["--tcp", "0", "--arena", "1048576", "--model-ram", "1048576", "--die-with-parent"]
    process = subprocess.Popen([native_board(), *arguments], stdout=subprocess.PIPE, text=True)
    yield f"tcp://{process.stdout.readline().strip()}"
    process.kill()
    process.wait()
    process.stdout.close()


def serve(side, line):
    def body():
        with contextlib.suppress(LinkClosedError, OSError, ValueError):  # closed by the test
            pump(side, line)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("kind", ["pty", "tcp"])
def test_any_board_can_be_put_behind_the_proxy_and_its_uploaded_model_comes_back_after_a_reset(
    kind, tcp_board, tmp_path
):
    model = read_model(tiny_model())
    side = PtySide(tmp_path / "port") if kind == "pty" else TcpSide()
    plan = FaultPlan.parse(f"seed=4,count=60,every=400,kinds={FAST}")
    line = plan.around(open_transport(tcp_board))
    line.armed = False
    serve(side, line)
    with LinkClient(open_transport(side.name)) as client:
        client.connect()
        client.upload_model(model.file)
        device = LinkDevice(client, model, upload=True)
        line.armed = True
        while line.faults < 60:
            assert_exact(device, model, 5)
        assert {FaultKind.DISCONNECT, FaultKind.RESET} <= set(line.counts)
    line.close()


def test_the_proxy_does_not_replace_a_file_by_its_link(tmp_path):
    path = tmp_path / "thesis"
    path.write_text("keep me")
    assert main(["fault-proxy", "--port", "socket://127.0.0.1:1", "--pty", str(path)]) == ExitCode.BOARD
    with pytest.raises(Exception, match="choose another name"):
        PtySide(path)
    assert path.read_text() == "keep me"
    assert main(["fault-proxy", "--port", "x"]) == ExitCode.USAGE


def test_a_port_that_does_not_come_back_is_given_up_after_the_time_allowed(model, monkeypatch):
    monkeypatch.setattr("tvhil.evaluation.link_device.REOPEN_SECONDS", 0.3)
    arguments = [str(native_board()), "--fd", "{fd}", "--arena", "1048576"]
    transport = ProcessTransport(arguments, "usb")  # cannot be opened again
    with LinkClient(transport) as client:
        client.connect()
        device = LinkDevice(client, model)
        transport.process.kill()
        with pytest.raises(LinkClosedError, match="cannot be opened again"):
            device.run(images_of(model, 1)[0])


def test_the_proxy_command_serves_until_it_is_interrupted_and_tells_what_it_did(tcp_board, tmp_path):
    out, link = tmp_path / "proxy.json", tmp_path / "port"
    command = [sys.executable, "-m", "tvhil.cli", "fault-proxy", "--port", tcp_board, "--pty", link, "--json", out]
    plan = ["--faults", "seed=1,count=20,every=50,kinds=flip"]
    proxy = subprocess.Popen([*map(str, command), *plan], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert str(link) in proxy.stderr.readline()
    with LinkClient(open_transport(str(link))) as client:
        client.connect()
        for _ in range(20):
            assert client.echo(bytes(range(100))) == bytes(range(100))
    proxy.send_signal(signal.SIGINT)
    proxy.communicate(timeout=20)
    assert proxy.returncode == 0
    assert json.loads(out.read_text()) == {"faults": 20, "kinds": {"flip": 20}}
    assert not link.is_symlink()
