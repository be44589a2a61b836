# SPDX-License-Identifier: Apache-2.0
"""The planner: which schedule it takes, what it says of the others, what it refuses; and `tvhil plan`."""

import json
import shutil
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import drawn_options

from tvhil.boards.board import boards_dir
from tvhil.cli import main
from tvhil.commands.common import EMBEDDED_MODEL
from tvhil.commands.planning import parse_size
from tvhil.errors import ExitCode, InputError
from tvhil.packing import pack_vit, read_model
from tvhil.packing.format import MAX_OPERATORS, OpKind, ScaleMode
from tvhil.packing.planner import CACHE_BYTES, NothingFitsError, Work, esp32s3_cost, estimate_cycles, plan
from tvhil.packing.random_vit import random_vit
from tvhil.packing.schedule import Schedule, channel_chunks, token_groups
from tvhil.packing.trits import Codec
from tvhil.packing.unpack import codec_of, unpack_vit
from tvhil.prediction import Predictor
from tvhil.prediction.memory import arena_bytes

KB = 1024
DEIT = {"image_size": (224, 224), "patch_size": 16, "channels": 3, "depth": 12, "classes": 1000}
TINY = DEIT | {"embed_dim": 192, "heads": 3, "mlp_dim": 768}
SMALL = DEIT | {"embed_dim": 384, "heads": 6, "mlp_dim": 1536}
TOY = {"image_size": (40, 40), "embed_dim": 64, "heads": 4, "mlp_dim": 256, "depth": 2}


@cache
def toy(seed=0):
    return random_vit(seed, **TOY)


def run(*arguments):
    return main([str(argument) for argument in arguments])


# --- the figures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "depth"), [(Codec.BASE3, 2), (Codec.GAPS, 12)])
def test_deit_tiny_at_224_fits_192_kb(codec, depth):
    file, planned = plan(random_vit(0, **TINY | {"depth": depth}), codec, 192 * KB)
    assert read_model(file).plan.arena_bytes == planned.chosen.arena_bytes <= 192 * KB
    assert planned.chosen.reads <= 2


@pytest.mark.parametrize(("codec", "depth"), [(Codec.BASE3, 2), (Codec.GAPS, 12)])
def test_deit_small_at_224_fits_352_kb_with_each_weight_read_twice_at_most(codec, depth):
    file, planned = plan(random_vit(0, **SMALL | {"depth": depth}), codec, 352 * KB)
    model = read_model(file)
    assert model.plan.arena_bytes == planned.chosen.arena_bytes <= 352 * KB
    assert planned.chosen.reads <= 2
    # Counted in the file: a matrix is read again by each operator, unless what was read since is small.
    reads, cache = {}, []
    for op in model.operators:
        if op.kind not in (OpKind.LINEAR, OpKind.PATCH_EMBED):
            continue
        size = model.weights(op).bytes + 4 * op["n"]
        newer = cache[cache.index((op["trits_at"], size)) :] if (op["trits_at"], size) in cache else None
        if newer is None or sum(bytes_ for _, bytes_ in newer) > CACHE_BYTES:
            reads[op["trits_at"]] = reads.get(op["trits_at"], 0) + 1
        cache = [entry for entry in cache if entry[0] != op["trits_at"]] + [(op["trits_at"], size)]
    assert max(reads.values()) <= 2


# --- choosing ----------------------------------------------------------------------------------------------------


def test_alternatives_fall_in_arena_and_rise_in_time_and_start_with_the_whole_layers():
    _, planned = plan(toy(), Codec.GAPS)
    found = planned.alternatives
    assert planned.chosen.schedule == found[0].schedule == Schedule()
    assert len(found) >= 4
    for larger, smaller in pairwise(found):
        assert larger.arena_bytes > smaller.arena_bytes
        assert larger.cycles < smaller.cycles
    assert found[0].reads == 1


def test_the_fastest_that_fits_is_taken_at_every_arena():
    _, unlimited = plan(toy(), Codec.GAPS)
    for i, alternative in enumerate(unlimited.alternatives):
        for room in (0, 15):
            file, planned = plan(toy(), Codec.GAPS, alternative.arena_bytes + room)
            model = read_model(file)
            assert model.plan.arena_bytes <= alternative.arena_bytes + room
            assert planned.chosen.cycles <= unlimited.alternatives[min(i + 1, len(unlimited.alternatives) - 1)].cycles
            assert planned.chosen.operators == len(model.operators)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(drawn_options(), st.sampled_from(list(Codec)), st.integers(0, 1000), st.floats(0.3, 1.2))
def test_a_drawn_model_is_planned_without_changing_a_logit_or_refused(options, codec, seed, share):
    vit = random_vit(seed, **options)
    whole = read_model(pack_vit(vit))
    arena = int(whole.plan.arena_bytes * share)
    try:
        file, planned = plan(vit, codec, arena)
    except NothingFitsError as error:
        assert f"{arena:,}" in str(error) and "smallest plan needs" in str(error)
        return
    model = read_model(file)
    assert model.plan.arena_bytes <= arena
    assert vit.scale_mode is ScaleMode.STATIC or planned.chosen.schedule == Schedule()
    images = np.random.default_rng(seed).integers(0, 256, (2, *model.info.input_shape)).astype(np.uint8)
    assert (Predictor(model).run(images) == Predictor(whole).run(images)).all()


def test_models_with_per_token_scales_are_never_split():
    vit = random_vit(0, scale_mode=ScaleMode.PER_TOKEN, **TOY)
    _, planned = plan(vit, Codec.BASE3)
    assert [a.schedule for a in planned.alternatives] == [Schedule()]
    assert planned.chosen.cycles is None
    with pytest.raises(NothingFitsError, match="never split"):
        plan(vit, Codec.BASE3, planned.chosen.arena_bytes - 1)
    with pytest.raises(InputError, match="per-token activation scales"):
        pack_vit(vit, schedule=Schedule(mlp_passes=2))


def test_heads_that_are_no_multiple_of_16_stay_together():
    vit = random_vit(0, embed_dim=60, heads=3)
    assert not any(a.schedule.heads_split for a in plan(vit, Codec.BASE3)[1].alternatives)
    with pytest.raises(InputError, match="heads of 20 columns"):
        pack_vit(vit, schedule=Schedule(heads_split=True))


def test_psram_is_used_only_where_nothing_fits_the_internal_memory():
    _, unlimited = plan(toy(), Codec.GAPS)
    smallest = unlimited.alternatives[-1].arena_bytes
    assert plan(toy(), Codec.GAPS, smallest, 1 << 20)[1].memory == "sram"
    file, planned = plan(toy(), Codec.GAPS, smallest - 16, 1 << 20)
    assert planned.memory == "psram"
    assert smallest <= read_model(file).plan.arena_bytes == planned.chosen.arena_bytes
    with pytest.raises(NothingFitsError, match=f"nor one of {smallest - 16:,} in PSRAM"):
        plan(toy(), Codec.GAPS, smallest - 16, smallest - 16)


@pytest.mark.parametrize("arena", [KB, 16 * KB])
def test_a_model_whose_smallest_plan_fits_the_psram_is_not_refused(arena):
    """The plan for both memories may need more than that for one: what is read most comes first there."""
    _, unlimited = plan(toy(), Codec.GAPS)
    smallest = unlimited.alternatives[-1].arena_bytes
    file, planned = plan(toy(), Codec.GAPS, arena, smallest)
    assert planned.memory == "psram" and read_model(file).plan.arena_bytes == smallest


def test_what_linear_operators_read_lies_in_the_internal_memory_of_a_plan_for_both():
    """Their inputs are read again for each output channel: those of any layer that is not alone too large."""
    vit = random_vit(0, image_size=(72, 72), patch_size=8, embed_dim=192, heads=3, mlp_dim=1536, depth=1)
    arena = 60 * KB
    file, planned = plan(vit, Codec.BASE3, arena, 1 << 21)
    model = read_model(file)
    assert planned.memory == "psram" and planned.chosen.schedule.mlp_passes > 1
    for op in model.operators:
        if op.kind is OpKind.LINEAR and op.name.startswith("blocks."):
            t = op.inputs[0]
            assert model.plan.offsets[t] + model.tensors[t].bytes <= arena, op.name
    assert model.plan.arena_bytes > arena
    images = np.random.default_rng(0).integers(0, 256, (1, *model.info.input_shape)).astype(np.uint8)
    assert (Predictor(model).run(images) == Predictor(read_model(pack_vit(vit))).run(images)).all()


def test_a_refusal_names_the_smallest_arena_what_fills_it_and_what_would_have_to_change():
    _, unlimited = plan(toy(), Codec.GAPS)
    smallest = unlimited.alternatives[-1]
    with pytest.raises(NothingFitsError) as caught:
        plan(toy(), Codec.GAPS, smallest.arena_bytes - 1)
    text = str(caught.value)
    assert "\n" not in text
    for part in (f"{smallest.arena_bytes - 1:,}", f"{smallest.arena_bytes:,}", smallest.schedule.describe(), "stream "):
        assert part in text
    assert "images of 36x36 (82 tokens instead of 101)" in text
    assert "a board with PSRAM" in text
    # What it advises helps.
    plan(random_vit(0, **TOY | {"image_size": (36, 36)}), Codec.GAPS, smallest.arena_bytes - 1)


def test_a_model_of_many_tokens_is_planned_within_the_operators_that_a_file_may_have():
    vit = random_vit(0, image_size=(176, 176), depth=6, embed_dim=32, heads=2, mlp_dim=64)  # 1937 tokens
    _, unlimited = plan(vit, Codec.BASE3)
    smallest = unlimited.alternatives[-1]
    assert smallest.operators <= MAX_OPERATORS
    file, _ = plan(vit, Codec.BASE3, smallest.arena_bytes)
    assert len(read_model(file).operators) == smallest.operators
    with pytest.raises(NothingFitsError):
        plan(vit, Codec.BASE3, smallest.arena_bytes - 16)


def test_a_refusal_counts_the_image_under_the_stream_where_that_is_what_fills_the_arena():
    vit = random_vit(0, image_size=(96, 96), channels=3, patch_size=16, depth=1)
    with pytest.raises(NothingFitsError, match=r"image 27,648, scratch [\d,]+ alive at patch_embed\.proj"):
        plan(vit, Codec.BASE3, 10_000)


def test_the_arena_of_a_skeleton_is_that_of_the_model():
    vit = random_vit(0, **TOY | {"depth": 3})
    for alternative in plan(vit, Codec.BASE3)[1].alternatives:
        file = pack_vit(vit, schedule=alternative.schedule)
        assert read_model(file).plan.arena_bytes == alternative.arena_bytes


def test_chunks_of_fc1_are_cut_only_to_stay_in_the_cache():
    vit = random_vit(0, image_size=(96, 96), embed_dim=256, heads=4, mlp_dim=1024, depth=1)
    found = plan(vit, Codec.GAPS)[1].alternatives
    cut = [a for a in found if a.schedule.fc1_chunks > 1]
    assert cut
    for alternative in cut:
        assert alternative.schedule.fc1_groups > 1
        assert alternative.reads == alternative.schedule.mlp_passes


def test_the_estimate_grows_with_rows_weights_and_flash_and_about_halves_on_two_cores():
    linear = Work(OpKind.LINEAR, 96, 192, 768, 110.0, Codec.GAPS, "i8", 50_000, 12)
    cost = estimate_cycles([linear])
    assert estimate_cycles([]) == 0
    assert estimate_cycles([linear, linear]) == 2 * cost
    for more in ({"rows": 112}, {"channels": 800}, {"nonzeros": 111.0}, {"output": "i16_add"}, {"flash_bytes": 50_064}):
        assert estimate_cycles([replace(linear, **more)]) > cost
    assert estimate_cycles([replace(linear, rows=81)]) == cost  # the same blocks of 16
    assert estimate_cycles([replace(linear, codec=Codec.BASE3)]) > cost
    assert 1.7 * cost < estimate_cycles([linear], cores=1) < 2 * cost


@pytest.mark.parametrize("codec", list(Codec))
@pytest.mark.parametrize("cores", [1, 2])
def test_the_estimate_of_a_schedule_is_the_prediction_of_the_file(codec, cores):
    vit = random_vit(
        0, image_size=(112, 112), channels=3, patch_size=16, embed_dim=192, heads=3, mlp_dim=768, classes=1000
    )
    _, planned = plan(vit, codec, cores=cores)
    for alternative in planned.alternatives:
        model = read_model(pack_vit(vit, codec, schedule=alternative.schedule))
        assert alternative.cycles == pytest.approx(esp32s3_cost().predict(model, cores).total, rel=0.02)


@given(st.integers(0, 5), st.integers(1, 300), st.integers(1, 30))
def test_groups_of_tokens_and_chunks_of_channels_cover_everything_once(first, rows, parts):
    groups = token_groups(16 * first, rows, parts)
    assert len(groups) <= parts
    assert groups[0][0] == 16 * first and sum(count for _, count in groups) == rows
    assert all(a + count == b for (a, count), (b, _) in pairwise(groups))
    assert all(start % 16 == 0 for start, _ in groups)
    blocks = [-(-count // 16) for _, count in groups]
    assert max(blocks) - min(blocks) <= 1
    chunks = channel_chunks(rows, parts)
    assert [c for start, count in chunks for c in range(start, start + count)] == list(range(rows))


# --- unpacking ---------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.sampled_from(list(Codec)), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_what_is_unpacked_packs_to_the_same_file_again(codec, groups, passes, split, seed):
    vit = random_vit(seed, image_size=(20, 20), embed_dim=32, prefix_tokens=seed % 3, mean_pool=seed % 3 == 0)
    schedule = Schedule(split, True, groups, passes, 1 + seed % 2, groups)
    whole = pack_vit(vit, codec)
    cut = read_model(pack_vit(vit, codec, schedule=schedule))
    assert codec_of(cut) is codec
    assert pack_vit(unpack_vit(cut), codec) == whole
    assert pack_vit(unpack_vit(read_model(whole)), codec, schedule=schedule) == cut.file


def test_a_model_of_equal_matrices_unpacks_although_its_pieces_share_their_data():
    vit = toy()
    for block in vit.blocks:
        for matrix in (block.q, block.k, block.v, block.fc1):
            matrix.trits[:] = 0
            matrix.bias[:] = 0
            matrix.gain[:] = 1
    cut = pack_vit(vit, schedule=Schedule(heads_split=True, mlp_passes=2, fc1_chunks=2, fc1_groups=2))
    assert pack_vit(unpack_vit(read_model(cut))) == pack_vit(vit)
    toy.cache_clear()


def test_the_embedded_model_is_planned_for_the_kernels_of_this_tree():
    """If not: tvhil plan --arena 1M -o host/tvhil/embedded/vit_digits.tvit"""
    model = read_model(EMBEDDED_MODEL)
    assert arena_bytes(model, "pie") == model.plan.arena_bytes
    assert pack_vit(unpack_vit(model), codec_of(model)) == model.file


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "m.tvit"
    path.write_bytes(pack_vit(toy()))
    return path


def test_plan_writes_a_smaller_model_with_the_same_logits_and_the_same_meta(model_file, tmp_path, capsys):
    before = read_model(model_file)
    out, found = tmp_path / "small.tvit", tmp_path / "p.json"
    arena = before.plan.arena_bytes * 3 // 4
    assert run("plan", model_file, "--arena", arena, "--codec", "gaps", "-o", out, "--json", found) == ExitCode.OK
    after, result = read_model(out), json.loads(found.read_text())
    assert after.plan.arena_bytes <= arena < before.plan.arena_bytes
    assert after.meta == before.meta and after.signature != before.signature
    assert codec_of(after) is Codec.GAPS
    images = np.random.default_rng(0).integers(0, 256, (3, *before.info.input_shape)).astype(np.uint8)
    assert (Predictor(after).run(images) == Predictor(before).run(images)).all()
    assert result["signature"] == after.signature
    assert result["chosen"]["arena_bytes"] == after.plan.arena_bytes
    assert result["arena_limit"] == arena and result["memory"] == "sram"
    assert {"arena_bytes", "flash_bytes", "reads", "predicted_cycles", "description"} <= set(result["alternatives"][0])
    text = capsys.readouterr().out
    assert "chosen" in text and f"{before.plan.arena_bytes:,}" in text


def test_plan_without_an_output_only_shows_what_it_would_choose(model_file, tmp_path, capsys):
    before = model_file.read_bytes()
    assert run("plan", model_file, "--arena", "1M") == ExitCode.OK
    assert [path.name for path in tmp_path.iterdir()] == ["m.tvit"]
    assert model_file.read_bytes() == before
    assert "attention of all heads; MLP in one pass" in capsys.readouterr().out


def test_plan_refuses_an_arena_that_is_too_small_in_one_line_and_writes_nothing(model_file, tmp_path, capsys):
    out = tmp_path / "out.tvit"
    assert run("plan", model_file, "--arena", "1K", "-o", out) == ExitCode.BAD_INPUT
    error = capsys.readouterr().err.strip()
    assert "does not fit an arena of 1,024 bytes: the smallest plan needs" in error and "\n" not in error
    assert not out.exists()


def test_inspect_shows_a_layer_once_with_the_number_of_its_pieces(model_file, tmp_path, capsys):
    out = tmp_path / "cut.tvit"
    schedule = Schedule(heads_split=True, mlp_passes=2, fc1_chunks=2, fc1_groups=2)
    out.write_bytes(pack_vit(toy(), Codec.GAPS, schedule=schedule))
    assert run("inspect", out, "--operators", "--json", tmp_path / "i.json") == ExitCode.OK
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "blocks.0.mlp.fc1" in line]
    fc1 = next(row for row in rows if row[1] == "blocks.0.mlp.fc1")
    assert fc1[2:4] == ["linear", "8"] and "256x64" in fc1
    content = json.loads((tmp_path / "i.json").read_text())
    matrices = [m for b in toy().blocks for m in (b.q, b.k, b.v, b.proj, b.fc1, b.fc2)]
    assert content["ternary_weights"] == sum(m.trits.size for m in [toy().patch_embed, *toy().heads_out, *matrices])
    assert content["format_version"] == 2
    assert content["operators"][2]["writes"] == {"row": 0, "rows": 101, "column": 0, "columns": 16}


def test_plan_takes_the_arena_of_a_board(model_file, capsys):
    assert run("plan", model_file, "--board", "native", "--json", "-") == ExitCode.OK
    from tvhil.boards import load_board

    assert json.loads(capsys.readouterr().out)["arena_limit"] == load_board("native").memory.arena


def test_plan_and_predict_say_that_activations_are_in_psram_and_not_in_the_cost_model(model_file, tmp_path, capsys):
    shutil.copy(boards_dir() / "esp32s3.toml", tmp_path)
    board = tmp_path / "small.toml"
    board.write_text(
        'name = "small"\nextends = "esp32s3"\nsummary = ""\n[memory]\narena = 8192\npsram_arena = 0x4_0000'
    )
    out = tmp_path / "out.tvit"
    note = "not in the cost model"
    assert run("plan", model_file, "--board", board, "-o", out) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "PSRAM, nothing fits the internal memory" in text and note in text
    assert run("predict", out, "--board", board) == 0
    assert note in " ".join(capsys.readouterr().out.split())
    assert run("predict", out, "--board", board, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["memory"]["arena"]["in_psram"] is True
    assert run("predict", model_file, "--board", "esp32s3") == 0
    assert "PSRAM" not in capsys.readouterr().out


def test_pack_plans_for_an_arena(tmp_path, capsys):
    arguments = ["--arch", "vit_digits", "--image-size", 32, "--untrained", "--codec", "gaps", "--json", "-"]
    assert run("pack", *arguments, "--arena", "1M", "-o", tmp_path / "whole.tvit") == ExitCode.OK
    whole = json.loads(capsys.readouterr().out)
    assert whole["plan"]["chosen"]["schedule"] == asdict(Schedule())
    arena = whole["arena_bytes"] - 1
    assert run("pack", *arguments, "--arena", arena, "-o", tmp_path / "m.tvit") == ExitCode.OK
    result = json.loads(capsys.readouterr().out)
    assert result["arena_bytes"] == read_model(tmp_path / "m.tvit").plan.arena_bytes <= arena
    assert result["plan"]["chosen"]["schedule"] != asdict(Schedule())
    assert run("pack", *arguments, "--arena", "1K", "-o", tmp_path / "n.tvit") == ExitCode.BAD_INPUT
    assert not (tmp_path / "n.tvit").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("196608", 196608),
        ("192K", 196608),
        ("192 kb", 196608),
        ("192KiB", 196608),
        ("0x30000", 196608),
        ("1M", 1 << 20),
    ],
)
def test_sizes_are_written_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "12X", "-5", "1.5M"])
def test_what_is_no_size_is_a_usage_error(text, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("plan", f"--arena={text}")
    assert stopped.value.code == ExitCode.USAGE
    assert "is no size" in capsys.readouterr().err
