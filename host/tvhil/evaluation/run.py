# SPDX-License-Identifier: Apache-2.0
"""Stream images to a board, compare its logits with the prediction, write one journal row an image."""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tvhil.errors import BoardError, ExitCode
from tvhil.evaluation import compare
from tvhil.evaluation.device import Device, DeviceFacts, Run
from tvhil.evaluation.journal import Journal, JournalError
from tvhil.evaluation.report import IndexSet, Summary
from tvhil.packing.reader import TvitModel
from tvhil.prediction.predictor import Predictor

# A batch of the predictor should take well under a second, so that Ctrl-C and the first image need not wait for it.
_MACS_PER_BATCH = 4e9
_MOST_PER_BATCH = 32
_BATCHES_AHEAD = 2

Image = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.int16]
Finished = Callable[[Summary, dict[str, Any]], None]


@dataclass(frozen=True)
class Input:
    """One image of an evaluation.

    Attributes:
        index: position in the evaluation, from 0.
        id: what the dataset calls it.
        label: its class, or None.
        load: the image, uint8 `[H][W][C]`, as the model takes it.
    """

    index: int
    id: str
    label: int | None
    load: Callable[[], Image]


class Predicted(NamedTuple):
    """An image, ready to be sent, and the logits to expect."""

    input: Input
    image: Image
    logits: Logits


class StoppedError(BoardError):
    """The first mismatch of an evaluation that was to stop there."""

    exit_code = ExitCode.MISMATCH


def operators_of(model: TvitModel) -> list[compare.Operator]:
    """How the operators of a model are called in a report."""
    return [
        compare.Operator(i, op.name, op.kind.name, model.tensors[op.output].name)
        for i, op in enumerate(model.operators)
    ]


def predict_ahead(inputs: Iterable[Input], predictor: Predictor, batch: int) -> Iterator[Predicted]:
    """Read and predict in another thread, a few batches ahead, so that the board need not wait."""
    iterator = iter(inputs)

    def next_batch() -> list[Predicted]:
        chunk = list(islice(iterator, batch))
        if not chunk:
            return []
        images = [item.load() for item in chunk]
        logits = predictor.run(np.stack(images), batch)
        return [Predicted(*entry) for entry in zip(chunk, images, logits, strict=True)]

    pool = ThreadPoolExecutor(1, "predict")
    try:
        futures: deque[Future[list[Predicted]]] = deque(pool.submit(next_batch) for _ in range(_BATCHES_AHEAD))
        while done := futures.popleft().result():
            futures.append(pool.submit(next_batch))
            yield from done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def batch_size(macs: int) -> int:
    """Images a batch of the predictor, for a model of so many multiply-accumulates."""
    return int(max(1, min(_MOST_PER_BATCH, _MACS_PER_BATCH // max(macs, 1))))


def check_signature(model: TvitModel, facts: DeviceFacts) -> None:
    """Refuse to compare with a board that runs another model.

    Raises:
        BoardError: both signatures.
    """
    if facts.signature != model.signature:
        raise BoardError(
            f"the board runs model {facts.signature[:16]}…, the file is {model.signature[:16]}…: flash it first"
        )


def explain(device: Device, predictor: Predictor, image: Image) -> compare.Divergence:
    """The first operator and element of an image that differ on a board; runs the image up to three times more."""
    model = predictor.model

    def trace() -> tuple[npt.NDArray[np.integer[Any]], Sequence[int]]:
        run: Run = device.run(image, crcs=True)
        return run.output, run.crcs or []

    def read_output(index: int) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.uint16] | None]:
        device.run(image, last=index)
        return device.read_tensor(model.operators[index].output)

    return compare.locate_divergence(operators_of(model), predictor.trace(image), trace, read_output)


class Evaluation:
    """One model on one board, compared image by image.

    Args:
        model: the file that the board runs.
        predictor: of that model.
        journal: open; what it already holds is not run again.
        fail_fast: stop at the first mismatch.
    """

    def __init__(self, model: TvitModel, predictor: Predictor, journal: Journal, *, fail_fast: bool = False) -> None:
        self.model, self.predictor, self.journal = model, predictor, journal
        self.fail_fast = fail_fast
        self.summary = Summary()
        self.done = IndexSet()
        self._crcs: dict[int, int] = {}
        self.build: str | None = None
        for row in journal.rows():
            self._take(row)

    def run(self, device: Device, inputs: Iterable[Input], finished: Finished | None = None) -> Summary:
        """Run all images that the journal does not hold yet.

        Args:
            device: the running board.
            inputs: every image of the evaluation, in order.
            finished: called after each image with its journal row.

        Raises:
            BoardError: the board stopped answering, or runs another model; the journal keeps what is done.
            StoppedError: a mismatch, with `fail_fast`.
            JournalError: the journal is of other firmware or other images.
        """
        self.begin(device.facts())
        for predicted in self.predicted(inputs):
            row = self.measure(device, predicted)
            self.record(row)
            if finished:
                finished(self.summary, row)
            if self.fail_fast and not row["exact"]:
                self.record({"memory": device.memory()})
                raise self.stopped(row)
        self.record({"memory": device.memory()})
        return self.summary

    def predicted(self, inputs: Iterable[Input]) -> Iterator[Predicted]:
        """The images that are left, in order, with the logits to expect."""
        every = list(inputs)
        self._check_images(every)
        todo = (item for item in every if item.index not in self.done)
        return predict_ahead(todo, self.predictor, batch_size(self.model.info.macs))

    def stopped(self, row: dict[str, Any]) -> StoppedError:
        """What `fail_fast` raises."""
        return StoppedError(f"image {row['id']} is not bit-exact, and --fail-fast was given")

    def _check_images(self, inputs: Sequence[Input]) -> None:
        """Refuse to continue when the first or the last image of the journal is not what it was."""
        for index, crc in self._crcs.items():
            item = next((item for item in inputs if item.index == index), None)
            if item is None or zlib.crc32(item.load().tobytes()) != crc:
                raise JournalError(
                    f"{self.journal.path} is of other images: {item.id if item else f'image {index}'} has changed. "
                    "Choose another journal, or start over with --overwrite"
                )

    def begin(self, facts: DeviceFacts) -> None:
        """Check that the board runs this model with the firmware of the journal, and note what it is.

        Raises:
            BoardError: another model.
            JournalError: other firmware.
        """
        check_signature(self.model, facts)
        if self.build is not None and facts.build != self.build:
            raise JournalError(
                f"{self.journal.path} is of firmware {self.build}, the board now has {facts.build}: "
                "choose another journal, or start over with --overwrite"
            )
        if self.build is None:
            self.record({"board": {"build": facts.build, "unit": facts.unit, "details": facts.details}})

    def measure(self, device: Device, entry: Predicted) -> dict[str, Any]:
        """Run one image and compare: its row, which is not in the journal yet. Boards may do this in parallel."""
        item, image, predicted = entry
        link, faults, started = list(device.link_statistics()), device.injected_faults(), time.monotonic()
        result = device.run(image)
        ran = time.monotonic() - started
        got = result.output.reshape(-1)
        exact = bool(np.array_equal(predicted, got))
        row: dict[str, Any] = {
            "image": item.index,
            "id": item.id,
            "image_crc": zlib.crc32(image.tobytes()),
            "label": item.label,
            "exact": exact,
            "error": compare.max_abs_error(predicted, got),
            "top1": int(got.argmax()),
            "predicted_top1": int(predicted.argmax()),
            "rank": None if item.label is None else compare.rank_of(got, item.label),
            "latency": result.latency,
            "layers": None if result.layers is None else list(result.layers),
        }
        if not exact and self.summary.unexplained(item.index):
            row["divergence"] = explain(device, self.predictor, image).to_json()
        row["link"] = [now - before for now, before in zip(device.link_statistics(), link, strict=True)]
        row["seconds"] = round(ran, 6)
        injected = device.injected_faults()
        if injected is not None:
            before = faults or {}
            row["faults"] = {kind: n - before.get(kind, 0) for kind, n in injected.items() if n > before.get(kind, 0)}
        return row

    def record(self, row: dict[str, Any]) -> None:
        """Append a row to the journal and take it into account."""
        self.journal.append(row)
        self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        if "board" in row:
            self.build = row["board"]["build"]
        if "image" in row:
            if row["image"] in self.done:
                return
            self.done.add(row["image"])
            # The first and the last image are remembered.
            self._crcs = {**dict(list(self._crcs.items())[:1]), row["image"]: row["image_crc"]}
        self.summary.add(row)
