"""A sliding window over the metrics pages of one replica: gauges as they are, counters as growth.

A counter that falls has been reset: what it shows then is what it has grown since. Labels are
tuples of values in the catalogue's order, `replica` left out and, for buckets, `le` at the end.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from orchestrator.measures import metrics_read
from replicas.catalogue import BY_NAME

Labels = tuple[str, ...]
Page = dict[str, dict[Labels, float]]


class WrongPage(ValueError):
    """The page holds nothing of this replica."""


def _names() -> dict[str, tuple[str, Labels]]:
    """Exported name -> short name and the labels to keep."""
    names = {}
    for short in metrics_read():
        metric = BY_NAME[short.removesuffix("_bucket")]
        is_bucket = short != metric.name
        labels = (*(label for label in metric.labels if label != "replica"),)
        full = metric.full_name + ("_bucket" if is_bucket else "")
        names[full] = (short, (*labels, "le") if is_bucket else labels)
    return names


_NAMES = _names()


def parse_page(text: str, replica: str) -> tuple[Page, int]:
    """The series of `replica` that signals need, and how many were no finite positive number.

    Raises:
        WrongPage: there is no series of this replica at all.
        ValueError: the text is not in Prometheus' format.
    """
    page: Page = {}
    refused = 0
    for family in text_string_to_metric_families(_needed_lines(text)):
        for sample in family.samples:
            if sample.labels.get("replica") != replica:
                continue
            short, names = _NAMES[sample.name]
            labels = tuple(sample.labels.get(name, "") for name in names)
            if math.isfinite(sample.value) and sample.value >= 0:
                page.setdefault(short, {})[labels] = sample.value
            else:
                refused += 1
    if not page:
        raise WrongPage(f"no series of replica {replica!r}")
    return page, refused


def _needed_lines(text: str) -> str:
    # The parser is slow; nine lines in ten are of no use to it here.
    lines = (line.strip() for line in text.split("\n"))
    needed = [line for line in lines if line.partition("{")[0].partition(" ")[0] in _NAMES]
    return "\n".join([*needed, ""])


class ScrapeWindow:
    """The pages of the last `window_s` seconds of one replica."""

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._page: Page = {}
        self._seen: Page = {}  # last value of every series, absent now or not
        self._totals: Page = {}  # growth since the first page, resets taken out
        self._snapshots: deque[tuple[float, Page]] = deque()

    def add(self, at: float, page: Page) -> None:
        """Takes the page scraped at `at` seconds."""
        if self._snapshots and at <= self._snapshots[-1][0]:
            self._snapshots.clear()  # the clock went back: nothing older can be compared
        for name, series in page.items():
            totals = self._totals.setdefault(name, {})
            seen = self._seen.setdefault(name, {})
            for labels, value in series.items():
                before = seen.get(labels, value)
                grown = value - before if value >= before else value
                totals[labels] = totals.get(labels, 0.0) + grown
                seen[labels] = value
        self._page = page
        self._snapshots.append((at, {n: dict(series) for n, series in self._totals.items()}))
        while len(self._snapshots) > 2 and self._snapshots[1][0] <= at - self.window_s:
            self._snapshots.popleft()

    @property
    def seconds(self) -> float:
        return self._snapshots[-1][0] - self._snapshots[0][0] if self._snapshots else 0.0

    def latest(self, name: str) -> Mapping[Labels, float]:
        return self._page.get(name, {})

    def increase(self, name: str) -> Mapping[Labels, float]:
        if len(self._snapshots) < 2:
            return {}
        first, last = self._snapshots[0][1].get(name, {}), self._snapshots[-1][1].get(name, {})
        now = self._page.get(name, {})
        return {labels: last[labels] - first.get(labels, 0.0) for labels in now}
