"""The same series under vLLM's names, for routers and benchmark clients that look for those.

A pure function of the families already collected, so the two names can never disagree. vLLM labels
with `model_name` only; series of several plans or modes are summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import Metric as Family
from prometheus_client.core import Sample

from policies.vocabulary import Mode
from replicas.catalogue import REPLICA_METRICS, Metric

VLLM = "vllm:"
KEPT_LABELS = {"finish_reason": "finished_reason", "position": "position", "le": "le"}
"""Our labels that vLLM has too, and what it calls them."""
FINISH_REASONS = {"cancelled": "abort"}
"""Where vLLM's word for a finish reason differs."""
ONE_MODE = {"spec_decode_": Mode.SELF_SPECULATION.value, "diffusion_": Mode.DIFFUSION.value}
"""Prefixes of names that vLLM counts in one mode only."""


def alias_families(families: Mapping[str, Family], model_name: str) -> Iterator[Family]:
    """vLLM's family for every catalogue metric that has one; empty where ours has no series.

    `families` are by the catalogue's short names.
    """
    for metric in REPLICA_METRICS:
        if metric.vllm:
            family = Family(VLLM + metric.vllm.removesuffix("_total"), metric.help, metric.type)
            source = families.get(metric.name)
            family.samples = _summed(metric, source.samples, model_name) if source else []
            yield family


def _summed(metric: Metric, samples: Iterable[Sample], model_name: str) -> list[Sample]:
    mode = next((m for prefix, m in ONE_MODE.items() if metric.vllm.startswith(prefix)), None)
    totals: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for sample in samples:
        if mode is None or sample.labels["mode"] == mode:
            suffix = sample.name.removeprefix(metric.full_name)
            key = (VLLM + metric.vllm + suffix, _labels(sample, model_name))
            totals[key] = totals.get(key, 0.0) + sample.value
    return [Sample(name, dict(labels), value) for (name, labels), value in totals.items()]


def _labels(sample: Sample, model_name: str) -> tuple[tuple[str, str], ...]:
    kept = [
        (theirs, FINISH_REASONS.get(sample.labels[ours], sample.labels[ours]))
        for ours, theirs in KEPT_LABELS.items()
        if ours in sample.labels
    ]
    return (("model_name", model_name), *kept)
