"""Choosing tokens: noise, temperature, top-k, top-p."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replicas.engine import Request, RequestRejected, SamplingParams
from replicas.torch_engine.sampling import choice_for, choose, confidence, uniform
from replicas.torch_engine.sequence import Sequence
from tests.replicas.torch_engine.builders import (
    CPU,
)

FALSE_ALARM = 1e-6
"""Probability with which each statistical test here would fail on correct code, before its seeds
were fixed."""


def kolmogorov_bound(samples: int) -> float:
    """Largest deviation of an empirical distribution, by Dvoretzky-Kiefer-Wolfowitz."""
    return math.sqrt(math.log(2 / FALSE_ALARM) / (2 * samples))


def total_variation_bound(cells: int, samples: int) -> float:
    """L1 distance of empirical and true frequencies, by Weissman et al. 2003."""
    return math.sqrt(2 * math.log((2**cells - 2) / FALSE_ALARM) / samples)


@pytest.mark.parametrize(
    "numbers",
    [
        lambda n: [uniform(7, i) for i in range(n)],
        lambda n: [uniform(i, 0) for i in range(n)],
        lambda n: [uniform(i << 32, 31) for i in range(n)],
        lambda n: [(uniform(i, 5) + uniform(i, 6)) % 1.0 for i in range(n)],
        lambda n: [(uniform(i, 5) + uniform(i + 1, 5)) % 1.0 for i in range(n)],
    ],
    ids=["positions", "seeds", "high seeds", "neighbouring positions", "neighbouring seeds"],
)
def test_noise_is_uniform(numbers):
    samples = sorted(numbers(20000))
    n = len(samples)
    assert samples[0] >= 0.0
    assert samples[-1] < 1.0
    deviation = max(max((i + 1) / n - x, x - i / n) for i, x in enumerate(samples))
    assert deviation < kolmogorov_bound(n)


def test_noise_belongs_to_seed_and_position_alone():
    assert uniform(3, 4) == uniform(3, 4)
    assert len({uniform(s, p) for s in range(50) for p in range(50)}) == 2500
    assert 0.0 <= uniform(-1, 0) < 1.0
    assert 0.0 <= uniform(10**40, 10**6) < 1.0


def rows_for(*sampling: SamplingParams, seed: int = 0) -> list[Sequence]:
    return [
        Sequence(Request(str(i), (3,), params), i, seed + i, frozenset())
        for i, params in enumerate(sampling)
    ]


def choose_with(logits: torch.Tensor, *sampling: SamplingParams, position: int = 1, seed: int = 0):
    return choose(
        logits, choice_for(rows_for(*sampling, seed=seed), [position] * len(sampling), 1, CPU)
    )


def reference_distribution(logits: list[float], params: SamplingParams) -> list[float]:
    """In plain Python: temperature, then the top_k, then the fewest that hold top_p of the rest."""
    peak = max(logits)
    weights = [math.exp((x - peak) / params.temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: -weights[i])
    if params.top_k:
        order = order[: params.top_k]
    total, kept, mass = sum(weights[i] for i in order), [], 0.0
    for i in order:
        if kept and mass >= params.top_p * total:
            break
        kept.append(i)
        mass += weights[i]
    return [weights[i] / mass if i in kept else 0.0 for i in range(len(logits))]


CASES = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.5),
    SamplingParams(temperature=3.0),
    SamplingParams(temperature=1.0, top_k=3),
    SamplingParams(temperature=1.0, top_p=0.6),
    SamplingParams(temperature=2.0, top_k=5, top_p=0.7),
    SamplingParams(temperature=1.0, top_k=1),
    SamplingParams(temperature=1.0, top_p=0.01),
    SamplingParams(temperature=1.0, top_k=1000, top_p=0.999),
]
LOGITS = [0.3, 2.0, -1.0, 1.1, 0.7, -3.0, 1.6, -0.4]


@pytest.mark.parametrize("params", CASES, ids=str)
def test_choices_follow_a_straightforward_reference(params):
    samples = 20000
    sequences = rows_for(*[params] * samples)
    logits = torch.tensor([LOGITS]).expand(samples, -1)
    tokens = choose(logits, choice_for(sequences, [1] * samples, 1, CPU))
    frequency = torch.bincount(tokens, minlength=len(LOGITS)).double() / samples
    expected = torch.tensor(reference_distribution(LOGITS, params), dtype=torch.float64)
    assert (frequency[expected == 0] == 0).all()
    assert (frequency - expected).abs().sum() < total_variation_bound(len(LOGITS), samples)


def test_rows_of_one_batch_keep_their_own_parameters():
    mixed = [*CASES, SamplingParams(), SamplingParams(temperature=1e-3)]
    logits = torch.tensor([LOGITS]).expand(len(mixed), -1)
    for position in range(200):
        together = choose_with(logits, *mixed, position=position)
        for i, params in enumerate(mixed):
            assert together[i] == choose_with(logits[:1], params, position=position, seed=i)[0]


def test_greedy_rows_take_the_largest_logit_and_ties_take_the_first():
    logits = torch.tensor([[0.0, 2.0, 2.0], [5.0, 1.0, 5.0]])
    assert choose_with(logits, SamplingParams(), SamplingParams()).tolist() == [1, 0]
    assert choose_with(logits, SamplingParams(), SamplingParams(temperature=1.0, top_k=1))[0] == 1


def test_top_p_takes_no_more_than_it_needs():
    """Four tokens of a quarter each: a half is two of them, not three."""
    logits = torch.zeros(1, 4)
    params = SamplingParams(temperature=1.0, top_p=0.5)
    seen = {int(choose_with(logits, params, position=i)) for i in range(100)}
    assert seen == {0, 1}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    temperature=st.floats(0.0, 100.0, exclude_min=True),
    top_p=st.floats(0.0, 1.0, exclude_min=True),
    top_k=st.one_of(st.integers(0, 20), st.integers(0, 10**30)),
    spread=st.sampled_from([0.0, 1.0, 1e4]),
    seed=st.integers(),
)
def test_no_accepted_parameters_choose_a_ruled_out_token(temperature, top_p, top_k, spread, seed):
    """Every value that SamplingParams lets through gives a token that has a finite logit."""
    logits = spread * torch.tensor([[-math.inf, 0.3, 2.0, -math.inf, 1.1, -math.inf]])
    logits = torch.where(logits.isnan(), -math.inf, logits)
    logits[:, [1, 2, 4]] = logits[:, [1, 2, 4]].nan_to_num(0.0)
    if spread == 0.0:
        logits[:, [1, 2, 4]] = 0.0
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k)
    for position in range(4):
        assert choose_with(logits, params, position=position, seed=seed)[0] in (1, 2, 4)


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": 101.0}, r"\[0, 100\]"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.1}, r"top_p 1.1 .*\(0, 1\]"),
        ({"top_p": math.nan}, "top_p nan"),
        ({"top_k": -1}, "top_k -1"),
        ({"max_tokens": 0}, "max_tokens 0 must be at least 1"),
        ({"stop": ("",)}, "stop string"),
    ],
)
def test_impossible_parameters_are_refused_by_name(bad, names):
    with pytest.raises(RequestRejected, match=names):
        SamplingParams(**bad)


def test_confidence_is_the_softmax_probability():
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(1))
    expected = torch.softmax(logits, dim=-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(confidence(logits, tokens), expected)
