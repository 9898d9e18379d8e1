"""Long blocks while nobody waits; AR while requests queue, and for a while after."""

from policies.decisions import Decision, Reason, Signals
from policies.vocabulary import AR, Mode, Plan, Schedule


class Calm:
    needs = ("waiting",)  # without these signals the guard holds the last schedule

    def __init__(self, block_length: int = 16, calm_s: float = 10.0) -> None:
        self.calm = Schedule.pinned(Plan(Mode.SELF_SPECULATION, block_length))
        self.busy = Schedule.pinned(AR)
        self.calm_s = calm_s

    def decide(
        self, signals: Signals, state: float | None, now: float
    ) -> tuple[Decision, float | None]:
        # The state is what this method last returned for the replica: when somebody last waited.
        if signals.waiting.value:
            detail = f"{signals.waiting.value:g} waiting"
            return Decision(self.busy, Reason.LOAD_ROSE, detail), now
        if state is not None and now - state < self.calm_s:
            return Decision(self.busy, Reason.HOLD_DWELL), state
        return Decision(self.calm, Reason.LOAD_FELL), None
