"""A replica's step-time profile: found in the cache, measured once, or named by the operator.

Replicas of one machine that start together take turns at a file lock: the first one measures, the
others find what it wrote. Nothing that goes wrong while measuring stops a replica from serving.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from policies.fit import fit_curve, fit_ratios, scatter
from policies.step_time import Fingerprint, Profile, read_profile
from replicas.calibration import Progress, measure
from replicas.meter import Bounds
from replicas.tiny import CHECKPOINT
from replicas.torch_engine.engine import TorchEngine

_log = logging.getLogger(__name__)

AUTO, NONE = "auto", "none"
LEAST_BUDGET_S, LARGEST_BUDGET_S = 6.0, 120.0
PARAMETERS_PER_S = 1e8  # of the budget above the least: 80 s for a model of 8 billion
NOISY, NOISY_LASTS = 0.2, datetime.timedelta(hours=1)
"""Scatter from which the machine was too busy to measure, and how long such a profile is good for:
replicas that start together share it, later starts measure again."""


def fingerprint(core: TorchEngine, model: str) -> Fingerprint:
    """What step times depend on. `model` is a folder or a Hugging Face id."""
    config = repr(core.model.config).encode()
    folder = Path(model)
    name = "tiny" if folder == CHECKPOINT else folder.name if folder.is_dir() else model
    graphs = ", CUDA graphs" if core.captures_graphs else ""
    return Fingerprint(
        hardware=_hardware(core.model.device),
        model=f"{name} {hashlib.sha256(config).hexdigest()[:8]}",
        dtype=str(core.model.dtype).removeprefix("torch."),
        engine=f"torch {torch.__version__}, trimode {_version()}{graphs}",
    )


def _version() -> str:
    try:
        return importlib.metadata.version("trimode")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a checkout


def default_budget_s(core: TorchEngine) -> float:
    """Seconds that a calibration takes: a few for a small model, two minutes at most."""
    wanted = LEAST_BUDGET_S + core.model.config.num_parameters / PARAMETERS_PER_S
    return min(LARGEST_BUDGET_S, wanted)


def calibrate(
    core: TorchEngine,
    model: str,
    budget_s: float | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Measures the engine and fits a profile; the engine is as new afterwards."""
    here = fingerprint(core, model)
    budget_s = default_budget_s(core) if budget_s is None else budget_s
    try:
        timer = time.thread_time if _is_one_thread(core) else time.perf_counter
        measured = measure(core, _bounds(core), budget_s, progress=progress, timer=timer)
    finally:
        core.start_over()
    curve = fit_curve(measured.samples)
    profile = Profile(
        name=f"{here.model.partition(' ')[0]} on {here.hardware}",
        fingerprint=here,
        source="measured",
        curve=curve,
        ratios=fit_ratios(measured.samples, curve),
        switch_s=measured.switch_s,
        # Larger shapes would be captured as graphs in the middle of serving.
        max_positions=measured.largest_positions if core.captures_graphs else None,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        note=f"{len(measured.samples)} loads and plans in {budget_s:.0f} s, "
        + ("CPU time of one thread" if _is_one_thread(core) else "wall time"),
    )
    noise = scatter(measured.samples, profile)
    return _within_limits(replace(profile, noise=noise), core)


def profile_for(
    core: TorchEngine,
    model: str,
    option: str,
    *,
    measure: Callable[[TorchEngine, str], Profile] = calibrate,
) -> Profile | None:
    """What the option asks for: `auto`, `none`, or the profile of that path or name.

    Raises:
        ProfileMismatch: the named profile is of other hardware, model, dtype or engine.
        ValueError: there is no such profile.
    """
    if option == NONE:
        return None
    if option != AUTO:
        profile = read_profile(option)
        profile.check(fingerprint(core, model))
        return _within_limits(profile, core)
    try:
        return _within_limits(_cached_or_measured(core, model, measure), core)
    except Exception as error:  # serving does without; the governor learns as it goes
        _log.warning("no step-time profile, serving without: %r", error)
        return None


def cache_path(here: Fingerprint) -> Path:
    """Where the profile of that fingerprint is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256(json.dumps(asdict(here)).encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]+", "-", here.model)
    return Path(base) / "trimode" / "profiles" / f"{name}-{digest}.json"


def write_profile(profile: Profile, path: Path) -> None:
    """Replaces the file at once, so that nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(profile.to_dict(), indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _cached_or_measured(
    core: TorchEngine, model: str, measure: Callable[[TorchEngine, str], Profile]
) -> Profile:
    here = fingerprint(core, model)
    path = cache_path(here)
    with _locked(path.with_suffix(".lock")):
        if (known := _read_cached(path, here)) is not None:
            return known
        _log.info("measuring step times; profile=none does without")
        profile = measure(core, model)
        if profile.noise > NOISY:
            _log.warning("step times scatter by %.0f %%: the machine is busy", 100 * profile.noise)
        _keep(profile, path)
    return profile


def _read_cached(path: Path, here: Fingerprint) -> Profile | None:
    if not path.is_file():
        return None
    try:
        profile = read_profile(str(path))
        profile.check(here)
        age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(profile.created)
    except ValueError as error:
        _log.warning("the cached profile cannot be used and is measured again: %s", error)
        return None
    return None if profile.noise > NOISY and age > NOISY_LASTS else profile


def _keep(profile: Profile, path: Path) -> None:
    try:
        write_profile(profile, path)
    except OSError as error:
        _log.warning("the profile is not cached, and the next start measures again: %s", error)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for whoever measures; where no lock can be had, goes on without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        _log.warning("replicas may measure at the same time: %s", error)
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released with the file, also when a process dies
        yield


def _within_limits(profile: Profile, core: TorchEngine) -> Profile:
    """With this engine's limits, which are no part of what was measured."""
    return replace(profile, max_sequences=core.limits.max_sequences, kv_tokens=core.pool.tokens)


def _is_one_thread(core: TorchEngine) -> bool:
    """Then the thread's CPU time is a step's time, however many others want the processor: they
    slow all plans alike, which the governor learns, and would only blur which is better."""
    return core.model.device.type == "cpu" and torch.get_num_threads() == 1


def _bounds(core: TorchEngine) -> Bounds:
    config, limits = core.model.config, core.limits
    special = {config.mask_token_id, config.bos_token_id, *config.eos_token_ids}
    return Bounds(
        max_sequences=limits.max_sequences,
        max_context_tokens=limits.max_context_tokens,
        max_step_tokens=limits.max_step_tokens,
        token_ids=[token for token in range(config.vocab_size) if token not in special],
    )


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} {'thread' if threads == 1 else 'threads'}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
