"""Checkpoints: the state of an unfinished training, from which the same command resumes.

The checkpoints of a training are under `RUNS/store/checkpoints/KEY`, where the key is that of the LALM to be trained: a
training with another encoder, recipe, data or code does not find them. Tensors are safetensors, the rest is JSON;
nothing is executed when they are read. They may be deleted at any time.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from xares_bench.core.errors import CacheWarning
from xares_bench.core.parsing import parse_json
from xares_bench.core.store import Entry, Store
from xares_bench.core.text import encoded

KIND = "checkpoints"

# If the newest checkpoint is damaged, the one before it is used.
_NUM_KEPT = 2

_TENSORS_FILE = "state.safetensors"
_VALUES_FILE = "state.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The state of a training after some of its steps.

    Attributes:
        num_steps: Number of steps done.
        tensors: Parameters, moments of the optimiser, states of random number generators.
        values: Everything else, as JSON values.
    """

    num_steps: int
    tensors: Mapping[str, torch.Tensor]
    values: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one training."""

    def __init__(self, store: Store, lalm_key: str, description: Mapping[str, Any]) -> None:
        """Nothing is read or created yet.

        Args:
            store: Holds them.
            lalm_key: Key of the LALM that the training makes.
            description: What is trained: mix, seed and encoder. Checkpoints of other keys are compared by it.
        """
        self._store = store
        self._kind = f"{KIND}/{lalm_key}"
        self._description = dict(description)
        self._has_failed = False

    @property
    def num_steps(self) -> int:
        """Return the step of the newest checkpoint; 0 if there is none."""
        return max((entry.manifest["step"] for entry in self._store.entries(self._kind)), default=0)

    def of_others(self) -> int:
        """Return the largest step of a checkpoint with this description under another key; 0 if there is none."""
        root = self._store.root / KIND
        kinds = [f"{KIND}/{folder.name}" for folder in sorted(root.iterdir())] if root.is_dir() else []
        others = [entry.manifest for kind in kinds if kind != self._kind for entry in self._store.entries(kind)]
        same = [manifest["step"] for manifest in others if self._description.items() <= manifest.items()]
        return max(same, default=0)

    def newest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint, or None; damaged ones are removed, with a warning."""
        for entry in reversed(self._store.entries(self._kind)):
            if self._store.use(self._kind, entry.folder.name) is None:
                continue
            try:
                return _read(entry)
            except (OSError, ValueError, KeyError, SafetensorError) as cause:
                warnings.warn(f"{entry.folder} is no checkpoint ({cause}) and was removed", CacheWarning, stacklevel=2)
                self._store.remove(self._kind, entry.folder.name)
        return None

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and remove all but the last two. If it cannot be written, warn once."""
        try:
            unfinished = self._store.begin(self._kind, f"step-{checkpoint.num_steps:09d}", wait=True)
            if unfinished is None:
                return  # it exists: an interruption right after a regular checkpoint
            try:
                save_file(dict(checkpoint.tensors), unfinished.folder / _TENSORS_FILE)
                (unfinished.folder / _VALUES_FILE).write_bytes(encoded(json.dumps(checkpoint.values)))
            except BaseException:
                unfinished.abandon()
                raise
            unfinished.finish({**self._description, "step": checkpoint.num_steps})
        except (OSError, SafetensorError) as cause:  # safetensors reports a full disk in an exception of its own
            if not self._has_failed:
                warnings.warn(
                    f"no checkpoint could be written: {cause}; the training continues, but an interruption would lose "
                    "the steps since the last checkpoint",
                    CacheWarning,
                    stacklevel=2,
                )
            self._has_failed = True
            return
        for entry in self._store.entries(self._kind)[:-_NUM_KEPT]:
            self._store.remove(self._kind, entry.folder.name)

    def remove(self) -> None:
        """Remove all checkpoints, once the training has finished."""
        shutil.rmtree(self._store.root / self._kind, ignore_errors=True)


def _read(entry: Entry) -> Checkpoint:
    return Checkpoint(
        num_steps=entry.manifest["step"],
        tensors=load_file(entry.folder / _TENSORS_FILE),
        values=parse_json((entry.folder / _VALUES_FILE).read_text(encoding="utf-8")),
    )
