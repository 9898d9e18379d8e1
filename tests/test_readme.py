"""The README says what is so: its commands run, its tree and links exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
MAKE = [c for c in COMMANDS if c.startswith("make ")]
TRIMODE = [c for c in COMMANDS if c.startswith(".venv/bin/trimode ")]
CURL = [c for c in COMMANDS if c.startswith("curl ")]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_every_command_is_of_a_kind_that_some_test_runs() -> None:
    # `make run` and `make test` start what tests/serve and this run are; curl goes to tests/serve.
    assert sorted(COMMANDS) == sorted(MAKE + TRIMODE + CURL)


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_its_targets(command: str) -> None:
    assert run(*shlex.split(command), "--dry-run").returncode == 0


@pytest.mark.parametrize("command", TRIMODE)
def test_trimode_commands_answer(command: str) -> None:
    done = run(sys.executable, "-m", "orchestrator.cli", *shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_tree_is_the_tree() -> None:
    done = run(sys.executable, "scripts/readme_tree.py", "--check")
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
