"""A machine for tests: a data folder, a cache, an environment, and steps that run there one after the other.

huggingface_hub reads its environment when it is imported, so each step is a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.hub.server import Hub

# Surveys, fetches, asks for every file; prints what came of it. Waits that the hub does not ask for are shortened.
STEP = """
import json, sys
from pathlib import Path
from xares_bench.hub import client
from xares_bench.core.errors import XaresError
from xares_bench.hub import DataHome, fetch_model
from xares_bench.core.progress import Progress

options = json.loads(sys.argv[1])
client._FIRST_WAIT_S = 0.02
client._MAX_FAILURES = options["max_failures"]
folder, wanted = Path(options["folder"]), options["wanted"]
revisions = {None: options["revision"]} if options["revision"] else {}
result = {"files": {}, "digests": {}}

def attempt(action):
    try:
        return str(action())
    except XaresError as cause:
        return f"{type(cause).__name__}: {cause}"

def run():
    if options["model"]:
        model = fetch_model(options["model"], revision=options["revision"], data_home=folder)
        result["model"] = str(model.folder)
        result["commit"] = model.commit
        return
    home = DataHome(folder, revisions)
    survey = home.survey(wanted)
    result["summary"] = survey.summary
    result["num_missing"] = len(survey.missing)
    result["num_unchecked"] = len(survey.unchecked)
    if options["fetch"]:
        home.fetch(survey, Progress())
    for repository, paths in wanted.items():
        result["commit"] = home.commit(repository)
        for path in paths:
            result["files"][path] = attempt(lambda: home.file(repository, path))
            result["digests"][path] = attempt(lambda: home.digest(repository, path))

try:
    run()
except XaresError as cause:
    result["error"] = f"{type(cause).__name__}: {cause}"
print(json.dumps(result))
"""


class Machine:
    """A machine with a data folder and a cache, that runs one step after the other."""

    def __init__(self, root: Path, hub: Hub) -> None:
        self.folder = root / "data"
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).parents[2]),  # the package beside these tests, whichever is installed
            "HOME": str(root),
            "HF_HOME": str(root / "hf"),
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "HF_HUB_ETAG_TIMEOUT": "2",
            "NO_PROXY": "*",
        }

    def start(
        self,
        *paths: str,
        name: str = "owner/shards",
        revision: str | None = None,
        model: str | None = None,
        fetch: bool = True,
        max_failures: int = 6,
        prepare: Callable[[], object] | None = None,
        **environment: str,
    ) -> subprocess.Popen[str]:
        options = {
            "folder": str(self.folder),
            "wanted": {name: paths},
            "revision": revision,
            "model": model,
            "fetch": fetch,
            "max_failures": max_failures,
        }
        return self.spawn([sys.executable, "-c", STEP, json.dumps(options)], prepare=prepare, **environment)

    def spawn(
        self, command: Sequence[str], *, prepare: Callable[[], object] | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        """Start any command; SIGINT ends it, also where these tests run in the background, where it is ignored."""

        def begin() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if prepare is not None:
                prepare()

        return subprocess.Popen(
            command,
            env={**self.environment, **environment},
            cwd=self.folder.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=begin,
        )

    def run(self, *paths: str, **arguments: Any) -> dict[str, Any]:
        return finish(self.start(*paths, **arguments))

    def part(self) -> Path | None:
        """The unfinished transfer of the shard."""
        return next((self.folder / ".cache" / "xares-bench").rglob("*.part"), None)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    result: dict[str, Any] = json.loads(output)
    result["stderr"] = errors
    if "error" in result:
        assert "\n" not in result["error"]
    assert all("\n" not in text for text in result["files"].values())
    return result
