"""Train the demo model: `python -m replicas.tiny.train --out DIR --minutes 36`.

One worker process per core, one thread each; gradients are averaged over gloo. The minutes are CPU
minutes of one worker: wall time on an idle machine, and a busy one takes longer for the same model.
CPU only.
"""

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from replicas.tiny.batches import Batches, Documents
from replicas.tiny.checkpoint import load_weights, save_checkpoint
from replicas.tiny.optimizers import Optimizers
from replicas.tiny.progress import (
    Forward,
    Outcome,
    Progress,
    evaluate_batch,
    held_out_batches,
    held_out_report,
)
from replicas.tiny.tasks import TASKS
from replicas.tiny.tokenizer import build_tokenizer
from replicas.tiny.train_model import Shape, TrainModel

ROWS = 16  # per worker and step
BLOCKS = (8, 16, 32, 8, 16, 4)  # the block length of the noisy copy, by step
PRINT_EVERY_STEPS = 25
CHECK_EVERY_MINUTES = 4.0


@dataclass(frozen=True)
class Schedule:
    """Learning rate and loss weight over the share of the time that is `done`.

    A continuation (`continued`) starts at `peak` and falls to 0 at once; a run from scratch holds
    its rate for 40 % of the time first.
    """

    peak: float
    continued: bool

    def rate(self, done: float, step: int) -> float:
        hold = 0.0 if self.continued else 0.4
        return self.peak * min(1.0, (step + 1) / 40) * min(1.0, (1 - done) / (1 - hold))

    def diffusion_weight(self, done: float) -> float:
        """0.3 while the copy circuits form, 1.2 from 60 % on."""
        return 1.2 if self.continued else 0.3 + 0.9 * min(1.0, max(0.0, (done - 0.1) / 0.5))


class Worker:
    """One training process. Rank 0 also reports and writes checkpoints."""

    def __init__(self, rank: int, args: argparse.Namespace) -> None:
        self.rank, self.args = rank, args
        self.schedule = Schedule(args.peak, continued=args.start is not None)
        self.tokenizer = build_tokenizer()
        shape = Shape(vocab=self.tokenizer.get_vocab_size(), layers=args.layers)
        self.model = TrainModel(shape)
        if args.start:
            load_weights(self.model, args.start)
        self.forward: Forward = torch.compile(self.model)
        # Workers draw different documents.
        seed = 1000 + 100 * args.seed + rank
        self.documents = Documents(self.tokenizer, seed)
        self.batches = Batches(self.documents, ROWS, seed)
        self.optimizers = Optimizers(self.model, rank, args.workers)
        self.progress = Progress()
        self.checks = held_out_batches(self.tokenizer) if rank == 0 else []

    def run(self) -> None:
        begin = time.monotonic()
        used = checked = time.process_time()
        step = tokens = 0
        recent: list[tuple[float, float]] = []
        while (done := self._done(time.process_time() - used)) < 1:
            outcome, size = self._step(step, done)
            step += 1
            tokens += size * self.args.workers
            recent.append((outcome.ar.item(), outcome.diffusion.item()))
            if self.rank:
                continue
            now = time.process_time()
            if step % PRINT_EVERY_STEPS == 0:
                ar, diffusion = (sum(column) / len(recent) for column in zip(*recent, strict=True))
                recent.clear()
                print(
                    f"step {step} minute {(now - used) / 60:.2f} ar {ar:.4f} diffusion "
                    f"{diffusion:.4f} tokens {tokens} ({tokens / (now - used):.0f}/s)",
                    flush=True,
                )
            if now - checked > CHECK_EVERY_MINUTES * 60:
                checked = now
                self._check()
        if self.rank == 0:
            self._check()
            cpu, wall = (time.process_time() - used) / 60, (time.monotonic() - begin) / 60
            print(
                f"done: {step} steps, {tokens} tokens, {cpu:.1f} CPU minutes a worker, "
                f"{wall:.1f} minutes",
                flush=True,
            )

    def _done(self, used: float) -> float:
        """The share of the time that is used; rank 0's clock, so that all stop together."""
        clock = torch.tensor([used / 60 / self.args.minutes])
        if self.args.workers > 1:
            dist.broadcast(clock, 0)
        return float(clock)

    def _step(self, step: int, done: float) -> tuple[Outcome, int]:
        batch = self.batches.next(BLOCKS[step % len(BLOCKS)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outcome = evaluate_batch(self.model, batch, self.forward)
        self.model.zero_grad()
        loss = outcome.ar + self.schedule.diffusion_weight(done) * outcome.diffusion
        torch.autograd.backward(loss)
        self.optimizers.step(self.schedule.rate(done, step))
        self.progress.update(outcome.exact, outcome.drafted)
        self.documents.weights = self.progress.weights()
        return outcome, batch.clean_tokens

    def _check(self) -> None:
        print(held_out_report(self.model, self.checks), flush=True)
        mix = zip(TASKS, self.documents.weights, strict=True)
        print("weights: " + " ".join(f"{task} {weight:.2f}" for task, weight in mix), flush=True)
        save_checkpoint(self.model, self.tokenizer, self.args.out)


def _work(rank: int, args: argparse.Namespace, rendezvous: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.workers > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=args.workers
        )
    Worker(rank, args).run()
    if args.workers > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--minutes", type=float, default=36.0, help="CPU minutes per worker")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    parser.add_argument("--seed", type=int, default=0, help="a continuation needs another one")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--start", type=Path, help="continue from this checkpoint folder")
    parser.add_argument("--peak", type=float, default=1.0, help="factor on both learning rates")
    args = parser.parse_args()
    # Keep freed memory: by default glibc returns every large activation to the system.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**31))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**33))
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = os.path.join(folder, "rendezvous")
        start_processes(  # type: ignore[no-untyped-call]
            _work, args=(args, rendezvous), nprocs=args.workers
        )


if __name__ == "__main__":
    main()
