"""Single passes through SGLang's model with Triton attention, eager and replayed, in this process.

Prints one JSON object. `test_passes.py` runs it, since Triton's interpreter is chosen per process.
Argument: a checkpoint. The reference is the embedded engine's dense attention.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from replicas.engine import Request, SamplingParams
from replicas.sglang_engine.protocol import cpu_flags, launch_flags
from replicas.torch_engine.batch import Packer, Rows
from replicas.torch_engine.checkpoint import load_checkpoint
from replicas.torch_engine.cuda_graphs import Run
from replicas.torch_engine.kv_cache import KVPool
from replicas.torch_engine.model import Model
from replicas.torch_engine.sequence import Sequence
from tests.replicas.torch_engine.builders import COPYING

CONTEXT = 256
WIDTHS = (1, 4, 8, 16, 32)
PREFIXES = (5, 13, 40)
MOST = 4
CPU = torch.device("cpu")
Pass = tuple[str, Rows, bool]


class Counting:
    """Records nothing, and counts."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, run: Run) -> Run:
        self.captures += 1

        def replay() -> torch.Tensor:
            self.replays += 1
            return run()

        return replay


class Dense:
    """The embedded engine's model, as a function from rows to logits."""

    def __init__(self, path: Path) -> None:
        checkpoint = load_checkpoint(path)
        config = checkpoint.config
        options = {"dtype": torch.float32, "device": CPU}
        self._model = Model(config, checkpoint.weights, max_positions=CONTEXT, **options)
        self._pool = KVPool(
            num_layers=config.num_layers,
            kv_width=2 * config.num_kv_heads * config.head_dim,
            tokens=8 * CONTEXT,
            max_context=CONTEXT,
            **options,
        )
        groups = config.num_heads // config.num_kv_heads
        self._packer = Packer(self._pool, groups, torch.float32, CPU)

    def run(self, rows: Rows, *, draft: bool = False) -> torch.Tensor:
        return self._model.forward(self._packer.pack([rows], draft=draft), self._pool.layers)


def scheduler(path: Path) -> Any:
    """SGLang's, with its workers, model and pools, and nobody to talk to."""
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.plugins import load_plugins
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import PortArgs, prepare_server_args

    load_plugins()
    arguments = [
        *("--model-path", str(path), "--skip-tokenizer-init", "--log-level", "error"),
        *("--context-length", str(CONTEXT), "--max-total-tokens", "1024"),
        *("--max-running-requests", str(MOST)),
        *launch_flags(),
        *cpu_flags(),
        *("--attention-backend", "triton", "--triton-attention-num-kv-splits", "2"),
    ]
    server_args = prepare_server_args(arguments)
    publish(server_args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    return Scheduler(server_args, PortArgs.init_new(server_args))


def sequences() -> list[Sequence]:
    """Of different lengths, each with its tokens in the row of its number."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for row, length in enumerate(PREFIXES):
        prompt = torch.randint(3, COPYING.vocab_size, (length,), generator=generator).tolist()
        request = Request(str(row), tuple(prompt), SamplingParams())
        sequence = Sequence(request=request, arrival=0, seed=0, eos_token_ids=frozenset())
        sequence.row = row
        found.append(sequence)
    return found


def fill(forwards: Any, of: list[Sequence]) -> None:
    """Commits every prompt, token by token."""
    for sequence in of:
        for place, token in enumerate(sequence.tokens):
            sequence.cached = place
            forwards.run(Rows([sequence], torch.tensor([[token]]), causal=True))
        sequence.cached = len(sequence.tokens)


def passes(of: list[Sequence]) -> Iterator[Pass]:
    """Every width, every number of rows, every kind."""
    generator = torch.Generator().manual_seed(2)
    kinds = {
        "draft": (False, True),
        "denoise": (False, False),
        "verify": (True, False),
        "mixed": (None, False),
    }
    for width, count in itertools.product(WIDTHS, range(1, len(of) + 1)):
        for kind, (causal, draft) in kinds.items() if width > 1 else [("plain", (True, False))]:
            flags = torch.arange(count) % 2 == 0 if causal is None else causal
            tokens = torch.randint(3, COPYING.vocab_size, (count, width), generator=generator)
            yield f"{kind}/{width}x{count}", Rows(of[-count:], tokens, flags), draft


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest, over all logits but the mask token's, which are -inf."""
    finite = one.isfinite()
    assert torch.equal(finite, other.isfinite())
    return (one[finite] - other[finite]).abs().max().item()


@torch.no_grad()
def main(path: Path) -> None:
    from replicas.sglang_engine.plugin.forwards import Forwards

    worker = scheduler(path).tp_worker
    table = worker.model_runner.req_to_token_pool.req_to_token
    of = sequences()
    for sequence in of:
        # Scattered, as they come to be in a server; slot 0 is SGLang's.
        table[sequence.row, :CONTEXT] = 1 + sequence.row + len(of) * torch.arange(CONTEXT)
    forwards = Forwards(worker, worker.model_runner.spec_algorithm, max(WIDTHS))
    dense = Dense(path)
    fill(dense, of)
    fill(forwards, of)
    expected = {name: dense.run(rows, draft=draft) for name, rows, draft in passes(of)}
    eager = {name: forwards.run(rows, draft=draft) for name, rows, draft in passes(of)}
    capture, plain = Counting(), forwards.run(Rows(of, torch.tensor([[7]] * len(of)), causal=True))
    forwards.record(capture)
    replayed, replays = {}, []
    for name, rows, draft in reversed(list(passes(of))):  # no two alike follow each other
        replayed[name] = forwards.run(rows, draft=draft).clone()
        replays.append(capture.replays)
    odd = Rows(of, torch.full((len(of), 12), 9), causal=True)
    unrecorded = difference(forwards.run(odd), dense.run(odd))
    before = capture.replays
    # What SGLang does with a plain step's batch: it asks its own runner of graphs.
    rows = Rows(of, torch.tensor([[7]] * len(of)), causal=True)
    through_sglang = Forwards(worker, worker.model_runner.spec_algorithm, max(WIDTHS)).run(rows)
    report = {
        "eager": {n: difference(eager[n], expected[n]) for n in expected},
        "replayed": {n: difference(replayed[n], eager[n]) for n in expected},
        "captures": capture.captures,
        "replays": replays,
        "unrecorded": {"difference": unrecorded, "replays": before - replays[-1]},
        "plain": {
            "difference": difference(through_sglang, plain),
            "replays": capture.replays - before,
        },
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
