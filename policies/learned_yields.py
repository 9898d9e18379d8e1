"""What steps of a plan yield, learned by a replica as it goes.

Every round says how far its draft was accepted (`acceptance.py`); a test notices that the traffic
has changed (`change_detector.py`); and what was measured of the requests that ran is carried over
to those that will (`request_mix.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from policies.acceptance import HALF_LIFE_S, PRIOR_ROUNDS, Acceptance, Yields
from policies.change_detector import ChangeDetector
from policies.observation import Drafted, StepObservation
from policies.request_mix import RequestMix
from policies.vocabulary import Mode
from policies.worth import Worth

ALARM_HALF_LIFE_S, ALARM_LASTS_S = 1.0, 3.0
OUTDATED_S = 15.0  # after an alarm: a controller may send what it knew before
ALARM_FORGETS = 0.9
"""Share of the evidence dropped when the traffic has changed, and how fast what follows counts."""
DIFFUSION_ROUNDS = 50.0  # rows in steps of diffusion after which half of a new ratio is believed
REFRESH_S = 0.25  # between two revisions of the estimates; a step only counts
LONGEST_ANSWER_S = 1e6  # for what cannot be


class LearnedYields:
    """Of one replica. `expected` is what a plan will yield, `present` what it would yield those
    that decode now. Time is an argument."""

    def __init__(self, worth: Worth, now: float) -> None:
        self.acceptance = Acceptance(worth.chances, diffusion=worth.diffusion)
        self.expected = self.present = self._measured = self.acceptance.yields()
        self._learns = worth.learns
        self._mix = RequestMix()
        self._detector = ChangeDetector()
        self._alarmed_at = -math.inf
        self._revised_at = now
        self._rounds: dict[int, list[float]] = {}
        self._kept, self._row_s = 0, 0.0
        """Tokens, and seconds summed over the rows that took them, since the last revision."""
        self._diffused: dict[int, list[float]] = {}
        self._answer_s = 0.0

    @property
    def is_unsettled(self) -> bool:
        """Whether the traffic has just changed, or seems to."""
        return self.is_relearning or (self._learns and self._detector.is_suspicious)

    @property
    def is_relearning(self) -> bool:
        """Whether the traffic has just changed, so that acceptance is little known."""
        return self._revised_at < self._alarmed_at + ALARM_LASTS_S

    def adopt(self, worth: Worth) -> None:
        """Takes what a controller knows for what there is besides the evidence."""
        # A controller that has not seen the traffic change must not bring back what was forgotten.
        is_outdated = self._revised_at < self._alarmed_at + OUTDATED_S
        rounds = self.acceptance.prior_rounds if is_outdated else PRIOR_ROUNDS
        self.acceptance = self.acceptance.with_prior(worth.chances, rounds)
        self._learns = worth.learns
        self._measured = self.acceptance.yields()
        self._expect()

    def observe(self, step: StepObservation) -> None:
        """Counts one step."""
        if step.plan.mode is Mode.SELF_SPECULATION:
            self._count_rounds(step)
        elif step.plan.mode is Mode.DIFFUSION:
            sums = self._diffused.setdefault(step.plan.block_length, [0.0, 0.0])
            sums[0] += step.rows
            sums[1] += step.tokens
        if len(step.ended.tried):
            self._mix.ended(step.ended)
        self._kept += step.tokens
        if 0.0 < step.seconds < math.inf:
            self._row_s += step.seconds * step.sequences

    def _count_rounds(self, step: StepObservation) -> None:
        length = step.plan.block_length
        counts = self._rounds.setdefault(length, [0.0] * (length + 1))
        for kept in step.yields:
            counts[min(kept, length)] += 1.0
        for kept, rows in enumerate(step.counts):
            if rows:  # few are
                counts[min(kept, length)] += rows
        if self._learns:
            self._mix.count(step.rows)

    def meet(self, decoding: Drafted, *, at_once: bool = True) -> None:
        """Who decodes now; `expected` follows, `at_once` or with the next revision."""
        self._mix.meet(decoding)
        if at_once:
            self._expect()

    def revise(self, now: float, tokens_per_answer: float) -> None:
        """Brings the estimates up to date with what was counted."""
        elapsed_s, self._revised_at = max(0.0, now - self._revised_at), now
        self._revise_acceptance(elapsed_s, now, tokens_per_answer)
        self._revise_diffusion()
        self._expect()

    def _revise_acceptance(self, elapsed_s: float, now: float, tokens_per_answer: float) -> None:
        kept, row_s, self._kept, self._row_s = self._kept, self._row_s, 0, 0.0
        if not self._learns:
            self._rounds.clear()
            return
        self._mix.expect_answers(tokens_per_answer)
        if kept:
            self._answer_s = min(LONGEST_ANSWER_S, tokens_per_answer * row_s / kept)
        # They are over before what is learned of them is of use.
        are_short = self._answer_s < REFRESH_S
        if self._detector.update(self._rounds, self._measured, are_short=are_short):
            self._alarmed_at = now
            self.acceptance = self.acceptance.forgetting(ALARM_FORGETS)
            self._mix.forget(ALARM_FORGETS)
        half_life_s = ALARM_HALF_LIFE_S if self.is_relearning else HALF_LIFE_S
        self.acceptance = self.acceptance.after(self._rounds, elapsed_s, half_life_s)
        self._mix.after(0.5 ** (elapsed_s / half_life_s))
        self._measured = self.acceptance.yields()
        self._rounds = {}

    def _revise_diffusion(self) -> None:
        for length, (rows, tokens) in self._diffused.items():
            if not self._learns or rows <= 0.0:
                continue
            drafts = max(0.1, self.present.blocks[length] - 1.0)
            ratio = (tokens / rows - 1.0) / drafts
            share = rows / (rows + DIFFUSION_ROUNDS)
            before = self.acceptance.diffusion[length]
            ratio = before + share * (ratio - before)
            self.acceptance = self.acceptance.with_diffusion(length, ratio)
        if self._diffused:
            self._diffused = {}
            self._measured = self.acceptance.yields()

    def _expect(self) -> None:
        ratios = self._mix.ratios(self.acceptance.prior_rounds, self._answer_s)
        self.expected = self.present = self._measured
        if self._learns and ratios is not None:
            self.expected = _scaled(self._measured, ratios.expected)
            self.present = _scaled(self._measured, ratios.present)


def _scaled(yields: Yields, ratios: Mapping[int, float]) -> Yields:
    blocks = {
        length: min(float(length), max(1.0, tokens * ratios[length]))
        for length, tokens in yields.blocks.items()
    }
    return yields._replace(blocks=blocks)
