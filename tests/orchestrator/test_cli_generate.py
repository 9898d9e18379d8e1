"""`trimode generate` as a person types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Reverse: Oslo, Rome, Lima, Paris."


def trimode(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *arguments],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("mode", ["ar", "self_speculation", "diffusion"])
def test_it_answers_in_every_mode_and_counts_what_it_did(mode: str) -> None:
    done = trimode("generate", "--mode", mode, "--threads", "1", PROMPT)
    assert done.returncode == 0
    assert done.stdout == "Paris, Lima, Rome, Oslo\n"
    assert "tokens/s" in done.stderr
    assert "tokens per forward" in done.stderr


def test_a_dash_reads_the_prompt_from_standard_input() -> None:
    done = trimode("generate", "-", stdin=PROMPT)
    assert done.stdout == "Paris, Lima, Rome, Oslo\n"


def test_a_stop_string_ends_the_text_before_itself() -> None:
    done = trimode("generate", "--stop", ", Rome", PROMPT)
    assert done.stdout == "Paris, Lima\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--mode", "ar", "--block-length", "8"], "block length 8"),
        (["--block-length", "5"], "block length 5"),
        (["--mode", "fast"], "'fast'"),
        (["--model", "nowhere"], "nowhere"),
        (["--dtype", "int8"], "int8"),
        (["--device", "tpu"], "tpu"),
        (["--top-p", "2"], "top_p 2.0"),
        (["--temperature", "-1"], "temperature -1.0"),
        (["--stop", ""], "stop string"),
        (["--max-tokens", "100000"], "100"),
        (["--threshold", "0.5"], "threshold"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(arguments: list[str], named: str) -> None:
    done = trimode("generate", *arguments, PROMPT)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert named in done.stderr


def test_a_missing_prompt_is_one_line_and_exit_status_2() -> None:
    done = trimode("generate")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
