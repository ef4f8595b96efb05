"""Recorded work, on the stand-in for a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.tape import TapeRecorder
from xares_bench.runtime.recording import Recorded, Recorder, _stream


def test_first_plain_then_recorded_then_repeated() -> None:
    total, recorder, calls = torch.zeros(1), TapeRecorder(), []

    def work() -> None:
        calls.append(1)
        total.add_(1)

    recorded = Recorded(work, recorder)
    for number in range(1, 6):
        recorded()
        assert float(total) == number
    assert len(calls) == 2  # the plain call and the recording
    assert (recorder.num_recorded, recorder.num_repeated) == (1, 4)


def test_it_reads_what_its_tensors_hold_when_it_is_repeated() -> None:
    x, y, recorder = torch.zeros(3), torch.zeros(3), TapeRecorder()
    recorded = Recorded(lambda: y.copy_((x * 2).tanh() + x), recorder)
    for number in range(4):
        x.fill_(number)
        recorded()
        assert torch.equal(y, (x * 2).tanh() + x)


def test_a_training_step_is_repeated_with_its_backward_pass_and_its_optimizer() -> None:
    def trained(*, is_recorded: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.LayerNorm(8), nn.Dropout(0.1), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        x, loss = torch.zeros(5, 4), torch.zeros(())

        def step() -> None:
            optimizer.zero_grad(set_to_none=False)
            found = model(x).square().mean()
            found.backward()
            optimizer.step()
            loss.copy_(found.detach())

        work = Recorded(step, TapeRecorder()) if is_recorded else step
        losses = []
        for number in range(6):
            x.copy_(torch.linspace(-1, number + 1, 20).view(5, 4))
            work()
            losses.append(loss.clone())
        return losses

    assert trained(is_recorded=True) == trained(is_recorded=False)


def test_work_that_cannot_be_recorded_is_done_as_it_is_with_one_warning() -> None:
    total, recorder = torch.ones(1), TapeRecorder()
    waiting = [Recorded(lambda: total.mul_(float(total) + 1), recorder) for _ in range(2)]
    with pytest.warns(RuntimeWarning, match="one by one, which is slower.*waits for a value") as noted:
        _do([*waiting, *waiting, *waiting])
    assert len(noted) == 1
    expected = torch.ones(1)
    for _ in range(6):
        expected.mul_(float(expected) + 1)
    assert torch.equal(total, expected)
    assert recorder.problem is not None


@pytest.mark.parametrize("in_inference", [True, False])
@pytest.mark.parametrize("wait", [float, bool, torch.Tensor.item, lambda x: x.tolist(), torch.nonzero])
def test_work_that_waits_is_not_recorded_in_inference_either(wait: Callable[[Any], Any], in_inference: bool) -> None:
    values = torch.ones(1)
    waiting = Recorded(lambda: wait(values), TapeRecorder())
    with torch.inference_mode(in_inference), pytest.warns(RuntimeWarning, match="waits for a value"):
        _do([waiting, waiting])


def _do(works: list[Recorded]) -> None:
    for work in works:
        work()


def test_after_a_problem_nothing_is_repeated_and_the_first_cause_is_named() -> None:
    class FailsLater(TapeRecorder):
        def record(self, work: Callable[[], object]) -> Callable[[], None]:
            if self.num_recorded:
                try:
                    raise ValueError("the cause")
                finally:
                    raise RuntimeError("what follows from it")
            return super().record(work)

    total, recorder = torch.zeros(1), FailsLater()
    first, second = (Recorded(lambda: total.add_(1), recorder) for _ in range(2))
    _do([first, first, first])
    assert recorder.num_repeated == 2
    second()
    with pytest.warns(RuntimeWarning, match="ValueError: the cause"):
        second()
    _do([first, second])
    assert recorder.num_repeated == 2
    assert float(total) == 7


def test_an_error_of_the_work_itself_is_an_error() -> None:
    def work() -> None:
        raise ValueError("the work's own")

    recorded = Recorded(work, TapeRecorder())
    with warnings.catch_warnings(), pytest.raises(ValueError, match="the work's own"):
        recorded()


def test_recorders_of_a_device_share_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    _stream.cache_clear()
    first, second, other = (Recorder(torch.device("cuda", index)) for index in (0, 0, 1))
    _stream.cache_clear()
    assert first._stream is second._stream is not other._stream
