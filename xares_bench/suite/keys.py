"""Cache keys: each result's key is a digest of everything that the result depends on.

    score    <-  LALM, test shards, prompts, target keys, metric, generation recipe
    LALM     <-  features of its training shards, prompts, weights, decoder, training recipe
    features <-  encoder, shard          (see the feature store)

    corrupted score     <-  score, corruption
    corrupted features  <-  features, corruption

and of the code and the library versions that compute it. A key is known before any work is done: it is made from what
goes into a result, never from the result. So an unfinished or evicted result can be recomputed under the same key.

Not in a key:
- names and folders of files: shards, models and the encoder's weights count by content, so that data can be moved;
- what changes the speed but not the result: worker threads, disk budgets, how often a training is checkpointed;
- which other datasets or seeds the session has: a score is the same alone and among others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from xares_bench.config.catalogue import Dataset, Mix, Split
from xares_bench.config.plan import Plan
from xares_bench.core.digests import SCORING_LIBRARIES, TRAINING_LIBRARIES, code_digest, digest_of, library_versions
from xares_bench.core.errors import DataError
from xares_bench.datasets.shards import ShardSource
from xares_bench.features.encoding import ClipEncoder
from xares_bench.features.feature_store import features_parts
from xares_bench.metrics.registry import metric_identity

if TYPE_CHECKING:
    from xares_bench.datasets.corruptions import Corruption

T = TypeVar("T")

# The modules whose code a LALM, or a score, depends on besides its features. Lists by hand, as imports alone would add
# modules that cannot change a result, and each new key means hours of recomputing. `tests/suite/test_keys.py` compares
# them with what the modules import, so that none is forgotten.
_READING_MODULES = (
    "core.parsing",
    "datasets.shards",
    "datasets.targets",
    "features.rows",
    "lalm.attention",
    "lalm.batch",
    "lalm.decoder",
    "lalm.llama",
    "lalm.lora",
    "lalm.model",
    "lalm.operations",
    "runtime.determinism",
    "runtime.device",
    "runtime.memory",
    "runtime.processes",
    "scores.records",
    "suite.pipeline",
)
TRAINING_MODULES = (
    *_READING_MODULES,
    "runtime.recording",
    "training.checkpoints",
    "training.dataloader",
    "training.loop",
    "training.losses",
    "training.sampler",
    "training.steps",
)
SCORING_MODULES = (
    *_READING_MODULES,
    "lalm.generation",
    "lalm.hugging_face_generation",
    "lalm.token_steps",
    "metrics.captioning",
    "metrics.captions.files",
    "metrics.captions.formulas",
    "metrics.captions.judges",
    "metrics.classification",
    "metrics.parts",
    "metrics.registry",
    "metrics.transcription",
    "runtime.recording",
    "scores.clip_sums",
    "scores.statistics",
    "suite.texts",
)


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The cache keys of a plan's results.

    Attributes:
        plan: Datasets, mixes, recipe, limit and seeds.
        shards: Finds shards and their digests.
        clips: The encoder, and how clips are encoded.
        decoder: Digest of the decoder.
        device_type: `cpu`, `cuda`, ...; its arithmetic differs in the last bits, and so do trained weights.
        precision: Mixed precision of the training, `no` for float32.
        num_processes: Processes that train together; it decides the order in which gradients are summed.
    """

    plan: Plan
    shards: ShardSource
    clips: ClipEncoder
    decoder: str
    device_type: str
    precision: str
    num_processes: int

    def lalm(self, mix: Mix, seed: int) -> str:
        """Return the key of the LALM of a mix, trained with a seed.

        Raises:
            DataError: A training shard is missing, or does not match its manifest.
        """
        return digest_of(
            {
                "mix": self._parts(mix),
                # Besides the recipe, where None stands for the mix's own number of steps.
                "num_steps": self.plan.num_steps(mix),
                "limit": self.plan.limit,
                "recipe": {**dataclasses.asdict(self.plan.recipe.training), "seed": seed},
                # Not the features' own keys: with a limit, these depend on how many samples the shards before have,
                # which is unknown until they are read. Encoder, shards and limit determine the features all the same.
                "features": features_parts(self.clips, self.plan.recipe.training.max_audio_s),
                "decoder": self.decoder,
                "device": self.device_type,
                "precision": self.precision,
                "processes": self.num_processes,
                "code": _code(TRAINING_MODULES),
                "libraries": library_versions(TRAINING_LIBRARIES),
            }
        )

    def score(self, name: str, seed: int, corruption: Corruption | None = None) -> str:
        """Return the key of a dataset's score with the LALM of a seed, on its test clips or on corrupted ones.

        Raises:
            DataError: A shard is missing, or does not match its manifest.
        """
        if corruption is not None:
            return digest_of({"score": self.score(name, seed), **corruption.identity})
        dataset = self.plan.dataset(name)
        return digest_of(
            {
                "lalm": self.lalm(self.plan.mix_for(name), seed),
                "dataset": name,
                "task": dataset.task,
                "weight": dataset.weight,
                "prompts": list(dataset.prompts),
                "eval": self._split(dataset, dataset.eval),
                # With the digests of the metric's models, if it has any.
                "metric": [dataset.metric, dict(dataset.metric_arguments), metric_identity(dataset.metric)],
                "limit": self.plan.limit,
                "recipe": dataclasses.asdict(self.plan.generation_recipe(dataset)),
                "max_dropped_share": self.plan.recipe.training.max_dropped_share,
                "code": _code(SCORING_MODULES),
                "libraries": library_versions(SCORING_LIBRARIES),
            }
        )

    def run(self, names: Iterable[str]) -> str:
        """Return the key of a run over these datasets; a dataset without its data enters with the problem."""
        return digest_of({name: _key_or_problem(self.scores, name) for name in names})

    def scores(self, name: str, corruption: Corruption | None = None) -> list[str]:
        """Return the keys of a dataset's scores, one per training seed.

        Raises:
            DataError: A shard is missing, or does not match its manifest.
        """
        return [self.score(name, seed, corruption) for seed in self.plan.seeds]

    def data(self, names: Iterable[str]) -> str:
        """Return a digest of the test data of these datasets; a missing one enters with the problem."""
        return digest_of([_key_or_problem(self._eval_split, name) for name in names])

    def mix(self, mix: Mix) -> str:
        """Return a digest of a mix: its datasets with their weights, prompts and training data, and its steps."""
        return digest_of([_key_or_problem(self._parts, mix), mix.steps])

    def _parts(self, mix: Mix) -> list[dict[str, Any]]:
        return [
            {
                "name": dataset.name,
                "weight": weight,
                "prompts": list(dataset.prompts),
                "train": self._split(dataset, dataset.train),
            }
            for dataset, weight in zip(mix.datasets, mix.weights, strict=True)
        ]

    def _eval_split(self, name: str) -> dict[str, Any]:
        dataset = self.plan.dataset(name)
        return self._split(dataset, dataset.eval)

    def _split(self, dataset: Dataset, split: Split | None) -> dict[str, Any]:
        assert split is not None
        digests = self.shards.digests(split, dataset.repository)
        return {"shards": list(digests), "target_keys": list(split.target_keys)}


def _code(modules: Iterable[str]) -> str:
    return code_digest(*(f"xares_bench.{name}" for name in modules))


def _key_or_problem(key_of: Callable[[T], Any], what: T) -> Any:
    """Return the key of a dataset or mix, or the reason it has none: a missing shard must not stop the others."""
    try:
        return key_of(what)
    except DataError as error:
        return str(error)
