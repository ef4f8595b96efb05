"""The readers under a coverage-guided fuzzer, for as long as wanted: `python -m tests.fuzz READER MINUTES`.

Not part of the suite, which fuzzes with hypothesis (test_fuzz.py): it needs `pip install atheris`, and finds more the
longer it runs. An input that a reader neither reads nor refuses ends it, and is left in the folder `fuzzed/READER`.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["xares_bench", "tarfile", "gzip", "json", "yaml"]):
    import gzip
    import json

    from tests.run_factory import write_finished_run
    from tests.shard_factory import encode, shard_at, tone
    from tests.test_fuzz import ARCHIVE
    from xares_bench.config.catalogue import load_catalogue
    from xares_bench.config.own_data import read_own_evaluations
    from xares_bench.core.errors import DataError, UsageError
    from xares_bench.core.parsing import parse_json
    from xares_bench.datasets.audio import AUDIO_SUFFIXES, read_audio
    from xares_bench.datasets.shards import read_samples
    from xares_bench.reports.runs import read_run

FOLDER = Path(tempfile.mkdtemp())
CATALOGUE = load_catalogue("mini")
FIRST = {suffix: encode(tone(0.1), suffix) for suffix in ("wav", "flac", "ogg", "mp3")}


def archive(data: bytes) -> None:
    file = FOLDER / "s.tar"
    file.write_bytes(data)
    with contextlib.suppress(DataError):
        for sample in read_samples(shard_at(file)):
            assert (sample.audio is None) == (sample.problem is not None)


def audio(data: bytes) -> None:
    for suffix in AUDIO_SUFFIXES:
        with contextlib.suppress(ValueError):
            assert abs(read_audio(data, suffix)).max() <= 1


def results(data: bytes) -> None:
    file = FOLDER / "results.json"
    file.write_bytes(data)
    with contextlib.suppress(UsageError):
        read_run(file)


def own_evaluations(data: bytes) -> None:
    file = FOLDER / "eval.yaml"
    file.write_bytes(data)
    with contextlib.suppress(UsageError):
        read_own_evaluations(file, CATALOGUE)


def any_json(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        json.dumps(parse_json(data))


def first_inputs() -> dict[str, list[bytes]]:
    """Well-formed inputs of every reader, which the fuzzer changes."""
    run = write_finished_run(FOLDER / "run", {"esc-50": [("0", "x", "x"), ("1", "y", "x")]})
    document = (run / "results.json").read_bytes()
    return {
        "archive": [ARCHIVE, gzip.compress(ARCHIVE)],
        "audio": list(FIRST.values()),
        "results": [document],
        "own_evaluations": [b"own:\n  shards: [a.tar]\n  prompt: What?\n  metric: Accuracy\n  weight: 1\n"],
        "any_json": [document, b"[" * 500 + b"]" * 500],
    }


READERS: dict[str, Callable[[bytes], None]] = {
    reader.__name__: reader for reader in (archive, audio, results, own_evaluations, any_json)
}


def main() -> None:
    name, minutes = sys.argv[1], float(sys.argv[2])
    folder = Path("fuzzed", name)
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(first_inputs()[name]):
        (folder / f"first-{number}").write_bytes(data)
    limits = [f"-max_total_time={round(60 * minutes)}", "-timeout=60", "-rss_limit_mb=6000", "-max_len=40000"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={folder}/", str(folder)], READERS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
