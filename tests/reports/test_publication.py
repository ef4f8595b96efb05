"""What of a run is published, and how it is shown; uploads of it are in test_publish.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.run_factory import change_results, write_finished_run
from xares_bench.core.errors import UsageError
from xares_bench.hub.lock import FileInfo
from xares_bench.hub.upload import Upload, UploadFile
from xares_bench.reports.publication import Publication, publication_in_words, publication_of
from xares_bench.reports.runs import read_run

ROWS = {
    "esc-50": [("a", "dog", "dog"), ("b", "rain", "dog")],
    "gtzan": [("c", "rock", "rock"), ("d", "pop", "pop")],
}
COMMIT = "c0" * 20
DATA = {
    "folder": "xares_data",
    "revision": "abc",
    "repositories": {"owner/data": COMMIT},
    "test_repositories": {"esc-50": "owner/data", "gtzan": "owner/data"},
    "licences": {"esc-50": "CC-BY-NC-3.0"},
    "limit": None,
}
FILES = ("report.html", "results.json", "scores.tsv", "scores.md", "model_card.yaml")
OF_DATASETS = [
    f"{kind}/{name}.{end}" for name in ROWS for kind, end in (("clip_sums", "npz"), ("predictions", "jsonl"))
]


def write_run(folder: Path, **manifest: Any) -> Path:
    return write_finished_run(folder, ROWS, **{"preset": "full", "data": DATA, **manifest})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "toy-full-0f0f")


def uploaded(publication: Publication, **present: FileInfo) -> Upload:
    files = [
        UploadFile(path=path, content=content, present=present.get(Path(path).stem))
        for path, content in publication.contents.items()
    ]
    return Upload(repository="owner/model", commit=COMMIT, files=tuple(files))


def test_the_files_of_a_run_go_into_a_folder_of_its_name(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "predictions" / "other.jsonl").write_text("stale")
    publication = publication_of(read_run(folder))
    expected = {f"xares-bench/toy-full-0f0f/{name}": (folder / name).read_bytes() for name in (*FILES, *OF_DATASETS)}
    expected[".eval_results/xares-bench-full.yaml"] = (folder / "eval_results.yaml").read_bytes()
    assert publication.contents == expected
    assert publication.absent == ()
    assert publication.left_out == ()


def test_a_run_whose_data_are_not_on_the_hub_publishes_its_files_alone(tmp_path: Path) -> None:
    publication = publication_of(read_run(write_run(tmp_path / "run", data={}, preset="mini")))
    assert {path.partition("/")[0] for path in publication.contents} == {"xares-bench"}
    assert "not in .eval_results: esc-50, gtzan, task1 overall: the data are in no repository of the hub" in (
        publication_in_words(publication, uploaded(publication), create_pr=False)
    )


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a b;$(rm -rf)", "a-b-rm-rf"),
        ("--yes", "yes"),
        ("../../etc", "etc"),
        (".git", "git"),
        ("Übung-mini-1", "bung-mini-1"),
    ],
)
def test_whatever_a_run_is_called_its_paths_are_safe(folder: Path, name: str, safe: str) -> None:
    run = json.loads((folder / "results.json").read_text())["run"]
    change_results(folder, run={**run, "name": name})
    paths = publication_of(read_run(folder)).contents
    assert {path.split("/")[1] for path in paths if path.startswith("xares-bench/")} == {safe}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "///"}, "the run is called '///', expected letters or digits"),
        ({"data": {"test_repositories": {"esc-50": ["x"]}}}, "does not have the fields of a run"),
        ({"data": []}, "does not have the fields of a run"),
        ({"encoder": {}}, "does not have the fields of a run"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(folder: Path, changes: dict[str, Any], said: str) -> None:
    run = json.loads((folder / "results.json").read_text())["run"]
    change_results(folder, run={**run, **changes})
    with pytest.raises(UsageError, match=said):
        publication_of(read_run(folder))


@pytest.mark.parametrize("name", ["../secret", "a/b", "a\\b", ".hidden"])
def test_a_dataset_whose_files_would_lie_elsewhere_is_refused(folder: Path, name: str) -> None:
    data = json.loads((folder / "results.json").read_text())
    data["scores"][0]["dataset"] = name
    change_results(folder, scores=data["scores"])
    with pytest.raises(UsageError, match="names a dataset"):
        publication_of(read_run(folder))


def test_files_that_do_not_belong_to_the_scores_are_refused(folder: Path) -> None:
    predictions = folder / "predictions" / "esc-50.jsonl"
    whole = predictions.read_bytes()
    predictions.write_bytes(whole.splitlines(keepends=True)[0])
    with pytest.raises(UsageError, match="has 1 rows, but the score of esc-50 has 2; one of them was changed"):
        publication_of(read_run(folder))
    predictions.write_bytes(whole[:-5])
    with pytest.raises(UsageError, match="cannot be read"):
        publication_of(read_run(folder))
    predictions.write_bytes(whole)
    (folder / "clip_sums" / "esc-50.npz").write_bytes((folder / "clip_sums" / "gtzan.npz").read_bytes())
    with pytest.raises(UsageError, match="one of them was changed"):
        publication_of(read_run(folder))


def test_what_will_happen_is_shown_with_sizes_and_licences(folder: Path) -> None:
    (folder / "report.html").unlink()
    publication = publication_of(read_run(folder))
    tsv = (folder / "scores.tsv").read_bytes()
    upload = uploaded(publication, results=FileInfo(size_bytes=1500), scores=FileInfo(size_bytes=1500))
    lines = publication_in_words(publication, upload, create_pr=False).splitlines()
    assert lines[:3] == [
        "to       owner/model: its main branch, in one commit",
        "run      toy-full-0f0f, encoder toy-full-0f0f.py",
        "         not in its folder: report.html",
    ]
    assert f"{f'{len(tsv)} bytes':>12}  xares-bench/toy-full-0f0f/scores.tsv  (replaces a file of 1.5 kB)" in lines
    assert sum("  xares-bench/toy-full-0f0f/" in line for line in lines) == len(FILES) - 1 + len(OF_DATASETS)
    assert any(line.endswith(f"  to upload, in {len(upload.files)} files") for line in lines)
    assert lines[-3:-1] == ["         CC-BY-NC-3.0: esc-50", "         unknown: gtzan"]
    first = publication_in_words(publication, upload, create_pr=True).splitlines()[0]
    assert first == "to       owner/model: a new pull request"


def test_what_is_incomplete_is_said(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", datasets=("esc-50", "gtzan", "clotho"), tasks={"task1": ("esc-50", "gtzan", "nsynth")}
    )
    publication = publication_of(read_run(run))
    words = publication_in_words(publication, uploaded(publication), create_pr=False)
    assert "\n         incomplete: no score of clotho\n" in words
    assert "\n         incomplete: 2 of 3 datasets of task1\n" in words
    assert "\n         not in .eval_results: task1 overall: the overall score is incomplete\n" in words
