"""Comparability: what two runs must have in common, besides the preset, for their scores to be compared.

A difference in recipe, decoder, training mix, data or version can change scores as much as a change to the encoder can.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xares_bench.scores.records import RunManifest

# Values of the recipe that do not decide how a score comes about: seeds are noise, and the others change only speed.
_NOT_COMPARED = frozenset({"seed", "generation_batch_size", "generation_positions"})
_MIXES = "mixes"


def facts_of(run: RunManifest, mixes: Iterable[str]) -> dict[str, str]:
    """Return what the scores of a run depend on besides its encoder, as texts by name.

    Args:
        run: The run.
        mixes: Names of the mixes that its LALMs are trained on.
    """
    return {
        "version": str(run.environment.get("xares-bench")),
        "decoder": run.decoder["fingerprint"][:12],
        _MIXES: ", ".join(sorted(set(mixes))),
        **{f"data of {name}": str(commit)[:12] for name, commit in run.data.get("repositories", {}).items() if commit},
        **{key: str(value) for key, value in run.recipe.items() if key not in _NOT_COMPARED},
    }


def differences(baseline: Mapping[str, str], run: Mapping[str, str]) -> list[str]:
    """Return what a baseline and a run do not have in common, in words; what one of them does not tell is left out.

    Example:
        >>> differences({"steps": "600", "mixes": "task1, task2"}, {"steps": "300", "mixes": "task1"})
        ['steps 600, this run 300']
    """
    found = []
    for name, here in run.items():
        there = baseline.get(name)
        if there is None or there == here:
            continue
        if name == _MIXES and {*here.split(", ")} <= {*there.split(", ")}:
            continue
        found.append(f"{name} {there}, this run {here}")
    return found
