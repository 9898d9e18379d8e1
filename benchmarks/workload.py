"""The demo model and the requests that benchmarks decode with it."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from replicas.engine import Request, SamplingParams
from replicas.tiny.tasks import TASKS, held_out_set
from replicas.torch_engine.checkpoint import Checkpoint

DEMO_CHECKPOINT = Path(__file__).resolve().parent.parent / "replicas" / "tiny" / "checkpoint"


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts that are decoded in this order, greedily, by whatever is measured."""

    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int
    ignore_eos: bool = False

    def request(self, index: int) -> Request:
        """The index-th request of an endless stream that repeats the prompts in order."""
        prompt = self.prompts[index % len(self.prompts)]
        sampling = SamplingParams(max_tokens=self.max_tokens, ignore_eos=self.ignore_eos)
        return Request(str(index), prompt, sampling)


def held_out_mix(
    checkpoint: Checkpoint, count: int, *, max_tokens: int = 160, tasks: Seq[str] = TASKS
) -> Workload:
    """`count` prompts that the demo model was not trained on, one task after the other."""
    per_task = [held_out_set(task, -(-count // len(tasks))) for task in tasks]
    mixed = (sample.prompt for group in zip(*per_task, strict=False) for sample in group)
    prompts = tuple(tuple(chat_tokens(checkpoint, text)) for text in islice(mixed, count))
    return Workload(prompts, max_tokens)


def chat_tokens(checkpoint: Checkpoint, text: str) -> list[int]:
    """A prompt as the demo model is asked it."""
    conversation = [{"role": "user", "content": text}]
    prompt = checkpoint.tokenizer.apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=True
    )
    assert isinstance(prompt, str)
    return list(checkpoint.tokenizer.encode(prompt, add_special_tokens=False))
