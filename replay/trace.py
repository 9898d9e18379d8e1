"""Recorded traces: when requests arrived, and how long prompts and answers were.

CSV with a header row, sorted by `t`: `t` seconds from the start, `in` prompt tokens, `out` answer
tokens, and optionally `cached`, prompt tokens that a prefix cache would have had. Other columns are
ignored. A file that ends in .gz is read as gzip. Shipped traces: traces/README.md.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SUFFIX = ".csv.gz"
QUANTISED_S = {"mooncake_conversation": 3.0}
"""Arrivals that the source rounds down to so many seconds are spread over them."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Invariant: equally long arrays, arrivals ascending from about 0, every answer has a token."""

    name: str
    arrivals_s: Floats
    prompts: Ints
    outputs: Ints
    cached: Ints

    def __len__(self) -> int:
        return len(self.arrivals_s)

    @property
    def duration_s(self) -> float:
        return float(self.arrivals_s[-1])

    def faster(self, speed: float) -> Trace:
        """Time compressed: bursts keep their shape, the rate rises."""
        if not (math.isfinite(speed) and speed > 0):
            raise ValueError(f"speed {speed:g} must be above 0; 2 replays twice as fast")
        return replace(self, arrivals_s=self.arrivals_s / speed)

    def between(self, start_s: float, end_s: float) -> Trace:
        """The requests that arrive in [start, end), from 0 on."""
        first, last = np.searchsorted(self.arrivals_s, (start_s, end_s))
        if first == last:
            raise ValueError(
                f"trace {self.name!r} has no request between {start_s:g} and {end_s:g} s; "
                f"it lasts {self.duration_s:g} s"
            )
        part = slice(int(first), int(last))
        return Trace(
            self.name,
            self.arrivals_s[part] - start_s,
            self.prompts[part],
            self.outputs[part],
            self.cached[part],
        )

    def fitting(self, tokens: int) -> tuple[Trace, int]:
        """With prompt and answer cut to `tokens` together, and how many requests were cut."""
        outputs = np.minimum(self.outputs, max(1, tokens // 2))
        prompts = np.minimum(self.prompts, tokens - outputs)
        cut = int(np.count_nonzero((prompts < self.prompts) | (outputs < self.outputs)))
        cached = np.minimum(self.cached, prompts - 1)
        return replace(self, prompts=prompts, outputs=outputs, cached=cached), cut

    def jittered(self, spread_s: float, rng: np.random.Generator) -> Trace:
        """Every arrival later by a random part of `spread_s`."""
        if spread_s <= 0:
            return self
        moved = np.sort(self.arrivals_s + rng.uniform(0.0, spread_s, len(self)))
        return replace(self, arrivals_s=moved)


def shipped() -> tuple[str, ...]:
    """Names of the traces that come with Trimode."""
    folder = files("replay") / "traces"
    found = (path.name for path in folder.iterdir())
    return tuple(sorted(n.removesuffix(SUFFIX) for n in found if n.endswith(SUFFIX)))


def read(name_or_path: str, seed: int = 0) -> Trace:
    """A trace file, or a shipped trace by its name.

    Raises:
        ValueError: neither, or a row that cannot be read; the message names file and line.
    """
    path = Path(name_or_path)
    if path.is_file():
        return parse(path.name.removesuffix(SUFFIX).removesuffix(".csv"), path.read_bytes())
    if name_or_path not in shipped():
        known = ", ".join(shipped())
        raise ValueError(f"trace {name_or_path!r} is neither a file nor one of {known}")
    content = (files("replay") / "traces" / f"{name_or_path}{SUFFIX}").read_bytes()
    trace = parse(name_or_path, content)
    return trace.jittered(QUANTISED_S.get(name_or_path, 0.0), np.random.default_rng(seed))


def parse(name: str, content: bytes) -> Trace:
    """A trace from the bytes of its file."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    rows = list(_rows(name, csv.reader(io.StringIO(content.decode("utf-8")))))
    if not rows:
        raise ValueError(f"{name}: no requests; a trace has a header t,in,out and a row for each")
    times, prompts, outputs, cached = zip(*rows, strict=True)
    return Trace(
        name,
        np.array(times, dtype=np.float64),
        np.array(prompts, dtype=np.int64),
        np.array(outputs, dtype=np.int64),
        np.array(cached, dtype=np.int64),
    )


def _rows(name: str, lines: Iterator[list[str]]) -> Iterator[tuple[float, int, int, int]]:
    header = next(lines, [])
    missing = [column for column in ("t", "in", "out") if column not in header]
    if missing:
        raise ValueError(f"{name}: column {missing[0]!r} is missing; the header is t,in,out")
    at_t, at_in, at_out = map(header.index, ("t", "in", "out"))
    at_cached = header.index("cached") if "cached" in header else None
    before = 0.0
    for number, row in enumerate(lines, start=2):
        try:
            t, prompt, output = float(row[at_t]), int(row[at_in]), int(row[at_out])
            cached = int(row[at_cached] or 0) if at_cached is not None else 0
        except (IndexError, ValueError) as error:
            raise ValueError(
                f"{name}, line {number}: {error}; t is seconds, in and out are tokens"
            ) from None
        if not before <= t < math.inf:
            raise ValueError(
                f"{name}, line {number}: t {t:g} is before {before:g}; sort the file by t"
            )
        if prompt < 1 or output < 1:
            raise ValueError(
                f"{name}, line {number}: in {prompt} and out {output} must be at least 1"
            )
        before = t
        yield t, prompt, output, min(max(cached, 0), prompt - 1)
