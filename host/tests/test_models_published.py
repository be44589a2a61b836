# SPDX-License-Identifier: Apache-2.0
"""Weights by timm's names: addresses, downloads from a mirror, resumption, digests, and refusals in one line."""

import functools
import hashlib
import http.server
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
import safetensors.torch
import torch
from test_models_checkpoints import random_state

from tvhil.cli import main
from tvhil.errors import CheckpointError, UsageError
from tvhil.models import load_model, model_config, published, registry
from tvhil.models.published import _ORIGINALS, HUB, fetch_published, find_published, read_hub_config
from tvhil.packing import read_model
from tvhil.quantization import load_quantized

DEIT3 = "deit3_small_patch16_224.fb_in1k"
HUB_FILE = {
    "architecture": "deit3_small_patch16_224",
    "num_classes": 5,
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "classifier": "head",
    },
}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; knows ranges, redirections with the Hub's digest, and how to break off."""

    requests: ClassVar[list] = []
    break_after = None
    digest = None

    def do_GET(self):
        self.requests.append((self.path, self.headers.get("Range")))
        if self.path.startswith("/hub/") and Handler.digest is not None:
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/hub"))
            self.send_header("X-Linked-ETag", f'"{Handler.digest}"')
            self.end_headers()
            return
        file = self.translate_path(self.path.removeprefix("/hub"))
        try:
            content = Path(file).read_bytes()
        except OSError:
            self.send_error(404)
            return
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if "Range" in self.headers else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if Handler.break_after is not None and len(body) > Handler.break_after:
            body, Handler.break_after = body[: Handler.break_after], None
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A local mirror that holds one small model under a name of timm's; its folder."""
    folder = tmp_path / "mirror"
    config = model_config("deit3_small_patch16_224", num_classes=5, depth=1, embed_dim=24, num_heads=3)
    (folder / DEIT3).mkdir(parents=True)
    safetensors.torch.save_file(random_state(config), folder / DEIT3 / "model.safetensors")
    (folder / DEIT3 / "config.json").write_text(json.dumps(HUB_FILE))
    Handler.requests, Handler.break_after, Handler.digest = [], None, None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TVHIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TVHIL_MIRROR", f"http://127.0.0.1:{server.server_port}/hub")
    yield folder
    server.shutdown()
    server.server_close()


def test_names_lead_to_the_original_files_or_to_the_hub(monkeypatch):
    monkeypatch.delenv("TVHIL_MIRROR", raising=False)
    deit = find_published("timm:deit_tiny_distilled_patch16_224")
    assert deit.urls == {
        "deit_tiny_distilled_patch16_224-b40b3cf7.pth": (
            "https://dl.fbaipublicfiles.com/deit/deit_tiny_distilled_patch16_224-b40b3cf7.pth"
        )
    }
    assert (deit.sha256, deit.arch) == ("b40b3cf7", "deit_tiny_distilled_patch16_224")
    deit3 = find_published("timm:deit3_small_patch16_384.fb_in22k_ft_in1k")
    assert deit3.urls["model.safetensors"] == (
        f"{HUB}/deit3_small_patch16_384.fb_in22k_ft_in1k/resolve/main/model.safetensors"
    )
    assert deit3.sha256 is None
    assert find_published("timm:vit_base_patch16_224").name == "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    for name, file in _ORIGINALS.items():
        assert model_config(name.partition(".")[0]).image_size in (224, 384)
        assert file.startswith(name.partition(".")[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet50.a1_in1k", "is no name of timm's weights"),
        (
            "timm:deit_huge_patch16_224",
            "'deit_huge' of 'deit_huge_patch16_224' is no architecture",
        ),
        (
            "timm:deit_tiny_patch16_384",
            "timm has no weights 'deit_tiny_patch16_384' that classify; there are .*deit_tiny_patch16_224",
        ),
        ("timm:../../etc/passwd", "is no name of timm's weights"),
        ("timm:", "is no name of timm's weights"),
    ],
)
def test_a_name_that_timm_or_tvhil_does_not_have_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        find_published(name)


def test_the_names_that_are_listed_are_those_that_are_found(capsys, monkeypatch):
    monkeypatch.delenv("TVHIL_MIRROR", raising=False)
    assert main(["models", "deit_*", "--weights", "--json", "-"]) == 0
    listed = json.loads(capsys.readouterr().out)["weights"]
    assert {row["name"].removeprefix("timm:") for row in listed} == set(_ORIGINALS)
    for name in published.published_names():
        assert find_published(name).name == name
        assert model_config(name.partition(".")[0]).image_size in (224, 384)
    assert main(["models", "swin*", "--weights"]) == 2


def test_names_tags_and_files_are_those_of_timm():
    timm = pytest.importorskip("timm", reason="timm needs a torchvision beside this torch")
    for name in published.published_names():
        theirs = timm.models.get_pretrained_cfg(name)
        assert theirs.hf_hub_id == f"timm/{name}"
        assert theirs.url.endswith(_ORIGINALS.get(name, ""))
        assert theirs.num_classes > 0
    for bare, tags in published.TAGS.items():
        assert timm.models.get_pretrained_cfg(bare).tag == tags[0]


def test_weights_by_name_load_with_the_architecture_and_preprocessing_that_timm_tells(mirror, monkeypatch):
    small = model_config("deit3_small", depth=1, embed_dim=24, num_heads=3)
    monkeypatch.setitem(registry._VARIANTS, "deit3_small", lambda: small)
    model, report = load_model(f"timm:{DEIT3}")
    assert report.notes == ()
    assert model.config.num_classes == 5
    assert model.config.preprocessing.std == (0.25, 0.25, 0.25)
    assert model.config.preprocessing.crop_pct == 1.0
    theirs = safetensors.torch.load_file(mirror / DEIT3 / "model.safetensors")
    assert torch.equal(model.head.weight, theirs["head.weight"])
    asked = len(Handler.requests)
    load_model(f"timm:{DEIT3}", image_size=64)
    assert len(Handler.requests) == asked  # from the cache


DISTILLED = "deit_tiny_distilled_patch16_224.fb_in1k"


@pytest.fixture
def original(mirror, monkeypatch):
    """An original file of DeiT on the mirror, distilled and one block deep; its tensors."""
    small = model_config("deit_tiny_distilled", depth=1, embed_dim=24, num_heads=3)
    monkeypatch.setitem(registry._VARIANTS, "deit_tiny_distilled", lambda: small)
    state = random_state(small)
    (mirror / DISTILLED).mkdir()
    torch.save({"model": state}, mirror / DISTILLED / "d.pth")
    digest = hashlib.sha256((mirror / DISTILLED / "d.pth").read_bytes()).hexdigest()
    monkeypatch.setitem(published._ORIGINALS, DISTILLED, f"deit_tiny_distilled_patch16_224-{digest[:8]}.pth")
    (mirror / DISTILLED / "d.pth").rename(mirror / DISTILLED / published._ORIGINALS[DISTILLED])
    return state


def test_a_distilled_original_loads_by_name_at_its_own_size_and_at_another(original):
    model, report = load_model("timm:deit_tiny_distilled_patch16_224")
    assert report.notes == ()
    assert model.config.distilled
    assert all(torch.equal(tensor, original[name]) for name, tensor in model.state_dict().items())
    model, report = load_model("timm:deit_tiny_distilled_patch16_224", image_size=96)
    assert report.notes == ("position embedding resampled from 198 rows to 38",)
    assert torch.equal(model.pos_embed[:, :2], original["pos_embed"][:, :2])


def test_the_commands_take_a_name_in_place_of_a_file(original, tmp_path, capsys):
    names = ["timm:deit_tiny_distilled_patch16_224", "--image-size", "32"]
    assert main(["quantize", *names, "-o", str(tmp_path / "q.safetensors")]) == 0
    assert load_quantized(tmp_path / "q.safetensors").config.image_size == 32
    assert main(["pack", *names, "-o", str(tmp_path / "m.tvit")]) == 0
    assert read_model((tmp_path / "m.tvit").read_bytes()).info.image_height == 32
    assert main(["quantize", "timm:deit_tinny_patch16_224", "-o", str(tmp_path / "x.safetensors")]) == 2
    assert "'deit_tinny' of 'deit_tinny_patch16_224' is no architecture" in capsys.readouterr().err


@pytest.fixture
def small_deit3(mirror, monkeypatch):
    """The mirror's model, as its architecture is registered meanwhile; the tensors of its file."""
    small = model_config("deit3_small", depth=1, embed_dim=24, num_heads=3)
    monkeypatch.setitem(registry._VARIANTS, "deit3_small", lambda: small)
    return safetensors.torch.load_file(mirror / DEIT3 / "model.safetensors")


def test_a_training_starts_from_a_name_and_learns_from_one(small_deit3, tmp_path, capsys):
    from PIL import Image

    from tvhil.quantization.training.models import load_any

    assert torch.equal(load_any(Path(f"timm:{DEIT3}")).head.weight, small_deit3["head.weight"])
    for split in ("train", "test"):
        for label in range(5):
            (tmp_path / split / f"class{label}").mkdir(parents=True)
            Image.new("RGB", (224, 224), (50 * label, 0, 0)).save(tmp_path / split / f"class{label}" / "a.png")
    changes = ["model.depth=1", "model.embed_dim=24", "model.num_heads=3", "phase.batch=5", "phase.epochs=1"]
    changes += ["phase.warmup=0", "phase.recalibrations=0", "phase.augmentation={}"]
    words = f"train ftervit --dataset folder --data {tmp_path} --arch deit3_small_patch16_224 --device cpu --verify 1"
    words += f" --init timm:{DEIT3} --teacher timm:{DEIT3} -o {tmp_path}/run"
    assert main([*words.split(), *(word for change in changes for word in ("--set", change))]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["teacher"] == report["initial"] == f"timm:{DEIT3}"
    trained = load_any(tmp_path / "run" / "model.safetensors").state_dict()
    torch.testing.assert_close(
        trained["pos_embed"], small_deit3["pos_embed"], atol=1e-3, rtol=0
    )  # two small steps away
    assert main([*words.replace("teacher timm:deit3", "teacher timm:deit7").split()]) == 2
    assert "'deit7_small' of" in capsys.readouterr().err


def test_a_name_is_put_beside_another_model(small_deit3, tmp_path):
    words = f"evaluate synthetic --limit 2 --as-is --model timm:{DEIT3} --compare other=timm:{DEIT3}"
    assert main([*words.split(), "--json", str(tmp_path / "e.json")]) == 0
    report = json.loads((tmp_path / "e.json").read_text())
    assert [row["file"] for row in report["implementations"]] == [f"timm:{DEIT3}"] * 2
    assert report["agreement"]["top1"][0][1] == 1.0


def test_processes_that_ask_for_one_name_together_download_it_once(mirror):
    with ThreadPoolExecutor(4) as pool:
        files = set(pool.map(fetch_published, [f"timm:{DEIT3}"] * 4))
    assert len(files) == 1
    assert [path for path, _ in Handler.requests] == [f"/hub/{DEIT3}/config.json", f"/hub/{DEIT3}/model.safetensors"]


def test_a_file_in_a_folder_of_the_hub_needs_no_arch_either(mirror, monkeypatch):
    assert read_hub_config(mirror / DEIT3 / "model.safetensors").arch == "deit3_small_patch16_224"
    (mirror / DEIT3 / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')  # transformers
    assert read_hub_config(mirror / DEIT3 / "model.safetensors") is None
    (mirror / DEIT3 / "config.json").write_text('{"architecture": "x", "pretrained_cfg": {"mean": 7}}')
    with pytest.raises(CheckpointError, match="pretrained_cfg is malformed"):
        read_hub_config(mirror / DEIT3 / "model.safetensors")
    (mirror / DEIT3 / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not readable JSON"):
        read_hub_config(mirror / DEIT3 / "model.safetensors")


def test_an_interrupted_download_continues_where_it_stopped(mirror):
    content = (mirror / DEIT3 / "model.safetensors").read_bytes()
    fetched = []
    (mirror / DEIT3 / "config.json").write_text("{}")
    Handler.break_after = 1000
    with pytest.raises(CheckpointError, match="cannot download"):
        fetch_published(f"timm:{DEIT3}")
    file = fetch_published(f"timm:{DEIT3}", lambda done, total: fetched.append((done, total)))
    assert file.read_bytes() == content
    assert Handler.requests[-1] == (f"/hub/{DEIT3}/model.safetensors", "bytes=1000-")
    assert fetched[-1] == (len(content), len(content))
    assert sorted(f.name for f in file.parent.iterdir()) == [
        "config.json", "config.json.sha256", "model.safetensors", "model.safetensors.sha256",
    ]  # fmt: skip


def test_the_digest_that_the_hub_tells_is_checked(mirror):
    content = (mirror / DEIT3 / "model.safetensors").read_bytes()
    (mirror / DEIT3 / "config.json").write_bytes(content)  # one digest for both files
    Handler.digest = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(CheckpointError, match=f"has SHA-256 .*, not {Handler.digest} as published: it was damaged"):
        fetch_published(f"timm:{DEIT3}")
    Handler.digest = hashlib.sha256(content).hexdigest()
    assert fetch_published(f"timm:{DEIT3}").read_bytes() == content


def test_an_original_whose_digest_is_not_in_its_name_is_refused_and_not_kept(mirror, tmp_path):
    name = "deit_tiny_patch16_224.fb_in1k"
    (mirror / name).mkdir()
    (mirror / name / _ORIGINALS[name]).write_bytes(b"replaced")
    with pytest.raises(CheckpointError, match=r"has SHA-256 \w+, not a1311bcf… as published"):
        fetch_published(f"timm:{name}")
    assert list((tmp_path / "cache" / "timm" / name).iterdir()) == []


def test_a_cached_file_that_changed_is_downloaded_again(mirror):
    file = fetch_published(f"timm:{DEIT3}")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    assert fetch_published(f"timm:{DEIT3}").read_bytes() == content


def test_no_access_and_absent_files_are_told_in_one_line(mirror, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"answers 404 .* \(timm has no weights of that name and tag\)"):
        fetch_published("timm:deit3_small_patch16_224.no_such_tag")
    monkeypatch.setenv("TVHIL_MIRROR", "http://127.0.0.1:1")
    with pytest.raises(CheckpointError, match=r"cannot download http://127.0.0.1:1/.*Connection refused.*TVHIL_MIRROR"):
        fetch_published("timm:deit3_small_patch16_224.other")
    monkeypatch.setenv("TVHIL_MIRROR", mirror.as_uri())
    assert fetch_published(f"timm:{DEIT3}").is_file()  # a folder is a mirror, too
    monkeypatch.setenv("TVHIL_MIRROR", (tmp_path / "absent").as_uri())
    with pytest.raises(CheckpointError, match="cannot download file:"):
        fetch_published("timm:deit3_base_patch16_224")
