"""The decoder's logits against transformers' own Ministral 3, on the same random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from replicas.engine import Request
from replicas.torch_engine.batch import Rows
from replicas.torch_engine.model_config import RopeConfig
from replicas.torch_engine.sequence import Sequence
from tests.replicas.torch_engine.builders import (
    TINY,
    Fed,
    random_weights,
    transformers_model,
)

YARN = RopeConfig(
    theta=1e6,
    rope_type="yarn",
    factor=16.0,
    original_max_positions=64,
    mscale=1.0,
    mscale_all_dim=1.0,
    query_scaling_beta=0.1,
)
ROPES = {
    "default": RopeConfig(theta=10000.0),
    "yarn, as the 8B": YARN,
    "yarn with unequal mscales": replace(YARN, mscale=1.3, mscale_all_dim=0.7),
    "yarn without mscales": replace(YARN, mscale=None, mscale_all_dim=None),
    "factor below one, as the 3B base": replace(YARN, factor=0.25),
    "factor below one without mscales": replace(
        YARN, factor=0.25, mscale=None, mscale_all_dim=None
    ),
    "a narrow ramp": replace(YARN, theta=500.0, beta_fast=4.0, beta_slow=2.0),
}
LENGTH = 200
"""Positions run past YaRN's original 64 and over three query-scaling steps (64, 128, 192)."""


def other_logits(config, weights, tokens, **options):
    with torch.inference_mode():
        return transformers_model(config, weights)(tokens[None], **options).logits[0]


def assert_same_logits(config, ours, theirs):
    """Equal within float32 rounding, but for the mask token, which ours rules out."""
    mask = config.mask_token_id
    assert (ours[:, mask] == -torch.inf).all()
    keep = [i for i in range(config.vocab_size) if i != mask]
    torch.testing.assert_close(ours[:, keep], theirs[:, keep], rtol=1e-4, atol=2e-4)


@pytest.fixture(params=ROPES.values(), ids=ROPES.keys())
def config(request):
    """Grouped queries (4 heads on 2), and a head_dim of 8 where hidden / heads is 6."""
    return replace(TINY, rope=request.param)


@pytest.fixture
def tokens():
    return torch.randint(3, TINY.vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "pieces",
    [[LENGTH], [64, 64, 64, 8], [1, 62, 3, 61, 2, 71], [1] * LENGTH],
    ids=["whole prompt", "chunks", "uneven chunks", "token by token"],
)
def test_causal_logits_are_those_of_transformers(config, tokens, pieces):
    weights = random_weights(config, seed=3)
    fed = Fed(config, weights)
    ours = torch.cat([fed.feed(piece) for piece in tokens.split(pieces)])
    assert_same_logits(config, ours, other_logits(config, weights, tokens))


def test_query_scaling_is_felt_past_its_step(tokens):
    """Guards the test above: with query scaling off, logits past the step would differ."""
    config = replace(TINY, rope=YARN)
    weights = random_weights(config, seed=3)
    off = replace(config, rope=replace(YARN, query_scaling_beta=0.0))
    with_scaling, without = Fed(config, weights).feed(tokens), Fed(off, weights).feed(tokens)
    difference = (with_scaling - without).nan_to_num(0.0).abs().amax(dim=1)
    assert difference[:64].max() == 0
    assert difference[64:].min() > 1e-4


@pytest.mark.parametrize("prefix", [0, 50, 100])
def test_bidirectional_logits_see_the_causal_prefix_and_the_whole_block(config, tokens, prefix):
    """Against transformers with a hand-made mask: causal up to the block, then all of it."""
    weights, width = random_weights(config, seed=4), 16
    tokens = tokens[: prefix + width].clone()
    tokens[prefix + 1 :] = config.mask_token_id
    allowed = torch.ones(len(tokens), len(tokens)).tril().bool()
    allowed[prefix:] = True
    mask = torch.zeros(1, 1, *allowed.shape).masked_fill(~allowed, -torch.inf)
    theirs = other_logits(config, weights, tokens, attention_mask=mask)[prefix:]
    fed = Fed(config, weights)
    if prefix:
        fed.feed(tokens[:prefix])
    assert_same_logits(config, fed.feed(tokens[prefix:], causal=False, keep=False), theirs)


def test_a_dropped_block_leaves_no_trace(config, tokens):
    """A bidirectional pass writes behind the committed length; the next causal pass must not
    notice."""
    weights = random_weights(config, seed=5)
    clean, used = Fed(config, weights), Fed(config, weights)
    for fed in (clean, used):
        fed.feed(tokens[:40])
    used.feed(tokens[100:132], causal=False, keep=False)
    torch.testing.assert_close(used.feed(tokens[40:60]), clean.feed(tokens[40:60]))


def test_rows_of_different_lengths_plans_and_masks_share_one_forward(tokens):
    """A packed batch of decode rows, a mixed block group, and a prefill chunk equals its parts."""
    config = replace(TINY, rope=YARN)
    weights = random_weights(config, seed=6)
    lengths, alone = [5, 70, 33, 90, 12], []
    together = Fed(config, weights)
    together.pool.recut(128, [])
    sequences = []
    for row, length in enumerate(lengths[:4]):
        sequence = Sequence(Request(str(row), ()), 0, 0, frozenset())
        sequence.row = row
        prefill = Rows([sequence], tokens[None, :length], True)
        together.model.forward(together.packer.pack([prefill]), together.pool.layers)
        sequence.cached = length
        sequences.append(sequence)
    block = torch.stack([tokens[150:158], tokens[160:168]])
    groups = [  # the last group ends before the query-scaling step, the first lies past it
        Rows([sequences[1], sequences[3]], block, causal=torch.tensor([True, False])),
        Rows([sequences[0], sequences[2]], torch.tensor([[7], [9]]), causal=True),
    ]
    logits = together.model.forward(together.packer.pack(groups), together.pool.layers)
    inputs = [
        (70, block[0], True),
        (90, block[1], False),
        (5, torch.tensor([7]), True),
        (33, torch.tensor([9]), True),
    ]
    for length, fed_tokens, causal in inputs:
        fed = Fed(config, weights)
        fed.feed(tokens[:length])
        alone.append(fed.feed(fed_tokens, causal=causal))
    torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-4, atol=1e-4)
