# SPDX-License-Identifier: Apache-2.0
"""`tvhil train`: every recipe in small, exact resumption, several processes, and what a user can get wrong."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tvhil.cli import main
from tvhil.errors import CheckpointError, DatasetError, ExitCode, InputError, UsageError
from tvhil.models import VisionTransformer, model_config
from tvhil.models.config import Preprocessing
from tvhil.models.conv_teacher import ConvTeacher, ConvTeacherConfig
from tvhil.quantization.config import QuantizationConfig
from tvhil.quantization.convert import calibrate
from tvhil.quantization.train import DivergedError
from tvhil.quantization.training import trainer as trainer_module
from tvhil.quantization.training.data import LabelledImages, TrainingData, load_training_data
from tvhil.quantization.training.log import read_log
from tvhil.quantization.training.models import fresh_model, load_any, save_model
from tvhil.quantization.training.recipe import Augmentation, Phase, Recipe, list_recipes, load_recipe, parse_recipe
from tvhil.quantization.training.trainer import Options, OutOfMemoryError, Trainer

DIGITS = model_config("vit_digits").preprocessing
TINY = {"depth": 1, "embed_dim": 32, "num_heads": 2}
SMALL = ["phase.batch=32", "phase.epochs=0.1", "phase.warmup=0", "phase.recalibrations=1", "phase.augmentation.crop=1"]
ON_DIGITS = ['architecture="vit_digits"', 'dataset="digits"', *(f"model.{k}={v}" for k, v in TINY.items())]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits():
    return load_training_data("digits", None, DIGITS)


def recipe(*phases: Phase, **options) -> Recipe:
    return Recipe("test", "", "", "digits", "vit_digits", phases, TINY, **options)


def phase(name: str = "a", **options) -> Phase:
    given = {"epochs": 0.25, "batch": 32, "learning_rate": 1e-2, "augmentation": Augmentation(crop=1, mixup=0.5)}
    return Phase(name, **{**given, **options})


TERNARY = QuantizationConfig()


def run_native(model_file: Path, out: Path) -> int:
    """Run the model on the host's own C kernels and compare every logit; the exit code is 6 where one differs."""
    words = f"run-eval digits --board native --limit 5 --overwrite --model {model_file} --journal {out}"
    return main(words.split())


TERNARY_RECIPES = ("ftervit", "tervit", "vit-1.58b", "binary", "learned", "cifar10", "cifar10-gpu")


@pytest.mark.parametrize("name", TERNARY_RECIPES)
def test_a_ternary_recipe_trains_packs_and_its_integers_are_those_of_torch_and_of_the_kernels(name, tmp_path):
    teacher = tmp_path / "teacher.safetensors"
    config = model_config("vit_digits", **TINY)
    save_model(teacher, fresh_model(config, recipe(phase())))
    changes = [word for change in (*ON_DIGITS[2:], *SMALL) for word in ("--set", change)]
    words = f"train {name} --dataset digits --arch vit_digits --teacher {teacher} -o {tmp_path}/run --verify 40"
    code = main([*words.split(), *changes, "--device", "cpu", "--json", str(tmp_path / "r.json")])
    assert code == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert [p["phase"] for p in result["phases"]] == [p.name for p in load_recipe(name).phases]
    packed = result["packed"]
    assert packed["agreement"] == 1.0 and packed["images"] == 40
    assert packed["integer_top1"] == packed["fake_quantized_top1"]
    file = tmp_path / "run" / "model.tvit"
    assert packed["bytes"] == file.stat().st_size
    assert run_native(file, tmp_path / "journal.jsonl") == 0


def test_full_precision_recipes_train_and_leave_a_checkpoint_that_loads(tmp_path, digits):
    for name in ("fp32", "tervit-paper"):
        trained = Trainer(load_recipe(name, [*ON_DIGITS, *SMALL]), digits, tmp_path / name).run()
        assert trained.finished
        again = load_any(tmp_path / name / f"{trained.results[-1]['phase']}.safetensors")
        images = torch.rand(3, 1, 8, 8)
        with torch.no_grad():
            assert torch.equal(trained.model(images), again.eval()(images))


def test_a_convolutional_teacher_trains_and_teaches(tmp_path):
    config = ConvTeacherConfig(widths=(16, 16, 16))
    preprocessing = config.preprocessing
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 64)
    stripes = np.broadcast_to(np.arange(32) // 4 % 2, (32, 32))
    patterns = 150 * np.stack([stripes, stripes.T])[labels][..., None]
    images = (draw.integers(0, 50, (64, 32, 32, 3)) + patterns).astype(np.uint8)
    split = LabelledImages(images, labels.astype(np.int64))
    data = TrainingData("stripes", ("upright", "level"), split, split)
    conv = load_recipe(
        "teacher",
        ["model.widths=[16,16,16]", "phase.batch=16", "phase.epochs=15", "phase.ema=0", "phase.augmentation.erasing=0"],
    )
    taught = Trainer(conv, data, tmp_path / "teacher").run()
    assert taught.results[0]["test_top1"] == 1.0
    teacher = load_any(tmp_path / "teacher" / "fp32.safetensors")
    assert isinstance(teacher, ConvTeacher) and teacher.config.preprocessing == preprocessing
    student = replace(
        recipe(phase(distillation=1.0, augmentation=Augmentation())), architecture="vit_cifar_nano", dataset="folder"
    )
    assert Trainer(student, data, tmp_path / "student", teacher=teacher).run().finished


STAGES = (
    phase("full", ema=0.9, optimizer="muon", momentum=0.9),
    phase("weights", quantization=TERNARY, activations="real", optimizer="sgd", learning_rate=1e-3),
    phase("all", quantization=TERNARY, recalibrations=2),
)


@pytest.mark.parametrize("every", [1, 4, 11])
def test_an_interrupted_and_resumed_run_is_the_uninterrupted_one_bit_for_bit(every, tmp_path, digits):
    whole = Trainer(recipe(*STAGES), digits, tmp_path / "whole").run()
    for _ in range(100):
        outcome = Trainer(recipe(*STAGES), digits, tmp_path / "parts", Options(stop_after=every)).run()
        if outcome.finished:
            break
    assert outcome.finished and outcome.results == whole.results
    for stage in STAGES:
        expected, got = (load_file(tmp_path / run / f"{stage.name}.safetensors") for run in ("whole", "parts"))
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[key], got[key]) for key in expected)
    columns = ("phase", "step", "test_top1", "ema_top1")
    logs = [[tuple(row[c] for c in columns) for row in read_log(tmp_path / r / "log.csv")] for r in ("whole", "parts")]
    evaluated = [sorted({row for row in log if row[2]}) for log in logs]
    assert evaluated[0] == evaluated[1]


def test_a_phase_with_real_activations_hands_on_scales_found_on_its_last_weights(tmp_path, digits):
    weights = phase("weights", quantization=TERNARY, activations="real", learning_rate=0.1)
    model = Trainer(recipe(weights), digits, tmp_path).run().model
    expected = copy.deepcopy(model)
    calibrate(expected, digits.train.images[:: len(digits.train) // 512][:512])
    for name, value in expected.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    before = Trainer(recipe(replace(weights, learning_rate=1e-9)), digits, tmp_path / "still").run().model
    assert float(before.quant_embed.scale) != float(model.quant_embed.scale)


def test_a_finished_run_is_not_run_again(tmp_path, digits):
    first = Trainer(recipe(phase()), digits, tmp_path).run()
    again = Trainer(recipe(phase()), digits, tmp_path, Options(stop_after=0)).run()
    assert again.finished and again.results == first.results


def test_accumulated_parts_make_the_same_step_as_the_whole_batch(tmp_path, digits):
    plain = phase(epochs=0.05, augmentation=Augmentation())
    states = []
    for parts in (1, 4):
        options = Options(accumulate=parts)
        states.append(Trainer(recipe(plain), digits, tmp_path / str(parts), options).run().model.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, atol=2e-3, rtol=1e-2)


def test_two_processes_share_a_batch_and_end_with_the_same_weights(tmp_path):
    """Under torchrun's environment, over gloo; each process writes its own copy of the weights."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from safetensors.torch import save_file\n"
        "from test_train import DIGITS, phase, recipe\n"
        "from tvhil.quantization.training.augmentation import augment\n"
        "from tvhil.quantization.training.data import load_training_data\n"
        "from tvhil.quantization.training.trainer import Options, Trainer\n"
        "torch.set_num_threads(1)\n"
        "out = Path(sys.argv[1])\n"
        "trainer = Trainer(recipe(phase(epochs=0.1)), load_training_data('digits', None, DIGITS), out, Options())\n"
        "outcome = trainer.run()\n"
        "save_file(outcome.model.state_dict(), out / f'rank{trainer.processes.rank}.safetensors')\n"
    )
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2"}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    workers = [
        subprocess.Popen([sys.executable, str(script), str(tmp_path / "two")], env={**environment, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    first, second = (load_file(tmp_path / "two" / f"rank{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    data = load_training_data("digits", None, DIGITS)
    alone = Trainer(recipe(phase(epochs=0.1)), data, tmp_path / "one", Options(accumulate=2)).run()
    for key, value in alone.model.state_dict().items():  # the same parts, added in another order
        torch.testing.assert_close(first[key], value, atol=2e-3, rtol=1e-2)


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(tmp_path, digits, monkeypatch):
    good = Trainer(recipe(phase()), digits, tmp_path, Options(stop_after=3))
    assert not good.run().finished
    before = (tmp_path / "state.safetensors").read_bytes()
    monkeypatch.setattr(trainer_module, "_loss", lambda _phase, logits, *_: logits.sum() * float("nan"))
    with pytest.raises(DivergedError, match=r"nan in phase 'a', step 4.*last good checkpoint is kept.*learning_rate"):
        Trainer(recipe(phase()), digits, tmp_path).run()
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_running_out_of_memory_gives_advice_on_the_batch(tmp_path, digits, monkeypatch):
    def exhausted(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(trainer_module, "augment", exhausted)
    with pytest.raises(OutOfMemoryError, match="--accumulate 2"):
        Trainer(recipe(phase()), digits, tmp_path).run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("phase.learning_rat=1", "did you mean 'learning_rate'"),
        ("architektur=1", "did you mean 'architecture'"),
        ("phase.augmentation.cutmx=1", "did you mean 'cutmix'"),
        ("phase.quantization.ternariser='twn'", "did you mean 'ternarizer'"),
        ("phase.optimizer=adam", "did you mean 'adamw'"),
        ("phase.batch='many'", "batch must be int"),
        ("phase.epochs=0", "epochs must be positive"),
        ("model.depht=2", "no such model option: depht"),
    ],
)
def test_a_recipe_with_an_unknown_key_is_refused_with_the_nearest_one(change, message, capsys, tmp_path):
    assert main(["train", "ftervit", "--dataset", "digits", "--set", change, "-o", str(tmp_path)]) in (2, 3)
    assert message in capsys.readouterr().err


def test_an_unknown_recipe_is_refused_with_the_nearest_name(capsys, tmp_path):
    assert main(["train", "fterwit", "-o", str(tmp_path)]) == 2
    assert "did you mean 'ftervit'" in capsys.readouterr().err


def test_every_recipe_of_the_package_is_read_and_told():
    assert set(list_recipes()) == {*TERNARY_RECIPES, "fp32", "teacher", "tervit-paper"}
    with pytest.raises(InputError, match="no phase"):
        parse_recipe({"dataset": "digits", "architecture": "vit_digits"}, "empty")


def test_a_run_of_another_recipe_is_not_continued(tmp_path, digits):
    Trainer(recipe(phase()), digits, tmp_path, Options(stop_after=2)).run()
    with pytest.raises(UsageError, match=r"another recipe.*--restart"):
        Trainer(recipe(phase(batch=16)), digits, tmp_path).run()


@pytest.mark.parametrize(("device", "message"), [("gpu0", "no device 'gpu0': cpu, cuda"), ("cuda", "--device cpu")])
def test_a_device_that_is_not_there_is_refused(device, message, tmp_path, digits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=message):
        Trainer(recipe(phase()), digits, tmp_path, Options(device=device))


def test_distillation_without_a_teacher_is_refused(tmp_path, digits):
    with pytest.raises(UsageError, match="--teacher"):
        Trainer(recipe(phase(distillation=1.0)), digits, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_classes": 3}, "teacher has 3 classes, not 10"), ({}, r"teacher takes 32 pixels and 3 channels, the model")],
)
def test_a_teacher_of_other_classes_or_images_is_refused(settings, message, tmp_path, digits):
    preprocessing = DIGITS if settings else ConvTeacherConfig().preprocessing
    teacher = ConvTeacher(
        ConvTeacherConfig((8, 8, 8), **settings, in_channels=preprocessing.channels, preprocessing=preprocessing)
    )
    with pytest.raises(InputError, match=message):
        Trainer(recipe(phase(distillation=1.0)), digits, tmp_path, teacher=teacher)


@pytest.mark.parametrize("name", ["accumulate", "evaluations"])
def test_a_number_of_parts_or_evaluations_below_one_is_refused(name, tmp_path, capsys):
    words = f"train fp32 --dataset digits --arch vit_digits -o {tmp_path}/run --{name} 0"
    assert main(words.split()) == ExitCode.USAGE
    assert f"--{name} must be at least 1, not 0" in capsys.readouterr().err


def test_an_initial_checkpoint_of_another_shape_is_refused_with_tensors_and_shapes(tmp_path, digits):
    other = VisionTransformer(model_config("vit_digits", **{**TINY, "embed_dim": 16}))
    with pytest.raises(
        CheckpointError, match=r"init.st is of another shape.*pos_embed: \[1, 17, 16\] instead of \[1, 17, 32\]"
    ):
        Trainer(recipe(phase()), digits, tmp_path, initial=other, initial_path=Path("init.st"))


def test_a_damaged_state_is_refused_and_restart_begins_anew(tmp_path, digits):
    (tmp_path / "state.safetensors").write_bytes(b"\x08" + bytes(40))
    with pytest.raises(CheckpointError, match="--restart"):
        Trainer(recipe(phase()), digits, tmp_path).run()
    assert Trainer(recipe(phase()), digits, tmp_path, Options(restart=True)).run().finished


def write_images(path: Path, classes: dict[str, int], broken: str | None = None) -> None:
    """A zip of grey images in class folders."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, count in classes.items():
            for i in range(count):
                file = path.with_suffix(".png")
                Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(file)
                content = file.read_bytes()
                archive.writestr(f"{name}/{i}.png", content[:20] if broken == f"{name}/{i}.png" else content)


def test_a_corrupt_image_is_named_and_skipped_only_when_asked(tmp_path):
    write_images(tmp_path / "train.zip", {"cat": 3, "dog": 3}, broken="dog/1.png")
    write_images(tmp_path / "test.zip", {"cat": 1, "dog": 1})
    with pytest.raises(DatasetError, match=r"train.zip: dog/1.png is not a readable image.*--skip-corrupt"):
        load_training_data("folder", tmp_path, DIGITS)
    data = load_training_data("folder", tmp_path, DIGITS, skip_corrupt=True)
    assert len(data.train) == 5 and len(data.skipped) == 1 and "dog/1.png" in data.skipped[0]


def test_a_class_without_images_is_named(tmp_path):
    write_images(tmp_path / "train.zip", {"cat": 3, "dog": 1}, broken="dog/0.png")
    write_images(tmp_path / "test.zip", {"cat": 1, "dog": 1})
    with pytest.raises(DatasetError, match="class 'dog' has no train images"):
        load_training_data("folder", tmp_path, DIGITS, skip_corrupt=True)
    write_images(tmp_path / "test.zip", {"cat": 1})
    with pytest.raises(DatasetError, match="class 'dog' is in one of the splits"):
        load_training_data("folder", tmp_path, DIGITS, skip_corrupt=True)


def test_an_archive_for_each_split_is_found_in_a_folder(tmp_path):
    for split, count in (("train", 2), ("test", 1)):
        write_images(tmp_path / f"pets-{split}.zip", {"cat": count, "dog": count})
    data = load_training_data("folder", tmp_path, Preprocessing(8, crop_pct=1.0, mode="L", mean=(0.5,), std=(0.5,)))
    assert (len(data.train), len(data.test)) == (4, 2)
