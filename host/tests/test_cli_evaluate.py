# SPDX-License-Identifier: Apache-2.0
"""`tvhil evaluate` from the command line: figures, implementations, the page, boards, interruptions, bad input."""

import html.parser
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image

from tvhil.cli import main
from tvhil.datasets import open_dataset
from tvhil.errors import ExitCode
from tvhil.evaluation import measure
from tvhil.evaluation.inputs import image_loader
from tvhil.evaluation.metrics import calibration
from tvhil.evaluation.pictures import SIDE
from tvhil.evaluation.report import empty_report
from tvhil.models import model_config, save_checkpoint
from tvhil.packing import pack_vit, read_model
from tvhil.prediction import Predictor
from tvhil.quantization import QuantizationConfig, quantize_model, random_model, save_quantized, to_integer

IMAGES = 20


def run(*arguments):
    return main([str(argument) for argument in arguments])


def evaluate(tmp_path, *arguments):
    """Exit code and report of an evaluation of digits."""
    code = run("evaluate", "digits", "--json", tmp_path / "e.json", *arguments)
    return code, json.loads((tmp_path / "e.json").read_text())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """An FP32 model of digits with drawn weights and a log beside it, and its ternary and binary children."""
    folder = tmp_path_factory.mktemp("checkpoints")
    config = model_config("vit_digits", depth=2)
    model = random_model(config, 0).eval()
    save_checkpoint(folder / "fp32.safetensors", model.state_dict(), config)
    (folder / "fp32.csv").write_text(
        "epoch,loss,train_accuracy,val_accuracy,learning_rate\n0,2,0.1,,1\n1,1,0.5,0.4,0\n"
    )
    images = np.stack([np.asarray(s.load())[..., None] for s in open_dataset("digits", split="train", limit=16)])
    for rule in ("twn", "binary"):
        quantized = quantize_model(model, images, QuantizationConfig(ternarizer=rule))
        save_quantized(folder / f"{rule}.safetensors", quantized)
    (folder / "twn.tvit").write_bytes(pack_vit(to_integer(quantize_model(model, images))))
    return folder


class Page(html.parser.HTMLParser):
    """What a page loads, runs and says."""

    def __init__(self, file):
        super().__init__()
        self.tags, self.links, self.headings, self.text = [], [], [], ""
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "data", "action", "srcset")]
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_data(self, data):
        self.text += data
        if self.tags and self.tags[-1] == "h2":
            self.headings.append(data.strip())


def test_the_embedded_model_is_the_default_and_its_figures_are_scikit_learns(tmp_path, capsys):
    code, report = evaluate(tmp_path, "--html", tmp_path / "e.html")
    assert code == ExitCode.OK
    dataset = open_dataset("digits")
    model = read_model((tmp_path / report["model"]["file"]).read_bytes())
    answers = Predictor(model).run(np.stack([np.asarray(s.load())[..., None] for s in dataset])).argmax(1)
    labels = [s.label for s in dataset]
    (row,) = report["implementations"]
    assert row["kind"] == "integer"
    assert row["accuracy"]["top1"] == report["accuracy"]["top1"] == report["accuracy"]["predicted_top1"]
    assert row["accuracy"]["top1"] == pytest.approx(sklearn.metrics.accuracy_score(labels, answers))
    scores = sklearn.metrics.precision_recall_fscore_support(labels, answers, average="macro")
    assert [row["precision"], row["recall"], row["f1"]] == pytest.approx(scores[:3], abs=1e-9)
    assert row["confusion"] == sklearn.metrics.confusion_matrix(labels, answers).tolist()
    assert [c["images"] for c in row["per_class"]] == [36] * 10
    assert row["bytes"] == model.file_bytes == report["model"]["bytes"]
    assert set(empty_report()) <= set(report)
    assert report["progress"] == {"done": 360, "total": 360, "stopped": None}
    out = capsys.readouterr().out
    assert f"{report['accuracy']['top1']:.2%}" in out


def test_the_page_is_one_file_that_loads_and_runs_nothing(tmp_path):
    evaluate(tmp_path, "--html", tmp_path / "e.html", "--limit", IMAGES, "--examples", 3)
    page = Page(tmp_path / "e.html")
    assert page.headings == [
        "Figures", "Confusion", "Classes, ternary, integers", "Calibration", "Attention", "Training",
    ]  # fmt: skip
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert page.tags.count("img") == 6
    assert page.tags.count("svg") == 2 + 2  # loss and accuracy, from the log in the model


def test_the_pictures_of_the_page_are_written_as_files(tmp_path, checkpoints):
    folder = tmp_path / "a" / "pictures"
    code, _ = evaluate(
        tmp_path, "--model", checkpoints / "fp32.safetensors", "--limit", IMAGES, "--sensitivity", 5, "--examples", 2,
        "--pictures", folder, "--html", tmp_path / "e.html",
    )  # fmt: skip
    assert code == ExitCode.OK
    charts = ["calibration", "confusion", "sensitivity"]
    charts += [f"training-fp32-{curve}" for curve in ("accuracy", "learning-rate", "loss")]
    assert sorted(file.name for file in folder.iterdir()) == ["attention.png", *(f"{chart}.svg" for chart in charts)]
    page = (tmp_path / "e.html").read_text()
    for chart in charts:
        text = (folder / f"{chart}.svg").read_text()
        assert text.startswith("<svg") and text in page
    with Image.open(folder / "attention.png") as sheet:
        width, height = sheet.size
    assert width > 2 * SIDE and height > (1 + 3) * SIDE  # two images; FP32, integers and 1-bit below them


def test_a_file_in_the_place_of_the_pictures_folder_is_told_at_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        evaluate(tmp_path, "--pictures", tmp_path / "file")
    assert "is a file, name a folder" in capsys.readouterr().err


def test_an_fp32_checkpoint_is_compared_with_its_ternary_and_1_bit_forms(tmp_path, checkpoints, capsys):
    code, report = evaluate(
        tmp_path, "--model", checkpoints / "fp32.safetensors", "--limit", IMAGES, "--sensitivity", 5,
        "--html", tmp_path / "e.html", "--examples", 2,
    )  # fmt: skip
    assert code == ExitCode.OK
    rows = report["implementations"]
    names = ["FP32", "ternary, fake-quantized", "ternary, integers", "1-bit, fake-quantized"]
    assert [row["name"] for row in rows] == report["agreement"]["names"] == names
    assert [row["kind"] for row in rows] == ["fp32", "fake-quantized", "integer", "fake-quantized"]
    assert rows[0]["bytes"] == 4 * rows[0]["parameters"] > 10 * rows[2]["bytes"]
    assert report["agreement"]["top1"][1][2] == 1.0
    assert report["primary"] == 2
    found = report["sensitivity"]
    assert (found["model"], found["rule"], found["images"]) == ("FP32", "twn", 5)
    assert len(found["layers"]) == 1 + 2 * 6 + 2
    assert report["training"] == [
        {
            "file": str(checkpoints / "fp32.csv"),
            "unit": "epoch",
            "rows": 2,
            "last": {"loss": 1, "train_accuracy": 0.5, "val_accuracy": 0.4, "learning_rate": 0},
        }
    ]
    page = Page(tmp_path / "e.html")
    assert page.headings[-3:] == ["Attention", "Training", "Sensitivity of the layers"]
    assert page.tags.count("img") == 2 * (1 + 3)  # the image; FP32, integers and 1-bit
    assert "without training" in capsys.readouterr().err


def test_other_models_are_put_beside_a_quantized_checkpoint(tmp_path, checkpoints):
    code, report = evaluate(
        tmp_path, "--model", checkpoints / "twn.safetensors", "--limit", IMAGES,
        "--compare", f"FP32={checkpoints}/fp32.safetensors", "--compare", f"1-bit={checkpoints}/binary.safetensors",
        "--compare", f"packed={checkpoints}/twn.tvit",
    )  # fmt: skip
    assert code == ExitCode.OK
    rows = report["implementations"]
    assert [(row["name"], row["kind"]) for row in rows] == [
        ("ternary, fake-quantized", "fake-quantized"),
        ("ternary, integers", "integer"),
        ("FP32", "fp32"),
        ("1-bit", "fake-quantized"),
        ("packed", "integer"),
    ]
    assert rows[0]["bytes"] is None  # counted once
    assert rows[1]["bytes"] == rows[4]["bytes"] < rows[3]["bytes"] * 1.2
    assert report["primary"] == 1
    assert report["agreement"]["top1"][1][4] == 1.0
    assert report["model"]["file"].endswith("twn.safetensors")


def test_a_convolutional_teacher_is_compared_but_has_no_attention(tmp_path, capsys):
    from tvhil.models.conv_teacher import ConvTeacher, ConvTeacherConfig
    from tvhil.quantization.training.models import save_model

    teacher = tmp_path / "teacher.safetensors"
    save_model(teacher, ConvTeacher(ConvTeacherConfig(widths=(8, 8, 8))))
    code, report = evaluate(
        tmp_path, "--compare", f"teacher={teacher}", "--limit", 4, "--html", tmp_path / "e.html", "--examples", 1
    )
    assert code == ExitCode.OK
    assert [(row["name"], row["kind"]) for row in report["implementations"]][1] == ("teacher", "fp32")
    assert Page(tmp_path / "e.html").tags.count("img") == 2
    assert run("evaluate", "digits", "--model", teacher, "--limit", 4, "--sensitivity") == ExitCode.USAGE
    assert "--sensitivity needs an FP32 ViT" in capsys.readouterr().err
    assert run("evaluate", "digits", "--model", teacher, "--limit", 4) == ExitCode.OK


def test_fp32_logits_of_an_image_and_its_mirror_are_averaged_when_asked(tmp_path, checkpoints, capsys):
    from safetensors.torch import load_file

    from tvhil.models.conv_teacher import ConvTeacher, ConvTeacherConfig
    from tvhil.quantization.training.models import pixels_to_input, save_model, to_pixels

    teacher, config = tmp_path / "teacher.safetensors", ConvTeacherConfig(widths=(8, 8, 8))
    conv = ConvTeacher(config)
    torch.nn.init.normal_(conv.head.weight, generator=torch.Generator().manual_seed(0))
    save_model(teacher, conv)
    assert load_file(teacher)["head.weight"].abs().sum() > 0
    args = ["--model", teacher, "--limit", IMAGES, "--compare", f"again={teacher}"]
    code, report = evaluate(tmp_path, *args, "--mirror", "--html", tmp_path / "e.html", "--examples", 0)
    assert code == ExitCode.OK
    rows = report["implementations"]
    assert [(row["name"], row["kind"], row["mirrored"]) for row in rows] == [
        ("FP32", "fp32", True), ("again", "fp32", True),
    ]  # fmt: skip
    assert capsys.readouterr().out.count("image and mirror averaged") == 2
    assert "again, image and mirror averaged" in Page(tmp_path / "e.html").text
    dataset = open_dataset("digits", limit=IMAGES)
    loaded = [image_loader(s, config.preprocessing, (32, 32, 3))() for s in dataset]
    x = pixels_to_input(to_pixels(np.stack(loaded)), config.preprocessing)
    with torch.no_grad():
        logits = (conv.eval()(x) + conv(x.flip(-1))) / 2
    labels = torch.tensor([s.label for s in dataset])
    assert rows[0]["accuracy"]["top1"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    confidence = logits.softmax(1).amax(1).numpy()
    bins = calibration(confidence, (logits.argmax(1) == labels).numpy())
    assert rows[0]["calibration_error"] == pytest.approx(bins.error, abs=1e-5)
    assert not any(row["mirrored"] for row in evaluate(tmp_path, *args)[1]["implementations"])
    both = ["--model", checkpoints / "twn.safetensors", "--compare", f"FP32={checkpoints}/fp32.safetensors"]
    _, report = evaluate(tmp_path, *both, "--mirror", "--limit", 4)
    assert [row["mirrored"] for row in report["implementations"]] == [False, False, True]
    assert run("evaluate", "digits", "--mirror", "--limit", 4) == ExitCode.USAGE
    assert "--mirror is for FP32 checkpoints" in capsys.readouterr().err


def test_an_fp32_checkpoint_is_measured_alone_when_asked(tmp_path, checkpoints):
    code, report = evaluate(tmp_path, "--model", checkpoints / "fp32.safetensors", "--as-is", "--limit", 4)
    assert code == ExitCode.OK
    assert [row["name"] for row in report["implementations"]] == ["FP32"]


def test_a_board_is_compared_bit_by_bit(tmp_path, checkpoints):
    code, report = evaluate(
        tmp_path, "--model", checkpoints / "twn.safetensors", "--limit", 6, "--board", "native",
        "--compare", f"other={checkpoints}/twn.tvit",
    )  # fmt: skip
    assert code == ExitCode.OK
    assert report["logits"]["bit_exact"] == 6
    assert report["board"]["name"] == "native"
    row = report["implementations"][report["primary"]]
    assert (row["name"], row["kind"]) == ("on native", "device")
    names = report["agreement"]["names"]
    assert report["agreement"]["top1"][names.index("on native")][names.index("ternary, integers")] == 1.0
    journal = (tmp_path / "e.board.jsonl").read_text().splitlines()
    assert sum('"image":' in line for line in journal) == 6
    assert report["latency"]["measured"] is not None


def stop_behind_70_images(monkeypatch, error):
    load, calls = measure._load, []

    def stopped(sample, model):
        calls.append(sample)
        if len(calls) > 70:
            raise error
        return load(sample, model)

    monkeypatch.setattr(measure, "_load", stopped)


def test_an_interrupted_evaluation_reports_what_is_done(tmp_path, monkeypatch, capsys):
    stop_behind_70_images(monkeypatch, KeyboardInterrupt)
    code, report = evaluate(tmp_path, "--html", tmp_path / "e.html")
    assert code == ExitCode.INTERRUPTED
    assert report["progress"] == {"done": 64, "total": 360, "stopped": "interrupted"}
    assert report["dataset"]["images"] == 64
    assert sorted(c["images"] for c in report["implementations"][0]["per_class"]) == [6] * 6 + [7] * 4
    assert "Stopped after 64 of 360 images" in Page(tmp_path / "e.html").text
    assert "stopped after 64 of 360 images" in capsys.readouterr().err


def test_a_killed_evaluation_leaves_the_figures_so_far(tmp_path, monkeypatch):
    class KilledError(BaseException):
        pass

    stop_behind_70_images(monkeypatch, KilledError)
    monkeypatch.setattr("tvhil.commands.evaluate._SAVE_SECONDS", 0)
    with pytest.raises(KilledError):
        evaluate(tmp_path)
    report = json.loads((tmp_path / "e.json").read_text())
    assert report["progress"] == {"done": 64, "total": 360, "stopped": "not finished"}
    assert report["implementations"][0]["accuracy"]["top1"] is not None


def test_a_packed_model_is_evaluated_without_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tvhil.cli import main\n"
        f"sys.exit(main(['evaluate', 'digits', '--limit', '4', '--html', {str(tmp_path / 'e.html')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Page(tmp_path / "e.html").tags.count("img") == 8


@pytest.fixture
def folder(tmp_path):
    """Images of ten classes in folders, the last one corrupt."""
    root = tmp_path / "pictures"
    for i, sample in enumerate(open_dataset("digits", limit=40)):
        (root / str(sample.label)).mkdir(parents=True, exist_ok=True)
        sample.load().save(root / str(sample.label) / f"{i:02}.png")
    (root / "9" / "99.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return root


def test_a_corrupt_image_is_named_and_left_out_only_when_asked(tmp_path, folder, capsys):
    arguments = ["evaluate", "folder", "--data", folder, "--model", shipped(), "--json", tmp_path / "e.json"]
    assert run(*arguments) == ExitCode.BAD_INPUT
    captured = capsys.readouterr()
    assert "9/99.png is not a readable image" in captured.err
    assert "--skip-unreadable leaves such images out" in captured.err
    assert json.loads((tmp_path / "e.json").read_text())["progress"]["done"] == 32
    assert run(*arguments, "--skip-unreadable") == ExitCode.OK
    report = json.loads((tmp_path / "e.json").read_text())
    assert report["progress"] == {"done": 40, "total": 40, "stopped": None}
    assert report["dataset"]["skipped"] == ["9/99.png"]
    assert report["accuracy"]["top1"] > 0.5
    assert "left out: " in capsys.readouterr().err


def test_run_eval_leaves_corrupt_images_out_too(tmp_path, folder, capsys):
    arguments = ["run-eval", "folder", "--data", folder, "--model", shipped(), "--board", "native"]
    arguments += ["--json", tmp_path / "r.json", "--skip-unreadable"]
    assert run(*arguments) == ExitCode.OK
    assert json.loads((tmp_path / "r.json").read_text())["logits"]["bit_exact"] == 40
    assert "9/99.png is not a readable image" in capsys.readouterr().err


def shipped():
    from tvhil.commands.common import EMBEDDED_MODEL

    return EMBEDDED_MODEL


def test_data_without_the_models_classes_is_answered_but_not_judged(tmp_path, folder, capsys):
    shutil.rmtree(folder / "9")
    code = run("evaluate", "folder", "--data", folder, "--model", shipped(), "--json", tmp_path / "e.json")
    assert code == ExitCode.OK
    report = json.loads((tmp_path / "e.json").read_text())
    assert report["accuracy"] == {"top1": None, "top5": None, "predicted_top1": None}
    assert "the data has 9 classes, the model 10: accuracy is not measured" in capsys.readouterr().err


def test_names_in_the_data_are_text_on_the_page(tmp_path, folder):
    (folder / "9" / "99.png").unlink()
    (folder / "0").rename(folder / "<b onclick=x>&")
    code = run("evaluate", "folder", "--data", folder, "--model", shipped(), "--html", tmp_path / "e.html")
    assert code == ExitCode.OK
    page = Page(tmp_path / "e.html")
    assert "b" not in page.tags
    assert "<b onclick=x>&" in page.text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["digits", "--sensitivity"], ExitCode.USAGE, "--sensitivity needs an FP32 ViT"),
        (["digits", "--sensitivity", 0], ExitCode.USAGE, "--sensitivity must be at least 1, not 0"),
        (["digits", "--compare", "fp32.safetensors"], ExitCode.USAGE, "takes NAME=FILE, not 'fp32.safetensors'"),
        (["digits", "--compare", "a=x", "--compare", "a=y"], ExitCode.USAGE, "two models of --compare are called a"),
        (["digits", "--compare", "ternary, integers=x"], ExitCode.USAGE, "is called so already"),
        (["digits", "--port", "x"], ExitCode.USAGE, "--port and --journal go with --board"),
        (["digits", "--model", "absent.safetensors"], ExitCode.BAD_INPUT, "no checkpoint at absent.safetensors"),
        (["digits", "--model", "absent.tvit"], ExitCode.BAD_INPUT, "absent.tvit"),
        (["cifar100", "--data", "x"], ExitCode.USAGE, "cifar100 needs --model FILE; embedded models are of"),
        (
            ["digits", "--log", "absent.csv"],
            ExitCode.BAD_INPUT,
            "cannot read the training log absent.csv",
        ),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", *arguments) == code
    err = capsys.readouterr().err.strip()
    assert message in err
    assert "Traceback" not in err


def test_models_of_other_classes_and_weights_that_overflow_are_refused(tmp_path, capsys):
    config = model_config("vit_digits", depth=1)
    model = random_model(config, 0)
    with torch.no_grad():
        model.head.weight.fill_(3e38)
    save_checkpoint(tmp_path / "big.safetensors", model.state_dict(), config)
    assert run("evaluate", "digits", "--limit", 4, "--compare", f"x={tmp_path}/big.safetensors") == ExitCode.BAD_INPUT
    assert "the logits of x for image digits/" in capsys.readouterr().err
    other = config.replace(num_classes=3)
    save_checkpoint(tmp_path / "three.safetensors", random_model(other, 0).state_dict(), other)
    assert run("evaluate", "digits", "--compare", f"x={tmp_path}/three.safetensors") == ExitCode.USAGE
    assert "three.safetensors has 3 classes" in capsys.readouterr().err
