"""The decoder's files: a folder on disk, or a model of the hub at a commit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xares_bench.core.digests import digest_of, file_digest
from xares_bench.core.progress import Progress
from xares_bench.hub import fetch_model


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A causal language model in the Hugging Face format.

    Attributes:
        name: As the preset or `--decoder` names it.
        folder: Where its files are.
        commit: Of its hub repository; None for a folder.
        digest: Of its files, or of its name and commit.
    """

    name: str
    folder: str
    commit: str | None
    digest: str


def locate_decoder(name: str, data_home: Path, progress: Progress) -> Decoder:
    """The decoder of that name, fetched now if need be.

    Args:
        name: A folder, or `OWNER/NAME` of the hub with or without `@REVISION`.
        data_home: Holds the lock file that says which commit `main` is.
        progress: Shows what is fetched.

    Raises:
        UsageError: There is no such model, or too little disk.
        DataError: The hub does not answer, or a file is damaged.
    """
    folder = Path(name)
    if folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digest = digest_of({path.relative_to(folder).as_posix(): file_digest(path) for path in files})
        return Decoder(name=name, folder=name, commit=None, digest=digest)

    repository, _, revision = name.partition("@")
    model = fetch_model(repository, revision=revision or None, data_home=data_home, progress=progress)
    assert model.commit is not None, name  # only folders have none
    digest = digest_of({"name": repository, "commit": model.commit})
    return Decoder(name=name, folder=str(model.folder), commit=model.commit, digest=digest)
