"""Folders that ended replicas leave behind. Run with: pytest tests/replicas/sglang_engine"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from replicas.sglang_engine.control_folder import PREFIX, ControlFolder

KILLED = """
import os, signal
from replicas.sglang_engine.control_folder import ControlFolder
folder = ControlFolder()
(folder.path / "server.log").write_text("why")
print(folder.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def killed_replica(age_s: float) -> Path:
    """The folder that a killed process leaves, as it looks some time later."""
    run = subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, check=False)
    folder = Path(run.stdout.decode().strip())
    then = folder.stat().st_mtime - age_s
    os.utime(folder, (then, then))
    return folder


def test_what_killed_replicas_leave_is_cleared_by_the_next_start_but_for_the_latest() -> None:
    latest = killed_replica(age_s=1.0)
    assert latest.is_dir()
    older = killed_replica(age_s=2.0)
    assert (latest / "server.log").read_text() == "why"
    ControlFolder()
    assert latest.is_dir()
    assert not older.exists()


def test_a_living_replicas_folder_is_left_alone() -> None:
    folders = [ControlFolder() for _ in range(3)]
    assert all(folder.path.is_dir() for folder in folders)


def test_a_folder_in_the_making_is_left_alone(tmp_path: Path) -> None:
    making = [tmp_path / f"{PREFIX}{i}" for i in range(3)]
    for folder in making:
        folder.mkdir()
    ControlFolder()
    assert all(folder.is_dir() for folder in making)


def test_a_removed_folder_is_gone_with_all_that_is_in_it() -> None:
    folder = ControlFolder()
    (folder.path / "server.log").touch()
    folder.remove()
    assert not folder.path.exists()
