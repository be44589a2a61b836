# SPDX-License-Identifier: Apache-2.0
"""The command line: help that teaches, one clear line for a mistake, documented exit codes, JSON for machines."""

import errno
import json
import re
import subprocess
import sys

import pytest
from evaluation_fakes import small_model

from tvhil import cli
from tvhil.boards.board import board_names
from tvhil.cli import COMMANDS, main
from tvhil.commands import models as models_command
from tvhil.errors import ExitCode, MismatchError


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "m.tvit"
    path.write_bytes(small_model().file)
    return path


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(command, "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"  tvhil {command}" in text
    assert "--json FILE" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_boards_in_the_examples_exist(command, capsys):
    with pytest.raises(SystemExit):
        run(command, "--help")
    named = re.findall(r"^  tvhil .*--board (\S+)", capsys.readouterr().out, re.MULTILINE)
    assert set(named) <= set(board_names())


def test_the_overview_imports_nothing_heavy():
    code = "import sys; from tvhil.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'numpy', 'rich', 'PIL') if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for command in COMMANDS:
        assert f"\n    {command}" in done.stdout


@pytest.mark.parametrize("command", ["inspect", "predict", "boards", "models", "run-eval", "flash", "build", "doctor"])
def test_commands_that_need_no_torch_do_not_import_it(command):
    code = f"import sys; from tvhil.cli import main\ntry: main([{command!r}, '--help'])\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"


def test_an_unknown_command_is_answered_with_the_nearest_one(capsys):
    with pytest.raises(SystemExit) as stopped:
        run("run-evl", "digits")
    assert stopped.value.code == ExitCode.USAGE
    assert "did you mean 'run-eval'?" in capsys.readouterr().err


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (MismatchError("logits differ"), 6, "tvhil: logits differ"),
        (KeyboardInterrupt(), 130, "tvhil: interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "r.json"), 3, "the disk is full"),
        (PermissionError(errno.EACCES, "denied", "/dev/ttyACM0"), 3, "no permission"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_an_exit_code(monkeypatch, capsys, error, code, text):
    def fail(options):
        raise error

    monkeypatch.setattr(models_command, "run", fail)
    assert run("models") == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert text in captured.err


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback(monkeypatch, place):
    def fail(options):
        raise MismatchError("logits differ")

    monkeypatch.setattr(models_command, "run", fail)
    with pytest.raises(MismatchError):
        run(*(["--debug", "models"] if place == "before" else ["models", "--debug"]))


def test_a_defect_of_tvhil_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(models_command, "run", lambda options: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run("models")


def test_the_reader_of_the_output_may_go_away(model_file):
    command = f"{sys.executable} -m tvhil.cli inspect {model_file} --operators --tensors | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_what_was_asked_for_is_written_when_the_reader_of_the_output_is_gone(model_file, tmp_path):
    out = tmp_path / "m.json"
    command = f"{sys.executable} -m tvhil.cli inspect {model_file} --operators --tensors --json {out} | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(out.read_text())["model"]["bytes"] == model_file.stat().st_size


def test_a_folder_as_the_output_is_refused_before_the_work(model_file, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("inspect", model_file, "--json", tmp_path)
    assert stopped.value.code == ExitCode.USAGE
    assert "is a folder, name a file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("pack", "--untrained", "--arch", "vit_digits", "-o", tmp_path)


def test_models_lists_what_matches(capsys):
    assert run("models", "deit_tiny*", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)["models"]
    assert [model["name"] for model in found] == ["deit_tiny", "deit_tiny_distilled"]
    assert found[0]["input"] == [224, 224, 3]
    assert run("models", "resnet*") == ExitCode.USAGE


def test_inspect_tells_everything_about_a_file(model_file, tmp_path, capsys):
    assert run("inspect", model_file, "--operators", "--tensors", "--json", tmp_path / "i.json") == 0
    model, found = small_model(), json.loads((tmp_path / "i.json").read_text())
    assert found["signature"] == model.signature
    assert found["model"]["sha256"] == model.sha256
    assert found["memory"]["arena_bytes"] == model.plan.arena_bytes
    assert [op["name"] for op in found["operators"]] == [op.name for op in model.operators]
    assert found["bits_per_weight"] < 1.7
    assert 0.3 < found["zeros"] < 0.5
    out = capsys.readouterr().out
    assert model.signature in out
    assert "blocks.0.mlp.fc2" in out


def test_inspect_refuses_a_damaged_file_with_its_section(model_file, capsys):
    damaged = bytearray(model_file.read_bytes())
    damaged[-200] ^= 1
    model_file.write_bytes(damaged)
    assert run("inspect", model_file) == ExitCode.BAD_INPUT
    assert "CRC" in capsys.readouterr().err
    assert run("inspect", model_file.with_name("absent.tvit")) == ExitCode.BAD_INPUT
    assert "cannot read the model" in capsys.readouterr().err


def test_the_command_table_names_modules_that_exist():
    for module, summary in cli.COMMANDS.values():
        assert __import__(f"tvhil.commands.{module}", fromlist=["run"]).run
        assert summary
