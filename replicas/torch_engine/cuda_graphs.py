"""CUDA graphs for decode steps: one per shape, replayed instead of launching kernels one by one.

Not run on a GPU yet. What a CPU can check is checked there: with `capture=replay_eagerly` the same
bucketing, padding and buffer copies run around a plain forward, and tests compare the tokens.

A decode batch (one segment, adjacent rows from row 0, every logit wanted) is padded to the next
bucket of rows and of key length and copied into static buffers. Padding rows compute on whatever
the buffers hold and write K/V to the pool's spare row, so no sequence is touched. Anything else
(prefill, mixed plans, positions past the query-scaling step) runs eagerly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from replicas.torch_engine.kv_cache import KVPool
from replicas.torch_engine.model import Batch, Model, Segment

ROW_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
LENGTH_STEP = 256
"""Key lengths are rounded up to a multiple of this; the mask hides the surplus."""

Run = Callable[[], torch.Tensor]
Capture = Callable[[Run], Run]


def capture_cuda_graph(run: Run, pool: Any = None) -> Run:
    """Warms `run` up on a side stream, records it, and returns its replay.

    Graphs with one `pool` (`torch.cuda.graph_pool_handle`) share memory: the next replay may
    overwrite what this one returned.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        output = run()

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


def replay_eagerly(run: Run) -> Run:
    """Stands in for a capture where there is no CUDA."""
    return run


@dataclass(slots=True)
class _Recorded:
    """Static inputs of one captured shape, and its replay."""

    batch: Batch
    run: Run


_Key = tuple[int, int, int, int, int, bool]


class GraphedForward:
    """Callable like `Model.forward`; `max_graphs` bounds the memory that captures take."""

    def __init__(
        self,
        model: Model,
        pool: KVPool,
        *,
        capture: Capture = capture_cuda_graph,
        max_graphs: int = 256,
    ) -> None:
        self._model, self._pool, self._capture = model, pool, capture
        self._max_graphs = max_graphs
        self._recorded: dict[_Key, _Recorded] = {}
        self.replays = 0
        self.eager = 0

    def __call__(self, batch: Batch, kv: list[torch.Tensor]) -> torch.Tensor:
        key = self._key(batch)
        if key is None or (key not in self._recorded and len(self._recorded) >= self._max_graphs):
            self.eager += 1
            return self._model.forward(batch, kv)
        if key not in self._recorded:
            self._recorded[key] = self._record(key, batch, kv)
        self.replays += 1
        recorded = self._recorded[key]
        self._fill(recorded.batch, batch)
        return recorded.run()[: batch.tokens.shape[0]]

    def _key(self, batch: Batch) -> _Key | None:
        """The shape that serves this batch, or None if it must run eagerly."""
        if len(batch.segments) != 1 or batch.logit_index is not None:
            return None
        segment = batch.segments[0]
        if not isinstance(segment.rows, slice) or segment.rows.start != 0:
            return None
        if batch.max_position >= self._model.rope.scaling_starts_at:
            return None  # query scaling adds an operation; rare enough to run eagerly
        rows = next((b for b in ROW_BUCKETS if b >= segment.num_rows), None)
        if rows is None or rows > self._pool.rows_at(batch.row_length):
            return None
        steps = -(-segment.length // LENGTH_STEP) * LENGTH_STEP
        length = min(steps, batch.row_length)
        queries = 1 if segment.mask is None else segment.mask.shape[2]
        return (rows, segment.width, length, queries, batch.row_length, batch.draft)

    def _record(self, key: _Key, like: Batch, kv: list[torch.Tensor]) -> _Recorded:
        rows, width, length, queries, row_length, draft = key
        count, device = rows * width, self._model.device
        mask = torch.full(
            (rows, 1, queries, length), float("-inf"), dtype=self._model.dtype, device=device
        )
        static = Batch(
            tokens=torch.zeros(count, dtype=torch.int64, device=device),
            positions=torch.zeros(count, dtype=torch.int64, device=device),
            slots=torch.full((count,), self._pool.tokens, device=device),
            segments=[Segment(0, rows, width, slice(0, rows), length, mask)],
            max_position=0,
            row_length=row_length,
            draft=draft,
        )
        self._fill(static, like)
        return _Recorded(static, self._capture(lambda: self._model.forward(static, kv)))

    def _fill(self, static: Batch, batch: Batch) -> None:
        """Copies the real rows in; padding rows compute on stale inputs and write to scratch."""
        count = batch.tokens.shape[0]
        static.tokens[:count] = batch.tokens
        static.positions[:count] = batch.positions
        static.slots.fill_(self._pool.tokens)
        static.slots[:count] = batch.slots
        segment, padded = batch.segments[0], static.segments[0]
        assert padded.mask is not None
        rows, length = segment.num_rows, segment.length
        padded.mask[:rows, :, :, :length] = 0.0 if segment.mask is None else segment.mask
        padded.mask[:rows, :, :, length:] = float("-inf")
        padded.mask[rows:, :, :, :1] = 0.0  # one visible key keeps padding rows' softmax finite
