"""Numbers of the device for decisions of the processor, without either waiting for the other."""

import torch
from torch import Tensor


class LateNumber:
    """Hands over a number of one step when the next is under way.

    By then the device has it, so reading it leaves no gap in the device's work; and all processes read the number of
    the same step, so that they decide alike.
    """

    def __init__(self) -> None:
        self._pending: tuple[Tensor, torch.cuda.Event | None] | None = None

    def exchange(self, number: Tensor) -> float | None:
        """Leave this step's number and take the one of the step before.

        Args:
            number: 0-d, on any device.

        Returns:
            None in the first step.
        """
        before = self.take()
        if number.is_cuda:
            kept = torch.empty((), dtype=number.dtype, pin_memory=True).copy_(number, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending = kept, event
        else:
            self._pending = number.clone(), None
        return before

    def take(self) -> float | None:
        """The number left last, if it was not taken."""
        number, self._pending = self.peek(), None
        return number

    def peek(self) -> float | None:
        """The same, leaving it there."""
        if self._pending is None:
            return None
        number, event = self._pending
        if event is not None:
            event.synchronize()
        return number.item()
