"""The encoder's contract, as names and sentences; `xares_bench.encoders.contract` checks it.

They stand apart from the check so that the clauses can be listed without importing torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

CLAUSES: Mapping[str, str] = MappingProxyType(
    {
        "loads": "The encoder's file or module can be imported and contains the class.",
        "is-module": "The class is a torch.nn.Module.",
        "arguments": "The class accepts --encoder-args, or no arguments if there are none.",
        "output-dim": "Its attribute output_dim is a positive int.",
        "no-mask": "It encodes float32 audio [B, samples] with mask None.",
        "two-results": "It returns two things: features and a mask.",
        "features-float": "The features are a tensor of floats.",
        "features-shape": "The features have the shape [B, T, output_dim], with T at least 1.",
        "device": "It can be moved to a device, and its results are on the device of its input.",
        "features-finite": "The features contain neither NaN nor infinity.",
        "mask-shape": "The returned mask is None or [B, T] of 0 and 1, with at least one 1 per clip.",
        "lengths": "It encodes clips of 0.1 s, 1 s and 30 s.",
        "frame-rate": "It returns between 1 and 200 frames per second.",
        "scale": "Its features have an RMS between 0.01 and 100.",
        "hears-all": "What changes in the middle or at the end of a 61 s clip changes its features.",
        "batches": "It encodes batches of 1 and 3 clips of 1 s, and of 2 clips of 30 s.",
        "with-mask": "It encodes a padded batch with an integer mask [B, samples], 1 for audio and 0 for padding.",
        "input-unchanged": "It does not write into its input, neither audio nor mask.",
        "frozen": "It stays in eval mode, and its weights do not change.",
        "process": "It changes nothing in the process that cannot be undone after each of its calls.",
        "repeatable": "The same input gives the same features twice.",
        "others": "A clip's features do not depend on other clips of equal length in the same batch.",
        "padding": "A padded clip has the features of the clip alone (a finding that decides how clips are batched).",
        "padding-long": "Padded beside one of 61 s, so have clips of 30 s and 1 s (a finding, like that of `padding`).",
    }
)
"""What each clause demands, by name, in the order of the checks."""
