"""The suite: the only glue. `lalm(mix)` trains, `evaluate(dataset)` scores; both find what was done before."""

from __future__ import annotations

import dataclasses
import functools
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from xares_bench.batches import Encoding, training_batches
from xares_bench.catalogue import Dataset, Mix, Split
from xares_bench.contract import ContractReport, check_contract
from xares_bench.digests import library_versions
from xares_bench.encoders import FrozenEncoder
from xares_bench.errors import EncoderError
from xares_bench.features import FeatureStore
from xares_bench.generation import generate
from xares_bench.keys import SCORING_LIBRARIES, TRAINING_LIBRARIES, Keys
from xares_bench.lalm import LALM, build_lalm, load_tokenizer
from xares_bench.metrics import evaluate
from xares_bench.plan import Plan
from xares_bench.progress import Progress
from xares_bench.records import DroppedSample, Prediction, RunManifest, ScoreRecord, predictions_to_jsonl
from xares_bench.rows import Row, RowReader
from xares_bench.shards import ShardFolder
from xares_bench.store import Entry, Store
from xares_bench.training import train

_REPORTED_LIBRARIES = sorted({"pytest", "soundfile", "soxr", "xares-bench", *TRAINING_LIBRARIES, *SCORING_LIBRARIES})

PREDICTIONS_FILE = "predictions.jsonl"
LOSS_FILE = "loss.tsv"


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """What a session will find finished.

    Attributes:
        mixes: Whether there is a LALM, per mix.
        num_shards: Shards that the mixes and datasets need.
        num_shards_reused: Those of them whose features are there.
        num_scores: Datasets to score.
        num_scores_reused: Those of them whose scores are there.
    """

    mixes: Mapping[str, bool]
    num_shards: int
    num_shards_reused: int
    num_scores: int
    num_scores_reused: int


class Suite:
    """Does what a plan asks for, one encoder at a time.

    Attributes:
        plan: What to do.
        device: Where the encoder and the LALM compute.
    """

    def __init__(self, plan: Plan, progress: Progress) -> None:
        """Find the device; nothing else is done before it is asked for."""
        assert plan.encoder is not None
        self.plan = plan
        self._progress = progress
        self._accelerator = Accelerator()
        self.device: torch.device = self._accelerator.device
        self._store = Store(root=plan.runs_folder / "store")
        self._shards = ShardFolder(plan.data_folder)
        self._lalms: dict[str, LALM] = {}

    @functools.cached_property
    def contract(self) -> ContractReport:
        """What the encoder keeps of its contract; checked once."""
        assert self.plan.encoder is not None
        with self._progress.bar("checking the encoder", 1) as advance:
            report = check_contract(self.plan.encoder, self.device)
            advance()
        return report

    @property
    def encoder(self) -> FrozenEncoder:
        """The frozen encoder.

        Raises:
            EncoderError: A clause of the contract does not hold.
        """
        report = self.contract
        if report.failure is not None:
            raise EncoderError(*report.failure)
        assert report.encoder is not None
        return report.encoder

    def lalm(self, mix: Mix) -> Entry:
        """The finished LALM of a mix in the store, trained now if need be.

        Raises:
            EncoderError: The encoder breaks its contract.
            DataError: A training shard is missing or damaged, or too many of its samples are unusable.
        """
        return self._store.obtain("lalms", self._keys.lalm(mix), functools.partial(self._train, mix))

    def evaluate(self, name: str) -> ScoreRecord:
        """The score of a dataset, computed now if need be; its LALM is trained first if need be.

        Raises:
            EncoderError: The encoder breaks its contract.
            DataError: A shard is missing or damaged, or too many of its samples are unusable.
        """
        dataset = self.plan.dataset(name)
        mix = self.plan.mix_for(name)
        entry = self._store.obtain("scores", self._keys.score(name), functools.partial(self._score, dataset, mix))
        return ScoreRecord.from_json({**entry.manifest["record"], "reused": entry.reused})

    def predictions_file(self, name: str) -> Path:
        """The predictions of a dataset that has been evaluated, in the store."""
        entry = self._store.find("scores", self._keys.score(name))
        assert entry is not None, name
        return entry.folder / PREDICTIONS_FILE

    def reuse(self, names: Iterable[str]) -> Reuse:
        """What a session that evaluates these datasets will find finished."""
        names = list(names)
        mixes = {mix.name: mix for mix in map(self.plan.mix_for, names)}
        splits: list[tuple[Split | None, float | None]] = [
            (dataset.train, self.plan.recipe.training.max_audio_s) for mix in mixes.values() for dataset in mix.datasets
        ]
        splits.extend((self.plan.dataset(name).eval, None) for name in names)
        keys = {
            self._features.key(shard, max_audio_s, self.plan.limit)
            for split, max_audio_s in splits
            if split is not None
            for shard in self._shards.locate(split)
        }
        return Reuse(
            num_shards=len(keys),
            num_shards_reused=sum(self._store.find("features", key) is not None for key in keys),
            mixes={name: self._store.find("lalms", self._keys.lalm(mix)) is not None for name, mix in mixes.items()},
            num_scores=len(names),
            num_scores_reused=sum(self._store.find("scores", self._keys.score(name)) is not None for name in names),
        )

    def open_run(self, names: Iterable[str]) -> RunManifest:
        """Name and describe the run that evaluates these datasets; the same run has the same name."""
        names = tuple(names)
        preset = self.plan.catalogue.preset
        report = self.contract
        return RunManifest(
            name=f"{self.encoder.name}-{preset.name}-{self._keys.run(names)[:10]}",
            datasets=names,
            encoder={
                "spec": self.encoder.spec.text,
                "name": self.encoder.name,
                "arguments": dict(self.encoder.spec.arguments),
                "fingerprint": self.encoder.fingerprint,
                "output_dim": self.encoder.output_dim,
                "honours_mask": report.honours_mask,
                "frames_per_second": report.frames_per_second,
                "realtime_factor": report.realtime_factor,
                "warnings": dict(report.warnings),
            },
            preset=preset.name,
            decoder={"name": _relative(preset.decoder), "fingerprint": self._keys.decoder},
            recipe=self.plan.recipe.values(),
            deviations={key: list(values) for key, values in self.plan.deviations.items()},
            data={
                "folder": _relative(str(self.plan.data_folder)) if self.plan.uses_public(names) else "own tar files",
                "revision": self._keys.data(names)[:12],
                "limit": self.plan.limit,
            },
            tasks=self.plan.tasks,
            environment={
                "device": str(self.device),
                "precision": self._accelerator.mixed_precision,
                "threads": torch.get_num_threads(),
                "platform": platform.platform(),
                "python": platform.python_version(),
                **library_versions(_REPORTED_LIBRARIES),
            },
        )

    @functools.cached_property
    def _features(self) -> FeatureStore:
        return FeatureStore(self._store, self.encoder, honours_mask=self.contract.honours_mask)

    @functools.cached_property
    def _rows(self) -> RowReader:
        return RowReader(
            shards=self._shards,
            features=self._features,
            limit=self.plan.limit,
            max_dropped_share=self.plan.recipe.training.max_dropped_share,
            progress=self._progress,
        )

    @functools.cached_property
    def _keys(self) -> Keys:
        return Keys(
            plan=self.plan,
            shards=self._shards,
            features=self._features,
            device_type=self.device.type,
            precision=self._accelerator.mixed_precision,
        )

    @functools.cached_property
    def _encoding(self) -> Encoding:
        return Encoding(load_tokenizer(self.plan.catalogue.preset.decoder))

    def _train(self, mix: Mix, folder: Path) -> dict[str, Any]:
        """Train the LALM of a mix and write it into a folder."""
        started = time.perf_counter()
        recipe = self.plan.recipe.training
        rows: dict[str, tuple[Row, ...]] = {}
        dropped: list[DroppedSample] = []
        for dataset in mix.datasets:
            assert dataset.train is not None
            read = self._rows.read(dataset, dataset.train, recipe.max_audio_s)
            rows[dataset.name] = read.rows
            dropped.extend(read.dropped)
        features_s = time.perf_counter() - started
        lalm = build_lalm(self.plan.catalogue.preset.decoder, self.encoder.output_dim, recipe)
        losses = train(
            lalm,
            training_batches(mix, rows, self._encoding, recipe),
            num_steps=self.plan.num_steps(mix),
            recipe=recipe,
            accelerator=self._accelerator,
            progress=self._progress,
            description=f"training {mix.name}",
        )
        lalm.save(folder)
        curve = "".join(f"{step}\t{loss:.6f}\n" for step, loss in enumerate(losses, start=1))
        (folder / LOSS_FILE).write_text("step\tloss\n" + curve, encoding="utf-8")
        self._lalms = {mix.name: lalm}
        return {
            "mix": mix.name,
            "num_steps": len(losses),
            "num_rows": {name: len(rows[name]) for name in rows},
            "dropped": [dataclasses.asdict(sample) for sample in dropped],
            "features_s": features_s,
            "training_s": time.perf_counter() - started - features_s,
        }

    def _score(self, dataset: Dataset, mix: Mix, folder: Path) -> dict[str, Any]:
        """Generate for every clip of a dataset, score its rows, and write them into a folder."""
        entry = self.lalm(mix)
        assert dataset.eval is not None
        started = time.perf_counter()
        read = self._rows.read(dataset, dataset.eval, None)
        features_s = time.perf_counter() - started
        texts = generate(
            self._loaded_lalm(mix, entry),
            [self._encoding.prompt(clip, dataset.prompt) for clip in read.clips],
            encoding=self._encoding,
            recipe=self.plan.generation_recipe(dataset),
            device=self.device,
            progress=self._progress,
            description=f"evaluating {dataset.name}",
        )
        said = {(clip.shard, clip.key): text for clip, text in zip(read.clips, texts, strict=True)}
        hypotheses = [said[row.clip.shard, row.clip.key] for row in read.rows]
        result = evaluate(
            dataset.metric, [row.target for row in read.rows], hypotheses, **dict(dataset.metric_arguments)
        )
        predictions = [
            Prediction(clip=row.clip.key, reference=row.target, hypothesis=hypothesis, value=value)
            for row, hypothesis, value in zip(read.rows, hypotheses, result.row_values, strict=True)
        ]
        (folder / PREDICTIONS_FILE).write_text(predictions_to_jsonl(predictions), encoding="utf-8")
        record = ScoreRecord(
            dataset=dataset.name,
            task=dataset.task,
            metric=dataset.metric,
            score=float(result.score),
            weight=dataset.weight,
            num_rows=len(read.rows),
            num_clips=len(read.clips),
            duration_s=sum(clip.duration_s for clip in read.clips),
            features_s=features_s,
            generation_s=time.perf_counter() - started - features_s,
            dropped=read.dropped,
            mix=mix.name,
            key=self._keys.score(dataset.name),
            lalm_key=self._keys.lalm(mix),
            reused=False,
            partial=self.plan.limit is not None,
        )
        return {"record": record.to_json()}

    def _loaded_lalm(self, mix: Mix, entry: Entry) -> LALM:
        """The LALM of a mix on the device; one is held at a time."""
        if mix.name not in self._lalms:
            self._lalms.clear()
            lalm = build_lalm(self.plan.catalogue.preset.decoder, self.encoder.output_dim, self.plan.recipe.training)
            lalm.load(entry.folder)
            self._lalms[mix.name] = lalm.to(self.device).eval()
        return self._lalms[mix.name]


def _relative(path: str) -> str:
    """A path as seen from the current directory, where it is below it."""
    try:
        return Path(path).relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path
