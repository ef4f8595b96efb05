"""The suite: the only glue. `lalm(mix)` trains, `evaluate(dataset)` scores; both find what was done before.

What trains and generates is imported by the methods that do: importing transformers takes longer than a whole session
that finds everything finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import platform
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xares_bench.accelerator import open_accelerator
from xares_bench.catalogue import Dataset, Mix
from xares_bench.clips import Clip, ClipEncoder
from xares_bench.contract import ContractReport, check_contract
from xares_bench.decoder import Decoder, locate_decoder
from xares_bench.digests import library_versions
from xares_bench.encoders import FrozenEncoder
from xares_bench.errors import EncoderError, UsageError
from xares_bench.feature_budget import FeatureBudget
from xares_bench.features import FeatureStore
from xares_bench.hub import DataHome
from xares_bench.keys import SCORING_LIBRARIES, TRAINING_LIBRARIES, Keys
from xares_bench.metrics import METRICS, evaluate, metric_identity
from xares_bench.needs import Needs
from xares_bench.plan import Plan
from xares_bench.progress import Progress, hush_transformers
from xares_bench.records import Prediction, RunManifest, ScoreRecord, predictions_to_jsonl
from xares_bench.rows import Part, Tally, read_parts
from xares_bench.shards import ShardFolder, ShardSource
from xares_bench.store import Entry, Store

if TYPE_CHECKING:
    from xares_bench.batches import Encoding
    from xares_bench.lalm import LALM

_REPORTED_LIBRARIES = sorted({"pytest", "soundfile", "soxr", "xares-bench", *TRAINING_LIBRARIES, *SCORING_LIBRARIES})

PREDICTIONS_FILE = "predictions.jsonl"
LOSS_FILE = "loss.tsv"


class Suite:
    """Does what a plan asks for, one encoder at a time.

    Attributes:
        plan: What to do.
        device: Where the encoder and the LALM compute.
    """

    def __init__(self, plan: Plan, progress: Progress) -> None:
        """Find the device; nothing else is done before it is asked for.

        Raises:
            UsageError: The precision that the launcher asks for does not exist on this device.
        """
        assert plan.encoder is not None
        if not sys.stderr.isatty():
            hush_transformers()
        self.plan = plan
        self._progress = progress
        self._accelerator = open_accelerator()
        self.device: torch.device = self._accelerator.device
        self._store = Store(root=plan.runs_folder / "store")
        self._home = DataHome(plan.data_home, plan.data_revisions)
        self._shards = ShardSource(ShardFolder(plan.data_folder, plan.runs_folder / "store" / "digests"), self._home)
        self._entries: dict[str, Entry] = {}
        self._lalms: dict[str, LALM] = {}

    @functools.cached_property
    def contract(self) -> ContractReport:
        """What the encoder keeps of its contract; checked once, where it keeps all of it also for later sessions."""
        assert self.plan.encoder is not None
        with self._progress.bar("checking the encoder", 1) as advance:
            report = check_contract(self.plan.encoder, self.device, self._store)
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

    def check(self, names: Sequence[str]) -> None:
        """Refuse what cannot work, before anything is fetched or trained.

        Raises:
            UsageError: A preset made for a GPU and none found, a metric's model missing, too little disk.
            DataError: The hub cannot be asked.
        """
        preset = self.plan.catalogue.preset
        if preset.needs_gpu and self.device.type == "cpu" and not self.plan.allow_cpu:
            raise UsageError(
                f"--preset={preset.name} is made for a GPU and none was found. Use --preset=mini, or insist with "
                "--allow-cpu (the published number of steps takes weeks on a CPU)"
            )
        self.needs.check(names)

    def fetch(self, names: Sequence[str]) -> None:
        """Bring here what these datasets need; see `Needs.fetch`."""
        self.needs.fetch(names, self._progress)

    def lalm(self, mix: Mix) -> Entry:
        """The finished LALM of a mix in the store, trained now if need be.

        Raises:
            EncoderError: The encoder breaks its contract.
            DataError: A training shard is missing or damaged, or too many of its samples are unusable.
            UsageError: The decoder cannot be used.
        """
        key = self._keys.lalm(mix)
        if key not in self._entries:
            self._entries[key] = self._store.obtain("lalms", key, functools.partial(self._train, mix))
        return self._entries[key]

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

    def open_run(self, names: Iterable[str]) -> RunManifest:
        """Name and describe the run that evaluates these datasets; the same run has the same name."""
        names = tuple(names)
        preset = self.plan.catalogue.preset
        report = self.contract
        commit = getattr(self.encoder.module, "commit", None)  # of a model of the hub
        return RunManifest(
            name=f"{self.encoder.name}-{preset.name}-{self._keys.run(names)[:10]}",
            datasets=names,
            encoder={
                "spec": self.encoder.spec.text,
                "name": self.encoder.name,
                "arguments": dict(self.encoder.spec.arguments),
                "fingerprint": self.encoder.fingerprint,
                "commit": commit if isinstance(commit, str) else None,
                "output_dim": self.encoder.output_dim,
                "honours_mask": report.honours_mask,
                "frames_per_second": report.frames_per_second,
                "realtime_factor": report.realtime_factor,
                "contract_reused": report.reused,
                "warnings": dict(report.warnings),
            },
            preset=preset.name,
            decoder={
                "name": _relative(self._decoder.name),
                "commit": self._decoder.commit,
                "fingerprint": self._decoder.digest,
            },
            recipe=self.plan.recipe.values(),
            deviations={key: list(values) for key, values in self.plan.deviations.items()},
            data={
                "folder": _relative(str(self.plan.data_folder)) if self.plan.uses_public(names) else "own tar files",
                "revision": self._keys.data(names)[:12],
                "repositories": {
                    repository: self._home.commit(repository) for repository in self.needs.repositories(names)
                },
                "limit": self.plan.limit,
            },
            tasks=self.plan.tasks,
            environment={
                "device": str(self.device),
                "precision": self._accelerator.mixed_precision,
                "threads": torch.get_num_threads(),
                "platform": platform.platform(),
                "python": platform.python_version(),
                "judges": {
                    metric: metric_identity(metric)
                    for metric in sorted({self.plan.dataset(name).metric for name in names})
                    if METRICS[metric].judged
                },
                **library_versions(_REPORTED_LIBRARIES),
            },
        )

    @functools.cached_property
    def needs(self) -> Needs:
        """What datasets need before their tests can run."""
        return Needs(
            plan=self.plan,
            home=self._home,
            shards=self._shards,
            keys=self._keys,
            store=self._store,
            features=self._features,
        )

    @functools.cached_property
    def _clips(self) -> ClipEncoder:
        return ClipEncoder(
            encoder=self.encoder,
            honours_mask=self.contract.honours_mask,
            half_precision=self.plan.recipe.training.feature_dtype == "float16",
        )

    @functools.cached_property
    def _features(self) -> FeatureStore:
        return FeatureStore(self._store, self._clips, FeatureBudget(self._store, self.plan.feature_bytes))

    @functools.cached_property
    def _keys(self) -> Keys:
        return Keys(
            plan=self.plan,
            shards=self._shards,
            clips=self._clips,
            decoder=self._decoder.digest,
            device_type=self.device.type,
            precision=self._accelerator.mixed_precision,
        )

    @functools.cached_property
    def _decoder(self) -> Decoder:
        return locate_decoder(self.plan.decoder, self.plan.data_home, self._progress)

    @functools.cached_property
    def _encoding(self) -> Encoding:
        from xares_bench.batches import Encoding
        from xares_bench.lalm import load_tokenizer

        return Encoding(load_tokenizer(self._decoder.folder))

    def _train(self, mix: Mix, folder: Path) -> dict[str, Any]:
        """Train the LALM of a mix and write it into a folder."""
        from xares_bench.batches import training_batches
        from xares_bench.draws import TrainingData, stored_draws, streamed_draws
        from xares_bench.lalm import build_lalm
        from xares_bench.training import train

        started = time.perf_counter()
        recipe = self.plan.recipe.training
        # First, because not every decoder can be used.
        lalm = build_lalm(self._decoder.folder, self.encoder.output_dim, recipe)
        splits = [(dataset, dataset.train) for dataset in mix.datasets if dataset.train is not None]
        data = TrainingData(
            mix=mix,
            shards={dataset.name: self._shards.locate(split, dataset.repository) for dataset, split in splits},
            tallies={dataset.name: self._tally(dataset) for dataset in mix.datasets},
            seed=recipe.seed,
            max_audio_s=recipe.max_audio_s,
            limit=self.plan.limit,
        )
        drawn = draws(data, self._features, mix.num_workers)
        features_before_s = self._features.seconds
        with contextlib.closing(training_batches(drawn, self._clips, self._encoding, recipe)) as batches:
            with self._progress.bar(f"first clips of {mix.name}", 1) as advance:
                first = next(batches)
                advance()
            losses = train(
                lalm,
                itertools.chain([first], batches),
                num_steps=self.plan.num_steps(mix),
                recipe=recipe,
                accelerator=self._accelerator,
                progress=self._progress,
                description=f"training {mix.name}",
            )
        self._features.drop_unfinished()
        features_s = self._features.seconds - features_before_s
        for tally in data.tallies.values():
            tally.check(complete=False)
        lalm.save(folder)
        curve = "".join(f"{step}\t{loss:.6f}\n" for step, loss in enumerate(losses, start=1))
        (folder / LOSS_FILE).write_text("step\tloss\n" + curve, encoding="utf-8")
        lalm.merge_lora()  # now that what was trained is saved: generation is faster without the additions
        self._lalms = {mix.name: lalm}
        return {
            "mix": mix.name,
            "num_steps": len(losses),
            "num_samples": {name: tally.num_samples for name, tally in data.tallies.items()},
            "dropped": [dataclasses.asdict(sample) for tally in data.tallies.values() for sample in tally.dropped],
            "features_s": features_s,
            "training_s": time.perf_counter() - started - features_s,
        }

    def _score(self, dataset: Dataset, mix: Mix, folder: Path) -> dict[str, Any]:
        """Generate for every clip of a dataset, score its rows, and write them into a folder."""
        from xares_bench.generation import generate

        entry = self.lalm(mix)
        assert dataset.eval is not None
        started = time.perf_counter()
        generation_s = 0.0
        shards = self._shards.locate(dataset.eval, dataset.repository)
        tally = self._tally(dataset)
        num_clips, duration_s = 0, 0.0
        rows: list[tuple[str, str, str]] = []  # clip, target, text
        parts = read_parts(self._features, dataset.eval, shards, limit=self.plan.limit, tally=tally)
        for part in self._shown(parts, f"reading {dataset.name}"):
            generating = time.perf_counter()
            texts = generate(
                self._loaded_lalm(mix, entry),
                [self._encoding.prompt(clip, _prompt_for(clip, dataset)) for clip in part.clips],
                encoding=self._encoding,
                recipe=self.plan.generation_recipe(dataset),
                device=self.device,
                progress=self._progress,
                description=f"evaluating {dataset.name}" + (f", clips from {num_clips + 1}" if num_clips else ""),
            )
            said = dict(zip(map(id, part.clips), texts, strict=True))
            rows.extend((row.clip.key, row.target, said[id(row.clip)]) for row in part.rows)
            num_clips += len(part.clips)
            duration_s += sum(clip.duration_s for clip in part.clips)
            generation_s += time.perf_counter() - generating
        scoring = time.perf_counter()
        self._make_room(dataset.metric)
        clips, targets, hypotheses = zip(*rows, strict=True)
        result = evaluate(dataset.metric, targets, hypotheses, **dict(dataset.metric_arguments))
        predictions = map(_prediction, clips, targets, hypotheses, result.row_values)
        (folder / PREDICTIONS_FILE).write_text(predictions_to_jsonl(predictions), encoding="utf-8")
        generation_s += time.perf_counter() - scoring
        record = ScoreRecord(
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
            dropped=tuple(tally.dropped),
            mix=mix.name,
            key=self._keys.score(dataset.name),
            lalm_key=self._keys.lalm(mix),
            reused=False,
            partial=self.plan.limit is not None,
        )
        return {"record": record.to_json()}

    def _shown(self, parts: Iterator[Part], description: str) -> Iterator[Part]:
        """The parts of a split, with a bar while each is read and encoded."""
        while True:
            with self._progress.bar(description, 1) as advance:
                part = next(parts, None)
                advance()
            if part is None:
                return
            yield part

    def _tally(self, dataset: Dataset) -> Tally:
        return Tally(dataset=dataset.name, max_dropped_share=self.plan.recipe.training.max_dropped_share)

    def _loaded_lalm(self, mix: Mix, entry: Entry) -> LALM:
        """The LALM of a mix on the device; one is held at a time."""
        from xares_bench.lalm import build_lalm

        if mix.name not in self._lalms:
            self._lalms.clear()
            lalm = build_lalm(self._decoder.folder, self.encoder.output_dim, self.plan.recipe.training)
            lalm.load(entry.folder)
            lalm.merge_lora()
            self._lalms[mix.name] = lalm.eval()
        return self._lalms[mix.name].to(self.device)

    def _make_room(self, metric: str) -> None:
        """Take the LALM off the device where the metric brings models of its own."""
        if METRICS[metric].judged:
            for lalm in self._lalms.values():
                lalm.to("cpu")


def _prompt_for(clip: Clip, dataset: Dataset) -> str:
    """One of a dataset's prompts, the same one whenever the clip is asked about."""
    return random.Random(clip.key).choice(dataset.prompts)


def _prediction(clip: str, reference: str, hypothesis: str, value: float | None) -> Prediction:
    return Prediction(clip=clip, reference=reference, hypothesis=hypothesis, value=value)


def _relative(path: str) -> str:
    """A path as seen from the current directory, where it is below it."""
    try:
        return Path(path).relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path
