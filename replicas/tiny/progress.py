"""What the model gets right per task while it trains, and how that sets the mix of tasks."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from replicas.tiny.batches import Batch, Documents, collate
from replicas.tiny.tasks import OPEN_ENDED, TASKS, held_out_set
from replicas.tiny.tokenizer import MASK, token_id
from replicas.tiny.train_model import TrainModel

OPEN_ENDED_SHARE = 0.25  # of an open-ended task, relative to all determined tasks together

Counts = list[tuple[int, int]]  # per task: right, total
Forward = Callable[[Tensor, Tensor, int, Tensor, Tensor], Tensor]


@dataclass
class Progress:
    """Moving averages per task of what the model gets right on text it has not seen before."""

    exact: list[float] = field(default_factory=lambda: [0.0] * len(TASKS))
    drafted: list[float] = field(default_factory=lambda: [0.0] * len(TASKS))

    def update(self, exact: Counts, drafted: Counts) -> None:
        for averages, counts in ((self.exact, exact), (self.drafted, drafted)):
            for task, (right, total) in enumerate(counts):
                if total:
                    averages[task] += min(1.0, 0.02 * total) * (right / total - averages[task])

    def weights(self) -> list[float]:
        """Sampling weights: up to 20 times more of a task with errors left.

        An open-ended task never runs out of errors, so it gets a fixed share.
        """
        weights = [
            min(5.0, 0.25 + 6.0 * (1 - exact) + 6.0 * (1 - drafted))
            for exact, drafted in zip(self.exact, self.drafted, strict=True)
        ]
        determined = sum(
            w for name, w in zip(TASKS, weights, strict=True) if name not in OPEN_ENDED
        )
        return [
            OPEN_ENDED_SHARE * determined if name in OPEN_ENDED else weight
            for name, weight in zip(TASKS, weights, strict=True)
        ]


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


def evaluate_batch(model: TrainModel, batch: Batch, forward: Forward | None = None) -> Outcome:
    """Both losses; `forward` may be the compiled model.

    Greedy AR decodes an answer exactly iff every argmax under the answer is right.
    """
    clean = batch.ar_at.shape[1]
    run: Forward = model if forward is None else forward
    hidden = run(batch.tokens, batch.positions, clean, batch.clean_bias, batch.noisy_bias)
    chosen = torch.cat([hidden[:, :clean][batch.ar_at], hidden[:, clean:][batch.masked]])
    logits = model.logits(chosen)
    targets = torch.cat([batch.ar_targets, batch.noisy_targets])
    loss = F.cross_entropy(logits, targets, reduction="none")
    right = logits.detach().argmax(-1) == targets
    split = len(batch.ar_targets)
    weights = batch.noisy_weights
    wrong = torch.zeros(len(batch.answer_task), dtype=torch.long)
    wrong.index_add_(0, batch.ar_answer, (~right[:split]).long())
    drafted = batch.draft_task >= 0
    return Outcome(
        ar=loss[:split].mean(),
        diffusion=(loss[split:] * weights).sum() / weights.sum(),
        exact=_tally(batch.answer_task, wrong == 0),
        drafted=_tally(batch.draft_task[drafted], right[split:][drafted]),
    )


def held_out_batches(tokenizer: Tokenizer, per_task: int = 12) -> list[Batch]:
    """A few held-out prompts of each task, one per row, always the same, with blocks of 8."""
    documents = Documents(tokenizer, seed=0)
    noise = torch.Generator().manual_seed(0)
    mask_id = token_id(tokenizer, MASK)
    rows = [[documents.conversation([s])] for t in TASKS for s in held_out_set(t, per_task)]
    return [collate(rows[i : i + 16], 8, mask_id, noise) for i in range(0, len(rows), 16)]


def held_out_report(model: TrainModel, batches: list[Batch]) -> str:
    """Per task: prompts exact in AR, and the share of tokens right in all-mask blocks."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outcomes = [evaluate_batch(model, batch) for batch in batches]
    parts = []
    for task, name in enumerate(TASKS):
        right, total = (sum(o.exact[task][i] for o in outcomes) for i in (0, 1))
        good, drafts = (sum(o.drafted[task][i] for o in outcomes) for i in (0, 1))
        exact = "" if name in OPEN_ENDED else f" {right}/{total}"
        parts.append(f"{name}{exact} draft {good / max(drafts, 1):.2f}")
    return "held-out AR exact, draft accuracy: " + " | ".join(parts)
