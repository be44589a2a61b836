# SPDX-License-Identifier: Apache-2.0
"""The state of an unfinished run: everything that the next step depends on, in one safetensors file.

Order and augmentation of a step come from the seed and the step's number, so no state of a generator is kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from tvhil.errors import CheckpointError
from tvhil.files import write_whole

_KEY = "tvhil.training"
_KINDS = {"recipe": str, "phase": int, "step": int, "seconds": int | float, "results": list}


@dataclass(frozen=True)
class TrainingState:
    """Where a run is.

    Attributes:
        recipe: its text; another recipe must not continue it.
        phase: index of the phase that goes on.
        step: optimizer steps of that phase that are done.
        seconds: time spent so far.
        model, ema, optimizer: tensors; `ema` is empty without a moving average.
        results: accuracies of the finished phases.
    """

    recipe: str
    phase: int
    step: int
    seconds: float
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    results: list[dict[str, Any]]

    def save(self, path: Path) -> None:
        """Write it; the file before stays whole until the new one is.

        Raises:
            CheckpointError: it cannot be written.
        """
        tensors = {
            f"{part}/{name}": value.detach().cpu().contiguous().clone()
            for part in ("model", "ema", "optimizer")
            for name, value in getattr(self, part).items()
        }
        text = json.dumps(
            {
                "recipe": self.recipe,
                "phase": self.phase,
                "step": self.step,
                "seconds": self.seconds,
                "results": self.results,
            }
        )
        try:
            write_whole(path, serialize(tensors, {_KEY: text}))
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"cannot write {path}: {error}; the checkpoint before is kept") from None

    @classmethod
    def load(cls, path: Path) -> TrainingState:
        """Read it.

        Raises:
            CheckpointError: not a state that `save` wrote.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
        try:
            with safe_open(path, framework="pt") as file:
                values = json.loads((file.metadata() or {})[_KEY])
                odd = [name for name, kind in _KINDS.items() if not isinstance(values[name], kind)]
                if odd:
                    raise ValueError(f"{odd[0]} is {values[odd[0]]!r}")
                if not (values["phase"] >= 0 and values["step"] >= 0 and values["seconds"] >= 0):
                    raise ValueError("a count is below 0")
                for key in file.keys():  # noqa: SIM118 (not a dictionary)
                    part, name = key.split("/", 1)
                    parts[part][name] = file.get_tensor(key)
            return cls(**values, model=parts["model"], ema=parts["ema"], optimizer=parts["optimizer"])
        except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is no state of a training run ({error}): --restart begins anew in its folder"
            ) from None
