"""Clients between two requests: whoever sends the next one on getting an answer is still there.

Where an engine packs prefill and decoding into one step, the next request of such a client comes
while the next step runs, so a slot that an answer has left is empty for one step. Plans that take
few steps to an answer leave more slots empty, and fewer sequences decode; what stays the same under
every plan is the number of clients. Of requests that come when they like nothing of this holds, nor
of clients that are away for longer. What share of clients is of this kind is learned, from steps in
which it makes a difference to how many requests come:

    as many as ended before the last step      each client's next one was on its way for a step
    as many as ended with the last step        it was there at once

Answers that end in prefill are not told, and count as requests that were given up.
"""

from __future__ import annotations

from dataclasses import dataclass

WEIGHT = 1 / 64  # of a step that tells which of the two it is
NONE_BELOW, ALL_FROM = 0.25, 0.75
"""Mean votes, of -1 to 1, that mean no client and every one of them; chance alone makes 0.1."""


@dataclass(slots=True)
class Clients:
    """Of one replica. `begin_step` and `end_step` go around every step."""

    _vote: float = 0.0
    _running: int = 0
    _ended: int = 0
    """With the last step, or the one that now runs."""
    _ended_before: int = 0
    """With the step before that."""
    _were_on: bool = False
    """Whether some went on after the step before: an engine with nothing to do waits for requests,
    and then none comes while a step runs."""

    @property
    def share(self) -> float:
        """Of clients whose next request comes while the step after their answer runs."""
        return min(1.0, max(0.0, (self._vote - NONE_BELOW) / (ALL_FROM - NONE_BELOW)))

    def begin_step(self, running: int, waiting: int = 0) -> int:
        """So many sequences run, those in prefill counted, and so many requests found no room.
        Returns how many clients there are, with those whose next request is on its way."""
        left, ended, before = self._running - self._ended, self._ended, self._ended_before
        is_on = left > 0
        if is_on and self._were_on and ended != before and not waiting:
            nearer = 2.0 * (running - left - ended) / (before - ended) - 1.0
            self._vote += WEIGHT * (min(1.0, max(-1.0, nearer)) - self._vote)
        clients = running
        if not waiting:  # or a slot would have been filled at once
            away = round(self.share * ended)
            # With nothing to do the engine has waited, and who came is most likely one of those,
            # unless somebody was on the way already.
            is_another = is_on or (before > 0 and self._were_on)
            clients = running + away if is_another else max(running, away)
        self._ended_before, self._ended = ended, 0
        self._were_on, self._running = is_on, running
        return clients

    def end_step(self, answers: int) -> None:
        """So many sequences ended with the step; may be told in parts."""
        self._ended += answers
