"""Files to start from: an encoder, a workflow for CI, lines for .gitignore."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from xares_bench import __version__
from xares_bench.core.own_files import required_folder
from xares_bench.core.store import write_atomically

_IGNORED = ("/runs/", "/xares_data/")


def write_starter(folder: Path, may_replace: Callable[[Path], bool]) -> Iterator[str]:
    """Write the files into a folder, and yield a line about each.

    Args:
        folder: The folder of a repository; made if it is not there.
        may_replace: Asked for each file that is there with other contents.

    Raises:
        UsageError: The example is not in this installation.
    """
    example = (required_folder("examples", "init") / "logmel_encoder.py").read_text(encoding="utf-8")
    workflow = (Path(__file__).parent / "workflow.yml").read_text(encoding="utf-8").replace("VERSION", __version__)
    contents = {
        "encoder.py": example.replace("pytest bench", "xares-bench").replace("examples/logmel_encoder", "encoder"),
        ".github/workflows/xares-bench.yml": workflow,
        ".gitignore": _with_lines(folder / ".gitignore"),
    }
    for name, text in contents.items():
        path = folder / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            yield f"{path}: is there already"
        # Lines of .gitignore are only added.
        elif name != ".gitignore" and path.exists() and not may_replace(path):
            yield f"{path}: left as it is"
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)
            yield f"{path}: written"


def _with_lines(path: Path) -> str:
    """Return what a .gitignore has, and the lines that it lacks."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    missing = [line for line in _IGNORED if line not in text.splitlines()]
    if text and not text.endswith("\n") and missing:
        text += "\n"
    return text + "".join(f"{line}\n" for line in missing)
