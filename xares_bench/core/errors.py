"""What users can cause, as one tree of exceptions.

    XaresError
    ├── UsageError         an option, a specification or a YAML file is wrong
    │   ├── EncoderSpecError   --encoder or --encoder-args cannot be read
    │   ├── CatalogueError     a dataset, mix, preset or recipe is ill-defined
    │   └── BaselineError      a baseline is missing, unreadable or not comparable
    ├── EncoderError       the encoder cannot be loaded or breaks its contract
    ├── DataError          a shard is missing or damaged, or too many samples are unusable
    ├── DiskError          something cannot be written
    ├── TrainingError      the loss of a training is not a finite number
    └── OutOfMemory        there is too little memory, and no smaller batch helps

    EncoderWarning         the encoder breaks a clause of the contract that scoring does not need
    CacheWarning           something in the cache was damaged, or could not be cached; it is recomputed
    ShortageWarning        there is too little memory for a batch; it is split
    DataWarning            targets of a dataset are left out, or were found under another key
    RunWarning             a finished run cannot be read, and is left out

Every message says what was found, what was expected and what to do. Programming errors are assertions.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from xares_bench.core.text import writable


class XaresError(Exception):
    """Any error that a user of the benchmark can cause and fix."""

    def __init__(self, message: str) -> None:
        """Take the message, which may quote text from outside."""
        super().__init__(writable(message))


class UsageError(XaresError):
    """A command line, a specification or a YAML file is wrong; nothing was started."""


_ERRORS_OF_PATHS = frozenset(
    {
        *(errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL),
    }
)


@contextlib.contextmanager
def usage_errors_of_paths() -> Iterator[None]:
    """Turn what a system says of a path that a user names into a usage error: too long, not permitted, not a folder.

    Raises:
        UsageError: The block met such a path, or one with a NUL character.
        DiskError: It met another error of a file, such as a full disk.
    """
    try:
        yield
    except XaresError:
        raise
    except OSError as cause:
        is_of_path = cause.errno in _ERRORS_OF_PATHS
        if cause.filename is None and not is_of_path:
            raise
        name = cause.filename if cause.filename is not None else "a path"
        problem = f"{name}: {cause.strerror or cause}"
        raise (UsageError(f"{problem}; check the path") if is_of_path else DiskError(problem)) from cause
    except ValueError as cause:
        if "null byte" not in str(cause):
            raise
        raise UsageError("a path contains a NUL character; check the paths") from cause


class EncoderSpecError(UsageError):
    """`--encoder` or `--encoder-args` does not name a loadable encoder class."""


class CatalogueError(UsageError):
    """A dataset, mix, preset or recipe is ill-defined."""


class BaselineError(UsageError):
    """A baseline is missing, unreadable or cannot be compared with this run."""


class EncoderError(XaresError):
    """The encoder cannot be loaded, or breaks its contract.

    Attributes:
        clause: Name of the broken clause.
    """

    def __init__(self, clause: str, message: str) -> None:
        """Store the name of the clause beside the message."""
        super().__init__(message)
        self.clause = clause


class EncoderWarning(UserWarning):
    """The encoder breaks a clause of the contract that scoring does not need."""


class CacheWarning(UserWarning):
    """Something in the cache was damaged, or could not be cached; it is recomputed when it is needed."""


class ShortageWarning(UserWarning):
    """There is too little memory for a batch; it is split, which takes longer and does not change results."""


class DataWarning(UserWarning):
    """Targets of a dataset are corrupt and left out, or were found under a key that is not the dataset's own."""


class RunWarning(UserWarning):
    """A finished run cannot be read, and is left out."""


class DataError(XaresError):
    """A shard is missing or damaged, or too many of its samples are unusable."""


class DiskError(XaresError, OSError):
    """A disk is full, read-only or broken."""


class TrainingError(XaresError):
    """The loss of a training is not a finite number."""


class OutOfMemory(XaresError):
    """There is too little memory, and a smaller batch is impossible or would change results."""
