"""What an engine tells its governor of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from policies.vocabulary import Plan

Numbers = Sequence[float] | npt.NDArray[np.float64]


class Drafted(NamedTuple):
    """How drafts of some requests have fared so far, request by request: positions tried, and
    accepted. A position is tried if all before it were accepted."""

    tried: Numbers
    accepted: Numbers


NOBODY = Drafted((), ())


class StepObservation(NamedTuple):
    """One decoding step of one plan, or several alike.

    `yields` are the tokens kept from each row; `context_tokens` were cached before the step.
    `is_alone`: no second plan ran in the step, so that `seconds` are the plan's own but for
    `prompt_tokens`, which were prefilled on the way. `answers` ended with it; `ended` says how the
    drafts of those have fared. A simulation tells `steps` equal ones at once: `seconds` is then
    their sum, and `counts[g]` the rows that kept g tokens, in place of `yields`.
    (A tuple, for one is made at every step, and a frozen dataclass takes four times as long.)
    """

    plan: Plan
    sequences: int
    context_tokens: int
    seconds: float
    yields: Sequence[int]
    is_alone: bool = True
    prompt_tokens: int = 0
    steps: int = 1
    counts: Sequence[int] = ()
    answers: int = 0
    ended: Drafted = NOBODY

    @property
    def rows(self) -> int:
        """Over all steps."""
        return sum(self.counts) if self.counts else len(self.yields)

    @property
    def tokens(self) -> int:
        """Kept, over all rows and steps."""
        if self.counts:
            return sum(kept * rows for kept, rows in enumerate(self.counts))
        return sum(self.yields)
