"""Measure a checkpoint per task and plan: `python -m replicas.tiny.evaluate CHECKPOINT --n 100`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from policies.vocabulary import AR, Plan, Schedule
from replicas.engine import FinishReason, Request, SamplingParams
from replicas.tiny import CHECKPOINT
from replicas.tiny.tasks import TASKS, Sample, correct, held_out_set, well_formed
from replicas.torch_engine.checkpoint import Checkpoint, load_checkpoint
from replicas.torch_engine.engine import EngineLimits, TorchEngine
from replicas.torch_engine.loader import LoadOptions, build_engine, prompt_token_ids

PLANS = (
    "ar",
    "self_speculation/4",
    "self_speculation/8",
    "self_speculation/16",
    "self_speculation/32",
    "diffusion/8",
    "diffusion/16",
)
LIMITS = EngineLimits(max_context_tokens=512, max_sequences=32, kv_tokens=0)
MAX_TOKENS = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine made of one prompt; `text` is None if it did not end by itself."""

    tokens: tuple[int, ...]
    text: str | None


@dataclass(frozen=True, slots=True)
class Score:
    """Counts over `n` held-out prompts; `per_iteration` is tokens per sequence and step: one draft
    and verify in self-speculation, one forward in AR and diffusion (committing ones counted)."""

    n: int
    exact: int
    well_formed: int
    same_as_ar: int
    per_iteration: float


def decode(
    checkpoint: Checkpoint, prompts: Sequence[str], plan: Plan, dtype: str = "float32"
) -> tuple[list[Answer], float]:
    """Greedy answers to one-turn chats, and tokens per sequence and step."""
    options = LoadOptions(device="cpu", dtype=dtype, threads=1, limits=LIMITS)
    engine = build_engine(checkpoint, options, Schedule.pinned(plan))
    for i, prompt in enumerate(prompts):
        ids = prompt_token_ids(checkpoint.tokenizer, prompt)
        engine.submit(Request(str(i), ids, SamplingParams(max_tokens=MAX_TOKENS)))
    answers = _run(engine, len(prompts))
    counters = engine.report().plans[Plan(plan.mode, plan.block_length)]
    return answers, counters.committed / max(1, counters.sequence_steps)


def _run(engine: TorchEngine, count: int) -> list[Answer]:
    tokens: list[list[int]] = [[] for _ in range(count)]
    texts: list[str] = [""] * count
    ended = [False] * count
    while engine.has_work:
        for delta in engine.step():
            index = int(delta.request_id)
            tokens[index].extend(delta.token_ids)
            texts[index] += delta.text
            ended[index] = delta.finish_reason is FinishReason.STOP
    return [
        Answer(tuple(t), text if end else None)
        for t, text, end in zip(tokens, texts, ended, strict=True)
    ]


def score(
    samples: list[Sample], answers: list[Answer], ar: list[Answer], per_iteration: float
) -> Score:
    pairs = [(s, a.text) for s, a in zip(samples, answers, strict=True) if a.text is not None]
    return Score(
        n=len(samples),
        exact=sum(correct(sample, text) for sample, text in pairs),
        well_formed=sum(well_formed(s.task, s.prompt, text) for s, text in pairs),
        same_as_ar=sum(a.tokens == b.tokens for a, b in zip(answers, ar, strict=True)),
        per_iteration=round(per_iteration, 2),
    )


def table(scores: dict[str, dict[str, Score]], column: str) -> str:
    """A Markdown table of one column of the scores: a row per task, a column per plan."""
    lines = ["| task | " + " | ".join(scores) + " |", "|---" * (len(scores) + 1) + "|"]
    for task in next(iter(scores.values())):
        cells = []
        for by_task in scores.values():
            s = by_task[task]
            value = getattr(s, column)
            cells.append(f"{value:.2f}" if column == "per_iteration" else f"{value}/{s.n}")
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--json", type=Path, help="where to write scores and every answer")
    parser.add_argument("--n", type=int, default=100, help="held-out prompts per task")
    parser.add_argument("--plans", nargs="*", default=PLANS, help="ar is always among them")
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.checkpoint)
    scores: dict[str, dict[str, Score]] = {}
    texts: dict[str, dict[str, list[dict[str, str | None]]]] = {}
    ar: dict[str, list[Answer]] = {}
    for name in dict.fromkeys([str(AR), *args.plans]):
        begin = time.monotonic()
        scores[name], texts[name] = {}, {}
        for task in args.tasks:
            samples = held_out_set(task, args.n)
            prompts = [s.prompt for s in samples]
            answers, per_iteration = decode(checkpoint, prompts, Plan.parse(name), args.dtype)
            ar.setdefault(task, answers)
            scores[name][task] = score(samples, answers, ar[task], per_iteration)
            texts[name][task] = [
                {"prompt": s.prompt, "reference": s.answer, "answer": a.text}
                for s, a in zip(samples, answers, strict=True)
            ]
        print(f"{name}: {time.monotonic() - begin:.1f} s", flush=True)
    for column in ("exact", "well_formed", "same_as_ar", "per_iteration"):
        print(f"\n{column}\n{table(scores, column)}")
    if args.json:
        plain = {p: {t: asdict(s) for t, s in by.items()} for p, by in scores.items()}
        args.json.write_text(json.dumps({"scores": plain, "answers": texts}, indent=1))


if __name__ == "__main__":
    main()
