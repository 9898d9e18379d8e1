"""How much of a step is matrix work.

A step's matrix products (projections, MLP, head; the same weights and row counts, in the order of
the layers) are run alone, and so are its attention calls at the same shapes, both on ready inputs.
What the step takes beyond them is everything else: Python, packing, norms, rotary embedding, K/V
writes, sampling, bookkeeping. Products alone find their inputs warm, so their share is, if
anything, understated.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from policies.vocabulary import Mode, Plan
from replicas.torch_engine.model import Model


@dataclass(frozen=True, slots=True)
class StepShare:
    """Seconds of one step; products and attention as measured alone."""

    plan: Plan
    concurrency: int
    step: float
    products: float
    attention: float

    @property
    def other_than_products(self) -> float:
        return 1 - self.products / self.step

    @property
    def neither(self) -> float:
        return 1 - (self.products + self.attention) / self.step


def step_share(
    model: Model, plan: Plan, concurrency: int, step_seconds: float, context: int, repeats: int
) -> StepShare:
    forwards = 2 if plan.mode is Mode.SELF_SPECULATION else 1
    rows = concurrency * plan.block_length
    return StepShare(
        plan=plan,
        concurrency=concurrency,
        step=step_seconds,
        products=forwards * _median(_products(model, rows), repeats),
        attention=forwards * _median(_attention(model, concurrency, plan, context), repeats),
    )


def _median(run: Callable[[], None], repeats: int) -> float:
    taken = []
    with torch.inference_mode():
        for _ in range(repeats + 3):
            started = time.perf_counter()
            run()
            taken.append(time.perf_counter() - started)
    return statistics.median(taken[3:])


def _products(model: Model, rows: int) -> Callable[[], None]:
    config = model.config
    hidden = torch.randn(rows, config.hidden_size).to(model.dtype)
    heads = torch.randn(rows, config.num_heads * config.head_dim).to(model.dtype)
    inner = torch.randn(rows, config.intermediate_size).to(model.dtype)

    def run() -> None:
        for layer in model.layers:
            layer.qkv(hidden)
            layer.o(heads)
            layer.gate_up(hidden)
            layer.down(inner)
        model.head(hidden)

    return run


def _attention(model: Model, concurrency: int, plan: Plan, context: int) -> Callable[[], None]:
    config = model.config
    length = context + plan.block_length
    queries = config.num_heads // config.num_kv_heads * plan.block_length
    kv_heads, dim = config.num_kv_heads, config.head_dim
    q = torch.randn(concurrency, kv_heads, queries, dim).to(model.dtype)
    pool = torch.randn(concurrency, length, 2, kv_heads, dim).to(model.dtype)
    k, v = pool[:, :, 0].transpose(1, 2), pool[:, :, 1].transpose(1, 2)
    mask = torch.zeros(concurrency, 1, queries, length, dtype=model.dtype)

    def run() -> None:
        for _ in model.layers:
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return run
