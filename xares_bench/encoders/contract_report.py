"""The report of a contract check: what became of every clause, as data and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from xares_bench.core.errors import EncoderError
from xares_bench.encoders.clauses import CLAUSES
from xares_bench.encoders.loading import FrozenEncoder

Status = Literal["passed", "failed", "warning", "not tested"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one clause: a status, and a message of one line, which may be empty."""

    status: Status
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class ContractReport:
    """What the check found.

    Attributes:
        encoder: The loaded encoder, or None if it cannot be loaded.
        outcomes: One outcome per clause, in the order of `CLAUSES`.
        honours_mask: Whether clips of different lengths may be batched: the features of a padded clip with its mask
            equal those of the clip alone.
        min_samples: Samples of the shortest clip that the encoder takes; shorter ones are unusable.
        frames_per_second: Frames per second of audio, for a 30 s clip.
        realtime_factor: Seconds of computing per second of audio, for a 30 s clip alone.
        reused: Whether the report is cached, from an earlier session with the same encoder.
    """

    encoder: FrozenEncoder | None
    outcomes: Mapping[str, Outcome]
    honours_mask: bool
    frames_per_second: float | None
    realtime_factor: float | None
    min_samples: int = 1
    reused: bool = False

    @property
    def failure(self) -> tuple[str, str] | None:
        """Name and message of the first clause that failed."""
        return next(((name, o.message) for name, o in self.outcomes.items() if o.status == "failed"), None)

    @property
    def warnings(self) -> tuple[tuple[str, str], ...]:
        """Names and messages of the clauses that do not hold, but do not keep the encoder from being used."""
        return tuple((name, o.message) for name, o in self.outcomes.items() if o.status == "warning")

    def to_json(self) -> dict[str, Any]:
        """Return the report without its encoder; `from_json` reads it back."""
        return {
            "outcomes": {clause: asdict(outcome) for clause, outcome in self.outcomes.items()},
            "honours_mask": self.honours_mask,
            "frames_per_second": self.frames_per_second,
            "realtime_factor": self.realtime_factor,
            "min_samples": self.min_samples,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], encoder: FrozenEncoder) -> ContractReport:
        """Return the cached report that `to_json` wrote about the same encoder."""
        return cls(
            encoder=encoder,
            outcomes={clause: Outcome(**data["outcomes"][clause]) for clause in CLAUSES},
            honours_mask=data["honours_mask"],
            frames_per_second=data["frames_per_second"],
            realtime_factor=data["realtime_factor"],
            min_samples=data["min_samples"],
            reused=True,
        )


def stopped(
    encoder: FrozenEncoder | None, outcomes: Mapping[str, Outcome], clauses: Sequence[str], error: EncoderError
) -> ContractReport:
    """Return the report of a check that an error ended.

    Args:
        encoder: The encoder, or None if it cannot be loaded.
        outcomes: The outcomes before the error.
        clauses: The clauses that the failed step tests, in order; those before the error's clause have passed.
        error: The error.
    """
    passed = clauses[: clauses.index(error.clause)] if error.clause in clauses else clauses
    known = {clause: Outcome(status="passed") for clause in passed} | dict(outcomes)
    known[error.clause] = Outcome(status="failed", message=str(error))
    return ContractReport(
        encoder=encoder,
        outcomes=completed(known),
        honours_mask=False,
        frames_per_second=None,
        realtime_factor=None,
    )


def completed(outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Return an outcome for every clause, in order; `not tested` for those that a failure kept from being tested."""
    failed = next((clause for clause in CLAUSES if clause in outcomes and outcomes[clause].status == "failed"), None)
    rest = Outcome(status="not tested", message=f"{failed} does not hold")
    assert failed is not None or set(outcomes) == set(CLAUSES), set(CLAUSES) - set(outcomes)
    return {clause: outcomes.get(clause, rest) for clause in CLAUSES}
