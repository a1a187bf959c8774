"""What each step reports to all processes: one small tensor, one all-reduce, read by the processor one step late."""

from typing import Any

import torch
from torch import Tensor


class StepReport:
    """Numbers of one optimiser step, summed over its batches and over all processes.

    Tasks and callbacks add to it while the batches run. Before the optimiser steps, `reduce` sums everything with one
    all-reduce; what is logged of it stays on the device. What the processor decides by (whether a step was skipped,
    whether a signal came) it reads in the next step, when the device has it: so neither waits for the other, and as the
    numbers are the same on all processes, they decide alike.

    Attributes:
        before: what `hand_over` got in the step before, by name: a float, or a list of floats of a 1-d tensor. Empty in
            the first step.
    """

    def __init__(self) -> None:
        self.before: dict[str, Any] = {}
        self._sums: dict[str, Tensor] = {}
        self._averaged: list[str] = []
        self._pending: tuple[dict[str, torch.Size], Tensor, torch.cuda.Event | None] | None = None

    def count(self, name: str, value: Tensor) -> None:
        """Add to the step's sum of a name; every process must add the same names and shapes, 0-d or 1-d."""
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def average(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Add some values' sum and number (0-d) to a mean over the batches and processes of the step."""
        self.count(name, total)
        # A fill: a tensor made from a number is copied to the device, and the copy waits for it.
        self.count(f"{name}/count", count if isinstance(count, Tensor) else torch.full_like(total, count))
        self._averaged += [] if name in self._averaged else [name]

    def reduce(self, world_size: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Sums and means (0 of nothing) over all processes by name; the next step starts from nothing."""
        sums, averaged = self._sums, self._averaged
        self._sums, self._averaged = {}, []
        if world_size > 1:
            flat = torch.cat([value.flatten() for value in sums.values()])
            torch.distributed.all_reduce(flat)
            sums = _split(flat, {name: value.shape for name, value in sums.items()})
        means = {name: sums.pop(name) / sums.pop(f"{name}/count").clamp(min=1) for name in averaged}
        return sums, means

    def hand_over(self, values: dict[str, Tensor]) -> None:
        """Leave numbers of this step, 0-d or 1-d, for the processor, and have those of the step before in `before`."""
        self.take()
        flat, event = torch.cat([value.detach().float().flatten() for value in values.values()]), None
        if flat.is_cuda:
            flat = torch.empty_like(flat, device="cpu", pin_memory=True).copy_(flat, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending = {name: value.shape for name, value in values.items()}, flat, event

    def take(self) -> None:
        """Have in `before` what was handed over last, as after the last step."""
        self.before, self._pending = self.latest(), None

    def latest(self) -> dict[str, Any]:
        """What was handed over last and is not in `before` yet; waits for the device."""
        if self._pending is None:
            return {}
        shapes, flat, event = self._pending
        if event is not None:
            event.synchronize()
        return {name: value.tolist() for name, value in _split(flat, shapes).items()}


def _split(flat: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    parts = flat.split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
