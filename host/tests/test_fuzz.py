# SPDX-License-Identifier: Apache-2.0
"""What `make fuzz` searches, replayed in seconds: corpora under the sanitizers, their coverage, mutated model files on
host and device, and each reader of the package with mutated files. What a fuzzer has found is a test here."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import fuzz_readers as readers
import fuzz_targets as targets
import numpy as np
import pytest
from fuzz_models import with_meta
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from link_boards import environment
from model_files import reseal, sections, small_file

from tvhil.packing import ModelError, Status, read_model
from tvhil.packing.format import OPERATOR, OpKind
from tvhil.prediction import Predictor
from tvhil.runtime import default_runtime, device_dir, find_compiler

MUTATED = 10_000
DRAWN = 1500
FUZZ = Path(__file__).resolve().parents[2] / "tools" / "fuzz.py"


@pytest.fixture(scope="module")
def mutated() -> list[bytes]:
    """Mutated model files with the right SHA-256."""
    return [targets.resign(file) for file in targets.mutated_models(find_compiler(), MUTATED, seed=1)]


@pytest.fixture(scope="module")
def replayed(mutated, tmp_path_factory) -> dict[str, list[Path]]:
    """The inputs of each C target: its corpus, mutated models for the loader, drawn messages for the server."""
    found = {target: [targets.corpus(target)] for target in targets.C_TARGETS}
    for target, files in (("model", mutated[:DRAWN]), ("server", targets.server_inputs(DRAWN, seed=1))):
        folder = tmp_path_factory.mktemp(target)
        for i, file in enumerate(files):
            (folder / str(i)).write_bytes(file)
        found[target].append(folder)
    return found


@pytest.mark.parametrize("target", targets.C_TARGETS)
def test_the_corpus_of_a_c_target_replays_cleanly_under_the_sanitizers(target, replayed):
    kept = sum(1 for path in targets.corpus(target).rglob("*") if path.is_file())
    count = targets.replay(target, find_compiler(), replayed[target])
    assert count == kept + (0 if target == "framing" else DRAWN)
    assert kept > 0


def test_the_corpora_are_small():
    sizes = [path.stat().st_size for path in (device_dir() / "fuzz" / "corpus").rglob("*") if path.is_file()]
    assert sum(sizes) < 32 << 10


def test_the_replayed_inputs_reach_95_percent_of_the_lines_of_every_c_parser(replayed):
    if shutil.which("gcc") is None or shutil.which("gcov") is None:
        pytest.skip("gcov is not installed: apt-get install gcc")
    covered = targets.line_coverage("gcc", replayed)
    assert {name: f"{hit}/{lines}" for name, (hit, lines) in covered.items() if hit < 0.95 * lines} == {}
    assert all(lines > 30 for _, lines in covered.values())


def offer_models(files: list[bytes], flags: tuple[str, ...] = (), extra: tuple[str, ...] = ()) -> list[str]:
    """What device/fuzz/offer_models.c says about each file."""
    program = targets.build_c("offer_models", find_compiler(), (*targets.SANITIZE, *flags), extra)
    stream = b"".join(struct.pack("<I", len(file)) + file for file in files)
    done = subprocess.run([program], input=stream, capture_output=True, env=environment(), timeout=600, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
    return done.stdout.decode().splitlines()


def test_mutated_models_give_the_same_logits_in_rows_and_in_token_blocks(mutated):
    """The kernels in token blocks spoil all that they may: a model that could tell is not accepted."""
    rows = offer_models(mutated)
    blocks = offer_models(mutated, ("-DTVIT_KERNELS_PIE", "-pthread"), ("tests/block_kernels.c",))
    assert blocks == rows
    assert sum(line.startswith("0 ") and not line.endswith("-") for line in rows) > 500


def test_ten_thousand_mutated_models_are_refused_alike_or_computed_bit_exactly_by_host_and_device(mutated):
    lines = offer_models(mutated)
    verdicts: Counter[str] = Counter()
    for number, (file, line) in enumerate(zip(mutated, lines, strict=True)):
        code, section, index, *logits = line.split()
        device = Status(int(code)), section[:-1], None if index == "-1" else int(index)
        try:
            model = read_model(file)
            host = Status.OK, "", None
        except ModelError as error:
            host = error.status, error.section, error.index
        if host == device == (Status.OK, "", None):
            verdicts["accepted" if logits != ["-"] else "too much work"] += 1
            if logits == ["-"]:
                continue
            shape = model.info.input_shape
            image = ((37 * np.arange(np.prod(shape)) + 11) % 256).astype(np.uint8).reshape(1, *shape)
            assert Predictor(model).run(image)[0].tolist() == [int(value) for value in logits], number
        elif device[0] is Status.OK:  # the only thing that the device does not read
            assert host == (Status.BAD_SECTION, "META", None), number
            verdicts["META"] += 1
        elif host[0] is Status.OK:  # the only thing that the host does not know
            assert device == (Status.BAD_PLAN, "PLAN", None), number
            verdicts["scratch"] += 1
        else:
            assert host == device, number
            verdicts["refused"] += 1
            verdicts[host[0].name] += 1
    assert verdicts["accepted"] > 500
    assert verdicts["refused"] > 5000
    assert verdicts["too much work"] + verdicts["scratch"] < 100
    kinds = [Status.BAD_MAGIC, Status.BAD_VERSION, Status.BAD_SIZE, Status.BAD_CRC, Status.BAD_SECTION, Status.BAD_NAME]
    kinds += [Status.BAD_MODEL, Status.BAD_TENSOR, Status.BAD_OPERATOR, Status.BAD_PARAMETER, Status.BAD_CHANNEL]
    assert all(verdicts[kind.name] for kind in [*kinds, Status.BAD_PLAN]), verdicts


@pytest.mark.parametrize("name", readers.READERS)
def test_a_reader_takes_any_bytes_or_refuses_them_in_one_line(name, tmp_path):
    taken: Counter[bool] = Counter()

    @settings(max_examples=300, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(readers.inputs(name))
    def offer(data: bytes) -> None:
        taken[readers.READERS[name].offer(data, tmp_path)] += 1

    offer()
    assert taken[True] >= 5
    assert name in ("frames", "training_log") or taken[False] >= 50


@pytest.mark.parametrize("name", readers.READERS)
def test_a_reader_takes_its_seeds(name, tmp_path):
    assert all(readers.READERS[name].offer(data, tmp_path) for data in readers.READERS[name].seeds())


@given(st.integers(0, 1 << 32), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_mutations_are_the_same_for_the_same_seed(seed, count):
    assert targets.mutated_models(find_compiler(), count, seed) == targets.mutated_models(find_compiler(), count, seed)


# --- what fuzzers have found -----------------------------------------------------------------------------------


def test_attention_whose_keys_are_its_values_is_refused_by_host_and_device():
    """Kernels use the keys as memory of their own."""
    file = bytearray(small_file(5, embed_dim=16, heads=2, depth=1))
    at, size = sections(file)["OPER"]
    for record in np.frombuffer(file, OPERATOR, size // OPERATOR.itemsize, at):
        if record["kind"] == OpKind.ATTENTION:
            record["input"][2] = record["input"][1]
    for read in (read_model, default_runtime().load):
        with pytest.raises(ModelError) as refused:
            read(reseal(file))
        assert (refused.value.status, refused.value.section) == (Status.BAD_OPERATOR, "OPER")


_DEEP = b"[" * 100_000
_LONG = b"1" * 5000  # more digits than Python converts


@pytest.mark.parametrize("value", [_DEEP, _LONG], ids=["nested", "long"])
def test_json_and_toml_that_python_gives_up_on_are_refused_in_one_line(value, tmp_path):
    from safetensors.torch import save
    from torch import zeros

    from tvhil.errors import InputError
    from tvhil.models.checkpoints import CONFIG_KEY
    from tvhil.profiling.benchmark import read_bench
    from tvhil.quantization.config import QuantizationConfig
    from tvhil.rack.pool import read_pool

    state = b'{"recipe": "", "phase": 0, "step": 0, "seconds": 0, "results": ' + value + b"}"
    row = b'{"schema":"tvhil.journal/1","x":' + value
    for name, data in (
        ("read_model", with_meta(b'{"classes": ' + value)),
        ("journal", b'%s,"crc":"%08x"}\n' % (row, zlib.crc32(row))),
        *((name, b"name = " + value) for name in ("board_files", "mappings", "recipes")),
        ("recipes", readers.beginnings("recipes")[0] + b"\n#set seed=" + value),
        ("training_state", state),
        ("checkpoints", save({"a": zeros(1)}, {CONFIG_KEY: '{"depth": ' + value.decode() + "}"})),
    ):
        assert not readers.READERS[name].offer(data, tmp_path), name
    (tmp_path / "bench.json").write_bytes(b'{"schema": ' + value + b"}")
    with pytest.raises(InputError, match="not JSON"):
        read_bench(tmp_path / "bench.json")
    (tmp_path / "pool.toml").write_bytes(b"board = " + value)
    with pytest.raises(InputError, match=re.escape("pool.toml")):
        read_pool(tmp_path / "pool.toml")
    with pytest.raises(InputError, match="not JSON"):
        QuantizationConfig.from_json('{"bits": ' + value.decode() + "}")


@pytest.mark.parametrize("size", [0x0280, 0x0380, 0x0480, 0x0580, 0x4B50])
def test_safetensors_whose_header_has_the_length_of_a_magic_number_are_read(size, tmp_path):
    """The length is what the file begins with: 80 02 of a pickle, PK of a zip archive."""
    from safetensors.torch import save
    from torch import ones

    from tvhil.models import read_checkpoint

    padding = {"about": ""}
    padding["about"] = "x" * (size - struct.unpack_from("<Q", save({"a": ones(3)}, padding))[0])
    data = save({"a": ones(3)}, padding)
    assert struct.unpack_from("<Q", data)[0] == size
    (tmp_path / "c").write_bytes(data)
    assert read_checkpoint(tmp_path / "c").state["a"].tolist() == [1, 1, 1]


def test_projections_of_different_shapes_are_refused_with_their_shapes():
    from torch import zeros

    from tvhil.errors import CheckpointError
    from tvhil.models.checkpoints import to_timm_keys

    state = {f"layers.0.attention.{part}_proj.weight": zeros(4, 4 + (part == "v")) for part in "qkv"}
    with pytest.raises(CheckpointError, match=re.escape("they have [4, 4], [4, 4], [4, 5]")):
        to_timm_keys(state | {"embeddings.patch_embeddings.projection.bias": zeros(4)})


def test_an_archive_with_a_member_without_a_name_is_refused(tmp_path):
    from fuzz_files import zip_archive

    from tvhil.datasets.archives import open_tree
    from tvhil.errors import DatasetError

    (tmp_path / "a.zip").write_bytes(zip_archive({"a.png": b"", "": b""}))
    with pytest.raises(DatasetError, match="has no plain name"):
        open_tree(tmp_path / "a.zip")


def test_a_zip_member_whose_own_header_has_another_name_is_refused(tmp_path):
    from fuzz_files import zip_archive

    from tvhil.datasets.archives import open_tree
    from tvhil.errors import DatasetError

    for name in (b"\xff\xff", b"\xc3\xb6"):
        (tmp_path / "a.zip").write_bytes(zip_archive({"\xe4.png": b"x"}).replace(b"\xc3\xa4", name, 1))
        with pytest.raises(DatasetError, match="png is damaged"):
            open_tree(tmp_path / "a.zip").read("\xe4.png")


@pytest.mark.parametrize("change", [{"num_classes": 10**12}, {"embed_dim": 3 * 10**9}, {"depth": 10**9}])
def test_a_configuration_of_a_far_larger_model_than_the_file_holds_is_refused(change, tmp_path):
    from safetensors.torch import save
    from torch import zeros

    from tvhil.errors import CheckpointError
    from tvhil.models import model_config, read_checkpoint
    from tvhil.models.checkpoints import CONFIG_KEY

    config = json.loads(model_config("vit_digits").to_json()) | change
    (tmp_path / "c").write_bytes(save({"a": zeros(1)}, {CONFIG_KEY: json.dumps(config)}))
    with pytest.raises(CheckpointError, match=r"weights or more, and it holds 1$"):
        read_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("change", [{"widths": [10**6] * 3}, {"num_classes": 10**12}, {"widths": ["x", 1, 1]}])
def test_a_teacher_whose_configuration_does_not_fit_its_tensors_is_refused_before_memory_is_taken(change, tmp_path):
    text = json.loads(readers.beginnings("teachers")[0])
    assert readers.READERS["teachers"].offer(json.dumps(text).encode(), tmp_path)
    assert not readers.READERS["teachers"].offer(json.dumps(text | change).encode(), tmp_path)


def test_an_mlp_of_infinite_width_is_refused():
    from tvhil.errors import InputError
    from tvhil.models import ViTConfig, model_config

    text = json.dumps(json.loads(model_config("vit_digits").to_json()) | {"mlp_ratio": 1e308})
    with pytest.raises(InputError, match="mlp_ratio must be above 0 and at most 64"):
        ViTConfig.from_json(text)


def test_class_names_that_are_no_list_are_taken_for_none():
    for classes in (b"1", b"true", b'"ab"', b'{"a": 1}'):
        model = read_model(with_meta(b'{"classes": %s}' % classes))
        assert model.classes == [f"class {i}" for i in range(model.info.classes)]


@pytest.mark.parametrize("template", [r"\q", r"\g<a>", r"\g<"])
def test_a_template_of_a_mapping_that_is_none_is_refused_when_the_file_is_read(template, tmp_path):
    from tvhil.errors import InputError
    from tvhil.models.mapping import read_mapping

    (tmp_path / "m.toml").write_text(f"rename = [{{pattern = 'x', to = '{template}'}}]")
    with pytest.raises(InputError, match="cannot take the place of a match"):
        read_mapping(tmp_path / "m.toml")


@pytest.mark.parametrize("change", ["phase.epochs=inf", "phase.weight_decay=nan", "phase.augmentation.scale=inf"])
def test_a_recipe_with_a_number_that_is_not_finite_is_refused(change):
    from tvhil.errors import InputError
    from tvhil.quantization.training.recipe import load_recipe

    with pytest.raises(InputError, match="must be finite"):
        load_recipe("ftervit", [change])


def test_a_partition_whose_name_would_be_cut_short_in_flash_is_refused(tmp_path):
    from tvhil.boards.partitions import read_partitions
    from tvhil.errors import InputError

    (tmp_path / "p.csv").write_text("n\0s, data, nvs, 0x9000, 24K\n")
    with pytest.raises(InputError, match="printable name"):
        read_partitions(tmp_path / "p.csv")


def test_boards_that_stand_for_each_other_have_no_cost_model(tmp_path):
    from tvhil.boards import load_board
    from tvhil.boards.board import boards_dir

    (tmp_path / "native.toml").write_bytes((boards_dir() / "native.toml").read_bytes())
    for one, other in ("ab", "ba"):
        (tmp_path / f"{one}.toml").write_text(f"name = '{one}'\nextends = 'native'\nstands_for = '{other}'\n")
    assert load_board(tmp_path / "a.toml").cost is None


def test_a_table_or_list_that_is_a_number_is_refused(tmp_path):
    from tvhil.boards import load_board
    from tvhil.boards.board import boards_dir
    from tvhil.errors import InputError
    from tvhil.prediction.latency import CostModel
    from tvhil.quantization.training.recipe import load_recipe

    with pytest.raises(InputError, match="full_precision must be a list, not 1"):
        load_recipe("ftervit", ["phase.quantization.full_precision=1"])
    with pytest.raises(InputError, match="must be a table"):
        CostModel.from_table(1)
    (tmp_path / "native.toml").write_bytes((boards_dir() / "native.toml").read_bytes())
    (tmp_path / "a.toml").write_text("name = 'a'\nextends = 'native'\ncounter = 1\n")
    with pytest.raises(InputError, match=re.escape("[counter] must be a table")):
        load_board(tmp_path / "a.toml")


@pytest.mark.parametrize("change", [{"phase": "x"}, {"step": -1}, {"seconds": None}, {"results": 1}, {"recipe": []}])
def test_a_training_state_with_a_field_of_another_kind_is_refused(change, tmp_path):
    state = {"recipe": "", "phase": 0, "step": 0, "seconds": 0, "results": []}
    assert readers.READERS["training_state"].offer(json.dumps(state).encode(), tmp_path)
    assert not readers.READERS["training_state"].offer(json.dumps(state | change).encode(), tmp_path)


# --- the command -----------------------------------------------------------------------------------------------


def test_a_missing_fuzzer_is_named_with_the_packages_to_install(tmp_path):
    done = subprocess.run(
        [sys.executable, FUZZ, "--seconds", "1"], env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert re.fullmatch(r"fuzz: .*apt-get install clang libclang-rt-\d+-dev\n", done.stderr)


def test_a_finding_in_a_reader_is_kept_and_fails_the_command(tmp_path):
    sabotage = (
        "import sys, runpy; from tvhil.evaluation import journal\n"
        "def fail(path): raise KeyError('sabotage')\n"
        "journal.read_journal = fail\n"
        "import pathlib\n"
        f"sys.argv = [{str(FUZZ)!r}, '--in-process', '--seconds', '1', 'journal']\n"
        f"namespace = runpy.run_path({str(FUZZ)!r})\n"
        f"namespace['main'].__globals__['FINDINGS'] = pathlib.Path({str(tmp_path)!r})\n"
        "sys.exit(namespace['main']())\n"
    )
    done = subprocess.run([sys.executable, "-c", sabotage], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "KeyError: 'sabotage'" in done.stdout
    assert len(list(tmp_path.glob("journal-*"))) == 1


def test_a_reader_is_fuzzed_for_as_long_as_told_and_its_coverage_is_measured(tmp_path):
    done = subprocess.run(
        [sys.executable, FUZZ, "--seconds", "1", "frames"], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("frames"))
    assert int(row.split()[1].replace(",", "")) >= 200
    for module in readers.READERS["frames"].modules:
        assert float(re.search(rf"{module} +([\d.]+) % of the parser's lines", done.stdout)[1]) >= 95


def test_every_parser_of_the_package_has_a_reader_that_is_fuzzed():
    assert {module for reader in readers.READERS.values() for module in reader.modules} == set(readers.PARSERS)
