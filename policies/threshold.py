"""Bands on the number of decoding sequences: the rule an operator can say in one sentence.

The bands travel to the replica, whose governor applies them at every step. With `local=False` they
are applied here instead, from the collected signals, and the replica gets one plan at a time:
slower by a scrape and a tick, for comparison and for engines that cannot follow bands.
"""

from __future__ import annotations

from collections.abc import Iterable

from policies.decisions import Decision, Reason, Signals
from policies.vocabulary import AR, Band, Mode, Plan, Schedule

DEFAULT_BANDS = (
    Band(4, Plan(Mode.SELF_SPECULATION, 16)),
    Band(16, Plan(Mode.SELF_SPECULATION, 8)),
    Band(32, Plan(Mode.SELF_SPECULATION, 4)),
    Band(None, AR),
)
"""Long blocks while forwards are cheap, AR once the batch alone fills the device."""


class Threshold:
    """Plan by decoding sequences, with hysteresis on the way down.

    Args:
        bands: ascending; the last without an upper bound.
        hysteresis: sequences by which a bound must be undercut to go back below it.
        dwell_s: shortest time between two changes by the governor within the bands.
        local: whether the replica's governor applies the bands, or this policy does.

    Raises:
        ValueError: bands that do not ascend, or a hysteresis that closes the lowest band for ever.
    """

    needs: tuple[str, ...] = ("decoding",)

    def __init__(
        self,
        bands: Iterable[Band] = DEFAULT_BANDS,
        hysteresis: int = 1,
        dwell_s: float = 0.25,
        local: bool = True,
    ) -> None:
        whole = Schedule(tuple(bands), hysteresis=hysteresis, dwell_s=dwell_s)
        lowest = whole.bands[0].up_to
        if lowest is not None and hysteresis >= lowest:
            raise ValueError(
                f"hysteresis {hysteresis} must be below the first band's bound {lowest}: "
                "with it the first band could never be entered again"
            )
        self.bands = whole.bands
        self.hysteresis = hysteresis
        self._schedules = tuple(whole if local else Schedule.pinned(b.plan) for b in self.bands)

    def decide(
        self, signals: Signals, state: int | None, now: float
    ) -> tuple[Decision, int | None]:
        decoding = signals.decoding.value
        if decoding is None:
            reason = Reason.INITIAL if state is None else Reason.HOLD_MISSING
            return Decision(self._schedules[state or 0], reason), state
        index, reason = self._next(state, decoding)
        return Decision(self._schedules[index], reason, f"{decoding:g} decoding"), index

    def _next(self, current: int | None, decoding: float) -> tuple[int, Reason]:
        wanted = self._index(decoding)
        if current is None:
            return wanted, Reason.INITIAL
        if wanted > current:
            return wanted, Reason.LOAD_ROSE
        if wanted < current:
            # Short of the full hysteresis, go down only as far as it allows.
            clear = min(self._index(decoding + self.hysteresis), current)
            return clear, Reason.LOAD_FELL if clear < current else Reason.HOLD_HYSTERESIS
        return current, Reason.HOLD_STEADY if decoding else Reason.HOLD_IDLE

    def _index(self, decoding: float) -> int:
        bands = self.bands
        return next(i for i, b in enumerate(bands) if b.up_to is None or decoding <= b.up_to)
