"""Measure a checkpoint per task and plan: `python -m replicas.tiny.evaluate CHECKPOINT --n 100`."""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from replicas.tiny.decoder import Decoder, Network, Output, Plan
from replicas.tiny.tasks import TASKS, Sample, correct, held_out_set, well_formed
from replicas.tiny.tokenizer import ASSISTANT, EOS, USER, token_id

PLANS = [
    Plan("ar"),
    Plan("self_speculation", 4),
    Plan("self_speculation", 8),
    Plan("self_speculation", 16),
    Plan("self_speculation", 32),
    Plan("diffusion", 8, 0.9),
    Plan("diffusion", 16, 0.9),
]


@dataclass
class Score:
    """Counts over `n` held-out prompts; `per_iteration` is tokens per decoder iteration."""

    n: int
    exact: int
    well_formed: int
    same_as_ar: int
    per_iteration: float


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a one-turn chat, up to where the answer begins."""
    user, assistant = token_id(tokenizer, USER), token_id(tokenizer, ASSISTANT)
    return [user, *tokenizer.encode(prompt).ids, assistant]


def answer_text(tokenizer: Tokenizer, output: Output) -> str | None:
    """The answer, or nothing if it did not end."""
    if output.tokens[-1] != token_id(tokenizer, EOS):
        return None
    return tokenizer.decode(output.tokens[:-1], skip_special_tokens=False)


def score(
    samples: list[Sample], answers: list[str | None], outputs: list[Output], ar: list[Output]
) -> Score:
    pairs = list(zip(samples, answers, strict=True))
    tokens = sum(len(output.tokens) - 1 for output in outputs)
    return Score(
        n=len(samples),
        exact=sum(text is not None and correct(s, text) for s, text in pairs),
        well_formed=sum(
            text is not None and well_formed(s.task, s.prompt, text) for s, text in pairs
        ),
        same_as_ar=sum(o.tokens == a.tokens for o, a in zip(outputs, ar, strict=True)),
        per_iteration=round(tokens / max(1, sum(output.iterations for output in outputs)), 2),
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
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--json", type=Path, help="where to write scores and every answer")
    parser.add_argument("--n", type=int, default=100, help="held-out prompts per task")
    parser.add_argument("--plans", nargs="*", help="only these, as printed: ar/1 diffusion/8@0.9")
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.checkpoint / "tokenizer.json"))
    decoder = Decoder(Network(args.checkpoint, getattr(torch, args.dtype)))
    scores: dict[str, dict[str, Score]] = {}
    answers: dict[str, dict[str, list[dict[str, str | None]]]] = {}
    ar: dict[str, list[Output]] = {}
    for plan in PLANS:
        name = str(plan)
        if args.plans and name not in args.plans and plan.mode != "ar":
            continue
        begin = time.monotonic()
        scores[name], answers[name] = {}, {}
        for task in args.tasks:
            samples = held_out_set(task, args.n)
            outputs = decoder.decode([prompt_tokens(tokenizer, s.prompt) for s in samples], plan)
            texts = [answer_text(tokenizer, output) for output in outputs]
            ar.setdefault(task, outputs)
            scores[name][task] = score(samples, texts, outputs, ar[task])
            answers[name][task] = [
                {"prompt": s.prompt, "reference": s.answer, "answer": text}
                for s, text in zip(samples, texts, strict=True)
            ]
        print(f"{name}: {time.monotonic() - begin:.1f} s", flush=True)
    for column in ("exact", "well_formed", "same_as_ar", "per_iteration"):
        print(f"\n{column}\n{table(scores, column)}")
    if args.json:
        plain = {p: {t: asdict(s) for t, s in by.items()} for p, by in scores.items()}
        args.json.write_text(json.dumps({"scores": plain, "answers": answers}, indent=1))


if __name__ == "__main__":
    main()
