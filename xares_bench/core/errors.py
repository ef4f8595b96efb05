"""What users can cause, as one tree of exceptions.

    XaresError
    ├── UsageError         an option, a specification or a YAML file is wrong
    │   ├── EncoderSpecError   --encoder or --encoder-args cannot be read
    │   ├── CatalogueError     a dataset, mix, preset or recipe is ill-defined
    │   └── BaselineError      a baseline is missing, unreadable or not comparable
    ├── EncoderError       the encoder cannot be loaded or breaks its contract
    ├── DataError          a shard is missing, damaged or holds unusable samples
    ├── DiskError          something cannot be written
    ├── TrainingError      the training does not converge to anything
    └── OutOfMemory        there is too little memory, and no way to need less

    EncoderWarning         a finding about the encoder that does not keep it from being used
    DamageWarning          something that was kept was damaged, or could not be kept; it is made anew
    ShortageWarning        there is too little memory to do as much at once as was meant

Every message says what was found, what was expected and what to do. Mistakes of programmers are assertions.
"""

from __future__ import annotations


class XaresError(Exception):
    """Anything that a user of the benchmark can cause and mend."""


class UsageError(XaresError):
    """A command line, a specification or a YAML file is wrong; nothing has been started."""


class EncoderSpecError(UsageError):
    """`--encoder` or `--encoder-args` does not name a loadable encoder class."""


class CatalogueError(UsageError):
    """A dataset, mix, preset or recipe is ill-defined."""


class BaselineError(UsageError):
    """A baseline is missing, unreadable or cannot be compared with this run."""


class EncoderError(XaresError):
    """The encoder cannot be loaded, or does not do what the contract says.

    Attributes:
        clause: Name of the contract's clause that does not hold.
    """

    def __init__(self, clause: str, message: str) -> None:
        """Keep the clause's name beside the message."""
        super().__init__(message)
        self.clause = clause


class EncoderWarning(UserWarning):
    """The encoder breaks a clause of the contract that scores can be had without."""


class DamageWarning(UserWarning):
    """Something that was kept was damaged on disk, or could not be kept; it is made anew when it is needed."""


class ShortageWarning(UserWarning):
    """Memory does not suffice to do as much at once as was meant; it goes on more slowly, to the same results."""


class DataError(XaresError):
    """A shard is missing or damaged, or too many of its samples are unusable."""


class DiskError(XaresError, OSError):
    """A disk is full, read-only or broken."""


class TrainingError(XaresError):
    """The loss of a training is no longer a finite number."""


class OutOfMemory(XaresError):
    """Memory does not suffice, and doing less at a time would give other results or is not possible."""
