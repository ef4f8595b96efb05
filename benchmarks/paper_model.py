"""What the full benchmark costs on a GPU, computed on paper: one encoder, the mixes task1 and task2, all 20 test sets.

    python -m benchmarks.paper_model
    python -m benchmarks.paper_model --frames-per-second 50 --encoder-parameters 20e6 --us-per-launch 50

Weights, steps, batch size and crop are those of the full preset. Clips and seconds are in `paper_model.yaml`, each with
where it is from. Times of an H100 are read from `results/`. Everything else is an option, printed as an assumption.
With the defaults the output is what `docs/performance.md` contains; `tests/test_paper_model.py` compares the two.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from xares_bench.config.catalogue import Catalogue, load_catalogue
from xares_bench.core.errors import CatalogueError
from xares_bench.core.parsing import Section, read_yaml
from xares_bench.datasets.audio import SAMPLE_RATE_HZ, SMALL_EXCESS_SAMPLES

FOLDER = Path(__file__).parent
H100_FILE = FOLDER / "results" / "2026-11-26-h100.jsonl"
MIXES = ("task1", "task2")

# SmolLM2-135M: width, width of the MLP, width of keys and values, layers, vocabulary.
_WIDTH, _MLP_WIDTH, _KEY_WIDTH, _NUM_LAYERS, _VOCABULARY = 576, 1536, 192, 30, 49152
_SHAPES = (
    *[(_WIDTH, _WIDTH)] * 2,
    *[(_WIDTH, _KEY_WIDTH)] * 2,
    *[(_WIDTH, _MLP_WIDTH)] * 3,
)
_DECODER_WEIGHTS = _NUM_LAYERS * sum(rows * columns for rows, columns in _SHAPES)
_OUTPUT_WEIGHTS = _WIDTH * _VOCABULARY
_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What is neither in the preset nor in the table of the datasets.

    Attributes:
        frames_per_second: Of the encoder, inside and at its output.
        encoder_parameters: Each costs two operations per frame.
        output_dim: Floats of a frame.
        launches: Kernels that the processor starts in a training step.
        generation_launches: The same for one token of a batch of generation.
        us_per_launch: Microseconds that it takes to start one.
        tflops: What products reach in float32, in 1e12 operations per second.
        prompt_tokens: Tokens of a prompt.
        cores: Processor cores that read audio.
        realtime_per_core: Seconds of audio that a core reads per second.
    """

    frames_per_second: float
    encoder_parameters: float
    output_dim: int
    launches: int
    generation_launches: int
    us_per_launch: float
    tflops: float
    prompt_tokens: int
    cores: int
    realtime_per_core: float

    def gpu_h(self, operations: float) -> float:
        """Hours of arithmetic."""
        return operations / (self.tflops * 1e12) / 3600

    def encoding(self, audio_s: float) -> float:
        """Operations that encode so many seconds of audio."""
        return 2 * self.encoder_parameters * self.frames_per_second * audio_s

    def feature_bytes(self, audio_s: float) -> float:
        """Size of the features of so many seconds of audio."""
        return _FLOAT_BYTES * self.output_dim * self.frames_per_second * audio_s

    def reading_h(self, audio_s: float) -> float:
        """Hours until so many seconds of audio are read."""
        return audio_s / (self.realtime_per_core * self.cores) / 3600


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number of `paper_model.yaml`, and where it is from."""

    value: float
    source: str

    def __str__(self) -> str:
        """The number with the first letter of its source."""
        return f"{self.value:,.10g} {self.source[0]}"


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a dataset costs: its training clips in its task's mix, and its test clips.

    Attributes:
        name: The dataset.
        draws: Rows that the mix draws from it, on average.
        clips: Its training clips.
        clip_s: Mean seconds of a training clip.
        crop_s: Seconds of such a clip that are used.
        is_cropped: Whether each draw takes another window, so that features are not cached.
        captions: Rows per training clip.
        tokens: Tokens of a target.
        test_clips: Its test clips.
        test_clip_s: Mean seconds of a test clip.
    """

    name: str
    draws: float
    clips: Figure
    clip_s: Figure
    crop_s: float
    is_cropped: bool
    captions: int
    tokens: Figure
    test_clips: Figure
    test_clip_s: Figure

    @property
    def different_clips(self) -> float:
        """Different clips among the drawn ones: the sampler walks passes, and a pass has every clip once."""
        return min(self.clips.value, self.draws / self.captions)

    @property
    def encoded(self) -> float:
        """Clips and windows that are encoded, with cached features."""
        return self.draws if self.is_cropped else self.different_clips

    @property
    def cached_s(self) -> float:
        """Seconds of training audio whose features are cached."""
        return 0.0 if self.is_cropped else self.different_clips * self.crop_s

    @property
    def test_s(self) -> float:
        """Seconds of all test clips."""
        return self.test_clips.value * self.test_clip_s.value

    def positions(self, given: Assumptions, audio_s: float) -> float:
        """Positions of a sequence: frames, prompt, target and EOS."""
        return audio_s * given.frames_per_second + given.prompt_tokens + self.tokens.value + 1

    def training_operations(self, given: Assumptions, rank: int) -> float:
        """Operations of the decoder, forward and backward, for all draws; the mean length stands for all lengths.

        A frozen weight costs 4 per position (it needs no gradient of its own), a trained one 6; attention 12 per layer,
        pair of positions and unit of width; the output layer counts where a token is predicted.
        """
        positions = self.positions(given, self.crop_s)
        adapters = _NUM_LAYERS * rank * sum(rows + columns for rows, columns in _SHAPES)
        projector = given.output_dim * _WIDTH
        weights = 4 * _DECODER_WEIGHTS + 6 * (adapters + projector)
        attention = 12 * _NUM_LAYERS * _WIDTH * positions
        return self.draws * (positions * (weights + attention) + 4 * _OUTPUT_WEIGHTS * (self.tokens.value + 1))

    def test_operations(self, given: Assumptions) -> float:
        """Operations of an evaluation: every clip encoded once, and one text generated for it."""
        positions = self.positions(given, self.test_clip_s.value)
        decoder = positions * (2 * _DECODER_WEIGHTS + 4 * _NUM_LAYERS * _WIDTH * positions)
        output = 2 * _OUTPUT_WEIGHTS * (self.tokens.value + 1)
        return given.encoding(self.test_s) + self.test_clips.value * (decoder + output)

    def test_launch_h(self, given: Assumptions, batch_size: int) -> float:
        """Hours in which an evaluation's kernels are started, token by token, for a batch at a time."""
        num_tokens = math.ceil(self.test_clips.value / batch_size) * (self.tokens.value + 1)
        return num_tokens * given.generation_launches * given.us_per_launch * 1e-6 / 3600


@dataclass(frozen=True, kw_only=True)
class H100:
    """What `benchmarks/results` has of an H100.

    Attributes:
        us_per_launch: Microseconds to start one small operation, when nothing else happens.
        step_ms: Least and most milliseconds of a training step in float32.
    """

    us_per_launch: float
    step_ms: tuple[float, float]


def read_h100(file: Path = H100_FILE) -> H100:
    """Return what was measured on an H100."""
    parts = {part["part"]: part for part in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    lengths = [value for value in parts["step"].values() if isinstance(value, dict)]
    steps_ms = [step["ms"] for length in lengths for step in length.values()]
    return H100(us_per_launch=parts["facts"]["us_per_launch"], step_ms=(min(steps_ms), max(steps_ms)))


def read_data(catalogue: Catalogue, mix_name: str, file: Path = FOLDER / "paper_model.yaml") -> list[Data]:
    """Return what the datasets of a mix cost.

    Raises:
        CatalogueError: The file lacks a dataset, or is ill-formed.
    """
    table = read_yaml(file, CatalogueError)
    mix, recipe = catalogue.mix(mix_name), catalogue.preset.recipe.training
    longest_s = recipe.max_audio_s + SMALL_EXCESS_SAMPLES / SAMPLE_RATE_HZ
    found = []
    for dataset, weight in zip(mix.datasets, mix.weights, strict=True):
        section = table.section(dataset.name)
        section.only("train", "eval", "captions", "tokens", "from")
        clip_s = _figure(section.section("train"), "seconds")
        found.append(
            Data(
                name=dataset.name,
                draws=weight * mix.steps * recipe.batch_size,
                clips=_figure(section.section("train"), "clips"),
                clip_s=clip_s,
                crop_s=min(clip_s.value, recipe.max_audio_s),
                is_cropped=clip_s.value > longest_s,
                captions=section.integer("captions", at_least=1) if section.has("captions") else 1,
                tokens=_figure(section, "tokens"),
                test_clips=_figure(section.section("eval"), "clips"),
                test_clip_s=_figure(section.section("eval"), "seconds"),
            )
        )
    return found


def _figure(section: Section, key: str) -> Figure:
    number, _, source = section.text(key).partition(" ")
    if source not in ("stated", "published", "assumed"):
        section.fail(key, "no number followed by stated, published or assumed")
    return Figure(value=float(number), source=source)


def page(given: Assumptions, h100: H100, catalogue: Catalogue) -> str:
    """Return the tables as Markdown."""
    data = {mix: read_data(catalogue, mix) for mix in MIXES}
    tables = (
        _assumption_rows(given, h100),
        _dataset_rows(given, catalogue, data),
        _cost_rows(given, h100, catalogue, data),
    )
    legend = "s: stated by the benchmark's authors; p: published for the corpus, shards not counted; a: assumed."
    return "\n\n".join((_table(tables[0]), legend, _table(tables[1]), _table(tables[2])))


Rows = Sequence[Sequence[str]]


def _assumption_rows(given: Assumptions, h100: H100) -> Rows:
    usual = Assumptions(**vars(parser(h100).parse_args([])))

    def kind(name: str, of_the_usual: str) -> str:
        return of_the_usual if getattr(given, name) == getattr(usual, name) else "assumed"

    return (
        ("input", "value", "kind"),
        ("encoder: frames per second", f"{given.frames_per_second:g}", "assumed"),
        ("encoder: parameters, 2 operations per frame each", f"{given.encoder_parameters / 1e6:g} M", "assumed"),
        ("encoder: floats per frame", str(given.output_dim), "assumed"),
        ("kernels that a training step starts", f"{given.launches:,}", kind("launches", "counted")),
        (
            "kernels that a token of a batch of texts starts",
            f"{given.generation_launches:,}",
            kind("generation_launches", "counted"),
        ),
        (
            "microseconds to start one, nothing else happening",
            f"{given.us_per_launch:.1f}",
            kind("us_per_launch", "measured on an H100"),
        ),
        ("TFLOPS that float32 products reach", f"{given.tflops:g}", kind("tflops", "assumed: half of an H100's 67")),
        ("tokens of a prompt", str(given.prompt_tokens), "assumed"),
        ("reading audio", f"{given.realtime_per_core:g} times real time on {given.cores} cores", "assumed"),
    )


def _dataset_rows(given: Assumptions, catalogue: Catalogue, data: dict[str, list[Data]]) -> Rows:
    batch_size = catalogue.preset.recipe.generation.generation_batch_size
    head = ("dataset", "training clips", "s each", "draws", "different", "encoded", "tokens")
    rows = [(*head, "test clips", "s each", "hours", "PFLOP", "starting, s")]
    for mix in MIXES:
        for one in data[mix]:
            rows.append(
                (
                    one.name,
                    str(one.clips),
                    str(one.clip_s),
                    f"{one.draws:,.0f}",
                    f"{one.different_clips:,.0f}",
                    f"{one.encoded:,.0f}",
                    str(one.tokens),
                    str(one.test_clips),
                    str(one.test_clip_s),
                    f"{one.test_s / 3600:.1f}",
                    f"{one.test_operations(given) / 1e15:.2f}",
                    f"{one.test_launch_h(given, batch_size) * 3600:.1f}",
                )
            )
    return rows


def _cost_rows(given: Assumptions, h100: H100, catalogue: Catalogue, data: dict[str, list[Data]]) -> Rows:
    recipe = catalogue.preset.recipe
    rank, batch_size = recipe.training.lora_rank, recipe.training.batch_size
    texts_at_once = recipe.generation.generation_batch_size
    columns = []
    for mix in MIXES:
        costs, steps = data[mix], catalogue.mix(mix).steps
        audio_s = _sum(one.draws * one.crop_s for one in costs)
        cached_s = _sum(one.cached_s for one in costs)
        encoded_s = _sum(one.encoded * one.crop_s for one in costs)
        read_s = _sum(one.encoded * one.clip_s.value for one in costs)
        test_s = _sum(one.test_s for one in costs)
        operations = _sum(one.training_operations(given, rank) for one in costs)
        positions = _sum(one.draws * one.positions(given, one.crop_s) for one in costs) / steps
        launch_ms = given.launches * given.us_per_launch * 1e-3
        test_operations = _sum(one.test_operations(given) for one in costs)
        test_launch_h = _sum(one.test_launch_h(given, texts_at_once) for one in costs)
        arithmetic_h, launch_h = given.gpu_h(operations), steps * launch_ms / 3.6e6
        once_h, every_h = given.gpu_h(given.encoding(encoded_s)), given.gpu_h(given.encoding(audio_s))
        test_h = max(given.gpu_h(test_operations), test_launch_h)
        low_h, high_h = (steps * step_ms / 3.6e6 for step_ms in h100.step_ms)
        columns.append(
            (
                f"{steps * batch_size:,}",
                f"{_sum(one.different_clips for one in costs):,.0f}",
                f"{_sum(one.encoded for one in costs):,.0f}",
                f"{audio_s / 3600:,.0f} h",
                f"{positions:,.0f}",
                f"{operations / 1e15:.0f} PFLOP, {arithmetic_h:.2f} h",
                f"{arithmetic_h * 3.6e6 / steps:.0f} ms",
                f"{launch_ms:.0f} ms",
                f"{launch_h:.2f} h",
                f"{h100.step_ms[0]:.0f} to {h100.step_ms[1]:.0f} ms",
                f"{low_h:.1f} to {high_h:.1f} h",
                f"{given.encoding(audio_s) / 1e15:.1f} PFLOP, {every_h:.2f} h",
                f"{given.encoding(encoded_s) / 1e15:.1f} PFLOP, {once_h:.2f} h",
                f"{given.feature_bytes(cached_s) / 1e9:.0f} GB",
                f"{given.feature_bytes(test_s) / 1e9:.0f} GB",
                f"{given.reading_h(read_s):.2f} h",
                f"{_sum(one.test_clips.value for one in costs):,.0f}",
                f"{test_s / 3600:,.0f} h",
                f"{test_operations / 1e15:.0f} PFLOP, {given.gpu_h(test_operations):.2f} h",
                f"{test_launch_h:.2f} h",
                f"{max(arithmetic_h, launch_h) + once_h + test_h:.1f} h",
                f"{low_h + once_h + test_h:.1f} to {high_h + once_h + test_h:.1f} h",
            )
        )
    rows = (
        ("clips drawn", "counted"),
        ("different clips among them", "estimated"),
        ("clips and windows encoded, features cached", "estimated"),
        ("audio of all draws", "estimated"),
        ("positions per step", "estimated"),
        ("training: arithmetic", "estimated"),
        ("a step: arithmetic", "estimated"),
        ("a step: starting its kernels", "estimated"),
        ("training: starting kernels", "estimated"),
        ("a step on an H100", "measured"),
        ("training at that step", "estimated from it"),
        ("encoder at every draw", "estimated"),
        ("encoder with cached features", "estimated"),
        ("features on disk, training clips", "estimated"),
        ("features on disk, test clips", "estimated"),
        ("reading training audio, beside the steps", "estimated"),
        ("test clips", "see above"),
        ("audio of the test clips", "estimated"),
        ("evaluation: arithmetic, encoder included", "estimated"),
        ("evaluation: starting kernels", "estimated"),
        ("one GPU, all of it, on paper", "estimated"),
        ("one GPU, all of it, with the measured step", "estimated from it"),
    )
    return (
        ("per mix", *MIXES, "kind"),
        *((name, *values, kind) for (name, kind), *values in zip(rows, *columns, strict=True)),
    )


def _sum(values: Iterable[float]) -> float:
    return math.fsum(values)


def _table(rows: Rows) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join((lines[0], "| --- |" + " ---: |" * (len(rows[0]) - 1), *lines[1:]))


def parser(h100: H100) -> argparse.ArgumentParser:
    """Return the options; their defaults are what the documentation shows."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.paper_model", description=(__doc__ or "").split("\n", 1)[0]
    )
    options.add_argument("--frames-per-second", type=float, default=25.0)
    options.add_argument("--encoder-parameters", type=float, default=86e6)
    options.add_argument("--output-dim", type=int, default=768)
    options.add_argument("--launches", type=int, default=3600)
    options.add_argument("--generation-launches", type=int, default=690)
    options.add_argument("--us-per-launch", type=float, default=h100.us_per_launch)
    options.add_argument("--tflops", type=float, default=33.5)
    options.add_argument("--prompt-tokens", type=int, default=10)
    options.add_argument("--cores", type=int, default=8)
    options.add_argument("--realtime-per-core", type=float, default=300.0)
    return options


def main() -> None:
    """Print the tables."""
    h100 = read_h100()
    given = Assumptions(**vars(parser(h100).parse_args()))
    print(page(given, h100, load_catalogue("full")))  # noqa: T201


if __name__ == "__main__":
    main()
