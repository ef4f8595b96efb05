"""Rows to compute metrics of: random texts whose predictions share most of their words with the references."""

from __future__ import annotations

import random

LABELS = [f"label {index}" for index in range(12)]
WORDS = [
    "one",
    "two",
    "three",
    "rain",
    "a",
    "dog's",
    "ПЯТЬ",
    "naïve",
    "well-known",
    "今天",
    "天气",
    "مرحبا",
    "\uff11\uff12",
]
SEEDS = range(8)


def random_sentences(seed: int, num_rows: int = 25, *, shortest: int = 1) -> tuple[list[str], list[str]]:
    """References and predictions that share most of their words, so that scores lie between 0 and 1."""
    rng = random.Random(seed)
    references, hypotheses = [], []
    for _ in range(num_rows):
        words = [rng.choice(WORDS) for _ in range(rng.randint(shortest, 8))]
        predicted = [rng.choice(WORDS) if rng.random() < 0.2 else word for word in words if rng.random() > 0.1]
        references.append(" ".join(words))
        hypotheses.append(" ".join(predicted))
    return references, hypotheses


def random_label_sets(seed: int, num_rows: int = 30) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    references = [";".join(rng.sample(LABELS, rng.randint(0, 4))) for _ in range(num_rows)]
    hypotheses = []
    for reference in references:
        kept = [label for label in reference.split(";") if rng.random() < 0.6]
        hypotheses.append(
            rng.choice([";", ";", " ; "]).join(kept + rng.sample([*LABELS, "unknown"], rng.randint(0, 3)))
        )
    return references, hypotheses
