"""Comparability: what two runs must have in common, besides the preset, for their scores to be compared.

A difference in recipe, decoder, training mix, data or version can change scores as much as a change to the encoder can.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xares_bench.scores.records import RunManifest

# Values of the recipe that do not decide how a score comes about: seeds are noise, and the others change only speed.
_NOT_COMPARED = frozenset({"seed", "generation_batch_size", "generation_positions"})
_MIX, _TEST_DATA = "mix of ", "test data of "
_MAX_NAMES = 3


def facts_of(run: RunManifest, mixes: Mapping[str, str]) -> dict[str, str]:
    """Return what the scores of a run depend on besides its encoder, as texts by name.

    Args:
        run: The run.
        mixes: Names of the mixes that the LALMs are trained on, by dataset.
    """
    environment, data = run.environment, run.data
    return {
        "version": str(environment.get("xares-bench")),
        "precision": str(environment.get("precision")),
        "decoder": run.decoder["fingerprint"][:12],
        **{f"data of {name}": str(commit)[:12] for name, commit in data.get("repositories", {}).items() if commit},
        **{key: str(value) for key, value in run.recipe.items() if key not in _NOT_COMPARED},
        **{_MIX + name: f"{mix} {data.get('mixes', {}).get(name, '')}".strip() for name, mix in mixes.items()},
        **{_TEST_DATA + name: digest for name, digest in data.get("test_data", {}).items() if name in mixes},
    }


def differences(baseline: Mapping[str, str], run: Mapping[str, str]) -> list[str]:
    """Return what a baseline and a run do not have in common, in words; what one of them does not tell is left out.

    Example:
        >>> differences({"steps": "600", "mix of gtzan": "task1 0f"}, {"steps": "300", "mix of gtzan": "all 3c"})
        ['steps 600, this run 300', 'mix task1 0f, this run all 3c, for gtzan']
    """
    found, data = [], []
    mixes: dict[tuple[str, str], list[str]] = {}
    for name, here in run.items():
        there = baseline.get(name, here)
        if there == here:
            continue
        if name.startswith(_MIX):
            mixes.setdefault((there, here), []).append(name.removeprefix(_MIX))
        elif name.startswith(_TEST_DATA):
            data.append(name.removeprefix(_TEST_DATA))
        else:
            found.append(f"{name} {_in_words(there)}, this run {_in_words(here)}")
    found += [f"mix {there}, this run {here}, for {_listed(names)}" for (there, here), names in mixes.items()]
    return found + ([f"other test data for {_listed(data)}"] if data else [])


def untold(baseline: Mapping[str, str], run: Mapping[str, str]) -> str:
    """Return what a baseline does not tell though this run does, in words; empty if it tells everything.

    Example:
        >>> untold({"steps": "600"}, {"steps": "600", "decoder": "5c1f", "mix of gtzan": "task1 0f"})
        'decoder, mix of gtzan'
    """
    return _listed(name for name in run if name not in baseline)


def _in_words(value: str) -> str:
    """Return a value of a recipe; it has none where every mix has its own, such as its number of steps."""
    return "of the mix" if value == str(None) else value


def _listed(names: Iterable[str]) -> str:
    """Return the first names, and the number of the others."""
    names = list(names)
    others = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {others} more" if others > 0 else "")
