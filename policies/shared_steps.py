"""Loads of an engine that packs prefill and decoding into one step: clients, not rows.

How many sequences decode in a step differs from step to step and from plan to plan; how many
clients there are does not. So a plan's step is looked at by the number of clients: its rows are
those that will decode under it (`occupancy.py`), its time is what its steps take over the profile
at so many clients, whatever their rows. What an answer costs besides, to hand it out and to take in
the next request, falls into steps in which few happen to decode; by rows it would be charged to
small batches, and so to long blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from policies.clients import Clients
from policies.occupancy import Occupancy
from policies.profiled_steps import ProfiledSteps, batch_bucket


class PlanStep(NamedTuple):
    """A plan's step at a load: profiled seconds, the bucket that corrections go by, and rows."""

    profiled_s: float
    bucket: int
    rows: float


class SharedSteps:
    """Of one replica. `begin_step` and `end_step` go around every step."""

    def __init__(self) -> None:
        self.occupancy = Occupancy()
        self.clients: int | None = None
        """At the step that runs; None in an engine whose prefill has steps of its own."""
        self._counter = Clients()
        self._profiled: ProfiledSteps | None = None
        self._tokens: Sequence[float] = ()
        self._empty_steps = 0.0

    def begin_step(self, decoding: int, running: int, waiting: int) -> int:
        """As `Clients.begin_step`, of which `decoding` decode; at least 1."""
        self.occupancy.count(0, running - decoding, 0)
        self.clients = max(1, self._counter.begin_step(running, waiting))
        return self.clients

    def end_step(self, tokens: int, answers: int) -> None:
        """So many tokens were decoded, and answers ended; may be told in parts."""
        self.occupancy.count(tokens, 0, answers)
        self._counter.end_step(answers)

    def renew(self, profiled: ProfiledSteps, tokens: Sequence[float]) -> None:
        """From now on: every plan's profile, and tokens per row and step, in order."""
        self._profiled, self._tokens = profiled, tokens
        self._empty_steps = self._counter.share  # one for all that is asked until the next time

    def steps(self, clients: int, context: int) -> list[PlanStep]:
        """Of every plan at so many clients, in a bucket of context lengths."""
        return [self._step(clients, context, index) for index in range(len(self._tokens))]

    def _step(self, clients: int, context: int, index: int) -> PlanStep:
        assert self._profiled is not None
        rows = self.occupancy.decoding(clients, self._tokens[index], self._empty_steps)
        low = max(1, int(rows))
        step_s = self._profiled.on_grid(low, context)[index]
        if rows > low:
            above_s = self._profiled.on_grid(low + 1, context)[index]
            step_s += (rows - low) * (above_s - step_s)
        return PlanStep(step_s, batch_bucket(clients), rows)
