"""Clients between two requests: whoever sends the next one on getting an answer is still there.

Where an engine packs prefill and decoding into one step, the next request of such a client comes
while the next step runs, so a slot that an answer has left is empty for one step. Plans that take
few steps to an answer leave more slots empty, and fewer sequences decode; what stays the same under
every plan is the number of clients. Of requests that come when they like nothing of this holds. So
which of the two it is gets learned, from the requests that come:

    as many as ended before the last step      each client's next one was on its way for a step
    as many as ended with the last step        it was there at once, or clients are not such
"""

from __future__ import annotations

from dataclasses import dataclass

WEIGHT = 1 / 32  # of a step that tells which of the two it is
LIKELY = 0.5  # of the mean vote, where -1 and 1 are always the one or the other


@dataclass(slots=True)
class Clients:
    """Of one replica. `begin` and `end` go around every step."""

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
    def is_followed(self) -> bool:
        """Whether the next request of a client comes while the step after its answer runs."""
        return self._vote > LIKELY

    def begin(self, running: int) -> int:
        """A step begins with so many sequences, those in prefill counted; returns how many clients
        there are, with those whose request is on its way."""
        left = self._running - self._ended
        is_on = left > 0
        if is_on and self._were_on and self._ended != self._ended_before:
            came = running - left
            vote = (came == self._ended_before) - (came == self._ended)
            self._vote += WEIGHT * (vote - self._vote)
        on_their_way = self._ended if self.is_followed and is_on else 0
        self._ended_before, self._ended = self._ended, 0
        self._were_on, self._running = is_on, running
        return running + on_their_way

    def end(self, answers: int) -> None:
        """So many sequences ended with the step."""
        self._ended += answers
