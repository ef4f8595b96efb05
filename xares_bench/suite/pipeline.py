"""The pipeline: trains the LALM of a mix, and scores a dataset with it.

It always computes; whether a result is cached is the suite's question. This is the first module that imports the heavy
libraries (transformers, peft), so sessions that find everything cached never import it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from xares_bench.config.catalogue import Dataset, Mix
from xares_bench.config.plan import Plan
from xares_bench.config.recipe import TrainingRecipe
from xares_bench.core.progress import Progress
from xares_bench.core.store import Entry, writing
from xares_bench.core.text import encoded
from xares_bench.datasets.shards import ShardSource
from xares_bench.features.encoding import Clip, ClipEncoder
from xares_bench.features.feature_store import FeatureStore
from xares_bench.features.rows import ClipBatch, Part, SampleCount, read_clip_batches
from xares_bench.lalm.batch import TextTokenizer
from xares_bench.lalm.decoder import load_tokenizer
from xares_bench.lalm.generation import generate
from xares_bench.lalm.model import LALM, build_lalm
from xares_bench.metrics.registry import METRICS, evaluate
from xares_bench.runtime.device import environment_of
from xares_bench.runtime.processes import broadcast_from_main, in_lockstep
from xares_bench.scores.clip_sums import CLIP_SUMS_FILE, gather
from xares_bench.scores.records import PREDICTIONS_FILE, Prediction, ScoreRecord, predictions_to_jsonl
from xares_bench.scores.statistics import interval_of
from xares_bench.suite.texts import PartTexts
from xares_bench.training.checkpoints import Checkpoint, Checkpoints
from xares_bench.training.dataloader import past_of, training_batches
from xares_bench.training.loop import train
from xares_bench.training.sampler import TrainingData, draws

if TYPE_CHECKING:
    from xares_bench.datasets.corruptions import Corruption

# Name of the file with a cached LALM's training loss.
LOSS_FILE = "loss.tsv"


class _TrainingClock:
    """The wall time of a training over all its sessions, and the part of it that went into features."""

    def __init__(self, features: FeatureStore) -> None:
        self._features = features
        self._started = time.perf_counter()
        self._features_before_s = features.seconds
        self._earlier_s: Mapping[str, float] = {"all": 0.0, "features": 0.0}

    def resume(self, earlier_s: Mapping[str, float]) -> None:
        """Add the times of earlier sessions, as a checkpoint has them."""
        self._earlier_s = earlier_s

    def seconds(self) -> dict[str, float]:
        """Return the times so far, as a checkpoint stores them."""
        return {
            "all": self._earlier_s["all"] + time.perf_counter() - self._started,
            "features": self._earlier_s["features"] + self._features.seconds - self._features_before_s,
        }


@dataclass(kw_only=True)
class Pipeline:
    """Trains LALMs and scores datasets with them; holds one LALM at a time.

    Attributes:
        plan: Mixes, datasets, recipe and limit.
        decoder_folder: The decoder's files.
        clips: The encoder.
        features: The cache of features.
        shards: Finds shards.
        accelerator: Device and precision.
        progress: Shows progress bars.
        checkpoint_steps: Training steps from one checkpoint to the next.
    """

    plan: Plan
    decoder_folder: str
    clips: ClipEncoder
    features: FeatureStore
    shards: ShardSource
    accelerator: Accelerator
    progress: Progress
    checkpoint_steps: int
    _lalms: dict[Path, LALM] = field(default_factory=dict, init=False)

    def train(self, mix: Mix, seed: int, folder: Path, checkpoints: Checkpoints) -> dict[str, Any]:
        """Train the LALM of a mix and write it into a folder.

        All processes call this at the same time; only the main one writes.

        Args:
            mix: The datasets to train on.
            seed: The training seed.
            folder: An empty folder.
            checkpoints: The training resumes from the newest one, and saves new ones.

        Returns:
            The fields of the LALM's manifest.

        Raises:
            DataError: A training shard is missing or damaged, or too many of its samples are unusable.
            EncoderError: The encoder breaks its contract on one of the clips.
            UsageError: The decoder cannot be used.
        """
        clock = _TrainingClock(self.features)
        recipe = dataclasses.replace(self.plan.recipe.training, seed=seed)
        # Built first: an unsupported decoder is an error before any clip is encoded.
        lalm = build_lalm(self.decoder_folder, self.clips.encoder.output_dim, recipe)
        data = self._training_data(mix, recipe)
        # The main process chooses for all: they must resume after the same step, or their collective operations no
        # longer match.
        start = broadcast_from_main(self.accelerator, checkpoints.newest)
        if start is not None:
            drawn = start.values["data"]
            data = data.continued(drawn, past_of(recipe, start.num_steps, drawn["unusable"]))
            clock.resume(start.values["seconds"])

        def save(checkpoint: Checkpoint) -> None:
            if self.accelerator.is_main_process:
                values = {**checkpoint.values, "data": data.counts(), "seconds": clock.seconds()}
                checkpoints.save(dataclasses.replace(checkpoint, values=values))

        losses = self._losses(lalm, data, recipe, start, save)
        # Checked at the end: how many samples are unusable is known only after a pass over the data.
        for sample_count in data.sample_counts.values():
            sample_count.check(complete=False)
            sample_count.warn()
        if self.accelerator.is_main_process:
            with writing(folder):
                lalm.save(folder)
                (folder / LOSS_FILE).write_bytes(encoded(_losses_to_tsv(losses)))
        # After saving, as the file holds the LoRA weights apart; generation is faster with merged weights.
        lalm.merge_lora()
        self._lalms = {folder: lalm}
        return self._lalm_manifest(data, losses, 0 if start is None else start.num_steps, clock.seconds())

    def generate(
        self, dataset: Dataset, lalm: Entry, part: Part, title: str, corruption: Corruption | None = None
    ) -> PartTexts:
        """Generate a text for each clip of a part of a test set, batch by batch, as its features may not fit in memory.

        Args:
            dataset: The dataset.
            lalm: The trained LALM.
            part: The part.
            title: Names the part in progress bars.
            corruption: Applied to the clips; None: none is.

        Raises:
            DataError: A test shard is missing or damaged.
            EncoderError: The encoder breaks its contract on one of the clips.
        """
        assert dataset.eval is not None
        started = time.perf_counter()
        sample_count = self._sample_count(dataset)
        clips: list[str] = []
        texts: list[str] = []
        rows: list[tuple[int, str]] = []
        duration_s = generation_s = 0.0
        pool = self.plan.recipe.training.frame_pool
        features = self.features if corruption is None else self.features.corrupted(corruption)
        batches = read_clip_batches(features, dataset.eval, part, count=sample_count)
        for batch in self._shown(batches, f"reading {title}"):
            generating = time.perf_counter()
            # By identity: keys need not be unique, neither in a shard nor across shards.
            index_of = {id(clip): index for index, clip in enumerate(batch.clips, start=len(clips))}
            rows.extend((index_of[id(row.clip)], row.target) for row in batch.rows)
            texts += generate(
                self._loaded_lalm(lalm),
                [self._tokenizer.prompt(clip.pooled(pool), _prompt_for(clip, dataset)) for clip in batch.clips],
                tokenizer=self._tokenizer,
                recipe=self.plan.generation_recipe(dataset),
                device=self.accelerator.device,
                progress=self.progress,
                description=f"evaluating {title}" + (f", clips from {len(clips) + 1}" if clips else ""),
            )
            clips.extend(clip.key for clip in batch.clips)
            duration_s += sum(clip.duration_s for clip in batch.clips)
            generation_s += time.perf_counter() - generating
        return PartTexts(
            clips=clips,
            texts=texts,
            rows=rows,
            counts=sample_count.to_json(),
            duration_s=duration_s,
            features_s=time.perf_counter() - started - generation_s,
            generation_s=generation_s,
        )

    def score(
        self, dataset: Dataset, mix: Mix, lalm: Entry, parts: Sequence[PartTexts], folder: Path, key: str
    ) -> ScoreRecord:
        """Score the texts that were generated for a dataset, and write the predictions into a folder.

        Args:
            dataset: The dataset to evaluate.
            mix: The mix that the LALM was trained on.
            lalm: The trained LALM.
            parts: The texts of all parts of the test split, in order.
            folder: An empty folder, for predictions and clip sums.
            key: The score's cache key.

        Raises:
            DataError: Too many samples are unusable.
        """
        scoring = time.perf_counter()
        sample_count = self._sample_count(dataset)
        rows: list[tuple[str, str, str]] = []
        row_clips: list[str] = []
        names: Counter[str] = Counter()
        for part in parts:
            sample_count = sample_count.plus(part.counts)
            part_names = [_unique_name(clip, names) for clip in part.clips]
            rows.extend((part.clips[index], target, part.texts[index]) for index, target in part.rows)
            row_clips.extend(part_names[index] for index, _ in part.rows)
        sample_count.check(complete=True)
        sample_count.warn()
        self._make_room(dataset.metric)
        clips, targets, hypotheses = zip(*rows, strict=True)
        arguments = dict(dataset.metric_arguments)
        result = evaluate(dataset.metric, targets, hypotheses, **arguments)
        clip_sums = gather([result], metric=dataset.metric, arguments=arguments, row_clips=row_clips)
        clip_sums.save(folder / CLIP_SUMS_FILE)
        interval = None
        if math.isfinite(result.score):
            # The score must follow from the clip sums; otherwise intervals and comparisons are about another score.
            assert abs(float(clip_sums.scores()[0]) - result.score) < 1e-6, (clip_sums.scores(), result.score)
            interval = interval_of(clip_sums)
        predictions = map(_prediction, clips, targets, hypotheses, result.row_values)
        with writing(folder):
            (folder / PREDICTIONS_FILE).write_bytes(encoded(predictions_to_jsonl(predictions)))
        return ScoreRecord(
            dataset=dataset.name,
            task=dataset.task,
            metric=dataset.metric,
            score=float(result.score),
            weight=dataset.weight,
            num_rows=len(rows),
            num_clips=sum(len(part.clips) for part in parts),
            duration_s=sum(part.duration_s for part in parts),
            features_s=sum(part.features_s for part in parts),
            generation_s=sum(part.generation_s for part in parts) + time.perf_counter() - scoring,
            dropped=(*sample_count.dropped, *sample_count.without_target),
            num_corrupt_targets=sample_count.num_corrupt,
            mix=mix.name,
            key=key,
            lalm_key=lalm.folder.name,
            reused=False,
            partial=self.plan.limit is not None,
            interval=None if interval is None else (interval.low, interval.high),
            deviation=None if interval is None else interval.deviation,
            seed_scores=(float(result.score),),
        )

    def _training_data(self, mix: Mix, recipe: TrainingRecipe) -> TrainingData:
        """Return a mix's training shards, from the beginning."""
        splits = [(dataset, dataset.train) for dataset in mix.datasets if dataset.train is not None]
        return TrainingData(
            mix=mix,
            shards={dataset.name: self.shards.locate(split, dataset.repository) for dataset, split in splits},
            sample_counts={dataset.name: self._sample_count(dataset) for dataset in mix.datasets},
            seed=recipe.seed,
            max_audio_s=recipe.max_audio_s,
            limit=self.plan.limit,
        )

    def _losses(
        self,
        lalm: LALM,
        data: TrainingData,
        recipe: TrainingRecipe,
        start: Checkpoint | None,
        save: Callable[[Checkpoint], None],
    ) -> list[float]:
        """Train a LALM in place, on batches that are read and encoded meanwhile; return the loss of every step."""
        mix = data.mix
        drawn = draws(data, self.features, mix.num_workers)
        share = (self.accelerator.process_index, self.accelerator.num_processes)
        num_past = 0 if start is None else start.num_steps
        try:
            made = training_batches(drawn, self.clips, self._tokenizer, recipe, num_past, share)
            with contextlib.closing(made), contextlib.closing(in_lockstep(self.accelerator, made)) as batches:
                # The first batch takes long, as the shuffle buffer fills: it has a bar of its own.
                with self.progress.bar(f"first clips of {mix.name}", 1) as advance:
                    first = next(batches)
                    advance()
                return train(
                    lalm,
                    itertools.chain([first], batches),
                    num_steps=self.plan.num_steps(mix),
                    recipe=recipe,
                    accelerator=self.accelerator,
                    progress=self.progress,
                    description=f"training {mix.name}" + (f" seed {recipe.seed}" if len(self.plan.seeds) > 1 else ""),
                    start=start,
                    keep=save,
                    keep_every=self.checkpoint_steps,
                )
        finally:
            # The last step, or an error, leaves a pass over the data unfinished; its features must not stay locked.
            self.features.abandon_unfinished()

    def _lalm_manifest(
        self, data: TrainingData, losses: Sequence[float], num_past: int, seconds: Mapping[str, float]
    ) -> dict[str, Any]:
        """Return what the manifest of a trained LALM says about its training."""
        counts = data.sample_counts
        return {
            "mix": data.mix.name,
            "seed": data.seed,
            "num_steps": len(losses),
            "environment": environment_of(self.accelerator),
            "num_samples": {name: count.num_samples for name, count in counts.items()},
            "dropped": [
                dataclasses.asdict(sample)
                for count in counts.values()
                for sample in (*count.dropped, *count.without_target)
            ],
            "num_corrupt_targets": {name: count.num_corrupt for name, count in counts.items()},
            "continued_after": num_past,
            "features_s": seconds["features"],
            "features_not_cached": self.features.not_cached_reason,
            "feature_bytes": self.features.budget.cached_bytes,
            "feature_budget_bytes": self.features.budget.max_bytes,
            "training_s": seconds["all"] - seconds["features"],
        }

    @functools.cached_property
    def _tokenizer(self) -> TextTokenizer:
        return TextTokenizer(load_tokenizer(self.decoder_folder))

    def _shown(self, parts: Iterator[ClipBatch], description: str) -> Iterator[ClipBatch]:
        """Yield the batches of a split, with a progress bar while each is read and encoded."""
        while True:
            with self.progress.bar(description, 1) as advance:
                part = next(parts, None)
                advance()
            if part is None:
                return
            yield part

    def _sample_count(self, dataset: Dataset) -> SampleCount:
        return SampleCount(dataset=dataset.name, max_dropped_share=self.plan.recipe.training.max_dropped_share)

    def _loaded_lalm(self, entry: Entry) -> LALM:
        """Return a trained LALM on the device; the one that was loaded before is dropped."""
        if entry.folder not in self._lalms:
            self._lalms.clear()
            lalm = build_lalm(self.decoder_folder, self.clips.encoder.output_dim, self.plan.recipe.training)
            lalm.load(entry.folder)
            lalm.merge_lora()
            self._lalms[entry.folder] = lalm.eval()
        return self._lalms[entry.folder].to(self.accelerator.device)

    def _make_room(self, metric: str) -> None:
        """Move the LALM to the CPU if the metric has models of its own, which need the device's memory."""
        if METRICS[metric].needs_models:
            for lalm in self._lalms.values():
                lalm.to("cpu")


def _prompt_for(clip: Clip, dataset: Dataset) -> str:
    """Return one of a dataset's prompts, chosen by the clip's key alone, so that it is always the same."""
    return random.Random(clip.key).choice(dataset.prompts)


def _unique_name(key: str, names: Counter[str]) -> str:
    """Return a name that only one clip has: shards may use the same keys. The counter is of the keys so far."""
    names[key] += 1
    return key if names[key] == 1 else f"{key}#{names[key]}"


def _losses_to_tsv(losses: Iterable[float]) -> str:
    rows = "".join(f"{step}\t{loss:.6f}\n" for step, loss in enumerate(losses, start=1))
    return f"step\tloss\n{rows}"


def _prediction(clip: str, reference: str, hypothesis: str, value: float | None) -> Prediction:
    return Prediction(clip=clip, reference=reference, hypothesis=hypothesis, value=value)
