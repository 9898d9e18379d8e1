"""The demo model's engine under the default policy, without Serve and HTTP."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from benchmarks.workload import DEMO_CHECKPOINT
from orchestrator.app_config import AppConfig
from policies.decisions import Reading, Signals
from policies.vocabulary import Schedule
from replicas.profiles import profile_for
from replicas.tiny import CHECKPOINT
from replicas.torch_engine.checkpoint import Checkpoint, load_checkpoint
from replicas.torch_engine.engine import EngineLimits, TorchEngine, positions_needed
from replicas.torch_engine.model import Model


def demo_model(limits: EngineLimits) -> tuple[Model, Checkpoint]:
    """On this CPU, float32, for engines within these limits."""
    checkpoint = load_checkpoint(DEMO_CHECKPOINT)
    model = Model(
        checkpoint.config,
        checkpoint.weights,
        max_positions=positions_needed(limits),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return model, checkpoint


def demo_engine(max_sequences: int) -> tuple[TorchEngine, Checkpoint]:
    """Without text; the caller sets the number of threads."""
    limits = EngineLimits(max_sequences=max_sequences)
    model, checkpoint = demo_model(limits)
    return TorchEngine(model, None, limits), checkpoint


def adaptive_schedule(engine: TorchEngine, config: AppConfig) -> Schedule | None:
    """What the configured policy sends a replica that has just started, never to expire; None
    without a profile of this machine."""
    profile = profile_for(engine, str(CHECKPOINT), config.profile)
    if profile is None:
        return None
    signals = Signals("engine", decoding=Reading(1.0, 0.0), profile=profile)
    decision, _ = config.make_guard().decide(signals, None, 0.0)
    return replace(decision.schedule, ttl_s=math.inf)
