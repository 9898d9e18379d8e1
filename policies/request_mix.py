"""Whose drafts are accepted: what rounds have yielded is that of the requests that ran.

Drafts of some requests are accepted far more often than those of others, and easy requests leave
sooner. So whoever decodes a moment after a load has fallen is mostly hard, whoever has just come is
as requests are, and while a plan stays the hard ones are over-represented, the more so the longer
its block is. A rate learned from rounds belongs to their mix, and is to be carried over to the mix
that will run:

    G(q, L) = 1 + q + ... + q^(L-1)     tokens a round, every draft accepted with one chance q
    yield   = measured yield * G of who will run / G of who was measured

where the last round of an answer counts up to its end: short answers differ less.

Every request's chance is judged by its own drafts, and by what requests are like (empirical Bayes
over a grid of chances). Of who will run, those that decode now count for as long as answers last;
after them come requests as they are, each for as long as it takes: the harmonic mean, tokens of an
answer over rounds of an answer. That is what a plan yields if it stays, whoever is there by chance,
and a plan is not changed for them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from policies.observation import Drafted, Numbers
from policies.vocabulary import BLOCK_LENGTHS

Floats = npt.NDArray[np.float64]

CHANCES = np.array([0.1, 0.3, 0.5, 0.65, 0.75, 0.83, 0.9, 0.95, 0.98])
_LOG_ACCEPTED, _LOG_REJECTED = np.log(CHANCES), np.log1p(-CHANCES)
_POWERS = CHANCES ** np.arange(BLOCK_LENGTHS[-1])[:, None]  # chance that so many are accepted
_ODD = np.arange(1, 2 * BLOCK_LENGTHS[-1], 2)[:, None]
TOKENS = np.array([_POWERS[:length].sum(axis=0) for length in BLOCK_LENGTHS])
"""G of answers without end, by block length and chance."""
_SQUARES = np.array([(_ODD * _POWERS)[:length].sum(axis=0) for length in BLOCK_LENGTHS])
BEYOND = (_SQUARES / TOKENS - 1.0) / 2.0
"""Tokens that the last round of an answer yields behind its end (renewal theory: the length left of
an interval that is met by chance)."""

USUAL, SPREAD, LEAST = 0.78, 0.15, 0.05
"""What requests are like at first: a bell around the usual chance, and some of every kind."""
PRIOR_REQUESTS, MOST_REQUESTS = 20.0, 200.0
"""What that counts for, and how many requests that have ended are remembered."""
AHEAD_S = 2.0
"""How far plans are looked ahead: a plan stays for seconds. Who decodes now counts by how long an
answer takes beside it."""


class RequestMix:
    """Of one replica. Means over requests are arrays by block length, in order."""

    def __init__(self) -> None:
        self._requests = PRIOR_REQUESTS * _first_weights()
        """How many of late had each chance, the first guess included."""
        self._measured = np.zeros(len(BLOCK_LENGTHS))
        self._rounds = 0.0
        """Sum of G over rounds, as they fade, and how many they are."""
        self._present: Floats | None = None
        """Of those that decode."""
        self._tokens = TOKENS

    def expect_answers(self, tokens: float) -> None:
        """How long answers are, on average."""
        self._tokens = tokens * TOKENS / (tokens + BEYOND)

    def meet(self, decoding: Drafted) -> None:
        """Who decodes now; at least one."""
        present: Floats = self._tokens @ self._chances(*decoding).mean(axis=0)
        self._present = present

    def count(self, rounds: int) -> None:
        """So many rounds of those met last."""
        if self._present is not None:
            self._measured += rounds * self._present
            self._rounds += rounds

    def ended(self, requests: Drafted) -> None:
        """Requests have ended. Of one without drafts nothing is learned."""
        tried, accepted = np.asarray(requests.tried), np.asarray(requests.accepted)
        known = tried > 0
        if not known.any():
            return
        found = self._chances(tried[known], accepted[known]).sum(axis=0)
        self._requests = self._requests + found
        self._requests *= min(1.0, MOST_REQUESTS / self._requests.sum())

    def fade(self, keep: float) -> None:
        """Keeps this share of the rounds, as the estimate does that was learned from them."""
        self._measured *= keep
        self._rounds *= keep

    def forget(self, share: float) -> None:
        """The traffic has changed."""
        self.fade(1.0 - share)
        self._requests *= 1.0 - share

    def ratios(self, prior_rounds: float, answer_s: float) -> Mapping[int, float]:
        """What to expect over what was measured, by block length; empty before anybody was met.

        `prior_rounds`: what the estimate rests on besides rounds, which are taken to be of a plan
        that stays. `answer_s`: how long an answer takes.
        """
        if self._present is None:
            return {}
        steady = 1.0 / (self._weights() / self._tokens).sum(axis=1)
        share = answer_s / (answer_s + AHEAD_S)
        expected = share * self._present + (1.0 - share) * steady
        measured = (self._measured + prior_rounds * steady) / (self._rounds + prior_rounds)
        return dict(zip(BLOCK_LENGTHS, (expected / measured).tolist(), strict=True))

    def _weights(self) -> Floats:
        weights: Floats = self._requests / self._requests.sum()
        return weights

    def _chances(self, tried: Numbers, accepted: Numbers) -> Floats:
        """Of every request, how likely each chance is its own."""
        hits = np.asarray(accepted, dtype=np.float64)
        misses = np.maximum(np.asarray(tried, dtype=np.float64) - hits, 0.0)
        logs = np.multiply.outer(hits, _LOG_ACCEPTED) + np.multiply.outer(misses, _LOG_REJECTED)
        logs += np.log(self._weights())
        likely = np.exp(logs - logs.max(axis=1, keepdims=True))
        found: Floats = likely / likely.sum(axis=1, keepdims=True)
        return found


def _first_weights() -> Floats:
    weights = np.exp(-0.5 * ((CHANCES - USUAL) / SPREAD) ** 2) + LEAST
    found: Floats = weights / weights.sum()
    return found
