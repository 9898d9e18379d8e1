"""Train the demo model: `python -m replicas.tiny.train --out DIR --minutes 35`.

One worker process per core, one thread each; gradients are averaged over gloo. Muon moves the
matrices, AdamW the embedding and the norms. The schedule runs on wall time, so a slower machine
makes fewer steps and a worse model; it does not take longer.
"""

import argparse
import os
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from replicas.tiny.batches import Batch, Batches, Documents, collate
from replicas.tiny.checkpoint import save_checkpoint
from replicas.tiny.tasks import OPEN_ENDED, TASKS, held_out_set
from replicas.tiny.tokenizer import MASK, build_tokenizer
from replicas.tiny.train_model import Shape, TrainModel

ROWS = 16  # per worker and step
BLOCKS = (8, 16, 32, 8, 16, 4)  # the block length of the noisy copy, by step
MUON_RATE, ADAM_RATE = 0.02, 3e-3
CHECK_EVERY_MINUTES = 4.0


@dataclass
class Progress:
    """Moving averages per task of what the model gets right on text it has not seen before."""

    exact: list[float] = field(default_factory=lambda: [0.0] * len(TASKS))
    drafted: list[float] = field(default_factory=lambda: [0.0] * len(TASKS))

    def update(self, exact: "Counts", drafted: "Counts") -> None:
        for averages, counts in ((self.exact, exact), (self.drafted, drafted)):
            for task, (right, total) in enumerate(counts):
                if total:
                    averages[task] += min(1.0, 0.02 * total) * (right / total - averages[task])

    def weights(self) -> list[float]:
        """Sampling weights: more of a task that is not learned yet; half the mean of open ones."""
        weights = [
            0.5 + 1.0 * (1 - exact) + 4.0 * (1 - drafted)
            for exact, drafted in zip(self.exact, self.drafted, strict=True)
        ]
        half = sum(weights) / len(weights) / 2
        return [
            half if name in OPEN_ENDED else weight
            for name, weight in zip(TASKS, weights, strict=True)
        ]


Counts = list[tuple[int, int]]  # per task: right, total


def _tally(task: Tensor, right: Tensor) -> Counts:
    total = torch.bincount(task, minlength=len(TASKS)).tolist()
    good = torch.bincount(task[right], minlength=len(TASKS)).tolist()
    return list(zip(good, total, strict=True))


@dataclass
class Outcome:
    """Losses of one batch, whole answers right in AR, and tokens right in all-mask blocks."""

    ar: Tensor
    diffusion: Tensor
    exact: Counts
    drafted: Counts


def evaluate_batch(model: nn.Module, batch: Batch) -> Outcome:
    """Both losses. Greedy AR decodes an answer exactly iff every argmax under it is right."""
    clean = batch.ar_at.shape[1]
    hidden = model(batch.tokens, batch.positions, clean, batch.clean_bias, batch.noisy_bias)
    chosen = torch.cat([hidden[:, :clean][batch.ar_at], hidden[:, clean:][batch.masked]])
    network = model.module if hasattr(model, "module") else model
    logits = network.logits(chosen)
    targets = torch.cat([batch.ar_targets, batch.noisy_targets])
    loss = F.cross_entropy(logits, targets, reduction="none")
    right = logits.detach().argmax(-1) == targets
    split = len(batch.ar_targets)
    weights = batch.noisy_weights
    wrong = torch.zeros(len(batch.answer_task), dtype=torch.long)
    wrong.index_add_(0, batch.ar_answer.cpu(), (~right[:split]).long().cpu())
    draft = batch.draft_task.cpu()
    return Outcome(
        ar=loss[:split].mean(),
        diffusion=(loss[split:] * weights).sum() / weights.sum(),
        exact=_tally(batch.answer_task.cpu(), wrong == 0),
        drafted=_tally(draft[draft >= 0], right[split:].cpu()[draft >= 0]),
    )


def held_out_batches(tokenizer: Tokenizer, per_task: int = 12) -> list[Batch]:
    """A few held-out prompts of each task, one per row, always the same, with blocks of 8."""
    documents = Documents(tokenizer, seed=0)
    noise = torch.Generator().manual_seed(0)
    mask_id = tokenizer.token_to_id(MASK)
    rows = [[documents.conversation([s])] for t in TASKS for s in held_out_set(t, per_task)]
    return [collate(rows[i : i + 16], 8, mask_id, noise) for i in range(0, len(rows), 16)]


def report_held_out(model: nn.Module, batches: list[Batch]) -> str:
    with torch.no_grad():
        outcomes = [evaluate_batch(model, batch) for batch in batches]
    parts = []
    for task, name in enumerate(TASKS):
        right, total = (sum(o.exact[task][i] for o in outcomes) for i in (0, 1))
        good, drafts = (sum(o.drafted[task][i] for o in outcomes) for i in (0, 1))
        parts.append(f"{name} {right}/{total} draft {good / max(drafts, 1):.2f}")
    return "held-out AR exact, draft accuracy: " + " | ".join(parts)


class Optimizers:
    """Muon for the matrices, each worker owning a share of them; AdamW for the rest."""

    def __init__(self, model: TrainModel, rank: int, workers: int) -> None:
        self.rank = rank
        matrices = [p for layer in model.layers for p in layer.parameters() if p.dim() == 2]
        taken = {id(p) for p in matrices}
        self.others = [p for p in model.parameters() if id(p) not in taken]
        self.shards = [matrices[w::workers] for w in range(workers)]
        self.parameters = [*matrices, *self.others]
        self.muon = torch.optim.Muon(
            self.shards[rank], lr=MUON_RATE, momentum=0.95, weight_decay=0.01,
            adjust_lr_fn="original",
        )  # fmt: skip
        self.adam = torch.optim.AdamW(
            self.others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0
        )

    def step(self, scale: float) -> None:
        """Average gradients, step with learning rates times `scale`, exchange the matrices."""
        if len(self.shards) > 1:
            flat = torch.cat([p.grad.flatten() for p in self.parameters])
            dist.all_reduce(flat)
            flat /= len(self.shards)
            for p, grad in zip(self.parameters, _split_like(flat, self.parameters), strict=True):
                p.grad.copy_(grad)
        nn.utils.clip_grad_norm_(self.others, 1.0)
        for optimizer, rate in ((self.muon, MUON_RATE), (self.adam, ADAM_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
        if len(self.shards) > 1:
            for owner, shard in enumerate(self.shards):
                flat = torch.cat([p.data.flatten() for p in shard])
                dist.broadcast(flat, owner)
                if owner != self.rank:
                    for p, value in zip(shard, _split_like(flat, shard), strict=True):
                        p.data.copy_(value)


def _split_like(flat: Tensor, like: list[nn.Parameter]) -> list[Tensor]:
    pieces = flat.split([p.numel() for p in like])
    return [piece.view_as(p) for piece, p in zip(pieces, like, strict=True)]


def rate_scale(done: float, step: int) -> float:
    """Learning-rate factor: 40 steps of warm-up, constant to 40 % of the time, linear to 0."""
    return min(1.0, (step + 1) / 40) * min(1.0, (1 - done) / 0.6)


def diffusion_weight(done: float) -> float:
    """Weight of the diffusion loss: 0.3 while the copy circuits form, 1.2 from 60 % on."""
    return 0.3 + 0.9 * min(1.0, max(0.0, (done - 0.1) / 0.5))


def _work(rank: int, args: argparse.Namespace, rendezvous: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    if args.workers > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=args.workers
        )
    tokenizer = build_tokenizer()
    model = TrainModel(Shape(vocab=tokenizer.get_vocab_size(), layers=args.layers))
    documents = Documents(tokenizer, seed=1000 + rank)
    batches = Batches(documents, ROWS, seed=1000 + rank)
    optimizers = Optimizers(model, rank, args.workers)
    progress = Progress()
    checks = held_out_batches(tokenizer) if rank == 0 else []
    forward = torch.compile(model) if args.compile else model
    if rank == 0:
        size = sum(p.numel() for p in model.parameters())
        print(f"parameters {size / 1e6:.2f} M, vocabulary {model.shape.vocab}", flush=True)
    begin = checked = time.monotonic()
    step = tokens = 0
    seen = torch.zeros(2)
    clock = torch.zeros(1)
    while True:
        clock[0] = (time.monotonic() - begin) / 60 / args.minutes
        if args.workers > 1:
            dist.broadcast(clock, 0)
        done = float(clock)
        if done >= 1:
            break
        batch = batches.next(BLOCKS[step % len(BLOCKS)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outcome = evaluate_batch(forward, batch)
        model.zero_grad()
        (outcome.ar + diffusion_weight(done) * outcome.diffusion).backward()
        optimizers.step(rate_scale(done, step))
        progress.update(outcome.exact, outcome.drafted)
        documents.weights = progress.weights()
        step += 1
        tokens += batch.clean_tokens * args.workers
        seen += torch.stack([outcome.ar.detach(), outcome.diffusion.detach()])
        if rank:
            continue
        if step % 25 == 0:
            elapsed = time.monotonic() - begin
            print(
                f"step {step} minute {elapsed / 60:.2f} ar {seen[0] / 25:.4f} "
                f"diffusion {seen[1] / 25:.4f} tokens {tokens} ({tokens / elapsed:.0f}/s)",
                flush=True,
            )
            seen.zero_()
        if time.monotonic() - checked > CHECK_EVERY_MINUTES * 60:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                print(report_held_out(model, checks), flush=True)
            print("weights", [round(w, 2) for w in documents.weights], flush=True)
            save_checkpoint(model, tokenizer, args.out)
            checked = time.monotonic()
    if rank == 0:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            print(report_held_out(model, checks), flush=True)
        save_checkpoint(model, tokenizer, args.out)
        minutes = (time.monotonic() - begin) / 60
        print(f"done: {step} steps, {tokens} tokens, {minutes:.1f} minutes", flush=True)
    if args.workers > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--minutes", type=float, default=35.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    # Keep freed memory: by default glibc returns every large activation to the system.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**31))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**33))
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = os.path.join(folder, "rendezvous")
        mp.start_processes(_work, args=(args, rendezvous), nprocs=args.workers)


if __name__ == "__main__":
    main()
