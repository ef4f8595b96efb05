"""The selection: which datasets a run has, when pytest runs only those tests that failed before.

`--lf` and `--sw` continue a run: its other scores stay in its files, and its folder is the same. What the run had
selected is remembered in pytest's cache, beside the failed tests that these options read there.
"""

from __future__ import annotations

from collections.abc import Collection

import pytest

_CACHE_KEY = "xares_bench/datasets"


def runs_what_failed(config: pytest.Config) -> bool:
    """Whether pytest leaves out tests because they passed before."""
    return any(bool(config.getoption(name, False)) for name in ("lf", "stepwise"))


def remember_datasets(config: pytest.Config, datasets: Collection[str]) -> None:
    """Remember the datasets of a run for `--lf`, unless pytest has no cache."""
    cache = getattr(config, "cache", None)
    if cache is not None and datasets:
        cache.set(_CACHE_KEY, list(datasets))


def remembered_datasets(config: pytest.Config) -> tuple[str, ...]:
    """Return the datasets of the run before; empty if there was none."""
    cache = getattr(config, "cache", None)
    found = None if cache is None else cache.get(_CACHE_KEY, [])
    return tuple(name for name in found if isinstance(name, str)) if isinstance(found, list) else ()
