"""Settings of the process that the user's code may change, kept apart from the session's.

Grad mode, default dtype, threads, the precision of products, the working directory, functions of torch and their like
belong to the process, and so to whatever runs next in it. An encoder that sets one in its file or its constructor finds
it set whenever it runs; one that sets it in `forward` has it to the end of that call. Between the calls the session has
its own values. So an encoder works as its author has tested it, no call depends on the one before, and the LALM is
trained as if no encoder had run, whether features are cached or not.
"""

from __future__ import annotations

import contextlib
import enum
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from xares_bench.runtime.exits import end_in_child, exits_raise
from xares_bench.runtime.patches import Patch, Snapshot, core, libraries
from xares_bench.runtime.settings import ENVIRONMENT, Setting, python_settings, signal_settings, system_settings
from xares_bench.runtime.torch_settings import has_default_device, torch_settings
from xares_bench.runtime.variables import REFUSED, is_recorded

_MAX_NAMED = 4


class _Unset(enum.Enum):
    """Stands for the value of an item that is gone."""

    UNSET = "unset"

    def __str__(self) -> str:
        return "unset"


_UNSET = _Unset.UNSET
_core: Snapshot | None = None


@dataclass(kw_only=True, eq=False)
class OwnSettings:
    """The settings of one encoder, empty before it has run.

    Attributes:
        values: What its file and its constructor have set, by name; every call finds these values.
        patches: What they have replaced in libraries.
        later: What its calls have set since, by name.
        stuck: What it has changed that cannot be changed back, in words, by name.
    """

    values: dict[str, Any] = field(default_factory=dict)
    patches: list[Patch] = field(default_factory=list)
    later: dict[str, Any] = field(default_factory=dict)
    stuck: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def being_set(self) -> Iterator[None]:
        """Run the block, which constructs the encoder, and keep what it sets for the calls."""
        with exits_raise():
            snapshot = Snapshot(libraries())
            try:
                with self._undone() as changes:
                    yield
            finally:
                self.patches = snapshot.patches()
                for patch in reversed(self.patches):
                    patch.undo()
                self.values = {name: change for name, change in changes.items() if name in _FOUND_AGAIN}
                self.later = {name: change for name, change in changes.items() if name not in _FOUND_AGAIN}

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Run the block with the encoder's settings, and the rest of the session with those of before."""
        with exits_raise():
            before = _core_snapshot().patches()
            try:
                with self._undone() as changes:
                    for patch in self.patches:
                        patch.apply()
                    for setting in _settings():
                        if setting.name in self.values:
                            setting.write(_merged(setting.read(), self.values[setting.name]))
                    yield
            finally:
                for patch in reversed(self.patches):
                    patch.undo()
                known = {(patch.name, id(patch.after)) for patch in before}
                for patch in _core_snapshot().patches():
                    if (patch.name, id(patch.after)) not in known:
                        patch.undo()
                        self.later[patch.name] = "replaced"
                self.later.update(
                    (name, change) for name, change in changes.items() if self.values.get(name, _UNSET) != change
                )

    @contextlib.contextmanager
    def _undone(self) -> Iterator[dict[str, Any]]:
        """Undo what the block sets; yields a mapping that has it then, by name.

        Of settings that are mappings themselves, it has the items that differ.
        """
        settings, process = _settings(), os.getpid()
        before = {setting.name: setting.read() for setting in settings}
        fixed_before = {name: read() for name, read in _FIXED.items()}
        changes: dict[str, Any] = {}
        try:
            yield changes
        finally:
            end_in_child(process)
            # All are read before the first is written: some follow others.
            after = {setting.name: setting.read() for setting in settings}
            changed = [setting for setting in settings if after[setting.name] != before[setting.name]]
            changes.update(
                (setting.name, _change(before[setting.name], after[setting.name]))
                for setting in changed
                if after[setting.name] is not None
            )
            # Not only those, as others follow them when they are written.
            for setting in settings if changed else ():
                if before[setting.name] is not None:
                    self._restore(setting, before[setting.name])
            for name, read in _FIXED.items():
                if read() != fixed_before[name]:
                    self.stuck[name] = f"{fixed_before[name]} before, {read()} after"

    def _restore(self, setting: Setting, value: object) -> None:
        if setting.read() == value:
            return
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            setting.write(value)
        if (left := setting.read()) != value:
            self.stuck[setting.name] = f"{_shown(value)} before, {_shown(left)} after"

    def __str__(self) -> str:
        """Names and values of what it has set, in one line.

        Of environment variables only those that libraries of a session read, as many libraries set some for themselves.
        """
        values = {**self.later, **self.values}
        shown = [f"{name} ({_shown(value)})" for name, value in values.items() if name != ENVIRONMENT]
        variables = {**self.later.get(ENVIRONMENT, {}), **self.values.get(ENVIRONMENT, {})}
        shown += [f"{name} ({variables[name]})" for name in sorted(variables) if name in REFUSED or is_recorded(name)]
        names = [patch.name for patch in self.patches]
        shown += [f"{name} (replaced)" for name in names[:_MAX_NAMED]]
        if len(names) > _MAX_NAMED:
            shown.append(f"{len(names) - _MAX_NAMED} more functions of libraries (replaced)")
        return ", ".join(shown)


def _settings() -> list[Setting]:
    return _ALL if threading.current_thread() is threading.main_thread() else _IN_ANY_THREAD


def _core_snapshot() -> Snapshot:
    global _core
    if _core is None:
        _core = Snapshot(core())
    return _core


def _change(before: Any, after: Any) -> Any:
    """Return the value after; of mappings the items that differ, with `_UNSET` for those that are gone."""
    if not isinstance(before, Mapping):
        return after
    names = before.keys() | after.keys()
    return {name: after.get(name, _UNSET) for name in names if before.get(name, _UNSET) != after.get(name, _UNSET)}


def _merged(value: Any, change: Any) -> Any:
    """Return a value with a change applied."""
    if not isinstance(value, Mapping):
        return change
    return {name: item for name, item in {**value, **change}.items() if item is not _UNSET}


def _shown(value: object) -> str:
    """A value in a few characters, or that it has changed."""
    text = str(value).removeprefix("torch.")
    return text if len(text) <= 60 else "changed"


_IN_ANY_THREAD = [*torch_settings(), *python_settings(), *system_settings()]
_ALL = [*_IN_ANY_THREAD, *signal_settings()]
_FOUND_AGAIN = frozenset(setting.name for setting in _ALL if setting.is_found_again)

# What no program can change back: torch sets it once, or only the code that has begun it can end it.
_FIXED: Mapping[str, Callable[[], Any]] = {
    "inter-op threads": torch.get_num_interop_threads,
    "inference mode": torch.is_inference_mode_enabled,
    "modes that intercept torch functions": lambda: torch._C._len_torch_function_stack() - has_default_device(),
    "modes that intercept dispatch": torch._C._len_torch_dispatch_stack,
    "hooks of saved tensors": lambda: torch._C._autograd._top_saved_tensors_default_hooks(True),
}
