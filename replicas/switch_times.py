"""Moments on an engine's monotonic clock as Unix time, the same ones at every scrape."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from replicas.governor import Change


@runtime_checkable
class TellsSwitchTimes(Protocol):
    """An engine that knows when its plan changed."""

    def plan_change_times(self) -> Mapping[Change, float]:
        """When each change last happened, in Unix seconds."""
        ...


class SwitchTimes:
    """Converts each moment once.

    The two clocks drift apart and the wall clock may be set, so converting a moment again would
    give another time, and a board would mark one switch twice.

    Args:
        clock: what the moments were taken from.
        wall: Unix time.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._wall = clock, wall
        self._known: dict[Change, tuple[float, float]] = {}

    def of(self, switched_at: Mapping[Change, float]) -> dict[Change, float]:
        """Unix seconds of `switched_at`."""
        offset = self._wall() - self._clock()
        for change, at in switched_at.items():
            known = self._known.get(change)
            if known is None or known[0] != at:
                self._known[change] = at, at + offset
        return {change: self._known[change][1] for change in switched_at}
