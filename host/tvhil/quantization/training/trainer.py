# SPDX-License-Identifier: Apache-2.0
"""The trainer: runs the phases of a recipe, on a CPU, a GPU, or several processes under torchrun.

What a step does depends on the recipe, its seed and the step's number alone. On one machine with one number of threads
an interrupted and resumed run therefore gives the weights of an uninterrupted one, bit for bit (on the CPU; GPUs sum in
any order).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from tvhil.errors import CheckpointError, InputError, TvhilError, UsageError
from tvhil.models.conv_teacher import ConvTeacher
from tvhil.quantization import quantization_of
from tvhil.quantization.activations import Quantizable
from tvhil.quantization.convert import calibrate
from tvhil.quantization.train import DivergedError
from tvhil.quantization.training.augmentation import augment
from tvhil.quantization.training.checkpoint import TrainingState
from tvhil.quantization.training.data import LabelledImages, TrainingData
from tvhil.quantization.training.log import Log, Row
from tvhil.quantization.training.models import (
    CALIBRATION_IMAGES,
    Model,
    check_initial,
    check_shapes,
    check_teacher,
    configuration,
    fresh_model,
    load_any,
    model_of_phase,
    pixels_to_input,
    save_model,
    to_pixels,
)
from tvhil.quantization.training.optimizers import MovingAverage, Optimizers, rate_factor
from tvhil.quantization.training.recipe import Phase, Recipe, recipe_text

STATE = "state.safetensors"
_ROWS = 20  # of the log an epoch, at most one each ten steps
_EVALUATION_BATCH = 500


class OutOfMemoryError(TvhilError):
    """The batch does not fit into memory."""


@dataclass
class Options:
    """How a recipe is run; nothing here changes what it computes, but for `precision` and `accumulate`.

    Attributes:
        device: 'cpu', 'cuda', or one of several GPUs.
        precision: 'fp32', or 'bf16' for mixed precision (integer layers stay exact).
        compile: pass models through torch.compile.
        accumulate: parts that each process splits its share of a batch into.
        checkpoint_seconds: a state is written so often, and after each epoch that took as long.
        evaluations: of the test images, over a phase.
        minutes: stop, with a state to resume from, after so long.
        stop_after: the same after so many steps of this call.
        restart: ignore a state that is there.
        tensorboard: write event files too.
    """

    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    accumulate: int = 1
    checkpoint_seconds: float = 120.0
    evaluations: int = 20
    minutes: float | None = None
    stop_after: int | None = None
    restart: bool = False
    tensorboard: bool = False


@dataclass
class Outcome:
    """What a run gave.

    Attributes:
        finished: all phases are done; otherwise run the same command again.
        model: of the last phase, its moving average where it has one; None unless finished.
        results: of each finished phase: name, steps, test accuracy of the weights and of their average.
        seconds: spent, interruptions left out.
    """

    finished: bool
    model: Model | None
    results: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and which of them this is."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: str) -> Processes:
        """Join those that torchrun started; without torchrun there is one."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        return cls(dist.get_rank(), count)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether one of them says so."""
        if self.count == 1:
            return flag
        value = torch.tensor([float(flag)], device=device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value.item() > 0)


class Trainer:
    """One run of a recipe.

    Args:
        recipe: what to train.
        data: in memory.
        out: folder of the state, the log and the models.
        options: how.
        initial: what the first phase starts from; None: a fresh model.
        initial_path: its file, for messages.
        teacher: of the phases that distil.
        progress: called after every step with the phase, steps done, steps in all, and a line about them.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: TrainingData,
        out: Path,
        options: Options | None = None,
        *,
        initial: Model | None = None,
        initial_path: Path = Path("the initial checkpoint"),
        teacher: Model | None = None,
        progress: Callable[[Phase, int, int, str], None] = lambda _phase, _done, _total, _line: None,
    ) -> None:
        self.recipe, self.data, self.out, self.options = recipe, data, out, options or Options()
        self.processes = Processes.join(self.options.device)
        self.device = _device(self.options.device)
        self.progress = progress
        config = configuration(recipe, len(data.class_names))
        if config.num_classes != len(data.class_names):
            raise InputError(
                f"{data.title} has {len(data.class_names)} classes, the recipe's model {config.num_classes}"
            )
        if initial is not None:
            check_initial(initial, config, initial_path)
        self.initial = initial or fresh_model(config, recipe)
        self._fresh = initial is None
        if recipe.needs_teacher and teacher is None:
            phase = next(phase for phase in recipe.phases if phase.distillation > 0)
            raise UsageError(f"recipe {recipe.name} distils in phase {phase.name!r}: name a teacher with --teacher")
        self.teacher = None if teacher is None else self._prepare_teacher(teacher)
        self.pixels = to_pixels(data.train.images).to(self.device)
        self.labels = torch.from_numpy(data.train.labels).to(self.device)
        self._stop = False
        self._steps_here = 0
        self._began = time.monotonic()
        self._before = 0.0

    def run(self) -> Outcome:
        """Train, from the state in the folder if there is one.

        Raises:
            DivergedError: the loss is not a number; the last good state is kept.
            OutOfMemoryError: a batch does not fit.
            CheckpointError: a state that cannot be read or written.
            UsageError: the state is of another recipe.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        state = self._resume()
        results = [] if state is None else list(state.results)
        first = 0 if state is None else state.phase
        finished = [phase.name for phase in self.recipe.phases[:first]]
        keep = None if state is None else (finished, self._name(first), state.step)
        log = Log(self.out, keep, tensorboard=self.options.tensorboard) if self.processes.rank == 0 else None
        model: Model = self.initial
        if first == len(self.recipe.phases):
            return Outcome(True, load_any(self.out / f"{finished[-1]}.safetensors"), results, self._before)
        with self._interruptible(), _memory_advice():
            if state is not None and first > 0:
                model = self._built_by(first - 1)
            for index in range(first, len(self.recipe.phases)):
                model_or_none = self._run_phase(index, model, state, results, log)
                if model_or_none is None:
                    return Outcome(False, None, results, self._seconds())
                model, state = model_or_none, None
        if self.processes.rank == 0:
            done = len(self.recipe.phases)
            TrainingState(recipe_text(self.recipe), done, 0, self._seconds(), {}, {}, {}, results).save(
                self.out / STATE
            )
        return Outcome(True, model, results, self._seconds())

    def _name(self, index: int) -> str:
        return self.recipe.phases[index].name if index < len(self.recipe.phases) else ""

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def _resume(self) -> TrainingState | None:
        path = self.out / STATE
        if self.options.restart or not path.is_file():
            return None
        state = TrainingState.load(path)
        if state.recipe != recipe_text(self.recipe):
            raise UsageError(
                f"{self.out} holds a run of another recipe or with other settings: choose another --out, or --restart"
            )
        self._before = state.seconds
        return state

    def _built_by(self, last: int) -> Model:
        """A model as the phases up to `last` build it, its tensors to be loaded."""
        model = self.initial
        for phase in self.recipe.phases[: last + 1]:
            model = model_of_phase(model, phase, None, torch.device("cpu"))
        return model

    def _prepare_teacher(self, teacher: Model) -> Callable[[Tensor], Tensor]:
        classes = len(self.data.class_names)
        check_teacher(teacher, configuration(self.recipe, classes), classes)
        teacher = teacher.to(self.device).eval().requires_grad_(False)
        preprocessing = teacher.config.preprocessing
        if isinstance(teacher, ConvTeacher):
            teacher = cast(Any, teacher).to(memory_format=torch.channels_last)
        forward = cast(Callable[[Tensor], Tensor], torch.compile(teacher) if self.options.compile else teacher)

        @torch.no_grad()
        def predict(pixels: Tensor) -> Tensor:
            x = _laid_out(teacher, pixels_to_input(pixels, preprocessing))
            with self._autocast():
                logits = forward(x)
            return logits.float()

        return predict

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def _run_phase(
        self, index: int, previous: Model, state: TrainingState | None, results: list[dict[str, Any]], log: Log | None
    ) -> Model | None:
        """One phase; the model that it hands on, or None if it was stopped."""
        phase = self.recipe.phases[index]
        calibration = self._calibration_images() if state is None else None
        model = model_of_phase(previous, phase, calibration, self.device, fresh=self._fresh and index == 0)
        for module in model.modules():
            if isinstance(module, Quantizable):
                module.real = phase.activations == "real"
        average = MovingAverage(model, phase.ema) if phase.ema else None
        optimizers = Optimizers(model, phase)
        start = 0
        if state is not None:
            check_shapes(model, state.model, self.out / STATE)
            model.load_state_dict(state.model)
            if average is not None:
                average.state = {name: value.to(self.device) for name, value in state.ema.items()}
            optimizers.load_tensors(state.optimizer)
            start = state.step
        batch = min(phase.batch, len(self.labels))
        part = self._part(phase, batch)
        per_epoch = max(1, len(self.labels) // batch)
        steps = max(1, round(phase.epochs * per_epoch))
        recalibrate = _recalibrations(phase, steps) if quantization_of_any(model) else set()
        forward = self._forward(model)
        rows = max(10, per_epoch // _ROWS)
        evaluate_at = {round(steps * (i + 1) / self.options.evaluations) for i in range(self.options.evaluations)}
        tally = _Tally(self.device)
        order, order_epoch = torch.empty(0, dtype=torch.long), -1
        saved = time.monotonic()
        exact = phase.quantization is not None and phase.activations == "integer"

        def save(step: int) -> None:
            if self.processes.rank == 0:
                ema = {} if average is None else average.state
                TrainingState(
                    recipe_text(self.recipe), index, step, self._seconds(), model.state_dict(), ema,
                    optimizers.tensors(), results,
                ).save(self.out / STATE)  # fmt: skip

        if state is None:
            save(0)
        for step in range(start, steps):
            if step in recalibrate:
                calibrate(cast(Any, model), self._calibration_images())
            epoch, place = divmod(step, per_epoch)
            if epoch != order_epoch:
                order = torch.randperm(len(self.labels), generator=_generator(self.recipe.seed, index, 0, epoch))
                order_epoch = epoch
            chosen = order[place * batch : (place + 1) * batch]
            model.train()
            rate = rate_factor(phase, step, steps, per_epoch)
            optimizers.set_rate(rate)
            with _matrix_precision(exact and self.options.precision == "bf16", self.device):
                self._step(forward, phase, index, step, chosen, part, tally)
            if not tally.finite():
                raise DivergedError(
                    f"the loss is {tally.last()} in phase {phase.name!r}, step {step + 1}: the last good checkpoint is "
                    f"kept in {self.out / STATE}; lower the learning rate, --set phase.{phase.name}.learning_rate="
                    f"{phase.learning_rate / 3:.1g} --restart"
                )
            if phase.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), phase.clip_norm)
            optimizers.step()
            if average is not None:
                average.update(model, step)
            done = step + 1
            self._steps_here += 1
            if log is not None and (done % rows == 0 or done == steps):
                log.write(tally.row(phase.name, done, done / per_epoch, rate, self._seconds(), self.processes.count))
                self.progress(phase, done, steps, tally.line())
                tally = _Tally(self.device)
            else:
                self.progress(phase, done, steps, "")
            if done in evaluate_at and done < steps:
                self._evaluate(model, average, log, phase, done, per_epoch)
            if self._should_stop(done == steps and index == len(self.recipe.phases) - 1):
                save(done)
                return None
            if time.monotonic() - saved > self.options.checkpoint_seconds:
                save(done)
                saved = time.monotonic()
        results.append(
            {"phase": phase.name, "steps": steps, **self._evaluate(model, average, log, phase, steps, per_epoch)}
        )
        if average is not None:
            model.load_state_dict(average.state)
        model.eval()
        for module in model.modules():
            if isinstance(module, Quantizable):
                module.real = False
        if phase.activations == "real" and quantization_of_any(model):  # the scales are those of the first step
            calibrate(cast(Any, model), self._calibration_images())
        if self.processes.rank == 0:
            save_model(self.out / f"{phase.name}.safetensors", model)
        return model

    def _part(self, phase: Phase, batch: int) -> int:
        """Images a forward pass."""
        parts = self.processes.count * self.options.accumulate
        if batch % parts:
            raise UsageError(
                f"phase {phase.name!r}: its batch of {batch} images does not divide among {self.processes.count} "
                f"processes times {self.options.accumulate} accumulated parts"
            )
        return batch // parts

    def _forward(self, model: Model) -> Callable[[Tensor], Tensor]:
        module: nn.Module = model
        if self.processes.count > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            module = nn.parallel.DistributedDataParallel(model, device_ids=ids)
        compiled = cast(nn.Module, torch.compile(module)) if self.options.compile else module
        preprocessing = model.config.preprocessing

        def forward(pixels: Tensor, *, sync: bool = True) -> Tensor:
            quiet = contextlib.nullcontext() if sync or module is model else cast(Any, module).no_sync()
            with quiet, self._autocast():
                logits = compiled(_laid_out(model, pixels_to_input(pixels, preprocessing)))
            return cast(Tensor, logits.float())

        return cast(Callable[[Tensor], Tensor], forward)

    def _step(
        self, forward: Any, phase: Phase, index: int, step: int, chosen: Tensor, part: int, tally: _Tally
    ) -> None:
        """Gradients of one batch, in parts; the parts of all processes together are the batch."""
        pieces = torch.split(chosen, part)
        mine = range(self.processes.rank, len(pieces), self.processes.count)
        for number in mine:
            where = pieces[number].to(self.device)
            draw = _generator(self.recipe.seed, index, 1 + number, step)
            mixed = augment(self.pixels[where], self.labels[where], phase.augmentation, draw)
            logits = forward(mixed.images, sync=number == mine[-1])
            teacher = self.teacher(mixed.images) if self.teacher is not None and phase.distillation > 0 else None
            loss = _loss(phase, logits, mixed.first, mixed.second, mixed.share, teacher)
            (loss / len(mine)).backward()  # type: ignore[no-untyped-call]
            tally.add(loss.detach(), (logits.detach().argmax(1) == mixed.first).sum(), len(where))

    def _calibration_images(self) -> Any:
        images = self.data.train.images
        return images[:: max(1, len(images) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES]

    def _evaluate(
        self, model: Model, average: MovingAverage | None, log: Log | None, phase: Phase, step: int, per_epoch: int
    ) -> dict[str, float | None]:
        """Test accuracy of the weights and of their average; every process computes its share."""
        values: dict[str, float | None] = {"test_top1": self.accuracy(model), "ema_top1": None}
        if average is not None:
            kept = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(average.state)
            values["ema_top1"] = self.accuracy(model)
            model.load_state_dict(kept)
        if log is not None:
            log.write(Row(phase.name, step, step / per_epoch, **values, seconds=self._seconds()))
        return values

    @torch.no_grad()
    def accuracy(self, model: Model, split: LabelledImages | None = None) -> float:
        """Share of the test images (or another split) that a model classifies as labelled."""
        split = split or self.data.test
        mine = range(self.processes.rank * _EVALUATION_BATCH, len(split), self.processes.count * _EVALUATION_BATCH)
        correct = torch.zeros((), device=self.device)
        was_training = model.training
        model.eval()
        for i in mine:
            pixels = to_pixels(split.images[i : i + _EVALUATION_BATCH]).to(self.device)
            x = _laid_out(model, pixels_to_input(pixels, model.config.preprocessing))
            with self._autocast():
                classes = model(x).argmax(1)
            correct += (classes.cpu() == torch.from_numpy(split.labels[i : i + _EVALUATION_BATCH])).sum()
        model.train(was_training)
        if self.processes.count > 1:
            dist.all_reduce(correct)
        return float(correct) / len(split)

    def _should_stop(self, last: bool) -> bool:
        options = self.options
        stop = self._stop
        stop |= options.minutes is not None and time.monotonic() - self._began > 60 * options.minutes
        stop |= options.stop_after is not None and self._steps_here >= options.stop_after
        return self.processes.any(stop, self.device) and not last

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the run after the step, with a state written; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, _frame: Any) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True
            del number

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the run."""
        return self._stop


class _Tally:
    """Mean loss and accuracy since the last row; stays on the device until it is asked."""

    def __init__(self, device: torch.device) -> None:
        self.loss, self.correct = torch.zeros((), device=device), torch.zeros((), device=device)
        self._last = torch.zeros((), device=device)
        self.images, self.since = 0, time.monotonic()

    def add(self, loss: Tensor, correct: Tensor, images: int) -> None:
        """Count a part of a batch."""
        self._last = loss
        self.loss += loss * images
        self.correct += correct
        self.images += images

    def finite(self) -> bool:
        """Whether every loss so far is a number."""
        return bool(torch.isfinite(self.loss))

    def last(self) -> float:
        """The last loss."""
        return float(self._last)

    def row(self, phase: str, step: int, epoch: float, rate: float, seconds: float, processes: int) -> Row:
        """As a row of the log: the loss is this process's, the speed that of all."""
        loss, top1 = float(self.loss) / self.images, float(self.correct) / self.images
        speed = processes * self.images / max(time.monotonic() - self.since, 1e-9)
        return Row(phase, step, epoch, loss, top1, rate, None, None, speed, seconds)

    def line(self) -> str:
        """For people."""
        return f"loss {float(self.loss) / self.images:.4f}, training accuracy {float(self.correct) / self.images:.1%}"


def quantization_of_any(model: Model) -> bool:
    """Whether a model has activation scales."""
    return not isinstance(model, ConvTeacher) and quantization_of(model) is not None


def _laid_out(model: Model, x: Tensor) -> Tensor:
    """Convolutions are faster on channels that lie together."""
    return x.contiguous(memory_format=torch.channels_last) if isinstance(model, ConvTeacher) else x


def _loss(phase: Phase, logits: Tensor, first: Tensor, second: Tensor, share: float, teacher: Tensor | None) -> Tensor:
    total = logits.new_zeros(())
    if phase.distillation < 1 or teacher is None:
        smoothing = phase.label_smoothing
        labels = F.cross_entropy(logits, first, label_smoothing=smoothing)
        if share < 1:
            labels = share * labels + (1 - share) * F.cross_entropy(logits, second, label_smoothing=smoothing)
        total = total + (1 - (phase.distillation if teacher is not None else 0)) * labels
    if teacher is not None:
        t = phase.temperature
        distilled = F.kl_div(
            (logits / t).log_softmax(1), (teacher / t).log_softmax(1), reduction="batchmean", log_target=True
        )
        total = total + phase.distillation * t * t * distilled
    return total


def _recalibrations(phase: Phase, steps: int) -> set[int]:
    return {round(0.75 * steps * (i + 1) / phase.recalibrations) for i in range(phase.recalibrations)}


def _generator(seed: int, phase: int, stream: int, step: int) -> torch.Generator:
    """A generator for one purpose of one step: numpy's seed sequence keeps neighbouring seeds apart."""
    words = np.random.SeedSequence([seed, phase, stream, step]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]) & (2**63 - 1))


def _device(name: str) -> torch.device:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"there is no device {name!r}: cpu, cuda or cuda:N")
    if name == "cpu":
        return torch.device(name)
    if not torch.cuda.is_available():
        raise UsageError("no CUDA device is there: --device cpu")
    index = int(name.partition(":")[2] or os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise UsageError(f"there is no {name}, only {torch.cuda.device_count()} CUDA devices, from cuda:0 on")
    torch.backends.cuda.matmul.allow_tf32 = True  # exact for integers, see `quantization.layers`
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


@contextlib.contextmanager
def _matrix_precision(wanted: bool, device: torch.device) -> Iterator[None]:
    """Let float32 matrix products of a CPU run on bfloat16 units inside.

    Forward that is exact: every operand is a whole number below 2^8, and sums stay in float32. Gradients are rounded as
    in mixed precision.
    """
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if not wanted or device.type != "cpu" or matmul is None:
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextlib.contextmanager
def _memory_advice() -> Iterator[None]:
    """Turn running out of memory into advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in text
        if not memory:
            raise
        raise OutOfMemoryError(
            "out of memory: split batches with --accumulate 2 (4, 8, …), which changes no result but that of batch "
            "normalization, or make them smaller with --set phase.batch=N; the last checkpoint is kept"
        ) from None


__all__ = ["CheckpointError", "DivergedError", "Options", "OutOfMemoryError", "Outcome", "Trainer"]
