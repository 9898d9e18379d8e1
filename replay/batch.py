"""The decoding sequences of one replica, and what steps of a plan would yield them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from policies.observation import Drafted
from policies.vocabulary import Mode, Plan
from replay.random_pool import Pool
from replay.traffic import Kinds

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class Request:
    """`number` names it; times are -1 until they are known. Of its drafts so many positions were
    `tried`, and `accepted`, when it ended."""

    number: int
    arrived_at: float
    prompt: int
    output: int
    cached: int
    first_at: float = -1.0
    finished_at: float = -1.0
    tried: float = 0.0
    accepted: float = 0.0


class Draw(NamedTuple):
    """Some steps, up to the first in which a sequence finishes.

    `kept` is [step, row], None where every row keeps one token a step, and `tokens` its sum over
    the steps. `finishes`: whether the last step is such a one. `drafts` are the positions of a
    round in self-speculation.
    """

    steps: int
    finishes: bool
    kept: Ints | None = None
    tokens: Ints | None = None
    drafts: int = 0


class Batch:
    """Invariant: every row has at least one token left."""

    def __init__(self, limit: int, kinds: Kinds) -> None:
        self.kinds = kinds
        self.requests: list[Request] = []
        self.context = 0
        """Cached tokens of all rows together."""
        self._remaining = np.zeros(limit, dtype=np.int64)
        self._classes = np.zeros(limit, dtype=np.int64)
        self._tried, self._accepted = np.zeros(limit), np.zeros(limit)

    def __len__(self) -> int:
        return len(self.requests)

    def add(self, request: Request, kind: int) -> None:
        """A sequence that has its first token."""
        row = len(self.requests)
        self.requests.append(request)
        self._remaining[row] = request.output - 1
        self._classes[row] = kind
        self._tried[row] = self._accepted[row] = 0.0
        self.context += request.prompt + 1

    def drafted(self) -> Drafted:
        """What an engine sees of its requests: how the drafts of each have fared."""
        rows = len(self.requests)
        return Drafted(self._tried[:rows], self._accepted[:rows])

    def expected_tokens(self, plan: Plan) -> float:
        """Of one step, by one who knows every sequence."""
        rows = len(self.requests)
        return self.kinds.expected_tokens(plan, self._classes[:rows], self._remaining[:rows])

    def shortest(self) -> int:
        """Tokens that the row with the fewest has left."""
        left: list[int] = self._remaining[: len(self.requests)].tolist()
        return min(left)  # of the few there are; numpy's takes three times as long

    def draw(self, plan: Plan, steps: int, pool: Pool) -> Draw:
        """What at most `steps` steps would yield; changes nothing."""
        if plan.mode is Mode.AR:
            shortest = self.shortest()
            return Draw(min(steps, shortest), shortest <= steps)
        rows, length = len(self.requests), plan.block_length
        classes = self._classes[:rows]
        if plan.mode is Mode.SELF_SPECULATION:
            drawn = pool.exponentials(steps * rows).reshape(steps, rows)
            kept = (drawn * self.kinds.spread[length][classes]).astype(np.int64)
            kept += 1
            np.minimum(kept, length, out=kept)
            return self._until_finish(kept, length - 1)
        drawn = pool.uniforms(steps * rows).reshape(steps, rows)
        kept = (drawn + self.kinds.diffused[length][classes]).astype(np.int64)
        return self._until_finish(kept)

    def _until_finish(self, kept: Ints, drafts: int = 0) -> Draw:
        remaining, tokens = self._remaining[: kept.shape[1]], np.add.reduce(kept)
        if max((tokens - remaining).tolist()) < 0:
            return Draw(len(kept), False, kept, tokens, drafts)
        beyond = np.add.accumulate(kept) - remaining
        last = int((beyond.max(axis=1) >= 0).argmax())
        kept = kept[: last + 1]
        kept[last] -= np.maximum(beyond[last], 0)  # what was verified behind an end
        return Draw(last + 1, True, kept, np.add.reduce(kept), drafts)

    def take(self, draw: Draw, steps: int) -> tuple[int, list[Request]]:
        """Applies the first `steps` steps of a draw; returns their tokens and who has finished."""
        rows = len(self.requests)
        remaining = self._remaining[:rows]
        if draw.kept is None or draw.tokens is None:
            remaining -= steps
            tokens = steps * rows
        else:
            by_row = draw.tokens if steps == draw.steps else np.add.reduce(draw.kept[:steps])
            remaining -= by_row
            tokens = sum(by_row.tolist())
            if draw.drafts:
                self._count_drafts(draw.kept[:steps], by_row, draw.drafts)
        self.context += tokens
        if steps < draw.steps or not draw.finishes:
            return tokens, []
        rows_done = [row for row, left in enumerate(remaining.tolist()) if left <= 0]
        return tokens, [self._remove(row) for row in reversed(rows_done)]

    def _count_drafts(self, kept: Ints, by_row: Ints, drafts: int) -> None:
        rows = len(by_row)
        self._accepted[:rows] += by_row - len(kept)
        # Each round ends with a position that was tried in vain, but one accepted to its end, and
        # one that the answer's end cut off.
        in_vain = np.add.reduce(kept <= drafts)
        in_vain -= (self._remaining[:rows] <= 0) & (kept[-1] <= drafts)
        self._tried[:rows] += by_row - len(kept) + in_vain

    def _remove(self, row: int) -> Request:
        """From the last row to the first, so that the one that moves up is never to be removed."""
        request, last = self.requests[row], len(self.requests) - 1
        request.tried, request.accepted = float(self._tried[row]), float(self._accepted[row])
        for column in (self._remaining, self._classes, self._tried, self._accepted):
            column[row] = column[last]
        self.requests[row] = self.requests[last]
        self.requests.pop()
        self.context -= request.prompt + request.output
        return request
