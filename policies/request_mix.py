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
answer over rounds of an answer. That is what a plan yields if it stays, whoever is there by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

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
_BELL = np.exp(-0.5 * ((CHANCES - USUAL) / SPREAD) ** 2) + LEAST
FIRST_WEIGHTS: Floats = _BELL / _BELL.sum()
GUESSED_REQUESTS = 5.0  # what that counts for, so that one of any kind is known when it comes
SURE_REQUESTS, MOST_REQUESTS = 20.0, 200.0
"""Requests that drafted and have ended: after so many it is believed how far requests differ, and
so many are remembered once the traffic has changed; and how many are at most."""
LEAST_ROUNDS = 1e-6  # in an estimate, or nothing would be left of it after a night
AHEAD_S = 2.0
"""How far plans are looked ahead: a plan stays for seconds. Who decodes now counts by how long an
answer takes beside it."""
OTHER_LOAD, OTHER_BY = 2.0, 3
"""Times the requests that there were, or fewer, and by how many."""


def are_others(number: int, before: int) -> bool:
    """Whether most of so many requests must be others than so many were, or most have gone."""
    few, many = sorted((number, before))
    return many >= OTHER_LOAD * few and many - few >= OTHER_BY


class Ratios(NamedTuple):
    """Yields over the measured ones, by block length: of those that decode now, and of those that
    will under a plan that stays."""

    present: Mapping[int, float]
    expected: Mapping[int, float]


class RequestMix:
    """Of one replica. Distributions are arrays over `CHANCES`."""

    def __init__(self) -> None:
        self._ended = np.zeros(len(CHANCES))
        """Requests of late that drafted and have ended."""
        self._weights, self._log_weights = FIRST_WEIGHTS, np.log(FIRST_WEIGHTS)
        """What requests are like."""
        self._measured = np.zeros(len(CHANCES))
        """Rounds that an estimate rests on, and those that none was made of yet."""
        self._new = np.zeros(len(CHANCES))
        self._present: Floats | None = None
        """Share of those that decode."""
        self._tokens = TOKENS

    def expect_answers(self, tokens: float) -> None:
        """How long answers are, on average."""
        tokens = max(1.0, tokens)
        self._tokens = tokens * TOKENS / (tokens + BEYOND)

    def meet(self, decoding: Drafted) -> None:
        """Who decodes now; at least one."""
        chances = self._chances(*decoding)
        self._present = np.add.reduce(chances) / len(chances)

    def count(self, rounds: int) -> None:
        """So many rounds of those met last."""
        if self._present is not None:
            self._new = self._new + rounds * self._present

    def ended(self, requests: Drafted) -> None:
        """Requests have ended. Of one without drafts nothing is learned."""
        tried, accepted = np.asarray(requests.tried), np.asarray(requests.accepted)
        known = tried > 0
        if known.any():
            self._ended = self._ended + np.add.reduce(self._chances(tried[known], accepted[known]))
            self._remember(MOST_REQUESTS)

    def after(self, keep: float) -> None:
        """An estimate was made of what was counted, and of this share of what it rested on."""
        self._measured = keep * self._measured + self._new
        self._new = np.zeros(len(CHANCES))

    def forget(self, share: float) -> None:
        """The traffic has changed: this share of the rounds is dropped, those counted since apart,
        and what requests are like is less certain."""
        self._measured = (1.0 - share) * self._measured
        self._remember(SURE_REQUESTS)

    def ratios(self, prior_rounds: float, answer_s: float) -> Ratios | None:
        """None before anybody was met.

        `prior_rounds`: what the estimate rests on besides rounds, which are taken to be of a plan
        that stays. `answer_s`: how long an answer takes.
        """
        if self._present is None:
            return None
        steady = 1.0 / (1.0 / self._tokens @ self._weights)
        present = self._tokens @ self._present
        other_rounds = max(LEAST_ROUNDS, prior_rounds)
        rounds = self._measured.sum() + other_rounds
        measured = (self._tokens @ self._measured + other_rounds * steady) / rounds
        share = answer_s / (answer_s + AHEAD_S)
        expected = share * present + (1.0 - share) * steady
        # How far requests differ is a guess until some have ended.
        certainty = min(1.0, self._ended.sum() / SURE_REQUESTS)
        return Ratios(
            *(_by_length(1.0 + certainty * (of / measured - 1.0)) for of in (present, expected))
        )

    def _remember(self, most: float) -> None:
        self._ended = self._ended * (most / max(most, self._ended.sum()))
        requests = self._ended + GUESSED_REQUESTS * FIRST_WEIGHTS
        self._weights = requests / requests.sum()
        self._log_weights = np.log(self._weights)

    def _chances(self, tried: Numbers, accepted: Numbers) -> Floats:
        """Of every request, how likely each chance is its own."""
        hits = np.asarray(accepted, dtype=np.float64)
        misses = np.maximum(np.asarray(tried, dtype=np.float64) - hits, 0.0)
        logs = np.multiply.outer(hits, _LOG_ACCEPTED) + np.multiply.outer(misses, _LOG_REJECTED)
        logs += self._log_weights
        likely = np.exp(logs - np.maximum.reduce(logs, axis=1, keepdims=True))
        found: Floats = likely / np.add.reduce(likely, axis=1, keepdims=True)
        return found


def _by_length(ratios: Floats) -> dict[int, float]:
    return dict(zip(BLOCK_LENGTHS, ratios.tolist(), strict=True))
