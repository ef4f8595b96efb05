"""Faults: each ends in bounded time and says what it was, nothing is corrupted, and what was finished stays.

Those of a transfer are in tests/hub, those of kept features in test_kept_features.py, those of checkpoints in
test_checkpoints.py, those of several processes in test_processes.py.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY, MakeClips, last_wins
from tests.hub.test_home import without_rights
from tests.lalm.test_generation import RECIPE
from tests.shard_factory import tone, write_shard
from tests.test_bench import ENCODER, FEW_STEPS, write_data
from tests.training.test_loop import fit
from xares_bench.config.catalogue import Split
from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.config.recipe import Recipe
from xares_bench.core.errors import DataError, OutOfMemory, ShortageWarning
from xares_bench.core.progress import Progress
from xares_bench.datasets.shards import ShardFolder, read_samples
from xares_bench.encoders.loading import load_encoder
from xares_bench.features.encoding import AudioClip, ClipEncoder
from xares_bench.lalm.attention import Cache
from xares_bench.lalm.batch import Batch, TextTokenizer
from xares_bench.lalm.generation import generate
from xares_bench.lalm.model import LALM, build_lalm

CPU = torch.device("cpu")


class Sessions:
    """Sessions of one dataset, on the same data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = write_data(folder / "data")

    def options(self, runs: Path, *more: str, encoder: Path = ENCODER, data: Path | None = None) -> list[str]:
        return last_wins(
            [
                *(str(REPOSITORY / "bench"), "-p", "no:cacheprovider", "--preset=mini", f"--encoder={encoder}"),
                *(f"--data-home={data or self.data}", f"--runs-dir={runs}", "--train=clotho", "-k", "clotho"),
                *(*FEW_STEPS, *more),
            ]
        )

    def start(self, runs: Path, *more: str, prepare: Callable[[], None] | None = None, **where: Path) -> Any:
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", *self.options(runs, *more, **where)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=prepare,
        )


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    return Sessions(tmp_path_factory.mktemp("sessions"))


def scores(runs: Path) -> dict[str, bytes]:
    """What all sessions with the same command must end with."""
    files = [*runs.glob("*/scores.tsv"), *runs.glob("*/predictions/*"), *runs.glob("store/lalms/*/trained.safetensors")]
    assert len(files) == 3, files
    return {file.name: file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def undisturbed(sessions: Sessions) -> dict[str, bytes]:
    runs = sessions.folder / "undisturbed"
    process = sessions.start(runs)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return scores(runs)


def encoder_that(folder: Path, *lines: str) -> Path:
    """The log-mel encoder, which first of all does this whenever it is called."""
    start = "    def forward(self, audio"
    before, _, after = ENCODER.read_text().partition(start)
    body = "".join(f"        {line}\n" for line in lines)
    file = folder / "encoder.py"
    file.write_text(
        f"{before}    def forward(self, *arguments):\n{body}        return self.encode(*arguments)\n\n"
        f"    def encode(self, audio{after}"
    )
    return file


# A disk that is full.


@pytest.fixture
def full_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Makes the disk full for the files whose names end so; bytes are refused when they are to be brought to it."""
    fsync = os.fsync
    ending: str | None = None

    def refuse(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
        if ending is not None and ending in name:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", refuse)

    def make_full(name: str | None) -> None:
        nonlocal ending
        ending = name

    return make_full


@pytest.mark.skipif(sys.platform != "linux", reason="looks the names of open files up in /proc")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("trained.safetensors", "*/store/lalms/* cannot be written: No space left on device; make room*"),
        ("/scores/", "*/store/scores/*/* cannot be written: No space left on device*"),
        ("/predictions/.clotho.jsonl", "*clotho.jsonl cannot be written: No space left on device*"),
        ("/clip_sums/", "*clotho.npz cannot be written: No space left on device*"),
        (".results.json", "*results.json cannot be written: No space left on device*"),
        (".baseline.yaml", "*baseline.yaml cannot be written: No space left on device*"),
        (".report.html", "*report.html is not written: DiskError: *"),
    ],
)
def test_a_full_disk_is_named_and_the_same_command_goes_on(
    sessions: Sessions,
    undisturbed: dict[str, bytes],
    pytester: pytest.Pytester,
    tmp_path: Path,
    full_for: Callable[[str | None], None],
    name: str,
    expected: str,
) -> None:
    runs, baseline = tmp_path / "runs", tmp_path / "baseline.yaml"
    command = [*sessions.options(runs), f"--save-baseline={baseline}"]
    full_for(name)
    result = pytester.runpytest_inprocess(*command)
    text = result.stdout.str()
    is_serious = name != ".report.html"  # the page never stands in the way of the scores
    assert result.ret == is_serious, text
    result.stdout.fnmatch_lines([expected])
    assert "Traceback" not in text
    assert "INTERNALERROR" not in text
    left = [*runs.rglob("*.part"), *baseline.parent.glob("*.part"), *runs.rglob("*.part/*")]
    assert not left
    assert baseline.exists() == (name == ".report.html" or name == ".results.json")
    if is_serious:
        full_for(None)
        again = pytester.runpytest_inprocess(*command, "--force")
        assert again.ret == 0, again.stdout.str()
    assert scores(runs) == undisturbed


def test_a_full_disk_of_small_files_ends_a_real_session(sessions: Sessions, tmp_path: Path) -> None:
    """The operating system's own word, at the first file that is larger than there is room."""
    resource = pytest.importorskip("resource")

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = sessions.start(tmp_path, "--feature-budget=0", prepare=no_room)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 1, output
    assert "cannot be written: File too large; make room or choose another folder" in output
    assert not list(tmp_path.glob("store/lalms/*/"))


# Data.


def test_a_shard_that_is_replaced_while_it_is_in_use_is_refused(tmp_path: Path) -> None:
    def write(pitch: float) -> None:
        clips = [(str(number), tone(0.2, pitch), {"label": "x"}) for number in range(3)]
        write_shard(tmp_path / "new.tar", clips).replace(tmp_path / "s.tar")

    write(200)
    split = Split(shards=("s.tar",), target_keys=("label",))
    (shard,) = ShardFolder(tmp_path).locate(split)
    reading = read_samples(shard)
    first = next(reading)
    write(300)
    assert first.audio is not None
    assert len(list(reading)) == 2, "who has opened it reads the file that it was"
    with pytest.raises(DataError, match=r"s\.tar: changed while it was in use"):
        next(read_samples(shard))
    (shard,) = ShardFolder(tmp_path).locate(split)
    reading = read_samples(shard)
    next(reading)
    with (tmp_path / "s.tar").open("r+b") as file:  # in place
        file.seek(700)
        file.write(b"\0")
    with pytest.raises(DataError, match="changed while it was in use"):
        list(reading)


def test_data_that_changes_during_a_session_is_said_and_no_score_of_it_kept(
    sessions: Sessions, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """The encoder changes the test shard at its first training clip: after it was digested, before it is read."""
    data = shutil.copytree(sessions.data, tmp_path / "data")
    armed, shard = tmp_path / "armed", data / "clotho" / "test_00.tar.gz"
    encoder = encoder_that(
        tmp_path,
        "import os, pathlib",
        f"armed = pathlib.Path({str(armed)!r})",
        "if armed.exists() and arguments[0].shape[1] < 8000:  # the clips that identify it are longer",
        "    armed.unlink()",
        f"    os.utime({str(shard)!r}, (1, 1))",
    )
    process = sessions.start(tmp_path / "warm", "-k", "encoder", encoder=encoder, data=data)
    assert process.wait(timeout=900) == 0, process.stdout.read()
    shutil.copytree(tmp_path / "warm", tmp_path / "runs")  # with its checked contract
    armed.touch()
    process = sessions.start(tmp_path / "runs", encoder=encoder, data=data)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 1, output
    assert "test_00.tar.gz: changed while it was in use" in output
    assert not list((tmp_path / "runs").glob("store/scores/*/"))
    process = sessions.start(tmp_path / "runs", encoder=encoder, data=data)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert "LALM clotho: cached" in output


def test_a_data_folder_that_cannot_be_written_to_will_do(
    sessions: Sessions, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    data = shutil.copytree(sessions.data, tmp_path / "data")
    folders = [data, *(path for path in data.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        process = sessions.start(tmp_path / "runs", data=data, prepare=without_rights)
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
        refused = sessions.start(data / "runs", data=data, prepare=without_rights)
        output, _ = refused.communicate(timeout=900)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert scores(tmp_path / "runs") == undisturbed
    assert refused.returncode == pytest.ExitCode.USAGE_ERROR, output
    assert "cannot be written to (Permission denied); choose another folder" in output


def test_a_clock_that_goes_back_changes_nothing(
    sessions: Sessions, undisturbed: dict[str, bytes], pytester: pytest.Pytester, tmp_path: Path
) -> None:
    """A session whose files are from years ahead, and then one from before they were."""
    for seconds in (300_000_000.0, -300_000_000.0):
        with pytest.MonkeyPatch.context() as patch:
            clock = time.time
            patch.setattr("time.time", lambda clock=clock, seconds=seconds: clock() + seconds)
            result = pytester.runpytest_inprocess(*sessions.options(tmp_path))
            assert result.ret == 0, result.stdout.str()
        for path in tmp_path.rglob("*"):
            os.utime(path, (time.time() + seconds, time.time() + seconds))
        assert scores(tmp_path) == undisturbed
    result.stdout.fnmatch_lines(["LALM clotho: cached", "cached: *, 1 of 1 scores; *"])


# Sessions at once, and sessions that die.


def test_two_sessions_at_once_share_the_work(sessions: Sessions, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    processes = [sessions.start(tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert scores(tmp_path) == undisturbed
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there are no such signals")
def test_a_worker_that_dies_is_an_error(pytester: pytest.Pytester, sessions: Sessions, tmp_path: Path) -> None:
    """It may hold the lock on what it trains; the other then goes on."""
    encoder = encoder_that(
        tmp_path,
        "import os, signal",
        "if 'mecat' in os.environ.get('PYTEST_CURRENT_TEST', ''):",
        "    os.kill(os.getpid(), signal.SIGKILL)",
    )
    both = ("--train=task2", "-k", "clotho or mecat", "-n", "2")
    result = pytester.runpytest_subprocess(*sessions.options(tmp_path / "runs", *both, encoder=encoder))
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["worker 'gw*' crashed while running *mecat*", "*no score for mecat: the run fails*"])
    (table,) = (tmp_path / "runs").glob("*/scores.tsv")
    assert "clotho" in table.read_text()


# The encoder.

_HANGS = {
    "sleeps": "import time; time.sleep(3600)",
    "loops": "while True: pass",
    "waits": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "swallows": "import time\n"
    "            while True:\n"
    "                try: time.sleep(3600); break\n"
    "                except TimeoutError: pass",
}


@pytest.mark.parametrize("way", _HANGS)
def test_an_encoder_that_hangs_is_ended(
    pytester: pytest.Pytester, sessions: Sessions, tmp_path: Path, way: str
) -> None:
    encoder = tmp_path / "hangs.py"
    encoder.write_text(
        "import torch\nclass HangingEncoder(torch.nn.Module):\n    output_dim = 4\n"
        "    def forward(self, audio, mask=None):\n"
        f"        if audio.shape[1] < 4800:\n            {_HANGS[way]}\n"
        "        return torch.nn.functional.unfold(audio[:, None, None], (1, 4), stride=160).mT, None\n"
    )
    pytester.makepyfile(short="import xares_bench.runtime.signals as d\nd.LIMIT_S, d.GRACE_S = 1.0, 2.0\n")
    pytester.syspathinsert()
    started = time.monotonic()
    result = pytester.runpytest_subprocess(
        *sessions.options(tmp_path / "runs", "-p", "short", encoder=encoder), timeout=900
    )
    assert time.monotonic() - started < 600
    assert result.ret == 1
    if way == "swallows":
        result.stderr.fnmatch_lines(["*Timeout (0:00:03)!*", '*hangs.py", line * in forward'])
    else:
        result.stdout.fnmatch_lines(["*raised TimeoutError: no result after 1 s at *hangs.py:*"])


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (
            "raise RuntimeError('no sound in it')",
            "*raised RuntimeError: no sound in it at *fails.py:*clotho-*-1*",
        ),
        ("features[0] = torch.nan", "*feature values are NaN*clotho-*-1*"),
    ],
)
def test_an_encoder_that_fails_on_one_clip_names_it(
    pytester: pytest.Pytester, sessions: Sessions, tmp_path: Path, fault: str, expected: str
) -> None:
    """Of every shard it is one clip, of 0.25 s."""
    encoder = tmp_path / "fails.py"
    encoder.write_text(
        "import torch\nclass FailingEncoder(torch.nn.Module):\n    output_dim = 4\n"
        "    def forward(self, audio, mask=None):\n"
        "        features = torch.nn.functional.unfold(audio[:, None, None], (1, 4), stride=160).mT.clone()\n"
        f"        if audio.shape[1] == 4000:\n            {fault}\n"
        "        return features, None\n"
    )
    runs = tmp_path / "runs"
    result = pytester.runpytest_inprocess(*sessions.options(runs, encoder=encoder))
    assert result.ret == 1, result.stdout.str()
    result.stdout.fnmatch_lines([expected])
    assert "Traceback" not in result.stdout.str()
    assert not list(runs.glob("store/lalms/*/"))
    assert not list(runs.glob("*/results.json"))


# Memory.


def no_memory() -> RuntimeError:
    """What torch raises on a CPU."""
    try:
        torch.empty(1 << 50)
    except RuntimeError as error:
        return error
    raise AssertionError("a petabyte")


@pytest.fixture
def wide(tmp_path: Path) -> ClipEncoder:
    """An encoder without memory for more than two clips at once."""
    file = tmp_path / "wide.py"
    file.write_text(
        "import torch\nclass WideEncoder(torch.nn.Module):\n    output_dim = 4\n    most = 2\n"
        "    def forward(self, audio, mask=None):\n"
        "        if len(audio) > self.most:\n            torch.empty(1 << 50)\n"
        "        return torch.nn.functional.unfold(audio[:, None, None], (1, 4), stride=160).mT, None\n"
    )
    return ClipEncoder(encoder=load_encoder(parse_encoder_spec(str(file), None), CPU), honours_mask=False)


def test_fewer_clips_are_encoded_at_once_where_memory_is_short(wide: ClipEncoder) -> None:
    recordings = [
        AudioClip(key=str(number), shard="s", fields={}, waveform=tone(0.2, 200 + number)) for number in range(7)
    ]
    with pytest.warns(ShortageWarning, match="not enough memory for encoding of 7 clips at once"):
        clips = wide.encode(recordings, "seed")
    wide.encoder.module.most = 100  # type: ignore[assignment]
    for clip, other in zip(clips, wide.encode(recordings, "seed"), strict=True):
        assert clip.key == other.key
        assert torch.equal(clip.frames(), other.frames())
    wide.encoder.module.most = 0  # type: ignore[assignment]
    with pytest.warns(ShortageWarning), pytest.raises(OutOfMemory, match=r"encoding of one clip"):
        wide.encode(recordings, "seed")


@pytest.mark.parametrize("generate_tokens", ["packed", "padded"])
def test_fewer_texts_are_generated_at_once_where_memory_is_short(
    make_clips: MakeClips,
    decoder_folder: str,
    tokenizer: TextTokenizer,
    mini_recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    generate_tokens: str,
) -> None:
    # In float64, where rounding that depends on the size of a batch decides nothing.
    lalm = build_lalm(decoder_folder, 6, mini_recipe.training).eval().double()
    prompts = [tokenizer.prompt(clip, "say") for clip in make_clips([13, 12, 9, 8, 7, 7, 6, 5, 4, 4, 3, 2])]
    recipe = dataclasses.replace(RECIPE, generation_batch_size=8, generation_positions=1000)
    most = 100

    if generate_tokens == "packed":

        class SmallCache(Cache):
            def append(self, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
                if len(arguments[1]) > most:
                    raise no_memory()
                return super().append(*arguments)

        monkeypatch.setattr("xares_bench.lalm.generation.Cache", SmallCache)
    else:
        lalm.reads_packed = False
        lalm.decoder.set_attn_implementation("sdpa")
        plain: Any = lalm.decoder.generate

        def small(*arguments: Any, **named: Any) -> Any:
            if "logits_processor" in named and len(named["inputs_embeds"]) > most:  # not the probe of padding
                raise no_memory()
            return plain(*arguments, **named)

        monkeypatch.setattr(lalm.decoder, "generate", small)

    def texts() -> list[str]:
        return generate(lalm, prompts, tokenizer=tokenizer, recipe=recipe, device=CPU, progress=Progress())

    expected = texts()
    most = 3
    with pytest.warns(ShortageWarning, match="not enough memory for generation of 8 clips at once"):
        assert texts() == expected
    most = 0
    with pytest.warns(ShortageWarning), pytest.raises(OutOfMemory, match="generation of one clip"):
        texts()


def test_training_tries_no_smaller_batch(
    batch: Batch, decoder_folder: str, mini_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    lalm = build_lalm(decoder_folder, 6, mini_recipe.training)
    done = 0

    def forward(batch: Batch) -> torch.Tensor:
        nonlocal done
        done += 1
        if done == 3:
            raise no_memory()
        output: torch.Tensor = LALM.forward(lalm, batch)
        return output

    monkeypatch.setattr(lalm, "forward", forward)
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    with pytest.raises(
        OutOfMemory, match=r"training: RuntimeError at step 3, with 4 clips of \d+ positions.* of -n 2 sh"
    ):
        fit(lalm, iter([batch] * 9), mini_recipe, 9)
