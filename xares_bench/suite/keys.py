"""Keys: what every result is filed under, made of all that the result depends on.

    score    <-  LALM, test shards, prompt, target keys, metric, generation recipe
    LALM     <-  features of its training shards, prompts, weights, decoder, training recipe
    features <-  encoder, shard          (made by the feature store)

and of the code and the libraries that make it. A key is known before any work is done. A file's name is in none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from xares_bench.config.catalogue import Dataset, Mix, Split
from xares_bench.config.plan import Plan
from xares_bench.core.digests import SCORING_LIBRARIES, TRAINING_LIBRARIES, code_digest, digest_of, library_versions
from xares_bench.core.errors import DataError
from xares_bench.datasets.shards import ShardSource
from xares_bench.features.encoding import ClipEncoder
from xares_bench.features.feature_store import features_parts
from xares_bench.metrics.registry import metric_identity

# Modules whose code a LALM, and a score, depends on besides its features. A test compares both lists with what these
# modules import, so that none is forgotten (`tests/suite/test_keys.py`).
_READING_MODULES = (
    "core.parsing",
    "datasets.shards",
    "datasets.targets",
    "features.rows",
    "lalm.attention",
    "lalm.batch",
    "lalm.lora",
    "lalm.model",
    "runtime.determinism",
    "runtime.device",
    "runtime.memory",
    "runtime.processes",
    "scores.records",
    "suite.pipeline",
)
TRAINING_MODULES = (
    *_READING_MODULES,
    "training.checkpoints",
    "training.dataloader",
    "training.loop",
    "training.sampler",
)
SCORING_MODULES = (
    *_READING_MODULES,
    "lalm.generation",
    "lalm.hugging_face_generation",
    "metrics.captioning",
    "metrics.captions.files",
    "metrics.captions.formulas",
    "metrics.captions.judges",
    "metrics.classification",
    "metrics.parts",
    "metrics.registry",
    "metrics.transcription",
    "scores.clip_sums",
    "scores.statistics",
)


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The keys of a plan's results.

    Attributes:
        plan: What is to be done.
        shards: Digests of the data.
        clips: How features are made.
        decoder: Digest of the decoder.
        device_type: `cpu`, `cuda`, ...
        precision: Mixed precision of the training, `no` for float32.
        num_processes: Processes that train together.
    """

    plan: Plan
    shards: ShardSource
    clips: ClipEncoder
    decoder: str
    device_type: str
    precision: str
    num_processes: int

    def lalm(self, mix: Mix, seed: int) -> str:
        """Key of the LALM of a mix, trained with a seed.

        Raises:
            DataError: A training shard is missing, or is not what its manifest promises.
        """
        parts = [
            {
                "name": dataset.name,
                "weight": weight,
                "prompts": list(dataset.prompts),
                "train": self._split(dataset, dataset.train),
            }
            for dataset, weight in zip(mix.datasets, mix.weights, strict=True)
        ]
        return digest_of(
            {
                "mix": parts,
                "num_steps": self.plan.num_steps(mix),
                "limit": self.plan.limit,
                "recipe": {**dataclasses.asdict(self.plan.recipe.training), "seed": seed},
                "features": features_parts(self.clips, self.plan.recipe.training.max_audio_s),
                "decoder": self.decoder,
                "device": self.device_type,
                "precision": self.precision,
                "processes": self.num_processes,
                "code": _code(TRAINING_MODULES),
                "libraries": library_versions(TRAINING_LIBRARIES),
            }
        )

    def score(self, name: str, seed: int) -> str:
        """Key of the score of a dataset, of the LALM that was trained with a seed.

        Raises:
            DataError: A shard is missing, or is not what its manifest promises.
        """
        dataset = self.plan.dataset(name)
        return digest_of(
            {
                "lalm": self.lalm(self.plan.mix_for(name), seed),
                "dataset": name,
                "task": dataset.task,
                "weight": dataset.weight,
                "prompts": list(dataset.prompts),
                "eval": self._split(dataset, dataset.eval),
                "metric": [dataset.metric, dict(dataset.metric_arguments), metric_identity(dataset.metric)],
                "limit": self.plan.limit,
                "recipe": dataclasses.asdict(self.plan.generation_recipe(dataset)),
                "max_dropped_share": self.plan.recipe.training.max_dropped_share,
                "code": _code(SCORING_MODULES),
                "libraries": library_versions(SCORING_LIBRARIES),
            }
        )

    def run(self, names: Iterable[str]) -> str:
        """Key of a run over these datasets, also where some of them lack data."""
        return digest_of({name: _key_or_problem(self.scores, name) for name in names})

    def scores(self, name: str) -> list[str]:
        """Keys of the scores of a dataset, one for every seed of the plan.

        Raises:
            DataError: A shard is missing, or is not what its manifest promises.
        """
        return [self.score(name, seed) for seed in self.plan.seeds]

    def data(self, names: Iterable[str]) -> str:
        """Digest of the test data of these datasets, also where some are missing."""
        return digest_of([_key_or_problem(self._eval_split, name) for name in names])

    def _eval_split(self, name: str) -> dict[str, Any]:
        dataset = self.plan.dataset(name)
        return self._split(dataset, dataset.eval)

    def _split(self, dataset: Dataset, split: Split | None) -> dict[str, Any]:
        assert split is not None
        digests = self.shards.digests(split, dataset.repository)
        return {"shards": list(digests), "target_keys": list(split.target_keys)}


def _code(modules: Iterable[str]) -> str:
    return code_digest(*(f"xares_bench.{name}" for name in modules))


def _key_or_problem(make: Callable[[Any], Any], of: Any) -> Any:
    """A key, or what stands against it: one missing shard does not keep the other datasets from being scored."""
    try:
        return make(of)
    except DataError as error:
        return str(error)
