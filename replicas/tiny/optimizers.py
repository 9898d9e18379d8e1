"""Muon for the matrices, AdamW for the rest, shared out over worker processes."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from replicas.tiny.train_model import TrainModel

MUON_RATE, ADAM_RATE = 0.02, 3e-3


class Optimizers:
    """Gradients are averaged; each worker runs Muon on its share and sends the result around.

    Muon's orthogonalisation is the costly part of a step at this size, so no worker repeats it.
    """

    def __init__(self, model: TrainModel, rank: int, workers: int) -> None:
        self.rank = rank
        matrices = [p for layer in model.layers for p in layer.parameters() if p.dim() == 2]
        taken = {id(p) for p in matrices}
        self.others = [p for p in model.parameters() if id(p) not in taken]
        self.shards = [matrices[w::workers] for w in range(workers)]
        self.parameters = [*matrices, *self.others]
        self.muon = torch.optim.Muon(
            self.shards[rank],
            lr=MUON_RATE,
            momentum=0.95,
            weight_decay=0.01,
            adjust_lr_fn="original",
        )
        self.adam = torch.optim.AdamW(
            self.others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0
        )

    def step(self, scale: float) -> None:
        """Average gradients, step with learning rates times `scale`, exchange the matrices."""
        self._average_gradients()
        nn.utils.clip_grad_norm_(self.others, 1.0)
        for optimizer, rate in ((self.muon, MUON_RATE), (self.adam, ADAM_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()  # type: ignore[no-untyped-call]
        self._exchange_matrices()

    def _average_gradients(self) -> None:
        if len(self.shards) == 1:
            return
        grads = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= len(self.shards)
        for grad, mean in zip(grads, _split_like(flat, grads), strict=True):
            grad.copy_(mean)

    def _exchange_matrices(self) -> None:
        if len(self.shards) == 1:
            return
        for owner, shard in enumerate(self.shards):
            flat = torch.cat([p.data.flatten() for p in shard])
            dist.broadcast(flat, owner)
            if owner != self.rank:
                for p, value in zip(shard, _split_like(flat, shard), strict=True):
                    p.data.copy_(value)


def _split_like(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    pieces = torch.split(flat, [p.numel() for p in like])
    return [piece.view_as(p) for piece, p in zip(pieces, like, strict=True)]
