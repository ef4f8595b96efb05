"""GitHub: a run's scores on the page of the job, and failures as annotations.

GitHub Actions reads commands from lines of the standard output ("Workflow commands for GitHub Actions") and Markdown
from the file that `GITHUB_STEP_SUMMARY` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# GitHub drops a summary that is larger, and shows no more of a message.
_MAX_SUMMARY_BYTES = 1_000_000
_MAX_MESSAGE_LETTERS = 4000


def error_lines(environment: Mapping[str, str], failures: Mapping[str, str]) -> list[str]:
    """One line a failure for the standard output of a job of GitHub Actions; nothing elsewhere.

    Args:
        environment: The process's environment variables.
        failures: What went wrong, by what it happened to.

    Example:
        >>> error_lines({"GITHUB_ACTIONS": "true"}, {"esc-50": "score 0.4 is 20 % below"})
        ['::error title=esc-50::score 0.4 is 20 %25 below']
    """
    if environment.get("GITHUB_ACTIONS") != "true":
        return []
    return [
        f"::error title={_property(what)}::{_message(why[:_MAX_MESSAGE_LETTERS])}" for what, why in failures.items()
    ]


def append_summary(environment: Mapping[str, str], scores: str, failures: Mapping[str, str]) -> list[str]:
    """Append scores and failures to the job's summary, where there is one; what stands against it.

    Args:
        environment: The process's environment variables.
        scores: The scores as Markdown.
        failures: What went wrong, by what it happened to.
    """
    name = environment.get("GITHUB_STEP_SUMMARY")
    if not name:
        return []
    listed = "".join(f"- **{_inline(what)}**: {_inline(why)}\n" for what, why in failures.items())
    text = scores + (f"\n## Failed\n\n{listed}" if listed else "") + "\n"
    try:
        with Path(name).open("a", encoding="utf-8") as file:
            if file.tell() + len(text.encode("utf-8")) > _MAX_SUMMARY_BYTES:
                return [f"GITHUB_STEP_SUMMARY: {name} would be larger than GitHub shows; the scores are not added"]
            file.write(text)
    except OSError as cause:
        return [f"GITHUB_STEP_SUMMARY: {name} cannot be written: {cause}"]
    return []


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def _inline(text: str) -> str:
    """Text within a line of Markdown, in which nothing of it is markup."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]|~#" else letter for letter in " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
