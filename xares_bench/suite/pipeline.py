"""The pipeline: trains the LALM of a mix, and scores a dataset with it.

It knows what to do and where to put it, and nothing of what was done before: that is the suite's. Everything heavy is
imported from here on.
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from xares_bench.config.catalogue import Dataset, Mix
from xares_bench.config.plan import Plan
from xares_bench.core.progress import Progress
from xares_bench.core.store import Entry, writing
from xares_bench.datasets.shards import ShardSource
from xares_bench.features.encoding import Clip, ClipEncoder
from xares_bench.features.feature_store import FeatureStore
from xares_bench.features.rows import ClipBatch, SampleCount, read_clip_batches
from xares_bench.lalm.batch import TextTokenizer
from xares_bench.lalm.generation import generate
from xares_bench.lalm.model import LALM, build_lalm, load_tokenizer
from xares_bench.metrics.registry import METRICS, evaluate
from xares_bench.runtime.device import environment_of
from xares_bench.runtime.processes import broadcast_from_main, in_lockstep
from xares_bench.scores.clip_sums import CLIP_SUMS_FILE, gather
from xares_bench.scores.records import PREDICTIONS_FILE, Prediction, ScoreRecord, predictions_to_jsonl
from xares_bench.scores.statistics import interval_of
from xares_bench.training.checkpoints import Checkpoint, Checkpoints
from xares_bench.training.dataloader import past_of, training_batches
from xares_bench.training.loop import train
from xares_bench.training.sampler import TrainingData, draws

LOSS_FILE = "loss.tsv"


@dataclass(kw_only=True)
class Pipeline:
    """Makes LALMs and scores; holds one LALM at a time.

    Attributes:
        plan: What is to be done.
        decoder_folder: The decoder's files.
        clips: The encoder.
        features: What the encoder makes of the shards.
        shards: Finds them.
        accelerator: Device and precision.
        progress: Shows how far the work is.
        checkpoint_steps: How often the state of a training is kept.
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
        """Train the LALM of a mix with a seed and write it into a folder; returns what else is to be known of it.

        Of several processes each does this, at the same time, and only the first one writes.

        Args:
            mix: What it is trained on.
            seed: What it is trained with.
            folder: Where it goes.
            checkpoints: Where a session before was interrupted; where this one may be.

        Raises:
            DataError: A training shard is missing or damaged, or too many of its samples are unusable.
            EncoderError: The encoder breaks its contract on one of the clips.
            UsageError: The decoder cannot be used.
        """
        started = time.perf_counter()
        recipe = dataclasses.replace(self.plan.recipe.training, seed=seed)
        # First, because not every decoder can be used.
        lalm = build_lalm(self.decoder_folder, self.clips.encoder.output_dim, recipe)
        splits = [(dataset, dataset.train) for dataset in mix.datasets if dataset.train is not None]
        data = TrainingData(
            mix=mix,
            shards={dataset.name: self.shards.locate(split, dataset.repository) for dataset, split in splits},
            sample_counts={dataset.name: self._sample_count(dataset) for dataset in mix.datasets},
            seed=recipe.seed,
            max_audio_s=recipe.max_audio_s,
            limit=self.plan.limit,
        )
        features_before_s = self.features.seconds
        start = broadcast_from_main(self.accelerator, checkpoints.newest)
        before_s = {"all": 0.0, "features": 0.0}
        if start is not None:
            counts = start.values["data"]
            data = data.continued(counts, past_of(recipe, start.num_steps, counts["unusable"]))
            before_s = start.values["seconds"]

        def spent_s() -> dict[str, float]:
            return {
                "all": before_s["all"] + time.perf_counter() - started,
                "features": before_s["features"] + self.features.seconds - features_before_s,
            }

        def keep(checkpoint: Checkpoint) -> None:
            values = {**checkpoint.values, "data": data.counts(), "seconds": spent_s()}
            if self.accelerator.is_main_process:
                checkpoints.save(dataclasses.replace(checkpoint, values=values))

        num_past = 0 if start is None else start.num_steps
        drawn = draws(data, self.features, mix.num_workers)
        try:
            share = (self.accelerator.process_index, self.accelerator.num_processes)
            made = training_batches(drawn, self.clips, self._tokenizer, recipe, num_past, share)
            with contextlib.closing(made), contextlib.closing(in_lockstep(self.accelerator, made)) as batches:
                with self.progress.bar(f"first clips of {mix.name}", 1) as advance:
                    first = next(batches)
                    advance()
                losses = train(
                    lalm,
                    itertools.chain([first], batches),
                    num_steps=self.plan.num_steps(mix),
                    recipe=recipe,
                    accelerator=self.accelerator,
                    progress=self.progress,
                    description=f"training {mix.name}" + (f" seed {seed}" if len(self.plan.seeds) > 1 else ""),
                    start=start,
                    keep=keep,
                    keep_every=self.checkpoint_steps,
                )
        finally:
            self.features.abandon_unfinished()
        for sample_count in data.sample_counts.values():
            sample_count.check(complete=False)
        if self.accelerator.is_main_process:
            curve = "".join(f"{step}\t{loss:.6f}\n" for step, loss in enumerate(losses, start=1))
            with writing(folder):
                lalm.save(folder)
                (folder / LOSS_FILE).write_text("step\tloss\n" + curve, encoding="utf-8")
        lalm.merge_lora()  # now that what was trained is saved: generation is faster without the additions
        self._lalms = {folder: lalm}
        seconds = spent_s()
        return {
            "mix": mix.name,
            "seed": seed,
            "num_steps": len(losses),
            "environment": environment_of(self.accelerator),
            "num_samples": {name: sample_count.num_samples for name, sample_count in data.sample_counts.items()},
            "dropped": [
                dataclasses.asdict(sample)
                for sample_count in data.sample_counts.values()
                for sample in sample_count.dropped
            ],
            "continued_after": num_past,
            "features_s": seconds["features"],
            "features_not_cached": self.features.not_cached_reason,
            "feature_bytes": self.features.budget.cached_bytes,
            "feature_budget_bytes": self.features.budget.max_bytes,
            "training_s": seconds["all"] - seconds["features"],
        }

    def score(self, dataset: Dataset, mix: Mix, lalm: Entry, folder: Path, key: str) -> ScoreRecord:
        """Generate for every clip of a dataset, score its rows, and write them into a folder.

        Args:
            dataset: What is scored.
            mix: What the LALM was trained on.
            lalm: The trained LALM.
            folder: Where the predictions go.
            key: What the score is filed under.

        Raises:
            DataError: A test shard is missing or damaged, or too many of its samples are unusable.
            EncoderError: The encoder breaks its contract on one of the clips.
        """
        assert dataset.eval is not None
        started = time.perf_counter()
        generation_s = 0.0
        shards = self.shards.locate(dataset.eval, dataset.repository)
        sample_count = self._sample_count(dataset)
        num_clips, duration_s = 0, 0.0
        rows: list[tuple[str, str, str]] = []  # clip, target, text
        row_clips: list[str] = []  # names of clips, each of which means one clip
        names: Counter[str] = Counter()
        parts = read_clip_batches(self.features, dataset.eval, shards, limit=self.plan.limit, count=sample_count)
        for part in self._shown(parts, f"reading {dataset.name}"):
            generating = time.perf_counter()
            texts = generate(
                self._loaded_lalm(lalm),
                [self._tokenizer.prompt(clip, _prompt_for(clip, dataset)) for clip in part.clips],
                tokenizer=self._tokenizer,
                recipe=self.plan.generation_recipe(dataset),
                device=self.accelerator.device,
                progress=self.progress,
                description=f"evaluating {dataset.name}" + (f", clips from {num_clips + 1}" if num_clips else ""),
            )
            said = dict(zip(map(id, part.clips), texts, strict=True))
            own_names = {id(clip): _own_name(clip.key, names) for clip in part.clips}
            row_clips.extend(own_names[id(row.clip)] for row in part.rows)
            rows.extend((row.clip.key, row.target, said[id(row.clip)]) for row in part.rows)
            num_clips += len(part.clips)
            duration_s += sum(clip.duration_s for clip in part.clips)
            generation_s += time.perf_counter() - generating
        scoring = time.perf_counter()
        self._make_room(dataset.metric)
        clips, targets, hypotheses = zip(*rows, strict=True)
        arguments = dict(dataset.metric_arguments)
        result = evaluate(dataset.metric, targets, hypotheses, **arguments)
        clip_sums = gather([result], metric=dataset.metric, arguments=arguments, row_clips=row_clips)
        clip_sums.save(folder / CLIP_SUMS_FILE)
        interval = None
        if math.isfinite(result.score):
            assert abs(float(clip_sums.scores()[0]) - result.score) < 1e-6, (clip_sums.scores(), result.score)
            interval = interval_of(clip_sums)
        predictions = map(_prediction, clips, targets, hypotheses, result.row_values)
        with writing(folder):
            (folder / PREDICTIONS_FILE).write_text(predictions_to_jsonl(predictions), encoding="utf-8")
        generation_s += time.perf_counter() - scoring
        return ScoreRecord(
            dataset=dataset.name,
            task=dataset.task,
            metric=dataset.metric,
            score=float(result.score),
            weight=dataset.weight,
            num_rows=len(rows),
            num_clips=num_clips,
            duration_s=duration_s,
            features_s=time.perf_counter() - started - generation_s,
            generation_s=generation_s,
            dropped=tuple(sample_count.dropped),
            mix=mix.name,
            key=key,
            lalm_key=lalm.folder.name,
            reused=False,
            partial=self.plan.limit is not None,
            interval=None if interval is None else (interval.low, interval.high),
            deviation=None if interval is None else interval.deviation,
            seed_scores=(float(result.score),),
        )

    @functools.cached_property
    def _tokenizer(self) -> TextTokenizer:
        return TextTokenizer(load_tokenizer(self.decoder_folder))

    def _shown(self, parts: Iterator[ClipBatch], description: str) -> Iterator[ClipBatch]:
        """The parts of a split, with a bar while each is read and encoded."""
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
        """A trained LALM on the device."""
        if entry.folder not in self._lalms:
            self._lalms.clear()
            lalm = build_lalm(self.decoder_folder, self.clips.encoder.output_dim, self.plan.recipe.training)
            lalm.load(entry.folder)
            lalm.merge_lora()
            self._lalms[entry.folder] = lalm.eval()
        return self._lalms[entry.folder].to(self.accelerator.device)

    def _make_room(self, metric: str) -> None:
        """Take the LALM off the device where the metric brings models of its own."""
        if METRICS[metric].needs_models:
            for lalm in self._lalms.values():
                lalm.to("cpu")


def _prompt_for(clip: Clip, dataset: Dataset) -> str:
    """One of a dataset's prompts, the same one whenever the clip is asked about."""
    return random.Random(clip.key).choice(dataset.prompts)


def _own_name(key: str, names: Counter[str]) -> str:
    """A name that only one clip has, as two shards may use the same key; the counter is of the keys so far."""
    names[key] += 1
    return key if names[key] == 1 else f"{key}#{names[key]}"


def _prediction(clip: str, reference: str, hypothesis: str, value: float | None) -> Prediction:
    return Prediction(clip=clip, reference=reference, hypothesis=hypothesis, value=value)
