"""A forward pass that audits the engine: exact integers in place of a network.

`LedgerForward` takes the place of `Model.forward` (the engine's `forward` argument). It writes
(token, position, kind) where a model writes K/V, and derives every prediction from all that a query
may see: the next token is a hash of the whole context, so one wrong, stale or misplaced entry gives
a wrong token. It also checks what no token would show: slots, positions, masks, and that committed
entries were written by a causal pass. There is no rounding, so there are no ties.

Drafts are right with the probability `skill`, decided by a hash of context and position.
"""

from __future__ import annotations

import numpy as np
import torch

from replicas.torch_engine.model import Batch, Segment

_PRIME = 2**31 - 1
_CAUSAL, _BLOCK = 1.0, 2.0


class LedgerForward:
    def __init__(self, vocab_size: int, mask_token_id: int, skill: float = 0.7) -> None:
        self.vocab_size, self.mask, self.skill = vocab_size, mask_token_id, skill
        self.forwards = 0
        powers = [1]
        for _ in range(4096):
            powers.append(powers[-1] * 48271 % _PRIME)
        self._powers = np.array(powers, dtype=np.int64)

    def reference(self, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
        """The tokens AR gives."""
        return self._continue(self._hash(np.array(prompt)), len(prompt), count)

    def __call__(self, batch: Batch, kv: list[torch.Tensor]) -> torch.Tensor:
        self.forwards += 1
        ledger = kv[0].numpy()
        out = np.zeros((batch.tokens.shape[0], self.vocab_size), dtype=np.float32)
        tokens, positions = batch.tokens.numpy(), batch.positions.numpy()
        slots = batch.slots.numpy()
        assert len(set(slots.tolist())) == len(slots), "two tokens write to one slot"
        for segment in batch.segments:
            for i, row in enumerate(_rows(segment)):
                at = slice(
                    segment.offset + i * segment.width, segment.offset + (i + 1) * segment.width
                )
                self._row(
                    ledger[row * batch.row_length : (row + 1) * batch.row_length],
                    tokens[at], positions[at], slots[at] - row * batch.row_length,
                    _visible(segment, i), out[at],
                )  # fmt: skip
        out[:, self.mask] = -np.inf
        logits = torch.from_numpy(out)
        return logits if batch.logit_index is None else logits[batch.logit_index]

    def _row(self, ledger, tokens, positions, slots, visible, out) -> None:
        width, start = len(tokens), int(positions[0])
        assert (positions == np.arange(start, start + width)).all(), "positions do not ascend"
        assert (slots == positions).all(), "a token is written away from its position"
        causal = width == 1 or visible[0] == start + 1
        assert visible == [start + (i + 1 if causal else width) for i in range(width)], "mask"
        ledger[slots, 0], ledger[slots, 1] = tokens, positions
        ledger[slots, 2] = _CAUSAL if causal else _BLOCK
        seen = ledger[: start + width]
        assert (seen[:, 1] == np.arange(start + width)).all(), "a cached entry is out of place"
        assert (seen[:start, 2] == _CAUSAL).all(), "a cached entry was not written causally"
        context = seen[:, 0].astype(np.int64)
        terms = (context + 1) * self._powers[: len(context)] % _PRIME
        if causal:
            hashes = (int(terms[:start].sum()) + np.cumsum(terms[start:])) % _PRIME
            out[np.arange(width), [self._next(int(h)) for h in hashes]] = 10.0
            return
        # Bidirectional: what will stand at position i, guessed from the prefix and the seed.
        state = int(terms[: start + 1].sum()) % _PRIME
        truth = self._continue(state, start + 1, width - 1)
        for i, token in enumerate(truth, start=1):
            dice = (state + 7919 * i) * 69621 % _PRIME / _PRIME
            guess = token if dice < self.skill else 3 + (token + 1) % (self.vocab_size - 3)
            out[i, guess] = 10.0 if dice < 0.9 * self.skill else 1.0

    def _hash(self, tokens: np.ndarray) -> int:
        return int(((tokens + 1) * self._powers[: len(tokens)] % _PRIME).sum()) % _PRIME

    def _continue(self, state: int, length: int, count: int) -> tuple[int, ...]:
        output = []
        for at in range(length, length + count):
            token = self._next(state)
            output.append(token)
            state = (state + (token + 1) * int(self._powers[at])) % _PRIME
        return tuple(output)

    def _next(self, state: int) -> int:
        """Any token from 2 (end of sequence) on, by a hash."""
        return 2 + (state * 16807 % _PRIME) % (self.vocab_size - 2)


class Reciter:
    """A forward that recites fixed tokens by position, whatever the mode.

    Every draft is right and sure, so block plans run past any end unless the engine cuts there.
    """

    def __init__(self, line: list[int], vocab_size: int, mask_token_id: int) -> None:
        self.line, self.vocab_size, self.mask = torch.tensor(line), vocab_size, mask_token_id

    def __call__(self, batch: Batch, kv: list[torch.Tensor]) -> torch.Tensor:
        places = []
        for segment in batch.segments:
            for i in range(segment.num_rows):
                first = segment.offset + i * segment.width
                positions = batch.positions[first : first + segment.width]
                causal = segment.width == 1 or _visible(segment, i)[0] == positions[0] + 1
                places.append(positions + int(causal))
        target = self.line[torch.cat(places).clamp(max=len(self.line) - 1)]
        logits = 30.0 * torch.nn.functional.one_hot(target, self.vocab_size).float()
        logits[:, self.mask] = -torch.inf
        return logits if batch.logit_index is None else logits[batch.logit_index]


def _rows(segment: Segment) -> list[int]:
    if isinstance(segment.rows, slice):
        return list(range(segment.rows.start, segment.rows.stop))
    return segment.rows.tolist()


def _visible(segment: Segment, row: int) -> list[int]:
    """How many keys each query of a row sees; the mask must hide exactly those behind."""
    if segment.mask is None:
        return [segment.length] * segment.width
    mask = segment.mask[row, 0]
    groups = max(mask.shape[0] // segment.width, 1)
    counts = (mask == 0).sum(dim=1)
    shown = torch.arange(segment.length) < counts[:, None]
    assert ((mask == 0) == shown).all(), "a mask has holes"
    assert (mask[~shown] == -torch.inf).all(), "a mask is neither 0 nor -inf"
    if mask.shape[0] == 1:
        return counts.tolist() * segment.width
    by_group = counts.view(groups, segment.width)
    assert (by_group == by_group[0]).all(), "query heads of one group see different keys"
    return by_group[0].tolist()
