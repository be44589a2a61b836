# SPDX-License-Identifier: Apache-2.0
"""The C runtime against the Python reader and predictor: same refusals, same plan rules, same bits."""

import os
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import drawn_options, reseal, sections, small_file, trivial_planner

from tvhil.errors import InputError, MissingToolError
from tvhil.packing import ModelError, Status, pack_vit, read_model
from tvhil.packing.format import MODEL, OPERATOR, PLAN, TENSOR, ScaleMode
from tvhil.packing.random_vit import random_vit
from tvhil.packing.schedule import Schedule
from tvhil.packing.trits import Codec
from tvhil.prediction.predictor import Predictor
from tvhil.runtime import (
    LoadedModel,
    RuntimeBuildError,
    StoppedError,
    build_library,
    default_runtime,
    device_dir,
    plan_memory,
)


def draw_image(model, seed=0):
    return np.random.default_rng(seed).integers(0, 256, model.info.input_shape, dtype=np.uint8)


def assert_runs_as_predicted(file: bytes, seed: int) -> LoadedModel:
    """Every output of every operator, bit for bit."""
    model, loaded = read_model(file), default_runtime().load(file)
    image = draw_image(model, seed)
    outputs = {}

    def observe(index):
        region = loaded.output(index)
        assert region == model.output_region(model.operators[index])
        outputs[index] = loaded.tensor(region.tensor), loaded.multipliers(region.tensor)

    loaded.arena[:] = 0x77  # whatever lies there must not matter
    logits = loaded.run(image, observer=observe)
    trace = Predictor(model).trace(image)
    assert len(trace) == len(outputs)
    for step in trace:
        values, multipliers = step.of(*outputs[step.operator])
        name = model.operators[step.operator].name
        assert values.dtype == step.values.dtype and (values == step.values).all(), name
        assert (multipliers is None) == (step.multipliers is None), name
        assert multipliers is None or (multipliers == step.multipliers).all(), name
    assert (logits == trace[-1].values[0]).all()
    return loaded


@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn_options(), st.sampled_from(list(Codec)), st.integers(0, 10_000))
def test_a_drawn_model_computes_what_numpy_predicts(options, codec, seed):
    assert_runs_as_predicted(pack_vit(random_vit(seed, **options), codec), seed)


@pytest.mark.parametrize("mode", list(ScaleMode))
def test_a_deep_model_with_more_than_64_tensors_computes_what_numpy_predicts(mode):
    file = pack_vit(random_vit(5, depth=20, embed_dim=24, mlp_dim=48, scale_mode=mode))
    assert len(assert_runs_as_predicted(file, 5).tensors) > 128


@st.composite
def drawn_schedules(draw):
    """A schedule, and the options of a model that can have it."""
    options = draw(drawn_options()) | {"scale_mode": ScaleMode.STATIC, "depth": draw(st.integers(1, 2))}
    split = draw(st.booleans())
    if split:
        options["embed_dim"] = options["heads"] * draw(st.sampled_from([16, 32]))
    options["mlp_dim"] = draw(st.sampled_from([5, 32, 80]))
    number = st.integers(1, 3)
    return options, Schedule(split, draw(st.booleans()), draw(number), draw(number), draw(number), draw(number))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(drawn_schedules(), st.sampled_from(list(Codec)), st.integers(0, 10_000))
def test_a_schedule_changes_no_bit_of_any_piece_and_no_logit(drawn, codec, seed):
    options, schedule = drawn
    vit = random_vit(seed, **options)
    whole, pieces = read_model(pack_vit(vit)), pack_vit(vit, codec, schedule=schedule)
    loaded = assert_runs_as_predicted(pieces, seed)
    image = draw_image(whole, seed)
    logits = Predictor(whole).run(image[None])[0]
    assert (loaded.run(image) == logits).all()
    assert (Predictor(read_model(pieces)).run(np.stack([image, 255 - image]))[0] == logits).all()


def test_deit_tiny_at_224_computes_what_numpy_predicts():
    vit = random_vit(
        1, image_size=(224, 224), channels=3, patch_size=16, embed_dim=192, depth=12, heads=3, mlp_dim=768, classes=1000
    )
    file = pack_vit(vit)
    model = read_model(file)
    image = draw_image(model)
    assert (default_runtime().load(file).run(image) == Predictor(model).run(image[None])[0]).all()


# --- the plan ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn_options(), st.integers(0, 10_000))
def test_a_plan_holds_what_is_alive_and_no_more_than_everything(options, seed):
    model = read_model(pack_vit(random_vit(seed, **options)))  # the reader checks it against liveness
    live = list(model.lifetimes())
    needed = max(
        sum(t.bytes for t, (first, last) in zip(model.tensors, live, strict=True) if first <= i <= last)
        for i in range(-1, len(model.operators) + 1)
    )
    everything = sum(-(-t.bytes // 16) * 16 for t in model.tensors)
    assert needed <= model.plan.arena_bytes <= everything + model.plan.scratch_bytes


def test_the_plan_of_deit_tiny_is_the_peak_of_what_is_alive():
    model = read_model(
        pack_vit(
            random_vit(
                1, image_size=(224, 224), channels=3, patch_size=16, embed_dim=192, depth=3, heads=3, mlp_dim=768
            )
        )
    )
    # In the MLP: the residual stream, the normalized tokens and the hidden layer, for whole blocks of tokens.
    assert model.plan.arena_bytes == 208 * (192 * 2 + 192 + 768)


@pytest.mark.parametrize("lines", range(1, 9))
@pytest.mark.parametrize("prefix", [0, 1])
def test_the_plan_of_an_image_larger_than_the_stream_is_one_that_both_accept(lines, prefix):
    vit = random_vit(
        0, image_size=(16 * lines, 64), channels=3, patch_size=16, depth=1, prefix_tokens=prefix, mean_pool=prefix == 0
    )
    model = assert_runs_as_predicted(pack_vit(vit), lines)
    assert model.image_lead() is not None


def test_each_operator_has_the_scratch_that_plans_are_made_for():
    file = pack_vit(random_vit(0))
    loaded, plan = default_runtime().load(file), read_model(file).plan
    assert [size for _, size in plan.scratches] == [
        -(-loaded.planned_scratch_bytes(i) // 16) * 16 for i in range(len(loaded.operators))
    ]
    assert plan.scratch_bytes == max(size for _, size in plan.scratches) > 0


def test_the_arena_of_the_library_has_the_scratch_of_the_portable_kernels_behind_the_plan():
    file = pack_vit(random_vit(0))
    loaded, plan = default_runtime().load(file), read_model(file).plan
    more = [need for i, (_, planned) in enumerate(plan.scratches) if (need := loaded.scratch_bytes(i)) > planned]
    assert more
    assert len(loaded.arena) == plan.arena_bytes + max(more)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(drawn_options(), st.integers(0, 10_000))
def test_the_image_may_overlap_the_stream_as_far_as_both_say(options, seed):
    file = pack_vit(random_vit(seed, **options))
    model = read_model(file)
    assert default_runtime().load(file).image_lead() == model.image_lead()


# --- refusals ------------------------------------------------------------------------------------------------


def refusal(reader, file):
    """(status, section, index) of a refusal, or None."""
    try:
        reader(file)
    except ModelError as error:
        if "the kernels of this build" in str(error) or "not JSON" in str(error):
            return None  # only the C runtime knows the one, only the host reads the other
        return error.status, error.section, error.index
    return None


def assert_refused_alike(file: bytes) -> Status | None:
    """Both readers say the same; the status."""
    ours, c = refusal(read_model, file), refusal(default_runtime().load, file)
    assert ours == c
    return ours[0] if ours else None


KINDS = ("static", "per_token", "pieces")
RECORDS = {"MODL": MODEL, "TENS": TENSOR, "OPER": OPERATOR, "PLAN": PLAN}
EXTREMES = [0, 1, 2, 3, 16, 127, 128, 255, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 16, 2**32 - 1]


@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    st.sampled_from(KINDS),
    st.sampled_from(sorted(RECORDS)),
    st.integers(0, 2**31),
    st.one_of(st.sampled_from(EXTREMES), st.integers(0, 2**32 - 1), st.integers(0, 64)),
)
def test_a_changed_field_is_refused_alike_by_both_readers(kind, tag, position, value):
    file = bytearray(model_file(kind))
    at, size = sections(bytes(file))[tag]
    fields = [
        (at + record + offset, np.dtype((dtype.base, dtype.shape)).base, index)
        for record in range(0, size - RECORDS[tag].itemsize + 1, RECORDS[tag].itemsize)
        for dtype, offset in RECORDS[tag].fields.values()
        for index in range(max(1, dtype.itemsize // dtype.base.itemsize))
        if dtype.base.kind == "u"
    ]
    where, dtype, index = fields[position % len(fields)]
    file[where + index * dtype.itemsize : where + (index + 1) * dtype.itemsize] = (
        value % 2 ** (8 * dtype.itemsize)
    ).to_bytes(dtype.itemsize, "little")
    assert_refused_alike(reseal(file))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(["DATA", "NAME", "PLAN", "OPER"]),
    st.integers(0, 2**31),
    st.integers(1, 255),
)
def test_a_changed_byte_is_refused_alike_by_both_readers(kind, tag, position, flip):
    file = bytearray(model_file(kind))
    at, size = sections(bytes(file))[tag]
    file[at + position % size] ^= flip
    assert_refused_alike(reseal(file))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 64 + 7 * 32 - 1), st.integers(1, 255))
def test_a_changed_byte_of_header_or_section_table_is_refused_alike_by_both_readers(at, flip):
    file = bytearray(model_file("static"))
    file[at] ^= flip
    assert assert_refused_alike(bytes(file)) is not None
    if at >= 64:
        assert_refused_alike(reseal(file))


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 4096))
def test_a_truncated_file_is_refused_alike_by_both_readers(keep):
    file = model_file("static")
    assert assert_refused_alike(file[: min(keep, len(file) - 1)]) == Status.BAD_SIZE


def test_an_overlap_of_tensors_far_apart_in_the_table_is_refused_alike():
    file = bytearray(pack_vit(random_vit(5, depth=20, embed_dim=24, mlp_dim=48)))
    model = read_model(bytes(file))
    live = list(model.lifetimes())
    late = max(t for t in range(len(live)) if live[t][0] > 140 and t != model.info.logits)
    at, _ = sections(bytes(file))["PLAN"]
    stream = model.plan.offsets[model.info.stream]
    file[at + 16 + 4 * late : at + 20 + 4 * late] = stream.to_bytes(4, "little")
    assert assert_refused_alike(reseal(file)) == Status.BAD_PLAN
    assert refusal(read_model, reseal(file))[2] == late


def test_a_plan_without_scratch_runs_with_more_memory_behind_it():
    def starved(draft):
        plan = trivial_planner(draft)
        return replace(plan, scratch_bytes=0, scratches=((0, 0),) * len(plan.scratches))

    assert_runs_as_predicted(pack_vit(random_vit(0), planner=starved), 0)


@cache
def model_file(kind: str) -> bytes:
    """A small model of each kind."""
    if kind == "pieces":
        schedule = Schedule(heads_split=True, attention_groups=2, mlp_passes=2, fc1_chunks=2, fc1_groups=2)
        options = {"image_size": (10, 10), "patch_size": 2, "embed_dim": 32, "heads": 2, "depth": 1, "mlp_dim": 32}
        return pack_vit(random_vit(2, classes=3, **options), Codec.GAPS, trivial_planner, schedule)
    mode, codec = {"static": (ScaleMode.STATIC, Codec.BASE3), "per_token": (ScaleMode.PER_TOKEN, Codec.TWO_BIT)}[kind]
    return small_file(
        2, codec, image_size=(6, 4), patch_size=2, embed_dim=10, depth=1, mlp_dim=19, classes=3, scale_mode=mode
    )


# --- the binding ---------------------------------------------------------------------------------------------


def test_a_run_stops_after_an_operator_and_leaves_its_output_to_read():
    file = pack_vit(random_vit(3))
    model, loaded = read_model(file), default_runtime().load(file)
    image = draw_image(model)
    for last in range(len(model.operators)):
        loaded.run(image, stop_after=last)
        predicted = Predictor(model).trace(image, last)[-1]
        assert (predicted.of(loaded.tensor(predicted.tensor))[0] == predicted.values).all()
    with pytest.raises(IndexError, match="no operator"):
        loaded.run(image, stop_after=len(model.operators))


def test_an_observer_can_stop_a_run_and_its_exception_comes_out():
    loaded = default_runtime().load(pack_vit(random_vit(3)))
    image = np.zeros((8, 8, 1), np.uint8)
    seen = []

    def stop_at_two(index):
        seen.append(index)
        return index == 2

    with pytest.raises(StoppedError):
        loaded.run(image, observer=stop_at_two)
    assert seen == [0, 1, 2]

    def fail(index):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loaded.run(image, observer=fail)


def test_an_image_of_another_size_or_type_is_refused():
    loaded = default_runtime().load(pack_vit(random_vit(3)))
    with pytest.raises(InputError, match="64 uint8 values"):
        loaded.run(np.zeros((8, 9, 1), np.uint8))
    with pytest.raises(InputError, match="float64"):
        loaded.run(np.zeros((8, 8, 1)))
    with pytest.raises(IndexError, match="no tensor"):
        loaded.tensor(len(loaded.tensors))


def test_the_library_is_built_once_for_each_state_of_its_sources(tmp_path):
    first = build_library(build_dir=tmp_path)
    before = first.stat().st_mtime_ns
    assert build_library(build_dir=tmp_path) == first
    assert first.stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_a_missing_compiler_is_named_with_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(MissingToolError, match="install the package gcc"):
        build_library(build_dir=tmp_path)


def test_a_missing_device_directory_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TVHIL_DEVICE_DIR", str(tmp_path))
    with pytest.raises(InputError, match="no C sources in"):
        device_dir()


def test_sources_that_do_not_compile_are_told_in_one_line(tmp_path):
    device = tmp_path / "device"
    for name in ("runtime", "kernels/portable", "app"):
        (device / name).mkdir(parents=True)
    (device / "runtime" / "load.c").write_text("#error broken on purpose\n")
    with pytest.raises(RuntimeBuildError, match="broken on purpose") as caught:
        build_library(device, tmp_path / "build")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "build").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_build_directory_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RuntimeBuildError, match="cannot build"):
        build_library(build_dir=tmp_path / "build")


def test_a_build_path_that_is_a_file_is_named(tmp_path):
    (tmp_path / "build").write_text("")
    with pytest.raises(RuntimeBuildError, match="cannot build the C runtime in"):
        build_library(build_dir=tmp_path / "build")


def test_the_planner_answers_for_a_file_whose_plan_is_zero():
    plans = []

    def recording(draft):
        assert read_model(draft, check_plan=False).plan.arena_bytes == 0
        plans.append(plan_memory(draft))
        return plans[0]

    plan = read_model(pack_vit(random_vit(0), planner=recording)).plan
    assert plans == [plan]


def test_every_status_has_a_text():
    runtime = default_runtime()
    texts = [runtime.status_text(status) for status in Status]
    assert len(set(texts)) == len(Status)
    assert runtime.status_text(len(Status)) == "unknown status"
