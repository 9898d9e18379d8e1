"""What `trimode serve` says of an application that did not start."""

from __future__ import annotations

import pytest
from ray import serve
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ServeStatus,
)

from orchestrator.app import NAME, progress
from orchestrator.app_config import AppConfig

TRACEBACK = """The deployment failed to start 3 times in a row. See controller logs. Error:
ray::ServeReplica:trimode:replica.initialize_and_get_metadata()
  File "replicas/profiles.py", line 112, in profile_for
policies.step_time.ProfileMismatch: Error: profile 'h100' is of another set-up; run it
"""


def status(message: str, state: ApplicationStatus) -> ServeStatus:
    replica = DeploymentStatusOverview(
        DeploymentStatus.DEPLOY_FAILED,
        DeploymentStatusTrigger.REPLICA_STARTUP_FAILED,
        {},
        message,
    )
    known = ApplicationStatusOverview(state, "Failed to update.", 0.0, {"replica": replica})
    return ServeStatus(applications={NAME: known})


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (TRACEBACK, "Failed to update. policies.step_time.ProfileMismatch: Error: profile 'h100' "
                    "is of another set-up; run it"),
        ("", "Failed to update."),
    ],
)  # fmt: skip
def test_a_failed_start_names_what_the_replica_raised(
    monkeypatch: pytest.MonkeyPatch, message: str, said: str
) -> None:
    failed = status(message, ApplicationStatus.DEPLOY_FAILED)
    monkeypatch.setattr(serve, "status", lambda: failed)
    assert progress(AppConfig()).failure == said


def test_a_start_that_goes_on_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    going = status(TRACEBACK, ApplicationStatus.DEPLOYING)
    monkeypatch.setattr(serve, "status", lambda: going)
    assert progress(AppConfig()).failure == ""
