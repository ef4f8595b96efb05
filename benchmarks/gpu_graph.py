"""An experiment for `benchmarks.gpu`: what a training step would take as one CUDA graph."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_machine import Machine, batch_of, peft_model
from xares_bench.runtime.determinism import deterministic_algorithms


def graph(machine: Machine) -> dict[str, Any]:
    """What one CUDA graph a step would give: rows padded on the right, logits of the targets alone, no dropout.

    An experiment on transformers and peft, not our loop. On a CPU only the eager half runs.
    """

    def losses_and_ms(frames: Sequence[int], *, captured: bool) -> tuple[list[float], float]:
        model = peft_model(machine, dropout=0.0)
        batch = batch_of(frames).to(machine.device)
        longest = max(batch.lengths)
        # Of every position of the padded rows, its place among all frames, all tokens and a row of zeros behind them.
        places = torch.full((len(frames), longest), len(batch.frames_FD) + len(batch.text_ids_M))
        predicting, num_frames, num_tokens = [], 0, len(batch.frames_FD)
        for row, (length, own) in enumerate(zip(batch.lengths, frames, strict=True)):
            places[row, :own] = torch.arange(num_frames, num_frames + own)
            places[row, own:length] = torch.arange(num_tokens, num_tokens + length - own)
            num_frames, num_tokens = num_frames + own, num_tokens + length - own
            num_targets = int(batch.num_targets) // len(frames)
            predicting.append(torch.arange(length - num_targets - 1, length - 1) + row * longest)
        places_P, predicting_T = places.flatten().to(machine.device), torch.cat(predicting).to(machine.device)
        trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True, capturable=machine.device.type == "cuda")
        inner = model.decoder.base_model.model

        def step() -> torch.Tensor:
            optimizer.zero_grad()
            parts = [model.projector(batch.frames_FD), inner.get_input_embeddings()(batch.text_ids_M)]
            parts.append(parts[0].new_zeros(1, parts[0].shape[1]))
            rows_BLH = torch.cat(parts).index_select(0, places_P).view(len(frames), longest, -1)
            hidden_BLH = inner.model(inputs_embeds=rows_BLH, use_cache=False).last_hidden_state
            logits_TV = inner.lm_head(hidden_BLH.flatten(0, 1).index_select(0, predicting_T))
            loss: torch.Tensor = nn.functional.cross_entropy(logits_TV, batch.target_ids_T)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            return loss.detach()

        num_warm = 3
        losses: list[float] = []
        with deterministic_algorithms(wanted=True, required=True):
            side = torch.cuda.Stream() if machine.device.type == "cuda" else None  # type: ignore[no-untyped-call]
            machine.wait()
            with torch.cuda.stream(side):  # capturing wants a stream of its own, warmed up
                losses += [float(step()) for _ in range(num_warm)]
            machine.wait()
            run = step
            if captured:
                recorded = torch.cuda.CUDAGraph()
                with torch.cuda.graph(recorded, stream=side):
                    loss = step()

                def run() -> torch.Tensor:
                    recorded.replay()
                    return loss

            times_s = []
            for _ in range(3 if machine.is_tiny else 10):
                machine.wait()
                started = time.perf_counter()
                found = run()
                machine.wait()
                times_s.append(time.perf_counter() - started)
                losses.append(float(found))
        return losses, round(statistics.median(times_s) * 1e3, 2)

    def both(frames: Sequence[int]) -> dict[str, Any]:
        losses, eager_ms = losses_and_ms(frames, captured=False)
        if machine.device.type != "cuda":
            return {"eager ms": eager_ms}
        captured_losses, graph_ms = losses_and_ms(frames, captured=True)
        furthest = max(abs(one - other) for one, other in zip(losses, captured_losses, strict=True))
        return {"eager ms": eager_ms, "graph ms": graph_ms, "losses differ by": furthest, "peak GB": machine.peak_gb()}

    return {name: both(frames) for name, frames in machine.lengths.items()}
