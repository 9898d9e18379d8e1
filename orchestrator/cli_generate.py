"""`trimode generate`: one prompt through the embedded engine, with no server around it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import click
from rich.console import Console
from rich.text import Text

from policies.vocabulary import DEFAULT_THRESHOLD, Mode, Plan, Schedule
from replicas.engine import Delta, EngineReport, Request, SamplingParams
from replicas.tiny import CHECKPOINT

_DEFAULT_BLOCK = {Mode.AR: 1, Mode.SELF_SPECULATION: 16, Mode.DIFFUSION: 8}
_COMMIT_STYLES = ("default", "cyan")


@click.command(short_help="Decode one prompt, with no server.")
@click.argument("prompt")
@click.option("--model", help="Checkpoint folder or Hugging Face id; default: the demo model.")
@click.option(
    "--mode", type=click.Choice([m.value for m in Mode]), default=Mode.SELF_SPECULATION.value
)
@click.option("--block-length", type=int, help="4, 8, 16 or 32; default 16, for diffusion 8.")
@click.option("--threshold", type=float, help="Diffusion commits tokens surer than this; 0.9.")
@click.option("--max-tokens", default=256, help="Most tokens to generate.")
@click.option("--temperature", default=0.0, help="0 is greedy.")
@click.option("--top-p", default=1.0, help="Nucleus sampling; 1 is off.")
@click.option("--top-k", default=0, help="Sample from the k likeliest tokens; 0 is off.")
@click.option("--seed", type=int, help="Makes sampled output repeatable.")
@click.option("--stop", multiple=True, help="End before this text; may be repeated.")
@click.option("--raw", is_flag=True, help="Send the prompt without the chat template.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--dtype", default="auto", help="auto, float32 or bfloat16.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves it to torch.")
def generate(
    prompt: str,
    model: str | None,
    mode: str,
    block_length: int | None,
    threshold: float | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int | None,
    stop: tuple[str, ...],
    raw: bool,
    device: str,
    dtype: str,
    threads: int,
) -> None:
    """Decode PROMPT (- reads standard input) with the embedded engine, with no server around it.

    Tokens appear as they are committed, one colour per commit in a terminal; the last line, on
    standard error, counts tokens per forward and tokens per second.
    """
    length = _DEFAULT_BLOCK[Mode(mode)] if block_length is None else block_length
    plan = Plan(Mode(mode), length, DEFAULT_THRESHOLD if threshold is None else threshold)
    sampling = SamplingParams(max_tokens, temperature, top_p, top_k, seed, stop)
    text = sys.stdin.read() if prompt == "-" else prompt
    _run(model or str(CHECKPOINT), text, raw, plan, sampling, _Placement(device, dtype, threads))


@dataclass(frozen=True, slots=True)
class _Placement:
    device: str
    dtype: str
    threads: int


def _run(
    model: str, prompt: str, raw: bool, plan: Plan, sampling: SamplingParams, where: _Placement
) -> None:
    # torch and transformers take seconds to import, so --help and usage errors do without them.
    from replicas.torch_engine.checkpoint import load_checkpoint, resolve
    from replicas.torch_engine.engine import EngineLimits
    from replicas.torch_engine.loader import LoadOptions, build_engine, prompt_token_ids

    console = Console(highlight=False, soft_wrap=True)
    status = Console(stderr=True)
    with status.status("loading the model") if status.is_terminal else _Silence():
        checkpoint = load_checkpoint(resolve(model))
        ids = prompt_token_ids(checkpoint.tokenizer, prompt, raw=raw)
        context = len(ids) + sampling.max_tokens
        limits = EngineLimits(max_context_tokens=context, max_sequences=1, kv_tokens=context)
        options = LoadOptions(where.device, where.dtype, where.threads, limits=limits)
        engine = build_engine(checkpoint, options, Schedule.pinned(plan))
    engine.submit(Request("cli", ids, sampling))
    started = time.perf_counter()
    deltas: list[Delta] = []
    while engine.has_work:
        for delta in engine.step():
            _show(console, delta, len(deltas))
            deltas.append(delta)
    console.print()
    seconds = time.perf_counter() - started
    line = summary(plan, engine.report(), deltas, seconds)
    status.print(line, style="dim", highlight=False, soft_wrap=True)


def summary(plan: Plan, report: EngineReport, deltas: list[Delta], seconds: float) -> str:
    """One line: tokens, tokens/s, tokens per forward and, where drafted, accepted length."""
    counters = report.plans[Plan(plan.mode, plan.block_length)]
    parts = [
        f"{plan}: {report.generated_tokens} tokens in {seconds:.2f} s",
        f"{report.generated_tokens / seconds:.0f} tokens/s",
    ]
    if counters.forwards:
        parts.append(f"{counters.committed / counters.forwards:.2f} tokens per forward")
    if counters.drafted:
        accepted = sum(counters.accepted) / counters.rounds
        parts.append(f"{accepted:.2f} of {plan.block_length - 1} drafted tokens accepted")
    if counters.denoising_steps:
        parts.append(f"{counters.denoising_steps} denoising steps")
    finish = deltas[-1].finish_reason if deltas else None
    return ", ".join(parts) + f" (finish: {finish.value if finish else 'none'})"


def _show(console: Console, delta: Delta, index: int) -> None:
    style = _COMMIT_STYLES[index % 2] if console.is_terminal else ""
    console.print(Text(delta.text, style=style), end="")
    console.file.flush()


class _Silence:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
