# SPDX-License-Identifier: Apache-2.0
"""Optimizers, learning-rate schedules and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tvhil.models.conv_teacher import ConvTeacher
from tvhil.quantization.training.recipe import Phase

_NS_STEPS = 5
_NS = (3.4445, -4.7750, 2.0315)  # the quintic of Jordan's Muon: it brings singular values near 1 in five steps


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized, for matrices inside a network (K. Jordan et al., "Muon", 2024).

    The step of a matrix is the nearest orthogonal one to its Nesterov momentum, times `sqrt(max(1, rows / columns))`.
    Convolutions count as `[N][C * k * k]`; parameters that stack several matrices (q, k and v) are taken apart.

    Args:
        params: matrices.
        lr: learning rate; the spectral norm of a step.
        momentum: of the running mean of gradients.
        weight_decay: decoupled.
        parts: how many matrices each parameter stacks, by its id.
        fixed_norm: ids of filters that are rescaled to a norm of sqrt(N) before every step, for a normalization without
            gain follows them.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        parts: dict[int, int] | None = None,
        fixed_norm: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._parts, self._fixed_norm = parts or {}, fixed_norm

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One step of every matrix that has a gradient; matrices of one shape are orthogonalized together."""
        for group in self.param_groups:
            mu, rate = group["momentum"], group["lr"]
            wanted: dict[tuple[int, int], list[Tensor]] = {}
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if id(p) in self._fixed_norm:
                    p.mul_(len(p) ** 0.5 / p.norm())
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                m = state["momentum"].lerp_(p.grad, 1 - mu)
                p.mul_(1 - rate * group["weight_decay"])
                for matrix in p.grad.lerp(m, mu).flatten(1).chunk(self._parts.get(id(p), 1)):
                    wanted.setdefault((matrix.shape[0], matrix.shape[1]), []).append(matrix)
            steps = {
                shape: iter(orthogonalize(torch.stack(matrices)) * max(1.0, shape[0] / shape[1]) ** 0.5)
                for shape, matrices in wanted.items()
            }
            for p in params:  # not in place on views: channels-last filters have none as matrices
                parts = self._parts.get(id(p), 1)
                shape = (len(p) // parts, p[0].numel())
                change = torch.cat([next(steps[shape]) for _ in range(parts)]).to(p.dtype)
                p.sub_(change.reshape(p.shape), alpha=rate)


def orthogonalize(matrices: Tensor) -> Tensor:
    """About the nearest orthogonal matrices of a stack `[B, N, K]`, by Newton-Schulz iteration in bfloat16."""
    a, b, c = _NS
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_NS_STEPS):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    out: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return out


class Optimizers:
    """The optimizers of a phase, stepped, scheduled and saved as one."""

    def __init__(self, model: nn.Module, phase: Phase) -> None:
        self.phase = phase
        self._all = _make(model, phase)
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._all]

    def set_rate(self, factor: float) -> None:
        """Set every learning rate to this share of its largest value."""
        for optimizer, rates in zip(self._all, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    def step(self) -> None:
        """Step all, and forget the gradients."""
        for optimizer in self._all:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """What they remember, `OPTIMIZER.PARAMETER.NAME` each."""
        return {
            f"{i}.{index}.{name}": value
            for i, optimizer in enumerate(self._all)
            for index, state in optimizer.state_dict()["state"].items()
            for name, value in state.items()
            if isinstance(value, Tensor)
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        for i, optimizer in enumerate(self._all):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                place, index, name = key.split(".", 2)
                if int(place) == i:
                    state.setdefault(int(index), {})[name] = value.clone()
            whole = optimizer.state_dict()
            whole["state"] = state
            optimizer.load_state_dict(whole)


def _make(model: nn.Module, phase: Phase) -> list[torch.optim.Optimizer]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inner: list[Tensor] = []
    parts: dict[int, int] = {}
    if phase.optimizer == "muon":
        if isinstance(model, ConvTeacher):
            inner = list(model.filters())
        else:
            inner = [p for name, p in named if name.startswith("blocks.") and name.endswith("weight") and p.ndim == 2]
            parts = {id(p): 3 for name, p in named if name.endswith("attn.qkv.weight")}
    taken = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": phase.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = phase.learning_rate
    if phase.optimizer == "sgd":
        return [torch.optim.SGD(groups, lr=rate, momentum=phase.momentum, nesterov=phase.momentum > 0)]
    if phase.optimizer == "adamw":
        return [torch.optim.AdamW(groups, lr=rate)]
    fixed = frozenset(taken) if isinstance(model, ConvTeacher) else frozenset()
    decay = 0.0 if fixed else phase.weight_decay
    muon = Muon(inner, rate, momentum=phase.momentum, weight_decay=decay, parts=parts, fixed_norm=fixed)
    return [muon, torch.optim.AdamW(groups, lr=phase.adamw_learning_rate, betas=(0.9, 0.98))]


def rate_factor(phase: Phase, step: int, steps: int, steps_per_epoch: int) -> float:
    """Share of the largest learning rate in a step, 0 … `steps - 1`."""
    warmup = min(phase.warmup * steps_per_epoch, steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(steps - warmup, 1)
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
    return phase.final_rate + (1 - phase.final_rate) * shape[phase.schedule]


class MovingAverage:
    """Exponential moving average of a model's floating-point state; young averages forget faster.

    The decay of the first steps is `(1 + step) / (10 + step)`, as in TensorFlow's.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow the model after a step (0, 1, …)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)
