"""Whatever bytes the readers are given, they read them or say what is wrong in the error that they promise."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.run_factory import write_finished_run
from tests.shard_factory import encode, shard_at, tone
from xares_bench.config.catalogue import load_catalogue
from xares_bench.config.own_data import read_own_evaluations
from xares_bench.core.errors import DataError, UsageError
from xares_bench.core.store import MANIFEST, Store
from xares_bench.datasets.audio import AUDIO_SUFFIXES, EXTRA_SUFFIXES, read_audio
from xares_bench.datasets.shards import read_samples
from xares_bench.datasets.targets import targets_of
from xares_bench.reports.runs import read_run
from xares_bench.scores.records import Prediction, predictions_to_jsonl

FUZZED = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@contextlib.contextmanager
def refused_in_one_line() -> Iterator[None]:
    """Nothing but an error of users, and that without a line break."""
    try:
        yield
    except UsageError as refused:
        if "\n" in str(refused):
            pytest.fail(f"more than a line: {refused}")


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with a few of them changed, put in, or cut out."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["change", "insert", "cut", "end"]))
        if kind == "change" and place < len(data):
            data[place] = draw(st.integers(0, 255))
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=600))
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 600))]
        elif kind == "end":
            del data[place:]
    return bytes(data)


def archive() -> bytes:
    """Two samples, and one whose name needs a pax header."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for key in ("0", "1", "ü" * 120):
            for suffix, data in (("wav", encode(tone(0.02))), ("json", b'{"label": "x"}')):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


ARCHIVE = archive()
AUDIO = {suffix: encode(tone(0.1), suffix) for suffix in AUDIO_SUFFIXES if suffix not in EXTRA_SUFFIXES}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "compressed"])
@FUZZED
@given(data=st.data())
def test_archives(pack: Callable[[bytes], bytes], data: st.DataObject) -> None:
    content = data.draw(st.one_of(st.binary(max_size=2000), damaged(pack(ARCHIVE)), damaged(ARCHIVE).map(pack)))
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(DataError):
        file = Path(folder) / "s.tar"
        file.write_bytes(content)
        for sample in read_samples(shard_at(file)):
            assert (sample.audio is None) == (sample.problem is not None)
            json.dumps([sample.key, sample.problem, sample.fields], ensure_ascii=False).encode()
        assert [path.name for path in Path(folder).iterdir()] == ["s.tar"]


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
@FUZZED
@given(data=st.data())
def test_audio(suffix: str, data: st.DataObject) -> None:
    whole = AUDIO.get(suffix, AUDIO["wav"])
    content = data.draw(st.one_of(st.binary(max_size=500), damaged(whole)))
    with contextlib.suppress(ValueError):
        waveform = read_audio(content, suffix)
        assert waveform.dtype == np.float32
        assert waveform.ndim == 1
        assert len(waveform) > 0
        assert np.isfinite(waveform).all()
        assert np.abs(waveform).max() <= 1


@FUZZED
@given(fields=st.dictionaries(st.sampled_from(["label", "text", "captions"]) | st.text(max_size=5), JSON, max_size=4))
def test_targets(fields: dict[str, Any]) -> None:
    split = load_catalogue("mini").datasets["esc-50"].eval
    assert split is not None
    with contextlib.suppress(ValueError):
        targets = targets_of(fields, split)
        assert targets.texts or targets.corrupt
        for target in (*targets.texts, *targets.corrupt):
            target.encode()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_finished_run(tmp_path_factory.mktemp("runs") / "run", {"esc-50": [("0", "x", "x"), ("1", "y", "x")]})


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """JSON of which something, anywhere, is something else."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: draw(changed(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(changed(value[place])), *value[place + 1 :]]
    return draw(JSON)


@FUZZED
@given(data=st.data())
def test_results(run_folder: Path, data: st.DataObject) -> None:
    written = (run_folder / "results.json").read_bytes()
    content = data.draw(st.one_of(damaged(written), changed(json.loads(written)).map(json.dumps).map(str.encode)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        file.write_bytes(content)
        with refused_in_one_line():
            run = read_run(file)
            assert all(-1 <= record.score <= 1 or record.score != record.score for record in run.records.values())


@FUZZED
@given(rows=st.lists(st.builds(Prediction, clip=st.text(), reference=st.text(), hypothesis=st.text(), value=st.none())))
def test_predictions_of_any_text_come_back(run_folder: Path, rows: list[Prediction]) -> None:
    file = run_folder / "predictions" / "esc-50.jsonl"
    try:
        file.write_text(predictions_to_jsonl(rows), encoding="utf-8")
    except UnicodeEncodeError:
        return  # half characters, which no tokeniser makes
    assert read_run(run_folder).predictions_of("esc-50") == rows


@FUZZED
@given(data=st.data())
def test_manifests(data: st.DataObject) -> None:
    good = {"key": "k", "files": {"a": {"size_bytes": 1, "sha256": "0"}}}
    content = data.draw(st.one_of(changed(good).map(json.dumps).map(str.encode), st.binary(max_size=200)))
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "kind" / "k"
        folder.mkdir(parents=True)
        (folder / "a").write_bytes(b"x")
        (folder / MANIFEST).write_bytes(content)
        entry = Store(root=Path(root)).find("kind", "k")
        assert entry is None or entry.size_bytes >= 0


@FUZZED
@given(text=st.text(max_size=300) | damaged(b"own:\n  shards: [a.tar]\n  prompt: What?\n  metric: Accuracy\n"))
def test_yaml(text: str | bytes) -> None:
    catalogue = load_catalogue("mini")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "eval.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        with refused_in_one_line():
            read_own_evaluations(file, catalogue)
