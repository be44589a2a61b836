# SPDX-License-Identifier: Apache-2.0
"""Images dealt to several boards: each has one row, whatever boards fail, and the report is that of one board."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from evaluation_fakes import FakeDevice, random_inputs, small_model
from link_boards import native_board
from test_link_native import Rfc2217Server

from tvhil.boards import load_board
from tvhil.cli import main
from tvhil.errors import BoardError, ExitCode, InputError, UsageError
from tvhil.evaluation import report as reports
from tvhil.evaluation.journal import Journal, read_journal
from tvhil.evaluation.run import Evaluation, StoppedError
from tvhil.packing import pack_vit
from tvhil.packing.random_vit import random_vit
from tvhil.prediction import Predictor
from tvhil.rack.dealing import CHECK_IMAGES, Rack
from tvhil.rack.pool import Slot, instances, ports, read_pool
from tvhil.runtime import device_dir

HEADER = {"model": "random", "board": "fake"}


@pytest.fixture(scope="module")
def native():
    return load_board("native")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.tvit"
    path.write_bytes(pack_vit(random_vit(21, patch_size=2, depth=1)))
    return path


def deal(path, board, devices, inputs, finished=None, fail_fast=False, **options):
    """Run a rack of devices in memory; an exception in the place of a device is a board that does not start."""

    @contextlib.contextmanager
    def open_slot(slot):
        device = devices[slot.name]
        if isinstance(device, Exception):
            raise device
        yield device

    notices = []
    model = small_model()
    with Journal.resume(path, HEADER) as journal:
        evaluation = Evaluation(model, Predictor(model), journal, fail_fast=fail_fast)
        slots = [Slot(name, board) for name in devices]
        summary = Rack(evaluation, slots, open_slot, notices.append, **options).run(inputs, finished)
    return summary, notices


def rows_of(path):
    return [row for row in read_journal(path)[1] if "image" in row]


def flip(run, outputs):
    outputs[-1].values[0, 0] ^= 1


def flip_from(first):
    return lambda run, outputs: flip(run, outputs) if run >= first else None


def good_and_bad(model, bad_from, **bad):
    """Two boards. The good one lets the other reach its run `bad_from`, however the threads are scheduled."""
    reached = threading.Event()
    return (
        FakeDevice(model, before=lambda run: run < CHECK_IMAGES or reached.wait(60)),
        FakeDevice(model, before=lambda run: run >= bad_from and reached.set(), **bad),
    )


def test_every_image_is_dealt_once_and_the_report_is_that_of_one_board(native, tmp_path):
    model = small_model()
    inputs = random_inputs(model, 50)
    found = {}
    for count in (1, 3):
        devices = {f"b{i}": FakeDevice(model) for i in range(count)}
        summary, notices = deal(tmp_path / str(count), native, devices, inputs)
        assert notices == []
        assert sorted(row["image"] for row in rows_of(tmp_path / str(count))) == list(range(50))
        assert sum(device.runs for device in devices.values()) == 50 + count * CHECK_IMAGES
        report = reports.empty_report()
        reports.fill_measured(report, summary)
        rack = report.pop("rack")
        assert rack["agree"] is True
        assert sum(board["images"] for board in rack["boards"]) == 50
        found[count] = report
    for key in ("logits", "accuracy", "memory"):
        assert found[1][key] == found[3][key]


def test_a_board_that_dies_is_quarantined_and_its_image_goes_to_another(native, tmp_path):
    model = small_model()
    good, dies = good_and_bad(model, CHECK_IMAGES + 3, dead_from=CHECK_IMAGES + 3)
    devices = {"good": good, "dies": dies}
    summary, notices = deal(tmp_path / "j", native, devices, random_inputs(model, 60))
    assert (summary.images, summary.bit_exact) == (60, 60)
    assert len(notices) == 1
    assert "dies is quarantined: the board stopped answering" in notices[0]
    assert "1 of 2 boards are left" in notices[0]
    report = reports.empty_report()
    reports.fill_measured(report, summary)
    good, dead = report["rack"]["boards"]
    assert (good["images"], good["quarantined"], dead["images"]) == (57, None, 3)
    assert "stopped answering" in dead["quarantined"]


def test_a_board_that_does_not_start_is_left_out(native, tmp_path):
    model = small_model()
    devices = {"absent": BoardError("no such port"), "good": FakeDevice(model)}
    summary, notices = deal(tmp_path / "j", native, devices, random_inputs(model, 5))
    assert summary.bit_exact == 5
    assert summary.boards["absent"] == {
        "name": "absent", "board": "native", "port": None, "images": 0, "quarantined": "no such port",
    }  # fmt: skip
    assert notices == ["absent is left out: no such port"]


def test_when_no_board_is_left_the_journal_keeps_what_is_done_and_one_board_can_finish(native, tmp_path):
    model = small_model()
    inputs = random_inputs(model, 30)
    devices = {f"b{i}": FakeDevice(model, dead_from=CHECK_IMAGES + 4) for i in range(2)}
    with pytest.raises(BoardError, match=r"no board of the rack is left: b0: .*; b1: "):
        deal(tmp_path / "j", native, devices, inputs)
    assert len(rows_of(tmp_path / "j")) == 8
    with Journal.resume(tmp_path / "j", HEADER) as journal:
        summary = Evaluation(model, Predictor(model), journal).run(FakeDevice(model), inputs)
    assert (summary.images, summary.bit_exact) == (30, 30)
    assert sorted(row["image"] for row in rows_of(tmp_path / "j")) == list(range(30))


def test_a_board_that_computes_something_else_than_the_others_gets_no_image(native, tmp_path):
    model = small_model()
    devices = {"odd": FakeDevice(model, flip), "a": FakeDevice(model), "b": FakeDevice(model)}
    summary, notices = deal(tmp_path / "j", native, devices, random_inputs(model, 20))
    assert summary.bit_exact == 20
    assert devices["odd"].runs == CHECK_IMAGES
    assert summary.boards_agree is False
    assert "something else than the other boards" in notices[0]


def test_boards_that_agree_with_each_other_but_not_with_the_prediction_go_on_and_their_mismatches_are_rows(
    native, tmp_path
):
    model = small_model()
    devices = {"a": FakeDevice(model, flip), "b": FakeDevice(model, flip)}
    summary, notices = deal(tmp_path / "j", native, devices, random_inputs(model, 8))
    assert (summary.images, summary.bit_exact, notices) == (8, 0, [])
    assert summary.first_divergence["image"] == "image 0"


@pytest.mark.parametrize("distrust", [False, True])
def test_a_board_that_goes_wrong_is_reported_or_on_request_distrusted(distrust, native, tmp_path):
    model = small_model()
    good, wrong = good_and_bad(model, CHECK_IMAGES + 5, corrupt=flip_from(CHECK_IMAGES + 5))
    devices = {"good": good, "wrong": wrong}
    summary, notices = deal(tmp_path / "j", native, devices, random_inputs(model, 80), distrust=distrust)
    assert summary.images == 80
    assert len(rows_of(tmp_path / "j")) == 80
    if distrust:
        assert summary.bit_exact == 80
        assert summary.boards["wrong"]["images"] == 5
        assert "not bit-exact" in notices[0]
    else:
        assert summary.bit_exact == 80 - (summary.boards["wrong"]["images"] - 5) < 80
        assert notices == []


def test_an_image_that_is_wrong_on_two_boards_is_a_mismatch_and_costs_one_board_only(native, tmp_path):
    model = small_model()
    devices = {f"b{i}": FakeDevice(model, flip_from(CHECK_IMAGES)) for i in range(3)}
    summary, notices = deal(tmp_path / "j", native, devices, random_inputs(model, 4), distrust=True)
    assert (summary.images, summary.bit_exact) == (4, 0)
    assert len(notices) == 2, "the third has nobody to repeat its images"


def test_fail_fast_stops_the_whole_rack(native, tmp_path):
    model = small_model()
    devices = {f"b{i}": FakeDevice(model, flip_from(CHECK_IMAGES + 2)) for i in range(2)}
    with pytest.raises(StoppedError, match="not bit-exact"):
        deal(tmp_path / "j", native, devices, random_inputs(model, 500), fail_fast=True)
    assert len(rows_of(tmp_path / "j")) < 20


def test_an_error_in_one_thread_ends_the_rack_and_comes_out(native, tmp_path):
    model = small_model()

    def finished(summary, row):
        if summary.images == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deal(
            tmp_path / "j", native, {f"b{i}": FakeDevice(model) for i in range(2)}, random_inputs(model, 500), finished
        )
    assert len(rows_of(tmp_path / "j")) == 10


def test_boards_with_different_models_are_refused(native, tmp_path):
    model = small_model()
    devices = {"a": FakeDevice(model), "b": FakeDevice(model, signature=small_model(5).signature)}
    with pytest.raises(BoardError, match="b runs another model than a"):
        deal(tmp_path / "j", native, devices, random_inputs(model, 4))


def test_boards_that_count_in_different_units_have_no_common_latency(native, tmp_path):
    model = small_model()
    devices = {"a": FakeDevice(model), "b": FakeDevice(model)}
    facts = devices["b"].facts()
    devices["b"].facts = lambda: type(facts)(facts.signature, "cycles", facts.build, facts.details)
    summary, notices = deal(tmp_path / "j", native, devices, random_inputs(model, 6))
    assert summary.measured_latency is None
    assert "cycles and instructions" in notices[0]


# Pool files


def test_a_pool_file_names_ports_and_instances(tmp_path):
    path = tmp_path / "pool.toml"
    path.write_text(
        '[[board]]\nboard = "native"\nport = "socket://h:1"\nname = "left"\n'
        '[[board]]\nboard = "native"\ninstances = 2\n[[board]]\nboard = "qemu-xtensa"\n'
    )
    slots = read_pool(path)
    assert [(slot.name, slot.board.name, slot.port) for slot in slots] == [
        ("left", "native", "socket://h:1"), ("native-1", "native", None), ("native-2", "native", None),
        ("qemu-xtensa", "qemu-xtensa", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected \[\[board\]\]"),
        ("x = 1", r"expected \[\[board\]\]"),
        ("board = 3", r"expected \[\[board\]\]"),
        ("[[board]", "pool.toml"),
        ('[[board]]\nport = "a"', "board 1: which one"),
        ('[[board]]\nboard = "native"\npotr = "a"', "did you mean 'port'"),
        ('[[board]]\nboard = "native"\ninstances = "two"', "instances must be a number"),
        ('[[board]]\nboard = "native"\ninstances = 0', "1 to 64 instances"),
        ('[[board]]\nboard = "native"\ninstances = 2\nport = "a"', "has no instances"),
        ('[[board]]\nboard = "nativ"', "did you mean 'native'"),
        ('[[board]]\nboard = "native"\nport = "a"\n[[board]]\nboard = "native"\nport = "a"', "there 2 times"),
        ('[[board]]\nboard = "native"\n[[board]]\nboard = "native"', "the name 'native' is there 2 times"),
    ],
)
def test_a_malformed_pool_file_is_refused_with_the_entry(text, message, tmp_path):
    path = tmp_path / "pool.toml"
    path.write_text(text)
    with pytest.raises((InputError, UsageError), match=message):
        read_pool(path)


def test_racks_that_make_no_sense_are_refused(native, model_file, tmp_path, capsys):
    with pytest.raises(UsageError, match="is there 2 times"):
        ports(native, ["a", "a"])
    with pytest.raises(UsageError, match="1 to 64"):
        instances(native, 65)
    base = ["run-eval", "digits", "--model", str(model_file)]
    for arguments, message in {
        ("--board", "native", "--boards", "2", "--port", "x"): "choose one",
        ("--board", "native", "--pool", "p.toml"): "leave --board out",
        ("--pool", str(tmp_path / "absent.toml")): "there is no board pool file",
        (): "which board?",
    }.items():
        assert main([*base, *arguments]) in (ExitCode.USAGE, ExitCode.BAD_INPUT)
        assert message in capsys.readouterr().err


# Real boards


def evaluate(model_file, out, *arguments):
    return main(["run-eval", "digits", "--model", str(model_file), "--json", str(out), *map(str, arguments)])


def same_figures(left, right, *also):
    left, right = json.loads(left.read_text()), json.loads(right.read_text())
    for key in ("model", "dataset", "logits", "accuracy", "memory", *also):
        assert left[key] == right[key], key
    return right


def test_three_processes_report_what_one_does(model_file, tmp_path):
    assert evaluate(model_file, tmp_path / "one.json", "--board", "native") == 0
    assert evaluate(model_file, tmp_path / "three.json", "--board", "native", "--boards", 3) == 0
    report = same_figures(tmp_path / "one.json", tmp_path / "three.json", "board")
    assert [board["name"] for board in report["rack"]["boards"]] == ["native-1", "native-2", "native-3"]
    assert sum(board["images"] for board in report["rack"]["boards"]) == 360
    assert sorted(row["image"] for row in rows_of(tmp_path / "three.journal.jsonl")) == list(range(360))


@pytest.mark.emulator
def test_two_emulators_report_what_one_does_to_the_instruction(model_file, tmp_path):
    from board_programs import missing_tools

    if missing_tools():
        pytest.skip(missing_tools())
    assert evaluate(model_file, tmp_path / "one.json", "--board", "qemu-xtensa", "--limit", 20) == 0
    assert evaluate(model_file, tmp_path / "two.json", "--board", "qemu-xtensa", "--limit", 20, "--boards", 2) == 0
    same_figures(tmp_path / "one.json", tmp_path / "two.json", "board", "latency")


@contextlib.contextmanager
def native_process(*options):
    """A board that somebody else runs, and where it listens."""
    arguments = ["--arena", "1048576", "--model-ram", "1048576", "--die-with-parent", *options]
    with subprocess.Popen([native_board(), *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def test_boards_on_tcp_and_rfc_2217_ports_share_an_evaluation_and_a_dead_port_is_left_out(model_file, tmp_path, capsys):
    with native_process("--tcp", "0") as address, native_process("--pty") as pty, contextlib.closing(
        Rfc2217Server(pty)
    ) as server:  # fmt: skip
        places = [f"socket://{address}", server.url, "socket://127.0.0.1:1"]
        arguments = [part for place in places for part in ("--port", place)]
        out = tmp_path / "r.json"
        assert evaluate(model_file, out, "--board", "native", "--limit", 60, *arguments) == 0
    report = json.loads(out.read_text())
    assert report["logits"]["bit_exact"] == 60
    tcp, rfc2217, dead = report["rack"]["boards"]
    assert tcp["images"] + rfc2217["images"] == 60
    assert "cannot connect" in dead["quarantined"]
    assert "socket://127.0.0.1:1 is left out" in capsys.readouterr().err


def test_a_rack_survives_faults_on_every_line(model_file, tmp_path):
    out = tmp_path / "r.json"
    plan = "seed=3,count=40,every=1000,kinds=flip+drop+disconnect+reset"
    assert evaluate(model_file, out, "--board", "native", "--boards", 2, "--limit", 60, "--faults", plan) == 0
    report = json.loads(out.read_text())
    assert report["logits"]["bit_exact"] == 60
    assert report["faults"]["injected"] > 20
    assert all(board["quarantined"] is None for board in report["rack"]["boards"])


# labgrid

RACK = device_dir().parent / "tools" / "labgrid_rack"


@pytest.fixture
def coordinator(tmp_path):
    """labgrid's coordinator on a free port of this machine."""
    pytest.importorskip("labgrid", reason="labgrid is not installed (pip install labgrid)")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (tmp_path / "coordinator").mkdir()
    with started("labgrid.remote.coordinator", "--listen", address, folder=tmp_path / "coordinator"):
        until(lambda: listens(address))  # an exporter that comes too early gives up
        yield address


def listens(address):
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


@contextlib.contextmanager
def started(module, *arguments, folder, **environment):
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=folder, stdout=log, stderr=log, env=os.environ | environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        log.close()


def client(address, *arguments):
    command = [sys.executable, "-m", "labgrid.remote.client", "--coordinator", address, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_labgrid_rack_of_two_boards_runs_an_evaluation(coordinator, model_file, tmp_path, monkeypatch):
    monkeypatch.setenv("LG_COORDINATOR", coordinator)
    monkeypatch.setenv("LG_TVHIL_BOARD", "native")
    out, environment = tmp_path / "r.json", str(RACK / "environment.yaml")
    with native_process("--tcp", "0") as left, native_process("--tcp", "0") as right, started(
        "labgrid.remote.exporter", "--coordinator", coordinator, "--name", "lab", str(RACK / "exporter.yaml"),
        folder=tmp_path, TVHIL_LEFT_PORT=left.rpartition(":")[2], TVHIL_RIGHT_PORT=right.rpartition(":")[2],
    ):  # fmt: skip
        until(lambda: "right" in client(coordinator, "resources").stdout)
        for place in ("left", "right"):
            assert client(coordinator, "-p", place, "create").returncode == 0
            assert client(coordinator, "-p", place, "add-match", f"*/{place}/*").returncode == 0
        command = [sys.executable, "-m", "tvhil.cli", "run-eval", "synthetic", "--model", model_file, "--limit", "1"]
        refused = subprocess.run([*command, "--pool", environment], capture_output=True, text=True, check=False)
        assert refused.returncode == ExitCode.BOARD
        assert "labgrid cannot give us left: Error: place left is not acquired" in refused.stderr
        for place in ("left", "right"):
            assert client(coordinator, "-p", place, "acquire").returncode == 0
        # In a process of its own: gRPC's threads would stay in this one and meet the forks of later tests.
        command = [sys.executable, "-m", "tvhil.cli", "run-eval", "digits", "--model", model_file, "--limit", "40"]
        command += ["--pool", environment, "--json", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["logits"]["bit_exact"] == 40
    assert [board["name"] for board in report["rack"]["boards"]] == ["left", "right"]
    assert [board["port"] for board in report["rack"]["boards"]] == [f"socket://{left}", f"socket://{right}"]
    assert sum(board["images"] for board in report["rack"]["boards"]) == 40


def test_an_environment_without_our_driver_is_refused(tmp_path):
    pytest.importorskip("labgrid", reason="labgrid is not installed (pip install labgrid)")
    path = Path(tmp_path / "environment.yaml")
    for text, message in {"targets: {main: {drivers: {SerialDriver: {}}}}": "no target", "[": "no labgrid env"}.items():
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_pool(path)


def test_rows_of_a_rack_name_the_board_and_compare_equal_otherwise(native, tmp_path):
    model = small_model()
    devices = {"a": FakeDevice(model), "b": FakeDevice(model)}
    deal(tmp_path / "j", native, devices, random_inputs(model, 12))
    _, every = read_journal(tmp_path / "j")
    every = list(every)
    assert {row["on"] for row in every if "image" in row} <= {"a", "b"}
    check = next(row for row in every if "check" in row)
    assert check["agree"] is True
    assert len(set(map(tuple, check["check"].values()))) == 1
    assert np.unique([row["image"] for row in every if "image" in row]).size == 12
