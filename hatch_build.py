"""Puts the suite, the miniature and the examples into the wheel, where they are subpackages of `xares_bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_FOLDERS = ("bench", "examples", "fixtures/mini", "fixtures/mini-decoder")


class BuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """An editable installation finds the folders where they are, so it gets no copies."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folders to a standard wheel."""
        if version == "editable":
            return
        for folder in _FOLDERS:
            for file in sorted(Path(self.root, folder).rglob("*")):
                if file.is_file() and "__pycache__" not in file.parts:
                    name = file.relative_to(self.root).as_posix()
                    build_data["force_include"][str(file)] = f"xares_bench/{name}"
