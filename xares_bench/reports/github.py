"""GitHub Actions: a run's scores in the summary of the job, and failures as annotations.

GitHub Actions reads commands from lines of the standard output ("Workflow commands for GitHub Actions") and Markdown
from the file that `GITHUB_STEP_SUMMARY` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from xares_bench.core.text import encoded

# GitHub drops larger summaries and cuts longer messages.
_MAX_SUMMARY_BYTES = 1_000_000
_MAX_MESSAGE_LETTERS = 4000


def error_lines(environment: Mapping[str, str], failures: Mapping[str, str]) -> list[str]:
    """Return a workflow command per failure, for the standard output; empty outside GitHub Actions.

    Args:
        environment: The process's environment variables.
        failures: Reasons by dataset or test.

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
    """Append scores and failures to the job's summary, if there is one.

    Args:
        environment: The process's environment variables.
        scores: The scores as Markdown.
        failures: Reasons by dataset or test.

    Returns:
        The problem if the summary cannot be written, in one line; it must not fail the run.
    """
    name = environment.get("GITHUB_STEP_SUMMARY")
    if not name:
        return []
    listed = "".join(f"- **{_inline(what)}**: {_inline(why)}\n" for what, why in failures.items())
    text = encoded(scores + (f"\n## Failed\n\n{listed}" if listed else "") + "\n")
    try:
        with Path(name).open("ab") as file:
            if file.tell() + len(text) > _MAX_SUMMARY_BYTES:
                return [f"GITHUB_STEP_SUMMARY: {name} would exceed GitHub's size limit; scores are not added"]
            file.write(text)
    except OSError as cause:
        return [f"GITHUB_STEP_SUMMARY: {name} cannot be written: {cause}"]
    return []


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def _inline(text: str) -> str:
    """Escape text for a line of Markdown."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]|~#" else letter for letter in " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
