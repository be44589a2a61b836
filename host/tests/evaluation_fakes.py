# SPDX-License-Identifier: Apache-2.0
"""A board in memory for tests of the harness: it computes with the predictor and can be made to go wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from tvhil.errors import BoardError
from tvhil.evaluation.device import DeviceFacts, Run
from tvhil.evaluation.run import Input
from tvhil.packing import TvitModel, pack_vit, read_model
from tvhil.packing.format import Plan, ScaleMode, align
from tvhil.packing.random_vit import random_vit
from tvhil.packing.schedule import Schedule
from tvhil.packing.trits import Codec
from tvhil.prediction import OperatorOutput, Predictor


def plan_without_reuse(file: bytes) -> Plan:
    """A valid memory plan that needs no C runtime: every tensor in its own place."""
    model = read_model(file, check_plan=False)
    offsets, end = [], 0
    for tensor in model.tensors:
        offsets.append(end)
        end = align(end + tensor.bytes)
    return Plan(end, 0, tuple(offsets), ((0, 0),) * len(model.operators))


@cache
def small_model(seed: int = 0, scale_mode: ScaleMode = ScaleMode.STATIC) -> TvitModel:
    vit = random_vit(seed, scale_mode=scale_mode, depth=1)
    return read_model(pack_vit(vit, planner=plan_without_reuse))


@cache
def model_in_pieces() -> TvitModel:
    """A model whose layers are several operators each."""
    schedule = Schedule(heads_split=True, attention_groups=2, mlp_passes=2, fc1_chunks=2)
    return read_model(pack_vit(random_vit(0, image_size=(20, 20), depth=1), Codec.GAPS, plan_without_reuse, schedule))


def random_inputs(model: TvitModel, count: int, seed: int = 0) -> list[Input]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *model.info.input_shape), np.uint8)
    return [
        Input(i, f"image {i}", int(i % model.info.classes), lambda image=image: image) for i, image in enumerate(images)
    ]


class FakeDevice:
    """Computes as predicted. `corrupt(run number, outputs)` may change the outputs of a run in place.

    A run number in `dead_from` and above does not answer. `before(run number)` is called first, and may wait.
    """

    def __init__(
        self,
        model: TvitModel,
        corrupt: Callable[[int, list[OperatorOutput]], None] = lambda run, outputs: None,
        dead_from: int = 1 << 30,
        signature: str | None = None,
        build: str = "build-1",
        before: Callable[[int], object] = lambda run: None,
    ) -> None:
        self.before = before
        self.model, self.predictor = model, Predictor(model)
        self.corrupt, self.dead_from = corrupt, dead_from
        self.signature, self.build = signature or model.signature, build
        self.runs = 0
        self.images: list[bytes] = []
        self._outputs: list[OperatorOutput] = []

    def facts(self) -> DeviceFacts:
        return DeviceFacts(self.signature, "instructions", self.build, {"cpu": "fake"})

    def run(self, image: np.ndarray, *, crcs: bool = False, last: int | None = None) -> Run:
        self.before(self.runs)
        if self.runs >= self.dead_from:
            raise BoardError("the board stopped answering after 5 s: see --resume")
        self._outputs = self.predictor.trace(image, last)
        self.corrupt(self.runs, self._outputs)
        self.runs += 1
        self.images.append(image.tobytes())
        layers = [100.0 + i for i in range(len(self._outputs))]
        return Run(
            self._outputs[-1].values,
            latency=sum(layers) + 7 + self.runs % 3,
            layers=layers,
            crcs=[output.crc for output in self._outputs] if crcs else None,
        )

    def read_tensor(self, tensor: int) -> tuple[np.ndarray, np.ndarray | None]:
        record = self.model.tensors[tensor]
        values = np.zeros((record.rows, record.columns), record.dtype.numpy)
        multipliers = np.ones(record.rows, np.uint16) if record.per_token else None
        for output in self._outputs:
            if output.tensor == tensor:
                rows, columns = output.region.slices
                values[rows, columns] = output.values
                if multipliers is not None:
                    multipliers[rows] = output.multipliers
        return values, multipliers

    def memory(self) -> dict:
        return {"arena": {"measured": 640}, "stack": {"measured": 300, "limit": 4096}, "static": 1000, "heap": 0}

    def link_statistics(self) -> list[int]:
        return [100 * self.runs, 50 * self.runs, 3 * self.runs, 0, 0]

    def injected_faults(self) -> None:
        return None
