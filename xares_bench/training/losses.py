"""Losses on their way from a GPU: read some steps later, so that nothing waits for the step that is being computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch

# Steps after which a loss is read. The GPU always has as many to go on with.
_NUM_STEPS_LATER = 4


class LossReader:
    """Reads the losses of steps, in order. On a CPU they are there at once."""

    def __init__(self, device: torch.device) -> None:
        """Nothing is on its way."""
        self._num_steps_later = 0 if device.type == "cpu" else _NUM_STEPS_LATER
        self._on_the_way: deque[tuple[torch.Tensor, torch.Event | None]] = deque()

    def send(self, loss: torch.Tensor) -> None:
        """Start to read the scalar loss of the next step."""
        if loss.device.type != "cuda":
            # A copy: the memory may be that of the next step's loss.
            self._on_the_way.append((loss.clone(), None))
            return
        there = torch.empty((), dtype=loss.dtype, pin_memory=True)
        there.copy_(loss, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._on_the_way.append((there, event))

    def received(self, *, all_of_them: bool) -> Iterator[float]:
        """Yield the losses that are old enough to be there, or wait for all."""
        while len(self._on_the_way) > (0 if all_of_them else self._num_steps_later):
            loss, event = self._on_the_way.popleft()
            if event is not None:
                event.synchronize()
            yield float(loss)
