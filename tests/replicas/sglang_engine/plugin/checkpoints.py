"""The 8B's layout in small, prompts it copies from, and what the embedded engine makes of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from policies.vocabulary import Plan, Schedule
from replicas.engine import Request, SamplingParams
from replicas.torch_engine.checkpoint import load_checkpoint
from replicas.torch_engine.loader import LoadOptions, build_engine
from tests.replicas.torch_engine.builders import COPYING

Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Decoded:
    """Tokens for each prompt, and over all of them the rounds and the drafts accepted in each."""

    tokens: list[list[int]]
    rounds: int
    accepted: tuple[int, ...]


def prompts(count: int) -> list[Prompt]:
    """Repeating prompts of different lengths: the model copies, so that some drafts are right."""
    generator = random.Random(5)
    found = []
    for _ in range(count):
        motif = [
            generator.randrange(3, COPYING.vocab_size) for _ in range(generator.randrange(3, 7))
        ]
        found.append(tuple(motif * 4))
    return found


def decoded_alone(
    checkpoint: Path, plan: Plan, asked: Sequence[Prompt], params: SamplingParams
) -> Decoded:
    """By the embedded engine, one prompt after the other."""
    options = LoadOptions(device="cpu", dtype="float32", threads=1)
    core = build_engine(load_checkpoint(checkpoint), options, Schedule.pinned(plan))
    answers = []
    for prompt in asked:
        core.submit(Request("only", prompt, params))
        answers.append([])
        while core.has_work:
            answers[-1] += [t for delta in core.step() for t in delta.token_ids]
    counters = core.report().plans[plan]
    return Decoded(answers, counters.rounds, counters.accepted)
