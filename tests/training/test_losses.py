from __future__ import annotations

import torch

from xares_bench.training.losses import LossReader

CPU = torch.device("cpu")


def test_on_a_cpu_losses_are_there_at_once() -> None:
    reader, memory = LossReader(CPU), torch.zeros(())
    for number in (3.0, 1.0):
        reader.send(memory.fill_(number))
        assert list(reader.received(all_of_them=False)) == [number]


def test_of_a_gpu_they_come_in_order_some_steps_later() -> None:
    reader, memory = LossReader(torch.device("cuda")), torch.zeros(())
    received: list[float] = []
    for number in range(10):
        reader.send(memory.fill_(number))  # the memory of every step's loss
        received.extend(reader.received(all_of_them=False))
        assert received == list(range(max(0, number - 3)))
    received.extend(reader.received(all_of_them=True))
    assert received == list(range(10))
    assert not list(reader.received(all_of_them=True))
