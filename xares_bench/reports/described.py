"""A run in words: its encoder with arguments, and everything in which it differs from its preset."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from xares_bench.scores.records import RunManifest, ScoreRecord


def shown_in_line(text: str) -> str:
    """Return text without what could end its line or change how the letters around it are shown."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def markdown_code(text: str) -> str:
    """Return text as code in Markdown, whatever is in it: in more backticks than it has in a row.

    Example:
        >>> markdown_code("enc.py"), markdown_code("a`b")
        ('`enc.py`', '`` a`b ``')
    """
    text = shown_in_line(text)
    runs = re.findall("`+", text)
    if not runs:
        return f"`{text}`"
    fence = "`" * (len(max(runs, key=len)) + 1)
    return f"{fence} {text} {fence}"


def encoder_in_words(run: RunManifest) -> str:
    """Return the encoder's specification, with its arguments as JSON if it has some."""
    arguments = arguments_in_words(run)
    return shown_in_line(f"{run.encoder['spec']} {arguments}".strip())


def arguments_in_words(run: RunManifest) -> str:
    """Return the encoder's arguments as JSON; empty if it has none."""
    arguments = run.encoder["arguments"]
    return shown_in_line(json.dumps(arguments, ensure_ascii=False)) if arguments else ""


def frames_per_second_of(run: RunManifest) -> float:
    """Return how many frames per second of audio the LALM gets: the encoder's, fewer where they are pooled.

    Raises:
        KeyError: The manifest lacks a value of the encoder.
    """
    per_second: float = run.encoder["frames_per_second"]
    return per_second / int(run.recipe.get("frame_pool", 1))


def deviations_in_words(run: RunManifest, records: Iterable[ScoreRecord]) -> list[str]:
    """Return what makes the scores of a run others than those of its preset, each as `NAME=VALUE`."""
    return [f"{name}={value}" for name, value in deviations_of(run, records)]


def deviations_of(run: RunManifest, records: Iterable[ScoreRecord]) -> list[tuple[str, str]]:
    """Return what makes the scores of a run others than those of its preset, as names and values.

    Args:
        run: The run.
        records: Its scores.
    """
    found = [
        (key, f"{own}" + ("" if default is None else f" (preset: {default})"))
        for key, (default, own) in run.deviations.items()
    ]
    records = tuple(records)
    if any(record.partial for record in records):
        found.append(("--limit", f"{run.data.get('limit')}"))
    own_mixes = sorted({record.mix for record in records if record.mix != record.task})
    found += [("mix", mix) for mix in own_mixes]
    return [(name, shown_in_line(value)) for name, value in found]
