"""Texts: what a LALM says about the clips of a test set, stored part by part until the set is scored.

Whoever evaluates a set, one process or several, generates for the parts that nobody else has or is at. Nobody depends
on another: a part whose process failed or was killed is made by the next one that comes.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xares_bench.core.digests import digest_of
from xares_bench.core.parsing import parse_json
from xares_bench.core.store import Store, writing
from xares_bench.core.text import encoded

KIND = "texts"
_FILE = "texts.json"


@dataclass(frozen=True, kw_only=True)
class PartTexts:
    """The texts that were generated for a part of a test split.

    Attributes:
        clips: Keys of the clips that have a target, in the order of the shards.
        texts: The generated text of each.
        rows: Index of the clip, and target, of every row.
        counts: The part's samples, as `SampleCount.to_json` returns them.
        duration_s: Seconds of audio in the clips.
        features_s: Wall time of reading and encoding.
        generation_s: Wall time of generating.
    """

    clips: Sequence[str]
    texts: Sequence[str]
    rows: Sequence[tuple[int, str]]
    counts: Mapping[str, Any]
    duration_s: float
    features_s: float
    generation_s: float

    def save(self, folder: Path) -> None:
        """Write them into a folder.

        Raises:
            DiskError: They cannot be written.
        """
        with writing(folder):
            (folder / _FILE).write_bytes(encoded(json.dumps(asdict(self))))

    @classmethod
    def load(cls, folder: Path) -> PartTexts:
        """Return what `save` wrote."""
        values = parse_json((folder / _FILE).read_text(encoding="utf-8"))
        return cls(**{**values, "rows": [(clip, target) for clip, target in values["rows"]]})


class TextStore:
    """The texts of one LALM for one test set, an entry of the store per part.

    Attributes:
        num_parts: Number of parts.
    """

    def __init__(self, store: Store, score_key: str, num_parts: int, make: Callable[[int], PartTexts]) -> None:
        """Nothing is generated yet.

        Args:
            store: Holds the entries; they are removed once it has the score.
            score_key: Key of the score.
            num_parts: Number of parts.
            make: Generates the texts of the part of a number.
        """
        self.num_parts = num_parts
        self._store = store
        self._score_key = score_key
        self._make = make

    def make_free(self) -> None:
        """Generate for the parts that are neither finished nor being made by another process; wait for none."""
        for number in range(self.num_parts):
            if self._is_scored():
                return
            unfinished = self._store.begin(self._kind, self._key(number), wait=False)
            if unfinished is None:
                continue
            # Again, now under the lock: if the parts were removed, it was after the score was stored.
            if self._is_scored():
                unfinished.abandon()
                return
            unfinished.fill(functools.partial(self._fill, number))

    def all(self) -> list[PartTexts]:
        """Return the texts of all parts, in order; missing ones are made now, or waited for.

        Raises:
            XaresError: They cannot be generated.
        """
        entries = [
            self._store.obtain(self._kind, self._key(number), functools.partial(self._fill, number))
            for number in range(self.num_parts)
        ]
        return [PartTexts.load(entry.folder) for entry in entries]

    def _fill(self, number: int, folder: Path) -> dict[str, Any]:
        self._make(number).save(folder)
        return {"part": number}

    def _is_scored(self) -> bool:
        return self._store.find("scores", self._score_key) is not None

    @property
    def _kind(self) -> str:
        return f"{KIND}/{self._score_key}"

    def _key(self, number: int) -> str:
        return digest_of([self._score_key, number])


def remove_texts(store: Store, score_key: str) -> None:
    """Remove the texts behind a score that is stored."""
    shutil.rmtree(store.root / KIND / score_key, ignore_errors=True)
