"""The files of a decoder (a causal language model): in a folder, or in huggingface_hub's cache, fetched if missing.

The cache is the one that transformers uses, so a model that it has fetched is not fetched again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from xares_bench.core.digests import digest_of, file_digest
from xares_bench.core.errors import DataError, UsageError
from xares_bench.core.progress import Progress
from xares_bench.hub import client
from xares_bench.hub.lock import FileInfo, Pin, Repository, edit_pins, is_writable, read_pins
from xares_bench.hub.survey import HubFile, Survey, free_bytes, total_bytes

_CONFIG_FILE = "config.json"
# Weights in order of preference; copies in other formats or in subfolders are not fetched.
_WEIGHTS = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin", "*.bin")
_TEXTS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")


@dataclass(frozen=True, kw_only=True)
class Model:
    """The files of a model on disk.

    Attributes:
        folder: Contains config, tokeniser and weights.
        commit: Their commit on the hub; None for a folder that the user named.
    """

    folder: Path
    commit: str | None


def survey_model(name: str, *, revision: str | None, data_home: Path, write: bool = True) -> Survey:
    """Which files of a model are present; the hub is asked only for what is neither in the lock file nor in the cache.

    Args:
        name: A folder, or the name of a hub repository.
        revision: Branch, tag or commit to use from now on; None: the one of the lock file, else `main`.
        data_home: The data folder, whose lock file stores the commit.
        write: Whether to write the commit to the lock file.

    Raises:
        UsageError: The name is neither, or the revision is unknown offline.
        DataError: The hub does not answer, or the repository does not contain a model.
    """
    if Path(name).is_dir():
        return _survey(_folder(name, revision), [], [])
    pin = _pin(name, revision, data_home, write=write)
    if pin is None:
        return _survey(_cached_folder(name, revision), [], [])
    files = _files(name, pin)
    return _survey(_cache_folder(), files, [file for file in files if _cached(file, pin.commit) is None])


def fetch_model(name: str, *, revision: str | None, data_home: Path, progress: Progress | None = None) -> Model:
    """A model with all its files on disk: config, tokeniser and weights, as safetensors if it has them.

    Args:
        name: A folder, or the name of a hub repository.
        revision: Branch, tag or commit to use from now on; None: the one of the lock file, else `main`.
        data_home: The data folder, whose lock file stores the commit.
        progress: Shows huggingface_hub's own bars on a terminal.

    Raises:
        UsageError: The name is neither, the revision is unknown offline, or the disk has too little room.
        DataError: The hub does not answer, a file is damaged, or the repository does not contain a model.
    """
    if Path(name).is_dir():
        return Model(folder=_folder(name, revision), commit=None)
    pin = _pin(name, revision, data_home, write=True)
    if pin is None:
        folder = _cached_folder(name, revision)
        return Model(folder=folder, commit=folder.name)
    files = _files(name, pin)
    missing = [file for file in files if _cached(file, pin.commit) is None]
    _survey(_cache_folder(), files, missing).check_space()
    with (progress or Progress()).uncaptured():
        for file in missing:
            _fetch(file, pin)
    config = _cached(HubFile(repository=name, path=_CONFIG_FILE, size_bytes=None), pin.commit)
    assert config is not None, name
    return Model(folder=config.parent, commit=pin.commit)


def _folder(name: str, revision: str | None) -> Path:
    if revision is not None:
        raise UsageError(f"--decoder={name}@{revision}: {name} is a folder, which has no revision; omit it")
    return Path(name).absolute()


def _pin(name: str, revision: str | None, data_home: Path, *, write: bool) -> Pin | None:
    """The commit to use and its files; None: the lock file does not have it, and the hub may not be asked."""
    from huggingface_hub.errors import HFValidationError

    key = Repository(kind="model", name=name).key
    pin = read_pins(data_home).get(key)
    offline = client.is_offline()
    if pin is not None and (revision in (None, pin.commit) or (offline and revision == pin.revision)):
        return pin
    if offline:
        return None
    with edit_pins(data_home, write=write and is_writable(data_home)) as pins:
        pin = pins.get(key)
        if pin is None or revision is not None:
            try:
                asked = revision or "main"
                commit = client.resolve(Repository(kind="model", name=name), asked)
                pin = Pin(revision=asked, commit=commit, files=_choose(name, client.model_files(name, commit)))
            except HFValidationError:
                raise UsageError(f"--decoder={name}: neither a folder nor the name of a hub repository") from None
            pins[key] = pin
    return pin


def _choose(name: str, files: dict[str, FileInfo]) -> dict[str, FileInfo]:
    """The files that are needed to load a causal language model.

    Raises:
        DataError: There is no config, or there are no weights.
    """
    for pattern in _WEIGHTS:
        weights = [path for path in files if "/" not in path and fnmatch(path, pattern)]
        if weights:
            break
    else:
        raise DataError(f"{name}: has neither *.safetensors nor *.bin weights; choose another model with --decoder")
    if _CONFIG_FILE not in files:
        raise DataError(f"{name}: has no {_CONFIG_FILE}; choose another model with --decoder")
    texts = [path for path in files if "/" not in path and any(fnmatch(path, pattern) for pattern in _TEXTS)]
    return {path: files[path] for path in sorted({*weights, *texts})}


def _files(name: str, pin: Pin) -> list[HubFile]:
    return [HubFile(repository=name, path=path, size_bytes=info.size_bytes) for path, info in pin.files.items()]


def _survey(folder: Path, files: Iterable[HubFile], missing: Iterable[HubFile]) -> Survey:
    files, missing = tuple(files), tuple(missing)
    return Survey(
        folder=folder,
        num_files=len(files),
        size_bytes=total_bytes(files),
        num_present=len(files) - len(missing),
        present_bytes=total_bytes(files) - total_bytes(missing),
        missing=missing,
        missing_bytes=total_bytes(missing),
        free_bytes=free_bytes(folder),
    )


def _fetch(file: HubFile, pin: Pin) -> None:
    """Fetch a file into the cache and verify it.

    Raises:
        DataError: It cannot be fetched, or is damaged.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    what = f"{file.path} of {file.repository} at commit {pin.commit[:12]}"

    def download() -> Path:
        return Path(hf_hub_download(file.repository, file.path, revision=pin.commit, library_name="xares-bench"))

    try:
        path = client.retry(download, what, max_failures=3)  # the library itself retries within each
    except LocalEntryNotFoundError as cause:  # the library has retried already
        raise DataError(client.explain(cause.__cause__ or cause, what)) from cause
    except OSError as cause:  # a full disk, or fewer bytes than the hub announced
        reason = " ".join((cause.strerror or str(cause)).split())
        raise DataError(f"{what}: {reason}; check the disk of {_cache_folder()}, and try again") from cause
    info = pin.files[file.path]
    if info.sha256 is not None and (digest := file_digest(path)) != info.sha256:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise DataError(
            f"{what}: the hub sent SHA-256 {digest[:12]}..., its listing says {info.sha256[:12]}...; "
            "the file was discarded: try again, and check the proxy if it recurs"
        )


def _cached(file: HubFile, commit: str) -> Path | None:
    """A file in the cache; None if it is missing or has another size."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.repository, file.path, revision=commit)
    if not isinstance(found, str) or (file.size_bytes is not None and Path(found).stat().st_size != file.size_bytes):
        return None
    return Path(found)


def _cached_folder(name: str, revision: str | None) -> Path:
    """The folder in the cache of a model that is not in the lock file.

    Raises:
        DataError: There is none, or config or weights are missing.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, _CONFIG_FILE, revision=revision)
    except HFValidationError:
        raise UsageError(f"--decoder={name}: neither a folder nor the name of a hub repository") from None
    if isinstance(config, str) and any(any(Path(config).parent.glob(pattern)) for pattern in _WEIGHTS):
        return Path(config).parent
    raise DataError(
        f"{name}: not in the cache {_cache_folder()}, and HF_HUB_OFFLINE is set; "
        f"fetch it on a machine with network with `python -m xares_bench download --decoder {name}`"
    )


def _cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A causal language model in the Hugging Face format.

    Attributes:
        name: Its name in the preset or in `--decoder`.
        folder: Contains its files.
        commit: Commit of its repository on the hub; None for a folder.
        digest: Digest of its files, or of its name and commit.
    """

    name: str
    folder: str
    commit: str | None
    digest: str


def locate_decoder(name: str, data_home: Path, progress: Progress) -> Decoder:
    """The decoder of a name, fetched now if it is missing.

    Args:
        name: A folder, or `OWNER/NAME` on the hub, optionally with `@REVISION`.
        data_home: The data folder, whose lock file stores the commit.
        progress: Shows the download.

    Raises:
        UsageError: There is no such model, or the disk has too little room.
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
