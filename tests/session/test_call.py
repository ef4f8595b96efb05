"""The suite as a function: `xares_bench.run`, in this process."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import xares_bench
from tests.conftest import REPOSITORY
from tests.test_bench import write_data
from xares_bench.core.errors import DiskError, EncoderError, UsageError, XaresError
from xares_bench.reports.runs import Run
from xares_bench.session.call import _shown

FILE = REPOSITORY / "examples" / "dummy_encoder.py"
SHORT = {"steps": 3, "batch_size": 4, "max_new_tokens": 3}


class FrameEncoder(torch.nn.Module):
    """Frames of samples, through a layer with fixed weights."""

    output_dim = 4

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(400, 4)
        torch.nn.init.constant_(self.layer.weight, weight)
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, audio: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        frames: torch.Tensor = self.layer(audio[:, : audio.shape[1] // 400 * 400].reshape(len(audio), -1, 400))
        return frames, None


IN_A_FILE = """
import torch

class FrameEncoder(torch.nn.Module):
    output_dim = 4

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(400, 4)
        torch.nn.init.constant_(self.layer.weight, 0.5)
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, audio, mask=None):
        return self.layer(audio[:, : audio.shape[1] // 400 * 400].reshape(len(audio), -1, 400)), None
"""


class BareEncoder(FrameEncoder):
    def forward(self, audio: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        return super().forward(audio)[0]


class StoppedEncoder(FrameEncoder):
    def forward(self, audio: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def call(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Calls `run` with a few steps, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def start(encoder: Any, **options: Any) -> Run:
        return xares_bench.run(encoder, **{"preset": "mini", "data_home": data, "set": SHORT, **options})

    return start


def test_an_object_has_the_scores_of_its_class_in_a_file(call: Callable[..., Run], tmp_path: Path) -> None:
    encoder = FrameEncoder()
    run = call(encoder, tasks=["esc-50", "task2"])
    assert isinstance(run, Run)
    assert [row["dataset"] for row in run.scores] == [
        *("esc-50", "aishell-1", "clotho", "librispeech", "mecat", "songdescriber")
    ]
    assert run.failures == {}
    assert run.manifest.encoder["name"] == "FrameEncoder"
    assert run.folder.parent == tmp_path / "runs"
    assert encoder.training
    (tmp_path / "file.py").write_text(IN_A_FILE)
    named = call("file.py", tasks=["esc-50", "task2"])
    for file in ("scores.tsv", "predictions/esc-50.jsonl", "predictions/clotho.jsonl"):
        assert (named.folder / file).read_bytes() == (run.folder / file).read_bytes()
    assert "xares_bench.run(FrameEncoder(...), tasks=[" in (run.folder / "report.html").read_text()


def test_the_same_object_is_cached_and_another_weight_is_another_run(call: Callable[..., Run]) -> None:
    encoder = FrameEncoder()
    first = call(encoder, tasks="esc-50")
    assert not any(record.reused for record in first.records.values())
    again = call(encoder, tasks="esc-50")
    assert again.name == first.name
    assert all(record.reused for record in again.records.values())
    with torch.no_grad():
        encoder.layer.bias.fill_(1)
    assert call(encoder, tasks="esc-50").name != first.name
    names = [run.name for run in xares_bench.read_runs("runs")]
    assert first.name in names
    assert len(names) == 2


def test_nothing_of_the_process_is_changed(call: Callable[..., Run]) -> None:
    def state() -> list[object]:
        handlers = [
            signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
        ]
        flags = torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(), torch.get_num_threads()
        suite = [name for name in sys.modules if name.startswith("bench.")]
        return [*handlers, *flags, torch.get_rng_state().tolist(), suite, [*sys.path], Path.cwd()]

    encoder = FrameEncoder()
    before = state()
    call(encoder, tasks="esc-50")
    assert state() == before


def test_a_path_and_arguments_of_the_class(call: Callable[..., Run]) -> None:
    run = call(FILE, tasks="esc-50", encoder_args={}, limit=2, seeds=2, pytest_options=["-q"])
    assert run.records["esc-50"].partial
    assert len(run.scores[0]["seed_scores"]) == 2


def test_a_score_below_the_baseline_is_told_and_does_not_raise(call: Callable[..., Run], tmp_path: Path) -> None:
    call(FrameEncoder(), tasks="esc-50", save_baseline="base.yaml")
    baseline = yaml.safe_load((tmp_path / "base.yaml").read_text())
    baseline["scores"]["esc-50"]["score"] = 0.99
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(baseline))
    shutil.rmtree(tmp_path / "base.clip_sums")  # which say otherwise
    run = call(FrameEncoder(), tasks="esc-50", baseline="base.yaml", tolerance=0.02)
    assert run.failures is not None
    assert "below" in run.failures["esc-50"]
    assert xares_bench.read_run(run.folder).failures == run.failures


def test_a_baseline_that_cannot_be_saved_is_told(call: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise DiskError("base.yaml: the disk is full")

    monkeypatch.setattr("xares_bench.session.ending.save_as_baseline", full)
    run = call(FrameEncoder(), tasks="esc-50", save_baseline="base.yaml")
    assert run.failures == {"xares-bench": "base.yaml: the disk is full"}


def test_an_encoder_that_breaks_its_contract_is_an_error(call: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="forward returned a bare tensor") as caught:
        call(BareEncoder(), tasks="esc-50")
    assert caught.value.clause == "two-results"
    assert not list(tmp_path.glob("runs/*/results.json"))


def test_no_score_at_all_is_an_error_with_its_reason(call: Callable[..., Run], data: Path, tmp_path: Path) -> None:
    with pytest.raises(XaresError, match=r"no dataset has a score: .*train_00.tar.gz: this shard is missing"):
        call(FrameEncoder(), tasks="esc-50", data_home=tmp_path / "empty")


def test_an_interruption_stays_one(call: Callable[..., Run]) -> None:
    with pytest.raises(KeyboardInterrupt, match="the same call continues it"):
        call(StoppedEncoder(), tasks="esc-50")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tasks": "esc50"}, r"tasks='esc50': no such task or dataset; .*did you mean esc-50\?"),
        ({"tasks": ["task1", "task3"]}, r"tasks='task3': no such task"),
        ({"preset": "minii"}, r"--preset=minii: no such preset"),
        ({"limit": "many"}, r"^argument --limit: found 'many', expected a whole number of at least 1$"),
        ({"limits": 3}, r"limits: no such option; expected some of .*did you mean limit\?"),
        ({"set": {"stepz": 3}}, r"--set: stepz: unknown key.*did you mean steps\?"),
        (
            {"encoder_args": {"layer": 6}},
            "FrameEncoder is an object, which has its arguments; leave out --encoder-args",
        ),
        ({"pytest_options": ["-n", "2"]}, "works in this process, without -n"),
        ({"pytest_options": ["--no-such"]}, "unrecognized arguments: --no-such"),
        ({"baseline": "nothing.yaml"}, "nothing.yaml"),
    ],
)
def test_wrong_usage_is_an_exception(call: Callable[..., Run], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        call(FrameEncoder(), **options)
    assert not [*Path().glob("runs/*/results.json")], "nothing was started"


def test_a_class_and_a_launcher_are_refused(call: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"found the class FrameEncoder, expected an object: run\(FrameEncoder\(\), "):
        call(FrameEncoder)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="works in one process"):
        call(FrameEncoder())


def test_the_call_is_shown() -> None:
    given = {"preset": "mini", "baseline": None}
    assert _shown(FrameEncoder(), "task1", given) == "xares_bench.run(FrameEncoder(...), tasks='task1', preset='mini')"
    assert _shown("enc.py", None, {**given, "encoder": "enc.py"}) == "xares_bench.run('enc.py', preset='mini')"
