# SPDX-License-Identifier: Apache-2.0
"""The harness itself, on a board in memory: mismatches to the element, resuming, time-outs, Ctrl-C, figures."""

import json
import threading

import numpy as np
import pytest
from evaluation_fakes import FakeDevice, model_in_pieces, random_inputs, small_model
from hypothesis import given
from hypothesis import strategies as st

from tvhil.errors import BoardError, DatasetError
from tvhil.evaluation import report as reports
from tvhil.evaluation.compare import rank_of
from tvhil.evaluation.journal import Journal, JournalError, read_journal
from tvhil.evaluation.run import Evaluation, Input, StoppedError, batch_size, predict_ahead
from tvhil.packing.format import ScaleMode
from tvhil.prediction import Predictor
from tvhil.prediction.latency import LatencyPrediction

HEADER = {"model": "random", "board": "fake"}


def evaluate(path, model, device, inputs, **options):
    with Journal.resume(path, HEADER) as journal:
        return Evaluation(model, Predictor(model), journal, **options).run(device, inputs)


def test_a_right_board_is_bit_exact_on_every_image(tmp_path):
    model = small_model()
    summary = evaluate(tmp_path / "j", model, FakeDevice(model), random_inputs(model, 7))
    assert (summary.images, summary.bit_exact, summary.max_abs_error, summary.same_top1) == (7, 7, 0, 7)
    assert summary.first_divergence is None
    found = [row for row in read_journal(tmp_path / "j")[1] if "image" in row]
    assert [row["image"] for row in found] == list(range(7))


def test_the_board_gets_exactly_the_images_of_the_evaluation(tmp_path):
    model = small_model()
    device, inputs = FakeDevice(model), random_inputs(model, 5)
    evaluate(tmp_path / "j", model, device, inputs)
    assert device.images == [item.load().tobytes() for item in inputs]


@pytest.mark.parametrize(
    ("of", "index"),
    [(of, index) for of in (small_model, model_in_pieces) for index in range(len(of().operators))],
)
def test_one_changed_element_is_reported_to_the_operator_token_and_channel(tmp_path, of, index):
    model = of()
    op, tensor = model.operators[index], model.tensors[model.operators[index].output]
    region = model.output_region(op)
    token, channel = region.row + region.rows - 1, region.column + region.columns // 2
    inputs = random_inputs(model, 2)
    original = int(Predictor(model).trace(inputs[0].load())[index].values[-1, region.columns // 2])

    def corrupt(run, outputs):
        # A wrong operator changes its own output and everything that follows.
        for output in outputs[index:]:
            output.values[-1, output.values.shape[1] // 2] ^= 1

    summary = evaluate(tmp_path / "j", model, FakeDevice(model, corrupt), inputs)
    found = summary.first_divergence
    assert summary.bit_exact == 0
    assert (found["operator"], found["name"], found["kind"]) == (index, op.name, op.kind.name)
    assert (found["token"], found["channel"], found["part"]) == (token, channel, "value")
    assert (found["expected"], found["got"]) == (original, original ^ 1)
    digits = 2 * tensor.dtype.numpy.itemsize
    assert found["got_hex"] == f"0x{(original ^ 1) & (16**digits - 1):0{digits}x}"
    assert (found["differing"], found["elements"]) == (1, region.rows * region.columns)


def test_a_changed_per_token_scale_is_reported_with_its_token(tmp_path):
    model = small_model(1, ScaleMode.PER_TOKEN)
    index = next(i for i, op in enumerate(model.operators) if model.tensors[op.output].per_token)

    def corrupt(run, outputs):
        if len(outputs) > index:
            outputs[index].multipliers[3] += 5
            if len(outputs) == len(model.operators):
                outputs[-1].values[0, 0] ^= 1

    found = evaluate(tmp_path / "j", model, FakeDevice(model, corrupt), random_inputs(model, 1)).first_divergence
    assert (found["operator"], found["part"], found["token"], found["channel"]) == (index, "multiplier", 3, None)
    assert found["got"] - found["expected"] == 5


def test_a_mismatch_that_does_not_repeat_is_called_that(tmp_path):
    model = small_model()

    def corrupt(run, outputs):
        if run == 0:
            outputs[-1].values[0, 0] ^= 1

    summary = evaluate(tmp_path / "j", model, FakeDevice(model, corrupt), random_inputs(model, 3))
    assert summary.bit_exact == 2
    assert "does not repeat itself" in summary.first_divergence["reason"]
    assert "does not repeat itself" in reports.describe_divergence(summary.first_divergence)


def test_an_evaluation_goes_on_after_a_mismatch_and_explains_only_the_first(tmp_path):
    model = small_model()
    device = FakeDevice(model, lambda run, outputs: outputs[-1].values.__ixor__(1))
    summary = evaluate(tmp_path / "j", model, device, random_inputs(model, 4))
    assert (summary.images, summary.bit_exact) == (4, 0)
    assert device.runs == 4 + 2  # one traced run and one up to the operator
    rows = [row for row in read_journal(tmp_path / "j")[1] if "image" in row]
    assert ["divergence" in row for row in rows] == [True, False, False, False]


def test_fail_fast_stops_at_the_first_mismatch_and_keeps_it(tmp_path):
    model = small_model()
    device = FakeDevice(model, lambda run, outputs: outputs[-1].values.__ixor__(int(run >= 2)))
    with pytest.raises(StoppedError, match="image 2") as caught:
        evaluate(tmp_path / "j", model, device, random_inputs(model, 9), fail_fast=True)
    assert caught.value.exit_code == 6
    rows = [row for row in read_journal(tmp_path / "j")[1] if "image" in row]
    assert [row["exact"] for row in rows] == [True, True, False]


def test_a_board_that_stops_answering_keeps_the_journal_and_resume_runs_the_rest_once(tmp_path):
    model, inputs = small_model(), random_inputs(small_model(), 10)
    with pytest.raises(BoardError, match="stopped answering"):
        evaluate(tmp_path / "j", model, FakeDevice(model, dead_from=4), inputs)
    device = FakeDevice(model)
    summary = evaluate(tmp_path / "j", model, device, inputs)
    assert device.images == [item.load().tobytes() for item in inputs[4:]]
    assert (summary.images, summary.bit_exact) == (10, 10)


def test_the_report_of_an_evaluation_that_was_cut_off_often_equals_an_undisturbed_one(tmp_path):
    model, inputs = small_model(), random_inputs(small_model(), 12)

    def figures(path):
        report = reports.empty_report()
        summary = reports.summarize(read_journal(path)[1])
        reports.fill_latency_prediction(report, None, [op.name for op in model.operators])
        reports.fill_measured(report, summary)
        del report["created"], report["link"]["seconds"]
        return report

    class PerImage(FakeDevice):
        # Counters that depend on the image alone, as an emulator's do.
        def run(self, image, **options):
            self.runs += 2 - self.runs % 3
            return super().run(image, **options)

        def link_statistics(self):
            return [100 * len(self.images), 10, 0, 0, 0] if self.images else [0] * 5

    evaluate(tmp_path / "whole", model, PerImage(model), inputs)
    size = 0
    for cut in range(1, 60):
        path = tmp_path / "cut"
        if path.exists():
            size = len(path.read_bytes())
            path.write_bytes(path.read_bytes()[: size - 7 * (cut % 3)])
        device = PerImage(model, dead_from=3)
        try:
            evaluate(path, model, device, inputs)
            break
        except BoardError:
            continue
    whole, cut_off = figures(tmp_path / "whole"), figures(tmp_path / "cut")
    for report in (whole, cut_off):
        del report["link"]["bytes_received"]  # the greeting of each session
    assert cut_off == whole


def test_ctrl_c_keeps_what_is_done_and_leaves_no_thread_running(tmp_path):
    model, inputs = small_model(), random_inputs(small_model(), 40)

    class Impatient(FakeDevice):
        def run(self, image, **options):
            if self.runs == 3:
                raise KeyboardInterrupt
            return super().run(image, **options)

    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "j", model, Impatient(model), inputs)
    for thread in threading.enumerate():
        if thread.name.startswith("predict"):
            thread.join(10)
            assert not thread.is_alive()
    assert evaluate(tmp_path / "j", model, FakeDevice(model), inputs).bit_exact == 40


def test_a_board_with_another_model_is_refused_before_the_first_image(tmp_path):
    model = small_model()
    device = FakeDevice(model, signature=small_model(5).signature)
    with pytest.raises(BoardError, match=model.signature[:16]):
        evaluate(tmp_path / "j", model, device, random_inputs(model, 2))
    assert device.runs == 0


def test_resuming_with_other_firmware_is_refused(tmp_path):
    model, inputs = small_model(), random_inputs(small_model(), 4)
    evaluate(tmp_path / "j", model, FakeDevice(model), inputs[:2])
    with pytest.raises(JournalError, match=r"build-1.*build-2"):
        evaluate(tmp_path / "j", model, FakeDevice(model, build="build-2"), inputs)


def test_an_error_while_reading_the_dataset_comes_out(tmp_path):
    model = small_model()

    def broken():
        raise DatasetError("the archive is cut off")

    inputs = [*random_inputs(model, 40), Input(40, "broken", 0, broken)]
    with pytest.raises(DatasetError, match="cut off"):
        evaluate(tmp_path / "j", model, FakeDevice(model), inputs)
    assert sum("image" in row for row in read_journal(tmp_path / "j")[1]) == 32  # the batches before it


def test_resuming_with_other_images_is_refused_naming_one(tmp_path):
    model = small_model()
    evaluate(tmp_path / "j", model, FakeDevice(model), random_inputs(model, 4))
    with pytest.raises(JournalError, match="image 0 has changed"):
        evaluate(tmp_path / "j", model, FakeDevice(model), random_inputs(model, 6, seed=9))


def test_prediction_keeps_the_order_of_the_images():
    model = small_model()
    inputs = random_inputs(model, 23)
    predicted = list(predict_ahead(inputs, Predictor(model), 4))
    assert [entry.input.index for entry in predicted] == list(range(23))
    alone = Predictor(model).run(np.stack([item.load() for item in inputs]))
    assert np.array_equal(np.stack([entry.logits for entry in predicted]), alone)


@pytest.mark.parametrize(("macs", "size"), [(1_000, 32), (1_254_000_000, 3), (4_600_000_000, 1), (0, 32)])
def test_a_batch_is_short_enough_to_be_interrupted(macs, size):
    assert batch_size(macs) == size


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=12), st.data())
def test_rank_counts_ties_in_favour_of_the_lower_class(logits, data):
    label = data.draw(st.integers(0, len(logits) - 1))
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    assert rank_of(np.array(logits), label) == order.index(label)
    assert (rank_of(np.array(logits), label) == 0) == (int(np.argmax(logits)) == label)


def row(image, *, latency=100.0, label=1, rank=0, exact=True, layers=(40.0, 50.0)):
    return {
        "image": image, "id": str(image), "image_crc": 0, "label": label, "exact": exact, "error": 9 * (not exact),
        "top1": 1, "predicted_top1": 1, "rank": rank, "latency": latency, "layers": layers, "link": [10, 20, 1, 0, 0],
        "seconds": 0.5,
    }  # fmt: skip


def test_a_report_has_the_stable_keys_and_null_for_what_was_not_measured():
    report = reports.empty_report()
    assert list(report) == [
        "schema", "tool_version", "created", "model", "board", "dataset", "logits", "accuracy", "latency", "memory",
        "link", "images",
    ]  # fmt: skip
    assert list(report["model"]) == ["name", "file", "sha256", "bytes", "parameters", "input", "classes"]
    assert list(report["latency"]) == ["unit", "measured", "predicted", "relative_error", "layers"]
    assert report["memory"]["arena"] == {"measured": None, "predicted": None}
    assert report["memory"]["stack"] == {"measured": None, "limit": None}
    json.dumps(report, allow_nan=False)


def test_figures_of_a_report():
    rows = [row(i, latency=100.0 + i, rank=i % 6, exact=i != 3) for i in range(20)]
    report = reports.empty_report()
    prediction = LatencyPrediction("instructions", 110.0, (("a", 40.0), ("b", 60.0)))
    reports.fill_latency_prediction(report, prediction, ["a", "b"])
    reports.fill_measured(report, reports.summarize([*rows, row(3), {"memory": {"arena": {"measured": 5}}}]))
    assert report["dataset"]["images"] == 20
    assert report["logits"]["bit_exact"] == 19
    assert report["logits"]["max_abs_error"] == 9
    assert report["accuracy"] == {"top1": 4 / 20, "top5": 17 / 20, "predicted_top1": 1.0}
    assert report["latency"]["measured"] == {"mean": 109.5, "p50": 109, "p95": 118, "max": 119}
    assert report["latency"]["relative_error"] == round(110 / 109.5 - 1, 6)
    assert report["latency"]["layers"] == [
        {"name": "a", "measured": 40, "predicted": 40, "operators": [0]},
        {"name": "b", "measured": 50, "predicted": 60, "operators": [1]},
        {"name": reports.REMAINDER, "measured": 19.5, "predicted": 10, "operators": []},
    ]
    assert report["link"] == {
        "bytes_sent": 200, "bytes_received": 400, "frames": 20, "retries": 0, "crc_errors": 0, "seconds": 10,
    }  # fmt: skip
    assert report["memory"]["arena"] == {"measured": 5, "predicted": None}


def test_the_pieces_of_a_layer_are_one_row_of_a_report():
    report = reports.empty_report()
    prediction = LatencyPrediction("cycles", 100.0, (("a", 10.0), ("b", 20.0), ("a", 30.0), ("c", 5.0)))
    reports.fill_latency_prediction(report, prediction, ["a", "b", "a", "c"])
    layers = report["latency"]["layers"]
    assert [(r["name"], r["predicted"], r["operators"]) for r in layers] == [
        ("a", 40, [0, 2]), ("b", 20, [1]), ("c", 5, [3]), (reports.REMAINDER, 35, []),
    ]  # fmt: skip
    reports.fill_layers(layers, "measured", [1.0, 2.0, 3.0])  # a run that stopped before the last operator
    assert [row["measured"] for row in layers] == [4, 2, None, None]


def test_accuracy_is_null_where_there_are_no_labels():
    report = reports.empty_report()
    reports.fill_measured(report, reports.summarize([row(0, label=None, rank=None)]))
    assert report["accuracy"] == {"top1": None, "top5": None, "predicted_top1": None}


def test_the_summary_of_many_images_stays_small():
    summary = reports.Summary()
    for i in range(20_000):
        summary.add(row(i))
    assert summary.latencies.itemsize * summary.latencies.buffer_info()[1] <= 8 * 20_000
    assert summary.images == 20_000
