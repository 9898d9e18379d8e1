"""Where a replica's profile comes from, with the engine itself on a very small model."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from policies.step_time import Curve, Profile, ProfileMismatch
from policies.vocabulary import AR, Schedule, all_plans
from replicas.engine import Request, SamplingParams
from replicas.profiles import (
    cache_path,
    calibrate,
    default_budget_s,
    fingerprint,
    profile_for,
    write_profile,
)
from replicas.torch_engine.engine import EngineLimits, TorchEngine
from tests.replicas.torch_engine.builders import TINY, build_model, random_weights

LIMITS = EngineLimits(max_context_tokens=512, max_sequences=4, kv_tokens=4096)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def core() -> TorchEngine:
    return TorchEngine(build_model(TINY, random_weights(TINY)), None, LIMITS)


@pytest.fixture(scope="module")
def measured(core: TorchEngine) -> Profile:
    return calibrate(core, "small", 0.5)


def made_up(core: TorchEngine, name: str = "made up") -> Profile:
    now = datetime.datetime.now(datetime.UTC).isoformat()
    curve = Curve(1e-3, 1e-5, 0, 0, 0, 1e-3)
    return Profile(name, fingerprint(core, "small"), "measured", curve, created=now)


class Measuring:
    """Stands in for a calibration and counts."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.calls, self.failure = 0, failure

    def __call__(self, core: TorchEngine, model: str) -> Profile:
        self.calls += 1
        if self.failure is not None:
            raise self.failure
        return made_up(core)


def test_a_calibrated_profile_says_what_it_is_of(core: TorchEngine, measured: Profile) -> None:
    here = measured.fingerprint
    assert here == fingerprint(core, "small")
    assert "thread" in here.hardware
    assert here.model.startswith("small ")
    assert here.dtype == "float32"
    assert here.engine.startswith("torch 2.")
    assert measured.source == "measured"
    assert (measured.max_sequences, measured.kv_tokens) == (4, core.pool.tokens)
    assert measured.max_positions is None
    assert 0.0 <= measured.noise < 2.0
    assert AR in measured.ratios
    assert all(measured.step_s(plan, 4, 256) > 0 for plan in all_plans())


def test_the_engine_is_as_new_after_a_calibration(core: TorchEngine, measured: Profile) -> None:
    report = core.report()
    assert (report.steps, report.generated_tokens, report.prompt_tokens) == (0, 0, 0)
    assert report.schedule == Schedule.pinned(AR)
    assert all(counters.steps == 0 for counters in report.plans.values())
    assert sum(report.finished.values()) == 0
    core.submit(Request("after", (5, 6, 7), SamplingParams(max_tokens=4, ignore_eos=True)))
    while core.has_work:
        core.step()
    assert core.report().generated_tokens == 4
    core.start_over()


def test_a_profile_is_measured_once_and_then_found(core: TorchEngine) -> None:
    measure = Measuring()
    first = profile_for(core, "small", "auto", measure=measure)
    second = profile_for(core, "small", "auto", measure=measure)
    assert measure.calls == 1
    assert first == second
    assert first is not None
    assert first.max_sequences == 4


def test_another_model_or_precision_is_measured_anew(core: TorchEngine) -> None:
    measure = Measuring()
    profile_for(core, "small", "auto", measure=measure)
    profile_for(core, "other", "auto", measure=measure)
    assert measure.calls == 2
    assert fingerprint(core, "small") != fingerprint(core, "other")


def test_replicas_that_start_together_measure_once(core: TorchEngine) -> None:
    measure, found = Measuring(), []
    start = threading.Barrier(4)

    def replica() -> None:
        start.wait()
        found.append(profile_for(core, "small", "auto", measure=measure))

    threads = [threading.Thread(target=replica) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert measure.calls == 1
    assert len(found) == 4
    assert len({profile.created for profile in found}) == 1


def test_a_failing_calibration_does_not_stop_serving(
    core: TorchEngine, caplog: pytest.LogCaptureFixture
) -> None:
    measure = Measuring(RuntimeError("out of memory"))
    assert profile_for(core, "small", "auto", measure=measure) is None
    assert "out of memory" in caplog.text


def test_a_broken_cache_file_is_measured_again(
    core: TorchEngine, caplog: pytest.LogCaptureFixture
) -> None:
    path = cache_path(fingerprint(core, "small"))
    path.parent.mkdir(parents=True)
    path.write_text('{"format": 0}')
    measure = Measuring()
    assert profile_for(core, "small", "auto", measure=measure) is not None
    assert measure.calls == 1
    assert "profile format 0 is not 1" in caplog.text
    assert json.loads(path.read_text())["name"] == "made up"


@pytest.mark.parametrize(("hours", "calls"), [(0, 0), (2, 1)])
def test_a_noisy_profile_is_shared_for_a_while_and_then_measured_again(
    core: TorchEngine, hours: int, calls: int
) -> None:
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours)
    noisy = replace(made_up(core), noise=0.5, created=then.isoformat())
    write_profile(noisy, cache_path(noisy.fingerprint))
    measure = Measuring()
    profile_for(core, "small", "auto", measure=measure)
    assert measure.calls == calls


def test_a_cache_that_cannot_be_written_does_not_matter(
    core: TorchEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert profile_for(core, "small", "auto", measure=Measuring()) is not None


def test_no_profile_is_made_where_none_is_wanted(core: TorchEngine) -> None:
    measure = Measuring()
    assert profile_for(core, "small", "none", measure=measure) is None
    assert measure.calls == 0


def test_a_profile_of_other_hardware_is_refused_by_name(core: TorchEngine) -> None:
    with pytest.raises(ProfileMismatch, match=r"'h100'.* hardware is .* trimode calibrate"):
        profile_for(core, "small", "h100")


def test_a_profile_that_is_not_there_is_refused_with_those_that_are(core: TorchEngine) -> None:
    with pytest.raises(ValueError, match=r"'nowhere.json' is neither a file nor one of .*h100"):
        profile_for(core, "small", "nowhere.json")


def test_a_named_file_of_this_set_up_is_taken(core: TorchEngine, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    write_profile(made_up(core), path)
    profile = profile_for(core, "small", str(path))
    assert profile is not None
    assert profile.kv_tokens == core.pool.tokens
    assert [file.name for file in tmp_path.iterdir()] == ["profile.json"]


def test_a_larger_model_is_given_more_time_within_limits(core: TorchEngine) -> None:
    assert default_budget_s(core) == pytest.approx(6.0, abs=0.1)
