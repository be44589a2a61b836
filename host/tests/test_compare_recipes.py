# SPDX-License-Identifier: Apache-2.0
"""`tools/compare_recipes.py`: one budget for all rows, figures as reported, resumption, one line for mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import compare_recipes
import recipe_table
from tvhil.errors import InputError
from tvhil.quantization.training.recipe import load_recipe

TINY = ["--set", "model.depth=1", "--set", "model.embed_dim=32", "--set", "model.num_heads=2"]
ON_DIGITS = ["--dataset", "digits", "--arch", "vit_digits", "--batch", "32", "--device", "cpu", "--threads", "1", *TINY]
DIGITS = 1437  # training images


def run(out, *arguments):
    return compare_recipes.main([*ON_DIGITS, "--set", "phase.augmentation.crop=1", "--out", str(out), *arguments])


def rows_of(arguments, train_images):
    return compare_recipes.make_rows(compare_recipes.parse(["--out", "runs/x", *arguments]), train_images)


@given(st.integers(1, 10**6), st.lists(st.floats(0.01, 1000), min_size=1, max_size=5))
def test_phases_share_the_steps_in_proportion_and_use_all_of_them(spare, weights):
    total = spare + len(weights)
    counts = compare_recipes.share_steps(total, weights)
    assert sum(counts) == total and min(counts) >= 1
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - 1 - Fraction(weight) * spare / sum(map(Fraction, weights))) < 1


@settings(max_examples=25)
@given(st.floats(1, 50), st.sampled_from([32, 100, 256, 500]), st.sampled_from([1437, 9999, 50000]))
def test_every_recipe_trains_on_the_same_number_of_images(epochs, batch, images):
    rows = rows_of(["--epochs", repr(epochs), "--batch", str(batch)], images)
    assert [row.name for row in rows] == list(compare_recipes.ROWS)
    assert {compare_recipes.trained_images(row.recipe, images) for row in rows} == {
        round(epochs * (images // batch)) * batch
    }


def test_rows_share_model_and_augmentation_and_keep_the_shape_of_their_schedules():
    rows = rows_of(["--epochs", "2", "--activations", "real", "--optimizer", "muon", "--learning-rate", "0.01"], 50000)
    shipped = load_recipe("cifar10")
    for row in rows:
        assert (row.recipe.architecture, row.recipe.model) == (shipped.architecture, shipped.model)
        before = load_recipe(row.name)
        assert max(phase.learning_rate for phase in row.recipe.phases) == 0.01
        for old, new in zip(before.phases, row.recipe.phases, strict=True):
            assert (new.augmentation.crop, new.augmentation.flip, new.augmentation.mixup) == (4, True, 0.0)
            assert new.warmup / new.epochs == pytest.approx(old.warmup / old.epochs)
            assert (1 - new.ema) * new.epochs == pytest.approx((1 - old.ema) * old.epochs) or not old.ema
            assert new.quantization == old.quantization and new.distillation == old.distillation
            assert new.activations == ("integer" if new.quantization is None else "real")
            assert new.optimizer == "muon"
    first, last = next(row.recipe.phases for row in rows if row.name == "ftervit")
    assert last.learning_rate / first.learning_rate == pytest.approx(0.1)


def test_rows_are_trained_measured_and_kept_when_the_command_runs_again(tmp_path, capsys, monkeypatch):
    words = [tmp_path, "--epochs", "0.2", "--rows", "fp32,tervit", "--images", "100"]
    assert run(*words) == 0
    assert "full precision minus fully ternary: " in capsys.readouterr().out
    table = json.loads((tmp_path / "table.json").read_text())
    full, ternary = table["rows"]
    assert [full["recipe"], ternary["recipe"]] == ["fp32", "tervit"]
    assert full["images"] == ternary["images"] == table["images"] == 32 * round(0.2 * (DIGITS // 32))
    assert ternary["bytes"] == (tmp_path / "tervit" / "model.tvit").stat().st_size
    assert full["bytes"] == 4 * json.loads((tmp_path / "fp32" / "evaluation.json").read_text())["model"]["parameters"]
    assert (full["kind"], ternary["kind"], ternary["agreement"]) == ("fp32", "integer", 1.0)
    assert ternary["torch_top1"] == ternary["top1"] and full["test_images"] == ternary["test_images"] == 100
    distance = table["full_precision_minus_fully_ternary"]
    assert distance == {"points": pytest.approx(100 * (full["top1"] - ternary["top1"])), "recipe": "tervit"}
    for row in (full, ternary):
        (measured, *_) = json.loads((tmp_path / row["recipe"] / "evaluation.json").read_text())["implementations"]
        assert [row["top1"], row["f1"]] == [measured["accuracy"]["top1"], measured["f1"]]
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| fp32", "| tervit"]
    assert all(line.count("|") == len(recipe_table.COLUMNS) + 1 for line in lines[:4])
    picture = ElementTree.fromstring((tmp_path / "table.svg").read_text())
    bars = len(picture.findall("{http://www.w3.org/2000/svg}rect")) - 1  # that of the background
    told = {text.text for text in picture.findall("{http://www.w3.org/2000/svg}text")}
    assert bars == 1 and "tervit" in told

    def started(*_, **__):
        raise AssertionError("nothing is left to run")

    monkeypatch.setattr(subprocess, "Popen", started)
    assert run(*words) == 0
    again = json.loads((tmp_path / "table.json").read_text())
    assert again["rows"] == table["rows"]
    assert run(*words[:-2], "--seed", "1") == 2
    assert f"{tmp_path}/fp32 holds a row of other settings" in capsys.readouterr().err


def test_a_row_that_fails_is_told_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    def run_child(command, folder, title, result):
        if folder.name == "fp32":
            raise InputError("the loss is nan")
        raise InputError("out of memory")

    monkeypatch.setattr(compare_recipes, "run_child", run_child)
    assert run(tmp_path, "--rows", "fp32,binary") == 3
    err = capsys.readouterr().err
    assert "no row fp32: the loss is nan" in err and "no row binary: out of memory" in err
    assert json.loads((tmp_path / "table.json").read_text())["failed"].keys() == {"fp32", "binary"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "fp32,tervitt"], "did you mean 'tervit'"),
        (["--rows", "fp32,fp32"], "names fp32 twice"),
        (["--rows", "ftervit"], "name its teacher with --teacher"),
        (["--rows", "fp32", "--set", "phase.epochs=3"], "which --epochs names"),
        (["--rows", "fp32", "--set", "phase.fp32.batch=3"], "which --batch names"),
        (["--rows", "fp32", "--set", "seed=3"], "which --seed names"),
        (["--rows", "fp32", "--set", "phase.optimiser=sgd"], "did you mean 'optimizer'"),
        (["--rows", "fp32", "--epochs", "nan"], "--epochs must be positive"),
        (["--rows", "tervit", "--epochs", "0.02"], "fewer than a recipe has phases"),
        (["--rows", "fp32", "--processes", "3"], "does not divide among 3 processes"),
        (["--rows", "fp32", "--init", "nowhere.safetensors"], "no checkpoint at nowhere.safetensors"),
        (["--rows", "fp32", "--data", "somewhere"], "digits takes no --data"),
    ],
)
def test_a_mistake_gets_one_line_before_anything_is_trained(arguments, message, tmp_path, capsys):
    assert run(tmp_path / "out", *arguments) in (2, 3)
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_failed_command_is_told_with_its_own_words(tmp_path):
    code = "import sys; print('tvhil: no such thing', file=sys.stderr); print('noise'); sys.exit(3)"
    with pytest.raises(InputError, match=r"no such thing \(exit code 3; all of its output is in .*output.txt\)"):
        compare_recipes.run_child([sys.executable, "-c", code], tmp_path, "row", tmp_path / "r.json")
    assert "noise" in (tmp_path / "output.txt").read_text()
    with pytest.raises(InputError, match=r"made no .*r.json"):
        compare_recipes.run_child([sys.executable, "-c", ""], tmp_path, "row", tmp_path / "r.json")


CAREFUL = """
import pathlib, time
try:
    pathlib.Path('ready').touch()
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path('state').touch()
"""


def test_ctrl_c_lets_a_training_write_its_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        compare_recipes.run_child([sys.executable, "-c", CAREFUL], tmp_path, "row", tmp_path / "r.json")
    assert (tmp_path / "state").exists()


def test_a_table_of_the_full_precision_row_alone_has_a_picture():
    row = {"recipe": recipe_table.FULL_PRECISION_ROW, "top1": 0.5, "bytes": 1000, "below_fp32_points": 0.0}
    assert ElementTree.fromstring(recipe_table.chart({"data": "digits", "rows": [row]})).tag.endswith("svg")
