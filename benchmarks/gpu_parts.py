"""The parts of `benchmarks.gpu`, one function each; `python -m benchmarks.gpu_parts PART FOLDER [--tiny]` runs one.

The decoder has SmolLM2-135M's shape and random weights, so that nothing has to be downloaded. A batch is four clips of
nearly the same length, with 8 tokens of prompt and 6 of target, as the full preset's are.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from benchmarks.gpu_machine import Machine, batch_of, peft_model, prompts_of, split_frames
from benchmarks.sizes import REPOSITORY
from xares_bench.core.progress import Progress
from xares_bench.lalm.batch import Batch, TextTokenizer, Utterance
from xares_bench.lalm.decoder import load_tokenizer
from xares_bench.lalm.generation import generate
from xares_bench.lalm.model import LALM
from xares_bench.runtime.determinism import deterministic_algorithms
from xares_bench.training.loop import train


def facts(machine: Machine) -> dict[str, Any]:
    """Versions, the device, and what one kernel launch costs when nothing else happens."""
    packages = ("torch", "transformers", "accelerate", "huggingface_hub", "numpy", "pytest")
    values_4 = torch.zeros(4, device=machine.device)
    num_launches = 20_000
    machine.wait()
    started = time.perf_counter()
    for _ in range(num_launches):
        values_4.add_(1)
    machine.wait()
    return {
        **{package: importlib.metadata.version(package) for package in packages},
        "python": sys.version.split()[0],
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if machine.device.type == "cuda" else None,
        "cpus": os.cpu_count(),
        "us per launch": round((time.perf_counter() - started) / num_launches * 1e6, 2),
    }


def suite(machine: Machine) -> dict[str, Any]:
    """The mini preset as a first session: status, scores, seconds."""
    return _session(machine, "suite", *(_FEW if machine.is_tiny else ()))


def equality(machine: Machine) -> dict[str, Any]:
    """Loss, gradients and generated texts beside the CPU's, without dropout."""
    batch = batch_of(next(iter(machine.lengths.values())))
    losses, gradients, texts = [], [], []
    for device in (torch.device("cpu"), machine.device):
        lalm = machine.lalm().to(device).eval()
        with deterministic_algorithms(wanted=True, required=True):
            loss = lalm(lalm.place(batch, device)) / batch.num_targets
            loss.backward()
        losses.append(float(loss.detach()))
        grads = [value.grad for _, value in lalm.trained_parameters() if value.grad is not None]
        gradients.append(torch.cat([grad.flatten().cpu() for grad in grads]))
        texts.append(_generate(machine, lalm, prompts_of((3, 5, 40, 90)), device, num_tokens=8))
    off = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    return {"losses": losses, "gradients differ by": off, "texts are equal": texts[0] == texts[1]}


def step(machine: Machine) -> dict[str, Any]:
    """A training step in float32 at three lengths: as it is, kernel by kernel, and without deterministic algorithms."""
    kinds: dict[str, dict[str, Any]] = {
        "CUDA graph": {},
        "kernel by kernel": {"cuda_graphs": False},
        "any algorithm": {"deterministic": False},
    }
    return {
        name: {kind: _training(machine, frames, **changes) for kind, changes in kinds.items()}
        for name, frames in machine.lengths.items()
    }


def bf16(machine: Machine) -> dict[str, Any]:
    """The same step in bfloat16."""
    return {name: _training(machine, frames, precision="bf16") for name, frames in machine.lengths.items()}


def control(machine: Machine) -> dict[str, Any]:
    """The same step in the reference's way: padded sequences, logits at every position, LoRA by peft."""

    def measured(frames: Sequence[int]) -> dict[str, Any]:
        model = peft_model(machine, dropout=machine.recipe.training.lora_dropout)
        batch = batch_of(frames).to(machine.device)
        text_BM = batch.text_ids_M.view(len(frames), -1)
        frames_BTD = nn.utils.rnn.pad_sequence(split_frames(batch.frames_FD, frames), batch_first=True)
        lengths_B1 = torch.tensor(frames, device=machine.device)[:, None]
        mask_BT = torch.arange(max(frames), device=machine.device) < lengths_B1
        mask_BL = torch.cat([mask_BT, torch.ones_like(text_BM, dtype=torch.bool)], dim=1).long()
        num_targets = int(batch.num_targets) // len(frames)
        labels_BL = torch.full_like(mask_BL, -100)
        labels_BL[:, -num_targets:] = text_BM[:, -num_targets:]

        def loss() -> torch.Tensor:
            embedded_BMH = model.decoder.get_input_embeddings()(text_BM)
            inputs_BLH = torch.cat([model.projector(frames_BTD), embedded_BMH], dim=1)
            found: torch.Tensor = model.decoder(inputs_embeds=inputs_BLH, attention_mask=mask_BL, labels=labels_BL).loss
            return found

        trained = [value for value in model.parameters() if value.requires_grad]
        return _timed(machine, loss, trained)

    return {name: measured(frames) for name, frames in machine.lengths.items()}


def generation(machine: Machine) -> dict[str, Any]:
    """Milliseconds a clip of an evaluation, for texts of 4 and of 40 tokens; the second of two rounds.

    Tokens are recorded as CUDA graphs, if that works; then the same with all kernels started one by one.
    """
    lalm = machine.lalm()
    lalm.merge_lora()
    lalm.to(machine.device).eval()
    prompts = prompts_of((3, 4, 5) if machine.is_tiny else [80 + number % 90 for number in range(64)])

    def ms_a_clip(*, cuda_graphs: bool) -> dict[str, float]:
        found = {}
        for num_tokens in (4, 40):
            for _ in range(2):
                started = time.perf_counter()
                _generate(machine, lalm, prompts, machine.device, num_tokens=num_tokens, cuda_graphs=cuda_graphs)
                machine.wait()
            found[f"{num_tokens} tokens, ms a clip"] = round((time.perf_counter() - started) / len(prompts) * 1e3, 2)
        return found

    with warnings.catch_warnings(record=True) as noted:
        found = ms_a_clip(cuda_graphs=True)
    problems = sorted({str(one.message) for one in noted if issubclass(one.category, RuntimeWarning)})
    return {
        **found,
        "recorded": machine.device.type == "cuda" and not problems,
        "problems": problems,
        "kernel by kernel": ms_a_clip(cuda_graphs=False),
    }


def memory(machine: Machine) -> dict[str, Any]:
    """Whether the longest batch of the published recipe can be trained in 24 GB, and what it takes at its peak."""
    if machine.device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(24e9 / torch.cuda.get_device_properties(0).total_memory)
    name, frames = list(machine.lengths.items())[-1]
    return {name: _training(machine, frames)}


def twice(machine: Machine) -> dict[str, Any]:
    """One training with LoRA in two sessions: the same bits?"""
    lora = ("--set", "adaptation=lora", "--set", "batch_size=4", *_ONE_DATASET, *(_FEW if machine.is_tiny else ()))
    first, second = (_session(machine, name, *lora) for name in ("first", "second"))
    return {"same bits": bool(first["lalms"]) and first["lalms"] == second["lalms"], "first": first, "second": second}


def launcher(machine: Machine) -> dict[str, Any]:
    """Two processes of a launcher where there is one GPU: refused in one line, or the same scores?"""
    options = (*_ONE_DATASET, *_FEW)
    return _session(machine, "launcher", *options, launcher=("-m", "accelerate.commands.launch", "--num_processes=2"))


def two_trainings(machine: Machine) -> dict[str, Any]:
    """Seconds of two trainings one after another, and of the same two at once."""
    options = (*_ONE_DATASET, *(_FEW if machine.is_tiny else ()))
    started = time.perf_counter()
    alone = [_session(machine, f"alone {seed}", *options, f"--seed={seed}") for seed in (1, 2)]
    alone_s = time.perf_counter() - started
    started = time.perf_counter()
    running = [_start(machine, f"at once {seed}", *options, f"--seed={seed}") for seed in (1, 2)]
    at_once = [_ended(machine, f"at once {seed}", process) for seed, process in zip((1, 2), running, strict=True)]
    return {
        "one after another, s": round(alone_s, 1),
        "at once, s": round(time.perf_counter() - started, 1),
        "same bits": [one["lalms"] for one in alone] == [one["lalms"] for one in at_once],
    }


_ONE_DATASET = ("--train=esc-50", "-k", "esc-50")
_FEW = ("--set", "steps=4", "--limit=6")


def _start(machine: Machine, name: str, *options: str, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    """A session of the mini preset with the log-mel example."""
    plugins = importlib.metadata.entry_points(group="pytest11")
    is_installed = any(entry.value == "xares_bench.plugin" for entry in plugins)
    command = [sys.executable, *launcher, "-m", "pytest", str(REPOSITORY / "bench"), "--preset=mini", "-q"]
    command += [] if is_installed else ["-p", "xares_bench.plugin"]
    command += [f"--encoder={REPOSITORY / 'examples' / 'logmel_encoder.py'}", f"--runs-dir={machine.folder / name}"]
    environment = {**os.environ, **({"ACCELERATE_USE_CPU": "true"} if machine.is_tiny else {})}
    return subprocess.Popen(
        [*command, *options],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _ended(machine: Machine, name: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a session wrote: status, scores, digests of its LALMs, and its last lines if it failed."""
    output, _ = process.communicate()
    runs = machine.folder / name
    scores = {}
    for file in runs.glob("*/results.json"):
        for record in json.loads(file.read_text(encoding="utf-8"))["scores"]:
            scores[record["dataset"]] = round(record["score"], 4)
    trained = sorted(runs.glob("store/lalms/*/trained.safetensors"))
    return {
        "status": process.returncode,
        "scores": scores,
        "lalms": [hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in trained],
        **({"last lines": output.strip().splitlines()[-4:]} if process.returncode else {}),
    }


def _session(machine: Machine, name: str, *options: str, launcher: Sequence[str] = ()) -> dict[str, Any]:
    started = time.perf_counter()
    found = _ended(machine, name, _start(machine, name, *options, launcher=launcher))
    return {**found, "s": round(time.perf_counter() - started, 1)}


def _generate(
    machine: Machine,
    lalm: LALM,
    prompts: Sequence[Utterance],
    device: torch.device,
    *,
    num_tokens: int,
    cuda_graphs: bool = True,
) -> list[str]:
    return generate(
        lalm,
        prompts,
        tokenizer=TextTokenizer(load_tokenizer(machine.decoder)),
        recipe=dataclasses.replace(machine.recipe.generation, max_new_tokens=num_tokens, cuda_graphs=cuda_graphs),
        device=device,
        progress=Progress(quiet=True),
    )


def _training(machine: Machine, frames: Sequence[int], *, precision: str = "no", **changes: Any) -> dict[str, Any]:
    """A training of some steps on one batch: medians of a step, until all was given to the device and until it ended.

    The device is waited for after each step, which the training itself does not do.
    """
    recipe = machine.recipe.replace(changes).training
    lalm = machine.lalm()
    batch = batch_of(frames)
    began, launched_s, whole_s = time.perf_counter(), [], []

    def batches() -> Iterator[Batch]:
        nonlocal began
        while True:
            launched_s.append(time.perf_counter() - began)
            machine.wait()
            whole_s.append(time.perf_counter() - began)
            began = time.perf_counter()
            yield batch

    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with warnings.catch_warnings(record=True) as noted:
        losses = train(
            lalm,
            batches(),
            num_steps=3 if machine.is_tiny else 12,
            recipe=recipe,
            accelerator=Accelerator(mixed_precision=precision, cpu=machine.is_tiny),
            progress=Progress(quiet=True),
        )
    # The first third warms up: kernels are loaded and recorded, memory is taken.
    warm = len(whole_s) // 3
    return {
        "ms": round(statistics.median(whole_s[warm:]) * 1e3, 2),
        "ms until launched": round(statistics.median(launched_s[warm:]) * 1e3, 2),
        "peak GB": machine.peak_gb(),
        "losses": [round(loss, 6) for loss in losses[-3:]],
        **({"warnings": [str(one.message)[:300] for one in noted]} if noted else {}),
    }


def _timed(machine: Machine, loss_of: Callable[[], torch.Tensor], trained: Sequence[nn.Parameter]) -> dict[str, Any]:
    """Medians over steps: until the loss was read, and until everything was given to the device; peak memory."""
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    num_steps = 3 if machine.is_tiny else 12
    whole_s, launched_s = [], []
    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with deterministic_algorithms(wanted=True, required=True):
        for _ in range(num_steps):
            machine.wait()
            started = time.perf_counter()
            loss = loss_of()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            launched_s.append(time.perf_counter() - started)
            value = float(loss.detach())
            machine.wait()
            whole_s.append(time.perf_counter() - started)
    # The first third warms up: kernels are loaded, memory is taken.
    warm = num_steps // 3
    return {
        "ms": round(statistics.median(whole_s[warm:]) * 1e3, 2),
        "ms until launched": round(statistics.median(launched_s[warm:]) * 1e3, 2),
        "peak GB": machine.peak_gb(),
        "loss": value,
    }


_FUNCTIONS: dict[str, Callable[[Machine], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        facts,
        suite,
        equality,
        step,
        bf16,
        control,
        generation,
        memory,
        twice,
        launcher,
        two_trainings,
    )
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_parts")
    parser.add_argument("part", choices=_FUNCTIONS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    print(json.dumps(_FUNCTIONS[given.part](Machine(given.folder, is_tiny=given.tiny))))  # noqa: T201
